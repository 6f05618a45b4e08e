"""`ipbackend member drain`: a member gets no new connections, and how those it has come to an end."""

import sys
import time
from datetime import datetime
from typing import Any

import click

from ipbackend.cli import batch, resource
from ipbackend.cli import output as out
from ipbackend.cli.resource import MEMBER, POOL, completing
from ipbackend.client import Client

POLL = 0.5  # seconds
PATIENCE = 5.0  # seconds without news after which a line says so where there is no terminal
INTERRUPTED = 130  # exit status, as a shell has it
BAR = 30  # characters


def remains(connections: int, until: float | None) -> str:
    """How it is told everywhere: `draining, 12 left, until 14:03:00`."""
    end = f", until {clock(until)}" if until else ""
    return f"draining, {connections:,} left{end}"


def clock(until: float) -> str:
    """The time of day."""
    return datetime.fromtimestamp(until).astimezone().strftime("%H:%M:%S")


@click.command()
@click.argument("name", metavar="ADDRESS:PORT|NAME|ID")
@click.option("--pool", required=True, metavar="NAME|ID", shell_complete=completing(POOL), help="The pool it serves.")
@click.option("--delay", type=click.IntRange(0, 4000), help="Seconds until connections are cut, not as the pool says.")
@click.option("--wait", is_flag=True, help="Until the last connection has ended, and show how many are left.")
@out.choice
@click.pass_context
def drain(ctx: click.Context, name: str, pool: str, delay: int | None, wait: bool, output: out.Format) -> None:
    """Have a member of a pool get no new connections: its weight becomes 0.

    Those that it has go on until they end, or until the pool's connection_drain, or --delay, runs out: then both
    ends get a RST. To call it off, give the member a weight again. Ctrl-C ends the waiting, not the drain.

    Example: ipbackend member drain 192.168.50.10:8080 --pool web --delay 300 --wait
    """
    with Client(ctx.obj) as client:
        number = resource.find_id(client, POOL, pool)
        under = f"{POOL.path}/{number}"
        member = resource.find(client, MEMBER, name, under, **(batch.split(name) or {}))
        asked = {"pool_id": number, "member_id": member["id"], **({} if delay is None else {"delay": delay})}
        before = _cut(client, asked) if wait else 0
        begun = client.request("POST", "/ipbackend/drains", {"drain": asked})["drain"]
        if wait:
            try:
                begun = _waited(client, begun, resource.label(member), quiet=output is not out.Format.TABLE)
                begun["cut"] = _cut(client, asked) - before
            except KeyboardInterrupt:
                left = _now(client, begun) or {**begun, "connections": 0}
                said = f"{resource.label(member)} goes on {remains(left['connections'], left['until'])}"
                click.echo(f"\n{said} (`ipbackend member list --pool {pool}` shows it)", err=True)
                ctx.exit(INTERRUPTED)
            serves = client.request("GET", f"{under}{MEMBER.path}", id=begun["member_id"])[MEMBER.many]
    if output is not out.Format.TABLE:
        out.show_data(output, begun)
    elif not wait:
        click.echo(f"{resource.label(member)}: {remains(begun['connections'], begun['until'])}")
    if wait and serves and serves[0]["weight"]:
        click.echo(f"{resource.label(member)} gets connections again: its drain was called off", err=True)
        ctx.exit(1)
    if wait and output is out.Format.TABLE:
        cut = begun["cut"]
        ends = f"the last {cut:,} were cut as the delay ran out" if cut else "its connections have ended by themselves"
        click.echo(f"{resource.label(member)} has no connections: {ends}")


def _now(client: Client, begun: dict[str, Any]) -> dict[str, Any] | None:
    """The drain as it is, while it is."""
    where = {"pool_id": begun["pool_id"], "member_id": begun["member_id"]}
    found = client.request("GET", "/ipbackend/drains", **where)["drains"]
    return found[0] if found else None


def _cut(client: Client, asked: dict[str, Any]) -> int:
    """How many connections of the endpoint were ever cut as a delay ran out."""
    there = client.request("GET", "/ipbackend/members", pool_id=asked["pool_id"])["members"]
    return next((one["drained"] or 0 for one in there if one["id"] == asked["member_id"]), 0)


def _waited(client: Client, begun: dict[str, Any], label: str, quiet: bool) -> dict[str, Any]:
    """The drain when it is over."""
    last, most = begun, max(begun["connections"], 1)
    said, at, terminal = -1, 0.0, sys.stderr.isatty()
    while last["connections"] or last["until"]:
        left, elapsed = last["connections"], time.monotonic() - at
        if not quiet and terminal:
            bar = "█" * round(BAR * left / most)
            click.echo(f"\r{label} [{bar:{BAR}}] {remains(left, last['until'])}\033[K", err=True, nl=False)
        elif not quiet and ((left != said and elapsed > 1) or elapsed > PATIENCE):
            click.echo(f"{label}: {remains(left, last['until'])}", err=True)
            said, at = left, time.monotonic()
        time.sleep(POLL)
        now = _now(client, begun)
        if now is None:
            break
        last = now
    if not quiet and terminal:
        click.echo("\r\033[K", err=True, nl=False)
    return {**last, "seconds_left": None, "connections": 0, "listeners": []}
