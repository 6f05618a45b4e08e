"""Datagrams in pieces: what leaves is put together again, and must be one datagram, whole and the right one."""

import struct
from ipaddress import IPv4Address
from random import Random

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from ipbackend.abi import Phase, SweepMode, Verdict
from ipbackend.datapath import syscall
from ipbackend.datapath.tables import ip_to_map
from tests.packet.cast import CLIENT, OTHER_CLIENT, QUERY, SYN, Flow, from_client
from tests.packet.compare import assert_same
from tests.packet.test_sweep import IDLE, silent_for

SIDES = {"request": Verdict.FORWARD_REQUEST, "reply": Verdict.FORWARD_REPLY}
LEAVES_AS = {"request": "requested", "reply": "replied"}
MAX_FRAGMENTS = 65_536  # what the gateway remembers


def pieces(datagram: Packet, size: int = 1480) -> list[Packet]:
    """Its fragments in their order, `size` bytes of payload each, as they are on the wire."""
    return [Ether(bytes(piece)) for piece in fragment(datagram, size)]


def together(left: list[Packet]) -> Packet:
    """The datagram that these fragments are: every byte of it there once, and all of one id and header."""
    left = sorted(left, key=lambda piece: piece[IP].frag)
    payload = b""
    for piece in left:
        header, content = bytes(piece[IP])[: piece[IP].ihl * 4], bytes(piece[IP].payload)
        assert checksum(header) == 0
        assert piece[IP].frag * 8 == len(payload)
        assert ("MF" in piece[IP].flags) == (piece is not left[-1])
        payload += content
    alike = {(one.src, one.dst, one[IP].src, one[IP].dst, one[IP].id, one[IP].ttl, one[IP].proto) for one in left}
    assert len(alike) == 1
    whole = left[0].copy()
    whole[IP].flags, whole[IP].len, whole[IP].chksum = left[0][IP].flags & ~1, None, None
    whole[IP].remove_payload()
    return Ether(bytes(whole / Raw(payload)))


def sent(dataplane, side: str, parts: list[Packet]) -> list[Packet]:
    """All of them forwarded; returns what left."""
    results = [dataplane.run(part) for part in parts]
    assert {result.verdict for result in results} == {SIDES[side]}
    return [result.packet for result in results]


def assert_carried(flow: Flow, side: str, left: list[Packet], payload: bytes, **fields) -> None:
    """What left is one datagram or segment of the flow, with scapy's checksum over the whole of it."""
    whole = together(left)
    expected = getattr(flow, LEAVES_AS[side])(ip={"id": whole[IP].id}, **fields) / payload
    assert_same(whole, expected)


def remembered(dataplane) -> list[int]:
    """The ids, as they came, of all datagrams that the gateway knows a first fragment of."""
    return [int.from_bytes(struct.pack("=H", key.id), "big") for key, _ in dataplane.maps["fragments"].items()]


def flow_of(dataplane, kind: str, client: str = CLIENT) -> Flow:
    opening = from_client(client) / (QUERY[UDP] if kind == "UDP" else SYN[TCP]).copy()
    return dataplane.open(opening) if kind == "UDP" else dataplane.establish(opening)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", ["UDP", "TCP"])
@pytest.mark.parametrize("size", [1480, 600, 8])
def test_a_datagram_of_8_kb(dataplane, kind, side, size):
    flow = flow_of(dataplane, kind)
    payload = Random(size).randbytes(8192 if size > 8 else 200)
    fields = {"flags": "PA", "seq": 1, "ack": 1} if kind == "TCP" else {}
    parts = pieces(getattr(flow, side)(ip={"id": 77}, **fields) / payload, max(size, 24 if kind == "TCP" else 8))

    assert_carried(flow, side, sent(dataplane, side, parts), payload, **fields)


@pytest.mark.parametrize("side", SIDES)
def test_a_datagram_without_checksum(dataplane, side):
    flow = flow_of(dataplane, "UDP")
    left = sent(dataplane, side, pieces(getattr(flow, side)(ip={"id": 77}, chksum=0) / bytes(5000)))

    assert_carried(flow, side, left, bytes(5000), chksum=0)


@pytest.mark.parametrize("payload", [bytes(4000), Random(1).randbytes(4000)], ids=["zeros", "random"])
def test_a_first_fragment_opens_a_connection(dataplane, payload):
    """The other ones follow it, and so does the answer."""
    query = from_client(id=9) / UDP(sport=40000, dport=53) / payload
    results = [dataplane.run(part) for part in pieces(query)]
    flow = Flow.of(query, results[0].packet)

    assert [result.verdict for result in results] == [Verdict.FORWARD_OPENED, *[Verdict.FORWARD_REQUEST] * 2]
    assert_carried(flow, "request", [result.packet for result in results], payload)
    assert_same(dataplane.run(flow.reply() / b"!").packet, flow.replied() / b"!")
    assert dataplane.load(flow.member, flow.member_port, "UDP").active == 1


def test_a_syn_in_pieces_opens_a_connection(dataplane):
    """It has data, or there would be nothing to cut."""
    syn = from_client(id=9) / TCP(sport=40000, dport=80, flags="S", seq=5) / bytes(100)
    first, *later = pieces(syn, 40)
    result = dataplane.run(first)
    flow = Flow.of(syn, result.packet)

    assert result.verdict is Verdict.FORWARD_OPENED
    left = [result.packet, *sent(dataplane, "request", later)]
    assert_carried(flow, "request", left, bytes(100), flags="S", seq=5)
    assert dataplane.phase(flow) is Phase.SYN_SENT


@pytest.mark.parametrize("side", SIDES)
def test_any_order_behind_the_first(dataplane, side):
    flow = flow_of(dataplane, "UDP")
    payload = Random(3).randbytes(8000)
    first, *later = pieces(getattr(flow, side)(ip={"id": 77}) / payload)

    assert_carried(flow, side, sent(dataplane, side, [first, *reversed(later)]), payload)


@pytest.mark.parametrize("side", SIDES)
def test_a_later_one_before_the_first(dataplane, side):
    """It is dropped, and says so; sent again behind the first it goes through. Others are not touched by that."""
    flow = flow_of(dataplane, "UDP")
    first, middle, last = pieces(getattr(flow, side)(ip={"id": 77}) / bytes(4000))
    early = [dataplane.run(part) for part in (middle, last)]

    assert {(result.verdict, result.action) for result in early} == {(Verdict.DROP_FRAGMENT, "DROP")}
    assert remembered(dataplane) == []
    assert_carried(flow, side, sent(dataplane, side, [first, middle, last]), bytes(4000))
    for field, value in (("id", 78), ("src", "10.0.0.99"), ("proto", 6)):
        other = middle.copy()
        setattr(other[IP], field, value)
        del other[IP].chksum
        assert dataplane.run(other).verdict is Verdict.DROP_FRAGMENT


@pytest.mark.parametrize("side", SIDES)
def test_a_first_fragment_sent_again_keeps_its_id(dataplane, side):
    """Else what the far end has of the datagram already would never become whole."""
    flow = flow_of(dataplane, "UDP")
    first, middle, last = pieces(getattr(flow, side)(ip={"id": 77}) / bytes(4000))
    left = sent(dataplane, side, [first, middle, first, last, first])

    assert len({packet[IP].id for packet in left}) == 1
    assert bytes(left[0]) == bytes(left[2]) == bytes(left[4])


def test_the_datagrams_of_two_clients_do_not_meet(dataplane):
    """Of the same id, from the same SNAT address, piece by piece in turn: they arrive apart, each one whole."""
    one = flow_of(dataplane, "UDP")
    for n in range(3):
        dataplane.open(from_client(OTHER_CLIENT) / UDP(sport=n + 1, dport=53))
    other = flow_of(dataplane, "UDP", OTHER_CLIENT)
    assert one.snat == other.snat
    met = 0
    for number in range(5):
        payloads = [Random(number).randbytes(4000), Random(-number).randbytes(4000)]
        parts = [pieces(f.request(ip={"id": number}) / p) for f, p in zip((one, other), payloads, strict=True)]
        left = sent(dataplane, "request", [part for pair in zip(*parts, strict=True) for part in pair])
        for flow, payload, mine in zip((one, other), payloads, (left[::2], left[1::2]), strict=True):
            assert_carried(flow, "request", mine, payload)
        met += left[0][IP].id == left[1][IP].id

    assert met <= 1  # ids are drawn at random: that two of five pairs meet has odds of one in 400 million


def test_a_whole_datagram_keeps_its_id(dataplane):
    flow = flow_of(dataplane, "UDP")
    sent(dataplane, "request", pieces(flow.request(ip={"id": 77}) / bytes(4000)))

    assert_same(dataplane.run(flow.request(ip={"id": 77}) / b"?").packet, flow.requested(ip={"id": 77}) / b"?")


@pytest.mark.parametrize("padding", [0, 26])
@pytest.mark.parametrize("length", [0, 1, 4, 7])
def test_a_first_fragment_without_a_udp_header(dataplane, length, padding):
    """Ports are not read from the padding of its frame."""
    dataplane.open(QUERY)
    tiny = from_client(id=5, flags="MF", proto=17, len=20 + length) / Raw(bytes(QUERY[UDP])[:8][: length + padding])

    assert dataplane.run(tiny).verdict is Verdict.DROP_MALFORMED
    assert remembered(dataplane) == []


@pytest.mark.parametrize(("length", "dataofs"), [(0, 5), (8, 5), (16, 5), (19, 5), (24, 15), (56, 15), (24, 4)])
def test_a_first_fragment_without_its_whole_tcp_header(dataplane, length, dataofs):
    """The flags of a tiny fragment's segment would come in the next one (RFC 1858, section 3)."""
    dataplane.establish()
    header = bytes(TCP(sport=40000, dport=80, flags="A", dataofs=dataofs)) + bytes(60)
    tiny = from_client(id=5, flags="MF", proto=6, len=20 + length) / Raw(header)

    assert dataplane.run(tiny).verdict is Verdict.DROP_MALFORMED
    assert remembered(dataplane) == []


@pytest.mark.parametrize("side", SIDES)
def test_none_begins_within_the_transport_header(dataplane, side):
    """It would write over what was judged, the options included (RFC 1858, section 4; RFC 3128)."""
    flow = flow_of(dataplane, "TCP")
    options = [("NOP", None)] * 20
    segment = getattr(flow, side)(ip={"id": 5}, flags="A", options=options) / bytes(40)
    first = pieces(segment, 64)[0]
    sent(dataplane, side, [first])
    for offset in range(1, 9):
        later = getattr(flow, side)(ip={"id": 5, "frag": offset, "proto": 6})
        later[IP].remove_payload()
        verdict = dataplane.run(later / Raw(bytes(16))).verdict
        assert verdict is (Verdict.DROP_MALFORMED if offset < 5 else SIDES[side])


def test_no_datagram_is_longer_than_64_kb(dataplane):
    """What ends beyond that is no piece of one, even if its first fragment is known."""
    flow = flow_of(dataplane, "UDP")
    sent(dataplane, "request", pieces(flow.request(ip={"id": 5}) / bytes(4000))[:1])

    def last(end: int) -> Verdict:
        offset = 65_000 // 8 * 8
        return dataplane.run(from_client(id=5, frag=offset // 8, proto=17) / Raw(bytes(end - 20 - offset))).verdict

    assert (last(65_535), last(65_536)) == (Verdict.FORWARD_REQUEST, Verdict.DROP_MALFORMED)


def test_a_fragment_may_forbid_more_fragments(dataplane):
    """DF beside MF is odd, but the sender's own choice (RFC 791 forbids it to routers only), and it stays."""
    flow = flow_of(dataplane, "UDP")
    parts = pieces(flow.request(ip={"id": 5, "flags": "DF"}) / bytes(4000))
    for part in parts:
        part[IP].flags |= 2
    left = sent(dataplane, "request", parts)

    assert [str(packet[IP].flags) for packet in left] == ["MF+DF", "MF+DF", "DF"]
    assert all(checksum(bytes(packet[IP])[:20]) == 0 for packet in left)
    assert len({packet[IP].id for packet in left}) == 1


@pytest.mark.parametrize("flags", ["", "DF"])
def test_a_fragment_too_big_for_the_next_link(dataplane, flags):
    """Only the first one's sender is told: an error about a later one would belong to no one (RFC 1122, 3.2.2)."""
    flow = flow_of(dataplane, "UDP")
    first, later = pieces(flow.request(ip={"id": 5}) / bytes(2000), 1400)
    first[IP].flags |= 2 if flags else 0
    later[IP].flags |= 2 if flags else 0
    small = sent(dataplane, "request", [first])
    dataplane.mtu = 600
    dataplane.configure()

    told, silent = dataplane.run(first), dataplane.run(later)
    assert (silent.verdict, silent.action) == (Verdict.DROP_TOO_BIG, "DROP")
    assert (told.verdict, told.action) == ((Verdict.REJECT_TOO_BIG, "TX") if flags else (Verdict.DROP_TOO_BIG, "DROP"))
    assert small[0][IP].len == 1420


def test_what_is_too_big_is_not_remembered(dataplane):
    flow = flow_of(dataplane, "UDP")
    dataplane.mtu = 600
    dataplane.configure()
    first, later = pieces(flow.request(ip={"id": 5}) / bytes(1500), 1400)

    assert dataplane.run(first).verdict is Verdict.DROP_TOO_BIG
    assert dataplane.run(later).verdict is Verdict.DROP_FRAGMENT
    assert remembered(dataplane) == []


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        (from_client(id=5) / UDP(sport=40000, dport=54) / bytes(100), Verdict.REJECT_NO_LISTENER),
        (from_client(id=5) / TCP(sport=40000, dport=82, flags="S") / bytes(100), Verdict.REJECT_NO_LISTENER),
        (from_client(id=5) / TCP(sport=40000, dport=80, flags="A") / bytes(100), Verdict.REJECT_NO_CONNECTION),
        (from_client(id=5) / TCP(sport=40000, dport=80, flags="R") / bytes(100), Verdict.DROP_NO_CONNECTION),
        (from_client(id=5) / TCP(sport=40000, dport=81, flags="S") / bytes(100), Verdict.REJECT_NO_MEMBER),
        (from_client("127.0.0.1", id=5) / UDP(sport=40000, dport=53) / bytes(100), Verdict.DROP_MALFORMED),
        (from_client(vip="10.0.0.101", id=5) / UDP(sport=40000, dport=40000) / bytes(99), Verdict.DROP_NO_CONNECTION),
        (from_client(id=5, ttl=1) / UDP(sport=40000, dport=53) / bytes(100), Verdict.REJECT_TTL),
        (from_client(id=5, proto=47) / Raw(bytes(100)), Verdict.DROP_PROTOCOL),
    ],
    ids=lambda value: value.summary() if isinstance(value, Packet) else str(value),
)
def test_of_no_connection(dataplane, packet, verdict):
    """None of it is forwarded, and nothing remembered that a later one could follow."""
    first, *later = pieces(packet, 48)

    assert dataplane.run(first).verdict is verdict
    expected = {Verdict.DROP_PROTOCOL: Verdict.DROP_PROTOCOL, Verdict.REJECT_TTL: Verdict.DROP_TTL}
    assert {dataplane.run(part).verdict for part in later} == {expected.get(verdict, Verdict.DROP_FRAGMENT)}
    assert remembered(dataplane) == []


def test_a_later_one_whose_time_to_live_ends(dataplane):
    flow = flow_of(dataplane, "UDP")
    first, last = pieces(flow.request(ip={"id": 5}) / bytes(2000))
    sent(dataplane, "request", [first])
    last[IP].ttl = 1

    assert (dataplane.run(last).verdict, dataplane.run(last).action) == (Verdict.DROP_TTL, "DROP")


@pytest.mark.parametrize(("side", "verdict"), [("request", "DROP_FRAGMENT"), ("reply", "DROP_NO_CONNECTION")])
def test_a_connection_that_ends_between_two(dataplane, side, verdict):
    flow = flow_of(dataplane, "UDP")
    first, last = pieces(getattr(flow, side)(ip={"id": 5}) / bytes(2000))
    sent(dataplane, side, [first])
    dataplane.sweep(SweepMode.ENDPOINT)

    assert dataplane.run(last).verdict is Verdict[verdict]


@pytest.mark.parametrize("side", SIDES)
def test_a_connection_that_expires_between_two(dataplane, side):
    """Half a segment is not answered: what lies where its header would be is none."""
    flow = flow_of(dataplane, "TCP")
    first, last = pieces(getattr(flow, side)(ip={"id": 5}, flags="A", ack=7) / bytes(2000))
    sent(dataplane, side, [first])
    silent_for(dataplane, flow, IDLE + 1)
    dataplane.sweep()
    result = dataplane.run(last)

    assert (result.verdict, result.action) == (Verdict.DROP_NO_CONNECTION, "DROP")
    assert dataplane.run(first).verdict is Verdict.REJECT_EXPIRED


@pytest.mark.parametrize("vip", ["10.0.0.100", "10.0.0.101"], ids=["VIP", "SNAT"])
def test_an_echo_request_in_pieces_is_the_kernels(dataplane, vip):
    for part in pieces(from_client(vip=vip, id=5) / ICMP() / bytes(4000)):
        result = dataplane.run(part)
        assert (result.verdict, result.action) == (Verdict.PASS_ECHO, "PASS")
        assert bytes(result.packet) == bytes(part)
    assert remembered(dataplane) == []


@pytest.mark.parametrize("kind", [3, 11, 12])
def test_an_icmp_error_in_pieces_is_none(dataplane, kind):
    flow = dataplane.open(QUERY)
    error = from_client(flow.member, flow.snat, id=5) / ICMP(type=kind) / bytes(flow.requested()[IP]) / bytes(200)

    assert dataplane.run(pieces(error, 64)[0]).verdict is Verdict.DROP_ICMP


def test_memory_is_bounded(dataplane):
    """More first fragments than there is room for: what was used longest ago is forgotten, the latest is there."""
    flows = [flow_of(dataplane, "UDP", client) for client in (CLIENT, OTHER_CLIENT)]
    frames = [bytearray(bytes(pieces(flow.request(ip={"id": 0}) / bytes(100), 48)[0])) for flow in flows]
    for frame in frames:
        for number in range(MAX_FRAGMENTS * 3 // 4):
            struct.pack_into("!H", frame, 18, number)
            syscall.run(dataplane.program.entry, bytes(frame))
    count = sum(1 for _ in dataplane.maps["fragments"].items())
    newest, oldest = (
        pieces(flow.request(ip={"id": number}) / bytes(100), 48)[1]
        for flow, number in ((flows[1], MAX_FRAGMENTS * 3 // 4 - 1), (flows[0], 0))
    )

    assert MAX_FRAGMENTS // 2 < count <= MAX_FRAGMENTS
    assert dataplane.run(newest).verdict is Verdict.FORWARD_REQUEST
    assert dataplane.run(oldest).verdict is Verdict.DROP_FRAGMENT


def test_what_is_remembered(dataplane):
    """By the id that it came with; the other direction's are others."""
    flow = flow_of(dataplane, "UDP")
    sent(dataplane, "request", pieces(flow.request(ip={"id": 0x1234}) / bytes(2000)))
    ((key, value),) = dataplane.maps["fragments"].items()

    assert remembered(dataplane) == [0x1234]
    assert (key.saddr, key.daddr) == tuple(ip_to_map(IPv4Address(each)) for each in (flow.client, flow.vip))
    assert (key.protocol, value.header) == (17, 8)
    sent(dataplane, "reply", pieces(flow.reply(ip={"id": 0x1234}) / bytes(2000)))
    assert remembered(dataplane) == [0x1234] * 2


def test_what_is_remembered_grows_old(dataplane):
    """An id comes round again: what was first once says nothing of a datagram half a minute later."""
    flow = flow_of(dataplane, "UDP")
    first, later = pieces(flow.request(ip={"id": 77}) / bytes(2000))
    left = dataplane.run(first).packet
    ((key, value),) = dataplane.maps["fragments"].items()
    value.seen = (value.seen - dataplane.maps.clock.ticks(30) - 2) & 0xFFFF_FFFF
    dataplane.maps["fragments"].set(key, value)

    assert dataplane.run(later).verdict is Verdict.DROP_FRAGMENT
    again = dataplane.run(first)
    assert again.verdict is Verdict.FORWARD_REQUEST
    assert dataplane.run(later).packet[IP].id == again.packet[IP].id != left[IP].id


@pytest.mark.parametrize("seed", range(6))
def test_random_datagrams(dataplane, seed):
    """Of several flows and both sides, cut anywhere, in any order behind their first ones, all mixed."""
    random = Random(seed)
    flows = [flow_of(dataplane, kind, client) for kind in ("UDP", "TCP") for client in (CLIENT, OTHER_CLIENT)]
    queues, expected = [], []
    for number in range(24):
        flow, side = random.choice(flows), random.choice(list(SIDES))
        payload = random.randbytes(random.randrange(200, 5000))
        fields = {"flags": "A", "seq": random.getrandbits(10)} if flow.kind is TCP else {}
        options = [("NOP", None)] * random.choice([0, 4]) if flow.kind is TCP else None
        fields |= {"options": options} if options else {}
        packet = getattr(flow, side)(ip={"id": number}, **fields) / payload
        first, *later = pieces(packet, random.randrange(24, 1481, 8))
        random.shuffle(later)
        queues.append([(number, first), *((number, part) for part in later)])
        expected.append((flow, side, payload, fields))
    left: dict[int, list[Packet]] = {number: [] for number in range(len(queues))}
    while waiting := [queue for queue in queues if queue]:
        number, part = random.choice(waiting).pop(0)
        left[number] += sent(dataplane, expected[number][1], [part])

    for number, (flow, side, payload, fields) in enumerate(expected):
        assert_carried(flow, side, left[number], payload, **fields)
