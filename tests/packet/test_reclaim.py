"""While nobody sweeps: openings look for what is over themselves, and new connections go on for ever."""

import pytest
from scapy.layers.inet import TCP, UDP

from ipbackend.abi import RECLAIM_SLICE, UNSWEPT, Phase, Verdict
from ipbackend.datapath.audit import audit
from tests.packet.cast import QUERY, SYN
from tests.packet.travellers import Flow

CEILING = 50  # of both members


@pytest.fixture(autouse=True)
def swept_again(dataplane):
    yield
    dataplane.settings.swept = 0


def ticks_ago(dataplane, seconds: float) -> int:
    clock = dataplane.maps.clock
    return (clock.now() - clock.ticks(seconds)) % 2**32


def from_port(packet, port: int):
    packet = packet.copy()
    packet[2].sport = port
    return packet


def test_an_opening_reclaims_where_nobody_has_swept_for_long_and_not_before(dataplane):
    flow = dataplane.open(QUERY)
    dataplane.connection(flow).last_seen = ticks_ago(dataplane, 4001)
    for port, seconds in enumerate((0, UNSWEPT - 1), 50_000):
        dataplane.settings.swept = ticks_ago(dataplane, seconds)
        dataplane.open(from_port(QUERY, port))
        assert dataplane.phase(flow) is Phase.ESTABLISHED

    dataplane.settings.swept = ticks_ago(dataplane, UNSWEPT + 1)
    dataplane.open(from_port(QUERY, 50_002))
    assert dataplane.phase(flow) is Phase.FREE
    assert audit(dataplane.maps) == []


@pytest.mark.parametrize(("packet", "kind"), [(QUERY, UDP), (SYN, TCP)], ids=["datagrams", "handshakes"])
def test_what_no_packet_ends_never_fills_a_member_for_good(dataplane, packet, kind):
    """Ten times as many as there is room for, of which each is silent for too long at once."""
    opened = 0
    dataplane.settings.swept = ticks_ago(dataplane, UNSWEPT + 1)
    for number in range(10 * CEILING):
        result = dataplane.run(from_port(packet, 10_000 + number))
        assert result.verdict is Verdict.FORWARD_OPENED, number
        flow = Flow.of(from_port(packet, 10_000 + number), result.packet)
        dataplane.connection(flow).last_seen = ticks_ago(dataplane, 4001)
        opened += 1
    slots = dataplane.entries.endpoints[dataplane.endpoint(flow.member, flow.member_port, kind.__name__)].slots
    open_now = dataplane.load(flow.member, flow.member_port, kind.__name__).active
    assert opened == 10 * CEILING
    assert open_now <= slots // RECLAIM_SLICE + 1
    assert audit(dataplane.maps) == []


def test_a_member_that_is_full_has_room_again_after_one_look_at_all_its_slots(dataplane):
    flows = [dataplane.open(from_port(QUERY, 10_000 + number)) for number in range(CEILING)]
    for flow in flows:
        dataplane.connection(flow).last_seen = ticks_ago(dataplane, 4001)
    assert dataplane.run(from_port(QUERY, 20_000)).verdict is Verdict.REJECT_ALL_FULL

    dataplane.settings.swept = ticks_ago(dataplane, UNSWEPT + 1)
    slots = dataplane.entries.endpoints[dataplane.endpoint(flow.member, flow.member_port, "UDP")].slots
    looks = -(-slots // RECLAIM_SLICE)
    results = [dataplane.run(from_port(QUERY, 20_000 + number)).verdict for number in range(looks)]
    assert results[-1] is Verdict.FORWARD_OPENED
    assert dataplane.load(flow.member, flow.member_port, "UDP").active <= looks
    assert audit(dataplane.maps) == []
