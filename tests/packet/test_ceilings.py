"""Ceilings to the connection: all CPUs open and close at the last place there is, and each connection is counted.

What a ceiling is held against is not the gateway's own count alone: each connection is reported with when it began and
when it ended, both while it held its place, so no more of them may overlap than there are places. A refusal is right
only if every place was taken at some moment while its packet was here. So where all who come at once are no more than
there are places, not one may be refused; and where they are one more, each packet is either opened or refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ipbackend.abi import EventKind, Phase, SweepMode, Verdict
from ipbackend.datapath.audit import audit
from ipbackend.datapath.ring import Ring
from ipbackend.flows.event import STRUCT
from tests.packet.conftest import Dataplane
from tests.packet.driver import RST, SYN, Burst, Driver
from tests.packet.test_races import limited, sent, start

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU runs no races")
EACH = 30_000  # connections that a CPU opens in a race: of all of them, the events find room in their buffer
FIRST = 1 << 20  # tuple of the first of them; those before are of connections that stay
LIVES = int(os.environ.get("CEILING_LIVES", "1000000"))
EVENT = np.dtype(
    {
        "names": ["at", "opened", "endpoint", "listener", "kind"],
        "formats": ["u8", "u8", "u2", "u2", "u1"],
        "offsets": [8, 16, 92, 94, 96],  # behind the header of 8 bytes
        "itemsize": 8 + STRUCT.size,
    }
)


@dataclass
class Race:
    """What came of it: how each packet ended, the highest count seen, and the most connections at a time."""

    verdicts: dict[Verdict, int]
    highest: int
    at_once: int


def race(dataplane: Dataplane, driver: Driver, *bursts: Burst) -> Race:
    """Run with all opened and closed connections reported."""
    number = min(dataplane.entries.endpoints)
    ring = Ring(dataplane.maps["events"].fd, STRUCT.size)
    lost = dataplane.maps["event_counts"].columns(1)["lost"]
    dataplane.settings.events = 1
    try:
        before = dataplane.verdicts()
        highest = driver.send(*bursts, watched=number)
        verdicts = dict(dataplane.verdicts() - before)
        assert dataplane.maps["event_counts"].columns(1)["lost"] == lost, "the events say all"
        said = b""
        while records := ring.records():
            said += records
            ring.advance(ring.position + len(records))
    finally:
        dataplane.settings.events = 0
        ring.close()
    events = np.frombuffer(said, EVENT)
    assert np.count_nonzero(events["kind"] == EventKind.OPENED) == verdicts.get(Verdict.FORWARD_OPENED, 0)
    return Race(verdicts, highest, at_once(events[events["kind"] == EventKind.CLOSED]))


def at_once(closed: np.ndarray) -> int:
    """The most of these connections that were open at one moment: each from when it began until it ended."""
    moments = np.concatenate([closed["opened"], closed["at"]])
    steps = np.repeat([1, -1], len(closed))
    return int(np.cumsum(steps[np.lexsort((steps, moments))]).max(initial=0))  # who ends goes before who begins


def test_what_overlaps_is_counted() -> None:
    lives = np.zeros(4, EVENT)
    lives["opened"], lives["at"] = (10, 12, 14, 20), (14, 20, 30, 22)
    assert at_once(lives) == 2
    lives["at"][0] = 15
    assert at_once(lives) == 3
    assert at_once(lives[:0]) == 0


def kept(dataplane: Dataplane, driver: Driver, count: int) -> None:
    """So many connections that stay."""
    if count:
        half = Burst(count // 2, SYN), Burst(count - count // 2, SYN, first=count // 2)
        bursts = [one for one in half if one.packets]
        assert sent(dataplane, driver, *bursts) == {Verdict.FORWARD_OPENED: count}


def comers(cpus: int) -> list[Burst]:
    """Each of so many CPUs opens a connection and closes it, then the next; no two have a tuple in common."""
    return [Burst(2 * EACH, SYN, first=FIRST + n * EACH, span=EACH, then=RST) for n in range(cpus)]


def open_slots(dataplane: Dataplane) -> int:
    """Of all endpoints, counted one by one."""
    return sum(Phase(one).is_open for number in dataplane.entries.endpoints for one in dataplane.phases(number))


CEILINGS = [1, 2, 100, 99_999, 100_000]
LIMITS = [1, 2, 100]
RACES = 50  # at most, until all CPUs meet at the last place


@pytest.mark.parametrize("ceiling", CEILINGS)
def test_never_refused_with_room(unconfigured, driver, ceiling):
    """Never more come at once than there are places left: not one of them is refused, and the last place is used."""
    load = start(unconfigured, ceiling)
    never_refused_with_room(unconfigured, driver, load, ceiling)


@pytest.mark.parametrize("limit", LIMITS)
def test_never_refused_with_room_by_a_listener(unconfigured, driver, limit):
    load = limited(unconfigured, max_connections=limit)
    never_refused_with_room(unconfigured, driver, load, limit)


def never_refused_with_room(dataplane: Dataplane, driver: Driver, load: Any, places: int) -> None:
    cpus = min(places, len(driver.cpus))
    kept(dataplane, driver, places - cpus)
    for _ in range(RACES):
        done = race(dataplane, driver, *comers(cpus))
        assert done.verdicts == {Verdict.FORWARD_OPENED: cpus * EACH, Verdict.FORWARD_REQUEST: cpus * EACH}
        assert done.highest <= places
        assert load.active == open_slots(dataplane) == places - cpus
        if done.at_once == cpus:
            return
    pytest.fail("the CPUs did not meet")


@pytest.mark.parametrize("ceiling", CEILINGS)
def test_never_above(unconfigured, driver, ceiling):
    """More CPUs open than there are places: no place is used twice, and all who come are accounted for."""
    load = start(unconfigured, ceiling)
    never_above(unconfigured, driver, load, ceiling, Verdict.REJECT_ALL_FULL)


@pytest.mark.parametrize("limit", LIMITS)
def test_never_above_by_a_listener(unconfigured, driver, limit):
    load = limited(unconfigured, max_connections=limit)
    never_above(unconfigured, driver, load, limit, Verdict.REJECT_LISTENER_FULL)


def never_above(dataplane: Dataplane, driver: Driver, load: Any, places: int, refusal: Verdict) -> None:
    left = min(places, len(driver.cpus) - 1)
    kept(dataplane, driver, places - left)
    for _ in range(3):
        done = race(dataplane, driver, *comers(len(driver.cpus)))
        assert done.verdicts[Verdict.FORWARD_OPENED] + done.verdicts.get(refusal, 0) == len(driver.cpus) * EACH
        assert done.at_once == left
        assert done.highest <= places
        assert load.active == open_slots(dataplane) == places - left
        assert audit(dataplane.maps) == []


@pytest.mark.parametrize("ceiling", CEILINGS)
def test_more_come_than_there_is_room_for_and_more(unconfigured, driver, ceiling):
    """From all CPUs far more than there is room for, from below up to the ceiling: exactly that many come to be."""
    load, room = start(unconfigured, ceiling), min(ceiling, 1000)
    kept(unconfigured, driver, ceiling - room)
    bursts = [Burst(2 * room, SYN, first=FIRST + n * 2 * room) for n in range(len(driver.cpus))]
    for _ in range(5):
        verdicts = sent(unconfigured, driver, *bursts)
        come = 2 * room * len(driver.cpus)
        assert verdicts == {Verdict.FORWARD_OPENED: room, Verdict.REJECT_ALL_FULL: come - room}
        assert load.active == open_slots(unconfigured) == ceiling
        sent(unconfigured, driver, Burst(come, RST, first=FIRST), Burst(come, RST, first=FIRST))
        assert load.active == open_slots(unconfigured) == ceiling - room


def test_as_many_lives_as_one_likes(unconfigured, driver):
    """Opened and closed by all CPUs, a million here and ten by `make fuzz`: nothing of them is left in any book."""
    load, cpus = start(unconfigured, 100_000), len(driver.cpus)
    number, entry = next(iter(unconfigured.entries.endpoints.items()))
    each = LIVES // cpus
    bursts = [Burst(2 * each, SYN, first=FIRST + n * each, span=each, then=RST) for n in range(cpus)]
    head, before = load.head, unconfigured.verdicts()
    driver.send(*bursts)
    lived = unconfigured.verdicts() - before
    assert lived == {Verdict.FORWARD_OPENED: cpus * each, Verdict.FORWARD_REQUEST: cpus * each}
    assert load.head - head >= cpus * each
    assert load.active == load.half_open == 0
    assert unconfigured.maps["listener_load"].memory()[1].active == 0

    places = range(entry.first, entry.first + entry.slots)
    queue = unconfigured.maps.of_endpoint("free_slots", number).values("slot")
    assert sorted(queue) == list(places)
    assert audit(unconfigured.maps) == []
    assert unconfigured.unbalanced() == {}
    assert unconfigured.count("endpoint_counts", number, "opened") >= cpus * each
    assert unconfigured.sweep(SweepMode.ENDPOINT) == (0, min(cpus * each, entry.slots))
    assert not np.frombuffer(unconfigured.maps["flow_index"].memory().bytes, np.uint64).any()
    assert sorted(queue) == list(places)
    assert audit(unconfigured.maps) == []
