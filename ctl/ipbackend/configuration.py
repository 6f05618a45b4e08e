"""All that is wanted together: what must fit between objects, and what may not change into what.

It knows no files, maps or requests; whoever changes something makes another `Configuration`.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv4Address
from itertools import combinations, count, product
from typing import Any

from ipbackend.errors import ConfigurationError, Kind, Problem, suggestion
from ipbackend.model import (
    GATEWAY_CONNECTIONS_MAX,
    Check,
    EndpointKey,
    Gateway,
    HealthMonitor,
    IpGroup,
    Listener,
    LoadBalancer,
    Member,
    Network,
    Pool,
    Protocol,
    Resource,
    place,
)
from ipbackend.rules import Reference, metadata
from ipbackend.sizing import CEILING_PER_SNAT, snat_addresses_for

# What the data plane's maps hold (MAX_… of abi.h; id 0 means none).
LIMITS = {
    "addresses of load balancers and SNAT": 8_192,
    "listeners": 16_383,
    "pools": 16_383,
    "endpoints behind pools": 32_767,
}
# Every kind of resource under the name of its field below; what is referred to comes first.
SECTIONS: dict[str, type[Resource]] = {
    "networks": Network,
    "load_balancers": LoadBalancer,
    "ip_groups": IpGroup,
    "pools": Pool,
    "health_monitors": HealthMonitor,
    "listeners": Listener,
}


@dataclass(frozen=True)
class Draft:
    """Objects that are each valid by themselves, before they are held against each other; by id, in order.

    `unreadable` are the places of objects that were asked for and could not be made (`pools.web`, `networks`,
    `pools.web.members[2]`): they are missing here, and what follows only from that is no conflict.
    """

    gateway: Gateway | None = None
    networks: Mapping[str, Network] = field(default_factory=dict)
    load_balancers: Mapping[str, LoadBalancer] = field(default_factory=dict)
    listeners: Mapping[str, Listener] = field(default_factory=dict)
    pools: Mapping[str, Pool] = field(default_factory=dict)
    health_monitors: Mapping[str, HealthMonitor] = field(default_factory=dict)
    ip_groups: Mapping[str, IpGroup] = field(default_factory=dict)
    unreadable: Collection[str] = ()

    def sections(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Every kind of resource."""
        return ((section, getattr(self, section)) for section in SECTIONS)

    def conflicts(self) -> list[str]:
        """Everything that does not fit together."""
        if self.gateway is None:
            there = [section for section, resources in self.sections() if resources]
            return [f"gateway: is missing (set its interfaces and SNAT addresses before {there[0]})"] if there else []
        rules = (
            self._interfaces,
            self._vips,
            self._next_hops,
            self._overlaps,
            self._quotas,
            self._references,
            self._listeners,
            self._monitors,
            self._members,
            self._ceilings,
        )
        return [problem for rule in rules for problem in rule(self.gateway)]

    @cached_property
    def find_network(self) -> Callable[[IPv4Address], Network | None]:
        """Finds the network that an address lives in, if there is one, among CIDRs that do not overlap."""
        blocks = sorted(
            (int(cidr[0]), int(cidr[-1]), number) for number, net in self.networks.items() for cidr in net.cidrs
        )
        starts = [first for first, _, _ in blocks]

        def find(address: IPv4Address) -> Network | None:
            place = bisect_right(starts, int(address)) - 1
            return self.networks[blocks[place][2]] if place >= 0 and int(address) <= blocks[place][1] else None

        return find

    def _ours(self, gateway: Gateway) -> dict[IPv4Address, str]:
        """The gateway's own addresses, and where each is written first."""
        ours = _addresses_of(gateway)
        for balancer in self.load_balancers.values():
            ours.setdefault(balancer.vip, f"{where_is(balancer)}.vip")
        return ours

    def _placed(self) -> Iterator[tuple[str, Pool, Member]]:
        """Members with the places they were written at: the unreadable are missing, but were counted."""
        for pool in self.pools.values():
            places = (f"{where_is(pool)}.members[{i}]" for i in count())
            readable = (where for where in places if where not in self.unreadable)
            for member in pool.members:
                yield next(readable), pool, member

    def _interfaces(self, gateway: Gateway) -> Iterator[str]:
        used: list[Network | LoadBalancer] = [*self.networks.values(), *self.load_balancers.values()]
        for one in used:
            if one.interface not in gateway.interfaces:
                known = suggestion(one.interface, gateway.interfaces)
                yield f"{where_is(one)}.interface: {one.interface!r} is not one of gateway.interfaces ({known})"

    def _vips(self, gateway: Gateway) -> Iterator[str]:
        taken = _addresses_of(gateway)
        for balancer in self.load_balancers.values():
            where, vip = f"{where_is(balancer)}.vip", balancer.vip
            if vip in taken:
                what = f"{where}: {vip} is already {taken[vip]} (take an address nothing else uses)"
                yield Problem(what, Kind.TAKEN)
            taken.setdefault(vip, where)

    def _next_hops(self, gateway: Gateway) -> Iterator[str]:
        ours = self._ours(gateway)
        cidrs = [cidr for network in self.networks.values() for cidr in network.cidrs if cidr.prefixlen < 31]
        ends = {end: cidr for cidr in cidrs for end in (cidr.network_address, cidr.broadcast_address)}
        for network in self.networks.values():
            where, hop = f"{where_is(network)}.next_hop", network.next_hop
            if hop and hop in ours:
                yield f"{where}: {hop} is the gateway's own, {ours[hop]} (write the router's address)"
            if hop and hop in ends:
                yield f"{where}: {hop} is no host, but an end of {ends[hop]} (write the router's address)"

    def _overlaps(self, _: Gateway) -> Iterator[str]:
        for network, other in combinations(self.networks.values(), 2):
            for cidr, other_cidr in product(network.cidrs, other.cidrs):
                if cidr.overlaps(other_cidr):
                    what = f"{where_is(other)}.cidrs: {other_cidr} overlaps {cidr} of {where_is(network)}"
                    yield Problem(f"{what} (an address lives in one network: narrow one of them)", Kind.TAKEN)

    def _quotas(self, gateway: Gateway) -> Iterator[str]:
        endpoints = {_endpoint(pool, member) for _, pool, member in self._placed()}
        counts = {
            "addresses of load balancers and SNAT": len(self.load_balancers) + len(gateway.snat_addresses),
            "listeners": len(self.listeners),
            "pools": len(self.pools),
            "endpoints behind pools": len(endpoints),
        }
        for what, there in counts.items():
            if there > LIMITS[what]:
                yield Problem(f"{what}: {there} are too many (at most {LIMITS[what]})", Kind.QUOTA)

    def _references(self, _: Gateway) -> Iterator[str]:
        for section, resources in self.sections():
            for name, reference in references(SECTIONS[section]).items():
                known = getattr(self, reference.section)
                for one in resources.values():
                    for wanted in reference.ids(getattr(one, name)):
                        if wanted not in known and not self.unreadable:
                            what = f"{where_is(one)}.{name}: there is no {wanted!r} among {reference.section}"
                            yield Problem(f"{what} (write the id of one that is there)", Kind.MISSING)

    def _listeners(self, _: Gateway) -> Iterator[str]:
        taken: dict[tuple[str, Protocol, int], str] = {}
        for pool in self.pools.values():
            balancer = self.load_balancers.get(pool.load_balancer or "")
            if pool.members and balancer and not balancer.ip_target_enable:
                what = f"{where_is(balancer)}.ip_target_enable is false (set it to true)"
                yield Problem(f"{where_is(pool)}.members: its load balancer takes none, {what}", Kind.IP_TARGET_OFF)
        for listener in self.listeners.values():
            where, protocol, at = where_is(listener), listener.protocol, listener.port
            first = taken.get((listener.load_balancer, protocol, at))
            if first:
                yield Problem(f"{where}: {protocol} {at} is already {first} (take another port)", Kind.TAKEN)
            taken.setdefault((listener.load_balancer, protocol, at), where)
            used, balancer = self.pools.get(listener.pool or ""), self.load_balancers.get(listener.load_balancer)
            if not used:
                continue
            there = where_is(used)
            if used.protocol is not protocol:
                yield f"{where}.protocol: {protocol} is not {used.protocol} of {there} (use another pool)"
            if used.members and balancer and not balancer.ip_target_enable:
                what = f"{where_is(balancer)}.ip_target_enable is false (set it to true)"
                yield Problem(f"{there}.members: {where} takes no IP members, {what}", Kind.IP_TARGET_OFF)

    def _monitors(self, _: Gateway) -> Iterator[str]:
        taken: dict[str, str] = {}
        for monitor in self.health_monitors.values():
            pool = self.pools.get(monitor.pool)
            if pool is None:
                continue
            where, first = f"{where_is(pool)}.health_monitor", taken.setdefault(pool.id, monitor.id)
            if first != monitor.id:
                yield Problem(f"{where}: there is one already, {first} (change that one)", Kind.TAKEN)
            if (monitor.type is Check.UDP_CONNECT) is not (pool.protocol is Protocol.UDP):
                fits = "UDP_CONNECT" if pool.protocol is Protocol.UDP else "TCP, HTTP or HTTPS"
                yield f"{where}.type: {monitor.type} does not fit the pool, {pool.protocol} (write {fits})"

    def _members(self, gateway: Gateway) -> Iterator[str]:
        ours = self._ours(gateway)
        all_networks = not any(where.split(".")[0] == "networks" for where in self.unreadable)
        ranges = gateway.private_ranges
        private = [(int(block[0]), int(block[-1])) for block in ranges]
        taken: dict[tuple[str, EndpointKey], str] = {}
        for where, pool, member in self._placed():
            address = member.address
            if not any(first <= int(address) <= last for first, last in private):
                yield f"{where}: {address} is not a private IPv4 address ({listed(ranges)})"
            elif all_networks and self.find_network(address) is None:
                yield f"{where}: {address} is in no network (add its CIDR to one of networks)"
            if address in ours:
                yield f"{where}: {address} is the gateway's own, {ours[address]} (write the member's address)"
            first = taken.setdefault((pool.id, _endpoint(pool, member)), where)
            if first != where:
                what = f"{where}: {member} is already {first} (keep one: weight gives a larger share)"
                yield Problem(what, Kind.TAKEN)

    def _ceilings(self, gateway: Gateway) -> Iterator[str]:
        carried = len(gateway.snat_addresses) * CEILING_PER_SNAT
        first: dict[EndpointKey, tuple[str, int]] = {}
        for where, pool, member in self._placed():
            ceiling = member.max_connections
            if ceiling > carried:
                what = f"{where}.max_connections: {ceiling} is over what gateway.snat_addresses carry, {carried}"
                remedy = f"use {snat_addresses_for(ceiling)} of them, or lower it to {carried}"
                yield Problem(f"{what} ({remedy})", Kind.ADDRESSES)
            there, same = first.setdefault(_endpoint(pool, member), (where, ceiling))
            if same != ceiling:
                yield (
                    f"{where}.max_connections: {ceiling}, but {there} is {member} as well and says {same} "
                    "(one endpoint has one ceiling: write the same)"
                )
        limit, total = gateway.max_connections, sum(ceiling for _, ceiling in first.values())
        if total > limit:
            raised = f"raise it to {total}, or " if total <= GATEWAY_CONNECTIONS_MAX else ""
            what = f"gateway.max_connections: {limit} is less than {total}, the sum of the ceilings of "
            yield Problem(f"{what}{len(first)} endpoints ({raised}lower max_connections of members)", Kind.QUOTA)


@dataclass(frozen=True)
class Configuration(Draft):
    """A draft without conflicts: ConfigurationError, with all of them, otherwise. Its mappings are not to be changed.

    Without a gateway there is nothing else: it waits to be told its interfaces.
    """

    def __post_init__(self) -> None:
        if problems := self.conflicts():
            raise ConfigurationError(*problems)

    def network_of(self, address: IPv4Address) -> Network:
        """The network `address` lives in; LookupError if it is in none, which no member is."""
        network = self.find_network(address)
        if network is None:
            raise LookupError(f"{address} is in no network")
        return network

    @cached_property
    def endpoints(self) -> Mapping[EndpointKey, Member]:
        """Every endpoint behind the pools, and a member that is it: its `max_connections` is the ceiling.

        Pools agree on the ceiling; they need not agree on the weight, which is the first pool's here.
        """
        found: dict[EndpointKey, Member] = {}
        for pool in self.pools.values():
            for member in pool.members:
                found.setdefault(_endpoint(pool, member), member)
        return found


def references(kind: type[Resource]) -> Mapping[str, Reference]:
    """The fields of a kind of resource that hold the id of another."""
    hints = kind.hints.items()
    return {name: mark for name, hint in hints for mark in metadata(hint) if isinstance(mark, Reference)}


def where_is(resource: Any) -> str:
    """The place of a resource in a configuration, by its name if it has one: `pools.web`."""
    section = next(section for section, kind in SECTIONS.items() if isinstance(resource, kind))
    return place(section, resource.name or resource.id)


def _addresses_of(gateway: Gateway) -> dict[IPv4Address, str]:
    """What is the gateway's own whatever load balancers there are, and where each is written."""
    ours = {snat: f"gateway.snat_addresses[{i}]" for i, snat in enumerate(gateway.snat_addresses)}
    return {**ours, **({gateway.health_address: "gateway.health_address"} if gateway.health_address else {})}


def _endpoint(pool: Pool, member: Member) -> EndpointKey:
    return EndpointKey(member.address, member.port, pool.protocol)


def check_transition(have: Configuration, want: Configuration) -> None:
    """Raise ConfigurationError, with all problems, if `have`, which is in force, cannot become `want`."""
    problems = list(_fixed(have, want))
    for section, resources in have.sections():
        for number, before in resources.items():
            after = getattr(want, section).get(number)
            if after is None or after is before:
                continue
            if isinstance(before, Pool) and before.load_balancer not in want.load_balancers:
                before = replace(before, load_balancer=None)  # it outlives the one it was made for
            problems += forbidden(where_is(before), before, after)
            if isinstance(before, Pool):
                kept = {member.id: member for member in after.members}
                for member in before.members:
                    if member.id in kept:
                        problems += forbidden(f"{where_is(before)}.members[{member}]", member, kept[member.id])
    if problems:
        raise ConfigurationError(*problems)


def _fixed(have: Configuration, want: Configuration) -> Iterator[str]:
    if not have.gateway or not want.gateway or not have.endpoints or not want.endpoints:
        return
    for name in Gateway.FIXED:
        before, after = getattr(have.gateway, name), getattr(want.gateway, name)
        if before != after:
            yield Problem(
                f"gateway.{name}: cannot change from {listed(before)} to {listed(after)} while there are members: "
                "their tables are made for it (take all members out first: their connections end)",
                Kind.IN_USE,
            )


def forbidden(where: str, before: Resource, after: Resource) -> Iterator[str]:
    """What of a resource may not change so, whatever else there is."""
    for name in before.IMMUTABLE:
        if getattr(before, name) != getattr(after, name):
            change = f"from {getattr(before, name)} to {getattr(after, name)}"
            yield f"{where}.{name}: cannot change {change} (make another one, and delete this)"
    if isinstance(before, LoadBalancer) and before.ip_target_enable and not getattr(after, "ip_target_enable", None):
        remedy = "it is only ever switched on: leave it true"
        yield f"{where}.ip_target_enable: cannot change from true to false ({remedy})"


def listed(value: object) -> str:
    """A value, or several with commas."""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
