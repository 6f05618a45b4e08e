"""Packets of those who mean it ill and see neither end: what they reach, and what they get for an answer."""

from __future__ import annotations

import itertools
from random import Random
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from ipbackend.abi import Phase, Verdict
from ipbackend.datapath import syscall
from tests.packet.cast import (
    CLIENT,
    CLIENT_MAC,
    FROM_CLIENT,
    MEMBER,
    MEMBER_PORT,
    OTHER_CLIENT,
    SNAT,
    SNATS,
    UDP_MEMBER,
    UDP_PORT,
    VIP,
    Flow,
    built,
    from_client,
    from_member,
    pool_of,
)
from tests.packet.compare import assert_same
from tests.packet.test_tcp import AHEAD, BEHIND, counts, established, says, wrap

STRANGER = "02:00:00:00:66:66"
FIRST_SNAT_PORT = 32768
REDIRECTED = 4  # XDP_REDIRECT


def picture(dataplane, flow: Flow) -> tuple[bytes, int, int]:
    """All that is kept of a connection, and what its member's load is."""
    return bytes(dataplane.connection(flow)), *counts(dataplane)


# Whose replies go where


def spoofed(flow: Flow, sequence: int, flags: str = "PA") -> Packet:
    """In the client's name, from another neighbour of the gateway's."""
    packet = flow.request(flags=flags, seq=wrap(sequence), ack=1)
    packet[Ether].src, packet[Ether].dst = STRANGER, "02:00:00:00:66:01"
    return packet


@pytest.mark.parametrize("distance", [AHEAD, -BEHIND - 1, 2**31, 2**30])
@pytest.mark.parametrize("flags", ["PA", "S", "R", "FA"])
def test_a_stranger_who_knows_only_the_ends_does_not_turn_replies_to_himself(dataplane, distance, flags):
    """Replies follow the way that the client's packets come by: only by one whose number is the connection's."""
    flow = established(dataplane, client=2**31)
    dataplane.run(spoofed(flow, 2**31 + 1 + distance, flags))

    answer = flow.reply(flags="PA", seq=1, ack=2**31 + 1) / b"secret"
    assert_same(dataplane.run(answer).packet, flow.replied(flags="PA", seq=1, ack=2**31 + 1) / b"secret")


def test_ten_thousand_strangers_guess(dataplane):
    """One in 52,429 guesses is near: of this seed's none."""
    random, flow = Random(1), established(dataplane, client=1000)
    numbers = [random.getrandbits(32) for _ in range(10_000)]
    assert not any(wrap(number - 1001 + BEHIND) < BEHIND + AHEAD for number in numbers), "the seed has a lucky number"
    frame = bytearray(bytes(spoofed(flow, 0)))
    for number in numbers:
        frame[38:42] = number.to_bytes(4, "big")
        syscall.run(dataplane.program.entry, bytes(frame))

    assert bytes(dataplane.connection(flow).client_mac).hex(":") == CLIENT_MAC


@pytest.mark.parametrize("distance", [0, 1, AHEAD - 1, -BEHIND])
def test_a_client_that_comes_by_another_way_is_followed(dataplane, distance):
    """Its router failed, and another one brings its packets: replies go by that one from the next packet on."""
    flow = established(dataplane, client=2**31)
    dataplane.run(spoofed(flow, 2**31 + 1 + distance))
    reply = dataplane.run(flow.reply(flags="A", seq=1, ack=2**31 + 1)).packet

    assert (reply[Ether].dst, reply[Ether].src) == (STRANGER, "02:00:00:00:66:01")


def test_a_client_far_ahead_is_followed_once_its_member_has_acknowledged(dataplane):
    """Of 50 MB nothing came by here; then the way changes: one exchange, and replies follow."""
    flow = established(dataplane, client=0)
    dataplane.run(spoofed(flow, 50_000_000))
    dataplane.run(flow.reply(flags="A", seq=1, ack=50_000_000))
    dataplane.run(spoofed(flow, 50_000_000))

    assert dataplane.run(flow.reply(flags="A", seq=1, ack=50_000_000)).packet[Ether].dst == STRANGER


# The members' side


@pytest.fixture
def two(unconfigured: Any) -> tuple[Any, Flow, Flow]:
    """A connection to each of two members."""
    unconfigured.configure(pool_of(*(f'address = "10.0.0.{n}", port = 8080, max_connections = 50' for n in (61, 62))))
    flows = [unconfigured.establish(FROM_CLIENT / TCP(sport=port, dport=80, flags="S")) for port in (1, 2)]
    assert {flow.member for flow in flows} == {"10.0.0.61", "10.0.0.62"}
    return unconfigured, *flows


@pytest.mark.parametrize("flags", ["A", "PA", "R", "RA", "FA", "S", "SA"])
def test_a_member_reaches_no_slot_of_another_member(two, flags):
    """Each member has its own slots under the same SNAT addresses and ports: its own source address leads it there."""
    dataplane, one, other = two
    before = bytes(dataplane.connection(one)), bytes(dataplane.connection(other))
    verdicts = set()
    for address, port in itertools.product(SNATS, range(FIRST_SNAT_PORT, FIRST_SNAT_PORT + 64)):
        if (address, port) == (other.snat, other.snat_port):
            continue
        packet = from_member(other.member, address) / TCP(sport=8080, dport=port, flags=flags, seq=1)
        verdicts.add(dataplane.run(packet).verdict)

    assert verdicts == {Verdict.DROP_NO_CONNECTION}
    assert (bytes(dataplane.connection(one)), bytes(dataplane.connection(other))) == before


@pytest.mark.parametrize("kind", [TCP, UDP])
@pytest.mark.parametrize("sender", ["10.0.0.66", "203.0.113.7", "172.16.0.9", VIP, SNATS[1], "127.0.0.1", "224.0.0.1"])
def test_who_is_no_member_is_silently_dropped_at_every_snat_port(dataplane, sender, kind):
    """A scan of all ports, 40 of which are in use: no answer says which, and none of them notices."""
    flows = [established(dataplane, port=port) for port in range(1, 41)]
    before = [picture(dataplane, flow) for flow in flows]
    frame = bytearray(bytes(from_member(sender, SNAT) / kind(sport=MEMBER_PORT, dport=FIRST_SNAT_PORT)))
    for port in (*range(1, 65536, 97), *range(FIRST_SNAT_PORT, FIRST_SNAT_PORT + 128)):
        frame[36:38] = port.to_bytes(2, "big")
        result = dataplane.run(bytes(frame))
        assert (result.verdict, result.action) == (Verdict.DROP_NO_CONNECTION, "DROP")

    assert [picture(dataplane, flow) for flow in flows] == before


@pytest.mark.parametrize("port", [8081, 80, 0, 65535, MEMBER_PORT - 1])
@pytest.mark.parametrize("flags", ["A", "R", "FA", "SA"])
def test_a_members_other_ports_are_no_member(dataplane, port, flags):
    flow = established(dataplane)
    before = picture(dataplane, flow)
    reply = flow.reply(flags=flags, seq=1)
    reply[TCP].sport = port

    assert dataplane.run(reply).verdict is Verdict.DROP_NO_CONNECTION
    assert picture(dataplane, flow) == before


def test_a_member_opens_nothing_to_a_snat_address(dataplane):
    """A SYN to a port that nobody has, that is open, half open or over: no connection, and no answer but a RST."""
    flow, opening = established(dataplane), dataplane.open(FROM_CLIENT / TCP(sport=5, dport=80, flags="S", seq=9))
    load = counts(dataplane)
    free = from_member() / TCP(sport=MEMBER_PORT, dport=FIRST_SNAT_PORT + 20, flags="S")
    assert dataplane.run(free).verdict is Verdict.DROP_NO_CONNECTION
    assert (
        dataplane.run(from_member() / TCP(sport=MEMBER_PORT, dport=22, flags="S")).verdict is Verdict.DROP_NO_CONNECTION
    )
    assert says(dataplane, flow, "reply", "S", 2**30) is Phase.ESTABLISHED
    assert says(dataplane, opening, "reply", "S", 77) is Phase.SYN_RECEIVED  # both open at once: the client's own
    assert counts(dataplane) == load
    says(dataplane, flow, "request", "R", 1)
    assert dataplane.run(flow.reply(flags="S", seq=2**30)).verdict is Verdict.REJECT_EXPIRED


# Senders that cannot be


def test_land(dataplane):
    """From a VIP or a SNAT address to a VIP or a SNAT address: none opens, none is answered."""
    for source, destination in itertools.product((VIP, SNAT), (VIP, SNAT)):
        for packet in (TCP(sport=80, dport=80, flags="S"), TCP(sport=80, dport=80, flags="A"), UDP(sport=53, dport=53)):
            result = dataplane.run(from_client(source, destination) / packet)
            assert result.action == "DROP"
            assert result.verdict in (Verdict.DROP_MALFORMED, Verdict.DROP_NO_CONNECTION)
    assert counts(dataplane) == (0, 0)


# What we answer, beside what we were sent


def askers() -> dict[str, Packet]:
    """Everything that is answered by the gateway itself."""
    closed = {"sport": 4000, "dport": 9}
    return {
        "a SYN to no listener": FROM_CLIENT / TCP(**closed, flags="S"),
        "an ACK of nothing": FROM_CLIENT / TCP(**closed, flags="A"),
        "a SYN with data": FROM_CLIENT / TCP(**closed, flags="S") / (b"x" * 1000),
        "an empty datagram": FROM_CLIENT / UDP(**closed),
        "a long datagram": FROM_CLIENT / UDP(**closed) / (b"x" * 1400),
        "a datagram whose time is over": from_client(ttl=1) / UDP(**closed),
        "a SYN whose time is over": from_client(ttl=1) / TCP(**closed, flags="S"),
        "a datagram too big": from_client(flags="DF") / UDP(sport=1, dport=53) / (b"x" * 1480),
    }


@pytest.mark.parametrize("name", askers())
def test_no_answer_is_worth_being_reflected(dataplane, name):
    """Bytes out for bytes in: a RST is never longer than what it answers, an ICMP error by 28 bytes at most."""
    asked = built(askers()[name])
    result = dataplane.run(asked)
    assert result.action == "TX", result.verdict
    told = result.packet
    if TCP in told:
        assert len(told[IP]) == 40 <= len(asked[IP])
    else:
        assert told[IP].proto == 1
        assert len(told[IP]) <= min(576, len(asked[IP]) + 28)


@pytest.mark.parametrize("kind", ["R", "RA"])
def test_nothing_answers_an_answer(dataplane, kind):
    """No two gateways, nor a gateway and a victim, can be set to answer each other for ever."""
    assert dataplane.run(FROM_CLIENT / TCP(dport=9, flags=kind)).action == "DROP"
    assert dataplane.run(FROM_CLIENT / ICMP(type=3, code=3) / IP(src=VIP, dst=CLIENT) / UDP()).action == "DROP"
    assert dataplane.run(from_client(OTHER_CLIENT) / ICMP(type=0)).action == "DROP"


# ICMP, fragments


@pytest.mark.parametrize("mtu", [0, 1, 67, 68, 575, 576, 1499, 65535])
def test_a_forged_path_mtu_changes_nothing_here(dataplane, mtu):
    """RFC 5927, 7: the gateway keeps nothing of it, and the end judges; with a wrong port it reaches none."""
    flow = established(dataplane)
    before = picture(dataplane, flow)
    quoted = flow.requested(flags="A", seq=1)[IP]
    for port in range(50_000, 52_000, 200):
        guess = quoted.copy()
        guess.sport = port
        error = from_member(MEMBER, flow.snat) / ICMP(type=3, code=4, nexthopmtu=mtu) / guess
        assert dataplane.run(error).verdict is Verdict.DROP_ICMP_UNRELATED
    exact = (
        from_member(MEMBER, flow.snat)
        / ICMP(type=3, code=4, nexthopmtu=mtu)
        / built(flow.requested(flags="A", seq=1))[IP]
    )
    assert dataplane.run(exact).verdict is Verdict.FORWARD_ICMP_ERROR

    assert picture(dataplane, flow) == before
    big = flow.request(flags="PA", seq=1) / (b"x" * 1400)
    assert dataplane.run(big).verdict is Verdict.FORWARD_REQUEST  # not as long as the error says, and on it goes


def piece(offset: int, payload: bytes, more: bool = True, number: int = 4711, **ip: Any) -> Packet:
    """A fragment of a datagram of the client's."""
    header = {"id": number, "frag": offset // 8, "flags": "MF" if more else 0, "proto": 17, **ip}
    return from_client(**header) / payload


FIRST = bytes(UDP(sport=40000, dport=53, len=8 + 1472, chksum=0) / (b"a" * 1472))


def test_overlapping_pieces_never_touch_the_header_that_was_judged(dataplane):
    """Teardrop, tiny and overlapping ones: what begins within the header goes nowhere, all else only to one member."""
    dataplane.run(piece(0, FIRST[:800]))
    assert dataplane.run(piece(8, b"x" * 64)).verdict is Verdict.FORWARD_REQUEST  # behind 8 bytes of header
    assert dataplane.run(piece(792, b"x" * 64)).verdict is Verdict.FORWARD_REQUEST  # over the end of the first
    assert dataplane.run(piece(65528, b"x" * 64, more=False)).verdict is Verdict.DROP_MALFORMED  # rose, ping of death
    tcp = bytes(TCP(sport=40000, dport=80, flags="S"))
    tiny = from_client(id=9, frag=0, flags="MF", proto=6) / tcp[:8]
    assert dataplane.run(tiny).verdict is Verdict.DROP_MALFORMED  # RFC 1858, 3: no flags to be judged by
    assert dataplane.run(from_client(id=9, frag=1, proto=6) / tcp[8:]).verdict is Verdict.DROP_FRAGMENT


def test_a_second_first_fragment_opens_no_other_door(dataplane):
    """With other ports, for a listener that does not let it in or for none: judged by itself, as any datagram."""
    dataplane.run(piece(0, FIRST[:800]))
    other = bytes(UDP(sport=40000, dport=54, len=8 + 1472, chksum=0) / (b"b" * 792))
    assert dataplane.run(piece(0, other)).verdict is Verdict.REJECT_NO_LISTENER
    left = dataplane.run(piece(800, FIRST[800:], more=False))

    assert left.verdict is Verdict.FORWARD_REQUEST  # of the first, that of the port that is open
    assert left.packet[IP].dst == UDP_MEMBER
    assert dataplane.load(UDP_MEMBER, UDP_PORT, "UDP").active == 1


def test_no_mixture_of_pieces_is_a_fault(dataplane):
    """Pieces of few ids, in any order and overlap: each ends in a verdict, and what leaves goes to members."""
    random = Random(4)
    for _ in range(1000):
        offset = 8 * random.choice([0, 0, 1, 2, 3, 100, 8191, random.randrange(8192)])
        payload = FIRST[: random.choice([0, 1, 7, 8, 9, 64, 800])]
        kind = random.choice([6, 17, 17, 17, 1, 47])
        packet = piece(offset, payload, random.random() < 0.7, random.randrange(4), proto=kind)
        result = dataplane.run(packet)
        if result.verdict.name.startswith("FORWARD"):
            assert result.packet[IP].dst in (MEMBER, UDP_MEMBER)


# One client against all others


def test_one_client_that_hammers_leaves_the_others_their_share(unconfigured):
    """200 others, who come in between 20,000 SYNs of one: all of them are served, and he has his rate and no more."""
    members = 'address = "10.0.0.63", port = 8080, max_connections = 5000'
    limited = pool_of(members).replace("port = 80\n", "port = 80\nsource_cps = 20\n")
    unconfigured.configure(limited.replace("[gateway]", "[gateway]\nhalf_open_percent = 100"))
    frame = bytearray(bytes(built(FROM_CLIENT / TCP(sport=1, dport=80, flags="S"))))
    served, let_in = 0, 0
    for n in range(20_000):
        frame[34:36] = (1024 + n).to_bytes(2, "big")
        let_in += syscall.run(unconfigured.program.entry, bytes(frame))[0] == REDIRECTED
        if n % 100 == 0:
            other = from_client(f"198.51.100.{1 + n // 100}") / TCP(sport=5, dport=80, flags="S")
            served += unconfigured.run(other).verdict is Verdict.FORWARD_OPENED

    assert served == 200
    assert 20 <= let_in < 20_000 / 4
    assert unconfigured.load("10.0.0.63", 8080).active == 200 + let_in
