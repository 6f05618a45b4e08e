"""How `member drain --wait` looks: on a terminal, without one, and when the drain is called off."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from ipbackend import client as daemon
from ipbackend.cli import drain
from tests.unit.commands import ipbackend

UNTIL = 1_000_000
CLOCK = drain.clock(UNTIL)
MEMBER = {"id": "m11", "name": "", "address": "10.0.0.11", "protocol_port": 8080, "weight": 0}


class Answers:
    """A daemon whose member drains: so many connections are left at each look; how many its end has cut."""

    def __init__(self, left: list[int], cut: int = 0, until: int | None = UNTIL) -> None:
        self.left, self.cut, self.until, self.weight = left, cut, until, 0
        self.asked: list[Any] = []

    def request(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        self.asked.append((method, path, body))
        if path == "/elb/pools":
            return {"pools": [{"id": "web", "name": "web"}]}
        if path == "/elb/pools/web/members":
            return {"members": [{**MEMBER, "weight": self.weight}]}
        if path == "/ipbackend/members":
            return {"members": [{**MEMBER, "drained": 5 + (0 if self.left else self.cut)}]}
        assert path == "/ipbackend/drains"
        if method == "GET" and not self.left:
            return {"drains": []}
        count = self.left.pop(0)
        row = {"pool_id": "web", "member_id": "m11", "until": self.until, "connections": count, "listeners": []}
        return {"drain": row} if method == "POST" else {"drains": [row]}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    answers = Answers([12, 12, 3])
    monkeypatch.setattr(daemon.Client, "request", lambda _, *given, **query: answers.request(*given, **query))
    monkeypatch.setattr(drain, "POLL", 0.0)
    return answers


def test_without_waiting_it_says_what_is_left(answers: Answers) -> None:
    result = ipbackend("member drain 10.0.0.11:8080 --pool web --delay 60")
    assert result.stdout == f"10.0.0.11:8080: draining, 12 left, until {CLOCK}\n"
    asked = {"pool_id": "web", "member_id": "m11", "delay": 60}
    assert ("POST", "/ipbackend/drains", {"drain": asked}) in answers.asked


def test_without_a_terminal_it_waits_line_by_line(answers: Answers) -> None:
    answers.cut = 3
    result = ipbackend("member drain 10.0.0.11:8080 --pool web --wait")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[0] == f"10.0.0.11:8080: draining, 12 left, until {CLOCK}"
    assert result.stdout == "10.0.0.11:8080 has no connections: the last 3 were cut as the delay ran out\n"


def test_what_ends_by_itself_was_not_cut(answers: Answers) -> None:
    answers.until = None
    answers.left = [2, 0]
    result = ipbackend("member drain 10.0.0.11:8080 --pool web --wait")
    assert result.stderr.splitlines()[0] == "10.0.0.11:8080: draining, 2 left"
    assert result.stdout == "10.0.0.11:8080 has no connections: its connections have ended by themselves\n"


def test_who_gets_connections_again_has_not_been_drained(answers: Answers) -> None:
    answers.weight = 3
    result = ipbackend("member drain 10.0.0.11:8080 --pool web --wait")
    assert result.exit_code == 1
    assert "10.0.0.11:8080 gets connections again: its drain was called off" in result.stderr
    assert result.stdout == ""


def test_a_terminal_shows_one_line_that_changes(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    begun = answers.request("POST", "/ipbackend/drains")["drain"]
    with daemon.Client(Path("/nowhere")) as client:
        assert drain._waited(client, begun, "web-1", quiet=False)["connections"] == 0

    lines = terminal.getvalue().split("\r")[1:]
    assert lines[0].startswith(f"web-1 [{'█' * 30}] draining, 12 left, until {CLOCK}")
    assert lines[2].startswith(f"web-1 [{'█' * 8}{' ' * 22}] draining, 3 left")
    assert lines[-1].strip("\033[K") == ""
