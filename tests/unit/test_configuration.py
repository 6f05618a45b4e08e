"""What must fit between resources that a file cannot write yet, and how many there may be."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Any

import pytest

from ipbackend import configuration
from ipbackend.configuration import check_transition, where_is
from ipbackend.errors import ConfigurationError, Kind, Problem, below
from ipbackend.model import Access, Check, NetworkKind, Protocol
from tests.unit.wanted import CHECK, FULL, GATEWAY, GROUP, HTTP, OFFICE, SHARED, SHOP, VPC, WEB, member, wanted


def refused(*resources: Any) -> tuple[Kind, str]:
    with pytest.raises(ConfigurationError) as refusal:
        wanted(*resources)
    (problem,) = refusal.value.problems
    return refusal.value.kind, problem


def test_without_a_gateway_there_is_nothing_else() -> None:
    with pytest.raises(ConfigurationError, match=r"gateway: is missing \(set its interfaces and SNAT addresses before"):
        wanted(SHOP, gateway=None)


def test_a_pool_has_one_health_monitor_that_fits_it() -> None:
    assert refused(SHOP, WEB, CHECK, replace(CHECK, id="two")) == (
        Kind.TAKEN,
        "pools.web.health_monitor: there is one already, check (change that one)",
    )
    udp = replace(WEB, protocol=Protocol.UDP)
    assert refused(SHOP, udp, CHECK) == (
        Kind.INVALID,
        "pools.web.health_monitor.type: TCP does not fit the pool, UDP (write UDP_CONNECT)",
    )
    assert "write TCP, HTTP or HTTPS" in refused(SHOP, WEB, replace(CHECK, type=Check.UDP_CONNECT))[1]
    wanted(SHOP, udp, replace(CHECK, type=Check.UDP_CONNECT))
    assert refused(SHOP, WEB, replace(CHECK, pool="none"))[0] is Kind.MISSING


def test_members_of_a_load_balancer_that_takes_none_are_refused_before_there_is_a_listener() -> None:
    closed = replace(SHOP, ip_target_enable=False)
    wanted(VPC, closed, WEB)
    kind, problem = refused(VPC, closed, replace(WEB, members=(member(11),)))
    assert kind is Kind.IP_TARGET_OFF
    assert problem == (
        "pools.web.members: its load balancer takes none, "
        "load_balancers.shop.ip_target_enable is false (set it to true)"
    )


def test_there_are_no_more_than_the_maps_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"addresses of load balancers and SNAT": 6, "listeners": 0, "pools": 1, "endpoints behind pools": 2}
    monkeypatch.setattr(configuration, "LIMITS", few)
    wanted(VPC, SHOP, OFFICE, replace(WEB, members=(member(11), member(12))))
    assert refused(SHOP, WEB, SHARED) == (Kind.QUOTA, "pools: 2 are too many (at most 1)")
    third = replace(SHOP, id="third", vip=IPv4Address("10.0.0.120"))
    assert refused(SHOP, OFFICE, third)[1] == "addresses of load balancers and SNAT: 7 are too many (at most 6)"
    many = replace(WEB, members=(member(11), member(12), member(13)))
    assert refused(VPC, SHOP, many)[1] == "endpoints behind pools: 3 are too many (at most 2)"


def test_the_limits_are_the_maps_own() -> None:
    from tests.unit.test_abi import CONSTANTS

    assert {
        "addresses of load balancers and SNAT": CONSTANTS["MAX_ADDRESSES"],
        "listeners": CONSTANTS["MAX_LISTENERS"] - 1,
        "pools": CONSTANTS["MAX_POOLS"] - 1,
        "endpoints behind pools": CONSTANTS["MAX_ENDPOINTS"] - 1,
    } == configuration.LIMITS


def test_a_network_is_found_as_by_looking_through_all() -> None:
    chance = Random(1)
    blocks = list(IPv4Network("10.0.0.0/8").subnets(new_prefix=16))
    cidrs = [next(block.subnets(new_prefix=chance.randint(16, 28))) for block in chance.sample(blocks, 30)]
    networks = [
        replace(VPC, id=str(i), name=str(i), kind=NetworkKind.LOCAL, cidrs=tuple(cidrs[i::5])) for i in range(5)
    ]
    have = wanted(*networks)
    addresses = [IPv4Address(int(cidr[0]) + chance.randint(-2, cidr.num_addresses + 1)) for cidr in cidrs * 40]
    for address in [*addresses, IPv4Address(0), IPv4Address("255.255.255.255")]:
        expected = next((one for one in networks if any(address in cidr for cidr in one.cidrs)), None)
        assert have.find_network(address) == expected


def test_a_place_is_a_name_or_else_the_id() -> None:
    assert where_is(replace(SHOP, name="my shop")) == "load_balancers.'my shop'"
    assert where_is(replace(SHOP, name="")) == "load_balancers.shop"
    assert where_is(CHECK) == "health_monitors.web" if CHECK.name else "health_monitors.check"


def test_the_kind_of_a_problem_survives_its_place() -> None:
    problem = below("pools.web", Problem("members: too many", Kind.QUOTA))
    assert (problem, ConfigurationError(problem, "x").kind) == ("pools.web.members: too many", Kind.QUOTA)
    assert ConfigurationError("x", problem).kind is Kind.INVALID
    assert ConfigurationError(below("a", "b")).problems == ("a.b",)


def test_the_gateway_s_interfaces_must_stay_those_in_use() -> None:
    with pytest.raises(ConfigurationError, match=r"networks\.vpc\.interface: 'eth1' is not one of gateway\.interfaces"):
        wanted(VPC, gateway=replace(GATEWAY, interfaces=("eth0",), snat_interface="eth0"))


def test_health_checks_come_from_an_address_that_nothing_else_uses() -> None:
    used = IPv4Address("10.0.0.105")
    gateway = replace(GATEWAY, health_address=used)
    wanted(VPC, SHOP, replace(WEB, members=(member(11),)), gateway=gateway)
    for resource, problem in (
        (replace(SHOP, vip=used), "load_balancers.shop.vip: 10.0.0.105 is already gateway.health_address (take an"),
        (
            replace(VPC, kind=NetworkKind.VPN, next_hop=used),
            "networks.vpc.next_hop: 10.0.0.105 is the gateway's own, gateway.health_address (write the router's",
        ),
        (
            replace(SHARED, members=(member(105),)),
            "pools.shared.members[0]: 10.0.0.105 is the gateway's own, gateway.health_address (write the member's",
        ),
    ):
        others = [VPC] if isinstance(resource, type(SHARED)) else []
        with pytest.raises(ConfigurationError) as refusal:
            wanted(*others, resource, gateway=gateway)
        (only,) = refusal.value.problems
        assert only.startswith(problem)
        wanted(*others, resource)


def test_the_address_of_health_checks_may_change_while_there_are_members() -> None:
    moved = replace(FULL, gateway=replace(GATEWAY, health_address=IPv4Address("10.0.0.105")))
    check_transition(FULL, moved)
    check_transition(moved, FULL)


def test_a_listener_s_ip_groups_are_there() -> None:
    used = replace(HTTP, ip_groups=("offices",))
    wanted(SHOP, WEB, used, GROUP)
    assert refused(SHOP, WEB, replace(used, ip_groups=("offices", "homes")), GROUP) == (
        Kind.MISSING,
        "listeners.http.ip_groups: there is no 'homes' among ip_groups (write the id of one that is there)",
    )


def test_a_listener_may_get_limits_and_groups_while_it_is_there() -> None:
    limited = replace(HTTP, ip_groups=("offices",), access=Access.DENY, max_connections=5, cps=6, source_cps=7)
    check_transition(FULL, replace(FULL, listeners={**FULL.listeners, "http": limited}))
