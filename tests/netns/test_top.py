"""`ipbackend top` as somebody sees it who sits at a terminal, and what it writes where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.netns.clients import open_many
from tests.netns.gateway import COMMAND, CONFIGURATION, Gateway
from tests.netns.lab import CLIENTS, SHOP_VIP, Lab
from tests.netns.terminal import Terminal
from tests.netns.test_daemon import wait_until

pytestmark = pytest.mark.root

WEB = (SHOP_VIP, 80)
UP, DOWN = "\x1b[A", "\x1b[B"


@pytest.fixture
def terminal(gateway: Gateway, lab: Lab) -> Iterator[Terminal]:
    """At which `ipbackend top` runs; nothing of earlier tests is open any more."""
    gateway.apply(CONFIGURATION.replace("weight = 3 }", "weight = 3, max_connections = 20 }"))
    gateway.command("connection", "kill", "--client", "0.0.0.0/0", "--yes")
    wait_until(lambda: not any(row["active"] for row in gateway.json("member", "list")))
    environment = {**os.environ, "IPBACKEND_RUN_DIR": str(gateway.run_directory)}
    with Terminal(lab["gateway"], (*COMMAND, "top", "--interval", "0.3"), environment) as sitting:
        sitting.see(lambda lines: lines[0].startswith("ipbackend ") and lines[-1].startswith("sort: "))
        yield sitting


def members(lines: list[str]) -> list[str]:
    """The first columns of the list, in order."""
    return [line.split()[0] for line in lines[3:-1] if line]


def test_a_screen_is_read_and_keys_change_it(gateway: Gateway, lab: Lab, terminal: Terminal) -> None:
    with open_many(lab["client"], CLIENTS[6], WEB, 48):
        lines = terminal.see(lambda lines: "connections 48" in lines[0])
        assert lines[2].split()[3] == "CONNS▼"
        full = next(line.split() for line in lines if line.startswith("10.0.0.11:8080"))
        assert full[1:6] == ["web", "3", "18", full[4], "███████·"]
        assert full[6:8] == ["90%", "ok"]

        terminal.press("m")
        lines = terminal.see(lambda lines: "MEMBER▲" in lines[2])
        assert members(lines) == sorted(members(lines))
        terminal.press("/resol")
        lines = terminal.see(lambda lines: lines[-1] == "/resol▏")
        assert "members 2 of 7" in lines[0]
        assert {line.split()[1] for line in lines[3:-1] if line} == {"resolver"}
        terminal.press("\r")
        terminal.see(lambda lines: lines[-1].endswith("[resol]"))
        terminal.press("\x1b")
        terminal.see(lambda lines: "members 7" in lines[0] and "of" not in lines[0])
    terminal.see(lambda lines: "connections 0" in lines[0])
    terminal.press("q")
    assert terminal.ended() == 0


def test_a_member_is_drained_after_a_question(gateway: Gateway, lab: Lab, terminal: Terminal) -> None:
    def weight() -> int:
        (row,) = (one for one in gateway.json("member", "list", "--pool", "web") if one["member"] == "10.0.0.12:8080")
        return int(row["weight"])

    terminal.press("/10.0.0.12:8080 web\rm" + DOWN + UP)
    terminal.see(lambda lines: len(members(lines)) == 1)
    before = weight()
    terminal.press("d")
    terminal.see(lambda lines: lines[-1] == "10.0.0.12:8080 of web gets no new connections (weight 0): sure? y/n")
    terminal.press("n")
    terminal.see(lambda lines: lines[-1].startswith("sort: "))
    assert weight() == before > 0
    terminal.press("dy")
    terminal.see(lambda lines: lines[-1] == "10.0.0.12:8080 of web gets no new connections")
    assert weight() == 0
    terminal.see(lambda lines: lines[3].split()[2] == "0")


def test_a_daemon_that_goes_is_missed_and_found_again(gateway: Gateway, terminal: Terminal) -> None:
    gateway.stop()
    terminal.see(lambda lines: "daemon" in lines[-1])
    gateway.start()
    terminal.see(lambda lines: lines[-1].startswith("sort: "))


def test_without_a_terminal_it_writes_tables(gateway: Gateway, lab: Lab) -> None:
    with open_many(lab["client"], CLIENTS[7], WEB, 8):
        written = gateway.command("top", "--count", "2", "--interval", "0.2", "--filter", "web", "--limit", "3")

    first, second = written.strip().split("\n\n")
    for table in (first, second):
        head, columns, *rows, more = table.splitlines()
        assert head.endswith("members 7")
        assert " ".join(columns.split()) == "MEMBER POOL WEIGHT CONNECTIONS NEW PER SECOND CEILING FULL HEALTH"
        assert len(rows) == 3
        assert {row.split()[1] for row in rows} == {"web"}
        assert more == "… 1 more (--limit)"
        loads = [int(row.split()[3]) for row in rows]
        assert loads == sorted(loads, reverse=True)
        assert loads[0] >= 2
    assert "\x1b" not in written
