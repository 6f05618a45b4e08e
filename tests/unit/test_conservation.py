"""Books that add up and books that do not, traffic or none. Numbers only: no packet passes here."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import repeat

import pytest

from ipbackend.abi import Verdict
from ipbackend.conservation import ENDED, LOOKS, REFUSALS, ROUNDS, Books, Difference, Look, Watch, differences, lasting

PASSED = ("request_packets", "request_bytes", "reply_packets", "reply_bytes")
LISTENER = ("opened", "refused", *(one.name.lower() for one in REFUSALS), "settled", "ended", *PASSED)
MEMBER = ("opened", *ENDED, *PASSED)


def books() -> Books:
    """Ten connections by one listener to two members, four of them open; some gone with a member that is gone."""
    verdicts = [0] * len(Verdict)
    verdicts[Verdict.NEXT_STEP] = 165
    verdicts[Verdict.FORWARD_OPENED], verdicts[Verdict.FORWARD_REQUEST] = 10, 70
    verdicts[Verdict.FORWARD_REPLY], verdicts[Verdict.DROP_MALFORMED] = 60, 18
    verdicts[Verdict.DROP_ACCESS], verdicts[Verdict.REJECT_ALL_FULL] = 4, 3
    rows = {"opened": [0, 10], "ended": [0, 6], "request_packets": [0, 80], "request_bytes": [0, 3200]}
    rows |= {"reply_packets": [0, 60], "reply_bytes": [0, 2400]}
    rows |= {"refused": [0, 7], "drop_access": [0, 4], "reject_all_full": [0, 3]}
    its = {"opened": [1, 5, 4], "closed": [0, 2, 1], "expired": [0, 1, 1], "removed": [1, 0, 0]}
    its |= {"request_packets": [8, 40, 32], "request_bytes": [320, 1600, 1280]}
    its |= {"reply_packets": [6, 30, 24], "reply_bytes": [240, 1200, 960]}
    return Books(
        verdicts, {name: rows.get(name, [0, 0]) for name in LISTENER}, {name: its.get(name, [0] * 3) for name in MEMBER}
    )


ACTIVE = {1: 2, 2: 2}


def look(before: Books, after: Books | None = None, active: dict[int, int] | None = None) -> Look:
    return Look(before, active or ACTIVE, after or before)


def test_books_that_balance() -> None:
    assert differences(look(books())) == {}


@pytest.mark.parametrize(
    ("where", "field", "row", "suspects"),
    [
        ("verdicts", None, Verdict.NEXT_STEP, {"packets: received, passed + forwarded + rejected + dropped"}),
        ("verdicts", None, Verdict.DROP_TTL, {"packets: received, passed + forwarded + rejected + dropped"}),
        ("listeners", "request_packets", 1, {"requests: by verdict, by listener", "requests: by listener, by member"}),
        ("listeners", "reply_packets", 0, {"replies: by verdict, by listener", "replies: by listener, by member"}),
        ("endpoints", "reply_packets", 2, {"replies: by listener, by member"}),
        ("endpoints", "request_bytes", 2, {"request bytes: by listener, by member"}),
        ("listeners", "reply_bytes", 1, {"reply bytes: by listener, by member"}),
        ("listeners", "opened", 1, {"connections opened: by listener, by member"}),
        ("listeners", "ended", 1, {"connections ended: by listener, by member"}),
        ("listeners", "refused", 1, {"connections refused: in all, by reason"}),
        ("listeners", "reject_all_full", 1, {"connections refused: in all, by reason"}),
        (
            *("listeners", "drop_access", 1),
            {"connections refused: in all, by reason", "connections refused, DROP_ACCESS: by verdict, by listener"},
        ),
        (
            *("endpoints", "killed", 2),
            {"connections ended: by listener, by member", "connections of b: opened, ended + open"},
        ),
        (
            *("endpoints", "expired", 2),
            {"connections ended: by listener, by member", "connections of b: opened, ended + open"},
        ),
        (
            *("endpoints", "opened", 1),
            {"connections opened: by listener, by member", "connections of a: opened, ended + open"},
        ),
    ],
)
@pytest.mark.parametrize("by", [1, -1])
def test_one_too_many_or_too_few_is_seen(where: str, field: str | None, row: int, suspects: set[str], by: int) -> None:
    wrong = books()
    column = getattr(wrong, where)[field] if field else wrong.verdicts
    column[row] += by
    found = differences(look(wrong), {1: "a", 2: "b"}.__getitem__)
    assert found.keys() == suspects
    assert {abs(one.least) for one in found.values()} == {1}


def test_an_open_connection_that_nobody_opened_is_seen() -> None:
    found = differences(look(books(), active={1: 3, 2: 2}))
    assert found == {"connections of 1: opened, ended + open": Difference(-1, -1)}


def test_what_grows_between_two_readings_is_no_difference() -> None:
    """Whatever a packet counts may be read before it or behind it."""
    later = deepcopy(books())
    for verdict in (Verdict.NEXT_STEP, Verdict.FORWARD_OPENED):
        later.verdicts[verdict] += 1
    for rows in (later.listeners, later.endpoints):
        for field in ("opened", "request_packets"):
            rows[field][1] += 1
        rows["request_bytes"][1] += 40
    for active in (ACTIVE, {1: 3, 2: 2}):
        assert differences(look(books(), later, active)) == {}
    half = replace(later, endpoints=books().endpoints)  # the last reading came before the member was counted
    assert differences(Look(books(), ACTIVE, half)) == {}
    half = replace(later, endpoints=books().endpoints)  # the first reading came between listener and member
    assert differences(Look(half, ACTIVE, later)) == {}


def test_a_difference_lasts_if_every_look_has_it_to_the_same_side() -> None:
    more, less, rest = {"a": Difference(1, 2)}, {"a": Difference(-2, -1)}, {"b": Difference(1, 1)}
    assert lasting(repeat(more)) == more
    assert lasting(iter([more] * (LOOKS - 1) + [{}])) == {}
    assert lasting(iter([more] * (LOOKS - 1) + [less])) == {}
    assert lasting(iter([more | rest] + [rest] * LOOKS)) == rest


def test_no_look_is_taken_in_vain() -> None:
    taken = []

    def looks() -> Iterator[dict[str, Difference]]:
        while True:
            taken.append(1)
            yield {}

    assert lasting(looks()) == {}
    assert len(taken) == 1


def test_only_what_lasts_for_rounds_is_told() -> None:
    watch, wrong = Watch(), {"a": Difference(1, 3)}
    assert [watch.take(repeat(wrong)) for _ in range(ROUNDS - 1)] == [{}] * (ROUNDS - 1)
    assert watch.take(repeat(wrong)) == wrong
    assert str(wrong["a"]) == "1 to 3"
    assert watch.take(repeat({"a": Difference(-1, -1)})) == {}  # to the other side: something else
    assert watch.take(repeat({})) == {}
    assert [watch.take(repeat(wrong)) for _ in range(ROUNDS - 1)] == [{}] * (ROUNDS - 1)
