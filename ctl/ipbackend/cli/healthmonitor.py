"""`ipbackend healthmonitor`: how the members of a pool are asked whether they serve."""

from pathlib import Path
from typing import Any

import click

from ipbackend.cli import output as out
from ipbackend.cli import resource
from ipbackend.cli.resource import HEALTH_MONITOR, POOL, completing
from ipbackend.client import Client
from ipbackend.model import Check

COLUMNS = ("id", "name", "pool", "type", "delay", "timeout", "max_retries", "max_retries_down", "monitor_port", "on")
named = click.argument("name", metavar="NAME|ID", shell_complete=completing(HEALTH_MONITOR))


def settings(command: out.Command) -> out.Command:
    """What can be set at any time."""
    for option in (
        click.option("--on/--off", "admin_state_up", default=None, help="Whether members are asked."),
        click.option("--port", "monitor_port", type=int, help="Where members are asked; their own port unless given."),
        click.option("--fall", "max_retries_down", type=int, help="Failures in a row that take a member out."),
        click.option("--rise", "max_retries", type=int, help="Successes in a row that put it back."),
        click.option("--timeout", type=int, help="Seconds that an answer may take, 1 to 50."),
        click.option("--delay", type=int, help="Seconds between two questions, 1 to 50."),
    ):
        command = option(command)
    return command


@click.group()
def healthmonitor() -> None:
    """Health monitors: how members are asked whether they serve."""


@healthmonitor.command()
@click.argument("name")
@click.option("--pool", required=True, metavar="NAME|ID", shell_complete=completing(POOL), help="Whose members.")
@click.option("--type", "kind", type=click.Choice([str(one) for one in Check]), default="TCP", show_default=True)
@settings
@out.choice
@click.pass_obj
def create(run_directory: Path, /, name: str, pool: str, kind: str, output: out.Format, **given: Any) -> None:
    """Create the health monitor of a pool.

    Example: ipbackend healthmonitor create web --pool web --delay 5 --timeout 3 --rise 3
    """
    with Client(run_directory) as client:
        fields = {"name": name, "pool_id": resource.find_id(client, POOL, pool), "type": kind, **given}
        resource.create(client, HEALTH_MONITOR, {"delay": 5, "timeout": 3, "max_retries": 3, **_given(fields)}, output)


@healthmonitor.command("list")
@out.choice
@click.pass_obj
def list_(run_directory: Path, output: out.Format) -> None:
    """List health monitors.

    Example: ipbackend healthmonitor list
    """
    with Client(run_directory) as client:
        pools = {one["id"]: resource.label(one) for one in resource.rows(client, POOL)}
        found = resource.rows(client, HEALTH_MONITOR)
    rows = [
        (
            one["id"],
            one["name"],
            ",".join(pools.get(pool["id"], pool["id"]) for pool in one["pools"]),
            *(one[column] for column in COLUMNS[3:-1]),
            one["admin_state_up"],
        )
        for one in found
    ]
    out.show_rows(output, COLUMNS, rows, ("id",))


@healthmonitor.command()
@named
@out.choice
@click.pass_obj
def show(run_directory: Path, name: str, output: out.Format) -> None:
    """Show a health monitor.

    Example: ipbackend healthmonitor show web
    """
    with Client(run_directory) as client:
        resource.show(client, HEALTH_MONITOR, name, output)


@healthmonitor.command("set")
@named
@click.option("--name", "rename", help="Another name.")
@settings
@out.choice
@click.pass_obj
def set_(run_directory: Path, /, name: str, rename: str | None, output: out.Format, **given: Any) -> None:
    """Change a health monitor.

    Example: ipbackend healthmonitor set web --delay 10
    """
    with Client(run_directory) as client:
        resource.change(client, HEALTH_MONITOR, name, {"name": rename, **given}, output)


@healthmonitor.command()
@named
@click.pass_obj
def delete(run_directory: Path, name: str) -> None:
    """Delete a health monitor: members count as reachable while their next hop is.

    Example: ipbackend healthmonitor delete web
    """
    with Client(run_directory) as client:
        resource.delete(client, HEALTH_MONITOR, name, whole=False)


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
