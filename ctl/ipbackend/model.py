"""What is wanted of a gateway: its resources, each valid by itself. Nothing here knows files, maps or the kernel.

The shapes, ranges and defaults are those of the Elastic Load Balance API v3 where they mean something on a
gateway; networks, the gateway itself and `max_connections` are ours. An object that would be wrong is not made:
ConfigurationError with all its problems, each `where: what (remedy)`. What must fit between objects is
configuration.py's.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, ClassVar, NamedTuple
from uuid import uuid4

from ipbackend.errors import Kind, Problem, suggestion
from ipbackend.rules import (
    Checked,
    Reference,
    at_most,
    disjoint,
    each,
    is_domain,
    is_interface,
    is_narrow_unicast,
    is_text,
    is_unicast,
    is_url_path,
    lists_codes,
    not_empty,
    snat_count,
    unique,
    within,
)
from ipbackend.sizing import CEILING_MAX

MEMBERS_MAX = 500  # of a pool, as published; the data plane has room for 512
GROUP_MAX = 10_000  # entries of an ip group
GROUPS_MAX = 50  # ip groups of a listener, as published
GATEWAY_CONNECTIONS_MAX = 16_000_000
VXLAN_PORT = 4789
RFC_1918 = (IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"), IPv4Network("192.168.0.0/16"))


class Protocol(StrEnum):
    """What is balanced."""

    TCP = "TCP"
    UDP = "UDP"


class Algorithm(StrEnum):
    """How a pool chooses among its members."""

    ROUND_ROBIN = "ROUND_ROBIN"  # by weight, in turn
    LEAST_CONNECTIONS = "LEAST_CONNECTIONS"  # the fewest open connections for its weight
    SOURCE_IP = "SOURCE_IP"  # by the client's address (Maglev)
    SOURCE_IP_PORT = "SOURCE_IP_PORT"  # by both addresses and ports (Maglev): the same on every gateway


BY_SOURCE = (Algorithm.SOURCE_IP, Algorithm.SOURCE_IP_PORT)


class Access(StrEnum):
    """What the ip groups of a listener are: the clients that it serves, or those that it does not."""

    ALLOW = "allow"
    DENY = "deny"


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


class FlowLog(StrEnum):
    """Where it is kept which connections there were."""

    OFF = "off"
    STORE = "store"
    JSON = "json"
    JOURNALD = "journald"


class Check(StrEnum):
    """How a health monitor asks a member."""

    TCP = "TCP"
    UDP_CONNECT = "UDP_CONNECT"
    HTTP = "HTTP"
    HTTPS = "HTTPS"


class HttpMethod(StrEnum):
    """What a health monitor asks by HTTP with."""

    GET = "GET"
    HEAD = "HEAD"
    POST = "POST"


def place(within: str, name: str) -> str:
    """Where a thing stands, written as TOML would: `pools.web`, `pools.'my.web'`, `gateway`."""
    key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else repr(name)
    return f"{within}.{key}" if within else key


Text = Annotated[str, is_text, at_most(255)]
Port = Annotated[int, within(1, 65_535)]
Seconds = Annotated[int, within(1, 3_600)]


@dataclass(frozen=True)
class Gateway(Checked):
    """This machine: where XDP is attached, what it uses as a source, and what it is sized for."""

    interfaces: Annotated[tuple[str, ...], not_empty, unique, each(is_interface)]
    snat_addresses: Annotated[tuple[IPv4Address, ...], snat_count, unique, each(is_unicast)]
    snat_interface: str = ""  # has the SNAT addresses; the last of the interfaces unless named
    health_address: Annotated[IPv4Address | None, is_unicast] = None  # probes' source; the kernel's choice unless set
    max_connections: Annotated[int, within(1_000, GATEWAY_CONNECTIONS_MAX)] = 1_000_000
    attach_mode: AttachMode = AttachMode.AUTO
    syn_sent_timeout: Seconds = 5  # a SYN unanswered
    syn_received_timeout: Seconds = 15  # a SYN-ACK unanswered
    closing_timeout: Seconds = 15  # one side's FIN, then silence
    rest: Seconds = 60  # a closed slot answers late packets for so long, unless it is reused
    half_open_percent: Annotated[int, within(1, 100)] = 10  # of a ceiling, for handshakes
    icmp_error_rate: Annotated[int, within(1, 1_000_000)] = 1_000  # a second, that each CPU sends of its own
    private_ranges: Annotated[tuple[IPv4Network, ...], not_empty] = RFC_1918
    flow_log: FlowLog = FlowLog.OFF
    flow_log_counts: bool = True  # packets and bytes of each connection, which every packet pays for
    flow_log_days: Annotated[int, within(1, 3_650)] = 30  # that it is kept, and at most so large
    flow_log_megabytes: Annotated[int, within(200, 10_000_000)] = 10_000

    # What the tables are made for: changes only while there are no members, hence no connections.
    FIXED: ClassVar[tuple[str, ...]] = ("snat_addresses", "max_connections", "attach_mode")

    def __post_init__(self) -> None:
        if not self.snat_interface and self.interfaces:
            object.__setattr__(self, "snat_interface", self.interfaces[-1])
        super().__post_init__()

    @property
    def counts_connections(self) -> bool:
        """Whether the packets and bytes of each connection are counted."""
        return self.flow_log_counts and self.flow_log is not FlowLog.OFF

    def _conflict(self) -> Iterator[str]:
        if self.snat_interface not in self.interfaces:
            known = suggestion(self.snat_interface, self.interfaces)
            yield f"snat_interface: {self.snat_interface!r} is not one of gateway.interfaces ({known})"
        if self.health_address in self.snat_addresses:
            what = f"health_address: {self.health_address} is one of snat_addresses, which never reach the kernel"
            yield f"{what} (take an address nothing else uses)"


@dataclass(frozen=True)
class Resource(Checked):
    """Whatever has an id, which never changes, and a name, which is free. `IMMUTABLE` are fields that stay as made."""

    id: str = field(kw_only=True, default_factory=lambda: str(uuid4()))

    IMMUTABLE: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Network(Resource):
    """Where members live and how they are reached."""

    name: Text
    kind: NetworkKind
    cidrs: Annotated[tuple[IPv4Network, ...], not_empty, disjoint, each(is_narrow_unicast)]
    interface: str
    next_hop: Annotated[IPv4Address | None, is_unicast] = None  # None is on the link
    description: Text = ""

    def _conflict(self) -> Iterator[str]:
        if self.kind is NetworkKind.LOCAL and self.next_hop:
            yield f"next_hop: {self.next_hop} leads nowhere: kind local is on the link (leave it out)"
        if self.kind is not NetworkKind.LOCAL and not self.next_hop:
            yield f"next_hop: is missing: kind {self.kind} needs a router (write its address)"


@dataclass(frozen=True)
class LoadBalancer(Resource):
    """The owner of a VIP, which lives on `interface`."""

    name: Text
    vip: Annotated[IPv4Address, is_unicast]
    interface: str
    ip_target_enable: bool = False
    deletion_protection_enable: bool = False
    description: Text = ""


@dataclass(frozen=True)
class Listener(Resource):
    """A port of a load balancer's VIP, and the pool that serves it; without one, clients are refused at once."""

    name: Text
    load_balancer: Annotated[str, Reference("load_balancers")]
    protocol: Protocol
    port: Port
    pool: Annotated[str | None, Reference("pools")] = None
    idle_timeout: Annotated[int, within(10, 4_000)] = 300  # seconds
    max_connections: Annotated[int, within(0, GATEWAY_CONNECTIONS_MAX)] = 0  # at the same time; 0 is unlimited
    cps: Annotated[int, within(0, 1_000_000)] = 0  # new connections a second; 0 is unlimited
    source_cps: Annotated[int, within(0, 1_000_000)] = 0  # the same for each client address
    ip_groups: Annotated[tuple[str, ...], unique, Reference("ip_groups")] = ()  # none: no access control
    access: Access = Access.ALLOW
    access_enabled: bool = True
    description: Text = ""

    IMMUTABLE = ("load_balancer", "protocol", "port")

    def _conflict(self) -> Iterator[str]:
        if self.protocol is Protocol.UDP and self.port == VXLAN_PORT:
            yield f"port: UDP {VXLAN_PORT} is kept for VXLAN (take another port)"
        if len(self.ip_groups) > GROUPS_MAX:
            what = f"ip_groups: {len(self.ip_groups)} are too many (at most {GROUPS_MAX}: put entries into one group)"
            yield Problem(what, Kind.QUOTA)
        if not self.ip_groups and (self.access is not Access.ALLOW or not self.access_enabled):
            which = "access" if self.access is not Access.ALLOW else "access_enabled"
            yield f"{which}: there are no ip_groups that it could be about (name some, or leave it out)"


@dataclass(frozen=True)
class Member(Resource):
    """An address and a port that serve a pool; `max_connections` is the ceiling of the endpoint they are."""

    address: IPv4Address
    port: Port
    weight: Annotated[int, within(0, 100)] = 1
    max_connections: Annotated[int, within(1, CEILING_MAX)] = CEILING_MAX
    name: Text = ""

    IMMUTABLE = ("address",)

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass(frozen=True)
class Pool(Resource):
    """Members and how one is chosen; with none, clients are refused at once."""

    name: Text
    protocol: Protocol
    algorithm: Algorithm = Algorithm.ROUND_ROBIN
    members: tuple[Member, ...] = ()
    load_balancer: Annotated[str | None, Reference("load_balancers")] = None  # whose it is, beside its listeners'
    persistence: Annotated[int | None, within(1, 60)] = None  # minutes that a client address stays with its member
    slow_start: Annotated[int | None, within(30, 1_200)] = None  # seconds in which one that came up gets its share
    connection_drain: Annotated[int | None, within(10, 4_000)] = None  # seconds that connections of one gone live on
    minimum_healthy: Annotated[int, within(0, 1)] = 0  # 1: with all members down, all get connections
    member_deletion_protection_enable: bool = False
    description: Text = ""

    IMMUTABLE = ("protocol", "load_balancer")

    def _conflict(self) -> Iterator[str]:
        if len(self.members) > MEMBERS_MAX:
            what = f"members: {len(self.members)} are too many (at most {MEMBERS_MAX}: split the pool)"
            yield Problem(what, Kind.QUOTA)
        if self.persistence is not None and self.algorithm in BY_SOURCE:
            what = f"persistence: {self.algorithm} chooses by the client's address anyway"
            yield f"{what} (leave it out, or write ROUND_ROBIN or LEAST_CONNECTIONS)"


@dataclass(frozen=True)
class HealthMonitor(Resource):
    """How the members of a pool are asked whether they serve, by HTTP or not; times in seconds."""

    pool: Annotated[str, Reference("pools")]
    type: Check
    delay: Annotated[int, within(1, 50)] = 5
    timeout: Annotated[int, within(1, 50)] = 3
    max_retries: Annotated[int, within(1, 10)] = 3
    max_retries_down: Annotated[int, within(1, 10)] = 3
    monitor_port: Annotated[int | None, within(1, 65_535)] = None  # None is the member's own
    http_method: HttpMethod = HttpMethod.GET
    url_path: Annotated[str, is_url_path] = "/"
    domain_name: Annotated[str, is_domain] = ""  # the Host header; empty is the member's address
    expected_codes: Annotated[str, lists_codes] = "200"  # one, several with commas, or a range: 200, 200,202, 200-204
    enabled: bool = True
    name: Text = ""

    IMMUTABLE = ("pool",)


@dataclass(frozen=True)
class Entry(Checked):
    """An entry of an ip group: a CIDR, of one address or more, and what it is."""

    cidr: IPv4Network
    description: Text = ""

    def __str__(self) -> str:
        return f"{self.cidr} {self.description}".rstrip()


@dataclass(frozen=True)
class IpGroup(Resource):
    """Addresses under one name, for listeners to let in or to keep out; a file calls its entries `cidrs`."""

    name: Text
    entries: tuple[Entry, ...] = ()
    description: Text = ""

    def _conflict(self) -> Iterator[str]:
        if len(self.entries) > GROUP_MAX:
            what = f"cidrs: {len(self.entries)} are too many (at most {GROUP_MAX}: make another group)"
            yield Problem(what, Kind.QUOTA)
        yield from (f"cidrs: {problem}" for problem in unique(tuple(str(one.cidr) for one in self.entries)))


class EndpointKey(NamedTuple):
    """What a member is to the data plane, however many pools it serves."""

    address: IPv4Address
    port: int
    protocol: Protocol
