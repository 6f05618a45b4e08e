"""What the soak looks for at its end: each thing that a load could leave is planted, told of, and taken away again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from ipbackend.datapath.maps import Maps
from tests.netns.clients import connect
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import CLIENT, MEMBERS, SHOP_VIP, Lab
from tests.netns.test_gateway import wait_until
from tests.soak.books import Kernel, Process, Remembered, leftovers

pytestmark = pytest.mark.root

WEB = (SHOP_VIP, 80)
NONE = CONFIGURATION[: CONFIGURATION.index("[listeners.web]")].replace(
    "[gateway]\n", "[gateway]\nrest = 1\nclosing_timeout = 1\n", 1
)
SMALL = f"""{NONE}
[listeners.web]
load_balancer = "shop"
protocol = "TCP"
port = 80
pool = "web"

[pools.web]
protocol = "TCP"
members = [{{ address = "{MEMBERS["member-1"]}", port = 8080, max_connections = 100 }}]
"""


@pytest.fixture
def empty(gateway: Gateway) -> Iterator[Gateway]:
    """With a small table, and nothing left of whoever was here before."""
    gateway.apply(NONE)
    wait_until(lambda: Kernel.of(gateway.run_directory).endpoints == {}, 30)
    gateway.apply(SMALL)
    wait_until(lambda: left(gateway) == [], 30)
    yield gateway
    gateway.apply(NONE)
    wait_until(lambda: Kernel.of(gateway.run_directory).endpoints == {}, 30)


def left(gateway: Gateway) -> list[str]:
    return list(leftovers(gateway.run_directory))


@contextmanager
def planted(gateway: Gateway, name: str, row: int, field: str, value: int) -> Iterator[None]:
    with Maps(gateway.run_directory) as maps:
        its = maps[name].memory()[row]
        before = getattr(its, field)
        setattr(its, field, value)
        try:
            yield
        finally:
            setattr(its, field, before)


def test_a_connection_is_left_until_its_slot_has_rested(empty: Gateway, lab: Lab) -> None:
    with connect(lab["client"], CLIENT, WEB) as connection:
        connection.get()
        told = "\n".join(left(empty))
    assert "active 1, half open 0" in told
    assert "slots {'ESTABLISHED': 1}" in told
    assert "flow_index: 1 entries" in told
    assert "listener" in told
    wait_until(lambda: any("slots {'CLOSED': 1}" in line for line in left(empty)))
    wait_until(lambda: left(empty) == [], 30)


@pytest.mark.parametrize(
    ("name", "field", "told"),
    [
        ("load", "active", "active 1, half open 0"),
        ("load", "half_open", "active 0, half open 1"),
        ("listener_load", "active", "active 1"),
    ],
)
def test_a_count_that_is_left_is_told_of(empty: Gateway, name: str, field: str, told: str) -> None:
    with planted(empty, name, 1, field, 1):
        assert any(told in line for line in left(empty))
    assert left(empty) == []


def test_a_slot_that_is_in_the_queue_never_or_twice_is_told_of(empty: Gateway) -> None:
    with Maps(empty.run_directory) as maps:
        row = maps["endpoints"].memory()[1]
        ring = maps["free_slots"].memory().part(row.first, row.slots).bytes.cast("Q")
        there = ring[0]
        for wrong in (0, ring[1]):
            ring[0] = wrong
            assert any(f"{row.slots - 1} of {row.slots} slots queued" in line for line in left(empty))
        ring[0] = there
    assert left(empty) == []


def test_an_index_entry_that_is_left_is_told_of(empty: Gateway) -> None:
    with Maps(empty.run_directory) as maps:
        index = maps["flow_index"].memory().bytes.cast("Q")
        index[12345] = 7 << 32 | 5
        assert "flow_index: 1 entries" in left(empty)
        index[12345] = 0
    assert left(empty) == []


def test_what_was_remembered_after_a_moment_is_told_from_what_was_before(empty: Gateway) -> None:
    with Maps(empty.run_directory) as maps:
        its = maps["fragments"]
        key, value = its.key(saddr=1, daddr=2, id=3, protocol=17), its.leaf(seen=maps.clock.now())
        its.set(key, value)
        try:
            now = time.monotonic()
            assert Remembered.of(empty.run_directory, now - 10).late["fragments"] == 1
            assert Remembered.of(empty.run_directory, now + 10).late["fragments"] == 0
            assert Remembered.of(empty.run_directory, now).entries["fragments"] >= 1
        finally:
            its.delete(key)


def test_a_configuration_leaves_nothing_of_its_own_in_the_kernel(empty: Gateway) -> None:
    """A listener, a member and a list more are seen, and when they go all is as before."""
    before = Kernel.of(empty.run_directory)
    more = '[ip_groups.few]\ncidrs = ["192.0.2.0/24"]\n\n[listeners.more]\nload_balancer = "shop"\nprotocol = "TCP"\n'
    more += 'port = 81\npool = "more"\nip_groups = ["few"]\n\n[pools.more]\nprotocol = "TCP"\n'
    more += 'members = [{ address = "10.0.0.12", port = 81 }]\n'
    empty.apply(f"{SMALL}\n{more}")
    there = Kernel.of(empty.run_directory)
    grown = {name for name in before.__dataclass_fields__ if getattr(before, name) != getattr(there, name)}
    assert grown >= {"endpoints", "listeners", "pools", "access", "memory"}
    empty.apply(SMALL)
    after = Kernel.of(empty.run_directory)
    assert replace(after, memory={}) == replace(before, memory={})
    assert after.memory["access"] == before.memory["access"]


def opened(gateway: Gateway) -> Callable[[], bool]:
    """Whether the daemon has a descriptor more than it has now."""
    before = Process.of(gateway.pid).descriptors
    return lambda: (Process.of(gateway.pid).descriptors - before)["socket:[N]"] > 0


def test_a_descriptor_that_the_daemon_keeps_is_seen(empty: Gateway) -> None:
    """Of a client that has connected and says nothing."""
    more = opened(empty)
    with empty.client() as client:
        client.request("GET", "/ipbackend/status")
        wait_until(more)
    wait_until(lambda: not more())


def test_slots_come_back_though_the_daemon_was_held_up_while_they_rested(empty: Gateway, lab: Lab) -> None:
    """Its sweep saw them closed, and comes again only when all must have rested."""
    empty.apply(SMALL.replace("rest = 1\n", "rest = 3\n"))
    with connect(lab["client"], CLIENT, WEB) as connection:
        connection.get()
    time.sleep(1.5)  # a sweep
    os.kill(empty.pid, signal.SIGSTOP)
    time.sleep(9)  # the rest, and the margin
    os.kill(empty.pid, signal.SIGCONT)
    wait_until(lambda: left(empty) == [], 30)
