"""What `explain` says of a packet is what the program then does with it, in random states, for random frames.

`EXPLAINED` says how many; the seeds are fixed, and a failure names its own.
"""

from __future__ import annotations

import ctypes
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from ipbackend.abi import RATE_SECOND, Phase, SweepMode, Verdict
from ipbackend.datapath import syscall
from ipbackend.datapath.lookup import Lookup
from ipbackend.explain import frame
from ipbackend.explain.frame import Packet, Tuple
from ipbackend.explain.walk import Explanation, Outcome, explain
from ipbackend.schedule import maglev
from tests.packet import cast
from tests.packet.choices import chosen_by, demanding, member
from tests.packet.conftest import Dataplane, start_over
from tests.packet.travellers import Travellers, age, configuration, exhaust_errors, limit, unsettle

FRAMES = int(os.environ.get("EXPLAINED", "6000"))
ROUND = 250  # frames in one configuration
SLOTS = 6  # of a table, so few that each is used again
POOLS = 8  # no more are ever in use at once
TURNS = 251  # of a Maglev table: a prime that is quickly gone through
FORWARDED = {
    Verdict.FORWARD_OPENED, Verdict.FORWARD_REQUEST, Verdict.FORWARD_REPLY, Verdict.FORWARD_ICMP_ERROR
}  # fmt: skip
# Not met at random: a full index and a lost road, which have tests of their own, and two CPUs at once.
NOT_MET = {Verdict.NEXT_STEP, Verdict.DROP_INDEX_FULL, Verdict.DROP_NO_ROAD, Verdict.DROP_NOT_OPENED}


# Of how a member was chosen, what must be met with a connection opened.
ALL, STAYS, ELSEWHERE = "all are looked at", "stays with 1", "another one takes this"
ALGORITHMS = ("round robin", "fewest connections", "by the client's address", "by both addresses")
WAYS = {(one,) for one in ALGORITHMS} | {(one, ALL) for one in ALGORITHMS if one != "fewest connections"}
WAYS |= {(one, what) for one in ALGORITHMS[:2] for what in (STAYS, ELSEWHERE)}
WAYS |= {("allow list",), ("deny list",), ("of this listener",), ("are left for this second",)}


class Numbers:
    """Names where there are none."""

    def listener(self, number: int) -> str:
        return f"listener {number}"

    def pool(self, number: int) -> str:
        return f"pool {number}"

    def interface(self, index: int) -> str:
        return f"interface {index}"


def explained(dataplane: Dataplane, data: bytes) -> Explanation:
    return explain(data, cast.CLIENT_INTERFACE, Lookup(dataplane.maps), Numbers())


def is_so(way: tuple[str, ...], told: Explanation) -> bool:
    """Whether the steps say all of it."""
    return all(any(word in what for _, what in told.steps) for word in way)


class Run:
    """Frames through the program, each under the verdict that it was counted under."""

    def __init__(self, dataplane: Dataplane) -> None:
        self._dataplane = dataplane
        self._counted = dataplane.verdicts()

    def __call__(self, data: bytes) -> tuple[Verdict, int, bytes]:
        action, left, _ = syscall.run(self._dataplane.program.entry, data)
        counted, before = self._dataplane.verdicts(), self._counted
        self._counted = counted
        (verdict,) = (counted - before).elements()
        return verdict, action, left


def happened(verdict: Verdict, action: int, came: bytes, left: bytes) -> dict[str, Any]:
    """What can be seen from outside of a frame that went on."""
    if verdict not in FORWARDED:
        return {"verdict": verdict}
    went = Ether(left)
    seen = {
        "verdict": verdict,
        "source": went[IP].src,
        "destination": went[IP].dst,
        "macs": (went.dst, went.src),
        "vlan": went[Dot1Q].vlan if Dot1Q in went else 0,
        "same": action == 3,
    }
    layer = TCP if TCP in went else UDP
    if verdict is not Verdict.FORWARD_ICMP_ERROR and not went[IP].frag and layer in went:
        seen["ports"] = (went[layer].sport, went[layer].dport)
    return seen


def foretold(outcome: Outcome, seen: dict[str, Any]) -> dict[str, Any]:
    """The same of an outcome, as far as it could be seen."""
    if outcome.way is None:
        return {"verdict": outcome.verdict}
    way = outcome.way
    (source, sport), (destination, dport) = (end.split(":") for end in (way.source, way.destination))
    told = {
        "verdict": outcome.verdict,
        "source": source,
        "destination": destination,
        "macs": (way.destination_mac.hex(":"), way.source_mac.hex(":")),
        "vlan": way.vlan,
        "same": way.interface == cast.CLIENT_INTERFACE,
        "ports": (int(sport), int(dport)),
    }
    return {name: value for name, value in told.items() if name in seen}


def memory(dataplane: Dataplane) -> dict[str, Any]:
    """All that the program writes, and all that it reads."""
    maps = dataplane.maps
    arrays = {one.name: zlib.crc32(one.memory().bytes) for one in maps if one.info.flags & syscall.F_MMAPABLE}
    counters = {name: maps[name].get(0) for name in ("answers",)}
    per_cpu = {
        f"{name} {row}": list(map(bytes, maps[name].get(row)))
        for name, rows in (("listener_counts", range(16)), ("endpoint_counts", range(64)))
        for row in rows
    }
    kept = {
        name: sorted(
            (bytes(key), bytes(ctypes.c_uint64(value) if isinstance(value, int) else value))
            for key, value in maps[name].items()
        )
        for name in ("fragments", "stays", "source_dues")
    }
    answers = {name: list(map(bytes, rows)) for name, rows in counters.items()}
    return {**arrays, **answers, **per_cpu, **kept, "verdicts": dataplane.verdicts()}


@pytest.fixture
def small(unconfigured: Dataplane, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dataplane]:
    """Tables of few slots, and of few turns where clients are looked up."""
    monkeypatch.setattr("ipbackend.plan.slots_for", lambda *_: SLOTS)
    monkeypatch.setattr("ipbackend.schedule.maglev", partial(maglev, size=TURNS))
    start_over(unconfigured)
    yield unconfigured
    start_over(unconfigured)
    unconfigured.reset()


def test_it_says_what_the_program_then_does(small: Dataplane) -> None:
    reached: Counter[Verdict] = Counter()
    phases, ways = set[str](), set[tuple[str, ...]]()
    open_questions = 0
    for number in range(-(-FRAMES // ROUND)):
        random = Random(number)
        run = begin(small, random, number)
        travellers, frames = Travellers(random), list[bytes]()
        for count in range(ROUND):
            if random.random() < 0.02:
                disturb(small, random, number)
            came = travellers.frame()
            frames.append(came)
            told = explained(small, came)
            verdict, action, left = run(came)
            seen = happened(verdict, action, came, left)
            wanted = [foretold(one, seen) for one in told.outcomes]
            assert seen in wanted, f"seed {number}, frame {count}: {came.hex()}\nfor {wanted}\n{told.steps}"
            reached[verdict] += 1
            open_questions += len(told.outcomes) > 1
            phases |= {what.split(",")[0] for step, what in told.steps if step == "connection"}
            ways |= {way for way in WAYS if verdict is Verdict.FORWARD_OPENED and is_so(way, told)}
            if verdict is Verdict.FORWARD_OPENED:
                travellers.opened(came, left)
        before = memory(small)
        for came in frames:
            explained(small, came)
        assert memory(small) == before
        small.sweep(SweepMode.ENDPOINT)

    assert reached[Verdict.FORWARD_OPENED] > FRAMES / 25, "too tame"
    assert set(Verdict) - set(reached) == NOT_MET, "too tame"
    known = {Phase.SYN_SENT, Phase.SYN_RECEIVED, Phase.ESTABLISHED, Phase.CLOSING, Phase.CLOSED, Phase.EXPIRED}
    assert {phase.name for phase in known} <= phases
    assert ways == WAYS
    assert 0 < open_questions < FRAMES / 10, "it is to be exact where the program is"


def begin(dataplane: Dataplane, random: Random, number: int) -> Run:
    dataplane.reset()
    unsettle(dataplane, random)
    dataplane.configure(cast.NETWORKS)
    dataplane.configure(configuration(random, number))
    for pool in range(POOLS):
        dataplane.maps["cursors"].memory()[pool].position = 0
    limit(dataplane, random, number)
    exhaust_errors(dataplane.maps, random.choice(([False] * 8,) * 6 + ([True] * 8, [True, *[False] * 7])))
    return Run(dataplane)


def disturb(dataplane: Dataplane, random: Random, number: int) -> None:
    """Silence and a sweep; next hops and MTUs change."""
    age(dataplane, random)
    dataplane.sweep()
    text = configuration(random, number)
    unsettle(dataplane, random)
    dataplane.configure(text)
    limit(dataplane, random, number)


def test_a_full_index_is_foretold(dataplane: Dataplane) -> None:
    index, data = dataplane.maps["flow_index"].memory(), bytes(cast.SYN)
    buckets = Lookup(dataplane.maps).buckets(parse_ip_tuple(data))
    for bucket in buckets:
        index.write(bucket.number, struct.pack("8Q", *[1] * 8))
    try:
        (outcome,) = explained(dataplane, data).outcomes
        assert outcome == Outcome(Verdict.DROP_INDEX_FULL)
        assert Run(dataplane)(data)[0] is Verdict.DROP_INDEX_FULL
    finally:
        for bucket in buckets:
            index.write(bucket.number, bytes(64))


def test_one_that_has_ended_makes_room_in_a_full_index(dataplane: Dataplane) -> None:
    """The tuple used again leaves first, and so finds its own place."""
    flow, data = dataplane.establish(), bytes(cast.SYN)
    index = dataplane.maps["flow_index"].memory()
    entries = [index[bucket.number].entry for bucket in Lookup(dataplane.maps).buckets(parse_ip_tuple(data))]
    dataplane.connection(flow).last_seen -= dataplane.maps.clock.ticks(1000)
    dataplane.sweep()
    assert dataplane.phase(flow) is Phase.EXPIRED
    for one in entries:
        one[:] = [entry or 1 for entry in one]
    try:
        (outcome,) = explained(dataplane, data).outcomes
        assert outcome.verdict is Verdict.FORWARD_OPENED
        assert Run(dataplane)(data)[0] is Verdict.FORWARD_OPENED
    finally:
        for one in entries:
            one[:] = [0 if entry == 1 else entry for entry in one]


def test_another_s_entry_with_the_same_tag_hides_no_connection(dataplane: Dataplane) -> None:
    """It is in the way on the common road; the road that opens looks at all of them."""
    flow, other = dataplane.establish(), dataplane.establish(cast.FROM_CLIENT / TCP(sport=40001, dport=80, flags="S"))
    data = bytes(flow.request(flags="A"))
    first, _ = Lookup(dataplane.maps).buckets(parse_ip_tuple(data))
    entries = dataplane.maps["flow_index"].memory()[first.number].entry
    mine = next(entry for entry in entries if entry)
    places = {
        one: dataplane.entries.endpoints[dataplane.endpoint()].first + dataplane.slot(one) for one in (flow, other)
    }
    assert mine & 0xFFFF_FFFF == places[flow]
    entries[0], entries[1] = (mine >> 32 << 32) | places[other], mine
    try:
        (outcome,) = explained(dataplane, data).outcomes
        assert (outcome.verdict, outcome.slot) == (Verdict.FORWARD_REQUEST, dataplane.slot(flow))
        assert Run(dataplane)(data)[0] is Verdict.FORWARD_REQUEST
    finally:
        entries[0], entries[1] = mine, 0


def test_no_client_stays_with_a_member_that_was_made_anew(unconfigured: Dataplane) -> None:
    """Of the same address and id: its slots are others, and so is whatever the client had there."""
    both = [chosen_by("ROUND_ROBIN", *members, persistence=1) for members in ((member(1), member(2)), (member(2),))]
    unconfigured.configure(both[0])
    unconfigured.start_anew()
    assert unconfigured.open().member == "172.16.0.1"
    again = bytes(cast.FROM_CLIENT / TCP(sport=40001, dport=80, flags="S"))
    assert ("persistence", f"{cast.CLIENT} stays with 172.16.0.1:8080") in explained(unconfigured, again).steps

    unconfigured.configure(both[1])
    unconfigured.configure(both[0])
    told = explained(unconfigured, again)

    assert any("stays with none yet" in what for _, what in told.steps)
    verdict, _, left = Run(unconfigured)(again)
    assert verdict is Verdict.FORWARD_OPENED
    assert told.outcomes[0].member == f"{Ether(left)[IP].dst}:8080"


def test_a_rate_that_may_be_used_up_at_this_moment(unconfigured: Dataplane) -> None:
    """The kernel's timer goes by jumps: where it decides, both are told."""
    unconfigured.configure(demanding(chosen_by("ROUND_ROBIN", member(1)), cps=1))
    (listener,) = unconfigured.entries.listeners.values()
    load = unconfigured.maps["listener_load"].memory()[listener.id]

    def verdicts(due: int) -> list[Verdict]:
        load.due = due
        return [one.verdict for one in explained(unconfigured, bytes(cast.SYN)).outcomes]

    first, last = Lookup(unconfigured.maps).rate_now()
    assert verdicts(first - RATE_SECOND) == [Verdict.FORWARD_OPENED]
    assert verdicts((first + last) // 2 + RATE_SECOND // 100) == [Verdict.DROP_LISTENER_RATE, Verdict.FORWARD_OPENED]
    assert verdicts(last + RATE_SECOND) == [Verdict.DROP_LISTENER_RATE]


def test_what_time_it_is_as_rates_go_is_as_the_program_has_it(unconfigured: Dataplane) -> None:
    """It writes down when the next connection would be due: one second from now."""
    unconfigured.configure(demanding(chosen_by("ROUND_ROBIN", member(1)), cps=1))
    (listener,) = unconfigured.entries.listeners.values()
    lookup = Lookup(unconfigured.maps)

    first, _ = lookup.rate_now()
    unconfigured.open()
    _, last = lookup.rate_now()

    assert first <= lookup.listener_load(listener.id).due - RATE_SECOND <= last
    assert last - first < RATE_SECOND


def test_a_slot_that_someone_holds_is_put_back(dataplane: Dataplane) -> None:
    connections = dataplane.maps.of_endpoint("conntrack", dataplane.endpoint())
    for slot in range(3):
        connections[slot].state = Phase.BUSY
    try:
        (outcome,) = explained(dataplane, bytes(cast.SYN)).outcomes
        flow = dataplane.open()
        assert outcome.slot == dataplane.slot(flow) == 3
    finally:
        for slot in range(3):
            connections[slot].state = Phase.FREE


def parse_ip_tuple(data: bytes) -> Tuple:
    """Of a sound frame."""
    packet = frame.parse_ip(data)
    assert isinstance(packet, Packet)
    assert frame.parse_transport(packet) is None
    return packet.tuple
