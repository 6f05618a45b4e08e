"""Members that go, with real clients: who keeps a connection and for how long, and that both its ends learn its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.packet import Packet

from ipbackend.abi import SweepMode
from ipbackend.datapath.loader import SWEEP, pinned_program
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.tables import Tables
from tests.netns.clients import Connection, RawPort, UdpClient, connect, http_get, open_many
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import CLIENT, CLIENTS, MEMBERS, Lab
from tests.netns.members import Member
from tests.netns.test_daemon import ask, id_of
from tests.netns.test_expiry import established_at
from tests.netns.test_gateway import INTRANET, RESOLVER, WEB, only, wait_until
from tests.netns.test_health import all_online, monitored, states

pytestmark = pytest.mark.root

DELAY = 10  # seconds: the least that a pool can have
WITH_DELAY = CONFIGURATION.replace(
    '[pools.web]\nprotocol = "TCP"', f'[pools.web]\nprotocol = "TCP"\nconnection_drain = {DELAY}'
)


def without(member: str, configuration: str = CONFIGURATION) -> str:
    """The web pool without one of its members; the intranet's stay."""
    lines = configuration.splitlines(keepends=True)
    return "".join(line for line in lines if f'    {{ address = "{MEMBERS[member]}", port = 8080' not in line)


def by_member(connections: list[Connection]) -> dict[str, list[Connection]]:
    found: dict[str, list[Connection]] = {}
    for one in connections:
        found.setdefault(one.get().identity.member, []).append(one)
    return found


def is_reset(connection: Connection, deadline: float = 5.0) -> bool:
    """Whether it is ended by a RST; False: silence, or an orderly end."""
    connection.socket.settimeout(deadline)
    try:
        return bool(connection.socket.recv(1)) and False
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def is_rst(packet: Packet) -> bool:
    return TCP in packet and "R" in packet[TCP].flags


def all_serve(connections: list[Connection]) -> bool:
    for one in connections:
        one.socket.settimeout(5.0)
    return {one.get().status for one in connections} == {200}


def member_row(gateway: Gateway, member: str, pool: str = "web") -> dict[str, Any]:
    (row,) = (
        one for one in gateway.json("member", "list", "--pool", pool) if one["member"] == f"{MEMBERS[member]}:8080"
    )
    return dict(row)


def drains(gateway: Gateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(gateway, "GET", "/ipbackend/drains")["drains"]
    return found


def member_id(gateway: Gateway, member: str, pool: str = "web") -> tuple[str, str]:
    pool_id = id_of(gateway, "pools", pool)
    (one,) = ask(gateway, "GET", f"/elb/pools/{pool_id}/members", address=MEMBERS[member])["members"]
    return pool_id, one["id"]


def drain(gateway: Gateway, member: str, delay: int | None = None) -> dict[str, Any]:
    pool, number = member_id(gateway, member)
    asked = {"pool_id": pool, "member_id": number, **({} if delay is None else {"delay": delay})}
    begun: dict[str, Any] = ask(gateway, "POST", "/ipbackend/drains", {"drain": asked})["drain"]
    return begun


def is_gone(gateway: Gateway, member: str) -> bool:
    """Whether the data plane has no endpoint of the member's TCP port any more."""
    with Maps(gateway.run_directory) as maps:
        address = int.from_bytes(bytes(map(int, MEMBERS[member].split("."))), "little")
        rows = (maps["endpoints"].memory()[number] for _, number in maps.directory("endpoints_by_addr").entries())
        return not any(row.address == address and row.protocol == 6 for row in rows)


@contextlib.contextmanager
def load(lab: Lab) -> Iterator[Counter[str]]:
    """A client that asks again and again; who answered, and `failed`."""
    seen, done = Counter[str](), threading.Event()

    def run() -> None:
        while not done.is_set():
            try:
                seen[http_get(lab["client"], CLIENTS[5], WEB).identity.member] += 1
            except OSError:
                seen["failed"] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


# --- At once.


@pytest.mark.parametrize("member", ["member-2", "member-onprem"])
def test_a_member_that_is_removed_is_cut_and_both_ends_are_told(gateway: Gateway, lab: Lab, member: str) -> None:
    """Its connections and no others; when the ends know, nothing of it is left."""
    with (
        RawPort(lab["client"], "eth0") as clients_wire,
        RawPort(lab[member], "eth0") as members_wire,
        load(lab) as seen,
        open_many(lab["client"], CLIENT, WEB, 80) as crowd,
    ):
        its = by_member(crowd.connected)
        lost = its.pop(member)
        peers = {one.get().identity.peer for one in lost}
        gateway.apply(without(member))

        assert all(is_reset(one) for one in lost)
        assert all(all_serve(rest) for rest in its.values())
        wait_until(lambda: not peers & established_at(lab, member))
        told = {(CLIENT, one.local[1]) for one in lost}
        assert told <= {(one[IP].dst, one[TCP].dport) for one in clients_wire.arrived() if is_rst(one)}
        members_peers = {f"{one[IP].src}:{one[TCP].sport}" for one in members_wire.arrived() if is_rst(one)}
        assert peers <= members_peers
        wait_until(lambda: is_gone(gateway, member))
    assert sum(seen.values()) > 10
    assert seen["failed"] <= 1  # the one under way, if it was that member's


def test_a_member_of_two_pools_loses_the_connections_of_one(gateway: Gateway, lab: Lab) -> None:
    gateway.apply(only("member-peered"))
    with (
        open_many(lab["client"], CLIENT, WEB, 20) as shop,
        open_many(lab["client"], CLIENT, INTRANET, 20) as office,
    ):
        assert all_serve(shop.connected + office.connected)
        before = member_row(gateway, "member-peered", "intranet")["removed"]
        gateway.apply(only("member-1"))

        assert all(is_reset(one) for one in shop.connected)
        assert all_serve(office.connected)
        row = member_row(gateway, "member-peered", "intranet")
        assert (row["active"], row["removed"] - before) == (20, 20)
        assert drains(gateway) == []


def test_a_listener_that_is_deleted_cuts_its_connections(gateway: Gateway, lab: Lab) -> None:
    """With its load balancer: the VIP stays in the data plane for as long as there are ends to be told."""
    gateway.apply(only("member-peered"))
    with (
        RawPort(lab["member-peered"], "eth0") as wire,
        open_many(lab["client"], CLIENT, WEB, 20) as shop,
        open_many(lab["client"], CLIENT, INTRANET, 20) as office,
    ):
        peers = {one.get().identity.peer for one in office.connected}
        ask(gateway, "DELETE", f"/elb/loadbalancers/{id_of(gateway, 'loadbalancers', 'office')}/force-elb")

        assert all(is_reset(one) for one in office.connected)
        wait_until(lambda: {f"{p[IP].src}:{p[TCP].sport}" for p in wire.arrived() if is_rst(p)} >= peers)
        assert all_serve(shop.connected)
    with Maps(gateway.run_directory) as maps:
        wait_until(lambda: len(list(maps.directory("addresses").entries())) == 5)  # 4 SNAT addresses and the other VIP
    with pytest.raises(TimeoutError):
        connect(lab["client"], None, INTRANET, timeout=1)


def test_a_daemon_that_was_killed_tells_the_ends_when_it_is_back(gateway: Gateway, lab: Lab) -> None:
    """It died between the cut and the telling: neither end has said or heard anything since."""
    gateway.apply(only("member-1"))
    with open_many(lab["client"], CLIENT, WEB, 8) as crowd:
        peers = {one.get().identity.peer for one in crowd.connected}
        gateway.kill()
        program = pinned_program(gateway.run_directory, SWEEP)
        assert program is not None
        with Maps(gateway.run_directory) as maps:
            tables = Tables(maps, program)
            ended = [tables.sweep(number, SweepMode.REMOVED)[0] for number in tables.read().endpoints]
        os.close(program)
        assert sum(ended) == 8
        assert peers <= established_at(lab, "member-1")
        gateway.start()

        assert all(is_reset(one) for one in crowd.connected)
        wait_until(lambda: not peers & established_at(lab, "member-1"))


def test_datagrams_go_elsewhere_at_once(gateway: Gateway, lab: Lab) -> None:
    with UdpClient(lab["client"], CLIENTS[6], RESOLVER) as client:
        first = client.ask(b"one").member
        stays = "192.168.50.10" if first == "member-1" else "10.0.0.11"
        other = "10.0.0.11" if first == "member-1" else "192.168.50.10"
        gateway.apply(
            CONFIGURATION.replace(f'    {{ address = "{other}", port = 5353, max_connections = 1000 }},\n', "")
        )
        assert MEMBERS[client.ask(b"two").member] == stays


def test_a_network_that_goes_cuts_those_who_drain_in_it(gateway: Gateway, lab: Lab) -> None:
    gateway.apply(WITH_DELAY)
    with open_many(lab["client"], CLIENT, WEB, 16) as crowd:
        lost = by_member(crowd.connected)["member-onprem"]
        without_members = "".join(
            one for one in without("member-onprem", WITH_DELAY).splitlines(True) if "192.168.50.10" not in one
        )
        gateway.apply(without_members)
        assert [one["connections"] for one in drains(gateway)] == [len(lost)]
        start = without_members.index("[networks.on-premises]")
        gateway.apply(without_members[:start] + without_members[without_members.index("[load_balancers.shop]") :])

        assert all(is_reset(one) for one in lost)
        assert drains(gateway) == []
    wait_until(lambda: is_gone(gateway, "member-onprem"))


# --- After a time.


def test_weight_0_without_a_delay_leaves_connections_for_good(gateway: Gateway, lab: Lab) -> None:
    with open_many(lab["client"], CLIENT, WEB, 80) as crowd:
        its = by_member(crowd.connected)
        gateway.apply(CONFIGURATION.replace("weight = 3", "weight = 0"))
        held = its["member-1"]
        assert member_row(gateway, "member-1")["state"] == f"draining, {len(held)} left"
        assert "member-1" not in {http_get(lab["client"], None, WEB).identity.member for _ in range(20)}
        while held:
            held.pop().close()
            wait_until(lambda: member_row(gateway, "member-1")["active"] == len(held))
            (one,) = drains(gateway) or [{"connections": 0, "until": None}]
            assert (one["connections"], one["until"]) == (len(held), None)
            if len(held) == 25:
                break
        assert all_serve(held)
        assert all(all_serve(rest) for rest in its.values() if rest)


def test_when_the_delay_runs_out_both_ends_are_told(gateway: Gateway, lab: Lab) -> None:
    """Until then they are served, and counted exactly; other members' connections notice nothing."""
    with (
        RawPort(lab["member-1"], "eth0") as wire,
        load(lab) as seen,
        open_many(lab["client"], CLIENT, WEB, 80) as crowd,
    ):
        its = by_member(crowd.connected)
        held = its.pop("member-1")
        peers = {one.get().identity.peer for one in held}
        drained = member_row(gateway, "member-1")["drained"]
        begun = drain(gateway, "member-1", delay=5)
        assert 0 <= begun["connections"] - len(held) <= 1  # the load's
        assert 4 < begun["seconds_left"] <= 5
        assert begun["until"] - time.time() <= 6

        for _ in range(7):
            held.pop().close()
        wait_until(lambda: drains(gateway)[0]["connections"] == len(held))
        assert member_row(gateway, "member-1")["state"].startswith(f"draining, {len(held)} left, until ")
        assert drains(gateway)[0]["listeners"] == [
            {"listener_id": id_of(gateway, "listeners", "web"), "connections": len(held)}
        ]
        assert all_serve(held)
        answered = seen["member-1"]
        assert all(is_reset(one, 8) for one in held)
        assert time.time() >= begun["until"] - 1
        told = {f"{packet[IP].src}:{packet[TCP].sport}" for packet in wire.arrived() if is_rst(packet)}
        assert len(told & peers) == len(held)
        assert all(all_serve(rest) for rest in its.values())
        assert seen["member-1"] == answered
    assert seen["failed"] == 0
    assert member_row(gateway, "member-1")["drained"] - drained == len(held)
    wait_until(lambda: drains(gateway) == [])


def test_a_member_that_is_removed_keeps_its_delay_over_a_restart(gateway: Gateway, lab: Lab) -> None:
    """The daemon is killed in the middle: connections go on, and end when they were to end."""
    gateway.apply(WITH_DELAY)
    with load(lab) as seen, open_many(lab["client"], CLIENT, WEB, 80) as crowd:
        its = by_member(crowd.connected)
        held = its.pop("member-2")
        gateway.apply(without("member-2", WITH_DELAY))
        began = time.monotonic()
        (before,) = drains(gateway)
        assert (before["reason"], before["connections"] - len(held)) in {("removed", 0), ("removed", 1)}
        gateway.kill()
        assert all_serve(held)
        gateway.start()

        (after,) = drains(gateway)
        assert after["until"] == before["until"]
        wait_until(lambda: drains(gateway)[0]["connections"] == len(held))
        assert member_row(gateway, "member-2")["state"].startswith(f"removed, draining, {len(held)} left, until ")
        assert all_serve(held)
        assert all(is_reset(one, 15) for one in held)
        assert DELAY - 1 <= time.monotonic() - began <= DELAY + 4
        assert all(all_serve(rest) for rest in its.values())
        wait_until(lambda: is_gone(gateway, "member-2"))
        assert drains(gateway) == []
    assert seen["failed"] == 0
    assert seen["member-2"] < sum(seen.values()) / 2


@pytest.mark.parametrize("how", ["weight", "added", "rollback"])
def test_a_member_that_comes_back_keeps_its_connections(gateway: Gateway, lab: Lab, how: str) -> None:
    gateway.apply(WITH_DELAY)
    revision = ask(gateway, "GET", "/ipbackend/status")["status"]["revision"]
    with open_many(lab["client"], CLIENT, WEB, 16) as crowd:
        held = by_member(crowd.connected)["member-2"]
        if how == "weight":
            drain(gateway, "member-2", delay=3)
        else:
            drain(gateway, "member-2", delay=4)  # sooner than the pool says; to be removed makes it no later
            gateway.apply(without("member-2", WITH_DELAY))
        (begun,) = drains(gateway)
        assert begun["connections"] == len(held)
        if how == "rollback":
            ask(gateway, "POST", f"/ipbackend/revisions/{revision}/rollback")
        else:
            gateway.apply(WITH_DELAY)
        assert drains(gateway) == []
        assert member_row(gateway, "member-2")["state"] == "reachable"
        time.sleep(max(begun["until"] - time.time(), 0) + 1.5)  # nothing is to happen: there is no condition for that
        assert all_serve(held)


def test_a_gateway_that_is_made_anew_does_not_take_drains_along(gateway: Gateway, lab: Lab) -> None:
    gateway.apply(WITH_DELAY)
    nobody = "".join(
        line for line in WITH_DELAY.splitlines(True) if "port = 8080" not in line and "port = 5353" not in line
    )
    with open_many(lab["client"], CLIENT, WEB, 4) as crowd:
        assert all_serve(crowd.connected)
        gateway.apply(nobody)
        refused = gateway.ask("gateway", "set", "--max-connections", "900000")
        assert refused.returncode == 1
        assert "members still drain: 10.0.0.11:8080" in refused.stderr
        assert all_serve(crowd.connected)


# --- From the command line.


def test_drain_waits_and_tells_how_many_are_left(gateway: Gateway, lab: Lab) -> None:
    with open_many(lab["client"], CLIENT, WEB, 24) as crowd:
        held = by_member(crowd.connected)["member-1"]
        command = ("member", "drain", f"{MEMBERS['member-1']}:8080", "--pool", "web", "--delay", "4", "--wait")
        done = gateway.ask(*command)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(f"10.0.0.11:8080: draining, {len(held)} left, until ")
        assert done.stdout == f"10.0.0.11:8080 has no connections: the last {len(held)} were cut as the delay ran out\n"
        assert all(is_reset(one) for one in held)


def test_interrupting_the_wait_does_not_end_the_drain(gateway: Gateway, lab: Lab) -> None:
    with open_many(lab["client"], CLIENT, WEB, 8) as crowd:
        held = by_member(crowd.connected)["member-1"]
        command = ("member", "drain", f"{MEMBERS['member-1']}:8080", "--pool", "web", "--delay", "60", "--wait")
        waiting = gateway.begin(*command, stderr=subprocess.PIPE)
        wait_until(lambda: bool(drains(gateway)))
        assert waiting.stderr is not None
        first = waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        _, rest = waiting.communicate(timeout=10)
        assert waiting.returncode == 130
        assert first.startswith(f"10.0.0.11:8080: draining, {len(held)} left, until ")
        assert f"10.0.0.11:8080 goes on draining, {len(held)} left, until " in rest
        assert [one["connections"] for one in drains(gateway)] == [len(held)]
        assert all_serve(held)


def test_connections_are_killed_by_their_ends(gateway: Gateway, lab: Lab) -> None:
    gateway.apply(only("member-1"))
    with (
        RawPort(lab["member-1"], "eth0") as wire,
        open_many(lab["client"], CLIENTS[2], WEB, 6) as crowd,
        open_many(lab["client"], CLIENTS[3], WEB, 6) as others,
    ):
        first, *rest = crowd.connected
        peer = first.get().identity.peer
        assert all_serve(rest + others.connected)
        one = f"{CLIENTS[2]}:{first.local[1]}"
        assert gateway.command("connection", "kill", "--client", one) == "1 connection ended\n"
        assert is_reset(first)
        wire.expect(lambda packet: is_rst(packet) and f"{packet[IP].src}:{packet[TCP].sport}" == peer)
        assert gateway.command("connection", "kill", "--client", one) == "0 connections ended\n"

        asked = gateway.ask("connection", "kill", "--client", CLIENTS[2])  # nobody answers its question
        assert (asked.returncode, "End 5 connections?" in asked.stderr) == (1, True)
        assert all_serve(rest)
        killed = gateway.json("connection", "kill", "--client", CLIENTS[2], "--listener", "web", "--yes")
        assert killed == {"connections": 5}
        assert all(is_reset(one) for one in rest)
        assert all_serve(others.connected)
        assert gateway.json("connection", "kill", "--client", CLIENTS[3], "--listener", "intranet", "--yes") == {
            "connections": 0
        }
        row = member_row(gateway, "member-1")
        assert (row["active"], row["killed"]) == (6, 6)
    assert gateway.ask("connection", "kill").returncode == 2


# --- By what the health monitor says.


def test_a_member_that_goes_down_drains_and_is_cut_after_the_delay(
    gateway: Gateway, lab: Lab, members: dict[str, Member]
) -> None:
    """It hangs: what it has is left alone for the delay, then both ends are told; those of others go on."""
    gateway.apply(WITH_DELAY)
    process = members["member-1"]._process
    with monitored(gateway, "web", "HTTP"), open_many(lab["client"], CLIENT, WEB, 24) as crowd:
        all_online(gateway, "web")
        its = by_member(crowd.connected)
        lost = its.pop("member-1")
        process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: states(gateway, "web")["member-1"] == "OFFLINE")
            wait_until(lambda: len(drains(gateway)) == 1)
            began, (drained,) = time.monotonic(), drains(gateway)
            assert (drained["reason"], drained["connections"]) == ("down", len(lost))
            assert DELAY - 5 < drained["seconds_left"] <= DELAY
            assert all(is_reset(one, 2 * DELAY) for one in lost)
            assert time.monotonic() - began > drained["seconds_left"] - 2
            assert all(all_serve(rest) for rest in its.values())
            wait_until(lambda: drains(gateway) == [])
        finally:
            process.send_signal(signal.SIGCONT)
        all_online(gateway, "web")


def test_a_member_that_is_up_again_in_time_keeps_its_connections(
    gateway: Gateway, lab: Lab, members: dict[str, Member]
) -> None:
    gateway.apply(WITH_DELAY)
    process = members["member-1"]._process
    with monitored(gateway, "web", "HTTP"), open_many(lab["client"], CLIENT, WEB, 24) as crowd:
        all_online(gateway, "web")
        process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: len(drains(gateway)) == 1)
        finally:
            process.send_signal(signal.SIGCONT)
        all_online(gateway, "web")
        wait_until(lambda: drains(gateway) == [])
        time.sleep(DELAY + 2)  # as long as it would have had: nothing is to happen
        assert all_serve(crowd.connected)
