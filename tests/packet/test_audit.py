"""The audit finds each kind of difference, one at a time, and under traffic of all CPUs none that is not there."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

from ipbackend.datapath.audit import Auditor, audit
from ipbackend.datapath.flow_index import buckets_of
from tests.packet.cast import MEMBER, NETWORKS, OTHER_CLIENT, SYN, from_client
from tests.packet.conftest import Dataplane
from tests.packet.driver import RST, Burst
from tests.packet.driver import SYN as SYN_FLAG
from tests.packet.test_races import start

SECONDS = float(os.environ.get("AUDIT_SECONDS", "3"))  # of traffic
Undo = Callable[[], None]


def word(dataplane: Dataplane, name: str, row: int, field: str, value: int) -> Undo:
    """Put this into a field; returns what puts back what was there."""
    there = dataplane.maps[name].memory()[row]
    before = getattr(there, field)
    setattr(there, field, value)
    return lambda: setattr(there, field, before)


def entry_of(dataplane: Dataplane, slot: int) -> int:
    """Where the index has a slot: the position of its entry among all."""
    words = dataplane.maps["flow_index"].memory().bytes.cast("Q")
    return next(at for at, entry in enumerate(words) if entry and entry & 0xFFFF_FFFF == slot)


def in_index(dataplane: Dataplane, *changes: tuple[int, int]) -> Undo:
    """Put these entries at these positions."""
    words = dataplane.maps["flow_index"].memory().bytes.cast("Q")
    before = [(at, words[at]) for at, _ in changes]

    def put(entries: list[tuple[int, int]]) -> None:
        for at, entry in entries:
            words[at] = entry

    put(list(changes))
    return lambda: put(before)


class Scene:
    """One open connection, and one that has closed and rests."""

    def __init__(self, dataplane: Dataplane) -> None:
        self.dataplane = dataplane
        opened, closed = dataplane.establish(), dataplane.open(from_client(OTHER_CLIENT) / SYN.payload.payload.copy())
        dataplane.run(closed.request(flags="R"))
        self.endpoint = dataplane.endpoint()
        self.first = dataplane.entries.endpoints[self.endpoint].first
        self.open, self.closed = dataplane.slot(opened), dataplane.slot(closed)
        self.rests = dataplane.phase(closed).name
        self.listener = dataplane.connection(opened).listener
        self.load = dataplane.load()

    def queued(self, slot: int) -> int:
        """Where a slot stands in the queue, among all."""
        ring = self.dataplane.maps.of_endpoint("free_slots", self.endpoint).values("slot").tolist()
        return self.first + ring.index(self.first + slot)

    def index(self) -> tuple[list[int], int]:
        words = self.dataplane.maps["flow_index"].memory().bytes.cast("Q")
        at = entry_of(self.dataplane, self.first + self.open)
        return words, at


def differs(what: str, by: int) -> str:
    return f"{what}: they differ by {by}"


def count_too_high(its: Scene) -> tuple[Undo, set[str]]:
    undo = word(its.dataplane, "load", its.endpoint, "active", its.load.active + 1)
    return undo, {differs(f"endpoint {its.endpoint}: active, and such connections in its slots", 1)}


def count_too_low(its: Scene) -> tuple[Undo, set[str]]:
    undo = word(its.dataplane, "load", its.endpoint, "active", its.load.active - 1)
    return undo, {differs(f"endpoint {its.endpoint}: active, and such connections in its slots", -1)}


def handshake_not_counted_down(its: Scene) -> tuple[Undo, set[str]]:
    undo = word(its.dataplane, "load", its.endpoint, "half_open", its.load.half_open + 1)
    return undo, {differs(f"endpoint {its.endpoint}: half_open, and such connections in its slots", 1)}


def listener_count(its: Scene) -> tuple[Undo, set[str]]:
    undo = word(its.dataplane, "listener_load", its.listener, "active", 7)
    return undo, {differs(f"listener {its.listener}: active, and its connections in all slots", 6)}


def count_of_a_listener_that_is_gone(its: Scene) -> tuple[Undo, set[str]]:
    undo = word(its.dataplane, "listener_load", 99, "active", 1)
    return undo, {differs("listener 99: active, and its connections in all slots", 1)}


def slot_in_no_queue(its: Scene) -> tuple[Undo, set[str]]:
    undo = word(its.dataplane, "free_slots", its.queued(its.closed), "slot", 0)
    what = f"slot {its.closed}, {its.rests}, how often it is in the queue, and should be"
    return undo, {differs(f"endpoint {its.endpoint}: {what}", -1)}


def slot_twice_in_the_queue(its: Scene) -> tuple[Undo, set[str]]:
    undo = word(its.dataplane, "free_slots", its.queued(9), "slot", its.first + 8)
    what = "FREE, how often it is in the queue, and should be"
    return undo, {
        differs(f"endpoint {its.endpoint}: slot 8, {what}", 1),
        differs(f"endpoint {its.endpoint}: slot 9, {what}", -1),
    }


def open_slot_in_the_queue(its: Scene) -> tuple[Undo, set[str]]:
    undo = word(its.dataplane, "free_slots", its.queued(9), "slot", its.first + its.open)
    what = "how often it is in the queue, and should be"
    return undo, {
        differs(f"endpoint {its.endpoint}: slot {its.open}, ESTABLISHED, {what}", 1),
        differs(f"endpoint {its.endpoint}: slot 9, FREE, {what}", -1),
    }


def anothers_slot_in_the_queue(its: Scene) -> tuple[Undo, set[str]]:
    undo = word(its.dataplane, "free_slots", its.queued(9), "slot", 1)
    return undo, {
        differs(f"endpoint {its.endpoint}: a place for slot 0x1 of all in its queue, and should be", 1),
        differs(f"endpoint {its.endpoint}: slot 9, FREE, how often it is in the queue, and should be", -1),
    }


def connection_in_no_index(its: Scene) -> tuple[Undo, set[str]]:
    _, at = its.index()
    what = f"slot {its.open}, ESTABLISHED, how often it is in the flow index, and should be"
    return in_index(its.dataplane, (at, 0)), {differs(f"endpoint {its.endpoint}: {what}", -1)}


def connection_twice_in_the_index(its: Scene) -> tuple[Undo, set[str]]:
    words, at = its.index()
    empty = next(one for one in range(at // 8 * 8, at // 8 * 8 + 8) if not words[one])
    what = f"slot {its.open}, ESTABLISHED, how often it is in the flow index, and should be"
    return in_index(its.dataplane, (empty, words[at])), {differs(f"endpoint {its.endpoint}: {what}", 1)}


def stray(bucket: int, slot: int) -> str:
    return differs(
        f"flow_index: bucket {bucket}, an entry for slot {slot:#x} of all, and a connection that it leads to", 1
    )


def entry_of_no_connection(its: Scene) -> tuple[Undo, set[str]]:
    slot = its.first + 9
    return in_index(its.dataplane, (8 * 1000, 5 << 32 | slot)), {stray(1000, slot)}


def entry_of_no_slot(its: Scene) -> tuple[Undo, set[str]]:
    return in_index(its.dataplane, (8 * 1000, 5 << 32 | 0xFFFF_FFFE)), {stray(1000, 0xFFFF_FFFE)}


def entry_in_the_wrong_bucket(its: Scene) -> tuple[Undo, set[str]]:
    words, at = its.index()
    there = {at // 8, *buckets_of(words[at], len(words) // 8)}
    bucket = next(one for one in range(1000) if one not in there and not words[8 * one])
    what = f"slot {its.open}, ESTABLISHED, how often it is in the flow index, and should be"
    undo = in_index(its.dataplane, (8 * bucket, words[at]), (at, 0))
    return undo, {differs(f"endpoint {its.endpoint}: {what}", -1), stray(bucket, its.first + its.open)}


KINDS = [
    count_too_high,
    count_too_low,
    handshake_not_counted_down,
    listener_count,
    count_of_a_listener_that_is_gone,
    slot_in_no_queue,
    slot_twice_in_the_queue,
    open_slot_in_the_queue,
    anothers_slot_in_the_queue,
    connection_in_no_index,
    connection_twice_in_the_index,
    entry_of_no_connection,
    entry_of_no_slot,
    entry_in_the_wrong_bucket,
]


@pytest.mark.parametrize("plant", KINDS)
def test_each_kind_of_difference_is_found_and_no_other(dataplane, plant):
    its = Scene(dataplane)
    assert audit(dataplane.maps) == []
    undo, expected = plant(its)
    found = audit(dataplane.maps)
    undo()

    assert set(found) == expected
    assert len(found) == len(expected)
    assert audit(dataplane.maps) == []


def test_what_was_counted_of_an_endpoint(dataplane):
    """Sums are held against each other beside the audit: opened is what ended and what is open."""
    Scene(dataplane)
    number = dataplane.endpoint()
    before = [column[number] for column in dataplane.maps["endpoint_counts"].columns(number + 1).values()]
    assert dataplane.unbalanced() == {}
    dataplane.maps["endpoint_counts"].put_row(number, [before[0] + 1, *before[1:]])
    found = set(dataplane.unbalanced())
    dataplane.maps["endpoint_counts"].put_row(number, before)

    assert f"connections of {MEMBER}:8080/TCP: opened, ended + open" in found
    assert dataplane.unbalanced() == {}


def gone_through(auditor: Auditor) -> None:
    """Once more from the beginning to the end."""
    begun = auditor.rounds
    while auditor.rounds < begun + 1:
        auditor.step()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU runs no races")
@pytest.mark.parametrize("ceiling", [60, 20_000])
def test_under_traffic_nothing_is_found_that_is_not_there(unconfigured, driver, ceiling):
    """All CPUs open and close at the ceiling for some seconds; what is planted meanwhile is found once they rest."""
    load = start(unconfigured, ceiling)
    auditor, done, rounds = Auditor(unconfigured.maps), threading.Event(), 0

    def churn() -> None:
        while not done.is_set():
            span = 2 * ceiling
            driver.send(Burst(40_000, SYN_FLAG, span=span, then=RST), Burst(40_000, SYN_FLAG, first=ceiling, span=span))
            driver.send(Burst(40_000, RST, span=3 * ceiling), Burst(40_000, SYN_FLAG, span=3 * ceiling, then=SYN_FLAG))

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        end = time.monotonic() + SECONDS
        while rounds < 2 or time.monotonic() < end:
            gone_through(auditor)
            rounds += 1
            assert auditor.differences == []
    finally:
        done.set()
        thread.join()
    load.half_open += 1
    gone_through(auditor)
    load.half_open -= 1
    assert [line.partition(",")[0] for line in auditor.differences] == [
        f"endpoint {min(unconfigured.entries.endpoints)}: half_open"
    ]
    gone_through(auditor)
    assert auditor.differences == []


def test_an_endpoint_that_is_gone_takes_its_differences_along(dataplane):
    its, auditor = Scene(dataplane), Auditor(dataplane.maps)
    undo, expected = slot_in_no_queue(its)
    gone_through(auditor)
    assert set(auditor.differences) == expected
    undo()
    before = dataplane.entries
    dataplane.configure(NETWORKS)
    gone_through(auditor)
    assert before.endpoints
    assert auditor.differences == []
