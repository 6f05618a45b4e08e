"""What every map should hold, and what to change to get there. No I/O: it knows neither maps nor netlink.

`plan` keeps the ids of what is there already, so that a restart or a change changes nothing that is right.
`diff` orders the changes so that no packet meets a half-made state: what is pointed at first, the pointer
last; the reverse to remove.
"""

from array import array
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from math import gcd
from typing import Any, NamedTuple, TypeVar

from ipbackend.abi import Role
from ipbackend.configuration import Configuration
from ipbackend.errors import ConfigurationError
from ipbackend.model import Access, Algorithm, EndpointKey, Gateway, Member, Protocol
from ipbackend.model import Listener as WantedListener
from ipbackend.model import Pool as WantedPool
from ipbackend.schedule import schedule
from ipbackend.sizing import FIRST_SLOT, half_open_limit, slots_for

Key = TypeVar("Key", bound=Hashable)
NO_POOL = 0  # what a listener without a pool points to: there never is such a pool
NO_LIST = 0  # the access list of a listener that is for all
WHOLE = 10  # tenths of its weight that a member gets connections by, unless its share says less


class ListenerKey(NamedTuple):
    """Where clients connect to."""

    vip: IPv4Address
    port: int
    protocol: Protocol


class HopKey(NamedTuple):
    """A neighbour that packets to members are handed to: a router, or the member itself if on the link."""

    interface: str
    address: IPv4Address


@dataclass(frozen=True)
class Address:
    """An address of ours; `index` tells SNAT addresses apart."""

    role: Role
    index: int = 0


class AccessKey(NamedTuple):
    """An entry of an access list."""

    list: int
    cidr: IPv4Network


@dataclass(frozen=True)
class Listener:
    """`idle_timeout` in seconds; `limit` connections at the same time, 0 for any number.

    `rate` new connections a second, `source_rate` of one client, 0 for any number. `access` goes by the list of that
    id; None is for all.
    """

    id: int
    pool: int
    idle_timeout: int
    limit: int = 0
    rate: int = 0
    source_rate: int = 0
    access: Access | None = None
    list: int = NO_LIST


@dataclass(frozen=True)
class Pool:
    """Ids of the endpoints that get connections, lowest first, and their weights.

    `schedule` are the turns among them, indexes into `members`; `persistence` in seconds, 0 for none.
    """

    members: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    schedule: "array[int]" = field(default_factory=lambda: array("H"))
    algorithm: Algorithm = Algorithm.ROUND_ROBIN
    persistence: int = 0

    @property
    def by_source(self) -> bool:
        """Whether the schedule is a table that clients are looked up in."""
        return self.algorithm in (Algorithm.SOURCE_IP, Algorithm.SOURCE_IP_PORT)


@dataclass(frozen=True)
class Endpoint:
    """`ceiling`: connections at the same time, 0 while the next hop is not known; `half_open_limit` of them."""

    key: EndpointKey
    next_hop: int
    first: int  # its slots are those from here on among all of the gateway's
    slots: int
    snat: tuple[IPv4Address, ...]
    ceiling: int
    half_open_limit: int


@dataclass(frozen=True)
class NextHop:
    """`interface` is an index; MACs are 6 bytes; `mtu` in bytes of IP; `vlan` an id, 0 for frames without a tag."""

    interface: int
    address: IPv4Address
    destination: bytes = bytes(6)
    source: bytes = bytes(6)
    mtu: int = 0
    resolved: bool = False
    vlan: int = 0


@dataclass(frozen=True)
class Entries:
    """What the controller's maps hold, by key or id."""

    addresses: Mapping[IPv4Address, Address] = field(default_factory=dict)
    access: Mapping[AccessKey, bool] = field(default_factory=dict)  # only the keys count: all are True
    listeners: Mapping[ListenerKey, Listener] = field(default_factory=dict)
    pools: Mapping[int, Pool] = field(default_factory=dict)
    endpoints: Mapping[int, Endpoint] = field(default_factory=dict)
    endpoint_ids: Mapping[EndpointKey, int] = field(default_factory=dict)
    next_hops: Mapping[int, NextHop] = field(default_factory=dict)
    links: Mapping[int, int] = field(default_factory=dict)  # interface index -> MTU


@dataclass(frozen=True)
class Leaving:
    """What nobody wants any more, and what must stay for a while: until connections end, and their ends know it."""

    endpoints: frozenset[EndpointKey] = frozenset()
    vips: frozenset[IPv4Address] = frozenset()

    def without(self, gone: "Leaving") -> "Leaving":
        """What is left when some of it has gone."""
        return Leaving(self.endpoints - gone.endpoints, self.vips - gone.vips)


NOTHING = Leaving()


class Action(StrEnum):
    """What a step does to the thing it names."""

    SET = "set"
    DELETE = "delete"
    END = "end connections of"
    WAIT = "wait for packets that saw the state before"


class Step(NamedTuple):
    """One change: `table` is a field of Entries; `key` one of its keys; `value` what to set or what was there."""

    action: Action
    table: str
    key: Any
    value: Any = None


def gateway_of(configuration: Configuration) -> Gateway:
    """The gateway of a configuration that has one: without, nothing is planned."""
    if configuration.gateway is None:
        raise LookupError("there is no gateway yet")
    return configuration.gateway


def hop_of(configuration: Configuration, member: IPv4Address) -> HopKey:
    """The neighbour that packets to this member are handed to."""
    network = configuration.network_of(member)
    return HopKey(network.interface, network.next_hop or member)


def hops(configuration: Configuration, leaving: Iterable[EndpointKey] = ()) -> set[HopKey]:
    """All neighbours that must be known for the members to be reached, and for those that leave."""
    staying = (key for key in leaving if configuration.find_network(key.address))
    return {hop_of(configuration, key.address) for keys in (configuration.endpoints, staying) for key in keys}


def plan(
    configuration: Configuration,
    ways: Mapping[HopKey, NextHop],
    links: Mapping[int, int],
    have: Entries,
    slots: int,
    shares: Mapping[str, int] | None = None,
    leaving: Leaving = NOTHING,
) -> Entries:
    """What the maps should hold; `ways` are the neighbours as netlink knows them, all of `hops(configuration)`,
    `links` the MTUs of the gateway's interfaces by index, and `slots` how many all endpoints have between them.
    `shares` are the tenths of their weights that members get new connections by, by id, where those are not all.
    What is `leaving` stays as it is for now, but takes no connections.

    ConfigurationError: a ceiling has grown beyond the table that its endpoint got when it was made.
    """
    next_hop_ids = _ids({(way.interface, way.address) for way in ways.values()}, _hop_ids(have))
    next_hops = {next_hop_ids[way.interface, way.address]: way for way in ways.values()}
    endpoints = _endpoints(configuration, ways, next_hop_ids, have, slots)
    for number, endpoint in _departing(configuration, ways, next_hop_ids, have, leaving.endpoints):
        endpoints[number] = endpoint
        if endpoint.next_hop in have.next_hops:
            next_hops.setdefault(endpoint.next_hop, have.next_hops[endpoint.next_hop])
    endpoint_ids = {endpoint.key: number for number, endpoint in endpoints.items()}
    listener_keys = _listener_keys(configuration)
    pool_ids = _pool_ids(configuration, listener_keys, have)
    listener_ids = _ids(set(listener_keys.values()), {key: one.id for key, one in have.listeners.items()})
    lists = {one.id: _list(configuration, one) for one in configuration.listeners.values()}
    list_ids = _list_ids(lists, listener_keys, have)
    return Entries(
        addresses={vip: have.addresses[vip] for vip in leaving.vips if vip in have.addresses}
        | {lb.vip: Address(Role.VIP) for lb in configuration.load_balancers.values()}
        | {snat: Address(Role.SNAT, index) for index, snat in enumerate(gateway_of(configuration).snat_addresses)},
        access={AccessKey(number, cidr): True for one, number in list_ids.items() for cidr in one.cidrs(configuration)},
        listeners={
            key: Listener(
                listener_ids[key],
                pool_ids[one.pool] if one.pool else NO_POOL,
                one.idle_timeout,
                one.max_connections,
                one.cps,
                one.source_cps,
                access.access if access else None,
                list_ids[access] if access else NO_LIST,
            )
            for one in configuration.listeners.values()
            for key, access in [(listener_keys[one.id], lists[one.id])]
        },
        pools={
            number: _pool(configuration.pools[pool], endpoint_ids, shares or {}) for pool, number in pool_ids.items()
        },
        endpoints=endpoints,
        endpoint_ids=endpoint_ids,
        next_hops=next_hops,
        links=links,
    )


def _endpoints(
    configuration: Configuration,
    ways: Mapping[HopKey, NextHop],
    next_hop_ids: Mapping[tuple[int, IPv4Address], int],
    have: Entries,
    room: int,
) -> dict[int, Endpoint]:
    wanted, gateway = configuration.endpoints, gateway_of(configuration)
    snat = gateway.snat_addresses
    ids = _ids(set(wanted), {endpoint.key: number for number, endpoint in have.endpoints.items()})
    gaps = _gaps(have, room)
    endpoints, problems = {}, []
    for key, member in wanted.items():
        way = ways[hop_of(configuration, key.address)]
        slots = slots_for(member.max_connections, len(snat))
        made = have.endpoints.get(ids[key])
        if made and slots > made.slots:
            problems.append(
                f"{key.address}:{key.port}/{key.protocol}: max_connections {member.max_connections} is more than its "
                f"table of {made.slots} slots carries (lower it, or remove the member and add it anew: its connections "
                "end)"
            )
        first = made.first if made else _take(gaps, slots)
        if first is None:
            problems.append(
                f"{key.address}:{key.port}/{key.protocol}: there is no room left for its table of {slots} slots "
                "(raise gateway.max_connections, `ipbackend unload` and run again; lower max_connections of members; "
                "or wait for those that drain)"
            )
        endpoints[ids[key]] = Endpoint(
            key,
            next_hop_ids[way.interface, way.address],
            first or 0,
            made.slots if made else slots,
            snat,
            member.max_connections if way.resolved else 0,
            half_open_limit(member.max_connections, gateway.half_open_percent),
        )
    if problems:
        raise ConfigurationError(*problems)
    return endpoints


def _departing(
    configuration: Configuration,
    ways: Mapping[HopKey, NextHop],
    next_hop_ids: Mapping[tuple[int, IPv4Address], int],
    have: Entries,
    leaving: frozenset[EndpointKey],
) -> Iterator[tuple[int, Endpoint]]:
    """Endpoints that are no member's any more; without a network, the next hop is the one that it was."""
    for number, made in have.endpoints.items():
        if made.key in leaving and made.key not in configuration.endpoints:
            next_hop = made.next_hop
            if configuration.find_network(made.key.address):
                way = ways[hop_of(configuration, made.key.address)]
                next_hop = next_hop_ids[way.interface, way.address]
            yield number, replace(made, next_hop=next_hop, ceiling=0)


def _gaps(have: Entries, end: int) -> list[tuple[int, int]]:
    """Runs of slots that are no endpoint's: first and length, in their order."""
    gaps, free = [], FIRST_SLOT
    for first, slots in sorted((endpoint.first, endpoint.slots) for endpoint in have.endpoints.values()):
        gaps.append((free, first - free))
        free = first + slots
    return [*gaps, (free, end - free)]


def _take(gaps: list[tuple[int, int]], slots: int) -> int | None:
    """The first slot of a run of so many, taken from the first gap that holds it; None if none does."""
    for index, (first, length) in enumerate(gaps):
        if length >= slots:
            gaps[index] = (first + slots, length - slots)
            return first
    return None


def weigh(configuration: Configuration, have: Entries, shares: Mapping[str, int], members: Collection[str]) -> Entries:
    """What `have` becomes with other `shares` of these members, by id; it is of this configuration."""
    pool_ids = _pool_ids(configuration, _listener_keys(configuration), have)
    touched = {
        number: _pool(configuration.pools[pool], have.endpoint_ids, shares)
        for pool, number in pool_ids.items()
        if any(member.id in members for member in configuration.pools[pool].members)
    }
    return replace(have, pools={**have.pools, **touched})


def serving(configuration: Configuration, have: Entries) -> set[str]:
    """Ids of the members that get new connections by what is there, through a pool that a listener points to."""
    found = set()
    for pool, number in _pool_ids(configuration, _listener_keys(configuration), have).items():
        endpoints = set(have.pools[number].members) if number in have.pools else set()
        for member in configuration.pools[pool].members:
            key = EndpointKey(member.address, member.port, configuration.pools[pool].protocol)
            if have.endpoint_ids.get(key) in endpoints:
                found.add(member.id)
    return found


def _pool(pool: WantedPool, endpoint_ids: Mapping[EndpointKey, int], shares: Mapping[str, int]) -> Pool:
    weights = _weights(pool.members, shares)
    by_id = sorted(
        (endpoint_ids[EndpointKey(member.address, member.port, pool.protocol)], weight, str(member))
        for member, weight in zip(pool.members, weights, strict=True)
        if weight
    )
    persistence = 60 * (pool.persistence or 0)
    if not by_id:
        return Pool(algorithm=pool.algorithm, persistence=persistence)
    endpoints, chosen, names = zip(*by_id, strict=True)
    divisor = gcd(*chosen)
    chosen = tuple(weight // divisor for weight in chosen)  # only ratios count: the same ones change nothing
    return Pool(endpoints, chosen, schedule(pool.algorithm, names, chosen), pool.algorithm, persistence)


def _weights(members: Iterable[Member], shares: Mapping[str, int]) -> list[int]:
    """What members get new connections by: in tenths if one gets a part of its own, so that all are whole."""
    both = [(member.weight, shares.get(member.id, WHOLE)) for member in members]
    unit = WHOLE if all(share in (0, WHOLE) for _, share in both) else 1
    return [weight * share // unit for weight, share in both]


class _List(NamedTuple):
    """What makes two listeners share an access list."""

    access: Access
    groups: frozenset[str]

    def cidrs(self, configuration: Configuration) -> set[IPv4Network]:
        return {entry.cidr for group in self.groups for entry in configuration.ip_groups[group].entries}


def _list(configuration: Configuration, listener: WantedListener) -> _List | None:
    if not listener.access_enabled or not listener.ip_groups:
        return None
    return _List(listener.access, frozenset(listener.ip_groups))


def _list_ids(
    lists: Mapping[str, _List | None], listener_keys: Mapping[str, ListenerKey], have: Entries
) -> dict[_List, int]:
    """A list keeps the id of the one before it, which is changed in place, if all listeners of that one want it.

    Else it gets another, and is filled before a listener points to it: no one is served by a list that is not its.
    """
    heirs: defaultdict[int, set[_List | None]] = defaultdict(set)
    for listener, want in lists.items():
        there = have.listeners.get(listener_keys[listener])
        if there and there.list != NO_LIST:
            heirs[there.list].add(want if want and want.access is there.access else None)
    known: dict[_List, int] = {}
    for number, wanted in sorted(heirs.items()):
        heir = wanted.pop()
        if heir and not wanted:
            known.setdefault(heir, number)
    used = {one for one in lists.values() if one}
    return _ids(used, known, taken={key.list for key in have.access} | set(heirs))


def _listener_keys(configuration: Configuration) -> dict[str, ListenerKey]:
    return {
        one.id: ListenerKey(configuration.load_balancers[one.load_balancer].vip, one.port, one.protocol)
        for one in configuration.listeners.values()
    }


def _hop_ids(have: Entries) -> dict[tuple[int, IPv4Address], int]:
    return {(hop.interface, hop.address): number for number, hop in have.next_hops.items()}


def _pool_ids(configuration: Configuration, listener_keys: Mapping[str, ListenerKey], have: Entries) -> dict[str, int]:
    """The kernel knows pools by numbers of its own: a pool keeps the one that one of its listeners points to."""
    known: dict[str, int] = {}
    for listener in configuration.listeners.values():
        there = have.listeners.get(listener_keys[listener.id])
        if listener.pool and there and there.pool not in (NO_POOL, *known.values()):
            known.setdefault(listener.pool, there.pool)
    used = {listener.pool for listener in configuration.listeners.values() if listener.pool}
    return _ids(used, known, taken=have.pools)


def _ids(wanted: Iterable[Key], known: Mapping[Key, int], taken: Iterable[int] = ()) -> dict[Key, int]:
    """An id for each wanted key: the one it has, or the lowest that no one has. Ids start at 1."""
    ids = {key: known[key] for key in wanted if key in known}
    free = _free_ids({*known.values(), *taken})
    return ids | {key: next(free) for key in sorted(set(wanted) - set(ids), key=str)}


def _free_ids(taken: set[int]) -> Iterator[int]:
    number = 1
    while True:
        if number not in taken:
            yield number
        number += 1


def diff(have: Entries, want: Entries) -> list[Step]:
    """The steps from `have` to `want`, in an order in which every packet between two steps finds its way."""
    unlisted, lists = _deletes("access", have.access, want.access), {one.list for one in want.listeners.values()}
    left = [step for step in unlisted if step.key.list not in lists]
    steps = [
        *_sets("links", have.links, want.links),
        *_sets("next_hops", have.next_hops, want.next_hops),
        *_sets("endpoints", have.endpoints, want.endpoints),
        *_sets("endpoint_ids", have.endpoint_ids, want.endpoint_ids),
        *_sets("pools", have.pools, want.pools),
        *_sets("addresses", have.addresses, want.addresses),
        *_sets("access", have.access, want.access),
        *(step for step in unlisted if step.key.list in lists),
        *_sets("listeners", have.listeners, want.listeners),
    ]
    removals = [
        *_deletes("listeners", have.listeners, want.listeners),
        *_deletes("addresses", have.addresses, want.addresses),
        *_deletes("pools", have.pools, want.pools),
    ]
    gone = set(have.endpoints) - set(want.endpoints)  # their slots may be others' as of the next plan
    closed = [
        Step(Action.SET, "endpoints", number, replace(have.endpoints[number], ceiling=0)) for number in sorted(gone)
    ]
    ends = [Step(Action.END, "endpoints", number, have.endpoints[number]) for number in sorted(gone)]
    ends += [Step(Action.END, step.table, step.key, step.value) for step in removals if step.table == "listeners"]
    steps += removals + closed
    if ends or left:
        steps += [Step(Action.WAIT, "pools", 0), *left, *ends]
    return [
        *steps,
        *_deletes("endpoint_ids", have.endpoint_ids, want.endpoint_ids),
        *_deletes("endpoints", have.endpoints, want.endpoints),
        *([Step(Action.WAIT, "pools", 0)] if ends else []),
        *_deletes("next_hops", have.next_hops, want.next_hops),
        *_deletes("links", have.links, want.links),
    ]


def _sets(table: str, have: Mapping[Key, object], want: Mapping[Key, object]) -> list[Step]:
    return [Step(Action.SET, table, key, value) for key, value in want.items() if have.get(key) != value]


def _deletes(table: str, have: Mapping[Key, object], want: Mapping[Key, object]) -> list[Step]:
    return [Step(Action.DELETE, table, key, have[key]) for key in have if key not in want]
