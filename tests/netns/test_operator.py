"""The command line on the real daemon: a whole life, what a plan ends, one screen, and pipes that break."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.netns.clients import open_many
from tests.netns.gateway import COMMAND, CONFIGURATION, Gateway
from tests.netns.lab import SECOND_VIP, SHOP_VIP, Lab
from tests.netns.life import live
from tests.netns.members import Member
from tests.netns.test_draining import WITH_DELAY

pytestmark = pytest.mark.root
INTRANET = """[listeners.intranet]
load_balancer = "office"
protocol = "TCP"
port = 80
pool = "intranet"
"""


@pytest.fixture
def emptied(started: Gateway, members: dict[str, Member]) -> Gateway:
    """With nothing in its store."""
    if started.process is None:
        started.start()
    with started.client() as client:
        for one in client.request("GET", "/elb/loadbalancers")["loadbalancers"]:
            client.request("DELETE", f"/elb/loadbalancers/{one['id']}/force-elb")
        for one in client.request("GET", "/elb/pools")["pools"]:
            client.request("DELETE", f"/elb/pools/{one['id']}/delete-cascade")
        for one in client.request("GET", "/ipbackend/networks")["networks"]:
            client.request("DELETE", f"/ipbackend/networks/{one['id']}")
        if client.request("GET", "/ipbackend/status")["status"]["forwarding"]:
            client.request("DELETE", "/ipbackend/gateway")
    return started


def test_a_life(emptied: Gateway, lab: Lab) -> None:
    told: list[str] = []

    live(lab, emptied, told.append)

    assert "0 added, 1,000 changed, 0 removed; no open connection ends" in "\n".join(told)


def test_a_plan_tells_which_connections_end(gateway: Gateway, lab: Lab) -> None:
    """Of a listener that goes only its own; of a member that goes all, or those of the pool that loses it."""
    file = gateway.run_directory / "wanted.toml"
    with open_many(lab["client"], None, (SHOP_VIP, 80), 16), open_many(lab["client"], None, (SECOND_VIP, 80), 6):
        file.write_text(CONFIGURATION.replace(INTRANET, ""))
        listener = gateway.command("apply", "-f", str(file), "--prune", "--dry-run").splitlines()
        file.write_text(CONFIGURATION.replace('{ address = "172.16.10.10", port = 8080, weight = 2 },', ""))
        shared = gateway.command("apply", "-f", str(file), "--prune", "--dry-run").splitlines()
        file.write_text(CONFIGURATION.replace('{ address = "10.0.0.11", port = 8080, weight = 3 },', ""))
        member = gateway.command("apply", "-f", str(file), "--prune", "--dry-run").splitlines()
        draining = WITH_DELAY.replace('{ address = "10.0.0.11", port = 8080, weight = 3 },', "")
        file.write_text(draining.replace("weight = 2", "weight = 0", 1))
        later = gateway.command("apply", "-f", str(file), "--prune", "--dry-run").splitlines()
        count = len(gateway.json("connection", "list", "--member", "10.0.0.11:8080"))
        other = len(gateway.json("connection", "list", "--member", "10.0.0.12:8080"))
        of_both = gateway.json("connection", "list", "--member", "172.16.10.10:8080")
        of_web = sum(one["listener"] == "web" for one in of_both)

    assert listener[0] == "- listener intranet (6 open connections end)"
    assert shared[:2] == [
        f"- member 172.16.10.10:8080 of web ({of_web} open connections end)",
        f"0 added, 0 changed, 1 removed; {of_web} open connections end",
    ]
    assert len(of_both) == of_web + 6
    assert count
    assert member[0] == f"- member 10.0.0.11:8080 of web ({count} open connections end)"
    assert member[1].endswith(f"1 removed; {count} open connections end")
    assert later == [
        "~ pool web: connection_drain none → 10",
        f"~ member 10.0.0.12:8080 of web: weight 2 → 0 ({other} open connections drain)",
        f"- member 10.0.0.11:8080 of web ({count} open connections drain)",
        f"0 added, 2 changed, 1 removed; no open connection ends, {count + other} drain",
        "nothing was changed",
    ]


def test_the_status_is_one_screen(gateway: Gateway, lab: Lab) -> None:
    gateway.apply(CONFIGURATION.replace("weight = 3 }", "weight = 3, max_connections = 4 }"))
    with open_many(lab["client"], None, (SHOP_VIP, 80), 24):
        lines = gateway.command("status").splitlines()
        data = gateway.json("status")

    assert len(lines) <= 30
    assert lines[0] == "gateway      forwarding on eth0, eth1, SNAT 10.0.0.101, 10.0.0.102, 10.0.0.103, 10.0.0.104"
    assert lines[1].startswith("connections  24 open of 1,000,000 (0.0 %), 6 endpoints")
    (pool,) = (one for one in data["live"]["pools"] if one["name"] == "web")
    assert (pool["members"], pool["up"], pool["active"], pool["room"]) == (4, 4, 24, 300_004 - 24)
    assert data["live"]["fullest"][0] == {"member": "10.0.0.11:8080", "protocol": "TCP", "active": 4, "ceiling": 4}


def test_a_pipe_that_breaks_is_no_error(gateway: Gateway) -> None:
    """`ipbackend map dump endpoints | head -1`, with more to say than a pipe holds."""
    environment = {**os.environ, "IPBACKEND_RUN_DIR": str(gateway.run_directory)}
    command = (*COMMAND, "map", "dump", "flow_index", "--output", "json")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
