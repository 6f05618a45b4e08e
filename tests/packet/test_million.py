"""A million connections in the maps: what of them is found, and that looking asks the kernel for none by itself."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from ipbackend.abi import Phase
from ipbackend.config import parse
from ipbackend.connections import Wanted, connections
from ipbackend.datapath import syscall
from ipbackend.datapath.clock import TICKS
from ipbackend.peer import peer, peers
from ipbackend.view import View
from tests.packet import cast
from tests.packet.conftest import Dataplane, start_over

MEMBERS, EACH = 10, 100_000
ROW = np.dtype(
    {
        "names": ["state", "client", "vip", "ports", "protocol", "listener", "endpoint", "opened"],
        "formats": ["u8", ">u4", ">u4", "2>u2", "u1", "u2", "u2", "u4"],
        "offsets": [0, 8, 12, 16, 20, 24, 26, 28],
        "itemsize": 64,
    }
)
CLIENTS = int.from_bytes(socket.inet_aton("100.64.0.0"), "big")


@pytest.fixture(scope="module")
def view(loaded: Dataplane) -> Iterator[View]:
    """Ten members with 100,000 connections each; client number n, of all, talks to member n % 10."""
    members = [f'address = "10.0.0.{host}", port = 8080' for host in range(11, 11 + MEMBERS)]
    configuration = parse(cast.pool_of(*members), "test")
    loaded.reset()
    loaded.configure(cast.NETWORKS)  # whatever members there were are gone, and their slots free
    loaded.configure(configuration)
    (listener,) = loaded.entries.listeners.values()
    clock = loaded.maps.clock
    endpoints = sorted(loaded.entries.endpoints.items(), key=lambda pair: pair[1].key.address)
    for member, (number, _) in enumerate(endpoints):
        rows = np.frombuffer(loaded.maps.of_endpoint("conntrack", number).bytes, ROW)[:EACH]
        rows["state"] = Phase.ESTABLISHED
        rows["client"] = CLIENTS + member + MEMBERS * np.arange(EACH)
        rows["vip"] = int.from_bytes(socket.inet_aton(cast.VIP), "big")
        rows["ports"] = (40000, 80)
        rows["protocol"] = socket.IPPROTO_TCP
        rows["listener"], rows["endpoint"] = listener.id, number
        rows["opened"] = (clock.now() - clock.ticks(member * 1000)) % TICKS
    yield View(loaded.maps, configuration, loaded.entries)
    for number, _ in endpoints:
        np.frombuffer(loaded.maps.of_endpoint("conntrack", number).bytes, "u1")[:] = 0
    start_over(loaded)


def test_the_rows_are_those_of_the_c_struct(loaded: Dataplane) -> None:
    leaf = loaded.maps["conntrack"].leaf
    names = {"ports": "client_port"}
    for name, (_, offset) in ROW.fields.items():
        assert getattr(leaf, names.get(name, name)).offset == offset


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (Wanted(client=peers("100.64.0.7")), 1),
        (Wanted(client=peers("100.64.0.0/24")), 256),
        (Wanted(client=peers("100.64.0.0/24"), member=peer("10.0.0.11:8080")), 26),
        (Wanted(client=peers("100.64.0.0/24"), older_than=4500), 126),
        (Wanted(port=81), 0),
        (Wanted(phases=bytes([Phase.CLOSED])), 0),
        (Wanted(client=peers("100.64.0.7:40001")), 0),
    ],
    ids=str,
)
def test_a_few_of_a_million_are_found(view: View, monkeypatch: pytest.MonkeyPatch, wanted: Wanted, count: int) -> None:
    asked: list[bytes] = []
    monkeypatch.setattr(syscall, "lookup", lambda *arguments: asked.append(arguments[1]))

    found = list(connections(view, wanted))

    assert len(found) == count
    assert asked == []  # not even one system call for all


def test_the_first_are_shown_without_looking_at_the_others(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    there = view.maps.of_endpoint
    monkeypatch.setattr(view.maps, "of_endpoint", lambda name, number: (looked.append(number), there(name, number))[1])

    rows = list(islice(connections(view, Wanted(port=80)), 1000))

    assert [row.client for row in rows[:2]] == ["100.64.0.0:40000", "100.64.0.10:40000"]
    assert len(looked) == 1
