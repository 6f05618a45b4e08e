"""Who may take a connection in the model: what a listener demands, and how its pool chooses. It knows no packets.

Rates are counted in seconds of the model's time; who may be chosen is a set where the rules leave it open.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fractions import Fraction
from ipaddress import IPv4Address
from itertools import islice

from ipbackend.abi import Verdict
from ipbackend.datapath.tables import ip_to_map
from ipbackend.model import Access, Algorithm, Protocol
from ipbackend.plan import Entries, Listener, Pool
from ipbackend.schedule import DRAWS, client_hash, client_liking, client_turns
from tests.packet.model_connection import Tuple

Room = Callable[[int], bool]  # whether an endpoint takes one more


class Bucket:
    """Tokens of one rate: a second's worth at most. `due` is when the next would be taken if all were taken evenly."""

    def __init__(self) -> None:
        self.due = Fraction(0)

    def has(self, rate: int, now: int) -> bool:
        return self.due - now <= 1 - Fraction(1, rate)

    def take(self, rate: int, now: int) -> None:
        self.due = max(self.due, Fraction(now)) + Fraction(1, rate)


@dataclass
class Stay:
    """The endpoint that a client stays with: `table` tells it from a later one of the same number."""

    endpoint: int
    table: object
    heard: int


class Demands:
    """What listeners have let in, and when."""

    def __init__(self) -> None:
        self.buckets: defaultdict[int, Bucket] = defaultdict(Bucket)  # by listener
        self.of_clients: defaultdict[tuple[int, str], Bucket] = defaultdict(Bucket)  # and client

    def refusal(self, entries: Entries, listener: Listener, client: str, active: int, now: int) -> Verdict | None:
        """Why it is not let in, if so."""
        listed = any(key.list == listener.list and IPv4Address(client) in key.cidr for key in entries.access)
        if listener.access is not None and listed is not (listener.access is Access.ALLOW):
            return Verdict.DROP_ACCESS
        if listener.source_rate and not self.of_clients[listener.id, client].has(listener.source_rate, now):
            return Verdict.DROP_SOURCE_RATE
        if listener.limit and active >= listener.limit:
            return Verdict.REJECT_LISTENER_FULL
        if listener.rate and not self.buckets[listener.id].has(listener.rate, now):
            return Verdict.DROP_LISTENER_RATE
        return None

    def let_in(self, listener: Listener, client: str, now: int) -> None:
        """One more that came to be."""
        if listener.rate:
            self.buckets[listener.id].take(listener.rate, now)
        if listener.source_rate:
            self.of_clients[listener.id, client].take(listener.source_rate, now)


class Turns:
    """How far each pool's schedule has been gone through, by numbers of pools."""

    def __init__(self) -> None:
        self._used: defaultdict[int, int] = defaultdict(int)

    def candidates(self, number: int, pool: Pool, ends: Tuple, has_room: Room, load: Callable[[int], int]) -> set[int]:
        """The endpoints that may be chosen; none where none has room."""
        if not pool.schedule:
            return set()
        if pool.algorithm is Algorithm.LEAST_CONNECTIONS:
            return self._least(number, pool, has_room, load)
        if pool.algorithm is Algorithm.ROUND_ROBIN:
            for _ in range(min(DRAWS, len(pool.schedule))):
                endpoint = self._next(number, pool)
                if has_room(endpoint):
                    return {endpoint}
            return _lowest(pool, has_room, load)
        ports = _swapped(ends.client_port) << 16 | _swapped(ends.vip_port)
        addresses = [ip_to_map(IPv4Address(one)) for one in (ends.client, ends.vip)]
        drawn = client_hash(pool.algorithm, *addresses, ports, 6 if ends.protocol is Protocol.TCP else 17)
        for turn in islice(client_turns(drawn, len(pool.schedule)), DRAWS):
            endpoint = pool.members[pool.schedule[turn]]
            if has_room(endpoint):
                return {endpoint}
        return _lowest(pool, has_room, lambda endpoint: client_liking(drawn, endpoint))

    def _next(self, number: int, pool: Pool) -> int:
        turn = self._used[number] % len(pool.schedule)
        self._used[number] += 1
        return pool.members[pool.schedule[turn]]

    def _least(self, number: int, pool: Pool, has_room: Room, load: Callable[[int], int]) -> set[int]:
        """Of equal ones the one whose turn it is, if it is one of them."""
        turn, lowest = self._next(number, pool), _lowest(pool, has_room, load)
        return {turn} if turn in lowest else lowest


def _lowest(pool: Pool, has_room: Room, amount: Callable[[int], int]) -> set[int]:
    """Those with room that have the lowest amount for their weights."""
    there = {
        endpoint: Fraction(amount(endpoint), weight)
        for endpoint, weight in zip(pool.members, pool.weights, strict=True)
        if has_room(endpoint)
    }
    return {endpoint for endpoint, share in there.items() if share == min(there.values())}


class Stays:
    """Where clients stay, by pool and client."""

    def __init__(self) -> None:
        self.there: dict[tuple[int, str], Stay] = {}

    def home(self, number: int, pool: Pool, client: str, tables: dict[int, object], now: int) -> int:
        """The endpoint, or 0."""
        stay = self.there.get((number, client))
        if not pool.persistence or not stay or now - stay.heard >= pool.persistence:
            return 0
        is_same = tables.get(stay.endpoint) is stay.table
        return stay.endpoint if is_same and stay.endpoint in pool.members else 0

    def settle(self, number: int, pool: Pool, client: str, home: int, endpoint: int, table: object, now: int) -> None:
        """After a connection went to an endpoint: one that had to go elsewhere for once keeps its home."""
        if pool.persistence and home in (0, endpoint):
            self.there[number, client] = Stay(endpoint, table, now)


def chosen(candidates: Collection[int], witness: Callable[[], int]) -> int:
    """The only one, or the one of them that was chosen where the rules leave it open."""
    if len(candidates) == 1:
        return next(iter(candidates))
    taken = witness()
    assert taken in candidates
    return taken


def _swapped(port: int) -> int:
    return int.from_bytes(port.to_bytes(2, "big"), "little")
