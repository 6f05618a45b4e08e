"""The living list of members: what is measured, how it is sorted and filtered, what keys do, and how it looks."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pytest
from rich.console import Console

from ipbackend.cli.top import keys_of, screen, sparkline
from ipbackend.top import Board, Drain, Quit


def row(host: int, **more: Any) -> dict[str, Any]:
    usual = {
        "id": f"id-{host}",
        "pool_id": "pool-id",
        "pool": "web",
        "member": f"10.0.0.{host}:8080",
        "protocol": "TCP",
        "weight": 1,
        "state": "reachable",
        "ceiling": 100,
        "active": 0,
        "half_open": 0,
        "begun": 0,
    }
    return {**usual, **more}


def board(*rows: dict[str, Any], **more: Any) -> Board:
    made = Board(**more)
    measure(made, rows, 0.0)
    return made


def measure(board: Board, rows: Iterable[dict[str, Any]], at: float) -> None:
    """As the API tells them: columns, and values in their order."""
    columns = list(row(0))
    board.measure(columns, [[one[name] for name in columns] for one in rows], at)


def members(shown: Board) -> list[str]:
    return [line.member.split(":")[0].split(".")[-1] for line in shown.lines]


def press(shown: Board, *keys: str) -> Any:
    return [shown.press(key) for key in keys][-1]


ROWS = (
    row(11, active=50, begun=10),
    row(12, active=70, ceiling=1000, pool="api", state="no next hop"),
    row(13, active=60, weight=0, protocol="UDP"),
)


def test_a_rate_is_what_was_begun_between_two_looks() -> None:
    shown = board(*ROWS)
    assert {line.rate for line in shown.lines} == {0}
    measure(shown, [{**ROWS[0], "begun": 40}, ROWS[1], row(14, begun=1000)], 2.0)
    assert {line.member: line.rate for line in shown.lines} == {
        "10.0.0.11:8080": 15,
        "10.0.0.12:8080": 0,
        "10.0.0.14:8080": 0,  # it was not there before
    }


def test_an_endpoint_that_was_made_anew_has_no_rate() -> None:
    shown = board(row(11, begun=1000))
    measure(shown, [row(11, begun=3)], 1.0)
    assert shown.lines[0].rate == 0


def test_what_two_pools_share_is_counted_once() -> None:
    shared = {"active": 7, "begun": 0}
    rows = [row(11, **shared), row(12, member="10.0.0.11:8080", pool="api", **shared), row(13, active=1)]
    shown = board(*rows)
    measure(shown, [{**one, "begun": 10} for one in rows], 1.0)
    assert shown.carried == (8, 20)
    press(shown, *"/api")
    assert shown.carried == (7, 10)


def test_a_member_that_is_not_in_the_data_plane_carries_nothing() -> None:
    shown = board(row(11, active=None, half_open=None, begun=None, state="not applied"))
    assert (shown.lines[0].active, shown.lines[0].full) == (0, 0)
    measure(shown, [row(11, active=5, begun=5)], 1.0)
    assert (shown.lines[0].active, shown.lines[0].rate) == (5, 0)


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("c", ["12", "13", "11"]),
        ("n", ["13", "11", "12"]),
        ("p", ["13", "11", "12"]),
        ("m", ["11", "12", "13"]),
        ("o", ["12", "11", "13"]),
        ("h", ["12", "11", "13"]),
    ],
)
def test_keys_sort(key: str, order: list[str]) -> None:
    shown = board(*ROWS, sort="member")
    measure(shown, [{**ROWS[0], "begun": 20}, ROWS[1], {**ROWS[2], "begun": 30}], 1.0)
    press(shown, key)
    assert members(shown) == order


def test_a_filter_applies_as_it_is_typed() -> None:
    shown = board(*ROWS)
    press(shown, *"/we")
    assert members(shown) == ["13", "11"]
    press(shown, *"b UDP")
    assert members(shown) == ["13"]
    press(shown, "backspace", "backspace", "backspace", "backspace", "enter")
    assert (shown.typing, shown.filter, members(shown)) == (False, "web", ["13", "11"])
    press(shown, "/", "q")  # a letter here, and no command
    assert members(shown) == []
    press(shown, "escape")
    assert (shown.typing, shown.filter, members(shown)) == (False, "", ["12", "13", "11"])
    assert members(board(*ROWS, words="next hop")) == ["12"]


def test_the_cursor_stays_with_its_member() -> None:
    shown = board(*ROWS)
    press(shown, "down")
    assert shown.lines[shown.cursor].member == "10.0.0.13:8080"
    measure(shown, [{**ROWS[0], "active": 99}, ROWS[1], ROWS[2]], 1.0)
    assert (shown.cursor, shown.lines[shown.cursor].member) == (2, "10.0.0.13:8080")
    press(shown, "down", "down")
    assert shown.cursor == 2
    measure(shown, [ROWS[0]], 2.0)
    assert shown.cursor == 0
    press(shown, "home", "page up")
    assert shown.cursor == 0


def test_the_window_is_the_page_with_the_cursor() -> None:
    shown = board(*(row(host, active=host) for host in range(1, 26)))
    shown.page = 10
    assert shown.window[0] == 0
    press(shown, "page down", "down")
    assert shown.cursor == 11
    assert (shown.window[0], len(shown.window[1])) == (10, 10)
    press(shown, "end")
    assert (shown.cursor, shown.window[0], len(shown.window[1])) == (24, 20, 5)


def test_a_drain_wants_a_yes() -> None:
    shown = board(*ROWS)
    assert press(shown, "d") is None
    assert shown.asking is shown.lines[0]
    assert press(shown, "n") is None
    assert shown.asking is None
    asked = press(shown, "d", "y")
    assert isinstance(asked, Drain)
    assert asked.line.member == "10.0.0.12:8080"
    press(shown, "down", "d")
    assert (shown.asking, "weight 0 already" in shown.message) == (None, True)
    assert isinstance(press(shown, "q"), Quit)


def test_keys_are_read_from_what_terminals_send() -> None:
    assert list(keys_of(b"q/\x1b[A\x1b[B\x1bOA\x1b[5~\x1b[6~\x1b[H\x1b[F\r\x7f\x1b")) == [
        *("q", "/", "up", "down", "up", "page up", "page down", "home", "end", "enter", "backspace", "escape"),
    ]
    assert list(keys_of("\x1b[C\x1b[1;5Dé\x00".encode())) == ["é"]  # keys of no meaning here are no keys


def test_a_sparkline_is_scaled_to_its_highest() -> None:
    assert sparkline([0, 1, 2, 7]) == "▁▂▃█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""


def drawn(shown: Board, width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, record=True, file=io.StringIO())
    console.print(screen(shown, width, height))
    return console.export_text().splitlines()


@pytest.mark.parametrize("count", [0, 1, 19, 20, 500])
def test_it_fills_80_by_24_and_no_more(count: int) -> None:
    name = "a pool with a rather long name"
    shown = board(*(row(host, member=f"255.255.255.255:{60000 + host}", pool=name) for host in range(count)))
    lines = drawn(shown)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert sum("255.255.255.255" in line for line in lines) == min(count, 20)
    assert lines[-1].startswith("sort: c n p m o h")


def test_what_is_shown_of_a_member() -> None:
    shown = board(row(11, active=97, begun=0), sort="full")
    measure(shown, [row(11, active=97, begun=2400)], 2.0)
    head, _, columns, line = drawn(shown)[:4]
    assert "members 1  connections 97  new/s 1,200" in head
    assert columns.split() == ["MEMBER", "POOL", "WT", "CONNS", "NEW/s", "CEILING▼", "HEALTH", "TREND"]
    assert line.split() == ["10.0.0.11:8080", "web", "1", "97", "1,200", "████████", "97%", "ok", "██"]
