"""What the API tells of traffic, while there is some."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from ipbackend.errors import ServiceError
from tests.netns.clients import UdpClient, connect, http_get, open_many
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import CLIENTS, MEMBERS, SHOP_VIP, SNATS, Lab
from tests.netns.test_gateway import wait_until

pytestmark = pytest.mark.root

WEB, RESOLVER = (SHOP_VIP, 80), (SHOP_VIP, 53)


def asked(gateway: Gateway, what: str, **query: Any) -> Any:
    with gateway.client() as client:
        return client.request("GET", f"/ipbackend/{what}", **query)


def named(gateway: Gateway, kind: str, name: str) -> str:
    with gateway.client() as client:
        number: str = client.request("GET", f"/elb/{kind}", name=name)[kind][0]["id"]
        return number


def test_connections_are_told_from_either_end(gateway: Gateway, lab: Lab) -> None:
    web = named(gateway, "listeners", "web")
    wait_until(lambda: not asked(gateway, "connections", listener=web)["connections"])  # of earlier tests
    with (
        open_many(lab["client"], CLIENTS[3], WEB, 8) as crowd,
        connect(lab["client"], CLIENTS[4], WEB) as single,
        UdpClient(lab["client"], CLIENTS[4], RESOLVER) as asking,
    ):
        identities = [one.get().identity for one in crowd.connected]
        identity = single.get().identity
        asking.ask(b"question")

        found = asked(gateway, "connections", client=CLIENTS[3], listener=web)
        rows = found["connections"]
        assert not found["more"]
        assert {row["snat"] for row in rows} == {one.peer for one in identities}
        assert Counter(row["member"].split(":")[0] for row in rows) == Counter(
            MEMBERS[one.member] for one in identities
        )
        assert {row["listener_id"] for row in rows} == {web}
        assert {(row["vip"], row["state"], row["protocol"]) for row in rows} == {
            (f"{SHOP_VIP}:80", "ESTABLISHED", "TCP")
        }

        (row,) = asked(gateway, "connections", client=":".join(map(str, single.local)))["connections"]
        assert row["snat"] == identity.peer
        assert row["member"] == f"{MEMBERS[identity.member]}:8080"
        to_member = asked(gateway, "connections", member=row["member"])["connections"]
        assert row["client"] in {one["client"] for one in to_member}
        assert {one["member"] for one in to_member} == {row["member"]}
        assert 0 <= row["idle"] <= row["age"]
        resolver = named(gateway, "listeners", "resolver")
        at = ":".join(map(str, asking.socket.getsockname()))
        (row,) = asked(gateway, "connections", listener=resolver, client=at)["connections"]
        assert (row["protocol"], row["listener_id"]) == ("UDP", resolver)
        some = asked(gateway, "connections", client=CLIENTS[3], listener=web, limit=5)
        assert (len(some["connections"]), some["more"]) == (5, True)
    with pytest.raises(ServiceError, match="'nowhere' is not an IPv4 address"):
        asked(gateway, "connections", member="nowhere")


def test_loads_and_snat_addresses_count_what_is_open(gateway: Gateway, lab: Lab) -> None:
    gateway.apply(CONFIGURATION.replace("weight = 3 }", "weight = 3, max_connections = 1000 }"))
    gateway.command("connection", "kill", "--client", "0.0.0.0/0", "--yes")
    pool = named(gateway, "pools", "web")
    wait_until(lambda: not any(row["active"] for row in asked(gateway, "members", pool_id=pool)["members"]))
    before = {row["address"]: row for row in asked(gateway, "members", pool_id=pool)["members"]}
    with open_many(lab["client"], CLIENTS[5], WEB, 80) as crowd:
        opened = Counter(MEMBERS[one.get().identity.member] for one in crowd.connected)
        rows = {row["address"]: row for row in asked(gateway, "members", pool_id=pool)["members"]}
        for address, row in rows.items():
            assert row["opened"] - before[address]["opened"] == row["active"] == opened[address]
            assert row["free_slots"] == before[address]["free_slots"] - opened[address]
            assert row["state"] == "reachable"
        near = rows[MEMBERS["member-1"]]
        assert (near["ceiling"], near["half_open"], near["half_open_limit"], near["weight"]) == (1000, 0, 100, 3)

        def carried() -> dict[str, int]:
            return {row["address"]: row["active"] for row in asked(gateway, "snat-addresses")["snat_addresses"]}

        def used() -> Counter[str]:
            return Counter(row["snat"].split(":")[0] for row in asked(gateway, "connections")["connections"])

        assert list(carried()) == list(SNATS)
        assert sum(carried().values()) >= 80
        wait_until(lambda: carried() == used())  # what earlier tests opened may end between the two


def test_counters_are_told_by_verdict(gateway: Gateway, lab: Lab) -> None:
    def packets() -> dict[str, int]:
        return {row["verdict"]: row["packets"] for row in asked(gateway, "counters")["verdicts"]}

    before = packets()
    http_get(lab["client"], None, WEB)
    answer = asked(gateway, "counters")
    after = {row["verdict"]: row["packets"] for row in answer["verdicts"]}
    assert after["FORWARD_OPENED"] - before["FORWARD_OPENED"] == 1
    assert after["FORWARD_REPLY"] - before["FORWARD_REPLY"] >= 3
    totals = answer["totals"]
    assert totals["received"] == sum(totals[name] for name in ("passed", "forwarded", "rejected", "dropped"))
    assert totals["received"] == sum(after.values())
    assert all(row["meaning"] for row in answer["verdicts"])
