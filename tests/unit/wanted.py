"""A small gateway as it is wanted, for tests of what changes it; ids are names."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from ipbackend.configuration import SECTIONS, Configuration
from ipbackend.model import (
    Access,
    Algorithm,
    Check,
    Entry,
    Gateway,
    HealthMonitor,
    HttpMethod,
    IpGroup,
    Listener,
    LoadBalancer,
    Member,
    Network,
    NetworkKind,
    Pool,
    Protocol,
)

GATEWAY = Gateway(("eth0", "eth1"), tuple(IPv4Address(f"10.0.0.10{i}") for i in range(1, 5)))
VPC = Network("vpc", NetworkKind.LOCAL, (IPv4Network("10.0.0.0/24"),), "eth1", id="vpc")
SHOP = LoadBalancer("shop", IPv4Address("10.0.0.100"), "eth0", ip_target_enable=True, id="shop")
OFFICE = LoadBalancer("office", IPv4Address("10.0.0.110"), "eth0", ip_target_enable=True, id="office")
WEB = Pool("web", Protocol.TCP, load_balancer="shop", id="web")
SHARED = Pool("shared", Protocol.TCP, id="shared")
HTTP = Listener("http", "shop", Protocol.TCP, 80, "web", id="http")
API = Listener("api", "shop", Protocol.TCP, 81, "shared", id="api")
INTRANET = Listener("intranet", "office", Protocol.TCP, 80, "shared", id="intranet")
CHECK = HealthMonitor("web", Check.TCP, 5, 3, 3, enabled=False, id="check")
GROUP = IpGroup("offices", (Entry(IPv4Network("198.51.100.0/24"), "north"),), id="offices")


def member(host: int, **more: Any) -> Member:
    return Member(IPv4Address(f"10.0.0.{host}"), 8080, **{"id": f"m{host}"} | more)


def wanted(*resources: Any, gateway: Gateway | None = GATEWAY) -> Configuration:
    """These resources in their order, each in its section."""
    made = {section: {one.id: one for one in resources if isinstance(one, kind)} for section, kind in SECTIONS.items()}
    return Configuration(gateway, **made)


FULL = wanted(
    *(VPC, SHOP, OFFICE),
    replace(WEB, members=(member(11, weight=3), member(12), member(13, name="third"))),
    replace(SHARED, members=(member(11, id="s11"), member(14))),
    *(HTTP, API, INTRANET, CHECK, GROUP),
)

HOMES = IpGroup("homes", tuple(Entry(IPv4Network(cidr)) for cidr in ("203.0.113.7/32", "192.0.2.0/25")), id="homes")
PROBE = HealthMonitor(
    *("web", Check.HTTP, 10, 2, 4, 5, 9000, HttpMethod.HEAD, "/health?full=1", "example.com", "200-204"),
    name="probe",
    id="check",
)
# Nothing of who gets which connection is as it is by default.
CHOSEN = wanted(
    *(VPC, SHOP, OFFICE),
    replace(
        FULL.pools["web"],
        algorithm=Algorithm.LEAST_CONNECTIONS,
        persistence=20,
        slow_start=60,
        connection_drain=300,
        minimum_healthy=1,
    ),
    replace(FULL.pools["shared"], algorithm=Algorithm.SOURCE_IP_PORT),
    replace(
        HTTP,
        max_connections=1_000,
        cps=200,
        source_cps=10,
        ip_groups=("homes", "offices"),
        access=Access.DENY,
    ),
    replace(API, ip_groups=("homes",), access_enabled=False),
    *(INTRANET, PROBE, replace(CHECK, id="other", pool="shared", enabled=True), GROUP, HOMES),
    gateway=replace(GATEWAY, health_address=IPv4Address("10.0.0.105")),
)
