"""ICMP errors: those of others, translated for the end that they concern, and the gateway's own."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from random import Random
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.utils import checksum

from ipbackend.abi import Phase, SweepMode, Verdict
from tests.packet.cast import (
    CLIENT,
    CLIENT_INTERFACE,
    CONFIGURATION,
    MEMBER,
    OTHER_CLIENT,
    QUERY,
    SNATS,
    SYN,
    UDP_MEMBER,
    VIP,
    Flow,
    answer,
    built,
    from_client,
    from_member,
    icmp,
)
from tests.packet.compare import assert_same
from tests.packet.test_checksums import OPTIONS, checksum_of

CLIENTS_ROUTER = "198.51.100.1"
MEMBERS_ROUTER = "10.0.0.3"
KINDS = [
    *((3, code, bytes(4)) for code in range(16) if code != 4),
    (3, 4, (1400).to_bytes(4, "big")),
    (3, 4, bytes(4)),
    (11, 0, bytes(4)),
    (11, 1, bytes(4)),
    (12, 0, b"\x09\0\0\0"),
    (12, 1, b"\x14\0\0\0"),
    (12, 2, bytes(4)),
]
UNREACHABLE, TOO_BIG, TTL_ENDED = (3, 3), (3, 4), (11, 0)


@dataclass(frozen=True)
class Side:
    """Where an error comes from: who sends it, what the datagram quoted was there, and what its end had sent."""

    name: str
    router: str
    seen: Callable[..., Packet]
    sent: Callable[..., Packet]
    arriving: Callable[..., Packet]
    leaving: Callable[..., Packet]

    def error(self, flow: Flow, body: Packet, sender: str | None = None, **ip: Any) -> Packet:
        """As it reaches the gateway, from the router of that side or another sender; `ip` is of the outer header."""
        packet = self.arriving(flow, ip=ip)
        packet[IP].src = sender or self.router
        return self._around(packet, body)

    def told(self, flow: Flow, body: Packet, **ip: Any) -> Packet:
        """As the other end gets it, one hop older, from the address that it knows."""
        return self._around(self.leaving(flow, ip={"ttl": 63} | ip), body)

    @staticmethod
    def _around(packet: Packet, body: Packet) -> Packet:
        packet[IP].proto = 1
        packet[IP].remove_payload()
        return packet / body


SIDES = {
    "member": Side("member", MEMBERS_ROUTER, Flow.requested, Flow.request, Flow.reply, Flow.replied),
    "client": Side("client", CLIENTS_ROUTER, Flow.replied, Flow.reply, Flow.request, Flow.requested),
}
both_sides = pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
both_protocols = pytest.mark.parametrize("opening", [SYN, QUERY], ids=["TCP", "UDP"])


def end_of(side: Side, flow: Flow) -> str:
    """The end on the side of the error: whom the datagram was for."""
    return getattr(flow, side.name)


def quoted(datagram: Packet, length: int | None = None) -> bytes:
    """The datagram's first bytes, the 8 behind its IP header among them; all of it without a length."""
    return bytes(datagram[IP])[:length]


def translate(
    dataplane,
    side: Side,
    flow: Flow,
    kind: tuple[int, int] = UNREACHABLE,
    *,
    rest: bytes = bytes(4),
    inner: dict[str, Any] | None = None,
    fields: dict[str, Any] | None = None,
    payload: bytes = b"",
    cut: int | None = 28,
    tail: bytes = b"",
    padding: bytes = b"",
    sender: str | None = None,
    outer: dict[str, Any] | None = None,
) -> None:
    """An error around a datagram as it was seen there, and the same around the datagram as its end had sent it.

    Both datagrams are built anew by scapy, checksums and all; `tail` follows the quote, `padding` the packet.
    """
    inner, outer = {"ttl": 1} | (inner or {}), outer or {}
    seen, sent = (quoted(make(flow, ip=inner, **(fields or {})) / payload, cut) for make in (side.seen, side.sent))
    checksum = (seen[0] & 15) * 4 + 16
    if flow.kind is TCP and len(seen) == checksum + 1:
        sent = sent[:-1] + seen[-1:]  # half a checksum cannot be reverted
    arriving = side.error(flow, icmp(*kind, seen + tail, rest), sender, **outer)
    result = dataplane.run(bytes(arriving) + padding)
    leaving = side.told(flow, icmp(*kind, sent + tail, rest), **(outer | {"ttl": outer.get("ttl", 64) - 1}))

    assert result.verdict is Verdict.FORWARD_ICMP_ERROR
    assert_same(result.packet, Ether(bytes(leaving) + padding))


@both_sides
@both_protocols
def test_every_kind(dataplane, side, opening):
    """From a router on the way and from the end itself; what it says stays as it is: MTU, pointer."""
    flow = dataplane.open(opening)
    for kind, code, rest in KINDS:
        for sender in (side.router, end_of(side, flow)):
            translate(dataplane, side, flow, (kind, code), rest=rest, sender=sender)


@both_sides
def test_it_leaves_by_the_way_of_its_connection(dataplane, side):
    flow = dataplane.open(SYN)
    error = side.error(flow, icmp(*UNREACHABLE, quoted(side.seen(flow))))

    assert dataplane.run(error).action == {"member": "TX", "client": "REDIRECT"}[side.name]
    dataplane.member_interface = CLIENT_INTERFACE
    dataplane.configure()
    assert dataplane.run(error).action == "TX"


@both_sides
@both_protocols
@pytest.mark.parametrize("length", [28, 29, 36, 37, 38, 39, 40, 41, 99, None])
def test_quotes_of_every_length(dataplane, side, opening, length):
    """TCP's checksum is reverted as soon as it is there whole, with 38 bytes (RFC 5508, requirements 4a and 5a)."""
    flow = dataplane.open(opening)

    for payload in (bytes(range(71)), bytes(range(72)), b""):
        translate(dataplane, side, flow, payload=payload, cut=length)


@both_sides
@both_protocols
@pytest.mark.parametrize("cut", [8, 17, 18, 19, 300])
def test_options_inside_and_outside(dataplane, side, opening, cut):
    flow = dataplane.open(opening)

    for inner in OPTIONS:
        header = len(IP(bytes(IP(options=inner)))) if inner else 20
        for outer in OPTIONS:
            translate(
                dataplane,
                side,
                flow,
                inner={"options": inner},
                outer={"options": outer, "tos": 0xC0, "id": 7, "flags": "DF", "ttl": 2},
                payload=b"odd",
                cut=header + cut,
            )


@both_sides
@pytest.mark.parametrize("cut", [28, 31])
def test_a_udp_checksum_of_none_stays_none(dataplane, side, cut):
    translate(dataplane, side, dataplane.open(QUERY), fields={"chksum": 0}, payload=b"odd", cut=cut)


@both_sides
@pytest.mark.parametrize("where", ["seen", "sent"])
def test_a_udp_checksum_of_all_ones(dataplane, side, where):
    """A payload that makes the sum come out as 0 here or there: it is all ones then, and never none (RFC 768)."""
    flow = dataplane.open(QUERY)
    payload = checksum_of(getattr(side, where)(flow) / bytes(2)).to_bytes(2, "big")

    assert built(getattr(side, where)(flow) / payload)[UDP].chksum == 0xFFFF
    translate(dataplane, side, flow, payload=payload)


@both_sides
@both_protocols
def test_what_follows_the_quote_is_kept(dataplane, side, opening):
    """Extensions (RFC 4884) behind 128 bytes, their length in words in the header; any other bytes; padding."""
    flow = dataplane.open(opening)
    extension = b"\x20\0\0\0" + b"\0\x08\x01\x01" + b"\x12\x34\x51\xff"

    for kind in (UNREACHABLE, TTL_ENDED, (12, 0)):
        translate(dataplane, side, flow, kind, rest=b"\0\x20\0\0", payload=bytes(150), cut=128, tail=extension)
        translate(dataplane, side, flow, kind, rest=b"\0\x20\0\0", cut=40, tail=bytes(88) + extension)
    translate(dataplane, side, flow, cut=None, payload=b"all", tail=b"odd")
    for cut in (28, 29, 37):
        translate(dataplane, side, flow, cut=cut, padding=bytes(range(1, 20)))


@both_sides
def test_the_first_fragment_is_quoted(dataplane, side):
    translate(dataplane, side, dataplane.open(QUERY), (11, 1), inner={"flags": "MF"}, payload=bytes(40))


@both_sides
@both_protocols
@pytest.mark.parametrize("seed", range(2))
def test_random_errors(dataplane, side, opening, seed):
    """Everything random that a translation must keep or account for."""
    random = Random(seed)
    for number in range(40):
        opening = built(opening)
        opening[IP].src = str(IPv4Address(random.randrange(11 << 24, 100 << 24)))
        opening[IP].payload.sport = random.randrange(1, 65536)
        flow = dataplane.open(opening)
        for _ in range(10):
            header = {
                name: {
                    "id": random.getrandbits(16),
                    "tos": random.getrandbits(8),
                    "ttl": random.randrange(2, 256),
                    "flags": random.choice([0, "DF"]),
                    "options": random.choice(OPTIONS),
                }
                for name in ("inner", "outer")
            }
            fields = {}
            if flow.kind is TCP:
                fields = {name: random.getrandbits(32) for name in ("seq", "ack")}
                fields |= {"flags": random.choice(["S", "A", "PA", "FA"]), "window": random.getrandbits(16)}
            elif random.random() < 0.2:
                fields = {"chksum": 0}
            kind, code, rest = random.choice(KINDS)
            cut = random.choice([None, *range(68, 140)])
            tail = random.randbytes(random.randrange(0, 50)) if cut is None or cut >= 78 else b""
            translate(
                dataplane,
                side,
                flow,
                (kind, code),
                rest=rest,
                fields=fields,
                payload=random.randbytes(random.randrange(0, 99)),
                cut=cut,
                tail=tail,
                sender=str(IPv4Address(random.randrange(11 << 24, 100 << 24))),
                **header,
            )
        if number % 20 == 19:
            dataplane.sweep(SweepMode.ENDPOINT)  # or the ceiling is met


@both_sides
@both_protocols
def test_a_connection_is_left_as_it_is(dataplane, side, opening):
    """An error is a hint from who knows whom: it neither ends the connection nor keeps it (RFC 5508, requirement 6)."""
    flow = dataplane.open(opening)
    connection = dataplane.connection(flow)
    connection.last_seen -= 100
    before = bytes(connection)
    counted = [dataplane.count("listener_counts", connection.listener, name) for name in ("request_packets", "opened")]
    for kind, code, rest in KINDS:
        translate(dataplane, side, flow, (kind, code), rest=rest)

    assert bytes(connection) == before
    assert dataplane.load(flow.member, flow.member_port, "TCP" if opening is SYN else "UDP").active == 1
    assert counted == [
        dataplane.count("listener_counts", connection.listener, name) for name in ("request_packets", "opened")
    ]
    assert dataplane.run(flow.request()).verdict is Verdict.FORWARD_REQUEST


@both_sides
def test_a_closed_connection_still_hears_of_its_last_packets(dataplane, side):
    flow = dataplane.establish()
    for packet in (flow.request(flags="FA"), flow.reply(flags="FA")):
        dataplane.run(packet)
    assert dataplane.phase(flow) is Phase.CLOSED

    translate(dataplane, side, flow)
    dataplane.settings.rest = 0
    dataplane.sweep()
    assert dataplane.phase(flow) is Phase.FREE
    assert_unrelated(dataplane, side.error(flow, icmp(*UNREACHABLE, quoted(side.seen(flow)))))


def assert_unrelated(dataplane, error: Packet | bytes) -> None:
    result = dataplane.run(error)

    assert (result.verdict, result.action) == (Verdict.DROP_ICMP_UNRELATED, "DROP")
    assert bytes(result.packet) == bytes(error)


@both_sides
@both_protocols
def test_nothing_of_ours(dataplane, side, opening):
    """Each differs in one thing from an error about the connection."""
    flow = dataplane.open(opening)
    other = SNATS[(SNATS.index(flow.snat) + 1) % 4]
    changes: dict[str, list[dict[str, Any]]] = {
        "member": [
            {"src": other},
            {"src": VIP},
            {"src": "10.0.0.99"},
            {"dst": "10.0.0.12"},
            {"dst": CLIENT},
            {"sport": flow.snat_port + 1},
            {"sport": 32767},
            {"sport": 0},
            {"sport": 65535},
            {"dport": flow.member_port + 1},
        ],
        "client": [
            {"src": "10.0.0.110"},
            {"src": flow.snat},
            {"src": "10.0.0.99"},
            {"dst": OTHER_CLIENT},
            {"dst": MEMBER},
            {"sport": flow.vip_port + 1},
            {"dport": flow.client_port + 1},
        ],
    }
    for change in changes[side.name]:
        datagram = built(side.seen(flow))
        for name, value in change.items():
            setattr(datagram[IP] if name in ("src", "dst") else datagram[flow.kind], name, value)
        assert_unrelated(dataplane, side.error(flow, icmp(*UNREACHABLE, quoted(datagram))))
        outer = change.get("src")
        if outer in (other, "10.0.0.110"):  # outer and inner agree, but the connection has another address
            error = side.error(flow, icmp(*UNREACHABLE, quoted(datagram)))
            error[IP].dst = outer
            assert_unrelated(dataplane, error)
    translate(dataplane, side, flow)


@both_sides
@both_protocols
def test_the_wrong_way_round(dataplane, side, opening):
    """What the end itself sent, or what it was sent, is not what we sent."""
    flow = dataplane.open(opening)

    for make in (Flow.request, Flow.requested, Flow.reply, Flow.replied):
        if make is not side.seen:
            assert_unrelated(dataplane, side.error(flow, icmp(*UNREACHABLE, quoted(make(flow)))))


@both_sides
def test_the_other_protocol_on_the_same_ports(dataplane, side):
    flow = dataplane.open(QUERY)
    datagram = quoted(side.seen(flow) / bytes(40))

    assert_unrelated(dataplane, side.error(flow, icmp(*UNREACHABLE, datagram[:9] + b"\x06" + datagram[10:])))


@both_sides
@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 6 + 128, 41, 47, 50, 132, 255])
def test_no_error_about_other_protocols(dataplane, side, protocol):
    """An ICMP error about ICMP least of all (RFC 1122, 3.2.2)."""
    flow = dataplane.open(QUERY)
    datagram = quoted(side.seen(flow) / bytes(40))

    assert_unrelated(dataplane, side.error(flow, icmp(*UNREACHABLE, datagram[:9] + bytes([protocol]) + datagram[10:])))


@both_sides
@pytest.mark.parametrize("inner", [{"frag": 1}, {"frag": 8191}, {"frag": 1, "flags": "MF"}, {"version": 6}, {"ihl": 4}])
def test_a_quote_without_ports(dataplane, side, inner):
    """A later fragment has none, whatever lies there; a header of another kind neither."""
    flow = dataplane.open(QUERY)

    assert_unrelated(dataplane, side.error(flow, icmp(*UNREACHABLE, quoted(side.seen(flow, ip=inner) / bytes(40)))))


def test_a_quote_whose_header_is_too_short(dataplane):
    """With 16 bytes of header, the destination's four would be the ports: here they are those of a connection."""
    dataplane.configure(CONFIGURATION.replace("port = 53\n", f"port = {203 << 8}\n"))
    flow = dataplane.open(from_client() / UDP(sport=113 << 8 | 7, dport=203 << 8))
    side = SIDES["client"]
    datagram = quoted(side.seen(flow))

    translate(dataplane, side, flow)
    assert datagram[16:20] == datagram[20:24]
    assert_unrelated(dataplane, side.error(flow, icmp(*UNREACHABLE, b"\x44" + datagram[1:])))


@both_sides
@pytest.mark.parametrize("options", OPTIONS, ids=["bare", "4", "40"])
def test_quotes_too_short(dataplane, side, options):
    """Fewer than 8 bytes of payload: no matter what padding follows in the frame, they are not the quote's."""
    flow = dataplane.open(QUERY)
    datagram = quoted(side.seen(flow, ip={"options": options}), None)
    assert len(datagram) == 28 + {0: 0, 4: 4, 1: 40}[len(options)]

    for length in range(len(datagram)):
        error = side.error(flow, icmp(*UNREACHABLE, datagram[:length]))
        assert_unrelated(dataplane, error)
        assert_unrelated(dataplane, bytes(error) + datagram[length:] + bytes(20))


@both_sides
@both_protocols
def test_truncated_anywhere(dataplane, side, opening):
    flow = dataplane.open(opening)
    for options in OPTIONS:
        frame = bytes(
            side.error(flow, icmp(*UNREACHABLE, quoted(side.seen(flow, ip={"options": options}))), options=options)
        )
        for length in range(14, len(frame)):
            result = dataplane.run(frame[:length])
            assert result.verdict is (Verdict.PASS_NOT_OURS if length < 34 else Verdict.DROP_MALFORMED)
        assert dataplane.run(frame).verdict is Verdict.FORWARD_ICMP_ERROR


@both_sides
def test_an_icmp_header_too_short(dataplane, side):
    flow = dataplane.open(QUERY)
    error = bytes(side.error(flow, icmp(*UNREACHABLE, quoted(side.seen(flow)))))

    for length in range(20, 28):
        lying = error[:16] + length.to_bytes(2, "big") + error[18:]
        assert dataplane.run(lying).verdict is Verdict.DROP_MALFORMED


@both_sides
@both_protocols
@pytest.mark.parametrize("cut", [28, 29, 60, 333, 548])
def test_an_error_that_is_not_as_it_was_sent(dataplane, side, opening, cut):
    """RFC 5508, REQ-3: any bit of the message that has changed on its way, of an even or an odd number of bytes."""
    flow = dataplane.open(opening)
    whole = quoted(side.seen(flow) / (bytes(range(250)) * 2))[:cut]
    error = bytes(side.error(flow, icmp(*UNREACHABLE, whole)))
    assert dataplane.run(error).verdict is Verdict.FORWARD_ICMP_ERROR
    for at in (36, 37, 41, *range(67, len(error), 31), len(error) - 1):  # not where it says whom it is about
        damaged = error[:at] + bytes([error[at] ^ 0x10]) + error[at + 1 :]
        assert dataplane.run(damaged).verdict is Verdict.DROP_MALFORMED, at


@both_sides
def test_a_quote_whose_own_header_is_not_as_it_was_sent(dataplane, side):
    """RFC 5508, REQ-3a: the message is whole, but was made of a broken datagram."""
    flow = dataplane.open(QUERY)
    for at in (1, 5, 8, 10):
        broken = bytearray(quoted(side.seen(flow)))
        broken[at] ^= 0x20
        assert dataplane.run(side.error(flow, icmp(*UNREACHABLE, bytes(broken)))).verdict is Verdict.DROP_MALFORMED


@both_sides
@pytest.mark.parametrize("damage", [0, 1])
def test_a_longer_error_is_its_receivers_to_check(dataplane, side, damage):
    """What is wrong stays wrong: checksums are adjusted, not computed anew."""
    dataplane.mtu = 1500
    flow = dataplane.open(QUERY)
    body = icmp(*UNREACHABLE, quoted(side.seen(flow) / bytes(900)))
    error = bytearray(bytes(side.error(flow, body)))
    error[600] ^= damage
    result = dataplane.run(bytes(error))

    assert result.verdict is Verdict.FORWARD_ICMP_ERROR
    assert (checksum(bytes(result.packet[IP].payload)) == 0) == (not damage)


@both_sides
@pytest.mark.parametrize("ttl", [0, 1])
def test_an_error_that_outlived_its_time_is_not_answered(dataplane, side, ttl):
    """No ICMP about ICMP (RFC 1122, 3.2.2)."""
    flow = dataplane.open(SYN)
    result = dataplane.run(side.error(flow, icmp(*UNREACHABLE, quoted(side.seen(flow))), ttl=ttl))

    assert (result.verdict, result.action) == (Verdict.DROP_TTL, "DROP")


@both_sides
def test_an_error_too_big_is_not_answered(dataplane, side):
    dataplane.mtu, dataplane.links = 600, {1: 600, 2: 600}
    dataplane.configure()
    flow = dataplane.open(QUERY)
    datagram = side.seen(flow) / bytes(1000)

    translate(dataplane, side, flow, payload=bytes(1000), cut=572)
    for flags in (0, "DF"):
        result = dataplane.run(side.error(flow, icmp(*UNREACHABLE, quoted(datagram, 573)), flags=flags))
        assert (result.verdict, result.action) == (Verdict.DROP_TOO_BIG, "DROP")


@both_sides
@pytest.mark.parametrize("sender", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", VIP, SNATS[1]])
def test_an_error_of_no_one(dataplane, side, sender):
    flow = dataplane.open(SYN)
    result = dataplane.run(side.error(flow, icmp(*UNREACHABLE, quoted(side.seen(flow))), sender))

    assert (result.verdict, result.action) == (Verdict.DROP_MALFORMED, "DROP")


def test_an_error_waits_for_no_next_hop(dataplane):
    flow = dataplane.open(SYN)
    dataplane.unresolved = {IPv4Address(MEMBER)}
    dataplane.configure()
    side = SIDES["client"]
    result = dataplane.run(side.error(flow, icmp(*UNREACHABLE, quoted(side.seen(flow)))))

    assert (result.verdict, result.action) == (Verdict.DROP_NO_NEXT_HOP, "DROP")
    translate(dataplane, SIDES["member"], flow)


# The gateway's own errors.

ENDS = {"request": (1400, 1500), "reply": (1500, 1400)}  # MTU towards members and clients
both_ends = pytest.mark.parametrize("end", ENDS)


def narrow(dataplane, end: str) -> None:
    """1,400 bytes fit the link that the end's packets leave by, and more the other."""
    dataplane.mtu, clients = ENDS[end]
    dataplane.links = {CLIENT_INTERFACE: clients, 2: 1500}
    dataplane.configure()


@both_ends
@both_protocols
@pytest.mark.parametrize("options", OPTIONS, ids=["bare", "4", "40"])
def test_a_sender_learns_the_mtu(dataplane, end, opening, options):
    """RFC 1191: from the address that it knows, of the link that comes next; exactly that length passes."""
    narrow(dataplane, end)
    flow = dataplane.open(opening)
    header = {0: 20, 4: 24, 1: 60}[len(options)] + (20 if opening is SYN else 8)

    fits = getattr(flow, end)(ip={"flags": "DF", "options": options}) / bytes(1400 - header)
    assert len(built(fits)[IP]) == 1400
    assert dataplane.run(fits).verdict is {"request": Verdict.FORWARD_REQUEST, "reply": Verdict.FORWARD_REPLY}[end]
    for more in (1, 2, 100, 1400):
        result = dataplane.run(fits / bytes(more))
        assert (result.verdict, result.action) == (Verdict.REJECT_TOO_BIG, "TX")
        assert_same(result.packet, answer(fits / bytes(more), *TOO_BIG, (1400).to_bytes(4, "big")))
        assert result.packet[IP].src == {"request": flow.vip, "reply": flow.snat}[end]


@both_ends
def test_a_packet_that_may_be_fragmented_is_not_told_of(dataplane, end):
    narrow(dataplane, end)
    flow = dataplane.open(QUERY)

    for size, verdicts in ((1400, {Verdict.FORWARD_REQUEST, Verdict.FORWARD_REPLY}), (1401, {Verdict.DROP_TOO_BIG})):
        result = dataplane.run(getattr(flow, end)() / bytes(size - 28))
        assert result.verdict in verdicts
    assert result.action == "DROP"


def test_padding_does_not_make_a_packet_too_big(dataplane):
    narrow(dataplane, "request")
    flow = dataplane.open(QUERY)

    fits = flow.request(ip={"flags": "DF"}) / bytes(1400 - 28)
    assert dataplane.run(bytes(fits) + bytes(18)).verdict is Verdict.FORWARD_REQUEST


@both_ends
def test_a_packet_too_big_changes_nothing(dataplane, end):
    """It has not been to the other end: its FIN or RST has not happened, and it is not counted."""
    narrow(dataplane, end)
    flow = dataplane.establish()
    connection = dataplane.connection(flow)
    count = dataplane.count("listener_counts", connection.listener, f"{end}_packets")

    for flags in ("FA", "R", "PA"):
        big = getattr(flow, end)(ip={"flags": "DF"}, flags=flags) / bytes(1400)
        assert dataplane.run(big).verdict is Verdict.REJECT_TOO_BIG
    assert dataplane.phase(flow) is Phase.ESTABLISHED
    assert dataplane.count("listener_counts", connection.listener, f"{end}_packets") == count


@both_protocols
def test_the_opening_packet_may_be_the_one_too_big(dataplane, opening):
    """Its sender tries again with less, and finds the connection open."""
    narrow(dataplane, "request")
    big = built(opening)
    big[IP].flags = "DF"
    del big[IP].len, big[IP].chksum
    if opening is QUERY:
        del big[UDP].len
    result = dataplane.run(big / bytes(1400))

    assert (result.verdict, result.action) == (Verdict.REJECT_TOO_BIG, "TX")
    assert_same(result.packet, answer(big / bytes(1400), *TOO_BIG, (1400).to_bytes(4, "big")))
    assert dataplane.run(opening).verdict is Verdict.FORWARD_REQUEST


@pytest.mark.parametrize("ttl", [0, 1])
@pytest.mark.parametrize("options", OPTIONS, ids=["bare", "4", "40"])
@both_ends
@both_protocols
def test_a_sender_learns_that_time_ended(dataplane, end, opening, options, ttl):
    flow = dataplane.open(opening)
    for payload in (b"", b"odd", bytes(100)):
        sent = getattr(flow, end)(ip={"ttl": ttl, "options": options}) / payload
        result = dataplane.run(sent)

        assert (result.verdict, result.action) == (Verdict.REJECT_TTL, "TX")
        assert_same(result.packet, answer(sent, *TTL_ENDED))
        assert result.packet[IP].src == {"request": flow.vip, "reply": flow.snat}[end]


@both_protocols
def test_a_probe_of_no_connection_opens_none(dataplane, opening):
    """A traceroute's, to a listener or not, from a client or a member."""
    dataplane.open(opening)
    for sent in (
        from_client(OTHER_CLIENT, ttl=1) / opening[IP].payload,
        from_client(ttl=1) / UDP(dport=33434),
        from_member("10.0.0.99", SNATS[2], ttl=1) / TCP(dport=40000, flags="S"),
    ):
        result = dataplane.run(sent)
        assert result.verdict is Verdict.REJECT_TTL
        assert_same(result.packet, answer(sent, *TTL_ENDED))
    member = (MEMBER, 8080, "TCP") if opening is SYN else (UDP_MEMBER, 5353, "UDP")
    assert dataplane.load(*member).active == 1


@pytest.mark.parametrize("sender", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", VIP, SNATS[1]])
@pytest.mark.parametrize("to", [VIP, SNATS[0]])
@pytest.mark.parametrize("transport", [TCP(dport=80, flags="S"), UDP(dport=53)], ids=["TCP", "UDP"])
def test_no_one_is_told_who_is_no_one(dataplane, sender, to, transport):
    result = dataplane.run(from_client(sender, to, ttl=1) / transport)

    assert (result.verdict, result.action) == (Verdict.DROP_TTL, "DROP")


def test_icmp_is_not_told_of_its_time(dataplane):
    for kind in (3, 11, 12):
        result = dataplane.run(from_client(ttl=1) / ICMP(type=kind) / bytes(28))
        assert (result.verdict, result.action) == (Verdict.DROP_TTL, "DROP")


@pytest.mark.parametrize("kind", [3, 11, 12])
@pytest.mark.parametrize("to", [VIP, SNATS[0]])
def test_an_error_about_nothing(dataplane, to, kind):
    assert_unrelated(dataplane, from_client(vip=to, proto=1) / icmp(kind, 0, bytes(28)))
    assert_unrelated(dataplane, from_client(vip=to, proto=1) / icmp(kind, 0, b""))
