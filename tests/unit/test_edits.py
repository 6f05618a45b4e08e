"""Changes of what is wanted, and how they read."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

import pytest

from ipbackend import edits
from ipbackend.changes import between, summary
from ipbackend.configuration import Configuration
from ipbackend.errors import ConfigurationError, Kind
from ipbackend.model import Entry
from tests.unit.wanted import FULL, SHOP, WEB, member, wanted


def refused(kind: Kind, edit: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(ConfigurationError) as refusal:
        edit(FULL, *arguments, **more)
    assert refusal.value.kind is kind
    return str(refusal.value)


def ids(configuration: Configuration) -> dict[str, list[str]]:
    return {section: list(resources) for section, resources in configuration.sections() if resources}


def test_a_resource_is_added_changed_and_found() -> None:
    more = replace(SHOP, id="more", vip=SHOP.vip + 1000)

    assert list(edits.put(FULL, "load_balancers", more).load_balancers) == ["shop", "office", "more"]
    changed = edits.change(FULL, "load_balancers", "shop", {"description": "x"})
    assert list(changed.load_balancers) == ["shop", "office"]
    assert edits.find(changed, "load_balancers", "shop") == replace(SHOP, description="x")
    assert "load balancer none could not be found" in refused(Kind.MISSING, edits.find, "load_balancers", "none")
    assert refused(Kind.TAKEN, edits.put, "load_balancers", replace(SHOP, id="other"))


@pytest.mark.parametrize(
    ("section", "number", "kind", "problem"),
    [
        ("load_balancers", "shop", Kind.IN_USE, "load_balancers.shop: listeners.http.load_balancer refers to it"),
        ("pools", "shared", Kind.IN_USE, "pools.shared: listeners.api.pool refers to it (delete that first"),
        ("pools", "web", Kind.IN_USE, "pools.web: it has 3 members (remove them first, or cascade)"),
        ("pools", "web", Kind.IN_USE, "pools.web: health_monitors.check.pool refers to it"),
        ("networks", "vpc", Kind.INVALID, "10.0.0.11 is in no network"),
        ("listeners", "none", Kind.MISSING, "listener none could not be found"),
    ],
)
def test_what_is_in_use_is_not_deleted(section: str, number: str, kind: Kind, problem: str) -> None:
    assert problem in refused(kind, edits.delete, section, number)


def test_a_listener_goes_and_leaves_its_pool() -> None:
    assert ids(edits.delete(FULL, "listeners", "http")) == ids(FULL) | {"listeners": ["api", "intranet"]}


def test_cascade_takes_along_what_nothing_else_uses() -> None:
    assert ids(edits.delete(FULL, "load_balancers", "shop", cascade=True)) == {
        "networks": ["vpc"],
        "load_balancers": ["office"],
        "pools": ["shared"],
        "listeners": ["intranet"],
        "ip_groups": ["offices"],
    }
    assert ids(edits.delete(FULL, "listeners", "http", cascade=True))["pools"] == ["shared"]
    assert ids(edits.delete(FULL, "listeners", "api", cascade=True))["pools"] == ["web", "shared"]


def test_a_pool_that_another_load_balancer_s_listener_uses_outlives_its_own() -> None:
    borrowed = edits.change(FULL, "listeners", "intranet", {"pool": "web"})

    left = edits.delete(borrowed, "load_balancers", "shop", cascade=True)
    assert left.pools["web"].load_balancer is None
    assert left.listeners["intranet"].pool == "web"


def test_a_pool_that_a_listener_uses_is_not_deleted_even_with_cascade() -> None:
    assert "listeners.http.pool refers to it" in refused(Kind.IN_USE, edits.delete, "pools", "web", cascade=True)


def test_protection_holds_against_cascade_too() -> None:
    protected = edits.change(FULL, "load_balancers", "shop", {"deletion_protection_enable": True})
    with pytest.raises(ConfigurationError, match=r"load_balancers\.shop: deletion_protection_enable is true"):
        edits.delete(protected, "load_balancers", "shop", cascade=True)
    protected = edits.change(FULL, "pools", "web", {"member_deletion_protection_enable": True})
    with pytest.raises(ConfigurationError, match=r"pools\.web: member_deletion_protection_enable is true"):
        edits.delete(protected, "load_balancers", "shop", cascade=True)
    with pytest.raises(ConfigurationError, match=r"pools\.web: member_deletion_protection_enable is true"):
        edits.remove_members(protected, "web", {"m11"})


def test_members_come_change_and_go_together() -> None:
    more = edits.add_members(FULL, "web", [member(20), member(21)])
    assert [one.id for one in more.pools["web"].members] == ["m11", "m12", "m13", "m20", "m21"]
    changed = edits.change_members(more, "web", {"m20": {"weight": 0}, "m12": {"name": "n"}})
    assert [one.weight for one in changed.pools["web"].members] == [3, 1, 1, 0, 1]
    fewer = edits.remove_members(changed, "web", {"m11", "m21"})
    assert [one.id for one in fewer.pools["web"].members] == ["m12", "m13", "m20"]
    assert "already pools.web.members[0]" in refused(Kind.TAKEN, edits.add_members, "web", [member(11, id="x")])
    assert "member m14" in refused(Kind.MISSING, edits.remove_members, "web", {"m14"})
    assert "member m14" in refused(Kind.MISSING, edits.change_members, "web", {"m14": {}})


def test_changes_are_named_one_by_one_with_their_fields() -> None:
    want = edits.change_members(FULL, "web", {"m12": {"weight": 5, "max_connections": 7}})
    want = edits.change(want, "listeners", "http", {"pool": None, "idle_timeout": 60})
    want = edits.delete(want, "ip_groups", "offices")

    changes = between(FULL, want)
    assert [str(change) for change in changes] == [
        "member 10.0.0.12:8080 of web changed: weight 1 → 5, max_connections 100000 → 7",
        "listener http changed: pool web → none, idle_timeout 300 → 60",
        "ip group offices removed",
    ]
    assert summary(changes) == "; ".join(map(str, changes))
    assert between(FULL, FULL) == between(FULL, replace(FULL)) == []


def test_many_changes_are_counted() -> None:
    assert summary(between(wanted(gateway=None), FULL)) == (
        "1 gateway added; 1 network added; 2 load balancers added; 1 ip group added; 2 pools added; 5 members added; "
        "1 health monitor added; 3 listeners added"
    )


def test_a_pool_is_told_from_its_members() -> None:
    want = edits.put(FULL, "pools", replace(WEB, description="x", members=FULL.pools["web"].members))

    (change,) = between(FULL, want)
    assert (change.section, change.before.members, change.after.members) == ("pools", (), ())


def test_an_ip_group_that_a_listener_uses_is_not_deleted() -> None:
    used = edits.change(FULL, "listeners", "http", {"ip_groups": ("offices",)})
    with pytest.raises(ConfigurationError) as refusal:
        edits.delete(used, "ip_groups", "offices")
    assert refusal.value.problems == (
        "ip_groups.offices: listeners.http.ip_groups refers to it (take it out there first)",
    )
    assert refusal.value.kind is Kind.IN_USE
    left = edits.delete(used, "load_balancers", "shop", cascade=True)
    assert edits.delete(left, "ip_groups", "offices").ip_groups == {}


def test_long_lists_are_counted() -> None:
    def entries(*numbers: int) -> tuple[Entry, ...]:
        return tuple(Entry(IPv4Network(number)) for number in numbers)

    few = edits.change(FULL, "ip_groups", "offices", {"entries": entries(1, 2)})
    assert str(between(FULL, few)[0]) == (
        "ip group offices changed: entries 198.51.100.0/24 north → 0.0.0.1/32,0.0.0.2/32"
    )
    many = edits.change(few, "ip_groups", "offices", {"entries": entries(*range(2, 2_000))})
    assert str(between(few, many)[0]) == "ip group offices changed: entries 2 → 1,998 (+1,997, -1)"
