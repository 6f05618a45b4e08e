"""What is wanted and what the maps hold, side by side: names come from the one, facts from the other.

It changes nothing, neither prints nor serves, and knows not where either comes from.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress
from typing import NamedTuple

from ipbackend.abi import Phase, Verdict
from ipbackend.configuration import Configuration
from ipbackend.conservation import Books, Difference, Look, differences
from ipbackend.datapath.maps import Maps
from ipbackend.drains import Claim, Drain, Reason, Roster
from ipbackend.health.states import Health
from ipbackend.model import EndpointKey, Listener, Member, Pool
from ipbackend.plan import Endpoint, Entries, ListenerKey
from ipbackend.plan import Listener as ListenerEntry

_OPEN = bytes(one in {phase for phase in Phase if phase.is_open} for one in range(256))


class Draining(NamedTuple):
    """A drain, whether it has an end, and what is open yet: in all, and by the listener's id, None if it is gone."""

    drain: Drain
    bounded: bool
    connections: int
    listeners: Mapping[str | None, int]


@dataclass(frozen=True)
class View:
    """One look at a gateway. While a change is being applied, what is wanted may not be in the maps yet."""

    maps: Maps
    configuration: Configuration
    entries: Entries
    health: Mapping[str, Health] = field(default_factory=dict)  # of members that are asked, where that is known
    drains: tuple[Drain, ...] = ()

    @cached_property
    def endpoint_ids(self) -> dict[EndpointKey, int]:
        """The id of each endpoint in the maps."""
        return {endpoint.key: number for number, endpoint in self.entries.endpoints.items()}

    @cached_property
    def roster(self) -> Roster:
        """What is wanted, from the members' side."""
        return Roster(self.configuration)

    def endpoint(self, pool: Pool, member: Member) -> tuple[int, Endpoint] | None:
        """The endpoint that a member is, with its id."""
        number = self.endpoint_ids.get(EndpointKey(member.address, member.port, pool.protocol))
        return None if number is None else (number, self.entries.endpoints[number])

    def serves(self, member: Member) -> bool:
        """Whether no health monitor keeps connections from a member."""
        its = self.health.get(member.id)
        return its is None or its.serves

    def active(self, endpoint: int) -> int:
        """Open connections of an endpoint."""
        count: int = self.maps["load"].memory()[endpoint].active
        return count

    def half_open(self, endpoint: int) -> int:
        """Those of them whose handshake is under way."""
        count: int = self.maps["load"].memory()[endpoint].half_open
        return count

    def by_listener(self, endpoint: int) -> Counter[int]:
        """Open connections of an endpoint by the id of the listener they came by."""
        memory, leaf = self.maps.of_endpoint("conntrack", endpoint), self.maps["conntrack"].leaf
        listeners = memory.bytes.cast("H")[leaf.listener.offset // 2 :: memory.step // 2]
        return Counter(compress(listeners, bytes(memory.column("state")).translate(_OPEN)))

    def scope(self, drain: Drain) -> frozenset[int] | None:
        """The ids of the listeners whose connections to its endpoint a drain is about; None: all of them."""
        listeners = self.entries.listeners
        if drain.doors is not None:
            return frozenset(listeners[door].id for door in drain.doors if door in listeners)
        theirs = (one.doors or () for one in self.drains if one.endpoint == drain.endpoint)
        others = {door for doors in theirs for door in doors}
        if drain.endpoint in self.configuration.endpoints:
            others |= self.roster.serving(drain.endpoint)
        if not others:
            return None
        present = self.by_listener(self.endpoint_ids[drain.endpoint])
        return frozenset(present) - {listeners[door].id for door in others if door in listeners}

    def held(self, drain: Drain) -> Counter[int]:
        """The open connections of a drain, by the id of the listener."""
        number = self.endpoint_ids.get(drain.endpoint)
        if number is None or not self.active(number):
            return Counter()
        counts, its = self.by_listener(number), self.scope(drain)
        return counts if its is None else Counter({listener: counts[listener] for listener in its if counts[listener]})

    def has_some(self, drain: Drain) -> bool:
        """Whether any of its connections is open."""
        number = self.endpoint_ids.get(drain.endpoint)
        if number is None or not self.active(number):
            return False
        return self.scope(drain) is None or bool(self.held(drain))

    def draining(self) -> Iterator[Draining]:
        """Members that get no new connections: whose time runs, and those of weight 0 that still have some."""
        claims = set()
        for one in self.drains:
            claims.add(one.claim)
            yield self._draining(one, bounded=True)
        for claim, member in self.roster.members.items():
            number = self.endpoint_ids.get(claim.endpoint)
            if not member.weight and claim not in claims and number and self.active(number):
                found = self.draining_member(claim, member.id)
                if found.connections:
                    yield found

    def draining_member(self, claim: Claim, member: str) -> Draining:
        """What one member still has, if it gets no new connections."""
        running = next((one for one in self.drains if one.claim == claim), None)
        if running:
            return self._draining(running, bounded=True)
        doors = tuple(self.roster.doors[claim.pool])
        return self._draining(Drain(claim.pool, member, *claim.endpoint, Reason.WEIGHT, 0, 0, doors), bounded=False)

    def _draining(self, drain: Drain, bounded: bool) -> Draining:
        names = {
            entry.id: one.id for one in self.configuration.listeners.values() if (entry := self.listener_entry(one))
        }
        held = self.held(drain)
        listeners: Counter[str | None] = Counter()
        for listener, count in held.items():
            listeners[names.get(listener)] += count
        return Draining(drain, bounded, held.total(), listeners)

    def listener_entry(self, listener: Listener) -> ListenerEntry | None:
        """What the maps hold for a listener."""
        vip = self.configuration.load_balancers[listener.load_balancer].vip
        return self.entries.listeners.get(ListenerKey(vip, listener.port, listener.protocol))

    def total(self, counts: str, number: int) -> dict[str, int]:
        """A row of a map of counters, by field, all CPUs together."""
        rows = [row.as_dict() for row in self.maps[counts].get(number)]
        return {name: sum(row[name] for row in rows) for name in rows[0]}

    def loads(self, field: str) -> dict[int, int]:
        """A 32-bit field of all endpoints' loads, by id: without a call for each."""
        memory = self.maps["load"].memory()
        column = memory.bytes.cast("I")[getattr(self.maps["load"].leaf, field).offset // 4 :: memory.step // 4]
        return {number: column[number] for number in self.entries.endpoints}

    def books(self) -> Books:
        """All counters, by three calls."""
        (verdicts,) = self.maps["verdicts"].columns(len(Verdict)).values()
        listeners = max((one.id for one in self.entries.listeners.values()), default=0)
        endpoints = max(self.entries.endpoints, default=0)
        return Books(
            verdicts,
            self.maps["listener_counts"].columns(listeners + 1),
            self.maps["endpoint_counts"].columns(endpoints + 1),
        )

    def differences(self) -> dict[str, Difference]:
        """What does not add up at this moment. Nothing may be changed meanwhile, but packets may pass."""
        look = Look(self.books(), self.loads("active"), self.books())
        return differences(look, lambda number: "{}:{}/{}".format(*self.entries.endpoints[number].key))
