"""What TCP asks of the one in the middle: handshakes on a budget, resets that are believed or not, both ends told."""

import struct
from ipaddress import IPv4Address
from random import Random

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from ipbackend.abi import Phase, SweepMode, Verdict
from ipbackend.config import parse
from ipbackend.datapath import syscall
from tests.packet.cast import (
    CONFIGURATION,
    FROM_CLIENT,
    GATEWAY_MEMBER_MAC,
    MEMBER,
    MEMBER_PORT,
    OTHER_CLIENT,
    SYN,
    UDP_MEMBER,
    UDP_PORT,
    Flow,
    from_client,
    pool_of,
    to_client,
)
from tests.packet.compare import assert_same
from tests.packet.test_sweep import IDLE, silent_for

SIDES = ["request", "reply"]
FORWARDED = {Verdict.FORWARD_REQUEST, Verdict.FORWARD_REPLY}
BEHIND, AHEAD = 16_384, 65_536  # of the sequence number that is known: from there a RST or FIN is believed
SEQUENCE, ACKNOWLEDGEMENT = 38, 42  # where they are in a frame without IP options
FIRST_NUMBERS = [0, 1, 2**31 - 20_000, 2**31, 2**32 - 50_000, 2**32 - 1]


def syn(port: int, **fields) -> Packet:
    return FROM_CLIENT / TCP(sport=port, dport=80, flags="S", **fields)


def established(dataplane, client: int = 0, member: int = 0, port: int = 40000) -> Flow:
    """A connection whose sides began with these sequence numbers; each goes on with the next one."""
    flow = dataplane.open(syn(port, seq=client))
    dataplane.run(flow.reply(flags="SA", seq=member, ack=wrap(client + 1)))
    dataplane.run(flow.request(flags="A", seq=wrap(client + 1), ack=wrap(member + 1)))
    assert dataplane.phase(flow) is Phase.ESTABLISHED
    return flow


def wrap(number: int) -> int:
    return number % 2**32


def says(dataplane, flow: Flow, side: str, flags: str, sequence: int, **fields) -> Phase:
    """One bare segment of one side, forwarded as whatever comes of it; returns the phase then."""
    sent = getattr(flow, side)(flags=flags, seq=wrap(sequence), **fields)
    result = dataplane.run(sent)
    assert result.verdict in FORWARDED
    expected = getattr(flow, {"request": "requested", "reply": "replied"}[side])
    assert_same(result.packet, expected(flags=flags, seq=wrap(sequence), **fields))
    return dataplane.phase(flow)


def counts(dataplane, member: str = MEMBER, port: int = MEMBER_PORT, protocol: str = "TCP") -> tuple[int, int]:
    """Connections of the endpoint, and of them half open."""
    load = dataplane.load(member, port, protocol)
    return load.active, load.half_open


# The budget of handshakes


@pytest.mark.parametrize(
    ("ceiling", "percent", "limit"),
    [(50, 10, 50), (64, 10, 64), (98, 10, 64), (700, 10, 70), (700, 100, 700), (2000, 1, 64), (2000, 25, 500)],
)
def test_the_budget_is_a_share_of_the_ceiling(unconfigured, ceiling, percent, limit):
    """But never less than a burst takes; and a change of it holds from the next SYN on."""
    wide = pool_of(f'address = "10.0.0.31", port = {1000 + ceiling}, max_connections = {ceiling}')
    unconfigured.configure(wide)
    unconfigured.configure(wide.replace("[gateway]", f"[gateway]\nhalf_open_percent = {percent}"))

    assert unconfigured.load("10.0.0.31", 1000 + ceiling).half_open_limit == limit
    assert unconfigured.tables.read() == unconfigured.entries


def two_members(dataplane, *limits: int) -> None:
    """Ceilings of 90; the second one comes with the second limit."""
    members = [f'address = "10.0.0.{41 + n}", port = 8080, max_connections = 90' for n in range(len(limits))]
    dataplane.configure(pool_of(*members))
    for n, limit in enumerate(limits):
        dataplane.load(f"10.0.0.{41 + n}").half_open_limit = limit


def test_another_member_takes_what_one_has_no_budget_for(unconfigured):
    two_members(unconfigured, 5, 64)
    members = [unconfigured.open(syn(1000 + n)).member for n in range(69)]

    assert (members.count("10.0.0.41"), members.count("10.0.0.42")) == (5, 64)
    assert unconfigured.run(syn(1)).verdict is Verdict.DROP_HALF_OPEN


def test_a_flood_is_dropped_and_counted(unconfigured):
    """Silently: an answer would go to whoever the flood names as its sender. A retransmission is as good later."""
    two_members(unconfigured, 3, 4)
    flows = [unconfigured.open(syn(1000 + n)) for n in range(7)]
    listener = unconfigured.connection(flows[0]).listener
    before = unconfigured.count("listener_counts", listener, "refused")
    results = [unconfigured.run(syn(2000 + n)) for n in range(20)]

    assert {(result.verdict, result.action) for result in results} == {(Verdict.DROP_HALF_OPEN, "DROP")}
    assert unconfigured.count("listener_counts", listener, "refused") - before == 20
    assert [counts(unconfigured, f"10.0.0.{n}") for n in (41, 42)] == [(3, 3), (4, 4)]
    for flow in flows:  # those that were first may go on
        assert unconfigured.run(syn(flow.client_port)).verdict is Verdict.FORWARD_REQUEST


def test_who_comes_while_a_flood_keeps_the_budget_full(unconfigured):
    """Is let in by the proportion of what comes free to the flood; whoever is let in, and his handshake, is as ever.

    A budget of 64, free again after 15 s: 4.3 of 60 a second, so one in 14.
    """
    unconfigured.configure(pool_of(f'address = "{MEMBER}", port = {MEMBER_PORT}, max_connections = 640'))
    rng, ports, waiting = Random(1), iter(range(1024, 65536)), []
    came = let_in = 0
    for second in range(90):
        for flow, since in waiting:
            silent_for(unconfigured, flow, second - since)
        unconfigured.sweep()
        waiting = [(flow, since) for flow, since in waiting if unconfigured.phase(flow) is Phase.SYN_RECEIVED]
        for ours in rng.sample([True] * 20 + [False] * 60, 80):
            packet = syn(next(ports))
            result = unconfigured.run(packet)
            came += ours and second >= 15  # from when on what came earlier makes room
            if result.verdict is Verdict.DROP_HALF_OPEN:
                continue
            assert result.verdict is Verdict.FORWARD_OPENED
            flow = Flow.of(packet, result.packet)
            says(unconfigured, flow, "reply", "SA", 0, ack=1)
            if ours:
                let_in += second >= 15
                assert says(unconfigured, flow, "request", "A", 1, ack=1) is Phase.ESTABLISHED
                unconfigured.run(flow.request(flags="R", seq=1))
            else:
                waiting.append((flow, second))
        assert counts(unconfigured)[1] == 64 or second == 0
    assert 1 / 20 < let_in / came < 1 / 10


def test_full_is_something_else(unconfigured):
    """At the ceiling, budget or not, it is refused: nothing that was half open will make room."""
    two_members(unconfigured, 2, 2)
    for n in (41, 42):
        unconfigured.load(f"10.0.0.{n}").ceiling = 2
    for n in range(4):
        unconfigured.open(syn(1000 + n))
    assert unconfigured.run(syn(1)).verdict is Verdict.REJECT_ALL_FULL
    unconfigured.load("10.0.0.42").ceiling = 3
    assert unconfigured.run(syn(1)).verdict is Verdict.DROP_HALF_OPEN
    unconfigured.load("10.0.0.41").ceiling = unconfigured.load("10.0.0.42").ceiling = 0
    assert unconfigured.run(syn(1)).verdict is Verdict.REJECT_NO_MEMBER


def test_a_flood_does_not_touch_who_is_established(dataplane):
    """They go on, and whoever completes his handshake makes room for the next one, up to the ceiling."""
    dataplane.load().half_open_limit = 2
    flows = [established(dataplane, port=port) for port in range(1, 49)]
    dataplane.open(syn(50))
    dataplane.open(syn(51))
    for port in range(1000, 1100):
        assert dataplane.run(syn(port)).verdict is Verdict.REJECT_ALL_FULL
    assert counts(dataplane) == (50, 2)
    for flow in flows:
        assert says(dataplane, flow, "request", "PA", 1) is Phase.ESTABLISHED
        assert says(dataplane, flow, "reply", "PA", 1) is Phase.ESTABLISHED


LEAVING = {
    "completed": (("reply", "SA"), ("request", "A")),
    "reset by the client": (("request", "R"),),
    "reset by the member": (("reply", "RA"),),
    "reset by the client, answered": (("reply", "SA"), ("request", "R")),
    "reset by the member, answered": (("reply", "SA"), ("reply", "R")),
    "closed at once": (("reply", "SA"), ("request", "FA")),
    "closed by the member": (("reply", "SA"), ("reply", "FA")),
}


@pytest.mark.parametrize("steps", LEAVING.values(), ids=LEAVING)
def test_what_makes_room_for_another_handshake(dataplane, steps):
    dataplane.load().half_open_limit = 2
    flow = dataplane.open(syn(1))
    dataplane.open(syn(2))
    for side, flags in steps:
        assert dataplane.run(syn(3)).verdict is Verdict.DROP_HALF_OPEN
        assert dataplane.load().half_open == 2
        dataplane.run(getattr(flow, side)(flags=flags))
    assert dataplane.load().half_open == 1

    dataplane.open(syn(3))
    assert dataplane.run(syn(4)).verdict is Verdict.DROP_HALF_OPEN


@pytest.mark.parametrize(("answered", "seconds"), [(False, 5), (True, 15)])
def test_a_handshake_that_is_never_finished_makes_room(dataplane, answered, seconds):
    dataplane.load().half_open_limit = 1
    flow = dataplane.open(syn(1))
    if answered:
        dataplane.run(flow.reply(flags="SA"))
    silent_for(dataplane, flow, seconds + 1)
    dataplane.sweep()

    assert counts(dataplane) == (0, 0)
    dataplane.open(syn(2))
    dataplane.tables.sweep(dataplane.endpoint(), SweepMode.ENDPOINT)
    assert counts(dataplane) == (0, 0)


def test_counts_after_every_step(dataplane):
    """What opens, ends its handshake, closes, is reset or expires changes each count once; all else changes none."""
    flow = dataplane.open(syn(1))
    assert counts(dataplane) == (1, 1)
    life = [
        (syn(1), (1, 1)),
        (flow.reply(flags="SA"), (1, 1)),
        (flow.reply(flags="SA"), (1, 1)),
        (syn(1), (1, 1)),
        (flow.request(flags="A"), (1, 0)),
        (flow.request(flags="A"), (1, 0)),
        (flow.request(flags="S"), (1, 0)),
        (flow.reply(flags="SA"), (1, 0)),
        (flow.request(flags="FA"), (1, 0)),
        (flow.request(flags="FA"), (1, 0)),
        (flow.reply(flags="R"), (0, 0)),
        (flow.request(flags="R"), (0, 0)),
        (flow.reply(flags="FA"), (0, 0)),
        (syn(1), (1, 1)),
    ]
    for number, (packet, expected) in enumerate(life):
        dataplane.run(packet)
        assert counts(dataplane) == expected, f"after step {number}"


def test_datagrams_have_no_handshake(dataplane):
    load = dataplane.load(UDP_MEMBER, UDP_PORT, "UDP")
    load.half_open_limit = 1
    for port in range(1, 51):
        assert dataplane.run(from_client() / UDP(sport=port, dport=53)).verdict is Verdict.FORWARD_OPENED
    assert (load.active, load.half_open) == (50, 0)
    assert dataplane.run(from_client() / UDP(sport=99, dport=53)).verdict is Verdict.REJECT_ALL_FULL


@pytest.mark.parametrize("flags", ["A", "FA", "F", "PA", "SA"])
@pytest.mark.parametrize("answered", [False, True])
def test_a_flood_that_acknowledges_blindly_stays_on_the_budget(dataplane, flags, answered):
    """Who has not seen the member's SYN-ACK cannot say that his handshake is over, or that he closes."""
    random = Random(1)
    dataplane.load().half_open_limit = 10
    for port in range(1, 11):
        flow = dataplane.open(syn(port, seq=random.getrandbits(32)))
        number = random.getrandbits(32)
        if answered:
            dataplane.run(flow.reply(flags="SA", seq=number))
        blind = wrap(number + 2**16 + random.getrandbits(31))
        dataplane.run(flow.request(flags=flags, seq=dataplane.connection(flow).client_sequence, ack=blind))
        assert dataplane.phase(flow) is (Phase.SYN_RECEIVED if answered else Phase.SYN_SENT)
    assert counts(dataplane) == (10, 10)
    assert dataplane.run(syn(99)).verdict is Verdict.DROP_HALF_OPEN


def test_an_acknowledgement_counts_by_its_flag(dataplane):
    """Without it the field means nothing (RFC 9293, 3.1), whatever it holds: no FIN leaves the budget by it."""
    flow = dataplane.open(syn(1, seq=1))
    dataplane.run(flow.reply(flags="SA", seq=9, ack=2))

    assert says(dataplane, flow, "request", "F", 2, ack=10) is Phase.SYN_RECEIVED
    assert counts(dataplane) == (1, 1)
    assert says(dataplane, flow, "request", "FA", 2, ack=10) is Phase.CLOSING


# Resets and FINs, near and far


@pytest.mark.parametrize("first", FIRST_NUMBERS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("distance", "near"),
    [
        (0, True), (1, True), (-1, True), (AHEAD - 1, True), (-BEHIND, True),
        (AHEAD, False), (-BEHIND - 1, False), (2**31, False), (-(2**31) - 1, False), (2**32 - BEHIND - 1, False),
    ],
)  # fmt: skip
def test_how_near_a_reset_must_be(dataplane, first, side, distance, near):
    """The client's number is that after its SYN, which the member's SYN-ACK tells; the member's is its SYN's own."""
    flow = established(dataplane, client=wrap(first - 1), member=first)
    phase = says(dataplane, flow, side, "R", first + distance)

    assert phase is (Phase.EXPIRED if near else Phase.ESTABLISHED)
    assert counts(dataplane) == (0 if near else 1, 0)


@pytest.mark.parametrize("first", FIRST_NUMBERS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("distance", "near"), [(1, True), (AHEAD - 1, True), (-BEHIND, True), (AHEAD, False), (-BEHIND - 1, False)]
)
def test_how_near_a_fin_must_be(dataplane, first, side, distance, near):
    """One from afar is passed on and changes nothing: it neither closes nor shortens the time to be silent."""
    flow = established(dataplane, client=wrap(first - 1), member=first)
    assert says(dataplane, flow, side, "FA", first + distance) is (Phase.CLOSING if near else Phase.ESTABLISHED)
    other = SIDES[side == "request"]
    assert says(dataplane, flow, other, "FA", first + distance) is (Phase.CLOSED if near else Phase.ESTABLISHED)

    silent_for(dataplane, flow, 59 if near else IDLE - 1)
    assert dataplane.sweep() == (0, 0)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("flags", ["R", "RA"])
def test_a_far_reset_shortens_no_silence(dataplane, side, flags):
    """Whoever sent it: an end drops it without a word (RFC 5961, 3.2), and may have nothing else to say for long."""
    flow = established(dataplane)
    for number in (2**29, 2**30, 2**31):
        assert says(dataplane, flow, side, flags, number) is Phase.ESTABLISHED
    silent_for(dataplane, flow, IDLE - 1)
    assert dataplane.sweep() == (0, 0)
    silent_for(dataplane, flow, IDLE + 1)

    assert dataplane.sweep() == (1, 0)


@pytest.mark.parametrize("side", SIDES)
def test_no_reset_is_a_sign_of_life(dataplane, side):
    """RFC 7857, 7.1: silence goes on through them."""
    flow = established(dataplane)
    silent_for(dataplane, flow, IDLE + 1)
    says(dataplane, flow, side, "R", 2**30)

    assert dataplane.sweep() == (1, 0)


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize(
    ("distance", "near"), [(0, True), (1, True), (-1, False), (2, False), (70, False), (2**31, False)]
)
def test_a_clients_reset_within_the_handshake_must_be_exact(dataplane, answered, distance, near):
    """As the member takes it: a flood of SYNs would leave the budget by resets that no member heeds."""
    flow = dataplane.open(syn(1, seq=2**31))
    first = 2**31
    if answered:
        dataplane.run(flow.reply(flags="SA", seq=2**20, ack=first + 1))
        first += 1
    handshake = Phase.SYN_RECEIVED if answered else Phase.SYN_SENT

    assert says(dataplane, flow, "request", "R", first + distance) is (Phase.EXPIRED if near else handshake)
    assert counts(dataplane) == ((0, 0) if near else (1, 1))


@pytest.mark.parametrize(
    ("flags", "ack", "ends"),
    [
        ("RA", 2**31 + 1, True), ("RA", 2**31 + 1461, True), ("RA", 2**31 + AHEAD, False), ("RA", 0, False),
        ("R", 2**31 + 1, False), ("R", 0, False),
    ],
)  # fmt: skip
def test_a_member_that_refuses_says_what(dataplane, flags, ack, ends):
    """RFC 9293, 3.10.7.3: it acknowledges the SYN, which a stranger must know for it; data on the SYN as well."""
    flow = dataplane.open(syn(1, seq=2**31))

    phase = says(dataplane, flow, "reply", flags, 0, ack=ack)
    assert phase is (Phase.EXPIRED if ends else Phase.SYN_SENT)
    assert counts(dataplane) == ((0, 0) if ends else (1, 1))


@pytest.mark.parametrize("distance", [1, AHEAD, -BEHIND - 1])
def test_a_member_that_has_answered_resets_by_its_number(dataplane, distance):
    flow = dataplane.open(syn(1, seq=2**31))
    dataplane.run(flow.reply(flags="SA", seq=2**20, ack=2**31 + 1))

    phase = says(dataplane, flow, "reply", "R", 2**20 + distance)
    assert phase is (Phase.EXPIRED if distance == 1 else Phase.SYN_RECEIVED)


def test_a_stale_connection_of_the_members_is_cleared_out_of_the_way(dataplane):
    """RFC 9293, figure 9: it answers the SYN by other numbers, the client that by a RST, and the next SYN is taken."""
    flow = dataplane.open(syn(1, seq=100))
    assert says(dataplane, flow, "reply", "A", 5_000_000, ack=7_000_000) is Phase.SYN_SENT
    assert says(dataplane, flow, "request", "R", 7_000_000) is Phase.SYN_SENT
    assert says(dataplane, flow, "request", "S", 100) is Phase.SYN_SENT
    assert says(dataplane, flow, "reply", "SA", 900, ack=101) is Phase.SYN_RECEIVED
    assert says(dataplane, flow, "request", "A", 101, ack=901) is Phase.ESTABLISHED
    assert counts(dataplane) == (1, 0)


@pytest.mark.parametrize("by", SIDES)
@pytest.mark.parametrize("phase", [Phase.SYN_SENT, Phase.SYN_RECEIVED, Phase.ESTABLISHED, Phase.CLOSING], ids=str)
def test_nothing_passes_of_a_connection_that_was_reset(dataplane, by, phase):
    """It is counted no more, so its member holds one less: whoever goes on, as if it had not been, is told."""
    flow = dataplane.open(syn(40000, seq=100))
    steps = [
        flow.reply(flags="SA", seq=900, ack=101),
        flow.request(flags="A", seq=101, ack=901),
        flow.request(flags="FA", seq=101, ack=901),
    ]
    for packet in steps[: phase - Phase.SYN_SENT]:
        dataplane.run(packet)
    number, ack = (101, 0) if by == "request" else (900, 101)
    assert says(dataplane, flow, by, "RA", number, ack=ack) is Phase.EXPIRED
    assert counts(dataplane) == (0, 0)
    for side in SIDES:
        for flags in ("A", "PA", "FA"):
            result = dataplane.run(getattr(flow, side)(flags=flags, seq=102, ack=0xFFFFFFFE) / b"data")
            assert (result.verdict, result.action) == (Verdict.REJECT_EXPIRED, "TX")
            assert_same(result.packet, told(flow, side, flags="R", seq=0xFFFFFFFE))
        assert dataplane.run(getattr(flow, side)(flags="R", seq=102)).verdict is Verdict.DROP_NO_CONNECTION
    assert counts(dataplane) == (0, 0)


def test_no_client_exceeds_the_ceiling_by_resets_that_its_member_does_not_heed(dataplane):
    """Of 50 places one client opens 500 connections, resets each within the window and goes on: 50 at most pass."""
    going = []
    for port in range(500):
        flow = established(dataplane, client=100, member=900, port=1000 + port)
        dataplane.run(flow.request(flags="R", seq=30_000))
        going.append(dataplane.run(flow.request(flags="PA", seq=101, ack=901) / b"more"))

    assert {result.verdict for result in going} == {Verdict.REJECT_EXPIRED}
    assert counts(dataplane) == (0, 0)


@pytest.mark.parametrize("first", FIRST_NUMBERS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("segment", [1448, 16_383, 16_384, 60_000])
def test_a_long_transfer_leads_the_number_on(dataplane, first, side, segment):
    """2 MB of one side, and its last RST is where it is by then; one from where it began is not believed."""
    flow = established(dataplane, client=first, member=first)
    number, frame = first + 1, bytearray(bytes(getattr(flow, side)(flags="A")))
    while number - first < 2_000_000:
        struct.pack_into("!I", frame, SEQUENCE, wrap(number))
        syscall.run(dataplane.program.entry, bytes(frame))
        number += segment
    assert says(dataplane, flow, side, "R", first + 1) is Phase.ESTABLISHED
    assert says(dataplane, flow, side, "A", number) is Phase.ESTABLISHED

    assert says(dataplane, flow, side, "R", number) is Phase.EXPIRED


@pytest.mark.parametrize("first", FIRST_NUMBERS)
def test_a_jump_that_only_acknowledgements_explain(dataplane, first):
    """The client's segments took another way for a while; the member's answers tell how far they have come."""
    flow = established(dataplane, client=first, member=first)
    far = first + 50_000_000
    assert says(dataplane, flow, "request", "A", far) is Phase.ESTABLISHED
    assert says(dataplane, flow, "request", "R", far) is Phase.ESTABLISHED
    says(dataplane, flow, "reply", "A", first + 1, ack=wrap(far))

    assert says(dataplane, flow, "request", "R", far) is Phase.EXPIRED


@pytest.mark.parametrize("first", FIRST_NUMBERS)
def test_the_member_may_jump(dataplane, first):
    """No one else can send in its name; but it never comes back from behind."""
    flow = established(dataplane, client=first, member=first)
    says(dataplane, flow, "reply", "A", first + 50_000_000)
    says(dataplane, flow, "reply", "A", first + 1)

    assert says(dataplane, flow, "reply", "R", first + 1) is Phase.ESTABLISHED
    assert says(dataplane, flow, "reply", "R", first + 50_000_000) is Phase.EXPIRED


@pytest.mark.parametrize("field", ["seq", "ack"])
def test_blind_segments_do_not_lead_on(dataplane, field):
    """10,000 of an attacker who knows the tuple: neither side's number is led to where his RST would be believed."""
    random = Random(9)
    flow = established(dataplane, client=1_000_000, member=3_000_000_000)
    before = (1_000_001, 3_000_000_000)
    frame = bytearray(bytes(flow.request(flags="PA", seq=before[0], ack=before[1]) / b"data"))
    for _ in range(10_000):
        number = random.getrandbits(32)
        assert wrap(number - before[0]) >= AHEAD, "the seed has a lucky number"
        struct.pack_into("!I", frame, {"seq": SEQUENCE, "ack": ACKNOWLEDGEMENT}[field], number)
        syscall.run(dataplane.program.entry, bytes(frame))

    connection = dataplane.connection(flow)
    assert (connection.client_sequence, connection.member_sequence) == before
    assert dataplane.phase(flow) is Phase.ESTABLISHED


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("flags", ["R", "RA", "FA"])
def test_blind_resets_and_fins(dataplane, flags, seed):
    """10,000 guesses, each with odds of one in 52,429: what ends is exactly what the odds of this seed say."""
    random = Random(seed)
    flow, first, ended, lucky = None, 0, 0, 0
    frame, entry = bytearray(bytes(SYN)), dataplane.program.entry
    for _ in range(10_000):
        if flow is None:
            first = random.getrandbits(32)
            flow = established(dataplane, client=wrap(first - 1), member=random.getrandbits(32))
            frame = bytearray(bytes(flow.request(flags=flags)))
        number = random.getrandbits(32)
        struct.pack_into("!I", frame, SEQUENCE, number)
        action, _, _ = syscall.run(entry, bytes(frame))
        assert action == 4  # redirected
        lucky += wrap(number - first + BEHIND) < BEHIND + AHEAD
        if dataplane.phase(flow) is not Phase.ESTABLISHED:
            ended += 1
            dataplane.sweep(SweepMode.ENDPOINT)
            flow = None

    assert ended == lucky <= 1


def test_of_several_syns_the_member_says_which_was_taken(dataplane):
    """A client that began anew, with another number, while its first SYN was under way."""
    flow = dataplane.open(syn(1, seq=1000))
    dataplane.run(syn(1, seq=3_000_000_000))
    dataplane.run(flow.reply(flags="SA", seq=77, ack=3_000_000_001))
    dataplane.run(flow.request(flags="A", seq=3_000_000_001, ack=78))

    assert says(dataplane, flow, "request", "R", 1001) is Phase.ESTABLISHED
    assert says(dataplane, flow, "request", "FA", 3_000_000_001) is Phase.CLOSING


# Opening and closing


@pytest.mark.parametrize("sides", [("request", "reply"), ("reply", "request")])
def test_half_closed_for_hours(dataplane, sides):
    """One side has nothing more to say; the other one's data goes on for three hours, and then its FIN."""
    closer, speaker = sides
    flow = established(dataplane)
    says(dataplane, flow, closer, "FA", 1)
    number = 1
    for _ in range(3 * 3600 // 18):
        silent_for(dataplane, flow, 18)
        assert dataplane.sweep() == (0, 0)
        assert says(dataplane, flow, speaker, "PA", number) is Phase.CLOSING
        number += 1400
    assert counts(dataplane) == (1, 0)

    assert says(dataplane, flow, speaker, "FA", number) is Phase.CLOSED
    assert says(dataplane, flow, closer, "A", 2) is Phase.CLOSED


@pytest.mark.parametrize("first", FIRST_NUMBERS)
def test_both_open_at_once(dataplane, first):
    """RFC 9293, figure 8: two SYNs meet, then two SYN-ACKs."""
    flow = dataplane.open(syn(1, seq=first))
    assert says(dataplane, flow, "reply", "S", 2**32 - 1 - first) is Phase.SYN_RECEIVED
    assert counts(dataplane) == (1, 1)
    assert says(dataplane, flow, "request", "SA", first, ack=wrap(-first)) is Phase.ESTABLISHED
    assert counts(dataplane) == (1, 0)
    assert says(dataplane, flow, "reply", "SA", 2**32 - 1 - first, ack=wrap(first + 1)) is Phase.ESTABLISHED
    assert says(dataplane, flow, "request", "A", first + 1) is Phase.ESTABLISHED
    assert says(dataplane, flow, "reply", "R", -first) is Phase.EXPIRED


def test_both_close_at_once(dataplane):
    """RFC 9293, figure 13: two FINs meet, then two ACKs."""
    flow = established(dataplane)
    assert says(dataplane, flow, "request", "FA", 1, ack=1) is Phase.CLOSING
    assert says(dataplane, flow, "reply", "FA", 1, ack=1) is Phase.CLOSED
    assert says(dataplane, flow, "request", "A", 2, ack=2) is Phase.CLOSED
    assert says(dataplane, flow, "reply", "A", 2, ack=2) is Phase.CLOSED
    assert counts(dataplane) == (0, 0)


@pytest.mark.parametrize("number", [0, 2**31])
def test_a_syn_of_an_established_connection_changes_nothing(dataplane, number):
    """The member answers it by a challenge ACK, and the client, if it really began anew, that by an exact RST."""
    flow = established(dataplane, client=5, member=9)
    assert says(dataplane, flow, "request", "S", number) is Phase.ESTABLISHED
    assert says(dataplane, flow, "reply", "A", 10, ack=6) is Phase.ESTABLISHED
    connection = dataplane.connection(flow)
    assert (connection.client_sequence, connection.member_sequence) == (6, 9)
    assert counts(dataplane) == (1, 0)
    assert says(dataplane, flow, "request", "R", 6) is Phase.EXPIRED

    fresh = Flow.of(syn(40000, seq=number), dataplane.run(syn(40000, seq=number)).packet)
    assert (fresh.snat, fresh.snat_port) != (flow.snat, flow.snat_port)


def test_data_on_a_syn(dataplane):
    """RFC 7413: it goes on to the member, in the first SYN, in one sent again, and its answer comes back."""
    opening = syn(1, seq=100, options=[("TFO", (1, 2))]) / b"GET /"
    for verdict in (Verdict.FORWARD_OPENED, Verdict.FORWARD_REQUEST):
        result = dataplane.run(opening)
        flow = Flow.of(opening, result.packet)
        assert result.verdict is verdict
        assert_same(result.packet, flow.requested(flags="S", seq=100, options=[("TFO", (1, 2))]) / b"GET /")
    answer = {"flags": "SA", "seq": 500, "ack": 106}
    assert_same(dataplane.run(flow.reply(**answer) / b"200").packet, flow.replied(**answer) / b"200")

    assert says(dataplane, flow, "request", "A", 106, ack=504) is Phase.ESTABLISHED


# Expired


def expired(dataplane, phase: Phase = Phase.ESTABLISHED) -> Flow:
    flow = dataplane.open(syn(40000))
    steps = [flow.reply(flags="SA"), flow.request(flags="A"), flow.request(flags="FA")]
    for packet in steps[: phase - Phase.SYN_SENT]:
        dataplane.run(packet)
    assert dataplane.phase(flow) is phase
    silent_for(dataplane, flow, IDLE + 1)
    assert dataplane.sweep() == (1, 0)
    return flow


def told(flow: Flow, side: str, **fields) -> Packet:
    """The RST that this side gets."""
    if side == "request":
        ends = to_client(id=0, flags="DF") / TCP(sport=flow.vip_port, dport=flow.client_port, window=0)
    else:
        frame = Ether(src=GATEWAY_MEMBER_MAC, dst=flow.reply().src)
        ends = frame / IP(src=flow.snat, dst=flow.member, id=0, flags="DF")
        ends /= TCP(sport=flow.snat_port, dport=flow.member_port, window=0)
    for name, value in fields.items():
        setattr(ends[TCP], name, value)
    return ends


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("phase", [Phase.SYN_SENT, Phase.SYN_RECEIVED, Phase.ESTABLISHED, Phase.CLOSING], ids=str)
def test_whoever_speaks_after_the_end_is_told(dataplane, side, phase):
    """By a RST with exactly the number that its end expects (RFC 5961, 3.2), or else all of it is acknowledged."""
    flow = expired(dataplane, phase)
    for flags in ("A", "PA", "FA", "SA"):
        result = dataplane.run(getattr(flow, side)(flags=flags, seq=700, ack=0xFFFFFFFE) / b"data")
        assert (result.verdict, result.action) == (Verdict.REJECT_EXPIRED, "TX")
        assert_same(result.packet, told(flow, side, flags="R", seq=0xFFFFFFFE))
    for flags, length in (("", 4), ("P", 4), ("F", 5), ("SF", 6)):
        result = dataplane.run(getattr(flow, side)(flags=flags, seq=0xFFFFFFFE, ack=9) / b"data")
        assert (result.verdict, result.action) == (Verdict.REJECT_EXPIRED, "TX")
        assert_same(result.packet, told(flow, side, flags="RA", seq=0, ack=length - 2))

    assert (dataplane.phase(flow), counts(dataplane)) == (Phase.EXPIRED, (0, 0))


def test_a_client_is_told_while_the_member_cannot_be_reached(dataplane):
    flow = expired(dataplane)
    dataplane.unresolved = {IPv4Address(MEMBER)}
    dataplane.configure()

    assert dataplane.run(flow.request(flags="A")).verdict is Verdict.REJECT_EXPIRED


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("flags", ["R", "RA"])
def test_a_reset_after_the_end_is_not_answered(dataplane, side, flags):
    flow = expired(dataplane)
    result = dataplane.run(getattr(flow, side)(flags=flags, seq=7, ack=7))

    assert (result.verdict, result.action) == (Verdict.DROP_NO_CONNECTION, "DROP")
    assert dataplane.phase(flow) is Phase.EXPIRED


def test_a_syn_after_the_end_opens_anew(dataplane):
    """In another slot; what the member still sends to the first one's port is of no connection."""
    flow = expired(dataplane)
    fresh = established(dataplane)

    assert (fresh.snat, fresh.snat_port) != (flow.snat, flow.snat_port)
    assert counts(dataplane) == (1, 0)
    assert dataplane.phase(flow) is Phase.FREE
    assert dataplane.run(flow.reply(flags="A")).verdict is Verdict.DROP_NO_CONNECTION
    assert says(dataplane, fresh, "reply", "PA", 1) is Phase.ESTABLISHED


def test_a_members_syn_after_the_end_opens_nothing(dataplane):
    flow = expired(dataplane)
    result = dataplane.run(flow.reply(flags="S", seq=8))

    assert result.verdict is Verdict.REJECT_EXPIRED
    assert_same(result.packet, told(flow, "reply", flags="RA", seq=0, ack=9))


def test_late_packets_do_not_lengthen_the_rest(dataplane):
    flow = expired(dataplane)
    silent_for(dataplane, flow, 61)
    for side in SIDES:
        dataplane.run(getattr(flow, side)(flags="A"))

    assert dataplane.sweep() == (0, 1)
    assert dataplane.phase(flow) is Phase.FREE
    assert dataplane.run(flow.request(flags="A")).verdict is Verdict.REJECT_NO_CONNECTION
    assert dataplane.run(flow.reply(flags="A")).verdict is Verdict.DROP_NO_CONNECTION


def test_the_rest_begins_at_the_end(dataplane):
    """Not with the last packet: whoever was silent for the idle timeout has all of the rest to learn of it."""
    flow = expired(dataplane)
    assert dataplane.sweep() == (0, 0)
    silent_for(dataplane, flow, 59)

    assert dataplane.sweep() == (0, 0)


def test_a_slot_of_an_expired_connection_is_used_again(dataplane):
    """When the queue has gone round: nothing of the first one finds it."""
    flow, slots = expired(dataplane), 128
    for n in range(slots):
        last = dataplane.open(from_client(OTHER_CLIENT) / TCP(sport=1000 + n, dport=80, flags="S"))
        if n < slots - 1:
            dataplane.run(last.request(flags="R"))

    assert dataplane.slot(last) == dataplane.slot(flow)
    assert dataplane.run(flow.request(flags="A")).verdict is Verdict.REJECT_NO_CONNECTION
    assert says(dataplane, last, "reply", "SA", 1) is Phase.SYN_RECEIVED


def test_a_member_that_is_taken_out_tells_no_one(dataplane):
    """Its table is gone, and with it what would answer: the client's next packet is of no connection."""
    flow = expired(dataplane)
    dataplane.configure(CONFIGURATION.replace('{ address = "10.0.0.11", port = 8080, max_connections = 50 }', ""))

    assert dataplane.run(flow.request(flags="A")).verdict is Verdict.REJECT_NO_CONNECTION


@pytest.mark.parametrize("name", ["syn_sent_timeout", "syn_received_timeout", "closing_timeout", "rest"])
def test_timeouts_are_the_configurations(dataplane, name):
    dataplane.tables.set_timing(parse(CONFIGURATION.replace("[gateway]", f"[gateway]\n{name} = 7"), "test").gateway)

    assert getattr(dataplane.settings, name) == 7
    dataplane.tables.set_timing(parse(CONFIGURATION, "test").gateway)
    timeouts = (dataplane.settings.syn_sent_timeout, dataplane.settings.syn_received_timeout)
    assert (*timeouts, dataplane.settings.closing_timeout, dataplane.settings.rest) == (5, 15, 15, 60)
