"""`ipbackend top`: members as they live, on a terminal with keys, or table after table where there is none."""

import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ipbackend.cli import output as out
from ipbackend.client import Client
from ipbackend.errors import IpbackendError
from ipbackend.top import DRAINED, HISTORY, NAMES, SORTS, Board, Drain, Line, Quit

AROUND = 4  # lines beside those of members
WIDTH = 80  # characters of a terminal on which everything fits
POOL, SPARK = 9, 7  # characters for a pool's name and a trend there; both grow with the terminal
BAR = 8  # characters
SPARKS = "▁▂▃▄▅▆▇█"
STATES = {
    "reachable": "ok",
    "no next hop": "no hop",
    "not applied": "pending",
    "online": "up",
    "offline": "down",
    "initial": "asked",
}
GOOD = ("reachable", "online")
FULL, NEARLY = 0.95, 0.8  # shares of a ceiling that are shown in red and yellow
KEY = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Z])?|.", re.DOTALL)  # what a terminal sends for one
KEYS = {
    **dict.fromkeys(("\x1b[A", "\x1bOA"), "up"),
    **dict.fromkeys(("\x1b[B", "\x1bOB"), "down"),
    **dict.fromkeys(("\x1b[H", "\x1bOH", "\x1b[1~"), "home"),
    **dict.fromkeys(("\x1b[F", "\x1bOF", "\x1b[4~"), "end"),
    **dict.fromkeys(("\r", "\n"), "enter"),
    **dict.fromkeys(("\x7f", "\x08"), "backspace"),
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b": "escape",
}


@click.command()
@click.option("--interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Seconds.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many looks.")
@click.option("--sort", type=click.Choice([by for by, _ in SORTS.values()]), default="active", show_default=True)
@click.option("--filter", "words", default="", help="Words that member, pool, protocol or health must have.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Rows, without a terminal.")
@click.pass_obj
def top(run_directory: Path, interval: float, count: int | None, sort: str, words: str, limit: int) -> None:
    """Watch members: connections, how many are new each second, how far the ceiling is, health.

    \b
    Keys:  c n p m o h  sort by connections, new per second, how full, member, pool, health
           /            filter as you type; Enter keeps it, Esc takes it away
           up down PgUp PgDn Home End    choose a member
           d            drain it: its weight becomes 0, after a question
           q            quit

    Without a terminal it writes one table after another.

    Example: ipbackend top --sort full --filter web
    """
    board = Board(sort, words)
    with Client(run_directory) as client:
        if sys.stdout.isatty() and sys.stdin.isatty():
            _watch(client, board, interval, count)
        else:
            _write(client, board, interval, count, limit)


def measure(client: Client, board: Board) -> None:
    """Ask once."""
    answer = client.request("GET", "/ipbackend/live/members")
    board.measure(answer["columns"], answer["members"], time.monotonic())


def screen(board: Board, width: int, height: int) -> RenderableType:
    """What a terminal of this size shows."""
    board.page = max(height - AROUND, 1)
    first, lines = board.window
    wider = max(width - WIDTH, 0)
    spark = SPARK + min(wider * 2 // 3, HISTORY - SPARK)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for by, title, size, right in (
        ("member", "MEMBER", 21, False),
        ("pool", "POOL", POOL + wider // 3, False),
        ("weight", "WT", 3, True),
        ("active", "CONNS", 7, True),
        ("rate", "NEW/s", 6, True),
        ("full", "CEILING", BAR + 5, False),
        ("state", "HEALTH", 7, False),
        ("history", "TREND", spark, False),
    ):
        mark = "" if by != board.sort else "▲" if by in NAMES else "▼"
        table.add_column(title + mark, justify="right" if right else "left", no_wrap=True, width=size)
    for number, line in enumerate(lines, first):
        table.add_row(*_cells(line, spark), style="on grey30" if number == board.cursor else "")
    return Group(_head(board), Text(""), table, *[Text("")] * (board.page - len(lines)), _foot(board))


def _cells(line: Line, spark: int) -> list[Text | str]:
    color = "red" if line.full >= FULL else "yellow" if line.full >= NEARLY else "green"
    health = "green" if line.state in GOOD else "red"
    return [
        line.member,
        line.pool,
        str(line.weight),
        f"{line.active:,}",
        f"{line.rate:,.0f}",
        Text(_bar(line.full), color),
        Text(STATES.get(line.state, line.state), health),
        Text(sparkline(list(line.history)[-spark:]), "cyan"),
    ]


def _bar(share: float) -> str:
    filled = min(round(share * BAR), BAR)
    return f"{'█' * filled}{'·' * (BAR - filled)} {100 * share:3.0f}%"


def sparkline(values: list[int]) -> str:
    """A character for each value, from the lowest at 0 to the highest at the largest of them."""
    most = max(values, default=0) or 1
    return "".join(SPARKS[value * (len(SPARKS) - 1) // most] for value in values)


def _head(board: Board) -> Text:
    active, rate = board.carried
    shown = f"{len(board.lines):,} of {board.total:,}" if board.filter else f"{board.total:,}"
    text = f"ipbackend {time.strftime('%H:%M:%S')}  members {shown}  connections {active:,}  new/s {rate:,.0f}"
    return Text(text, "bold", no_wrap=True, overflow="ellipsis")


def _foot(board: Board) -> Text:
    line = board.asking
    if line:
        return Text(f"{line.member} of {line.pool} gets no new connections (weight 0): sure? y/n", "bold yellow")
    if board.typing:
        return Text(f"/{board.filter}▏", "bold")
    if said := board.trouble or board.message:
        return Text(said, "bold yellow", no_wrap=True, overflow="ellipsis")
    hint = "sort: c n p m o h   / filter   ↑↓ choose   d drain   q quit"
    return Text(f"{hint}   [{board.filter}]" if board.filter else hint, "dim", no_wrap=True, overflow="ellipsis")


def _watch(client: Client, board: Board, interval: float, count: int | None) -> None:
    console = Console()
    due, looks = time.monotonic(), 0
    with _raw(), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            if time.monotonic() >= due:
                try:
                    measure(client, board)
                except IpbackendError as error:
                    board.trouble = str(error).splitlines()[0]
                due, looks = max(due + interval, time.monotonic()), looks + 1
            live.update(screen(board, console.width, console.height), refresh=True)
            if count and looks >= count:
                return
            for key in _keys(due - time.monotonic()):
                asked = board.press(key)
                if isinstance(asked, Quit):
                    return
                if isinstance(asked, Drain):
                    _drain(client, board, asked.line)


def _drain(client: Client, board: Board, line: Line) -> None:
    path = f"/elb/pools/{line.pool_id}/members/{line.id}"
    try:
        client.request("PUT", path, {"member": {"weight": DRAINED}})
        measure(client, board)
    except IpbackendError as error:
        board.message = str(error).splitlines()[0]
    else:
        board.message = f"{line.member} of {line.pool} gets no new connections"


@contextmanager
def _raw() -> Iterator[None]:
    """Keys come at once, and are not shown; Ctrl-C stays what it is."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _keys(seconds: float) -> Iterator[str]:
    """What is pressed within that time, as soon as something is."""
    if not select.select([sys.stdin], [], [], max(seconds, 0))[0]:
        return
    yield from keys_of(os.read(sys.stdin.fileno(), 1024))


def keys_of(typed: bytes) -> Iterator[str]:
    """The keys that a terminal's bytes stand for; what is not known is left out."""
    for code in KEY.findall(typed.decode(errors="ignore")):
        key = KEYS.get(code, code)
        if key in KEYS.values() or key.isprintable():
            yield key


def _write(client: Client, board: Board, interval: float, count: int | None, limit: int) -> None:
    looks = 0
    while True:
        measure(client, board)
        columns = ("member", "pool", "weight", "connections", "new_per_second", "ceiling", "full", "health")
        click.echo(f"{time.strftime('%H:%M:%S')}  members {board.total:,}")
        click.echo(out.table(columns, [_row(line) for line in board.lines[:limit]]))
        if len(board.lines) > limit:
            click.echo(f"… {len(board.lines) - limit:,} more (--limit)")
        looks += 1
        if count and looks >= count:
            return
        click.echo("")
        time.sleep(interval)


def _row(line: Line) -> tuple[Any, ...]:
    full = f"{100 * line.full:.1f} %"
    return (line.member, line.pool, line.weight, line.active, round(line.rate), line.ceiling, full, line.state)
