"""`ipbackend healthmonitor`: how the members of a pool are asked whether they serve."""

from pathlib import Path
from typing import Any

import click

from ipbackend.cli import output as out
from ipbackend.cli import resource
from ipbackend.cli.resource import HEALTH_MONITOR, POOL, completing
from ipbackend.client import Client
from ipbackend.model import Check, HttpMethod

TOLD = ("type", "delay", "timeout", "max_retries", "max_retries_down", "monitor_port")
COLUMNS = ("id", "name", "pool", *TOLD, "asks", "on")
named = click.argument("name", metavar="NAME|ID", shell_complete=completing(HEALTH_MONITOR))


def settings(command: out.Command) -> out.Command:
    """What can be set at any time."""
    for option in (
        click.option("--on/--off", "admin_state_up", default=None, help="Whether members are asked."),
        click.option("--codes", "expected_codes", help="HTTP: what is a good answer: 200 or 200,202 or 200-204."),
        click.option("--host", "domain_name", help="HTTP: the Host header; the member's address unless given."),
        click.option("--path", "url_path", help="HTTP: what is asked for; / unless given."),
        click.option("--method", "http_method", type=click.Choice([str(one) for one in HttpMethod]), help="HTTP: GET."),
        click.option("--port", "monitor_port", type=int, help="Where members are asked; their own port unless given."),
        click.option("--fall", "max_retries_down", type=int, help="Failures in a row that take a member out."),
        click.option("--rise", "max_retries", type=int, help="Successes in a row that put it back."),
        click.option("--timeout", type=int, help="Seconds that an answer may take, 1 to 50."),
        click.option("--delay", type=int, help="Seconds between two questions, 1 to 50."),
        click.option(
            "--type",
            type=click.Choice([str(one) for one in Check]),
            help="TCP: it takes a connection. HTTP, HTTPS: it answers with one of --codes. UDP_CONNECT: it answers "
            "an echo, and does not refuse a datagram.",
        ),
    ):
        command = option(command)
    return command


@click.group()
def healthmonitor() -> None:
    """Health monitors: how members are asked whether they serve."""


@healthmonitor.command()
@click.argument("name")
@click.option("--pool", required=True, metavar="NAME|ID", shell_complete=completing(POOL), help="Whose members.")
@settings
@out.choice
@click.pass_obj
def create(run_directory: Path, /, name: str, pool: str, output: out.Format, **given: Any) -> None:
    """Create the health monitor of a pool: TCP, every 5 s, 3 s for an answer, 3 in a row, unless told otherwise.

    Example: ipbackend healthmonitor create web --pool web --type HTTP --path /health --codes 200-204
    """
    with Client(run_directory) as client:
        fields = {"name": name, "pool_id": resource.find_id(client, POOL, pool)}
        usual = {"type": "TCP", "delay": 5, "timeout": 3, "max_retries": 3}
        resource.create(client, HEALTH_MONITOR, {**fields, **usual, **_given(given)}, output)


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
            *(one[column] for column in TOLD),
            _asks(one),
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
        resource.show(client, HEALTH_MONITOR, name, output, _plain)


@healthmonitor.command("set")
@named
@click.option("--name", "rename", help="Another name.")
@click.option("--no-port", is_flag=True, help="Members are asked at their own port.")
@settings
@out.choice
@click.pass_obj
def set_(
    run_directory: Path, /, name: str, rename: str | None, no_port: bool, output: out.Format, **given: Any
) -> None:
    """Change a health monitor.

    Example: ipbackend healthmonitor set web --delay 10
    """
    with Client(run_directory) as client:
        fields = resource.without(given, monitor_port=no_port)
        resource.change(client, HEALTH_MONITOR, name, {"name": rename, **fields}, output)


@healthmonitor.command()
@named
@click.pass_obj
def delete(run_directory: Path, name: str) -> None:
    """Delete a health monitor: members count as reachable while their next hop is.

    Example: ipbackend healthmonitor delete web
    """
    with Client(run_directory) as client:
        resource.delete(client, HEALTH_MONITOR, name, whole=False)


def _plain(one: resource.Fields) -> resource.Fields:
    """For people, as the options are called; other fields named so are the same everywhere, and not shown."""
    words = {"type": "check", "admin_state_up": "on", "max_retries": "rise", "max_retries_down": "fall"}
    return {words.get(name, name): value for name, value in one.items()}


def _asks(one: resource.Fields) -> str | None:
    """`GET /health 200-204`, of one that asks by HTTP."""
    words = ("http_method", "domain_name", "url_path", "expected_codes")
    return " ".join(filter(None, (one[word] for word in words))) if one["type"] in ("HTTP", "HTTPS") else None


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
