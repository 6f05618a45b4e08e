"""The daemon as operators meet it: refusals, drift, kills, disks that are full, files that are newer."""

from __future__ import annotations

import os
import pwd
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from ipbackend.abi import UNSWEPT, Road
from ipbackend.client import Client
from ipbackend.config import parse
from ipbackend.datapath.directory import Directory, key_of, parts_of
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.tables import ip_to_map
from ipbackend.errors import NotRunningError, ServiceError
from ipbackend.store import Store
from tests.netns.clients import UdpClient, connect, http_get, open_many
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import CLIENT, CLIENTS, MEMBERS, SHOP_VIP, SNATS, Lab

pytestmark = pytest.mark.root

WEB, RESOLVER = (SHOP_VIP, 80), (SHOP_VIP, 53)


def wait_until(condition: Callable[[], bool], deadline: float = 120.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


def ask(gateway: Gateway, method: str, path: str, body: Any = None, **query: Any) -> Any:
    with gateway.client() as client:
        return client.request(method, path, body, **query)


def status(gateway: Gateway) -> dict[str, Any]:
    answer: dict[str, Any] = ask(gateway, "GET", "/ipbackend/status")["status"]
    return answer


def id_of(gateway: Gateway, kind: str, name: str) -> str:
    (row,) = ask(gateway, "GET", f"/elb/{kind}", name=name)[kind]
    return str(row["id"])


def member(address: str, port: int, **more: int) -> dict[str, Any]:
    return {"address": address, "protocol_port": port, **more}


# --- Changes.


def test_an_empty_store_waits_and_is_told(lab: Lab, gateway: Gateway) -> None:
    gateway.stop()
    gateway.command("unload")
    gateway.store.unlink()
    gateway.start()
    assert status(gateway)["forwarding"] is False
    with pytest.raises(ServiceError, match="gateway: is missing"):
        ask(gateway, "POST", "/elb/loadbalancers", {"loadbalancer": {"vip_address": SHOP_VIP}})
    wanted = {"interfaces": ["eth0", "eth1"], "snat_addresses": list(SNATS)}
    ask(gateway, "PUT", "/ipbackend/gateway", {"gateway": wanted})
    assert status(gateway)["forwarding"] is True

    def post(path: str, what: str, **fields: Any) -> str:
        return str(ask(gateway, "POST", path, {what: fields})[what]["id"])

    post("/ipbackend/networks", "network", name="vpc", kind="local", cidrs=["10.0.0.0/24"])
    balancer = post("/elb/loadbalancers", "loadbalancer", name="shop", vip_address=SHOP_VIP, ip_target_enable=True)
    listener = post("/elb/listeners", "listener", loadbalancer_id=balancer, protocol="TCP", protocol_port=80)
    with pytest.raises(ConnectionRefusedError):
        connect(lab["client"], None, WEB)
    pool = post("/elb/pools", "pool", protocol="TCP", lb_algorithm="ROUND_ROBIN", listener_id=listener)
    one = post(f"/elb/pools/{pool}/members", "member", **member(MEMBERS["member-1"], 8080, max_connections=100))
    wait_until(lambda: gateway.json("member", "list")[0]["state"] == "reachable")
    assert http_get(lab["client"], None, WEB).identity.member == "member-1"

    ask(gateway, "DELETE", f"/elb/pools/{pool}/members/{one}")
    with pytest.raises(ConnectionRefusedError):
        connect(lab["client"], None, WEB)
    ask(gateway, "DELETE", f"/elb/loadbalancers/{balancer}/force-elb")
    assert gateway.json("listener", "list") == []


def test_who_changes_what_is_written_down_and_can_be_rolled_back(lab: Lab, gateway: Gateway) -> None:
    before = status(gateway)["revision"]
    gateway.apply(CONFIGURATION.replace("weight = 3", "weight = 9"))
    (row,) = ask(gateway, "GET", "/ipbackend/revisions", limit=1)["revisions"]
    assert (row["number"], row["author"]) == (before + 1, pwd.getpwuid(os.getuid()).pw_name)
    assert row["summary"] == f"member {MEMBERS['member-1']}:8080 of web changed: weight 3 → 9"

    assert gateway.json("member", "list", "--pool", "web")[0]["weight"] == 9
    ask(gateway, "POST", f"/ipbackend/revisions/{before}/rollback")
    assert gateway.json("member", "list", "--pool", "web")[0]["weight"] == 3
    (row,) = ask(gateway, "GET", "/ipbackend/revisions", limit=1)["revisions"]
    assert (row["number"], row["summary"]) == (before + 2, f"rolled back to revision {before}")


def test_a_file_is_applied_from_the_command_line(lab: Lab, gateway: Gateway, tmp_path: Path) -> None:
    file, before = tmp_path / "gateway.toml", status(gateway)["revision"]
    file.write_text(CONFIGURATION.replace("weight = 3", "weight = 5"))
    plan = f"~ member {MEMBERS['member-1']}:8080 of web: weight 3 → 5\n"
    plan += "0 added, 1 changed, 0 removed; no open connection ends\n"
    assert gateway.command("apply", "-f", str(file), "--dry-run") == plan + "nothing was changed\n"
    assert status(gateway)["revision"] == before
    assert gateway.command("apply", "-f", str(file), "--prune") == f"{plan}applied: revision {before + 1}\n"
    again = {"revision": before + 1, "dry_run": False, "changes": [], "ending": {}, "draining": {}}
    assert gateway.json("apply", "-f", str(file)) == again

    file.write_text(CONFIGURATION.replace("weight = 3", "weight = 101").replace("port = 80\n", 'port = "80"\n', 1))
    refused = gateway.ask("apply", "-f", str(file))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.splitlines() == [
        "Error: pools.web.members[0].weight: 101 is out of range (write 0 to 100)",
        "Error: listeners.web.port: got the string '80' (expected an integer)",
    ]


def test_the_socket_is_for_root_and_the_group(gateway: Gateway) -> None:
    mode = (gateway.run_directory / "api.sock").stat().st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o660)


def test_a_ceiling_that_outgrows_its_table_is_refused_and_not_kept(lab: Lab, gateway: Gateway) -> None:
    small = CONFIGURATION.replace("max_connections = 1000 }", "max_connections = 100 }")
    gateway.apply(small.replace('address = "10.0.0.11", port = 5353', 'address = "10.0.0.12", port = 5353'))
    before = status(gateway)["revision"]
    pool = id_of(gateway, "pools", "resolver")
    one = ask(gateway, "GET", f"/elb/pools/{pool}/members", address="10.0.0.12")["members"][0]
    at = f"/elb/pools/{pool}/members/{one['id']}"
    ask(gateway, "PUT", at, {"member": {"max_connections": 150 * 100 // 130}})
    with pytest.raises(ServiceError, match=r"10\.0\.0\.12:5353/UDP: max_connections 5000 is more than its table of"):
        ask(gateway, "PUT", at, {"member": {"max_connections": 5000, "weight": 7}})
    assert status(gateway)["revision"] == before + 1
    assert ask(gateway, "GET", at)["member"]["weight"] == 1
    with sqlite3.connect(f"file:{gateway.store}?mode=ro", uri=True) as file:
        assert file.execute("SELECT max(number) FROM revisions").fetchone() == (before + 1,)


def test_what_the_kernel_refuses_is_not_kept(lab: Lab, gateway: Gateway) -> None:
    """Somebody else's route stands in the way: 409, and nothing of the change is there, in the store or in the maps."""
    before = status(gateway)
    with lab["gateway"].netlink() as netlink:
        index = netlink.link_lookup(ifname="eth1")[0]
        netlink.route("add", dst="172.20.0.0/16", gateway="10.0.0.2", oif=index, proto=4)
        try:
            more = '\n[networks.more]\nkind = "vpn"\ncidrs = ["172.20.0.0/16"]\nnext_hop = "10.0.0.3"\n'
            with pytest.raises(ServiceError, match=r"route to 172\.20\.0\.0/16 via 10\.0\.0\.3 .*somebody else's"):
                gateway.apply((CONFIGURATION + more).replace("weight = 3", "weight = 4"))
        finally:
            netlink.route("del", dst="172.20.0.0/16", gateway="10.0.0.2", oif=index)
    assert status(gateway) == before
    assert gateway.json("member", "list", "--pool", "web")[0]["weight"] == 3


def test_what_the_kernel_refuses_at_last_is_taken_back(lab: Lab, gateway: Gateway) -> None:
    """A next hop on no link: only the kernel knows, when the change is kept already."""
    before, said = status(gateway), len(gateway.log())
    more = '\n[networks.more]\nkind = "vpn"\ncidrs = ["172.20.0.0/16"]\nnext_hop = "10.77.0.9"\n'
    with connect(lab["client"], None, WEB) as connection:
        identity = connection.get().identity
        with pytest.raises(
            ServiceError, match=r"route to 172\.20\.0\.0/16 via 10\.77\.0\.9 on eth1: .*must be a neighbour"
        ):
            gateway.apply((CONFIGURATION + more).replace("weight = 3", "weight = 4"))
        assert "could not be applied and is taken back: route to 172.20.0.0/16" in gateway.log()[said:]
        assert status(gateway) == before
        (row,) = ask(gateway, "GET", "/ipbackend/revisions", limit=1)["revisions"]
        assert row["number"] == before["revision"]
        assert gateway.json("member", "list", "--pool", "web")[0]["weight"] == 3
        assert connection.get().identity == identity
    gateway.apply(CONFIGURATION.replace("weight = 3", "weight = 4"))
    assert status(gateway)["revision"] == before["revision"] + 2  # numbers are never used again


def test_a_thousand_members_are_one_change_and_one_swap(lab: Lab, gateway: Gateway) -> None:
    def many(weight: int) -> str:
        rows = [
            f'    {{ address = "172.16.10.{20 + i % 200}", port = {9000 + i // 200}, weight = {weight}, '
            "max_connections = 10 },\n"
            for i in range(1000)
        ]
        pools = [f'[pools.bulk{p}]\nprotocol = "TCP"\nmembers = [\n{"".join(rows[p::2])}]\n' for p in range(2)]
        listeners = [
            f'[listeners.bulk{p}]\nload_balancer = "shop"\nprotocol = "TCP"\nport = {9000 + p}\npool = "bulk{p}"\n'
            for p in range(2)
        ]
        return CONFIGURATION + "".join(pools + listeners)

    with connect(lab["client"], None, WEB) as connection:
        identity = connection.get().identity
        assert len(gateway.apply(many(1))) == 1004
        revision, said = status(gateway)["revision"], len(gateway.log())
        assert len(gateway.apply(many(2).replace("weight = 2, max", "weight = 1, max", 1))) == 999
        assert status(gateway)["revision"] == revision + 1
        changed = [line for line in gateway.log()[said:].splitlines() if "data plane changed" in line]
        (swap,) = changed  # of one pool: in the other one all weights are the same again, and so are the turns
        assert swap.startswith("INFO data plane changed: set pools ")
        assert connection.get().identity == identity


# --- Drift.


@contextmanager
def maps(gateway: Gateway) -> Iterator[Maps]:
    with Maps(gateway.run_directory) as opened:
        yield opened


def without_route(lab: Lab, gateway: Gateway) -> None:
    with lab["gateway"].netlink() as netlink:
        netlink.route("del", dst="192.168.50.0/24", proto=173)


def clear(directory: Directory) -> None:
    for key, _ in list(directory.entries()):
        directory.delete(key)


def without_roads(lab: Lab, gateway: Gateway) -> None:
    with maps(gateway) as opened:
        for road in Road:
            opened["roads"].delete(int(road))


def without_listener(lab: Lab, gateway: Gateway) -> None:
    with maps(gateway) as opened:
        clear(opened.directory("listeners_by_addr"))


def without_vip(lab: Lab, gateway: Gateway) -> None:
    with maps(gateway) as opened:
        assert opened.directory("addresses").delete(key_of(ip_to_map(IPv4Address(SHOP_VIP))))


def without_endpoint_ids(lab: Lab, gateway: Gateway) -> None:
    with maps(gateway) as opened:
        clear(opened.directory("endpoints_by_addr"))


def without_pool(lab: Lab, gateway: Gateway) -> None:
    with maps(gateway) as opened:
        for key, _ in list(opened["pools"].items()):
            opened["pools"].delete(key)


def without_next_hops(lab: Lab, gateway: Gateway) -> None:
    with maps(gateway) as opened:
        table = opened["next_hops"]
        for number in range(1, 6):
            table.set(number, table.leaf())


def without_ceiling(lab: Lab, gateway: Gateway) -> None:
    with maps(gateway) as opened:
        for _, number in opened.directory("endpoints_by_addr").entries():
            opened["load"].memory()[number].ceiling = 0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_roads, "program OPEN missing"),
        (without_listener, f"map listeners: to set {SHOP_VIP}:80/TCP"),
        (without_vip, f"map addresses: to set {SHOP_VIP}"),
        (without_endpoint_ids, "map endpoint_ids: to set 10.0.0.11:8080/TCP"),
        (without_pool, "map pools: to set 1"),
        (without_next_hops, "map next_hops: to set 10.0.0.3"),
        (without_ceiling, "map endpoints: to set 10.0.0.11:8080/TCP"),
    ],
)
def test_what_others_change_is_put_back_and_told(
    lab: Lab, gateway: Gateway, spoil: Callable[[Lab, Gateway], None], said: str
) -> None:
    with open_many(lab["client"], CLIENT, WEB, 16) as crowd:
        first = [connection.get().identity for connection in crowd.connected]
        before = len(gateway.log())
        spoil(lab, gateway)
        wait_until(lambda: f"drift: {said}, put back" in gateway.log()[before:])
        wait_until(lambda: status(gateway)["drift"] == [])
        assert [connection.get().identity for connection in crowd.connected] == first
        with open_many(lab["client"], CLIENT, WEB, 16) as more:
            assert len(more.connected) == 16
            assert {one.get().identity.member for one in more.connected} == set(MEMBERS)


def test_an_observer_only_tells(lab: Lab, gateway: Gateway) -> None:
    gateway.stop()
    gateway.start("--observe")
    try:
        without_route(lab, gateway)
        without_listener(lab, gateway)
        wait_until(lambda: len(status(gateway)["drift"]) == 4)
        assert "drift: route to 192.168.50.0/24 missing (only observed)" in gateway.log()
        with pytest.raises(ConnectionRefusedError):
            connect(lab["client"], None, WEB)
        assert gateway.log().count("(only observed)") == 4
    finally:
        gateway.stop()
        gateway.start()
    wait_until(lambda: status(gateway)["drift"] == [])
    assert http_get(lab["client"], None, WEB).status == 200


def test_nothing_changes_while_nothing_is_wrong(lab: Lab, gateway: Gateway) -> None:
    """Over several looks at the kernel, with traffic, the daemon has nothing to say."""
    with lab["gateway"].netlink() as netlink:
        index = netlink.link_lookup(ifname="eth1")[0]
        said = len(gateway.log())
        for _ in range(5):  # each event has the daemon look at everything
            netlink.addr("add", index=index, address="10.99.0.1", prefixlen=24)
            http_get(lab["client"], None, WEB)
            netlink.addr("del", index=index, address="10.99.0.1", prefixlen=24)
    gateway.apply(CONFIGURATION)
    assert gateway.log()[said:] == ""


# --- What goes wrong around it.


def test_a_killed_daemon_leaves_the_change_whole_or_undone(lab: Lab, gateway: Gateway) -> None:
    """Killed at some moment of a change, over and over: store and maps agree after the next start, all or nothing."""
    extra = "".join(f'    {{ address = "10.0.0.12", port = {9000 + i}, max_connections = 10 }},\n' for i in range(200))
    changed = CONFIGURATION.replace("members = [\n", f"members = [\n{extra}", 1)
    with connect(lab["client"], None, WEB) as connection:
        identity = connection.get().identity
        for pause in (0.0, 0.02, 0.05, 0.08, 0.12):
            gateway.apply(CONFIGURATION)
            killer = threading.Timer(pause, gateway.kill)
            killer.start()
            try:
                gateway.apply(changed)
                answered = True
            except (ServiceError, NotRunningError):
                answered = False
            killer.join()
            assert connection.get().identity == identity
            gateway.start()
            count = len(gateway.json("member", "list", "--pool", "web"))
            assert count == 204 if answered else count in (4, 204)
            assert {row["state"] for row in gateway.json("member", "list", "--pool", "web")} <= {"reachable"}
            assert gateway.command("audit") == "clean\n"


def test_what_cannot_be_set_up_is_told_and_can_be_put_right(lab: Lab, gateway: Gateway) -> None:
    """The store names an interface that is not there: the daemon comes up, says so, and takes the change that helps."""
    gateway.stop()
    with Store(gateway.store) as kept:
        want = parse(CONFIGURATION.replace('"eth1"]', '"eth9", "eth1"]'), "test", kept.configuration, prune=True)
        kept.write(want, "test")
    with connect(lab["client"], None, WEB) as connection:
        identity = connection.get().identity
        gateway.start()
        assert "there is no interface eth9" in status(gateway)["problem"]
        assert connection.get().identity == identity
        with pytest.raises(ServiceError, match="there is no interface eth9"):
            ask(gateway, "PUT", "/ipbackend/gateway", {"gateway": {"rest": 30}})
        ask(gateway, "PUT", "/ipbackend/gateway", {"gateway": {"interfaces": ["eth0", "eth1"]}})
        assert (status(gateway)["problem"], status(gateway)["forwarding"]) == (None, True)
        assert connection.get().identity == identity


def test_a_first_gateway_that_cannot_be_is_not_kept(lab: Lab, gateway: Gateway) -> None:
    gateway.stop()
    gateway.command("unload")
    gateway.store.unlink()
    gateway.start()
    with pytest.raises(ServiceError, match="there is no interface eth9"):
        gateway.apply(CONFIGURATION.replace('"eth1"]', '"eth1", "eth9"]'))
    assert status(gateway)["revision"] == 0
    gateway.apply(CONFIGURATION)
    assert http_get(lab["client"], None, WEB).status == 200


def test_a_second_daemon_is_refused(gateway: Gateway) -> None:
    assert "another ipbackend is running here" in gateway.ask("run", "--store", "/run/second.db").stderr
    assert not Path("/run/second.db").exists()


def test_with_no_daemon_the_client_says_how_to_get_one(gateway: Gateway, tmp_path: Path) -> None:
    with Client(tmp_path) as client, pytest.raises(NotRunningError, match=r"api\.sock: no daemon .*: No such file"):
        client.request("GET", "/ipbackend/status")


def test_without_a_daemon_status_says_so_and_connections_go_on(lab: Lab, gateway: Gateway) -> None:
    """Datagrams of more clients than a member has room for, none of which ends: openings end what is silent."""
    few = CONFIGURATION.replace("max_connections = 1000 }", "max_connections = 50 }")
    none = few[: few.index("[pools.resolver]")].replace('pool = "resolver"\n', "") + few[few.index("# The peered") :]
    gateway.apply(none)
    gateway.apply(few.replace("port = 53\n", "port = 53\nidle_timeout = 10\n"))
    wait_until(lambda: http_get(lab["client"], None, WEB).status == 200)
    with connect(lab["client"], None, WEB) as connection:
        identity = connection.get().identity
        gateway.kill()
        told = gateway.ask("status")
        assert told.returncode == 1
        assert "forwards on" in told.stdout
        assert "not as wanted: " in told.stdout
        assert "no daemon answers there" in told.stdout
        wait_until(lambda: unswept(gateway) > UNSWEPT + 1, 40)
        assert "openings end what is silent for too long" in gateway.ask("status").stdout
        answered = 0
        for number in range(300):
            with UdpClient(lab["client"], CLIENTS[number % 14], RESOLVER) as client:
                client.ask(b"?")
                answered += 1
            with maps(gateway) as opened:  # as if the idle timeout had passed
                age(opened, 11)
        assert answered == 300
        assert connection.get().identity == identity
        assert http_get(lab["client"], None, WEB).status == 200
        gateway.start()
        assert connection.get().identity == identity
    wait_until(lambda: unswept(gateway) < UNSWEPT)
    assert gateway.ask("status").returncode == 0
    gateway.apply(none)  # the small tables go


def unswept(gateway: Gateway) -> float:
    with maps(gateway) as opened:
        seconds = opened.seconds_unswept
    assert seconds is not None
    return seconds


def age(opened: Maps, seconds: float) -> None:
    """Have every exchange of datagrams have been silent for so long."""
    then = (opened.clock.now() - opened.clock.ticks(seconds)) % 2**32
    for key, number in opened.directory("endpoints_by_addr").entries():
        if parts_of(key)[2]:
            for connection in opened.of_endpoint("conntrack", number):
                connection.last_seen = then
