"""The API's own part: bodies, answers, errors, lists. Changes are real edits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ipbackend.configuration import Configuration
from ipbackend.errors import DatapathError, NetworkError, StoreError
from tests.unit.serving import ELB, OURS, PROJECT, Client, Kept, ok, refused
from tests.unit.wanted import FULL


def test_a_load_balancer_s_life(client: Client, kept: Kept) -> None:
    wanted = {"name": "new one", "vip_address": "10.0.0.120", "availability_zone_list": ["az1"]}
    made = ok(client.post(f"{ELB}/loadbalancers", json={"loadbalancer": wanted}), 201)["loadbalancer"]
    assert (made["name"], made["vip_address"], made["interface"]) == ("new one", "10.0.0.120", "eth0")
    assert (made["ip_target_enable"], made["provisioning_status"], made["project_id"]) == (False, "ACTIVE", PROJECT)
    assert (made["created_at"], made["updated_at"]) == ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
    at = f"{ELB}/loadbalancers/{made['id']}"
    changed = ok(client.put(at, json={"loadbalancer": {"ip_target_enable": True, "description": "d"}}))["loadbalancer"]
    assert changed == {**made, "ip_target_enable": True, "description": "d"}
    assert ok(client.get(at))["loadbalancer"] == changed
    back = {"loadbalancer": {"ip_target_enable": False}}
    assert "only ever switched on" in refused(client.put(at, json=back), 400, "ELB.8902")
    assert client.delete(at).status_code == 204
    assert f"load balancer {made['id']} could not be found" in refused(client.get(at), 404, "ELB.8904")
    assert kept.authors == ["tester"] * 3


def test_a_listener_its_pool_and_its_members(client: Client) -> None:
    listener = {"loadbalancer_id": "office", "protocol": "TCP", "protocol_port": 8443, "keepalive_timeout": 60}
    made = ok(client.post(f"{ELB}/listeners", json={"listener": listener}), 201)["listener"]
    assert (made["loadbalancers"], made["default_pool_id"]) == ([{"id": "office"}], None)
    body = {"pool": {"protocol": "TCP", "lb_algorithm": "ROUND_ROBIN", "listener_id": made["id"], "name": "n"}}
    pool = ok(client.post(f"{ELB}/pools", json=body), 201)["pool"]
    assert (pool["listeners"], pool["loadbalancers"]) == ([{"id": made["id"]}], [{"id": "office"}])
    assert "has a pool" in refused(client.post(f"{ELB}/pools", json=body), 409, "ELB.8907")

    at = f"{ELB}/pools/{pool['id']}/members"
    one = ok(client.post(at, json={"member": {"address": "10.0.0.30", "protocol_port": 80}}), 201)["member"]
    assert (one["weight"], one["max_connections"], one["member_type"]) == (1, 100_000, "ip")
    changed = ok(client.put(f"{at}/{one['id']}", json={"member": {"weight": 0}}))["member"]
    assert changed == {**one, "weight": 0}
    wanted = [{"address": f"10.0.0.{host}", "protocol_port": 80} for host in (30, 31)]
    batch = ok(client.post(f"{at}/batch-add", json={"members": wanted}), 201)["members"]
    assert [(row["address"], row["ret_status"]) for row in batch] == [
        ("10.0.0.30", "existed"),
        ("10.0.0.31", "successful"),
    ]
    assert batch[0]["weight"] == 0
    assert [row["id"] for row in ok(client.get(at))["members"]] == [row["id"] for row in batch]
    assert "it has 2 members" in refused(client.delete(f"{ELB}/pools/{pool['id']}"), 409, "ELB.8907")
    for row in batch:
        assert client.delete(f"{at}/{row['id']}").status_code == 204
    assert "refers to it" in refused(client.delete(f"{ELB}/pools/{pool['id']}"), 409, "ELB.8907")
    gone = ok(client.put(f"{ELB}/listeners/{made['id']}", json={"listener": {"default_pool_id": None}}))
    assert gone["listener"]["default_pool_id"] is None
    assert client.delete(f"{ELB}/pools/{pool['id']}").status_code == 204
    assert client.delete(f"{ELB}/listeners/{made['id']}").status_code == 204


def test_cascade(client: Client, kept: Kept) -> None:
    assert "refers to it" in refused(client.delete(f"{ELB}/loadbalancers/shop"), 409, "ELB.8907")
    assert client.delete(f"{ELB}/loadbalancers/shop/force-elb").status_code == 204
    assert (list(kept.configuration.load_balancers), list(kept.configuration.pools)) == (["office"], ["shared"])
    assert client.delete(f"{ELB}/listeners/intranet/force").status_code == 204
    assert list(kept.configuration.pools) == []


def test_networks_and_the_gateway(client: Client, kept: Kept) -> None:
    network = {"name": "dc", "kind": "vpn", "cidrs": ["192.168.50.0/24"], "next_hop": "10.0.0.3"}
    made = ok(client.post(f"{OURS}/networks", json={"network": network}), 201)["network"]
    assert {**made, **network, "interface": "eth1"} == made
    overlap = {"network": {**network, "name": "other", "cidrs": ["192.168.0.0/16"]}}
    said = refused(client.post(f"{OURS}/networks", json=overlap), 409, "ELB.8907")
    assert "networks.other.cidrs: 192.168.0.0/16 overlaps 192.168.50.0/24 of networks.dc" in said
    at = f"{OURS}/networks/{made['id']}"
    assert ok(client.put(at, json={"network": {"next_hop": "10.0.0.4"}}))["network"]["next_hop"] == "10.0.0.4"
    assert client.delete(at).status_code == 204

    assert ok(client.put(f"{OURS}/gateway", json={"gateway": {"rest": 30}}))["gateway"]["rest"] == 30
    bigger = {"gateway": {"max_connections": 2_000_000}}
    assert "while there are members" in refused(client.put(f"{OURS}/gateway", json=bigger), 409, "ELB.8907")
    assert refused(client.delete(f"{OURS}/gateway"), 400, "ELB.8902")
    kept.configuration = Configuration()
    assert "there is none yet" in refused(client.get(f"{OURS}/gateway"), 404, "ELB.8904")
    first = {"gateway": {"interfaces": ["eth0"], "snat_addresses": ["10.0.0.9"]}}
    assert ok(client.put(f"{OURS}/gateway", json=first))["gateway"]["snat_interface"] == "eth0"
    assert client.delete(f"{OURS}/gateway").status_code == 204


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "problem"),
    [
        ("pools/web/members", {"member": {"address": "8.8.8.8", "protocol_port": 80}}, 400, "ELB.8902", "private"),
        ("pools/web/members", {"member": {"address": "10.0.0.11", "protocol_port": 8080}}, 409, "ELB.8907", "already"),
        ("pools/web/members", {"member": {"address": "::1", "protocol_port": 80}}, 400, "ELB.8902", "member.address"),
        ("pools/web/members", {"member": {"address": 1, "protocol_port": 80}}, 400, "ELB.8902", "member.address"),
        ("pools/web/members", {"member": {"address": "10.0.0.9", "protocol_port": "80"}}, 400, "ELB.8902", "integer"),
        ("pools/web/members", {"member": {"address": "10.0.0.9"}}, 400, "ELB.8902", "member.protocol_port"),
        ("pools/none/members", {"member": {"address": "10.0.0.9", "protocol_port": 80}}, 404, "ELB.8904", "pool none"),
        (
            "pools/web/members",
            {"member": {"address": "10.0.0.9", "protocol_port": 80, "subnet_cidr_id": "s"}},
            *(400, "ELB.8902", "member.subnet_cidr_id"),
        ),
        (
            "loadbalancers",
            {"loadbalancer": {"vip_address": "10.0.0.100"}},
            409,
            "ELB.8907",
            "already load_balancers.shop",
        ),
        ("loadbalancers", {"loadbalancer": {"vip_address": "10.0.0.9", "x": 1}}, 400, "ELB.8902", "loadbalancer.x"),
        ("loadbalancers", {"loadbalancer": {"vip_address": "10.0.0.9", "name": "n" * 256}}, 400, "ELB.8902", "name"),
        ("loadbalancers", {"loadbalancer": []}, 400, "ELB.8902", "loadbalancer"),
        ("loadbalancers", None, 400, "ELB.8902", "body"),
        ("pools", {"pool": {"protocol": "TCP", "lb_algorithm": "RANDOM"}}, 400, "ELB.8902", "'ROUND_ROBIN'"),
        ("pools", {"pool": {"protocol": "HTTP", "lb_algorithm": "ROUND_ROBIN"}}, 400, "ELB.8902", "'TCP' or 'UDP'"),
        (
            "listeners",
            {"listener": {"protocol": "TCP", "protocol_port": 80, "loadbalancer_id": "none"}},
            *(404, "ELB.8904", "'none' among load_balancers"),
        ),
        (
            "listeners",
            {"listener": {"protocol": "TCP", "protocol_port": 80, "loadbalancer_id": "shop"}},
            *(409, "ELB.8907", "TCP 80 is already listeners.http"),
        ),
        (
            "listeners",
            {"listener": {"protocol": "UDP", "protocol_port": 80, "loadbalancer_id": "shop", "default_pool_id": "web"}},
            *(400, "ELB.8902", "UDP is not TCP"),
        ),
    ],
)
def test_what_is_refused_says_so_to_people_and_programs(
    client: Client, kept: Kept, path: str, body: Any, status: int, code: str, problem: str
) -> None:
    assert problem in refused(client.post(f"{ELB}/{path}", json=body), status, code)
    assert kept.configuration is FULL


def test_members_of_a_load_balancer_that_takes_none_have_their_own_code(client: Client) -> None:
    wanted = {"vip_address": "10.0.0.120"}
    balancer = ok(client.post(f"{ELB}/loadbalancers", json={"loadbalancer": wanted}), 201)["loadbalancer"]["id"]
    wanted = {"protocol": "TCP", "lb_algorithm": "ROUND_ROBIN", "loadbalancer_id": balancer}
    pool = ok(client.post(f"{ELB}/pools", json={"pool": wanted}), 201)["pool"]["id"]
    member = {"member": {"address": "10.0.0.30", "protocol_port": 80}}
    assert "ip_target_enable is false" in refused(
        client.post(f"{ELB}/pools/{pool}/members", json=member), 400, "ELB.8939"
    )


def test_five_hundred_members_and_no_more(client: Client) -> None:
    rows = [{"address": "10.0.0.30", "protocol_port": 1 + port, "max_connections": 9} for port in range(498)]
    at = f"{ELB}/pools/web/members/batch-add"
    for start, count in ((0, 200), (200, 200), (400, 97)):
        some = {"members": rows[start : start + count]}
        assert len(ok(client.post(at, json=some), 201)["members"]) == count
    assert "501 are too many" in refused(client.post(at, json={"members": rows[497:]}), 409, "ELB.8905")
    assert "200 items" in refused(client.post(at, json={"members": rows[:201]}), 400, "ELB.8902")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NetworkError("route: refused (see)"), 409, "ELB.8907"),
        (DatapathError("maps: refused (see)"), 409, "ELB.8907"),
        (StoreError("store: full (make room)"), 500, "ELB.8906"),
    ],
)
def test_a_refusal_from_below_is_told(client: Client, kept: Kept, error: Exception, status: int, code: str) -> None:
    kept.refusal = error
    assert refused(client.delete(f"{ELB}/listeners/http"), status, code).splitlines()[-1] == str(error)


def test_a_bug_is_told_without_its_innards(client: Client, kept: Kept) -> None:
    kept.refusal = ZeroDivisionError("secret")
    assert refused(client.delete(f"{ELB}/listeners/http"), 500, "ELB.8906") == "Internal server error."


def test_unknown_paths_and_methods(client: Client) -> None:
    refused(client.get(f"{ELB}/nonsense"), 404, "ELB.8904")
    refused(client.patch(f"{ELB}/pools"), 405, "ELB.8902")


def many(kept: Kept, count: int) -> list[str]:
    """So many pools more, by id."""
    web = FULL.pools["web"]
    pools = {f"p{i}": replace(web, id=f"p{i}", name=f"n{i % 2}", members=()) for i in range(count)}
    kept.configuration = replace(FULL, pools={**FULL.pools, **pools})
    return list(kept.configuration.pools)


def test_pages(client: Client, kept: Kept) -> None:
    ids = many(kept, 8)
    seen, query = list[str](), {"limit": "3"}
    while True:
        body = ok(client.get(f"{ELB}/pools", params=query))
        seen += [row["id"] for row in body["pools"]]
        assert body["page_info"]["current_count"] == len(body["pools"]) <= 3
        if "next_marker" not in body["page_info"]:
            break
        query["marker"] = body["page_info"]["next_marker"]
    assert seen == ids

    half = {"limit": str(len(ids) // 2), "marker": ids[len(ids) // 2 - 1]}
    last = ok(client.get(f"{ELB}/pools", params=half))
    assert last["page_info"] == {"current_count": 5, "previous_marker": ids[5]}
    back = ok(client.get(f"{ELB}/pools", params={"limit": "3", "marker": ids[5], "page_reverse": "true"}))
    assert [row["id"] for row in back["pools"]] == ids[2:5]
    assert ok(client.get(f"{ELB}/pools", params={"limit": "0"}))["pools"] == []


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("limit=2001", "limit: '2001'"),
        ("limit=-1", "limit: '-1'"),
        ("limit=x", "limit: 'x'"),
        ("marker=nobody", "marker: there is no 'nobody'"),
        ("page_reverse=maybe", "page_reverse: 'maybe'"),
        ("colour=red", "colour: not a field to filter by"),
    ],
)
def test_pages_and_filters_that_cannot_be(client: Client, query: str, problem: str) -> None:
    assert problem in refused(client.get(f"{ELB}/pools?{query}"), 400, "ELB.8902")


def test_filters(client: Client, kept: Kept) -> None:
    many(kept, 4)

    def found(query: str) -> list[str]:
        return [row["id"] for row in ok(client.get(f"{ELB}/pools?{query}"))["pools"]]

    assert found("name=n1") == ["p1", "p3"]
    assert found("name=n1&name=web") == ["web", "p1", "p3"]
    assert found("name=n1&id=p3") == ["p3"]
    assert found("name=nobody") == []
    assert found("admin_state_up=true&healthmonitor_id=check") == ["web"]


def test_a_document_is_applied_or_only_tried(client: Client, kept: Kept) -> None:
    document = {"toml": '[pools.shared]\nprotocol = "TCP"\ndescription = "d"\n', "dry_run": True}
    tried = ok(client.post(f"{OURS}/apply", json={"apply": document}))["apply"]
    assert [row["text"] for row in tried["changes"]] == ["pool shared changed: description none → d"]
    assert (tried["revision"], kept.configuration) == (1, FULL)

    done = ok(client.post(f"{OURS}/apply", json={"apply": {**document, "dry_run": False}}))["apply"]
    assert done == {**tried, "revision": 2, "dry_run": False}
    assert kept.configuration.pools["shared"].description == "d"
    assert len(kept.configuration.pools["shared"].members) == 2

    broken = {"apply": {"toml": "[pools", "source": "lb.toml"}}
    assert "\nlb.toml: " in refused(client.post(f"{OURS}/apply", json=broken), 400, "ELB.8902")
    assert kept.revision == 2


def test_revisions(client: Client, kept: Kept) -> None:
    (row,) = ok(client.get(f"{OURS}/revisions"))["revisions"]
    assert row == {"number": 1, "time": "2026-01-01T00:00:00Z", "author": "root", "summary": "all"}
    assert len(ok(client.get(f"{OURS}/revisions/1"))["changes"]) == 16
    kept.configuration = Configuration()
    assert len(ok(client.post(f"{OURS}/revisions/1/rollback"))["changes"]) == 16
    assert kept.configuration is FULL
    refused(client.get(f"{OURS}/revisions/x"), 400, "ELB.8902")


def test_status(client: Client, kept: Kept) -> None:
    kept.drift, kept.problem = ["route missing"], "eth1 is gone"
    status = ok(client.get(f"{OURS}/status"))["status"]
    assert (status["drift"], status["problem"], status["forwarding"]) == (["route missing"], "eth1 is gone", False)
    assert (status["resources"]["members"], status["endpoints"]) == (5, 4)


def test_the_openapi_document_names_every_operation(client: Client) -> None:
    document = client.get("/openapi.json").json()
    operations = [(method, path) for path, methods in document["paths"].items() for method in methods]
    assert ("post", "/v3/{project_id}/elb/pools/{pool}/members/batch-add") in operations
    assert len({one["operationId"] for methods in document["paths"].values() for one in methods.values()}) == len(
        operations
    )
