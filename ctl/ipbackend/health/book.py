"""The state of every member that is asked, and what share of new connections each member gets by it.

Used by two threads: the loop enters answers, the gateway's thread asks for shares and follows what is wanted.
It knows no sockets and no maps; the clock is handed in.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import NamedTuple

from ipbackend.configuration import Configuration
from ipbackend.health.questions import watched
from ipbackend.health.slow_start import next_step, share
from ipbackend.health.states import Health, Reason, Start, answered, begun
from ipbackend.model import HealthMonitor, Member, Pool
from ipbackend.plan import WHOLE


@dataclass(frozen=True)
class Entry:
    """A member that is asked: by which monitor and for which pool."""

    monitor: HealthMonitor
    pool: Pool
    member: Member
    health: Health
    whole: bool  # no one's place is to be taken slowly: it was there at the start, or it is the first of its pool

    def is_of(self, monitor: HealthMonitor, member: Member) -> bool:
        """Whether what is known holds for this monitor and this endpoint."""
        at = (self.member.address, self.member.port)
        return self.monitor.id == monitor.id and at == (member.address, member.port)


class Turn(NamedTuple):
    """A member's state has changed."""

    entry: Entry
    before: Health


class _Page(NamedTuple):
    """All that is known for one configuration: members that are asked, and when others came up; by member id."""

    entries: dict[str, Entry]
    came_up: dict[str, float]


class Book:
    """What is known of the members. `states` may be read by any thread; it is replaced where members come or go."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = Lock()
        self._wanted = Configuration()
        self._members: dict[str, Member] = {}  # of all pools of what is wanted
        self._page = _Page({}, {})
        self.states: dict[str, Health] = {}

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Who is to be asked, by member id."""
        return self._page.entries

    def follow(self, want: Configuration, serving: Collection[str] | None = None) -> None:
        """Have `want` be what is wanted. What is known of members that stay is kept.

        `serving` is for a start of the data plane: ids of members that get connections by what is loaded.
        """
        with self._lock:
            self._page = self._turned(want, serving)
            self._wanted = want
            self._members = {member.id: member for pool in want.pools.values() for member in pool.members}
            self.states = {number: entry.health for number, entry in self._page.entries.items()}

    def answered(self, number: str, failure: Reason | None) -> Turn | None:
        """Enter an answer; tells if it changes the member's state. One of a member that is gone is none."""
        with self._lock:
            entry = self._page.entries.get(number)
            if entry is None:
                return None
            before, monitor = entry.health, entry.monitor
            after = answered(before, failure, monitor.max_retries, monitor.max_retries_down, self.clock())
            if after is before:
                return None
            if after.serves and not before.serves and not entry.whole and self._others_serve(entry.pool, number):
                self._page.came_up[number] = self.clock()
            elif not after.serves:
                self._page.came_up.pop(number, None)
            entry = replace(entry, health=after, whole=entry.whole and after.status is before.status)
            self._page.entries[number] = entry
            self.states[number] = after
            return None if after.status is before.status else Turn(entry, before)

    def shares(self, want: Configuration) -> dict[str, int]:
        """Tenths of its weight that a member gets of new connections, by its id, if `want` is what is wanted.

        A member that is not named gets all of it.
        """
        with self._lock:
            page, now = self._turned(want, None), self.clock()
        found: dict[str, int] = {}
        for pool in want.pools.values():
            its = {member.id: _tenths(page, pool, member.id, now) for member in pool.members if member.weight}
            if any(its.values()) or not pool.minimum_healthy:
                found |= {number: tenths for number, tenths in its.items() if tenths < WHOLE}
        return found

    def next_step(self) -> float | None:
        """When, by the clock, slow start next changes a share."""
        with self._lock:
            now = self.clock()
            pools, rising = _slow_pools(self._wanted), self._rising(now)
        return min(
            (began + next_step(now - began, pools[number].slow_start or 0) for number, began in rising.items()),
            default=None,
        )

    def _turned(self, want: Configuration, serving: Collection[str] | None) -> _Page:
        """The page for `want`. Whoever is asked for the first time begins as it stands now."""
        if want is self._wanted and serving is None:
            return self._page
        now, entries, came_up = self.clock(), dict[str, Entry](), dict[str, float]()
        for monitor, pool, member in watched(want):
            known = self._page.entries.get(member.id)
            if known and known.is_of(monitor, member):
                entries[member.id] = replace(known, monitor=monitor, pool=pool, member=member)
            else:
                whole = serving is not None or not self._others_serve(pool, member.id)
                entries[member.id] = Entry(monitor, pool, member, begun(self._start(member, serving), now), whole)
        rising = self._rising(now)
        for number, pool in _slow_pools(want).items():
            joins = number not in self._members and number not in entries and serving is None
            if number in rising:
                came_up[number] = rising[number]
            elif joins and self._others_serve(pool, number):
                came_up[number] = now
        return _Page(entries, came_up)

    def _rising(self, now: float) -> dict[str, float]:
        """Members that do not have all of their share yet, and when they came up."""
        pools = _slow_pools(self._wanted) if self._page.came_up else {}
        return {
            number: began
            for number, began in self._page.came_up.items()
            if number in pools and now - began < (pools[number].slow_start or 0)
        }

    def _start(self, member: Member, serving: Collection[str] | None) -> Start:
        if serving is not None:
            return Start.KEPT if member.id in serving else Start.WAITING
        there = self._members.get(member.id)
        stays = there is not None and (there.address, there.port) == (member.address, member.port)
        return Start.SERVING if stays and self._serves(member.id) else Start.WAITING

    def _others_serve(self, pool: Pool, number: str) -> bool:
        """Whether connections to the pool, as it is now, go to others."""
        there = self._wanted.pools.get(pool.id)
        return any(one.weight and one.id != number and self._serves(one.id) for one in (there.members if there else ()))

    def _serves(self, number: str) -> bool:
        """Of a member that is there."""
        known = self._page.entries.get(number)
        return known is None or known.health.serves


def _slow_pools(want: Configuration) -> dict[str, Pool]:
    """The pool of every member that starts slowly, by the member's id."""
    return {member.id: pool for pool in want.pools.values() if pool.slow_start for member in pool.members}


def _tenths(page: _Page, pool: Pool, number: str, now: float) -> int:
    entry = page.entries.get(number)
    if entry and not entry.health.serves:
        return 0
    began = page.came_up.get(number)
    return WHOLE if began is None or not pool.slow_start else share(now - began, pool.slow_start)
