from dataclasses import FrozenInstanceError, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from ipbackend.configuration import Configuration, check_transition
from ipbackend.errors import ConfigurationError, Kind
from ipbackend.model import (
    GROUP_MAX,
    MEMBERS_MAX,
    Access,
    Algorithm,
    AttachMode,
    Check,
    EndpointKey,
    Entry,
    Gateway,
    HealthMonitor,
    IpGroup,
    Listener,
    LoadBalancer,
    Member,
    Network,
    NetworkKind,
    Pool,
    Protocol,
)

TCP, UDP = Protocol.TCP, Protocol.UDP
RFC_1918 = "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16"


def addresses(*texts: str) -> tuple[IPv4Address, ...]:
    return tuple(map(IPv4Address, texts))


def cidrs(*texts: str) -> tuple[IPv4Network, ...]:
    return tuple(map(IPv4Network, texts))


def member(address: str, port: int = 8080, **more: Any) -> Member:
    return Member(IPv4Address(address), port, **more)


SNAT = addresses("10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104")
GATEWAY = Gateway(("eth0", "eth1"), SNAT)
VPC = Network("vpc", NetworkKind.LOCAL, cidrs("10.0.0.0/24"), "eth1")
PEERED = Network("peered", NetworkKind.PEERING, cidrs("172.16.10.0/24"), "eth1", IPv4Address("10.0.0.2"))
SHOP = LoadBalancer("shop", IPv4Address("10.0.0.100"), "eth0", ip_target_enable=True)
WEB = Listener("web", "shop", TCP, 80, "web")
MONITOR = HealthMonitor("web", Check.TCP)
ENTRY = Entry(IPv4Network("198.51.100.0/24"))
POOL = Pool("web", TCP, members=(member("10.0.0.11", weight=3, max_connections=50), member("172.16.10.10")))


def configuration(*changes: Any, gateway: Gateway = GATEWAY) -> Configuration:
    """The example with `changes`: an object of a known name takes its place, another one is added."""
    everything: list[Any] = [VPC, PEERED, SHOP, WEB, POOL, *changes]

    def named(kind: Any) -> dict[str, Any]:
        return {thing.name: replace(thing, id=thing.name) for thing in everything if isinstance(thing, kind)}

    return Configuration(gateway, named(Network), named(LoadBalancer), named(Listener), named(Pool))


def problems_of(*changes: Any, gateway: Gateway = GATEWAY) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as refused:
        configuration(*changes, gateway=gateway)
    return refused.value.problems


def pool(*members: Member, name: str = "web", protocol: Protocol = TCP) -> Pool:
    return Pool(name, protocol, members=members)


# --- One object by itself.


def test_defaults() -> None:
    assert GATEWAY.snat_interface == "eth1"
    assert GATEWAY.max_connections == 1_000_000
    assert GATEWAY.attach_mode is AttachMode.AUTO
    assert GATEWAY.private_ranges == cidrs(*RFC_1918.split(", "))
    assert WEB.idle_timeout == 300
    assert member("10.0.0.11", id="a") == Member(IPv4Address("10.0.0.11"), 8080, 1, 100_000, id="a")
    assert member("10.0.0.11").id != member("10.0.0.11").id
    assert not LoadBalancer("shop", SHOP.vip, "eth0").ip_target_enable


def test_objects_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        WEB.port = 81  # type: ignore[misc]


@pytest.mark.parametrize(
    ("thing", "field", "value", "problem"),
    [
        (GATEWAY, "interfaces", (), "interfaces: there are none (write at least one)"),
        (GATEWAY, "interfaces", ("eth0", "eth1", "eth0"), "'eth0' is there more than once (write it once)"),
        (
            GATEWAY,
            "interfaces",
            ("eth1", "a/b"),
            "'a/b' is not the name of an interface (`ip link` shows them)",
        ),
        (
            GATEWAY,
            "interfaces",
            ("eth1", ".."),
            "'..' is not the name of an interface (`ip link` shows them)",
        ),
        (GATEWAY, "interfaces", ("eth1", "e" * 16), f"'{'e' * 16}' is not the name of an interface"),
        (
            GATEWAY,
            "snat_interface",
            "eth2",
            "snat_interface: 'eth2' is not one of gateway.interfaces (did you mean eth1? known: eth0, eth1)",
        ),
        (
            GATEWAY,
            "snat_addresses",
            SNAT[:3],
            "snat_addresses: 3 addresses cannot be used (write 1, 2 or 4: each carries 25000)",
        ),
        (GATEWAY, "snat_addresses", (), "snat_addresses: 0 addresses cannot be used (write 1, 2 or 4"),
        (GATEWAY, "snat_addresses", SNAT[:1] * 2, "'10.0.0.101' is there more than once (write it once)"),
        (
            GATEWAY,
            "snat_addresses",
            addresses("127.0.0.1"),
            "snat_addresses: 127.0.0.1 is not a usable unicast address (take one that a host can have)",
        ),
        (GATEWAY, "max_connections", 999, "max_connections: 999 is out of range (write 1000 to 16000000)"),
        (GATEWAY, "max_connections", 16_000_001, "16000001 is out of range (write 1000 to 16000000)"),
        (GATEWAY, "private_ranges", (), "private_ranges: there are none (write at least one)"),
        (VPC, "name", "v" * 256, "name: 256 characters are too many (write 255 or fewer)"),
        (WEB, "description", "v" * 256, "description: 256 characters are too many (write 255 or fewer)"),
        (WEB, "name", "web\n", r"name: 'web\n' holds characters that cannot be shown (write printable text on"),
        (GATEWAY, "health_address", IPv4Address("127.0.0.1"), "health_address: 127.0.0.1 is not a usable unicast"),
        (
            GATEWAY,
            "health_address",
            SNAT[2],
            "health_address: 10.0.0.103 is one of snat_addresses, which never reach the kernel "
            "(take an address nothing else uses)",
        ),
        *((MONITOR, name, 51, f"{name}: 51 is out of range (write 1 to 50)") for name in ("delay", "timeout")),
        *(
            (MONITOR, name, value, f"{name}: {value} is out of range (write 1 to 10)")
            for name in ("max_retries", "max_retries_down")
            for value in (0, 11)
        ),
        (MONITOR, "monitor_port", 0, "monitor_port: 0 is out of range (write 1 to 65535)"),
        *(
            (
                MONITOR,
                "url_path",
                path,
                f"url_path: {path!r} cannot be asked for (write 1 to 80 characters of a URL, / first, such as /health)",
            )
            for path in ("", "health", "/a b", "/a\r\nHost: x", "/ä", "/" + "a" * 80, "/\\", '/"')
        ),
        *(
            (MONITOR, "domain_name", name, f"domain_name: {name!r} is not the name of a host (write letters, digits")
            for name in ("-a", ".a", "a_b", "a b", "a:80", "a\n", "a" * 101, "ä.de")
        ),
        *(
            (
                MONITOR,
                "expected_codes",
                codes,
                f"expected_codes: {codes!r} are not HTTP status codes (write one, up to 16, or a range: 200 or 200,202",
            )
            for codes in (
                *("", "20", "2000", "099", "600", "200,", ",200", "200, 202", "200-", "204-200", "200-202,204"),
                *("200-202-204", "2xx", "2٠٠", "200\n", ",".join(["200"] * 17)),
            )
        ),
        (WEB, "max_connections", -1, "max_connections: -1 is out of range (write 0 to 16000000)"),
        (WEB, "cps", 1_000_001, "cps: 1000001 is out of range (write 0 to 1000000)"),
        (WEB, "source_cps", -1, "source_cps: -1 is out of range (write 0 to 1000000)"),
        (WEB, "ip_groups", ("a", "b", "a"), "ip_groups: 'a' is there more than once (write it once)"),
        (
            WEB,
            "ip_groups",
            tuple(map(str, range(51))),
            "ip_groups: 51 are too many (at most 50: put entries into one group)",
        ),
        (
            WEB,
            "access",
            Access.DENY,
            "access: there are no ip_groups that it could be about (name some, or leave it out)",
        ),
        (WEB, "access_enabled", False, "access_enabled: there are no ip_groups that it could be about (name some"),
        *((POOL, "persistence", value, f"persistence: {value} is out of range (write 1 to 60)") for value in (0, 61)),
        *(
            (POOL, "slow_start", value, f"slow_start: {value} is out of range (write 30 to 1200)")
            for value in (29, 1_201)
        ),
        *(
            (POOL, "connection_drain", value, f"connection_drain: {value} is out of range (write 10 to 4000)")
            for value in (9, 4_001)
        ),
        (POOL, "minimum_healthy", 2, "minimum_healthy: 2 is out of range (write 0 to 1)"),
        *(
            (
                replace(POOL, algorithm=algorithm),
                "persistence",
                5,
                f"persistence: {algorithm} chooses by the client's address anyway "
                "(leave it out, or write ROUND_ROBIN or LEAST_CONNECTIONS)",
            )
            for algorithm in (Algorithm.SOURCE_IP, Algorithm.SOURCE_IP_PORT)
        ),
        (ENTRY, "description", "a\nb", r"description: 'a\nb' holds characters that cannot be shown"),
        (VPC, "cidrs", (), "cidrs: there are none (write at least one)"),
        (
            VPC,
            "cidrs",
            cidrs("10.0.0.0/16", "10.0.3.0/24"),
            "cidrs: 10.0.3.0/24 overlaps 10.0.0.0/16 (write the wider one only)",
        ),
        (
            VPC,
            "cidrs",
            cidrs("0.0.0.0/0"),
            "cidrs: 0.0.0.0/0 would swallow the way to the clients (write CIDRs of /8 or narrower)",
        ),
        (VPC, "cidrs", cidrs("10.0.0.0/7"), "cidrs: 10.0.0.0/7 would swallow the way to the clients"),
        (
            VPC,
            "cidrs",
            cidrs("224.0.0.0/24"),
            "cidrs: 224.0.0.0/24 is not unicast (write the CIDRs that members live in)",
        ),
        (
            VPC,
            "next_hop",
            IPv4Address("10.0.0.2"),
            "next_hop: 10.0.0.2 leads nowhere: kind local is on the link (leave it out)",
        ),
        (PEERED, "next_hop", None, "next_hop: is missing: kind peering needs a router (write its address)"),
        (
            PEERED,
            "next_hop",
            IPv4Address("224.0.0.5"),
            "next_hop: 224.0.0.5 is not a usable unicast address (take one that a host can have)",
        ),
        *(
            (
                SHOP,
                "vip",
                IPv4Address(vip),
                f"vip: {vip} is not a usable unicast address (take one that a host",
            )
            for vip in ("0.0.0.0", "0.1.2.3", "127.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255")
        ),
        (WEB, "port", 0, "port: 0 is out of range (write 1 to 65535)"),
        (WEB, "port", 65_536, "port: 65536 is out of range (write 1 to 65535)"),
        (WEB, "idle_timeout", 9, "idle_timeout: 9 is out of range (write 10 to 4000)"),
        (WEB, "idle_timeout", 4_001, "idle_timeout: 4001 is out of range (write 10 to 4000)"),
        (
            replace(WEB, protocol=UDP),
            "port",
            4789,
            "port: UDP 4789 is kept for VXLAN (take another port)",
        ),
        (member("10.0.0.11"), "port", -1, "port: -1 is out of range (write 1 to 65535)"),
        (member("10.0.0.11"), "weight", 101, "weight: 101 is out of range (write 0 to 100)"),
        (member("10.0.0.11"), "weight", -1, "weight: -1 is out of range (write 0 to 100)"),
        (member("10.0.0.11"), "max_connections", 0, "max_connections: 0 is out of range (write 1 to 100000)"),
        (member("10.0.0.11"), "max_connections", 100_001, "max_connections: 100001 is out of range"),
        (
            POOL,
            "members",
            tuple(member("10.0.0.11", port) for port in range(1, MEMBERS_MAX + 2)),
            "members: 501 are too many (at most 500: split the pool)",
        ),
    ],
)
def test_an_object_that_is_wrong_by_itself_is_not_made(thing: Any, field: str, value: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        replace(thing, **{field: value})

    (only,) = (one for one in refused.value.problems if one.startswith(f"{field}: "))
    assert problem in only


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("url_path", ("/", "/a", "/" + "a" * 79, "/health?full=1&x=%20#y", "/_;~!()*[]@$^:',+-.")),
        ("domain_name", ("", "a", "example.com", "10.0.0.1", "0-a.b", "a" * 100)),
        ("expected_codes", ("200", "100", "599", "200,202", ",".join(["200"] * 16), "200-204", "204-204")),
    ],
)
def test_what_may_be_asked_by_http(field: str, values: tuple[str, ...]) -> None:
    for value in values:
        assert getattr(replace(MONITOR, **{field: value}), field) == value


def test_a_monitor_is_on_and_asks_as_the_console_does_unless_told_otherwise() -> None:
    told = (MONITOR.delay, MONITOR.timeout, MONITOR.max_retries, MONITOR.max_retries_down, MONITOR.enabled)
    assert told == (5, 3, 3, 3, True)
    assert (MONITOR.http_method, MONITOR.url_path, MONITOR.domain_name, MONITOR.expected_codes) == (
        "GET",
        "/",
        "",
        "200",
    )


def test_a_pool_can_keep_clients_by_either_algorithm_that_does_not() -> None:
    for algorithm in (Algorithm.ROUND_ROBIN, Algorithm.LEAST_CONNECTIONS):
        assert replace(POOL, algorithm=algorithm, persistence=60).persistence == 60


def test_an_ip_group_holds_ten_thousand_entries_each_once() -> None:
    entries = tuple(Entry(IPv4Network(number)) for number in range(GROUP_MAX + 1))
    assert GROUP_MAX == 10_000
    assert len(IpGroup("offices", entries[1:]).entries) == GROUP_MAX
    with pytest.raises(ConfigurationError) as refused:
        IpGroup("offices", entries)
    assert refused.value.problems == ("cidrs: 10001 are too many (at most 10000: make another group)",)
    assert refused.value.kind is Kind.QUOTA
    with pytest.raises(ConfigurationError) as refused:
        IpGroup("offices", (*entries[:3], replace(entries[1], description="again")))
    assert refused.value.problems == ("cidrs: '0.0.0.1/32' is there more than once (write it once)",)


@pytest.mark.parametrize("port", [1, 4788, 4790, 65_535])
def test_udp_ports_beside_vxlan_can_be_used(port: int) -> None:
    assert replace(WEB, protocol=UDP, port=port).port == port


def test_tcp_4789_is_no_vxlan() -> None:
    assert replace(WEB, port=4789).port == 4789


def test_an_object_names_all_that_is_wrong_with_it() -> None:
    with pytest.raises(ConfigurationError) as refused:
        Gateway((), addresses("127.0.0.1", "127.0.0.1", "224.0.0.1"), max_connections=1)

    assert len(refused.value.problems) == 8
    assert str(refused.value) == "\n".join(refused.value.problems)


# --- Between objects.


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            [pool(member("10.0.0.11"), member("8.8.8.8"))],
            f"pools.web.members[1]: 8.8.8.8 is not a private IPv4 address ({RFC_1918})",
        ),
        (
            [pool(member("192.168.1.1"))],
            "pools.web.members[0]: 192.168.1.1 is in no network (add its CIDR to one of networks)",
        ),
        (
            [replace(SHOP, ip_target_enable=False)],
            "pools.web.members: listeners.web takes no IP members, load_balancers.shop.ip_target_enable "
            "is false (set it to true)",
        ),
        (
            [pool(member("10.0.0.11"), member("10.0.0.12"), member("10.0.0.11"))],
            "pools.web.members[2]: 10.0.0.11:8080 is already pools.web.members[0] "
            "(keep one: weight gives a larger share)",
        ),
        (
            [pool(member("10.0.0.100"))],
            "pools.web.members[0]: 10.0.0.100 is the gateway's own, load_balancers.shop.vip "
            "(write the member's address)",
        ),
        (
            [pool(member("10.0.0.103"))],
            "pools.web.members[0]: 10.0.0.103 is the gateway's own, gateway.snat_addresses[2] "
            "(write the member's address)",
        ),
        (
            [pool(member("172.16.10.10", max_connections=7), name="api")],
            "pools.api.members[0].max_connections: 7, but pools.web.members[1] is 172.16.10.10:8080 as well "
            "and says 100000 (one endpoint has one ceiling: write the same)",
        ),
        (
            [replace(WEB, name="web2")],
            "listeners.web2: TCP 80 is already listeners.web (take another port)",
        ),
        (
            [replace(WEB, protocol=UDP)],
            "listeners.web.protocol: UDP is not TCP of pools.web (use another pool)",
        ),
        (
            [replace(WEB, pool="wep")],
            "listeners.web.pool: there is no 'wep' among pools (write the id of one that is there)",
        ),
        (
            [replace(WEB, load_balancer="xyz")],
            "listeners.web.load_balancer: there is no 'xyz' among load_balancers (write the id of one that is there)",
        ),
        (
            [replace(SHOP, interface="eth2")],
            "load_balancers.shop.interface: 'eth2' is not one of gateway.interfaces "
            "(did you mean eth1? known: eth0, eth1)",
        ),
        (
            [replace(PEERED, interface="wan")],
            "networks.peered.interface: 'wan' is not one of gateway.interfaces (known: eth0, eth1)",
        ),
        (
            [replace(SHOP, name="my.shop")],
            "load_balancers.'my.shop'.vip: 10.0.0.100 is already load_balancers.shop.vip "
            "(take an address nothing else uses)",
        ),
        (
            [replace(SHOP, vip=SNAT[1])],
            "load_balancers.shop.vip: 10.0.0.102 is already gateway.snat_addresses[1] "
            "(take an address nothing else uses)",
        ),
        (
            [replace(VPC, name="all", cidrs=cidrs("192.168.0.0/24", "172.16.0.0/12"))],
            "networks.all.cidrs: 172.16.0.0/12 overlaps 172.16.10.0/24 of networks.peered "
            "(an address lives in one network: narrow one of them)",
        ),
        (
            [replace(PEERED, next_hop=SHOP.vip)],
            "networks.peered.next_hop: 10.0.0.100 is the gateway's own, load_balancers.shop.vip "
            "(write the router's address)",
        ),
        (
            [replace(PEERED, next_hop=SNAT[0])],
            "networks.peered.next_hop: 10.0.0.101 is the gateway's own, gateway.snat_addresses[0] "
            "(write the router's address)",
        ),
        *(
            (
                [replace(PEERED, next_hop=IPv4Address(end))],
                f"networks.peered.next_hop: {end} is no host, but an end of {cidr} (write the router's address)",
            )
            for end, cidr in {
                "10.0.0.0": "10.0.0.0/24",
                "10.0.0.255": "10.0.0.0/24",
                "172.16.10.0": "172.16.10.0/24",
                "172.16.10.255": "172.16.10.0/24",
            }.items()
        ),
        (
            [pool(*(member(f"10.0.0.{host}") for host in range(1, 12)))],
            "gateway.max_connections: 1000000 is less than 1100000, the sum of the ceilings of 11 "
            "endpoints (raise it to 1100000, or lower max_connections of members)",
        ),
        (
            [pool(*(member("10.0.0.11", port) for port in range(1, 162)))],
            "gateway.max_connections: 1000000 is less than 16100000, the sum of the ceilings of 161 "
            "endpoints (lower max_connections of members)",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_with_place_value_and_remedy(changes: list[Any], problem: str) -> None:
    assert problems_of(*changes) == (problem,)


@pytest.mark.parametrize(("snat", "carried", "needed"), [(1, 25_000, 4), (2, 50_000, 4)])
def test_a_ceiling_over_what_the_snat_addresses_carry_is_refused(snat: int, carried: int, needed: int) -> None:
    assert problems_of(gateway=replace(GATEWAY, snat_addresses=SNAT[:snat])) == (
        "pools.web.members[1].max_connections: 100000 is over what gateway.snat_addresses carry, "
        f"{carried} (use {needed} of them, or lower it to {carried})",
    )


def test_private_ranges_are_a_setting() -> None:
    gateway = replace(GATEWAY, private_ranges=cidrs("100.64.0.0/10"))

    assert problems_of(pool(member("10.0.0.11")), gateway=gateway) == (
        "pools.web.members[0]: 10.0.0.11 is not a private IPv4 address (100.64.0.0/10)",
    )
    cgnat = replace(VPC, name="cgnat", cidrs=cidrs("100.64.0.0/24"))
    assert configuration(cgnat, pool(member("100.64.0.1")), gateway=gateway).network_of(IPv4Address("100.64.0.1"))


def test_all_problems_are_named_at_once() -> None:
    problems = problems_of(
        replace(SHOP, ip_target_enable=False),
        replace(WEB, name="again"),
        replace(WEB, name="dns", protocol=UDP, port=53, pool="dns"),
        pool(member("8.8.8.8"), member("10.0.0.100")),
    )

    assert {problem.split(":")[0] for problem in problems} == {
        "listeners.again",
        "listeners.dns.pool",
        "pools.web.members",
        "pools.web.members[0]",
        "pools.web.members[1]",
    }
    assert len(problems) == 6  # the pool has two listeners


def test_an_empty_pool_may_have_a_listener_even_without_ip_target() -> None:
    assert configuration(pool(), replace(SHOP, ip_target_enable=False)).endpoints == {}


def test_the_same_port_may_be_listened_to_by_both_protocols_and_on_two_vips() -> None:
    other = replace(SHOP, name="other", vip=IPv4Address("10.0.0.99"))
    udp = pool(member("10.0.0.11", max_connections=9), name="udp", protocol=UDP)

    configuration(
        other,
        udp,
        replace(WEB, name="web-udp", protocol=UDP, pool="udp"),
        replace(WEB, name="other", load_balancer="other"),
    )


# --- What the planner asks.


def test_a_member_of_two_pools_is_one_endpoint_and_of_two_protocols_two() -> None:
    shared, udp = member("10.0.0.11", weight=9, max_connections=50), member("10.0.0.11", max_connections=7)
    endpoints = configuration(pool(shared, name="api"), pool(udp, name="udp", protocol=UDP)).endpoints

    assert {key: endpoint.max_connections for key, endpoint in endpoints.items()} == {
        EndpointKey(IPv4Address("10.0.0.11"), 8080, TCP): 50,
        EndpointKey(IPv4Address("172.16.10.10"), 8080, TCP): 100_000,
        EndpointKey(IPv4Address("10.0.0.11"), 8080, UDP): 7,
    }


def test_shared_endpoints_count_once_towards_the_gateway() -> None:
    ten = [member(f"10.0.0.{host}") for host in range(1, 11)]

    assert len(configuration(pool(*ten), pool(*ten, name="api")).endpoints) == 10


def test_network_of() -> None:
    wanted = configuration()

    assert wanted.network_of(IPv4Address("10.0.0.11")).name == "vpc"
    assert wanted.network_of(IPv4Address("172.16.10.255")).name == "peered"
    with pytest.raises(LookupError, match=r"8\.8\.8\.8"):
        wanted.network_of(IPv4Address("8.8.8.8"))


# --- While running.


@pytest.mark.parametrize(
    ("field", "value", "before", "after"),
    [
        ("snat_addresses", SNAT[::-1], ", ".join(map(str, SNAT)), ", ".join(map(str, SNAT[::-1]))),
        ("max_connections", 2_000_000, "1000000", "2000000"),
        ("attach_mode", AttachMode.GENERIC, "auto", "generic"),
    ],
)
def test_what_the_data_plane_was_made_with_cannot_change(field: str, value: Any, before: str, after: str) -> None:
    want = replace(GATEWAY, **{field: value})
    with pytest.raises(ConfigurationError) as refused:
        check_transition(configuration(), configuration(gateway=want))

    assert refused.value.problems == (
        f"gateway.{field}: cannot change from {before} to {after} while there are members: "
        "their tables are made for it (take all members out first: their connections end)",
    )
    check_transition(configuration(pool()), configuration(pool(), gateway=want))


def test_ip_target_enable_is_only_ever_switched_on() -> None:
    on, off = configuration(pool()), configuration(pool(), replace(SHOP, ip_target_enable=False))

    check_transition(off, on)
    with pytest.raises(ConfigurationError) as refused:
        check_transition(on, off)
    assert refused.value.problems == (
        "load_balancers.shop.ip_target_enable: cannot change from true to false "
        "(it is only ever switched on: leave it true)",
    )


def test_all_that_cannot_change_is_named_at_once() -> None:
    have = configuration()
    want = configuration(
        replace(SHOP, ip_target_enable=False),
        replace(WEB, port=81, pool=None),
        gateway=replace(GATEWAY, max_connections=500_000, attach_mode=AttachMode.NATIVE),
    )

    with pytest.raises(ConfigurationError) as refused:
        check_transition(have, want)
    assert len(refused.value.problems) == 4


def test_everything_else_may_change() -> None:
    want = configuration(
        replace(SHOP, name="new", vip=IPv4Address("10.0.0.99")),
        replace(PEERED, next_hop=IPv4Address("10.0.0.3")),
        replace(WEB, name="more", port=81, load_balancer="new"),
        replace(WEB, idle_timeout=10, description="short"),
        pool(member("10.0.0.12")),
        gateway=replace(GATEWAY, interfaces=("eth1", "eth0", "eth2"), snat_interface="eth0", rest=10),
    )

    check_transition(configuration(), want)
    check_transition(want, configuration())
