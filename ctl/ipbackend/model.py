"""What the user asked for, checked. Nothing here knows files, maps or the kernel.

Every object is valid by itself or is not made; a `Configuration` is also valid between its objects. Whatever
is refused is a ConfigurationError with all its problems, each `where: what (remedy)`.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations, count, product
from typing import Annotated, NamedTuple

from ipbackend.errors import ConfigurationError, suggestion
from ipbackend.rules import (
    Checked,
    disjoint,
    each,
    is_interface,
    is_name,
    is_narrow_unicast,
    is_unicast,
    not_empty,
    snat_count,
    unique,
    within,
)
from ipbackend.sizing import CEILING_MAX, CEILING_PER_SNAT, snat_addresses_for

MEMBERS_MAX = 512
GATEWAY_CONNECTIONS_MAX = 16_000_000
VXLAN_PORT = 4789
RFC_1918 = (IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"), IPv4Network("192.168.0.0/16"))


class Protocol(StrEnum):
    """What is balanced."""

    TCP = "TCP"
    UDP = "UDP"


class Algorithm(StrEnum):
    """How a pool chooses among its members."""

    ROUND_ROBIN = "ROUND_ROBIN"


class NetworkKind(StrEnum):
    """How a network is reached; `local` is on the link, the others lie behind a next hop."""

    LOCAL = "local"
    PEERING = "peering"
    DIRECT_CONNECT = "direct-connect"
    VPN = "vpn"


class AttachMode(StrEnum):
    """How XDP is attached; `auto` is native where the driver can."""

    AUTO = "auto"
    NATIVE = "native"
    GENERIC = "generic"


def place(within: str, name: str) -> str:
    """Where a thing stands, written as TOML would: `pools.web`, `pools.'my.web'`, `gateway`."""
    key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else repr(name)
    return f"{within}.{key}" if within else key


Name = Annotated[str, is_name]
Port = Annotated[int, within(1, 65_535)]
Seconds = Annotated[int, within(1, 3_600)]


@dataclass(frozen=True)
class Gateway(Checked):
    """This machine: where XDP is attached, what it uses as a source, and what it is sized for."""

    interfaces: Annotated[tuple[str, ...], not_empty, unique, each(is_interface)]
    snat_addresses: Annotated[tuple[IPv4Address, ...], snat_count, unique, each(is_unicast)]
    snat_interface: str = ""  # has the SNAT addresses; the last of the interfaces unless named
    max_connections: Annotated[int, within(1_000, GATEWAY_CONNECTIONS_MAX)] = 1_000_000
    attach_mode: AttachMode = AttachMode.AUTO
    syn_sent_timeout: Seconds = 5  # a SYN unanswered
    syn_received_timeout: Seconds = 15  # a SYN-ACK unanswered
    closing_timeout: Seconds = 15  # one side's FIN, then silence
    rest: Seconds = 60  # a closed slot answers late packets for so long, unless it is reused
    half_open_percent: Annotated[int, within(1, 100)] = 10  # of a ceiling, for handshakes
    icmp_error_rate: Annotated[int, within(1, 1_000_000)] = 1_000  # a second, that each CPU sends of its own
    private_ranges: Annotated[tuple[IPv4Network, ...], not_empty] = RFC_1918

    def __post_init__(self) -> None:
        if not self.snat_interface and self.interfaces:
            object.__setattr__(self, "snat_interface", self.interfaces[-1])
        super().__post_init__()

    def _conflict(self) -> Iterator[str]:
        if self.snat_interface not in self.interfaces:
            known = suggestion(self.snat_interface, self.interfaces)
            yield f"snat_interface: {self.snat_interface!r} is not one of gateway.interfaces ({known})"


@dataclass(frozen=True)
class Network(Checked):
    """Where members live and how they are reached."""

    name: Name
    kind: NetworkKind
    cidrs: Annotated[tuple[IPv4Network, ...], not_empty, disjoint, each(is_narrow_unicast)]
    interface: str
    next_hop: Annotated[IPv4Address | None, is_unicast] = None  # None is on the link

    def _conflict(self) -> Iterator[str]:
        if self.kind is NetworkKind.LOCAL and self.next_hop:
            yield f"next_hop: {self.next_hop} leads nowhere: kind local is on the link (leave it out)"
        if self.kind is not NetworkKind.LOCAL and not self.next_hop:
            yield f"next_hop: is missing: kind {self.kind} needs a router (write its address)"


@dataclass(frozen=True)
class LoadBalancer(Checked):
    """The owner of a VIP, which lives on `interface`."""

    name: Name
    vip: Annotated[IPv4Address, is_unicast]
    interface: str
    ip_target_enable: bool = False


@dataclass(frozen=True)
class Listener(Checked):
    """A port of a load balancer's VIP, and the pool that serves it."""

    name: Name
    load_balancer: str
    protocol: Protocol
    port: Port
    pool: str
    idle_timeout: Annotated[int, within(10, 4_000)] = 300  # seconds

    def _conflict(self) -> Iterator[str]:
        if self.protocol is Protocol.UDP and self.port == VXLAN_PORT:
            yield f"port: UDP {VXLAN_PORT} is kept for VXLAN (take another port)"


@dataclass(frozen=True)
class Member(Checked):
    """An address and a port that serve a pool; `max_connections` is the ceiling of the endpoint they are."""

    address: IPv4Address
    port: Port
    weight: Annotated[int, within(0, 100)] = 1
    max_connections: Annotated[int, within(1, CEILING_MAX)] = CEILING_MAX

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass(frozen=True)
class Pool(Checked):
    """Members and how one is chosen; with none, clients are refused at once."""

    name: Name
    protocol: Protocol
    algorithm: Algorithm = Algorithm.ROUND_ROBIN
    members: tuple[Member, ...] = ()

    def _conflict(self) -> Iterator[str]:
        if len(self.members) > MEMBERS_MAX:
            yield f"members: {len(self.members)} are too many (at most {MEMBERS_MAX}: split the pool)"


class EndpointKey(NamedTuple):
    """What a member is to the data plane, however many pools it serves."""

    address: IPv4Address
    port: int
    protocol: Protocol


@dataclass(frozen=True)
class Configuration:
    """All that is wanted, by name; the mappings are not to be changed."""

    gateway: Gateway
    networks: Mapping[str, Network]
    load_balancers: Mapping[str, LoadBalancer]
    listeners: Mapping[str, Listener]
    pools: Mapping[str, Pool]

    def __post_init__(self) -> None:
        draft = Draft(self.gateway, self.networks, self.load_balancers, self.listeners, self.pools)
        if problems := draft.conflicts():
            raise ConfigurationError(*problems)

    def network_of(self, address: IPv4Address) -> Network:
        """The network `address` lives in; LookupError if it is in none, which no member is."""
        network = _network_of(address, self.networks)
        if network is None:
            raise LookupError(f"{address} is in no network")
        return network

    def endpoints(self) -> dict[EndpointKey, Member]:
        """Every endpoint behind the pools, and a member that is it: its `max_connections` is the ceiling.

        Pools agree on the ceiling; they need not agree on the weight, which is the first pool's here.
        """
        found: dict[EndpointKey, Member] = {}
        for pool in self.pools.values():
            for member in pool.members:
                found.setdefault(_endpoint(pool, member), member)
        return found


def _endpoint(pool: Pool, member: Member) -> EndpointKey:
    return EndpointKey(member.address, member.port, pool.protocol)


def _network_of(address: IPv4Address, networks: Mapping[str, Network]) -> Network | None:
    return next((net for net in networks.values() if any(address in cidr for cidr in net.cidrs)), None)


# --- What must fit between objects.


@dataclass(frozen=True)
class Draft:
    """Objects that are each valid by themselves, before they are held against each other.

    `unreadable` are the places of objects that were asked for and could not be made (`pools.web`, `networks`,
    `pools.web.members[2]`): they are missing here, and what follows only from that is no conflict.
    """

    gateway: Gateway
    networks: Mapping[str, Network]
    load_balancers: Mapping[str, LoadBalancer]
    listeners: Mapping[str, Listener]
    pools: Mapping[str, Pool]
    unreadable: Collection[str] = ()

    def conflicts(self) -> list[str]:
        """Everything that does not fit together."""
        rules = (
            self._interfaces,
            self._vips,
            self._next_hops,
            self._overlaps,
            self._references,
            self._listeners,
            self._members,
            self._ceilings,
        )
        return [problem for rule in rules for problem in rule()]

    def _ours(self) -> dict[IPv4Address, str]:
        """The gateway's own addresses, and where each is written first."""
        ours = {snat: f"gateway.snat_addresses[{i}]" for i, snat in enumerate(self.gateway.snat_addresses)}
        for name, balancer in self.load_balancers.items():
            ours.setdefault(balancer.vip, f"{place('load_balancers', name)}.vip")
        return ours

    def _placed(self) -> Iterator[tuple[str, Pool, Member]]:
        """Members with the places they were written at: the unreadable are missing, but were counted."""
        for name, pool in self.pools.items():
            places = (f"{place('pools', name)}.members[{i}]" for i in count())
            readable = (where for where in places if where not in self.unreadable)
            for member in pool.members:
                yield next(readable), pool, member

    def _missing(self, section: str, name: str, known: Collection[str]) -> bool:
        return name not in known and not {section, place(section, name)} & set(self.unreadable)

    def _interfaces(self) -> Iterator[str]:
        used = {place("networks", name): network.interface for name, network in self.networks.items()}
        used |= {place("load_balancers", name): one.interface for name, one in self.load_balancers.items()}
        for where, interface in used.items():
            if interface not in self.gateway.interfaces:
                known = suggestion(interface, self.gateway.interfaces)
                yield f"{where}.interface: {interface!r} is not one of gateway.interfaces ({known})"

    def _vips(self) -> Iterator[str]:
        ours = self._ours()
        for name, balancer in self.load_balancers.items():
            where, first = f"{place('load_balancers', name)}.vip", ours[balancer.vip]
            if first != where:
                yield f"{where}: {balancer.vip} is already {first} (take an address nothing else uses)"

    def _next_hops(self) -> Iterator[str]:
        ours = self._ours()
        cidrs = [cidr for network in self.networks.values() for cidr in network.cidrs if cidr.prefixlen < 31]
        ends = {end: cidr for cidr in cidrs for end in (cidr.network_address, cidr.broadcast_address)}
        for name, network in self.networks.items():
            where, hop = f"{place('networks', name)}.next_hop", network.next_hop
            if hop and hop in ours:
                yield f"{where}: {hop} is the gateway's own, {ours[hop]} (write the router's address)"
            if hop and hop in ends:
                yield f"{where}: {hop} is no host, but an end of {ends[hop]} (write the router's address)"

    def _overlaps(self) -> Iterator[str]:
        for (name, network), (other_name, other) in combinations(self.networks.items(), 2):
            for cidr, other_cidr in product(network.cidrs, other.cidrs):
                if cidr.overlaps(other_cidr):
                    yield (
                        f"{place('networks', other_name)}.cidrs: {other_cidr} overlaps {cidr} of "
                        f"{place('networks', name)} (an address lives in one network: narrow one of them)"
                    )

    def _references(self) -> Iterator[str]:
        for name, listener in self.listeners.items():
            where, balancer, pool = place("listeners", name), listener.load_balancer, listener.pool
            if self._missing("load_balancers", balancer, self.load_balancers):
                known = suggestion(balancer, self.load_balancers)
                yield f"{where}.load_balancer: {balancer!r} is not one of load_balancers ({known})"
            if self._missing("pools", pool, self.pools):
                yield f"{where}.pool: {pool!r} is not one of pools ({suggestion(pool, self.pools)})"

    def _listeners(self) -> Iterator[str]:
        taken: dict[tuple[str, Protocol, int], str] = {}
        for name, listener in self.listeners.items():
            where, protocol = place("listeners", name), listener.protocol
            first = taken.setdefault((listener.load_balancer, protocol, listener.port), where)
            if first != where:
                yield f"{where}: {protocol} {listener.port} is already {first} (take another port)"
            pool, balancer = self.pools.get(listener.pool), self.load_balancers.get(listener.load_balancer)
            if not pool:
                continue
            there = place("pools", pool.name)
            if pool.protocol is not protocol:
                yield f"{where}.protocol: {protocol} is not {pool.protocol} of {there} (use another pool)"
            if pool.members and balancer and not balancer.ip_target_enable:
                switch = f"{place('load_balancers', balancer.name)}.ip_target_enable"
                yield f"{there}.members: {where} takes no IP members, {switch} is false (set it to true)"

    def _members(self) -> Iterator[str]:
        ours = self._ours()
        all_networks = not any(where.split(".")[0] == "networks" for where in self.unreadable)
        ranges = self.gateway.private_ranges
        taken: dict[tuple[str, EndpointKey], str] = {}
        for where, pool, member in self._placed():
            address = member.address
            if not any(address in block for block in ranges):
                yield f"{where}: {address} is not a private IPv4 address ({_listed(ranges)})"
            elif all_networks and _network_of(address, self.networks) is None:
                yield f"{where}: {address} is in no network (add its CIDR to one of networks)"
            if address in ours:
                yield f"{where}: {address} is the gateway's own, {ours[address]} (write the member's address)"
            first = taken.setdefault((pool.name, _endpoint(pool, member)), where)
            if first != where:
                yield f"{where}: {member} is already {first} (keep one: weight gives a larger share)"

    def _ceilings(self) -> Iterator[str]:
        carried = len(self.gateway.snat_addresses) * CEILING_PER_SNAT
        first: dict[EndpointKey, tuple[str, int]] = {}
        for where, pool, member in self._placed():
            ceiling = member.max_connections
            if ceiling > carried:
                yield (
                    f"{where}.max_connections: {ceiling} is over what gateway.snat_addresses carry, "
                    f"{carried} (use {snat_addresses_for(ceiling)} of them, or lower it to {carried})"
                )
            there, same = first.setdefault(_endpoint(pool, member), (where, ceiling))
            if same != ceiling:
                yield (
                    f"{where}.max_connections: {ceiling}, but {there} is {member} as well and says {same} "
                    "(one endpoint has one ceiling: write the same)"
                )
        limit, total = self.gateway.max_connections, sum(ceiling for _, ceiling in first.values())
        if total > limit:
            raised = f"raise it to {total}, or " if total <= GATEWAY_CONNECTIONS_MAX else ""
            yield (
                f"gateway.max_connections: {limit} is less than {total}, the sum of the ceilings of "
                f"{len(first)} endpoints ({raised}lower max_connections of members)"
            )


# --- What cannot change while running.


def check_transition(have: Configuration, want: Configuration) -> None:
    """Raise ConfigurationError, with all problems, if `have`, which is running, cannot become `want`."""
    problems = []
    for field in ("interfaces", "snat_addresses", "max_connections", "attach_mode"):
        before, after = getattr(have.gateway, field), getattr(want.gateway, field)
        if before != after:
            problems.append(
                f"gateway.{field}: cannot change from {_listed(before)} to {_listed(after)} while running "
                "(`ipbackend unload`, then run again; connections are lost then)"
            )
    for name, balancer in have.load_balancers.items():
        wanted = want.load_balancers.get(name)
        if wanted and balancer.ip_target_enable and not wanted.ip_target_enable:
            problems.append(
                f"{place('load_balancers', name)}.ip_target_enable: cannot change from true to false "
                "(it is only ever switched on: leave it true)"
            )
    if problems:
        raise ConfigurationError(*problems)


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
