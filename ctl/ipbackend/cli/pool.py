"""`ipbackend pool`: who serves together, and how much more they can take."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ipbackend.cli import output as out
from ipbackend.cli import resource
from ipbackend.cli.resource import LOAD_BALANCER, NONE, POOL, Fields, completing
from ipbackend.client import Client
from ipbackend.model import Algorithm, Pool

if TYPE_CHECKING:
    from ipbackend.view import View

named = click.argument("name", metavar="NAME|ID", shell_complete=completing(POOL))
HOW = (
    "How a member is chosen: ROUND_ROBIN in turn, by weight; LEAST_CONNECTIONS the one with the fewest connections for "
    "its weight; SOURCE_IP by the client's address; SOURCE_IP_PORT by both addresses and "
    "ports, the same on every gateway."
)


def settings(command: out.Command) -> out.Command:
    """What can be set at any time."""
    for option in (
        click.option("--description", help="Whatever is worth knowing."),
        click.option("--member-protection/--no-member-protection", default=None, help="Refuse to remove members."),
        click.option("--fail-open/--no-fail-open", default=None, help="While all members are down, send to all."),
        click.option("--drain", type=int, help="Seconds that connections of a member that is gone live on; 0 is off."),
        click.option("--slow-start", type=int, help="Seconds until a member that comes up has its share; 0 is off."),
        click.option("--persistence", type=int, help="Minutes that a client stays with its member; 0 is off."),
        click.option("--algorithm", type=click.Choice([str(one) for one in Algorithm]), help=HOW),
    ):
        command = option(command)
    return command


class Row(NamedTuple):
    """A pool; `active` counts its members' connections whichever pool they came by.

    Members that can be reached are `up`, unless a running daemon says that they are OFFLINE.
    """

    id: str
    name: str
    protocol: str
    algorithm: str
    persistence: int | None
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
    from ipbackend.cli.view import health, looking  # takes longer to import than all else here

    offline = {number for number, told in health(run_directory).items() if told.health == "OFFLINE"}
    with looking(run_directory) as view:
        rows = [_row(view, one, offline) for one in view.configuration.pools.values()]
        out.show_rows(output, Row._fields, rows, ("id",))


@pool.command()
@click.argument("name")
@click.option("--protocol", type=click.Choice(["TCP", "UDP"]), default="TCP", show_default=True)
@click.option(
    "--lb", metavar="NAME|ID", shell_complete=completing(LOAD_BALANCER), help="The load balancer that it belongs to."
)
@settings
@out.choice
@click.pass_obj
def create(run_directory: Path, /, name: str, protocol: str, lb: str | None, output: out.Format, **given: Any) -> None:
    """Create a pool; members are added to it by `ipbackend member add`. ROUND_ROBIN unless told otherwise.

    Example: ipbackend pool create web --algorithm LEAST_CONNECTIONS --persistence 20 --drain 300
    """
    with Client(run_directory) as client:
        fields = {
            "name": name,
            "protocol": protocol,
            "loadbalancer_id": resource.find_id(client, LOAD_BALANCER, lb),
            **_sent(**given),
        }
        fields["lb_algorithm"] = fields["lb_algorithm"] or str(Algorithm.ROUND_ROBIN)
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
        resource.show(client, POOL, name, output, _plain)


@pool.command("set")
@named
@click.option("--name", "rename", help="Another name.")
@settings
@out.choice
@click.pass_obj
def set_(run_directory: Path, /, name: str, rename: str | None, output: out.Format, **given: Any) -> None:
    """Change a pool; connections that are open go on.

    Example: ipbackend pool set web --persistence 20 --fail-open
    """
    with Client(run_directory) as client:
        resource.change(client, POOL, name, {"name": rename, **_sent(**given)}, output)


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


def _sent(
    algorithm: str | None,
    persistence: int | None,
    slow_start: int | None,
    drain: int | None,
    fail_open: bool | None,
    member_protection: bool | None,
    description: str | None,
) -> dict[str, Any]:
    """The settings as the API has them."""
    return {
        "lb_algorithm": algorithm,
        "session_persistence": {"persistence_timeout": persistence} if persistence else _off(persistence, NONE),
        "slow_start": {"enable": True, "duration": slow_start} if slow_start else _off(slow_start, {"enable": False}),
        "connection_drain": {"enable": True, "timeout": drain} if drain else _off(drain, {"enable": False}),
        "pool_health": None if fail_open is None else {"minimum_healthy_member_count": int(fail_open)},
        "member_deletion_protection_enable": member_protection,
        "description": description,
    }


def _off(given: int | None, said: Any) -> Any:
    """What says that it is off, if anything was given, which is 0."""
    return None if given is None else said


def _plain(one: Fields) -> Fields:
    """For people, as the options are called."""
    persistence, slow, drain = one["session_persistence"], one["slow_start"], one["connection_drain"]
    words = {
        "session_persistence": ("persistence", f"{persistence['persistence_timeout']} min" if persistence else None),
        "slow_start": ("slow_start", f"{slow['duration']} s" if slow["enable"] else None),
        "connection_drain": ("drain", f"{drain['timeout']} s" if drain["enable"] else None),
        "pool_health": ("fail_open", bool(one["pool_health"]["minimum_healthy_member_count"])),
    }
    return dict(words.get(name, (name, value)) for name, value in one.items())


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
    told = (wanted.id, wanted.name, wanted.protocol, wanted.algorithm, wanted.persistence)
    return Row(*told, len(wanted.members), up, active, room)
