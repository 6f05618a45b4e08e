"""A member's state, held against all that it was ever answered."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from ipbackend.health.states import Code, Health, Reason, Start, Status, answered, begun

REFUSED = Reason(Code.CONNECT_REFUSED)
SILENT = Reason(Code.CONNECT_TIMEOUT)
GOOD, BAD = True, False


def after(start: Start, history: tuple[bool, ...], rises: int, falls: int) -> Health:
    health = begun(start, 0.0)
    for moment, good in enumerate(history, 1):
        health = answered(health, None if good else REFUSED, rises, falls, float(moment))
    return health


def by_history(start: Start, history: tuple[bool, ...], rises: int, falls: int) -> tuple[Status, float]:
    """The state, and since when, by looking back over everything at each answer."""
    status, since = Status.INITIAL, 0
    for end in range(1, len(history) + 1):
        alike = 0  # answers at the end that say the same, since the state last changed
        while alike < end - since and history[end - 1 - alike] == history[end - 1]:
            alike += 1
        says = Status.ONLINE if history[end - 1] else Status.OFFLINE
        enough = {Status.ONLINE: rises, Status.OFFLINE: falls}[says]
        if status is Status.INITIAL:
            enough = falls if start is Start.KEPT and says is Status.OFFLINE else 1
        if says is not status and alike >= enough:
            status, since = says, end
    return status, float(since)


def test_every_short_history_leads_where_looking_back_says() -> None:
    for start, rises, falls in product(Start, (1, 2, 3), (1, 2, 3)):
        for length in range(8):
            for history in product((GOOD, BAD), repeat=length):
                health = after(start, history, rises, falls)
                assert (health.status, health.since) == by_history(start, history, rises, falls), (start, history)
                expected = {Status.ONLINE: True, Status.OFFLINE: False, Status.INITIAL: start is not Start.WAITING}
                assert health.serves is expected[health.status]
                assert (health.reason is not None) == (health.status is Status.OFFLINE)


@given(st.sampled_from(Start), st.lists(st.booleans(), max_size=60), st.integers(1, 10), st.integers(1, 10))
def test_every_long_history_as_well(start: Start, history: list[bool], rises: int, falls: int) -> None:
    health = after(start, tuple(history), rises, falls)
    assert (health.status, health.since) == by_history(start, tuple(history), rises, falls)


def test_the_first_answer_decides_at_once_either_way() -> None:
    for start in (Start.WAITING, Start.SERVING):
        assert after(start, (GOOD,), 10, 10).status is Status.ONLINE
        assert after(start, (BAD,), 10, 10).status is Status.OFFLINE


def test_one_that_an_earlier_daemon_asked_is_not_taken_out_by_one_failure() -> None:
    assert after(Start.KEPT, (BAD,) * 2, 3, 3).serves
    assert not after(Start.KEPT, (BAD,) * 3, 3, 3).serves
    assert after(Start.KEPT, (GOOD,), 3, 3).status is Status.ONLINE


def test_the_reason_is_that_of_the_last_failure() -> None:
    health = after(Start.WAITING, (BAD,), 2, 2)
    again = answered(health, SILENT, 2, 2, 9.0)
    assert (again.reason, again.since) == (SILENT, health.since)
    assert answered(again, None, 2, 2, 10.0).reason == SILENT  # still OFFLINE
    assert answered(answered(again, None, 2, 2, 10.0), None, 2, 2, 11.0).reason is None


def test_nothing_new_is_the_same_object() -> None:
    for history, failure in (((GOOD,), None), ((BAD,), REFUSED)):
        health = after(Start.WAITING, history, 2, 2)
        assert answered(health, failure, 2, 2, 99.0) is health


def test_a_reason_is_told_on_one_line() -> None:
    assert str(Reason(Code.RESPONSE_MISMATCH, "200-204", "503")) == "RESPONSE_MISMATCH (expected 200-204, received 503)"
    assert str(REFUSED) == "CONNECT_REFUSED"
