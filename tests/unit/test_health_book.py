"""What members' health makes of their shares of new connections, by a clock that is set by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ipbackend.configuration import Configuration
from ipbackend.health.book import Book, Turn
from ipbackend.health.monitors import told
from ipbackend.health.states import Code, Reason, Status
from ipbackend.model import Check, HealthMonitor, Pool, Protocol
from tests.unit.wanted import API, SHARED, SHOP, VPC, member, wanted

REFUSED = Reason(Code.CONNECT_REFUSED, "", "Connection refused")
POOL = replace(SHARED, members=(member(11, weight=3), member(12), member(13)))
MONITOR = HealthMonitor("shared", Check.TCP, 5, 3, 2, 3, id="monitor")


def having(pool: Pool = POOL, *more: Any) -> Configuration:
    return wanted(VPC, SHOP, pool, API, *more)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(clock: Clock) -> Book:
    return Book(clock)


def shares(book: Book) -> dict[str, int]:
    return book.shares(book._wanted)


def answer(book: Book, number: str, *failures: Reason | None) -> Turn | None:
    turn = None
    for failure in failures:
        turn = book.answered(number, failure)
    return turn


def all_online(book: Book, pool: Pool = POOL, *more: Any) -> None:
    book.follow(having(pool, MONITOR, *more), serving={one.id for one in pool.members})
    for one in pool.members:
        answer(book, one.id, None)


# --- Who is asked, and how it stands before.


def test_only_members_of_pools_with_a_monitor_that_is_on_are_asked(book: Book) -> None:
    book.follow(having(), serving=set())
    assert (book.entries, book.states, shares(book)) == ({}, {}, {})
    book.follow(having(POOL, replace(MONITOR, enabled=False)))
    assert book.states == {}
    book.follow(having(POOL, MONITOR))
    assert set(book.states) == {"m11", "m12", "m13"}


def test_after_a_restart_nothing_changes_until_checks_say_so(book: Book) -> None:
    """What is loaded says who serves: one failure takes none of them out, one answer takes any other in."""
    book.follow(having(POOL, MONITOR), serving={"m11", "m12"})
    assert shares(book) == {"m13": 0}
    answer(book, "m11", REFUSED, REFUSED)
    assert shares(book) == {"m13": 0}
    answer(book, "m11", REFUSED)
    assert shares(book) == {"m11": 0, "m13": 0}
    answer(book, "m13", None)
    assert shares(book) == {"m11": 0}


def test_a_new_member_waits_for_its_first_check(book: Book) -> None:
    all_online(book)
    more = replace(POOL, members=(*POOL.members, member(14)))
    assert book.shares(having(more, MONITOR)) == {"m14": 0}  # before the change is in force
    book.follow(having(more, MONITOR))
    assert shares(book) == {"m14": 0}
    answer(book, "m14", None)
    assert shares(book) == {}


def test_a_member_at_another_port_is_a_new_one(book: Book) -> None:
    all_online(book)
    moved = replace(POOL, members=(replace(POOL.members[0], port=9090), *POOL.members[1:]))
    book.follow(having(moved, MONITOR))
    assert shares(book) == {"m11": 0}
    assert book.states["m11"].status is Status.INITIAL


def test_members_that_serve_stay_in_when_a_monitor_comes_until_its_first_check(book: Book) -> None:
    book.follow(having(), serving=set())
    book.follow(having(POOL, MONITOR))
    assert shares(book) == {}
    answer(book, "m12", REFUSED)
    assert shares(book) == {"m12": 0}


def test_another_monitor_does_not_bring_back_what_the_first_took_out(book: Book) -> None:
    all_online(book)
    answer(book, "m12", *[REFUSED] * 3)
    book.follow(having(POOL, replace(MONITOR, id="another")))
    assert shares(book) == {"m12": 0}
    assert {one.status for one in book.states.values()} == {Status.INITIAL}


def test_without_its_monitor_a_member_gets_connections_again(book: Book) -> None:
    all_online(book)
    answer(book, "m12", *[REFUSED] * 3)
    assert book.shares(having()) == {}
    assert shares(book) == {"m12": 0}  # as long as that is not in force


def test_other_settings_change_no_state(book: Book) -> None:
    all_online(book)
    answer(book, "m12", *[REFUSED] * 3)
    changed = replace(MONITOR, delay=9, timeout=1, type=Check.HTTP, monitor_port=9000, max_retries=1)
    before = dict(book.states)
    book.follow(having(replace(POOL, members=(member(11, weight=9), *POOL.members[1:])), changed))
    assert book.states == before
    answer(book, "m12", None)  # one is enough by now
    assert book.states["m12"].status is Status.ONLINE


def test_a_change_that_is_looked_at_and_given_up_leaves_everything(book: Book) -> None:
    all_online(book)
    answer(book, "m12", *[REFUSED] * 3)
    before = dict(book.states)
    book.shares(having(replace(POOL, members=(member(14),)), replace(MONITOR, id="another")))
    assert book.states == before
    assert shares(book) == {"m12": 0}


def test_an_answer_of_one_that_is_gone_is_none(book: Book) -> None:
    all_online(book)
    book.follow(having(replace(POOL, members=POOL.members[:2]), MONITOR))
    assert answer(book, "m13", *[REFUSED] * 9) is None
    assert set(book.states) == {"m11", "m12"}


def test_a_member_of_two_pools_has_two_states(book: Book) -> None:
    other = Pool("other", Protocol.TCP, members=(member(11, id="o11"),), id="other")
    second = HealthMonitor("other", Check.HTTP, 5, 3, 3, id="second")
    all_online(book, POOL, other, second)
    answer(book, "o11", REFUSED)
    assert shares(book) == {"o11": 0}


# --- All down.


@pytest.mark.parametrize(("minimum", "expected"), [(0, {"m11": 0, "m12": 0, "m13": 0}), (1, {})])
def test_with_all_members_down_all_get_connections_if_so_set(
    book: Book, minimum: int, expected: dict[str, int]
) -> None:
    all_online(book, replace(POOL, minimum_healthy=minimum))
    for number in ("m11", "m12"):
        answer(book, number, *[REFUSED] * 3)
    assert shares(book) == {"m11": 0, "m12": 0}
    answer(book, "m13", *[REFUSED] * 3)
    assert shares(book) == expected
    answer(book, "m12", None, None)
    assert shares(book) == {"m11": 0, "m13": 0}


def test_a_member_without_weight_keeps_no_pool_healthy(book: Book) -> None:
    idle = replace(POOL, minimum_healthy=1, members=(member(11), member(12, weight=0)))
    all_online(book, idle)
    answer(book, "m11", *[REFUSED] * 3)
    assert shares(book) == {}


# --- Slow start.

SLOW = replace(POOL, slow_start=90)


def test_one_that_comes_back_gets_its_share_little_by_little(book: Book, clock: Clock) -> None:
    all_online(book, SLOW)
    answer(book, "m12", *[REFUSED] * 3)
    clock.now += 60
    answer(book, "m12", None, None)
    seen = []
    while step := book.next_step():
        seen.append((clock.now, shares(book)["m12"]))
        clock.now = step
    assert seen == [(1060.0 + 10 * number, number + 1) for number in range(9)]
    assert shares(book) == {}


def test_slow_start_ends_when_the_member_goes_down(book: Book, clock: Clock) -> None:
    all_online(book, SLOW)
    answer(book, "m12", *[REFUSED] * 3, None, None)
    clock.now += 45
    assert shares(book) == {"m12": 5}
    answer(book, "m12", *[REFUSED] * 3)
    assert shares(book) == {"m12": 0}
    assert book.next_step() is None
    answer(book, "m12", None, None)
    assert shares(book) == {"m12": 1}


def test_the_first_check_after_a_start_is_not_slow(book: Book) -> None:
    book.follow(having(SLOW, MONITOR), serving={"m11"})
    for number in ("m11", "m12", "m13"):
        answer(book, number, None)
    assert shares(book) == {}
    answer(book, "m12", *[REFUSED] * 3, None, None)
    assert shares(book) == {"m12": 1}


def test_the_first_member_of_a_pool_is_not_slow(book: Book) -> None:
    all_online(book, SLOW)
    for number in ("m11", "m12", "m13"):
        answer(book, number, *[REFUSED] * 3)
    answer(book, "m12", None, None)
    assert shares(book) == {"m11": 0, "m13": 0}
    answer(book, "m13", None, None)
    assert shares(book) == {"m11": 0, "m13": 1}


def test_members_of_a_new_pool_are_not_slow(book: Book) -> None:
    book.follow(wanted(VPC, SHOP), serving=set())
    book.follow(having(SLOW, MONITOR))
    for number in ("m11", "m12", "m13"):
        answer(book, number, None)
    assert shares(book) == {}


def test_one_that_joins_others_is_slow(book: Book, clock: Clock) -> None:
    more = replace(SLOW, members=(*SLOW.members, member(14)))
    all_online(book, SLOW)
    book.follow(having(more, MONITOR))
    answer(book, "m14", None)
    assert shares(book) == {"m14": 1}


def test_without_a_monitor_as_well(book: Book, clock: Clock) -> None:
    more = replace(SLOW, members=(*SLOW.members, member(14)))
    book.follow(having(SLOW), serving=set())
    assert book.shares(having(more)) == {"m14": 1}
    book.follow(having(more))
    clock.now += 30
    assert shares(book) == {"m14": 4}
    book.follow(having(replace(more, description="another")))
    assert shares(book) == {"m14": 4}
    assert book.next_step() == 1040.0
    clock.now += 60
    assert shares(book) == {}
    book.follow(having(replace(more, slow_start=1200)))  # over is over
    assert shares(book) == {}


def test_slow_start_that_is_switched_on_slows_no_one(book: Book) -> None:
    all_online(book)
    book.follow(having(SLOW, MONITOR))
    assert (shares(book), book.next_step()) == ({}, None)


# --- What is told.


def test_a_change_is_told_on_one_line(book: Book, clock: Clock) -> None:
    book.follow(having(POOL, MONITOR), serving={"m11"})
    clock.now += 2.04
    first = answer(book, "m12", REFUSED)
    clock.now += 3700
    back = answer(book, "m12", None, None)
    clock.now += 61
    down = answer(book, "m12", *[REFUSED] * 3)
    kept = answer(book, "m11", *[REFUSED] * 3)
    assert first
    assert back
    assert down
    assert kept
    lines = [told(turn) for turn in (first, back, down, kept)]
    why = "CONNECT_REFUSED (received Connection refused)"
    assert lines == [
        f"member 10.0.0.12:8080 of pools.shared: INITIAL → OFFLINE after 2.0 s: the first check failed, {why}",
        "member 10.0.0.12:8080 of pools.shared: OFFLINE → ONLINE after 1 h 1 min: 2 checks passed",
        f"member 10.0.0.12:8080 of pools.shared: ONLINE → OFFLINE after 1 min 1 s: 3 checks failed, {why}",
        f"member 10.0.0.11:8080 of pools.shared: INITIAL → OFFLINE after 1 h 2 min: 3 checks failed, {why}",
    ]
