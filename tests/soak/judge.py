"""Whether what clients, members, the flow log and the operator say of the same load is one story. It does no I/O."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from .clients import Journey
from .exchange import JOURNEY_SHIFT

AFTER = 3.0  # seconds: what was asked for may reach a client so much later than the answer to whoever asked
CLOCKS = 0.2  # seconds by which a connection's times in the flow log and at its client may differ, and its way there
TOLERANCE = (0.03, 2 << 20)  # of memory: what an allocator's ups and downs come to, in parts and in bytes
WARM_UP = 0.1  # of a process's life


class Disturbance(NamedTuple):
    """What was done, to a member by its name, or to a client by its address, from when to when."""

    what: str
    whom: str
    began: float
    ended: float


class Flow(NamedTuple):
    """A connection as the flow log has it; `snat` and `member` are `address:port`.

    Not ended: `reason` is empty. A rejection: so are `snat` and `member`.
    """

    protocol: str
    client: str
    vip: str
    snat: str
    member: str
    opened: float
    ended: float = 0.0
    reason: str = ""


Flows = Mapping[tuple[str, str, str], Sequence[Flow]]
"""By protocol, client and VIP, the last two as `address:port`."""


def by_ends(flows: Iterable[Flow]) -> Flows:
    found = defaultdict(list)
    for one in flows:
        found[one.protocol, one.client, one.vip].append(one)
    return found


def of_journeys(journeys: Iterable[Journey], flows: Flows) -> dict[int, list[Flow]]:
    """The connections that were each one's, by its number.

    Ports are used again, at once at times: one of TCP is that journey's whose begin is next to its own. One of UDP may
    be several journeys', where one goes on with what an earlier client began.
    """
    sharing = defaultdict(list)
    for one in journeys:
        sharing[one.protocol, f"{one.client}:{one.port}", one.vip].append(one)
    found: dict[int, list[Flow]] = {}
    for ends, theirs in sharing.items():
        found |= {one.number: [] for one in theirs}
        for flow in flows.get(ends, ()):
            its = [one for one in theirs if _may_be(one, flow)]
            if ends[0] == "TCP":
                its = sorted(its, key=lambda one: abs(one.began - flow.opened))[:1]
            for one in its:
                found[one.number].append(flow)
    return found


def _may_be(journey: Journey, flow: Flow) -> bool:
    from_then, until = journey.began - CLOCKS, journey.ended + CLOCKS
    if journey.protocol == "TCP":
        return from_then <= flow.opened <= until
    return flow.opened <= until and not 0 < flow.ended < from_then


class Failure(NamedTuple):
    """A journey that failed, and what it is put down to: nothing, where it should not have."""

    journey: Journey
    reasons: tuple[str, ...]  # the ends of its connections, as the flow log has them
    explained: str


def failures(
    journeys: Sequence[Journey], flows: Flows, disturbances: Sequence[Disturbance], names: Mapping[str, str]
) -> Iterator[Failure]:
    """All that failed. `names` are of members, by protocol and address: `TCP 10.0.0.11:8080`.

    A failure is explained if, between the last time that all was well and the error, something was done to the
    very member that had one of its connections, or to the client. Nothing explains silence: whoever loses a
    connection is told, and who asks again by UDP is answered.
    """
    found = of_journeys(journeys, flows)
    for one in journeys:
        if not one.error:
            continue
        its = found[one.number]
        whom = {names.get(f"{one.protocol} {flow.member}", flow.member) for flow in its} | {one.client}
        what = [
            done.what
            for done in disturbances
            if done.whom in whom and done.began <= one.ended and (one.good or one.began) <= done.ended + AFTER
        ]
        if one.error.startswith(TimeoutError.__name__):
            what = []
        yield Failure(one, tuple(flow.reason or "open" for flow in its), what[0] if what else "")


def disagreements(
    journeys: Sequence[Journey], flows: Flows, served: Mapping[str, Sequence[tuple[int, str]]], names: Mapping[str, str]
) -> Iterator[str]:
    """Where client, member and flow log differ. `served` are requests and whom the member saw, by its name."""
    known = {one.number: one for one in journeys}
    seen: dict[int, Counter[tuple[int, str, str]]] = defaultdict(Counter)
    for member, requests in served.items():
        for number, peer in requests:
            if number >> JOURNEY_SHIFT not in known:
                yield f"{member}: saw wrong bytes, or a request that no client made: {number:x} from {peer}"
            seen[number >> JOURNEY_SHIFT][number & (1 << JOURNEY_SHIFT) - 1, member, peer] += 1
    found = of_journeys(journeys, flows)
    for one in journeys:
        its = [flow for flow in found[one.number] if flow.member]
        yield from _of_one(one, seen[one.number], its, names)


def _of_one(
    one: Journey, seen: Counter[tuple[int, str, str]], flows: Sequence[Flow], names: Mapping[str, str]
) -> Iterator[str]:
    what = f"journey {one.number} ({one.kind}, {one.pool}, {one.client}:{one.port})"
    places = {place for place, _, _ in seen}
    if not set(range(one.answered)) <= places or max(places, default=0) > one.answered:
        yield f"{what}: {one.answered} requests were answered, members saw {len(places)}"
    twice = sum(seen.values()) - len(places)
    if twice > (one.again if one.protocol == "UDP" else 0):
        yield f"{what}: members saw requests {twice} times too often"
    wrong = set(one.told) - {(member, peer) for _, member, peer in seen}
    if wrong:
        yield f"{what}: it was told of {wrong}, which no member says of itself"
    logged = {(names.get(f"{one.protocol} {flow.member}"), flow.snat) for flow in flows}
    if not set(one.told) <= logged:
        yield f"{what}: the flow log does not know its {set(one.told) - logged}, but {logged}"
    if open_still := [flow for flow in flows if not flow.reason]:
        yield f"{what}: for the flow log it never ended: {open_still[0]}"
    if one.protocol == "TCP" and not one.error and len(flows) != 1:
        yield f"{what}: for the flow log it was {len(flows)} connections"


class Growth(NamedTuple):
    """Of memory: medians of the second and the last quarter, in bytes, after the warm-up."""

    second: float
    last: float

    @property
    def allowed(self) -> float:
        """By how much the last may be above the second."""
        part, least = TOLERANCE
        return max(part * self.second, least)

    @property
    def is_flat(self) -> bool:
        return self.last - self.second <= self.allowed


def growth(samples: Sequence[float]) -> Growth:
    """Of samples at even distances."""
    warm = samples[int(len(samples) * WARM_UP) :]
    quarter = len(warm) // 4
    if not quarter:
        raise ValueError(f"{len(samples)} samples are too few")
    return Growth(statistics.median(warm[quarter : 2 * quarter]), statistics.median(warm[-quarter:]))
