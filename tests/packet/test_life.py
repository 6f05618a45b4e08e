"""A connection from its first packet to the last late one, and the slot it lives in."""

import pytest
from scapy.layers.inet import IP, TCP

from ipbackend.abi import Phase, SweepMode, Verdict
from tests.packet import cast
from tests.packet.cast import CONFIGURATION, FROM_CLIENT, OTHER_CLIENT, QUERY, SECOND_VIP, SYN, Flow, from_client
from tests.packet.compare import assert_same

SLOTS = 128  # of an endpoint with a ceiling of 50


def close(dataplane, flow: Flow) -> None:
    """By FIN, the client's first."""
    dataplane.run(flow.request(flags="FA"))
    dataplane.run(flow.reply(flags="FA"))
    assert dataplane.phase(flow) is Phase.CLOSED


def test_a_whole_life(dataplane):
    """Each packet, the phase it leads to, and how many connections the endpoint has then."""
    flow = Flow.of(SYN, dataplane.run(SYN).packet)
    life = [
        (flow.reply(flags="SA"), Phase.SYN_RECEIVED, 1),
        (flow.request(flags="A"), Phase.ESTABLISHED, 1),
        (flow.request(flags="PA") / b"GET /", Phase.ESTABLISHED, 1),
        (flow.reply(flags="PA") / b"here", Phase.ESTABLISHED, 1),
        (flow.request(flags="FA"), Phase.CLOSING, 1),
        (flow.reply(flags="A"), Phase.CLOSING, 1),
        (flow.reply(flags="FPA") / b"the rest", Phase.CLOSED, 0),
        (flow.request(flags="A"), Phase.CLOSED, 0),
    ]

    assert (dataplane.phase(flow), dataplane.load().active) == (Phase.SYN_SENT, 1)
    for packet, phase, active in life:
        assert dataplane.run(packet).action in ("TX", "REDIRECT")
        assert (dataplane.phase(flow), dataplane.load().active) == (phase, active)


def test_late_packets_of_both_sides_still_pass(dataplane):
    """The last ACK, and FINs sent again: both stacks end in peace. None of it makes the connection live again."""
    flow = dataplane.establish()
    close(dataplane, flow)

    assert_same(dataplane.run(flow.reply(flags="FA")).packet, flow.replied(flags="FA"))
    assert_same(dataplane.run(flow.request(flags="FA")).packet, flow.requested(flags="FA"))
    assert_same(dataplane.run(flow.request(flags="A")).packet, flow.requested(flags="A"))
    assert dataplane.run(flow.reply(flags="RA")).verdict is Verdict.FORWARD_REPLY
    assert (dataplane.phase(flow), dataplane.load().active) == (Phase.CLOSED, 0)


@pytest.mark.parametrize("sides", [("request", "reply"), ("reply", "request")])
def test_either_side_may_begin_to_close(dataplane, sides):
    flow = dataplane.establish()
    for side in sides:
        dataplane.run(getattr(flow, side)(flags="FA"))
        dataplane.run(getattr(flow, side)(flags="FA"))  # again: lost on the way

    assert (dataplane.phase(flow), dataplane.load().active) == (Phase.CLOSED, 0)


@pytest.mark.parametrize("side", ["request", "reply"])
@pytest.mark.parametrize("flags", ["R", "RA"])
@pytest.mark.parametrize("phase", [Phase.SYN_SENT, Phase.SYN_RECEIVED, Phase.ESTABLISHED, Phase.CLOSING], ids=str)
def test_a_reset_ends_it_in_any_phase(dataplane, phase, flags, side):
    flow = dataplane.open()
    steps = [flow.reply(flags="SA"), flow.request(flags="A"), flow.request(flags="FA")]
    for packet in steps[: phase - Phase.SYN_SENT]:
        dataplane.run(packet)
    assert dataplane.phase(flow) is phase
    if (phase, side) == (Phase.SYN_SENT, "reply"):
        flags = "RA"  # a member refuses a SYN by acknowledging it
    result = dataplane.run(getattr(flow, side)(flags=flags))

    assert result.verdict in (Verdict.FORWARD_REQUEST, Verdict.FORWARD_REPLY)
    assert (dataplane.phase(flow), dataplane.load().active) == (Phase.EXPIRED, 0)


def test_opened_and_closed_are_counted_once(dataplane):
    for flags in ("R", "FA"):
        flow = dataplane.establish()
        for packet in (flow.request(flags=flags), flow.reply(flags=flags)) * 2:
            dataplane.run(packet)

    listener = dataplane.connection(flow).listener
    assert dataplane.count("listener_counts", listener, "opened") == 2
    counts = {field: dataplane.count("endpoint_counts", dataplane.endpoint(), field) for field in ("opened", "closed")}
    assert counts == {"opened": 2, "closed": 2}


def test_a_syn_sent_again_is_the_same_connection(dataplane):
    flow = dataplane.open()
    for _ in range(3):
        assert_same(dataplane.run(SYN).packet, flow.requested(flags="S"))

    assert (dataplane.phase(flow), dataplane.load().active) == (Phase.SYN_SENT, 1)


@pytest.mark.parametrize(
    ("side", "flags"), [("request", flags) for flags in ("S", "A", "SA", "FA")] + [("reply", "A"), ("reply", "FA")]
)
def test_only_the_members_syn_answers_a_syn(dataplane, side, flags):
    flow = dataplane.open()
    dataplane.run(getattr(flow, side)(flags=flags))

    assert dataplane.phase(flow) is Phase.SYN_SENT


@pytest.mark.parametrize(("side", "flags"), [("request", "S"), ("request", ""), ("reply", "A"), ("reply", "SA")])
def test_only_the_clients_ack_ends_the_handshake(dataplane, side, flags):
    flow = dataplane.open()
    dataplane.run(flow.reply(flags="SA"))
    dataplane.run(getattr(flow, side)(flags=flags))

    assert dataplane.phase(flow) is Phase.SYN_RECEIVED


def test_a_datagram_opens_at_once(dataplane):
    flow = dataplane.open(QUERY)
    dataplane.run(flow.reply() / b"me")

    assert dataplane.phase(flow) is Phase.ESTABLISHED
    assert dataplane.load(flow.member, flow.member_port, "UDP").active == 1


def test_the_same_tuple_after_the_end_is_another_connection(dataplane):
    """In another slot, so another source port for the member, which may still be in TIME_WAIT."""
    first = dataplane.establish()
    close(dataplane, first)
    second = dataplane.establish()

    assert (second.snat, second.snat_port) != (first.snat, first.snat_port)
    assert dataplane.load().active == 1
    assert dataplane.phase(first) is Phase.FREE
    assert dataplane.run(first.reply(flags="FA")).verdict is Verdict.DROP_NO_CONNECTION
    assert_same(dataplane.run(second.request(flags="A")).packet, second.requested(flags="A"))


def test_only_a_syn_begins_again(dataplane):
    flow = dataplane.establish()
    close(dataplane, flow)

    assert dataplane.run(flow.request(flags="SA")).verdict is Verdict.FORWARD_REQUEST
    assert dataplane.run(flow.request(flags="SF")).verdict is Verdict.FORWARD_REQUEST
    assert dataplane.load().active == 0


def test_one_tuple_again_and_again(dataplane):
    """More often than there are slots: each time another slot, each slot once before any is used twice."""
    slots = []
    for _ in range(2 * SLOTS):
        flow = dataplane.open()
        slots.append(dataplane.slot(flow))
        dataplane.run(flow.request(flags="R"))

    assert sorted(slots[:SLOTS]) == list(range(SLOTS))
    assert slots[SLOTS:] == slots[:SLOTS]


def test_the_slot_freed_last_is_used_last(dataplane):
    first, second = (dataplane.open(FROM_CLIENT / TCP(sport=port, dport=80, flags="S")) for port in (1, 2))
    dataplane.run(second.request(flags="R"))
    dataplane.run(first.request(flags="R"))
    used = []
    for port in range(1000, 1000 + SLOTS):
        flow = dataplane.open(FROM_CLIENT / TCP(sport=port, dport=80, flags="S"))
        used.append(dataplane.slot(flow))
        dataplane.run(flow.request(flags="R"))

    assert used[-2:] == [dataplane.slot(second), dataplane.slot(first)]


def test_a_slot_used_again_forgets_what_it_was(dataplane):
    """When the queue has gone round, the slot is another client's: nothing of the first one finds it."""
    first = dataplane.establish()
    close(dataplane, first)
    flows = []
    for port in range(SLOTS):
        syn = from_client(OTHER_CLIENT, SECOND_VIP) / TCP(sport=1000 + port, dport=80, flags="S")
        flows.append(dataplane.open(syn))
        if port < SLOTS - 1:
            dataplane.run(flows[-1].request(flags="R"))
    last = flows[-1]

    assert dataplane.slot(last) == dataplane.slot(first)
    assert dataplane.run(first.request(flags="A")).verdict is Verdict.REJECT_NO_CONNECTION
    assert_same(dataplane.run(last.reply(flags="SA")).packet, last.replied(flags="SA"))
    assert dataplane.phase(last) is Phase.SYN_RECEIVED


def test_one_client_to_both_vips_closes_one(dataplane):
    one, other = dataplane.establish(SYN), dataplane.establish(from_client(vip=SECOND_VIP) / SYN[TCP].copy())
    dataplane.run(one.request(flags="R"))

    assert (dataplane.phase(one), dataplane.phase(other)) == (Phase.EXPIRED, Phase.ESTABLISHED)
    assert dataplane.load().active == 1
    assert one.snat_port != other.snat_port or one.snat != other.snat


def test_snat_addresses_take_turns(dataplane):
    """No two connections share a pair of SNAT address and port, and the addresses carry a fourth each."""
    flows = [dataplane.open(FROM_CLIENT / TCP(sport=port, dport=80, flags="S")) for port in range(1, 49)]
    pairs = [(flow.snat, flow.snat_port) for flow in flows]
    snats = [snat for snat, _ in pairs]

    assert len(set(pairs)) == 48
    assert {snats.count(snat) for snat in snats} == {12}


def test_a_change_of_configuration_breaks_nothing(dataplane):
    """Another listener, another member, a lower ceiling: who is in stays in."""
    flow = dataplane.establish()
    changed = """
[listeners.more]
load_balancer = "shop"
protocol = "TCP"
port = 8443
pool = "web"
"""
    dataplane.configure(CONFIGURATION.replace("8080, max_connections = 50", "8080, max_connections = 1") + changed)

    assert_same(dataplane.run(flow.request(flags="PA") / b"x").packet, flow.requested(flags="PA") / b"x")
    assert_same(dataplane.run(flow.reply(flags="PA") / b"y").packet, flow.replied(flags="PA") / b"y")
    assert dataplane.run(FROM_CLIENT / TCP(sport=1, dport=80, flags="S")).verdict is Verdict.REJECT_ALL_FULL


def test_a_member_that_is_taken_out_ends_its_connections(dataplane):
    flow, other = dataplane.establish(SYN), dataplane.open(QUERY)
    dataplane.configure(CONFIGURATION.replace('{ address = "10.0.0.11", port = 8080, max_connections = 50 }', ""))

    assert dataplane.run(flow.request(flags="A")).verdict is Verdict.REJECT_NO_CONNECTION
    assert dataplane.run(flow.reply(flags="A")).verdict is Verdict.DROP_NO_CONNECTION
    assert dataplane.run(SYN).verdict is Verdict.REJECT_NO_MEMBER
    assert dataplane.run(other.request() / b"?").verdict is Verdict.FORWARD_REQUEST


def test_a_listener_that_is_taken_out_ends_its_connections(dataplane):
    """Only its own: the other VIP's go on, on the same endpoint."""
    first, second = dataplane.establish(SYN), dataplane.establish(from_client(vip=SECOND_VIP) / SYN[TCP].copy())
    start = CONFIGURATION.index("[listeners.web]")
    without = CONFIGURATION[:start] + CONFIGURATION[CONFIGURATION.index("[listeners.web-too]") :]
    dataplane.configure(without)

    assert dataplane.run(first.request(flags="A")).verdict is Verdict.REJECT_EXPIRED
    assert dataplane.run(first.reply(flags="A")).verdict is Verdict.REJECT_EXPIRED
    assert dataplane.run(second.request(flags="A")).verdict is Verdict.FORWARD_REQUEST
    assert dataplane.load().active == 1
    assert dataplane.count("endpoint_counts", dataplane.endpoint(), "removed") == 1
    assert dataplane.sweep(SweepMode.ENDPOINT) == (1, 1)


def test_client_ports_are_part_of_the_connection(dataplane):
    """All of the tuple counts: port, address, VIP and protocol each make another connection."""
    packets = [SYN, FROM_CLIENT / TCP(sport=40001, dport=80, flags="S"), from_client(OTHER_CLIENT) / SYN[TCP].copy()]
    flows = [dataplane.open(packet) for packet in packets]

    assert dataplane.load().active == len({(flow.snat, flow.snat_port) for flow in flows}) == 3
    for flow in flows:
        assert dataplane.run(flow.reply(flags="SA")).packet[IP].dst == flow.client


def test_a_member_that_comes_back_gets_other_ports_first(dataplane):
    """It may still know a connection on those that it got first when it was here before; each port has its turn."""
    seen = set()
    for _ in range(8):
        dataplane.configure(cast.NETWORKS)
        dataplane.configure()
        queue = dataplane.maps.of_endpoint("free_slots", dataplane.endpoint()).values("slot").tolist()
        endpoint = dataplane.entries.endpoints[dataplane.endpoint()]
        assert sorted(queue) == list(range(endpoint.first, endpoint.first + endpoint.slots))
        flow = dataplane.open()
        seen.add(dataplane.slot(flow))
        dataplane.run(flow.request(flags="R"))
    assert len(seen) > 1  # of 128 slots; all eight the same by chance: one in 10^14
