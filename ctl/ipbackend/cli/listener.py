"""`ipbackend listener`: what clients connect to, and what became of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ipbackend.cli import output as out
from ipbackend.cli import resource
from ipbackend.cli.resource import IP_GROUP, LISTENER, LOAD_BALANCER, POOL, Fields, completing
from ipbackend.client import Client
from ipbackend.model import Listener

if TYPE_CHECKING:
    from ipbackend.view import View

named = click.argument("name", metavar="NAME|ID", shell_complete=completing(LISTENER))
TYPES = {"allow": "white", "deny": "black"}  # as the API calls them
OFF = "off"


def settings(command: out.Command) -> out.Command:
    """What can be set at any time."""
    for option in (
        click.option("--description", help="Whatever is worth knowing."),
        click.option(
            "--access",
            type=click.Choice([*TYPES, OFF]),
            help="What the IP groups are: those that are served, or are not; off serves everybody, for a while.",
        ),
        click.option(
            "--ip-group",
            "ip_groups",
            multiple=True,
            metavar="NAME|ID",
            shell_complete=completing(IP_GROUP),
            help="One of all whose clients are served, unless --access says otherwise; repeat it.",
        ),
        click.option("--source-cps", type=int, help="New connections a second of each client address, as --cps."),
        click.option("--cps", type=int, help="New connections a second, of all clients together; 0 is no limit."),
        click.option("--max-connections", "connection", type=int, help="At the same time; 0 is no limit."),
        click.option("--idle-timeout", type=int, help="Seconds of silence that end a connection, 10 to 4000."),
        click.option("--pool", metavar="NAME|ID", shell_complete=completing(POOL), help="Who serves it."),
    ):
        command = option(command)
    return command


class Row(NamedTuple):
    """A listener; limits are None where there are none, and counts while it is not in the maps."""

    id: str
    name: str
    load_balancer: str
    vip: str
    protocol: str
    port: int
    pool: str | None
    idle_timeout: int
    max_connections: int | None
    cps: int | None
    source_cps: int | None
    access: str | None
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
    from ipbackend.cli.view import looking  # takes longer to import than all else here

    with looking(run_directory) as view:
        out.show_rows(output, Row._fields, [_row(view, one) for one in view.configuration.listeners.values()], ("id",))


@listener.command()
@click.argument("name")
@click.option(
    "--lb", required=True, metavar="NAME|ID", shell_complete=completing(LOAD_BALANCER), help="Whose VIP it is on."
)
@click.option("--protocol", type=click.Choice(["TCP", "UDP"]), default="TCP", show_default=True)
@click.option("--port", required=True, type=int, help="Of the VIP.")
@settings
@out.choice
@click.pass_obj
def create(
    run_directory: Path, /, name: str, lb: str, protocol: str, port: int, output: out.Format, **given: Any
) -> None:
    """Create a listener; without a pool it refuses clients at once.

    Example: ipbackend listener create web --lb shop --port 80 --pool web --cps 5000 --ip-group offices
    """
    with Client(run_directory) as client:
        fields = {
            "name": name,
            "loadbalancer_id": resource.find_id(client, LOAD_BALANCER, lb),
            "protocol": protocol,
            "protocol_port": port,
            **_sent(client, **given),
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
        resource.show(client, LISTENER, name, output, _plain)


@listener.command("set")
@named
@click.option("--name", "rename", help="Another name.")
@settings
@click.option("--no-pool", is_flag=True, help="No pool: clients are refused at once.")
@click.option("--no-ip-groups", is_flag=True, help="No IP groups: all clients are served.")
@out.choice
@click.pass_obj
def set_(
    run_directory: Path,
    /,
    name: str,
    rename: str | None,
    no_pool: bool,
    no_ip_groups: bool,
    output: out.Format,
    **given: Any,
) -> None:
    """Change a listener; connections that are open go on.

    IP groups that are given take the place of all before.

    Example: ipbackend listener set web --ip-group attackers --access deny
    """
    with Client(run_directory) as client:
        fields = resource.without(_sent(client, **given), default_pool_id=no_pool, ipgroup=no_ip_groups)
        resource.change(client, LISTENER, name, {"name": rename, **fields}, output)


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


def _sent(
    client: Client,
    pool: str | None,
    idle_timeout: int | None,
    ip_groups: tuple[str, ...],
    access: str | None,
    **more: Any,
) -> dict[str, Any]:
    """The settings as the API has them."""
    groups: dict[str, Any] = {}
    if ip_groups:
        groups["ipgroup_id"] = ",".join(str(resource.find(client, IP_GROUP, name)["id"]) for name in ip_groups)
    if access:
        groups["enable_ipgroup"] = access != OFF
    if access in TYPES:
        groups["type"] = TYPES[access]
    return {
        "default_pool_id": resource.find_id(client, POOL, pool),
        "keepalive_timeout": idle_timeout,
        "ipgroup": groups or None,
        **more,
    }


def _plain(one: Fields) -> Fields:
    """For people, as the options are called."""
    groups = one["ipgroup"] or {"ipgroup_id": "", "type": "white", "enable_ipgroup": False}
    kinds = {api: word for word, api in TYPES.items()}
    told = {
        "max_connections": one["connection"] or None,
        "cps": one["cps"] or None,
        "source_cps": one["source_cps"] or None,
        "ip_groups": [{"id": number} for number in groups["ipgroup_id"].split(",") if number],
        "access": kinds[groups["type"]] if groups["enable_ipgroup"] else OFF,
    }
    return {**{name: value for name, value in one.items() if name not in ("connection", "ipgroup")}, **told}


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
        wanted.max_connections or None,
        wanted.cps or None,
        wanted.source_cps or None,
        _access(view, wanted),
        *(counts.get(field) for field in Row._fields[12:]),
    )


def _access(view: "View", wanted: Listener) -> str | None:
    """`allow offices`, `deny attackers,bots`, or nothing."""
    names = ",".join(view.configuration.ip_groups[number].name or number for number in wanted.ip_groups)
    return f"{wanted.access} {names}" if names and wanted.access_enabled else None
