"""What ends without a packet: by silence, each phase after its own time, and slots whose rest is over."""

import pytest
from scapy.layers.inet import TCP

from ipbackend.abi import Phase, SweepMode, Verdict
from tests.packet.cast import OTHER_CLIENT, QUERY, SYN, from_client

IDLE = 300  # a listener's, unless it says otherwise


def silent_for(dataplane, flow, seconds: float) -> None:
    """As if its last packet had come so long ago."""
    clock = dataplane.maps.clock
    dataplane.connection(flow).last_seen = (clock.now() - clock.ticks(seconds)) % 2**32


def in_phase(dataplane, phase: Phase, syn=SYN):
    flow = dataplane.open(syn)
    steps = [flow.reply(flags="SA"), flow.request(flags="A"), flow.request(flags="FA"), flow.reply(flags="FA")]
    for packet in steps[: phase - Phase.SYN_SENT]:
        dataplane.run(packet)
    assert dataplane.phase(flow) is phase
    return flow


@pytest.mark.parametrize(
    ("phase", "seconds"),
    [(Phase.SYN_SENT, 5), (Phase.SYN_RECEIVED, 15), (Phase.ESTABLISHED, IDLE), (Phase.CLOSING, 20)],
    ids=str,
)
def test_silence_ends_a_connection(dataplane, phase, seconds):
    """A moment before its time it stays; then it leaves the count, is counted, and its slot rests to tell its ends."""
    flow = in_phase(dataplane, phase)
    silent_for(dataplane, flow, seconds - 1)
    assert dataplane.sweep() == (0, 0)
    silent_for(dataplane, flow, seconds + 1)
    assert dataplane.sweep() == (1, 0)

    load = dataplane.load()
    assert (dataplane.phase(flow), load.active, load.half_open) == (Phase.EXPIRED, 0, 0)
    assert dataplane.count("endpoint_counts", dataplane.endpoint(), "expired") == 1
    assert dataplane.run(flow.request(flags="A")).verdict is Verdict.REJECT_EXPIRED
    assert dataplane.run(flow.reply(flags="A")).verdict is Verdict.REJECT_EXPIRED
    silent_for(dataplane, flow, 59)
    assert dataplane.sweep() == (0, 0)
    silent_for(dataplane, flow, 61)
    assert dataplane.sweep() == (0, 1)

    assert (dataplane.phase(flow), load.active, load.half_open) == (Phase.FREE, 0, 0)
    assert dataplane.count("endpoint_counts", dataplane.endpoint(), "expired") == 1
    assert dataplane.run(flow.request(flags="A")).verdict is Verdict.REJECT_NO_CONNECTION
    assert dataplane.run(flow.reply(flags="A")).verdict is Verdict.DROP_NO_CONNECTION


def test_datagrams_expire_too(dataplane):
    flow = dataplane.open(QUERY)
    silent_for(dataplane, flow, IDLE + 1)
    dataplane.sweep()

    assert dataplane.phase(flow) is Phase.FREE
    assert dataplane.run(flow.reply() / b"late").verdict is Verdict.DROP_NO_CONNECTION
    assert dataplane.run(QUERY).verdict is Verdict.FORWARD_OPENED


def test_a_listeners_own_idle_timeout(dataplane):
    flow = in_phase(dataplane, Phase.ESTABLISHED)
    dataplane.connection(flow).idle_timeout = 4000
    silent_for(dataplane, flow, 3999)
    assert dataplane.sweep() == (0, 0)
    silent_for(dataplane, flow, 4001)
    assert dataplane.sweep() == (1, 0)


@pytest.mark.parametrize("side", ["request", "reply"])
def test_a_packet_breaks_the_silence(dataplane, side):
    flow = in_phase(dataplane, Phase.ESTABLISHED)
    silent_for(dataplane, flow, IDLE + 1)
    dataplane.run(getattr(flow, side)(flags="A"))

    assert dataplane.sweep() == (0, 0)
    assert dataplane.maps.clock.seconds_since(dataplane.connection(flow).last_seen) <= 1.1


def test_last_seen_is_not_written_for_every_packet(dataplane):
    """Once a second is enough: the packets of a busy connection share no cache line for writing."""
    flow = in_phase(dataplane, Phase.ESTABLISHED)
    silent_for(dataplane, flow, 0.4)
    before = dataplane.connection(flow).last_seen
    dataplane.run(flow.request(flags="A"))

    assert dataplane.connection(flow).last_seen == before
    silent_for(dataplane, flow, 3)
    dataplane.run(flow.request(flags="A"))
    assert dataplane.maps.clock.seconds_since(dataplane.connection(flow).last_seen) <= 1.1


def test_a_clock_ahead_of_the_sweeps_is_no_silence(dataplane):
    """Another CPU may have seen the next tick already."""
    flow = in_phase(dataplane, Phase.ESTABLISHED)
    dataplane.connection(flow).last_seen = dataplane.maps.clock.now() + 2

    assert dataplane.sweep() == (0, 0)


def test_a_closed_slot_rests_and_is_free(dataplane):
    """It has left the count when it closed; when its rest is over it also leaves the index."""
    flow = in_phase(dataplane, Phase.CLOSED)
    silent_for(dataplane, flow, 59)
    assert dataplane.sweep() == (0, 0)
    assert dataplane.run(flow.request(flags="A")).verdict is Verdict.FORWARD_REQUEST
    silent_for(dataplane, flow, 61)
    assert dataplane.sweep() == (0, 1)

    assert (dataplane.phase(flow), dataplane.load().active) == (Phase.FREE, 0)
    assert dataplane.count("endpoint_counts", dataplane.endpoint(), "expired") == 0
    assert dataplane.run(flow.request(flags="A")).verdict is Verdict.REJECT_NO_CONNECTION


def test_late_packets_do_not_lengthen_the_rest(dataplane):
    flow = in_phase(dataplane, Phase.CLOSED)
    silent_for(dataplane, flow, 61)
    dataplane.run(flow.request(flags="A"))
    dataplane.run(flow.reply(flags="A"))

    assert dataplane.sweep() == (0, 1)


def test_an_endpoint_at_once(dataplane):
    """Its connections and resting slots, however fresh; those of others stay."""
    in_phase(dataplane, Phase.CLOSED, from_client(OTHER_CLIENT) / SYN[TCP].copy())
    flow, other = in_phase(dataplane, Phase.ESTABLISHED), dataplane.open(QUERY)

    assert dataplane.tables.sweep(dataplane.endpoint(), SweepMode.ENDPOINT) == (1, 1)
    assert (dataplane.phase(flow), dataplane.load().active) == (Phase.FREE, 0)
    assert dataplane.phase(other) is Phase.ESTABLISHED
    assert dataplane.count("endpoint_counts", dataplane.endpoint(), "removed") == 1


def test_every_slot_of_a_table_is_looked_at(dataplane):
    flows = []
    for port in range(50):
        syn = SYN.copy()
        syn.payload.payload.sport = port + 1
        flows.append(dataplane.open(syn))
    for flow in flows[::2]:
        silent_for(dataplane, flow, 6)

    assert dataplane.sweep() == (25, 0)
    assert {dataplane.phase(flow) for flow in flows[::2]} == {Phase.EXPIRED}
    assert {dataplane.phase(flow) for flow in flows[1::2]} == {Phase.SYN_SENT}
