"""What stands around and before the transport header: VLAN tags, IP options, frames of several buffers."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption, IPOption_LSRR, IPOption_NOP, IPOption_SSRR, fragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from ipbackend.abi import Verdict
from tests.packet.cast import (
    CLIENT,
    MEMBER_INTERFACE,
    OTHER_CLIENT,
    QUERY,
    SYN,
    VIP,
    Flow,
    answer,
    built,
    from_client,
    from_member,
    icmp,
)
from tests.packet.compare import assert_same

VLANS = [(0, 0), (7, 0), (0, 9), (7, 9), (7, 7), (4094, 1)]
both_sides = pytest.mark.parametrize(("client", "member"), VLANS)
openings = pytest.mark.parametrize("opening", [SYN, QUERY], ids=["TCP", "UDP"])


def tagged(packet: Packet, vlan: int, priority: int = 0) -> Packet:
    """The frame with an 802.1Q tag; VLAN 0 without a priority is no tag."""
    packet = built(packet)
    if not vlan and not priority:
        return packet
    return Ether(dst=packet.dst, src=packet.src) / Dot1Q(vlan=vlan, prio=priority) / packet.payload


@both_sides
@openings
def test_each_side_gets_the_tag_of_its_own(dataplane, opening, client, member):
    dataplane.member_vlan = member
    dataplane.configure()
    result = dataplane.run(tagged(opening, client))
    plain = built(result.packet)
    if member:
        assert plain[Dot1Q].vlan == member
    flow = Flow.of(opening, plain)
    flags = {"flags": "A"} if TCP in opening else {}

    assert result.verdict is Verdict.FORWARD_OPENED
    assert_same(
        result.packet, tagged(flow.requested(**fields_of(opening)) / opening[type(opening[IP].payload)].payload, member)
    )
    reply = dataplane.run(tagged(flow.reply(**flags) / b"answer", member))
    assert reply.verdict is Verdict.FORWARD_REPLY
    assert_same(reply.packet, tagged(flow.replied(**flags) / b"answer", client))
    request = dataplane.run(tagged(flow.request(**flags) / b"more", client))
    assert request.verdict is Verdict.FORWARD_REQUEST
    assert_same(request.packet, tagged(flow.requested(**flags) / b"more", member))


def fields_of(opening: Packet) -> dict[str, object]:
    return {"flags": "S"} if TCP in opening else {}


def test_a_tag_goes_away_at_the_interface_it_came_by(dataplane):
    """XDP_TX of a frame that has become shorter, and longer."""
    dataplane.member_interface = 1
    for member in (0, 9):
        dataplane.member_vlan = member
        dataplane.configure()
        result = dataplane.run(
            tagged(from_client() / TCP(sport=4000 + member, dport=80, flags="S"), 7 if not member else 0)
        )
        assert (result.verdict, result.action) == (Verdict.FORWARD_OPENED, "TX")
        assert (Dot1Q in result.packet) == bool(member)


def test_the_priority_stays(dataplane):
    dataplane.member_vlan = 9
    dataplane.configure()
    flow = dataplane.open(SYN)

    request = dataplane.run(tagged(flow.request(flags="A"), 7, priority=5))
    assert (request.packet[Dot1Q].vlan, request.packet[Dot1Q].prio) == (9, 5)


def test_a_priority_tag_is_of_no_vlan(dataplane):
    """802.1Q: VLAN 0 says only how urgent a frame is."""
    flow = dataplane.open(tagged(SYN, 0, priority=3))

    reply = dataplane.run(flow.reply(flags="SA"))
    assert_same(reply.packet, flow.replied(flags="SA"))


def test_the_way_back_follows_a_client_to_another_vlan(dataplane):
    flow = dataplane.establish()
    for vlan in (7, 8, 0):
        dataplane.run(tagged(flow.request(flags="A"), vlan))
        assert_same(dataplane.run(flow.reply(flags="A")).packet, tagged(flow.replied(flags="A"), vlan))


@pytest.mark.parametrize("vlan", [0, 7])
def test_answers_go_back_by_the_vlan(dataplane, vlan):
    refused = from_client() / TCP(sport=40000, dport=82, flags="S", seq=5)
    reset = Ether(src=refused.dst, dst=refused.src) / IP(src=VIP, dst=CLIENT, id=0, flags="DF")
    reset /= TCP(sport=82, dport=40000, flags="RA", ack=6, window=0)
    assert_same(dataplane.run(tagged(refused, vlan)).packet, tagged(reset, vlan))
    unheard = from_client() / UDP(sport=40000, dport=82) / b"is there anyone?"
    assert_same(dataplane.run(tagged(unheard, vlan)).packet, tagged(answer(unheard, 3, 3), vlan))
    aged = from_client(ttl=1) / UDP(sport=40000, dport=53)
    assert_same(dataplane.run(tagged(aged, vlan)).packet, tagged(answer(aged, 11, 0), vlan))


@both_sides
def test_an_error_crosses_between_vlans(dataplane, client, member):
    dataplane.member_vlan = member
    dataplane.configure()
    left = dataplane.run(tagged(QUERY, client)).packet
    flow = Flow.of(QUERY, left)
    error = from_member(flow.member, flow.snat, proto=1) / icmp(3, 3, bytes(left[IP]))

    result = dataplane.run(tagged(error, member))
    assert result.verdict is Verdict.FORWARD_ICMP_ERROR
    assert (result.packet[Dot1Q].vlan if Dot1Q in result.packet else 0) == client
    assert built(result.packet)[ICMP].chksum == Ether(bytes(without_checksum(result.packet)))[ICMP].chksum


def without_checksum(packet: Packet) -> Packet:
    packet = packet.copy()
    del packet[ICMP].chksum
    return packet


def test_fragments_cross_between_vlans(dataplane):
    dataplane.member_vlan = 9
    dataplane.configure()
    for piece in fragment(from_client() / UDP(sport=4000, dport=53) / bytes(3000), fragsize=1200):
        result = dataplane.run(tagged(piece, 7))
        assert result.verdict in (Verdict.FORWARD_OPENED, Verdict.FORWARD_REQUEST)
        assert result.packet[Dot1Q].vlan == 9


SOURCE_ROUTES = [IPOption_LSRR(routers=["10.0.0.9"]), IPOption_SSRR(routers=["10.0.0.9", "10.0.0.8"])]


@pytest.mark.parametrize("vlan", [0, 7])
@pytest.mark.parametrize("before", [0, 1, 3, 20])
@pytest.mark.parametrize("route", SOURCE_ROUTES, ids=["loose", "strict"])
@pytest.mark.parametrize("transport", [TCP(sport=4000, dport=80, flags="S"), UDP(dport=53)], ids=["TCP", "UDP"])
def test_a_source_route_goes_no_further(dataplane, transport, route, before, vlan):
    """RFC 7126, 4.3 and 4.4: wherever it stands among the options, on either side, of a connection or not."""
    options = [IPOption_NOP()] * before + [route]
    for sender in (from_client(options=options), from_member(options=options)):
        result = dataplane.run(tagged(sender / transport, vlan))
        assert (result.verdict, result.action) == (Verdict.DROP_SOURCE_ROUTE, "DROP")


def test_a_source_route_in_an_icmp_error_goes_no_further(dataplane):
    flow = dataplane.open(QUERY)
    error = from_member(flow.member, flow.snat, proto=1, options=SOURCE_ROUTES[:1])
    error /= icmp(3, 3, bytes(built(flow.requested())[IP]))

    assert dataplane.run(error).verdict is Verdict.DROP_SOURCE_ROUTE


def raw(options: bytes) -> list[IPOption]:
    """Options as they are, right or wrong."""
    return [Raw(options + bytes(-len(options) % 4))]


@pytest.mark.parametrize(
    "options",
    [b"\x07\x07\x04\x00\x00\x00\x00", b"\x44\x08\x05\x00" + bytes(4), b"\x94\x04\x00\x00", b"\x01" * 40, b"\x00\x83"],
    ids=["record route", "timestamp", "router alert", "nothing", "a route behind the end"],
)
@openings
def test_other_options_go_through_as_they_are(dataplane, opening, options):
    sent = from_client(options=raw(options)) / opening[IP].payload
    result = dataplane.run(sent)

    assert result.verdict is Verdict.FORWARD_OPENED
    assert (
        bytes(result.packet[IP])[20 : result.packet[IP].ihl * 4] == bytes(built(sent)[IP])[20 : built(sent)[IP].ihl * 4]
    )
    assert_same(result.packet, without_checksums(result.packet))


def without_checksums(packet: Packet) -> Packet:
    packet = packet.copy()
    del packet[IP].chksum, packet[IP].payload.chksum
    return packet


@pytest.mark.parametrize(
    "options", [b"\x07\x00", b"\x07\x01\x01\x01", b"\x07\x05\x04\x00", b"\x01\x01\x01\x44", b"\xff\xff" + bytes(38)]
)
def test_options_whose_lengths_lie(dataplane, options):
    result = dataplane.run(from_client(options=raw(options)) / TCP(sport=4000, dport=80, flags="S"))

    assert (result.verdict, result.action) == (Verdict.DROP_MALFORMED, "DROP")


LARGE = 9000 - 20 - 20


@pytest.fixture
def jumbo(dataplane):
    """Links on which 9,000 bytes are one packet: more than the kernel keeps in one buffer."""
    dataplane.mtu = 9000
    dataplane.links = {1: 9000, MEMBER_INTERFACE: 9000}
    dataplane.configure()
    return dataplane


@pytest.mark.parametrize("size", [3000, 3400, 3600, 4000, LARGE])
def test_a_long_frame_crosses_whole(jumbo, size):
    flow = jumbo.establish()
    payload = bytes(range(250)) * (size // 250)

    request = jumbo.run(flow.request(flags="A") / payload)
    assert request.verdict is Verdict.FORWARD_REQUEST
    assert_same(request.packet, flow.requested(flags="A") / payload)
    reply = jumbo.run(flow.reply(flags="A") / payload)
    assert reply.verdict is Verdict.FORWARD_REPLY
    assert_same(reply.packet, flow.replied(flags="A") / payload)


def test_a_long_datagram_opens(jumbo):
    sent = QUERY / bytes(8500)
    result = jumbo.run(sent)

    assert result.verdict is Verdict.FORWARD_OPENED
    assert_same(result.packet, Flow.of(sent, result.packet).requested() / b"who?" / bytes(8500))


def test_a_long_frame_between_vlans(jumbo):
    jumbo.member_vlan = 9
    jumbo.configure()
    sent = QUERY / bytes(8500)
    result = jumbo.run(tagged(sent, 7))

    assert_same(result.packet, tagged(Flow.of(sent, result.packet).requested() / b"who?" / bytes(8500), 9))


@pytest.mark.parametrize("lies", [1, 100, 50000])
def test_a_long_frame_that_is_shorter_than_it_says(jumbo, lies):
    sent = bytearray(bytes(built(QUERY / bytes(8500))))
    sent[16:18] = (min(len(sent) - 14 + lies, 65535)).to_bytes(2, "big")

    assert jumbo.run(bytes(sent)).verdict is Verdict.DROP_MALFORMED


def test_a_long_frame_is_answered_by_a_short_one(jumbo):
    segment = from_client() / TCP(sport=4000, dport=82, flags="A", ack=7) / bytes(LARGE)
    told = jumbo.run(segment).packet
    datagram = from_client(OTHER_CLIENT) / UDP(sport=4000, dport=82) / (bytes(range(250)) * 35)

    assert (told[TCP].flags, told[TCP].seq, len(bytes(told))) == ("R", 7, 54)
    assert_same(jumbo.run(datagram).packet, answer(datagram, 3, 3))


def test_a_long_frame_learns_a_short_links_mtu(jumbo):
    jumbo.mtu = 1500
    jumbo.configure()
    flow = jumbo.establish()
    sent = flow.request(ip={"flags": "DF"}, flags="A") / bytes(LARGE)
    result = jumbo.run(sent)

    assert result.verdict is Verdict.REJECT_TOO_BIG
    assert_same(result.packet, answer(sent, 3, 4, bytes(2) + (1500).to_bytes(2, "big")))
