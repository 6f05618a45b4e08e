"""What the data plane carries at this moment, summed up; and what of it would end. It only looks."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ipbackend.abi import Phase
from ipbackend.configuration import Configuration
from ipbackend.model import EndpointKey, Listener, Member, Pool, Protocol
from ipbackend.plan import ListenerKey
from ipbackend.verdicts import counts
from ipbackend.view import View

_OPEN = re.compile(b"[" + re.escape(bytes(phase for phase in Phase if phase.is_open)) + b"]")
_FULLEST = 5  # endpoints that are named
_LOST = ("REJECT", "DROP")
Reach = Literal["reachable", "no next hop", "not applied"]


@dataclass(frozen=True)
class ListenerLoad:
    """A listener; counts are None while it is not in the maps."""

    name: str
    at: str
    protocol: Protocol
    pool: str | None
    opened: int | None
    refused: int | None


@dataclass(frozen=True)
class PoolLoad:
    """A pool: members that can be reached are up; those with a weight have room."""

    name: str
    protocol: Protocol
    members: int
    up: int
    active: int
    room: int


@dataclass(frozen=True)
class EndpointLoad:
    """How near an endpoint is to its ceiling."""

    member: str
    protocol: Protocol
    active: int
    ceiling: int


@dataclass(frozen=True)
class Load:
    """The whole gateway; `lost` are packets by the verdict they were rejected or dropped with."""

    active: int
    listeners: list[ListenerLoad]
    pools: list[PoolLoad]
    fullest: list[EndpointLoad]
    lost: dict[str, int]


class MemberLoad(NamedTuple):
    """A member as it is now; what it carries is its endpoint's, and None while it is not in the data plane.

    `begun` counts the connections that ever took a slot of it: two of them tell a rate.
    """

    id: str
    pool_id: str
    pool: str
    member: str
    protocol: Protocol
    weight: int
    state: Reach
    ceiling: int
    active: int | None
    half_open: int | None
    begun: int | None


def members(view: View) -> list[MemberLoad]:
    """All members, from shared memory: nothing is asked of the kernel, however many there are."""
    loads = view.maps["load"].memory()
    found = []
    for pool in view.configuration.pools.values():
        for one in pool.members:
            there = view.endpoint(pool, one)
            state: Reach = "not applied"
            counts: tuple[int | None, ...] = (None, None, None)
            if there:
                its = loads[there[0]]
                counts = its.active, its.half_open, its.head
                state = "reachable" if there[1].ceiling else "no next hop"
            name, at = pool.name or pool.id, f"{one.address}:{one.port}"
            found.append(
                MemberLoad(one.id, pool.id, name, at, pool.protocol, one.weight, state, one.max_connections, *counts)
            )
    return found


def load(view: View) -> Load:
    """Everything at a glance."""
    have = view.configuration
    fullest = sorted(
        (
            EndpointLoad(f"{key.address}:{key.port}", key.protocol, view.active(number), member.max_connections)
            for key, member in have.endpoints.items()
            if (number := view.endpoint_ids.get(key))
        ),
        key=lambda one: one.active / one.ceiling,
        reverse=True,
    )
    return Load(
        sum(one.active for one in fullest),
        [_listener(view, one) for one in have.listeners.values()],
        [_pool(view, one) for one in have.pools.values()],
        [one for one in fullest[:_FULLEST] if one.active],
        {one.name: count for one, count in counts(view.maps).items() if count and one.name.split("_")[0] in _LOST},
    )


def ending(view: View, want: Configuration) -> dict[str, int]:
    """How many open connections end when `want` comes, by the id of the listener or member that goes with it.

    One that loses both is counted under its member.
    """
    have, ended = view.configuration, dict[str, int]()
    gone = {key: number for key, number in view.endpoint_ids.items() if key not in want.endpoints}
    for pool in have.pools.values():
        for member in pool.members:
            number = gone.get(EndpointKey(member.address, member.port, pool.protocol))
            if number and have.endpoints[EndpointKey(member.address, member.port, pool.protocol)] is member:
                ended[member.id] = view.active(number)
    stay = {_key(want, one) for one in want.listeners.values()}
    lost = [one for one in have.listeners.values() if _key(have, one) not in stay]
    if lost:
        open_ = _by_listener(view, (number for key, number in view.endpoint_ids.items() if key not in gone))
        entries = ((one.id, view.listener_entry(one)) for one in lost)
        ended |= {number: open_.get(entry.id, 0) for number, entry in entries if entry}
    return {number: count for number, count in ended.items() if count}


def _listener(view: View, one: Listener) -> ListenerLoad:
    have, entry = view.configuration, view.listener_entry(one)
    totals = view.total("listener_counts", entry.id) if entry else {}
    return ListenerLoad(
        one.name or one.id,
        f"{have.load_balancers[one.load_balancer].vip}:{one.port}",
        one.protocol,
        (have.pools[one.pool].name or one.pool) if one.pool else None,
        totals.get("opened"),
        totals.get("refused"),
    )


def _pool(view: View, pool: Pool) -> PoolLoad:
    found = [(member, *there) for member in pool.members if (there := view.endpoint(pool, member))]
    reachable = [(member, number) for member, number, endpoint in found if endpoint.ceiling]
    return PoolLoad(
        pool.name or pool.id,
        pool.protocol,
        len(pool.members),
        len(reachable),
        sum(view.active(number) for _, number, _ in found),
        sum(_room(view, member, number) for member, number in reachable if member.weight),
    )


def _room(view: View, member: Member, number: int) -> int:
    return max(member.max_connections - view.active(number), 0)


def _key(configuration: Configuration, one: Listener) -> ListenerKey:
    return ListenerKey(configuration.load_balancers[one.load_balancer].vip, one.port, one.protocol)


def _by_listener(view: View, endpoints: Iterable[int]) -> dict[int, int]:
    """Open connections by the listener they came by."""
    found: dict[int, int] = {}
    for number in endpoints:
        memory = view.maps.of_endpoint("conntrack", number)
        for match in _OPEN.finditer(bytes(memory.column("state"))):
            listener = memory[match.start()].listener
            found[listener] = found.get(listener, 0) + 1
    return found
