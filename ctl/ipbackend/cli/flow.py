"""`ipbackend flow` and `ipbackend who`: which connections there were."""

from pathlib import Path
from typing import Any

import click

from ipbackend.abi import EventKind
from ipbackend.cli import output as out
from ipbackend.client import Client
from ipbackend.errors import ConfigurationError
from ipbackend.flows.event import Shown, time_text
from ipbackend.flows.times import interval, with_zone
from ipbackend.model import Protocol

END = "ADDRESS[:PORT]"
TIME = '"2026-11-22 14:03"'
NARROW = ("phase", "opened", "listener", "endpoint", "slot", "events")  # not in tables


def _when(_ctx: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """As the daemon takes it: with the zone that it is written in here."""
    if value is None:
        return None
    try:
        interval(value)
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from None
    return with_zone(value)


@click.group()
def flow() -> None:
    """The flow log: connections opened, closed and rejected, as they were (`gateway set --flow-log store`)."""


@flow.command("list")
@click.option("--client", metavar=END, help="Only of this client.")
@click.option("--member", metavar=END, help="Only to this member.")
@click.option("--vip", metavar=END, help="Only to this VIP.")
@click.option("--snat", metavar=END, help="Only from this SNAT address.")
@click.option("--event", type=click.Choice([kind.name.lower() for kind in EventKind]), help="Only of this kind.")
@click.option("--since", metavar=TIME, callback=_when, help='From then on; or "10 min", "2 h", "1 d" ago.')
@click.option("--until", metavar=TIME, callback=_when, help="Before that.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="At most so many.")
@out.choice
@click.pass_obj
def list_(run_directory: Path, /, output: out.Format, **given: Any) -> None:
    """List events, the newest first.

    Example: ipbackend flow list --client 203.0.113.7 --since "10 min"
    """
    query = {name: value for name, value in given.items() if value is not None}
    with Client(run_directory) as client:
        flows = client.request("GET", "/ipbackend/flows", **query)["flows"]
    out.show_rows(output, Shown._fields, [[one[name] for name in Shown._fields] for one in flows], hidden=NARROW)


@flow.command()
@out.choice
@click.pass_obj
def status(run_directory: Path, output: out.Format) -> None:
    """Show whether connections are written down, how many, and what of them was lost.

    Example: ipbackend flow status
    """
    with Client(run_directory) as client:
        out.show_one(output, client.request("GET", "/ipbackend/flow-log")["flow_log"])


@click.command()
@click.argument("snat", metavar="ADDRESS:PORT")
@click.option("--at", metavar=TIME, callback=_when, help="The minute, or as exact as it is written; now, if not given.")
@click.option("--member", metavar=END, help="Only towards this member.")
@click.option("--protocol", type=click.Choice([str(one) for one in Protocol]))
@out.choice
@click.pass_obj
def who(run_directory: Path, /, snat: str, output: out.Format, **given: Any) -> None:
    """Show which clients stood behind the SNAT address and port ADDRESS:PORT.

    One port is used towards many members at a time: each connection is listed with its member. Those that are open
    are known without a flow log; those that are over only with `gateway set --flow-log store`.

    Example: ipbackend who 10.0.0.101:40123 --at "2026-11-22 14:03"
    """
    query = {name: value for name, value in given.items() if value is not None}
    with Client(run_directory) as client:
        answer = client.request("GET", "/ipbackend/flows/who", snat=snat, **query)
    tenants, begins = answer["tenants"], answer["log_begins"]
    if output is not out.Format.TABLE:
        out.show_data(output, {"tenants": tenants, "log_begins": begins})
        return
    columns = ("client", "vip", "member", "protocol", "opened", "closed", "reason", "request_bytes", "reply_bytes")
    if tenants:
        out.show_rows(output, columns, [[one[name] or _open(name, one) for name in columns] for one in tenants])
    else:
        click.echo(f"nobody, as far as is known: no connection had {snat} then")
    at = given["at"] and interval(given["at"])[0]
    if begins is None:
        click.echo("There is no flow log: only open connections are known (`gateway set --flow-log store`).", err=True)
    elif at and time_text(at) < begins:
        click.echo(f"The flow log begins only at {begins}.", err=True)


def _open(name: str, tenant: dict[str, Any]) -> str | None:
    return tenant["end"] if name == "closed" else None
