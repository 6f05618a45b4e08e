"""Pools that a controller left behind that died between two steps."""

from __future__ import annotations

from typing import Any

import pytest

from ipbackend.datapath import syscall
from tests.packet.conftest import Dataplane

pytestmark = pytest.mark.root

LEFT, NOTED, ROWS = 77, 78, 5


def test_they_are_taken_away_and_those_in_use_stay(dataplane: Dataplane) -> None:
    pools = dataplane.maps["pools"]
    used = {key for key, _ in pools.items()}
    assert used == {one.pool for one in dataplane.entries.listeners.values()}
    pools.set_inner({LEFT: pools.new_inner(ROWS)})
    assert pools.inner_size(LEFT) == ROWS
    dataplane.maps["cursors"].memory()[NOTED].there = 1  # and then it died

    dataplane.tables.drop_leftovers()

    assert pools.inner_size(LEFT) == pools.inner_size(NOTED) == 0
    assert {key for key, _ in pools.items()} == used
    assert {key for key, there in enumerate(pools.there) if there} == used


def test_only_those_that_are_there_are_looked_at(dataplane: Dataplane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at a map of maps takes some 10 ms before Linux 6.8: at all 16,384 it would take minutes."""
    looked, look = [], syscall.lookup

    def counted(fd: int, *more: Any) -> bytes | None:
        looked.append(fd)
        return look(fd, *more)

    monkeypatch.setattr(syscall, "lookup", counted)
    dataplane.tables.drop_leftovers()
    dataplane.tables.read()

    used = len({one.pool for one in dataplane.entries.listeners.values()})
    assert used <= looked.count(dataplane.maps["pools"].fd) <= 4 * used
