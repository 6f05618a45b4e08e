"""`ipbackend status`: the whole gateway on one screen."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ipbackend.abi import UNSWEPT
from ipbackend.cli import output as out
from ipbackend.client import Client
from ipbackend.errors import NotRunningError
from ipbackend.verdicts import MEANINGS

ROWS = 12  # of listeners, pools and losses each: it is one screen
VERDICTS = {verdict.name: meaning for verdict, meaning in MEANINGS.items()}


@click.command()
@out.choice
@click.pass_context
def status(ctx: click.Context, output: out.Format) -> None:
    """Show the gateway: what it serves, how full it is, what it lost, and what is not as wanted.

    Without a daemon, what is loaded is shown as it forwards on. The exit status is 1 where something is not as wanted,
    no daemon runs, or the books do not balance.

    Example: ipbackend status
    """
    run_directory: Path = ctx.obj
    try:
        with Client(run_directory) as client:
            whole = client.request("GET", "/ipbackend/status")["status"]
            gateway = client.request("GET", "/ipbackend/gateway")["gateway"] if whole["forwarding"] else None
            live = client.request("GET", "/ipbackend/live")["live"]
    except NotRunningError as error:
        _show_deserted(run_directory, output, error)
        ctx.exit(1)
    if output is out.Format.TABLE:
        _show(whole, gateway, live)
    else:
        out.show_data(output, {**whole, "gateway": gateway, "live": live})
    if whole["problem"] or whole["drift"] or whole["unbalanced"] or whole["audit"]:
        ctx.exit(1)


def _show_deserted(run_directory: Path, output: out.Format, error: NotRunningError) -> None:
    """What a daemon that is gone has left forwarding. NotRunningError: nothing, or it may not be seen."""
    from ipbackend.cli.view import looking  # takes longer to import than all else here
    from ipbackend.live import load

    try:
        with looking(run_directory) as view:
            unswept, live = view.maps.seconds_unswept, asdict(load(view))
    except NotRunningError:
        raise error from None
    if output is not out.Format.TABLE:
        out.show_data(output, {"problem": str(error), "seconds_unswept": unswept, "live": live})
        return
    click.echo(f"gateway      what is loaded forwards on, {live['active']:,} connections open")
    if unswept is not None:
        what = "openings end what is silent for too long" if unswept > UNSWEPT else "openings will soon do it"
        click.echo(f"last sweep   {unswept:,.0f} s ago: {what}; who opens none does not notice")
    click.echo("as it was    next hops, health, delays of drains, what others change; the flow log is not written")
    click.secho(f"not as wanted: {error}", fg="red")
    _show_live(live)


def _show(whole: dict[str, Any], gateway: dict[str, Any] | None, live: dict[str, Any] | None) -> None:
    if gateway:
        interfaces = ", ".join(gateway["interfaces"])
        click.echo(f"gateway      forwarding on {interfaces}, SNAT {', '.join(gateway['snat_addresses'])}")
        click.echo(f"connections  {_fill(whole, gateway, live) if live else 'cannot be read: the maps are not pinned'}")
    elif whole["problem"]:
        click.echo("gateway      not set up by this daemon; what an earlier one left, if any, forwards on")
    else:
        click.echo("gateway      forwards nothing: there is none yet")
    click.echo(f"revision     {whole['revision']}")
    if capture := whole["capture"]:
        counts = f"{capture['packets']:,} packets since {capture['began_at']}, for {capture['author']}"
        click.echo(f"capture      {counts}")
    for line in [*([whole["problem"]] if whole["problem"] else []), *whole["drift"]]:
        click.secho(f"not as wanted: {line}", fg="red")
    for line in whole["unbalanced"] + whole["audit"]:
        click.secho(f"books do not balance: {line}", fg="red")
    if live:
        _show_live(live)


def _show_live(live: dict[str, Any]) -> None:
    _table("listener", ("name", "at", "protocol", "pool", "opened", "refused"), live["listeners"])
    _table("pool", ("name", "protocol", "members", "up", "active", "room"), live["pools"])
    fullest = [{**one, "used": _percent(one["active"], one["ceiling"])} for one in live["fullest"] if one["active"]]
    _table("fullest", ("member", "protocol", "active", "ceiling", "used"), fullest)
    lost = sorted(live["lost"].items(), key=lambda pair: -pair[1])
    lines = [{"lost": name, "packets": count, "meaning": VERDICTS[name]} for name, count in lost]
    _table("reason", ("lost", "packets", "meaning"), lines)


def _fill(whole: dict[str, Any], gateway: dict[str, Any], live: dict[str, Any]) -> str:
    limit, active = gateway["max_connections"], live["active"]
    return f"{active:,} open of {limit:,} ({_percent(active, limit)}), {whole['endpoints']:,} endpoints"


def _table(what: str, columns: tuple[str, ...], lines: list[dict[str, Any]]) -> None:
    if not lines:
        return
    click.echo(f"\n{out.table(columns, [[line[name] for name in columns] for line in lines[:ROWS]])}")
    if len(lines) > ROWS:
        click.echo(f"… {len(lines) - ROWS:,} more (`ipbackend {what} list`)")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"
