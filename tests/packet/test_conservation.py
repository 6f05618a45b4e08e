"""The kernel's own counters add up: under races, behind what is gone, and not where a difference is planted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ipbackend.abi import Verdict
from ipbackend.conservation import Watch, lasting
from ipbackend.verdicts import counts
from tests.packet import cast
from tests.packet.cast import CONFIGURATION, QUERY, pool_of
from tests.packet.conftest import Dataplane
from tests.packet.driver import RST, SYN, Burst, Driver

EMPTY = cast.NETWORKS  # no listener, no member
FIELDS = ("opened", "request_packets", "request_bytes", "reply_packets", "reply_bytes")


def looks(dataplane: Dataplane) -> Iterator[dict[str, object]]:
    while True:
        yield dataplane.unbalanced()


@contextmanager
def racing(driver: Driver) -> Iterator[list[int]]:
    """Connections opened and reset on all CPUs at once, as fast as they go; how many packets so far."""
    stop, sent = threading.Event(), [0]

    def send() -> None:
        number = len(driver.cpus)
        while not stop.is_set():
            for flags in (SYN, RST):
                driver.send(*(Burst(20_000, flags, first=100_000 * cpu, span=40) for cpu in range(number)))
                sent[0] += 20_000 * number

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()


def plant(dataplane: Dataplane, name: str, row: int, field: str, by: int) -> None:
    counted = dataplane.maps[name].columns(row + 1)
    dataplane.maps[name].put_row(row, [column[row] + by * (its == field) for its, column in counted.items()])


def test_under_races_nothing_is_told_that_is_not_so(dataplane, driver):
    """Looks at full load, at every moment of a packet's way: some are suspicious, none of it lasts."""
    watch, told = Watch(), set[str]()
    with racing(driver) as sent:
        while sent[0] < 1_000_000 or watch.checks < 50:
            told |= watch.take(looks(dataplane)).keys()
    assert told == set()
    assert dataplane.unbalanced() == {}


def test_a_large_difference_is_found_at_full_load_too(dataplane, driver):
    with racing(driver) as sent:
        plant(dataplane, "listener_counts", 0, "request_bytes", 10**12)
        try:
            while sent[0] < 40_000:
                assert lasting(looks(dataplane)).keys() == {"request bytes: by listener, by member"}
        finally:
            plant(dataplane, "listener_counts", 0, "request_bytes", -(10**12))


@pytest.mark.parametrize("by", [1, -1])
def test_one_connection_too_many_is_found_behind_a_race(dataplane, driver, by):
    with racing(driver):
        pass
    number = dataplane.endpoint()
    plant(dataplane, "endpoint_counts", number, "opened", by)
    try:
        found = lasting(looks(dataplane))
        mine = f"connections of {cast.MEMBER}:{cast.MEMBER_PORT}/TCP: opened, ended + open"
        assert found.keys() == {mine, "connections opened: by listener, by member"}
        assert str(found[mine]) == str(by)
    finally:
        plant(dataplane, "endpoint_counts", number, "opened", -by)


def test_a_packet_that_enters_and_leaves_without_a_verdict_is_found(dataplane):
    dataplane.run(QUERY)
    plant(dataplane, "verdicts", Verdict.NEXT_STEP, "verdicts", 1)
    try:
        assert lasting(looks(dataplane)).keys() == {"packets: received, passed + forwarded + rejected + dropped"}
    finally:
        plant(dataplane, "verdicts", Verdict.NEXT_STEP, "verdicts", -1)


def test_every_road_counts_a_packet_once_where_it_enters(dataplane):
    """`run` asserts it of each packet; here are the roads that the others lead to."""
    before = counts(dataplane.maps)[Verdict.NEXT_STEP]
    flow = dataplane.establish()
    dataplane.run(flow.request(flags="A"))
    dataplane.run(cast.from_client() / cast.TCP(dport=9, flags="S"))
    dataplane.run(cast.from_client(proto=1) / cast.icmp(3, 3, bytes(28)))
    assert counts(dataplane.maps)[Verdict.NEXT_STEP] - before == 3 + 3


def test_what_those_that_are_gone_have_counted_stays_in_the_sums(dataplane):
    """And whoever gets their ids next begins at 0."""
    dataplane.establish()
    dataplane.run(QUERY)

    def sums() -> dict[str, list[int]]:
        tables = {name: dataplane.maps[name].columns(32) for name in ("listener_counts", "endpoint_counts")}
        return {name: [sum(table[field]) for field in FIELDS] for name, table in tables.items()}

    before = sums()
    assert before["listener_counts"] == before["endpoint_counts"]
    assert before["listener_counts"][0] == 2
    dataplane.configure(EMPTY)
    assert sums() == before
    for name in ("listener_counts", "endpoint_counts"):
        rows = dataplane.maps[name].columns(32)
        assert not any(any(column[1:]) for column in rows.values())
        assert rows["request_packets"][0] == 3
    assert dataplane.unbalanced() == {}
    dataplane.configure(CONFIGURATION)
    dataplane.run(QUERY)
    assert dataplane.count("endpoint_counts", dataplane.endpoint(cast.UDP_MEMBER, cast.UDP_PORT, "UDP"), "opened") == 1
    assert dataplane.unbalanced() == {}


def test_a_controller_that_died_between_two_steps_loses_no_counts(unconfigured):
    """Its successor finds rows that are no one's, and keeps what they say."""
    unconfigured.configure(EMPTY)
    unconfigured.configure(pool_of('address = "10.0.0.11", port = 8080'))
    unconfigured.start_anew()
    plant(unconfigured, "listener_counts", 9_000, "request_packets", 7)
    plant(unconfigured, "endpoint_counts", 30_000, "request_packets", 7)
    unconfigured.tables.drop_leftovers()
    for name, row in (("listener_counts", 9_000), ("endpoint_counts", 30_000)):
        column = unconfigured.maps[name].columns(row + 1)["request_packets"]
        assert (column[0], column[row]) == (7, 0)
        plant(unconfigured, name, 0, "request_packets", -7)


def test_handshakes_and_ends_are_counted_by_listener(dataplane):
    listener = dataplane.entries.listeners[next(key for key in dataplane.entries.listeners if key.port == 80)].id

    def counted() -> list[int]:
        return [dataplane.count("listener_counts", listener, field) for field in ("opened", "settled", "ended")]

    flow = dataplane.open()
    assert counted() == [1, 0, 0]
    dataplane.run(flow.reply(flags="SA"))
    assert counted() == [1, 0, 0]
    dataplane.run(flow.request(flags="A", seq=1, ack=1))
    assert counted() == [1, 1, 0]
    dataplane.run(flow.request(flags="R", seq=1))
    assert counted() == [1, 1, 1]
    failed = dataplane.open(cast.from_client() / cast.TCP(sport=40001, dport=80, flags="S"))
    dataplane.run(failed.reply(flags="RA", ack=1))
    assert counted() == [2, 2, 2]
