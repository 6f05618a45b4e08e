"""What the API refuses, filters and finds, beyond the life of its resources."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from ipbackend.client import _refusal
from ipbackend.configuration import Configuration
from tests.unit.serving import ELB, OURS, Client, Kept, ok, refused
from tests.unit.wanted import FULL, GATEWAY

LONE = "\ud800"  # half of a character: JSON can spell it, UTF-8 cannot
IP_TARGET_OFF = "The load balancer's ip_target_enable must be true when adding IP members."
TOO_FEW_ADDRESSES = "The number of available IP addresses in the subnet on the downstream plane is insufficient."


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "published"),
    [
        ("pools/web/members", {"member": {"address": "10.0.0.9", "protocol_port": 0}}, 400, "ELB.8902", "'port'"),
        ("pools/web/members", {"member": {"address": "10.0.0.9"}}, 400, "ELB.8902", "'member.protocol_port'"),
        ("pools/web/members", {"member": {"address": "10.0.0.11", "protocol_port": 8080}}, 409, "ELB.8907", None),
        ("loadbalancers", b"{", 400, "ELB.8902", "'body'"),
    ],
)
def test_the_published_text_comes_first_and_each_problem_after_it(
    client: Client, path: str, body: Any, status: int, code: str, published: str | None
) -> None:
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = client.post(f"{ELB}/{path}", **sent)
    first, *rest = refused(answer, status, code).splitlines()
    assert first == (f"Invalid input for {published}." if published else "Data conflict.")
    assert rest == answer.json()["problems"] != []


def test_a_ceiling_that_takes_more_addresses_than_there_are(client: Client, kept: Kept) -> None:
    kept.configuration = Configuration(replace(GATEWAY, snat_addresses=(IPv4Address("10.0.0.101"),)), FULL.networks)
    pool = {"protocol": "TCP", "lb_algorithm": "ROUND_ROBIN"}
    number = ok(client.post(f"{ELB}/pools", json={"pool": pool}), 201)["pool"]["id"]
    at, member = f"{ELB}/pools/{number}/members", {"address": "10.0.0.30", "protocol_port": 80}
    said = refused(client.post(at, json={"member": member}), 400, "ELB.8934")
    assert said.splitlines()[0] == TOO_FEW_ADDRESSES
    assert ok(client.post(at, json={"member": {**member, "max_connections": 25_000}}), 201)


def test_the_number_of_members_is_a_quota(client: Client, kept: Kept) -> None:
    web = FULL.pools["web"]
    many = tuple(replace(web.members[0], id=f"m{port}", port=port, max_connections=9) for port in range(1, 501))
    kept.configuration = replace(FULL, pools={**FULL.pools, "web": replace(web, members=many)})
    body = {"member": {"address": "10.0.0.30", "protocol_port": 80, "max_connections": 9}}
    said = refused(client.post(f"{ELB}/pools/web/members", json=body), 409, "ELB.8905")
    assert said.startswith("Quota exceeded for resources: members.\nmembers: 501 are too many")


def test_switching_ip_targets_off_is_said_to_be_just_that(client: Client) -> None:
    """It has members, which take the switch to be on: that is not what is wrong here."""
    body = {"loadbalancer": {"ip_target_enable": False}}
    assert "only ever switched on" in refused(client.put(f"{ELB}/loadbalancers/shop", json=body), 400, "ELB.8902")


def test_every_answer_carries_its_id_in_a_header(client: Client, kept: Kept) -> None:
    answers = [
        client.get(f"{ELB}/pools"),
        client.get(f"{ELB}/pools/none"),
        client.delete(f"{ELB}/healthmonitors/check"),
    ]
    kept.refusal = ZeroDivisionError()
    answers.append(client.delete(f"{ELB}/listeners/http"))
    assert [one.status_code for one in answers] == [200, 404, 204, 500]
    ids = [one.headers.get("X-Request-Id") for one in answers[:3]]
    assert len(set(ids)) == 3
    assert ids[:2] == [one.json()["request_id"] for one in answers[:2]]
    assert len(answers[3].json()["request_id"]) == 36


def test_all_methods_of_a_path_are_allowed_together(client: Client) -> None:
    assert client.patch(f"{ELB}/pools/web").headers["Allow"] == "DELETE, GET, PUT"
    assert client.patch(f"{ELB}/pools/web/members/batch-add").headers["Allow"] == "POST"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("pools", {LONE: 1}),
        ("pools", {"pool": {"name": LONE, "protocol": "TCP", "lb_algorithm": "ROUND_ROBIN"}}),
        ("pools", {"pool": {"name": "n", "protocol": LONE, "lb_algorithm": "ROUND_ROBIN"}}),
        ("pools", {"pool": {"name": "a\nb", "protocol": "TCP", "lb_algorithm": "ROUND_ROBIN"}}),
        ("ipgroups", {"ipgroup": {"ip_list": [{"ip": f"10.0.0.1{LONE}"}]}}),
    ],
)
def test_text_that_is_none_is_refused(client: Client, path: str, body: Any) -> None:
    sent, kind = json.dumps(body), {"Content-Type": "application/json"}
    refused(client.post(f"{ELB}/{path}", content=sent, headers=kind), 400, "ELB.8902")


def test_a_filter_that_is_none_is_refused_of_an_empty_list_too(client: Client, kept: Kept) -> None:
    kept.configuration = Configuration()
    assert "colour: not a field" in refused(client.get(f"{ELB}/pools?colour=red"), 400, "ELB.8902")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("pools?loadbalancer_id=office", ["shared"]),
        ("pools?loadbalancer_id=office&loadbalancer_id=shop", ["web", "shared"]),
        ("pools?listener_id=http", ["web"]),
        ("pools?member_address=10.0.0.14", ["shared"]),
        ("pools?healthmonitor_id=", ["shared"]),
        ("pools?members=m12", ["web"]),
        ("listeners?loadbalancer_id=office", ["intranet"]),
        ("listeners?member_address=10.0.0.12", ["http"]),
        ("listeners?protocol_port=80&protocol_port=82", ["http", "intranet"]),
        ("loadbalancers?member_address=10.0.0.12", ["shop"]),
        ("loadbalancers?ip_target_enable=true&vip_address=10.0.0.110", ["office"]),
        ("members?pool_id=shared", ["s11", "m14"]),
        ("members?address=10.0.0.11", ["m11", "s11"]),
        ("members?loadbalancer_id=office", ["s11", "m14"]),
        ("ipgroups?ip_list=198.51.100.0/24", ["offices"]),
        ("healthmonitors?type=TCP&type=HTTP", ["check"]),
    ],
)
def test_filters_look_beyond_a_resource_s_own_fields(client: Client, query: str, found: list[str]) -> None:
    kind = query.partition("?")[0]
    assert [row["id"] for row in ok(client.get(f"{ELB}/{query}"))[kind]] == found


def test_members_are_removed_by_id_or_by_address(client: Client, kept: Kept) -> None:
    at = f"{ELB}/pools/web/members/batch-delete"

    def removed(*members: dict[str, Any]) -> list[tuple[str | None, str]]:
        rows = ok(client.post(at, json={"members": list(members)}))["members"]
        return [(row["id"], row["ret_status"]) for row in rows]

    for wrong in ({}, {"address": "10.0.0.11"}, {"id": "m11", "address": "10.0.0.11", "protocol_port": 8080}):
        said = refused(client.post(at, json={"members": [wrong]}), 400, "ELB.8902")
        assert "must have an id, or an address and a protocol_port" in said
    there = {"address": "10.0.0.12", "protocol_port": 8080}
    assert removed({"id": "m11"}, {"id": "s11"}, there) == [
        ("m11", "successful"),
        ("s11", "not found"),
        ("m12", "successful"),
    ]
    assert removed(there) == [(None, "not found")]
    assert [one.id for one in kept.configuration.pools["web"].members] == ["m13"]


def test_many_members_change_together_or_not_at_all(client: Client, kept: Kept) -> None:
    at = f"{ELB}/pools/web/members/batch-update"
    some = [{"id": "m11", "weight": 7}, {"id": "nobody", "weight": 1}]
    assert "nobody" in refused(client.post(at, json={"members": some}), 404, "ELB.8904")
    assert kept.configuration is FULL
    some[1] = {"id": "m12", "protocol_port": 9090, "name": "other"}
    rows = ok(client.post(at, json={"members": some}))["members"]
    assert [(row["id"], row["weight"], row["protocol_port"]) for row in rows] == [("m11", 7, 8080), ("m12", 1, 9090)]


@pytest.mark.parametrize(("pools_too", "left"), [(True, ["shared"]), (False, ["web", "shared"])])
def test_a_cascade_takes_pools_along_or_leaves_them(
    client: Client, kept: Kept, pools_too: bool, left: list[str]
) -> None:
    body = {"loadbalancer": {"unbounded_pool": pools_too}}
    assert client.post(f"{ELB}/loadbalancers/shop/delete-cascade", json=body).status_code == 204
    assert list(kept.configuration.pools) == left
    assert list(kept.configuration.health_monitors) == ([] if pools_too else ["check"])
    assert {one.load_balancer for one in kept.configuration.pools.values()} == {None}


def test_an_entry_is_in_a_group_once(client: Client) -> None:
    twice = {"ipgroup": {"ip_list": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.1/32"}]}}
    for at in ("ipgroups", "ipgroups/offices/iplist/create-or-update"):
        said = refused(client.post(f"{ELB}/{at}", json=twice), 400, "ELB.8902")
        assert "cidrs: '192.0.2.1/32' is there more than once (write it once)" in said
    other = {"ipgroup": {"ip_list": [{"ip": "192.0.2.9"}]}}
    at = f"{ELB}/ipgroups/offices/iplist/batch-delete"
    assert "192.0.2.9 is not in it" in refused(client.post(at, json=other), 400, "ELB.8902")
    for wrong in ("192.0.2.1-192.0.2.9", "2001:db8::1", "10.0.0.1/24"):
        body = {"ipgroup": {"ip_list": [{"ip": wrong}]}}
        refused(client.post(f"{ELB}/ipgroups", json=body), 400, "ELB.8902")


def test_without_a_data_plane_there_is_no_traffic_to_tell_of(client: Client) -> None:
    for what in ("connections", "counters", "members", "snat-addresses", "audit"):
        refused(client.get(f"{OURS}/{what}"), 404, "ELB.8904")


def test_the_command_line_shows_the_problems_alone(client: Client) -> None:
    body = {"member": {"address": "10.0.0.11", "protocol_port": 8080}}
    answer = client.post(f"{ELB}/pools/web/members", json=body)
    shown = _refusal(answer.status_code, answer.content)
    assert shown.startswith("pools.web.members[")
    assert "Data conflict." not in shown
    assert _refusal(500, b'{"error_msg": "Internal server error.", "problems": []}') == "Internal server error."


def test_the_status_tree_has_everything_once(client: Client) -> None:
    tree = ok(client.get(f"{ELB}/loadbalancers/shop/statuses"))["statuses"]["loadbalancer"]
    assert [one["id"] for one in tree["pools"]] == ["web", "shared"]
    assert [(one["id"], [pool["id"] for pool in one["pools"]]) for one in tree["listeners"]] == [
        ("http", ["web"]),
        ("api", ["shared"]),
    ]
    web = tree["pools"][0]
    assert (web["healthmonitor"]["id"], [one["id"] for one in web["members"]]) == ("check", ["m11", "m12", "m13"])
    ports = ok(client.get(f"{ELB}/loadbalancers/shop/local-ports?ip_address=10.0.0.102&ip_address=10.0.0.9"))["ports"]
    assert [(one["ip_address"], one["type"]) for one in ports] == [("10.0.0.102", "l4")]
    assert ok(client.get(f"{ELB}/loadbalancers/shop/local-ports?type=l7"))["ports"] == []
