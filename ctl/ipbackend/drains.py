"""Members that get no new connections while established ones go on for a time: who drains, and until when.

It knows configurations and clocks, and neither connections nor maps. A drain begins where a member of a pool is
removed, gets weight 0 or goes down; it ends when its delay runs out, when its last connection ends, or when the
member gets connections again. Deadlines are kept as wall-clock time, so that they outlive the daemon; while it runs
they are held by a clock that no one sets. After a restart a clock that was set back lengthens no delay beyond its
full length, one that was set forward may shorten it.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import NamedTuple

from ipbackend.configuration import Configuration
from ipbackend.model import EndpointKey, Member, Protocol
from ipbackend.plan import ListenerKey


class Reason(StrEnum):
    """Why a member gets no new connections."""

    WEIGHT = "weight"  # it is 0
    REMOVED = "removed"  # it is in the pool no more
    DOWN = "down"  # its health monitor says so


class Claim(NamedTuple):
    """What a drain is about: a pool's id, and the endpoint that a member of it is or was."""

    pool: str
    endpoint: EndpointKey


@dataclass(frozen=True)
class Drain:
    """The connections of a member that a pool's listeners brought it; they are cut at `until`, seconds since 1970.

    `doors` are those listeners; None where no pool has the endpoint any more: all connections to it that no other
    drain is about. `delay` in seconds: 0 is now.
    """

    pool: str
    member: str
    address: IPv4Address
    port: int
    protocol: Protocol
    reason: Reason
    delay: int
    until: int
    doors: tuple[ListenerKey, ...] | None

    @property
    def endpoint(self) -> EndpointKey:
        """What is drained."""
        return EndpointKey(self.address, self.port, self.protocol)

    @property
    def claim(self) -> Claim:
        """What tells it from the others."""
        return Claim(self.pool, self.endpoint)


NO_DELAYS: Mapping[Claim, int] = MappingProxyType({})


class Stage(NamedTuple):
    """What is wanted, and the ids of members that are down."""

    configuration: Configuration
    down: frozenset[str] = frozenset()

    def gets(self, member: Member) -> bool:
        """Whether it gets new connections."""
        return member.weight > 0 and member.id not in self.down


class Roster:
    """A configuration from a member's side: who is a member of what, and the listeners that lead there."""

    def __init__(self, configuration: Configuration) -> None:
        self.members: dict[Claim, Member] = {}
        self.pools: defaultdict[EndpointKey, list[str]] = defaultdict(list)
        self.doors: defaultdict[str, list[ListenerKey]] = defaultdict(list)  # by pool
        for number, pool in configuration.pools.items():
            for member in pool.members:
                endpoint = EndpointKey(member.address, member.port, pool.protocol)
                self.members[Claim(number, endpoint)] = member
                self.pools[endpoint].append(number)
        for one in configuration.listeners.values():
            vip = configuration.load_balancers[one.load_balancer].vip
            self.doors[one.pool or ""].append(ListenerKey(vip, one.port, one.protocol))
        self.all_doors = {door for doors in self.doors.values() for door in doors}

    def serving(self, endpoint: EndpointKey) -> set[ListenerKey]:
        """The listeners whose pool has the endpoint, whatever its weight."""
        return {door for pool in self.pools.get(endpoint, ()) for door in self.doors.get(pool, ())}


def following(
    drains: Iterable[Drain], have: Stage, want: Stage, now: float, delays: Mapping[Claim, int]
) -> tuple[Drain, ...]:
    """The drains after a change from `have` to `want`; `delays` are those that were asked for, and win.

    A drain that is under way keeps its deadline, whatever else happens to its member, unless that gets connections
    again. A delay that a pool is given concerns members that have weight 0 already as well; one that is taken from
    it lets those that it still has keep their connections.
    """
    running = {one.claim: one for one in drains}
    if not running and not delays and have.down == want.down and have.configuration.pools is want.configuration.pools:
        return ()
    before = after = Roster(have.configuration)
    if want.configuration is not have.configuration:
        after = Roster(want.configuration)
    whole = {one.endpoint for one in running.values() if one.doors is None}
    for claim, member in before.members.items():
        reason, delay = _beginning(claim, member, have, want, after, delays)
        there = running.get(claim)
        if reason and there and claim not in delays:
            running[claim] = replace(there, reason=reason)
        elif reason and delay is not None:
            alone = claim.endpoint not in after.pools and claim.endpoint not in whole
            doors = None if alone else tuple(before.doors[claim.pool])
            whole |= {claim.endpoint} if alone else set()
            until = math.ceil(now + delay)
            running[claim] = Drain(claim.pool, member.id, *claim.endpoint, reason, delay, until, doors)
    pruned = (_pruned(one, have, want, after) for one in running.values())
    return tuple(one for one in pruned if one is not None)


def _beginning(
    claim: Claim, member: Member, have: Stage, want: Stage, after: Roster, delays: Mapping[Claim, int]
) -> tuple[Reason | None, int | None]:
    """Why a member gets no connections any more, if so, and the delay: None where it keeps those that it has."""
    now, pool = after.members.get(claim), have.configuration.pools[claim.pool]
    delay = delays.get(claim, want.configuration.pools.get(claim.pool, pool).connection_drain)
    if now is None:  # what no pool has any more is cut whole as it goes: no drain of 0 seconds is needed
        return Reason.REMOVED, 0 if delay is None and claim.endpoint in after.pools else delay
    if want.gets(now) or not (have.gets(member) or pool.connection_drain is None or claim in delays):
        return None, None
    return Reason.DOWN if now.weight else Reason.WEIGHT, delay


def _pruned(drain: Drain, have: Stage, want: Stage, after: Roster) -> Drain | None:
    """What `want` leaves of it."""
    member = after.members.get(drain.claim)
    if member:
        before, now = have.configuration.pools.get(drain.pool), want.configuration.pools[drain.pool]
        kept_for_good = before and before.connection_drain is not None and now.connection_drain is None
        if want.gets(member) or kept_for_good:
            return None
    if want.configuration.find_network(drain.address) is None:
        return None  # the way to it goes with its network
    if drain.doors is None:
        return drain
    shut = after.serving(drain.endpoint) if member is None else set()
    doors = tuple(one for one in drain.doors if one in after.all_doors and one not in shut)
    return replace(drain, doors=doors) if doors else None


class Drains:
    """The drains under way, and how long each has left: `wall` may be set by anyone, `steady` by no one."""

    def __init__(
        self,
        kept: Iterable[Drain] = (),
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """`kept` are those of an earlier daemon: they go on with what is left of their delay."""
        self._wall, self._steady = wall, steady
        self._ends: dict[Claim, tuple[int, float]] = {}
        self.running: tuple[Drain, ...] = ()
        self.set(kept)

    def after(self, have: Stage, want: Stage, delays: Mapping[Claim, int] = NO_DELAYS) -> tuple[Drain, ...]:
        """As `following`, at this moment."""
        return following(self.running, have, want, self._wall(), delays)

    def set(self, drains: Iterable[Drain]) -> None:
        """These are under way now."""
        self.running = tuple(drains)
        ends = {}
        for one in self.running:
            until, end = self._ends.get(one.claim, (None, 0.0))
            left = min(max(one.until - self._wall(), 0.0), float(one.delay))
            ends[one.claim] = (one.until, end if until == one.until else self._steady() + left)
        self._ends = ends

    def left(self, drain: Drain) -> float:
        """Seconds until its connections are cut; none of one that is over."""
        _, end = self._ends.get(drain.claim, (0, self._steady()))
        return max(end - self._steady(), 0.0)

    def due(self) -> list[Drain]:
        """Those whose delay has run out."""
        return [one for one in self.running if not self.left(one)]

    def without(self, done: Collection[Claim]) -> tuple[Drain, ...]:
        """Those that are not done."""
        return tuple(one for one in self.running if one.claim not in done)
