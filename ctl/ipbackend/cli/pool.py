"""`ipbackend pool`: who serves together, and how much more they can take."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from ipbackend.cli import output as out
from ipbackend.cli import resource
from ipbackend.cli.resource import LOAD_BALANCER, POOL, completing
from ipbackend.client import Client
from ipbackend.model import Pool

if TYPE_CHECKING:
    from ipbackend.view import View

named = click.argument("name", metavar="NAME|ID", shell_complete=completing(POOL))
protection = click.option("--member-protection/--no-member-protection", default=None, help="Refuse to remove members.")
description = click.option("--description", help="Whatever is worth knowing.")


class Row(NamedTuple):
    """A pool; `active` counts its members' connections whichever pool they came by.

    Members that can be reached are `up`, unless a running daemon says that they are OFFLINE.
    """

    id: str
    name: str
    protocol: str
    algorithm: str
    members: int
    up: int
    active: int
    room: int


@click.group()
def pool() -> None:
    """Pools: members, and how one is chosen."""


@pool.command("list")
@out.choice
@click.pass_obj
def list_(run_directory: Path, output: out.Format) -> None:
    """List pools with their open connections and the room left for more.

    Example: ipbackend pool list
    """
    from ipbackend.cli.view import health, looking  # it brings BCC along, which the other commands do not need

    offline = {number for number, told in health(run_directory).items() if told.health == "OFFLINE"}
    with looking(run_directory) as view:
        rows = [_row(view, one, offline) for one in view.configuration.pools.values()]
        out.show_rows(output, Row._fields, rows, ("id",))


@pool.command()
@click.argument("name")
@click.option("--protocol", type=click.Choice(["TCP", "UDP"]), default="TCP", show_default=True)
@click.option("--algorithm", default="ROUND_ROBIN", show_default=True, help="How a member is chosen.")
@click.option(
    "--lb", metavar="NAME|ID", shell_complete=completing(LOAD_BALANCER), help="The load balancer that it belongs to."
)
@protection
@description
@out.choice
@click.pass_obj
def create(
    run_directory: Path,
    name: str,
    protocol: str,
    algorithm: str,
    lb: str | None,
    member_protection: bool | None,
    description: str | None,
    output: out.Format,
) -> None:
    """Create a pool; members are added to it by `ipbackend member add`.

    Example: ipbackend pool create web
    """
    with Client(run_directory) as client:
        fields = {
            "name": name,
            "protocol": protocol,
            "lb_algorithm": algorithm,
            "loadbalancer_id": resource.find_id(client, LOAD_BALANCER, lb),
            "member_deletion_protection_enable": member_protection,
            "description": description,
        }
        resource.create(client, POOL, fields, output)


@pool.command()
@named
@out.choice
@click.pass_obj
def show(run_directory: Path, name: str, output: out.Format) -> None:
    """Show a pool; its members are shown by `ipbackend member list --pool`.

    Example: ipbackend pool show web
    """
    with Client(run_directory) as client:
        resource.show(client, POOL, name, output)


@pool.command("set")
@named
@click.option("--name", "rename", help="Another name.")
@click.option("--algorithm", help="How a member is chosen.")
@protection
@description
@out.choice
@click.pass_obj
def set_(
    run_directory: Path,
    name: str,
    rename: str | None,
    algorithm: str | None,
    member_protection: bool | None,
    description: str | None,
    output: out.Format,
) -> None:
    """Change a pool; connections that are open go on.

    Example: ipbackend pool set web --member-protection
    """
    fields = {
        "name": rename,
        "lb_algorithm": algorithm,
        "member_deletion_protection_enable": member_protection,
        "description": description,
    }
    with Client(run_directory) as client:
        resource.change(client, POOL, name, fields, output)


@pool.command()
@named
@click.option("--cascade", is_flag=True, help="Also its members and its health monitor.")
@click.pass_obj
def delete(run_directory: Path, name: str, cascade: bool) -> None:
    """Delete a pool that no listener uses.

    Example: ipbackend pool delete web --cascade
    """
    with Client(run_directory) as client:
        resource.delete(client, POOL, name, cascade)


def _row(view: "View", wanted: Pool, offline: set[str]) -> Row:
    active = room = up = 0
    for member in wanted.members:
        found = view.endpoint(wanted, member)
        if found is None:
            continue
        number, endpoint = found
        count = view.active(number)
        active += count
        if not endpoint.ceiling or member.id in offline:
            continue
        up += 1
        if member.weight:  # one without a weight gets no new connections
            room += max(endpoint.ceiling - count, 0)
    return Row(wanted.id, wanted.name, wanted.protocol, wanted.algorithm, len(wanted.members), up, active, room)
