"""`ipbackend listener`: what clients connect to, and what became of it."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from ipbackend.cli import output as out
from ipbackend.cli import resource
from ipbackend.cli.resource import LISTENER, LOAD_BALANCER, NONE, POOL, completing
from ipbackend.client import Client
from ipbackend.model import Listener

if TYPE_CHECKING:
    from ipbackend.view import View

named = click.argument("name", metavar="NAME|ID", shell_complete=completing(LISTENER))
served_by = click.option("--pool", metavar="NAME|ID", shell_complete=completing(POOL), help="Who serves it.")
idle_timeout = click.option("--idle-timeout", type=int, help="Seconds of silence that end a connection, 10 to 4000.")
description = click.option("--description", help="Whatever is worth knowing.")


class Row(NamedTuple):
    """A listener; counts are None while it is not in the maps."""

    id: str
    name: str
    load_balancer: str
    vip: str
    protocol: str
    port: int
    pool: str | None
    idle_timeout: int
    opened: int | None
    refused: int | None
    request_packets: int | None
    request_bytes: int | None
    reply_packets: int | None
    reply_bytes: int | None


@click.group()
def listener() -> None:
    """Listeners: a port of a VIP, served by a pool."""


@listener.command("list")
@out.choice
@click.pass_obj
def list_(run_directory: Path, output: out.Format) -> None:
    """List listeners with their counters.

    Connections opened and refused, packets and bytes of IP each way; the idle timeout is in seconds.

    Example: ipbackend listener list
    """
    from ipbackend.cli.view import looking  # it brings BCC along, which the other commands do not need

    with looking(run_directory) as view:
        out.show_rows(output, Row._fields, [_row(view, one) for one in view.configuration.listeners.values()], ("id",))


@listener.command()
@click.argument("name")
@click.option(
    "--lb", required=True, metavar="NAME|ID", shell_complete=completing(LOAD_BALANCER), help="Whose VIP it is on."
)
@click.option("--protocol", type=click.Choice(["TCP", "UDP"]), default="TCP", show_default=True)
@click.option("--port", required=True, type=int, help="Of the VIP.")
@served_by
@idle_timeout
@description
@out.choice
@click.pass_obj
def create(
    run_directory: Path,
    name: str,
    lb: str,
    protocol: str,
    port: int,
    pool: str | None,
    idle_timeout: int | None,
    description: str | None,
    output: out.Format,
) -> None:
    """Create a listener; without a pool it refuses clients at once.

    Example: ipbackend listener create web --lb shop --port 80 --pool web
    """
    with Client(run_directory) as client:
        fields = {
            "name": name,
            "loadbalancer_id": resource.find_id(client, LOAD_BALANCER, lb),
            "protocol": protocol,
            "protocol_port": port,
            "default_pool_id": resource.find_id(client, POOL, pool),
            "keepalive_timeout": idle_timeout,
            "description": description,
        }
        resource.create(client, LISTENER, fields, output)


@listener.command()
@named
@out.choice
@click.pass_obj
def show(run_directory: Path, name: str, output: out.Format) -> None:
    """Show a listener.

    Example: ipbackend listener show web
    """
    with Client(run_directory) as client:
        resource.show(client, LISTENER, name, output)


@listener.command("set")
@named
@click.option("--name", "rename", help="Another name.")
@served_by
@click.option("--no-pool", is_flag=True, help="No pool: clients are refused at once.")
@idle_timeout
@description
@out.choice
@click.pass_obj
def set_(
    run_directory: Path,
    name: str,
    rename: str | None,
    pool: str | None,
    no_pool: bool,
    idle_timeout: int | None,
    description: str | None,
    output: out.Format,
) -> None:
    """Change a listener; connections that are open go on.

    Example: ipbackend listener set web --pool web-next
    """
    with Client(run_directory) as client:
        fields = {
            "name": rename,
            "default_pool_id": NONE if no_pool else resource.find_id(client, POOL, pool),
            "keepalive_timeout": idle_timeout,
            "description": description,
        }
        resource.change(client, LISTENER, name, fields, output)


@listener.command()
@named
@click.option("--cascade", is_flag=True, help="Also its pool, if nothing else uses it.")
@click.pass_obj
def delete(run_directory: Path, name: str, cascade: bool) -> None:
    """Delete a listener; its connections end.

    Example: ipbackend listener delete web
    """
    with Client(run_directory) as client:
        resource.delete(client, LISTENER, name, cascade)


def _row(view: "View", wanted: Listener) -> Row:
    entry, balancer = view.listener_entry(wanted), view.configuration.load_balancers[wanted.load_balancer]
    counts = view.total("listener_counts", entry.id) if entry else {}
    return Row(
        wanted.id,
        wanted.name,
        balancer.name,
        str(balancer.vip),
        wanted.protocol,
        wanted.port,
        view.configuration.pools[wanted.pool].name if wanted.pool else None,
        wanted.idle_timeout,
        *(counts.get(field) for field in Row._fields[8:]),
    )
