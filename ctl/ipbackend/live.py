"""What the data plane carries at this moment, summed up; and what of it would end. It only looks."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ipbackend.configuration import Configuration
from ipbackend.drains import NO_DELAYS, Stage, following
from ipbackend.health.states import Status
from ipbackend.model import Listener, Member, Pool, Protocol
from ipbackend.plan import ListenerKey
from ipbackend.verdicts import counts
from ipbackend.view import View

_FULLEST = 5  # endpoints that are named
_LOST = ("REJECT", "DROP")
_CONDITIONS: dict[Status, "Condition"] = {
    Status.ONLINE: "online",
    Status.OFFLINE: "offline",
    Status.INITIAL: "initial",
}
Reach = Literal["reachable", "no next hop", "not applied"]
Condition = Reach | Literal["online", "offline", "initial"]


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
    """A pool: members that can be reached and serve are up; those of them with a weight have room."""

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


class Ending(NamedTuple):
    """How many connections end at once, and how many after a delay, by the id of the member or listener that goes."""

    now: dict[str, int]
    later: dict[str, int]


class MemberLoad(NamedTuple):
    """A member as it is now; what it carries is its endpoint's, and None while it is not in the data plane.

    `state` is what a health monitor found, if one asks and the next hop is known. `begun` counts the connections that
    ever took a slot of it: two of them tell a rate.
    """

    id: str
    pool_id: str
    pool: str
    member: str
    protocol: Protocol
    weight: int
    state: Condition
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
            state: Condition = "not applied"
            counts: tuple[int | None, ...] = (None, None, None)
            if there:
                its = loads[there[0]]
                counts = its.active, its.half_open, its.head
                health = view.health.get(one.id)
                state = _CONDITIONS[health.status] if health else "reachable"
                state = state if there[1].ceiling else "no next hop"
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
        sum(map(view.active, view.entries.endpoints)),
        [_listener(view, one) for one in have.listeners.values()],
        [_pool(view, one) for one in have.pools.values()],
        [one for one in fullest[:_FULLEST] if one.active],
        {one.name: count for one, count in counts(view.maps).items() if count and one.name.split("_")[0] in _LOST},
    )


def ending(view: View, want: Configuration) -> Ending:
    """The open connections that end when `want` comes; one that loses listener and member is the member's."""
    have, now = view.configuration, Counter[str]()
    drains = following(view.drains, Stage(have), Stage(want), time.time(), NO_DELAYS)
    there = View(view.maps, want, view.entries, view.health, drains)
    stay = {_key(want, one) for one in want.listeners.values()}
    lost = {entry.id: one.id for one in have.listeners.values() if (entry := view.listener_entry(one))}
    lost = {entry: number for entry, number in lost.items() if _key(have, have.listeners[number]) not in stay}
    later, known = Counter[str](), {one.claim for one in view.drains}
    for drain in drains:
        if drain.claim not in known:
            its = there.held(drain)
            (later if drain.delay else now)[drain.member] += its.total() - sum(its[entry] for entry in lost)
    held = {one.endpoint for one in drains}
    for key, number in view.endpoint_ids.items():
        if key not in held and key in have.endpoints and key not in want.endpoints:
            now[have.endpoints[key].id] += view.active(number)
        elif lost:
            counts = view.by_listener(number)
            now.update({name: counts[entry] for entry, name in lost.items()})
    return Ending(dict(+now), dict(+later))


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
    up = [(member, number) for member, number, endpoint in found if endpoint.ceiling and view.serves(member)]
    return PoolLoad(
        pool.name or pool.id,
        pool.protocol,
        len(pool.members),
        len(up),
        sum(view.active(number) for _, number, _ in found),
        sum(_room(view, member, number) for member, number in up if member.weight),
    )


def _room(view: View, member: Member, number: int) -> int:
    return max(member.max_connections - view.active(number), 0)


def _key(configuration: Configuration, one: Listener) -> ListenerKey:
    return ListenerKey(configuration.load_balancers[one.load_balancer].vip, one.port, one.protocol)
