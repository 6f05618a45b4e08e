"""`ipbackend connection`: who talks to whom right now."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import click

from ipbackend.abi import Phase
from ipbackend.cli import output as out
from ipbackend.cli import resource
from ipbackend.cli.resource import LISTENER, completing
from ipbackend.cli.view import looking
from ipbackend.client import Client
from ipbackend.configuration import Configuration
from ipbackend.connections import ALL, OPEN, Connection, Wanted, connections, phases
from ipbackend.errors import ConfigurationError, suggestion
from ipbackend.peer import Peer, Peers, address, peer, peers

LIMIT = 1000
STATES = click.Choice([Phase(phase).name for phase in ALL], case_sensitive=False)
Found = TypeVar("Found")


def _read(read: Callable[[str], Found]) -> Callable[[click.Context, click.Parameter, str | None], Found | None]:
    """A callback that reads an option's text."""

    def callback(_ctx: click.Context, _option: click.Parameter, value: str | None) -> Found | None:
        try:
            return None if value is None else read(value)
        except ConfigurationError as error:
            raise click.BadParameter(str(error)) from None

    return callback


@click.group()
def connection() -> None:
    """Connections: TCP connections and UDP exchanges, one slot each."""


@connection.command("list")
@click.option("--client", metavar="ADDRESS[/LENGTH][:PORT]", callback=_read(peers), help="From this client, or these.")
@click.option("--vip", metavar="ADDRESS", callback=_read(address), help="To this VIP.")
@click.option("--port", type=click.IntRange(1, 65_535), help="To this port of a VIP.")
@click.option("--member", metavar="ADDRESS[:PORT]", callback=_read(peer), help="To this member.")
@click.option("--listener", metavar="NAME", help="By this listener; its name or id.")
@click.option("--state", "states", multiple=True, type=STATES, help="In this state, or one of these.")
@click.option("--older-than", metavar="SECONDS", type=click.FloatRange(min=0), default=0, help="Opened so long ago.")
@click.option("--all", "everything", is_flag=True, help="Also closed ones whose slots still rest.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=LIMIT, show_default=True, help="At most so many; 0 for all."
)
@out.choice
@click.pass_obj
def list_(
    run_directory: Path,
    /,
    listener: str | None,
    states: tuple[str, ...],
    everything: bool,
    limit: int,
    output: out.Format,
    **ends: Any,
) -> None:
    """List open connections: the client's side, the member's side, the state. Filters add up.

    Example: ipbackend connection list --client 203.0.113.0/24 --member 10.0.0.11:8080 --older-than 3600
    """
    shown = phases(states) or (ALL if everything else OPEN)
    with looking(run_directory) as view:
        number = find(view.configuration, listener) if listener else None
        found = connections(view, Wanted(shown, listener=number, **ends))
        rows = [(*one[:-1], one.listener.name if one.listener else None) for one in islice(found, limit or None)]
        more = next(found, None) is not None
        out.show_rows(output, Connection._fields, rows)
    if more:
        click.echo(f"There are more than these {limit} (--limit 0 shows all).", err=True)


@connection.command()
@click.option("--member", metavar="ADDRESS[:PORT]", callback=_read(peer), help="Those to this member.")
@click.option("--client", metavar="ADDRESS[/LENGTH][:PORT]", callback=_read(peers), help="Those from these clients.")
@click.option("--listener", metavar="NAME|ID", shell_complete=completing(LISTENER), help="Those by this listener.")
@click.option("--yes", is_flag=True, help="Do not ask, however many they are.")
@out.choice
@click.pass_obj
def kill(
    run_directory: Path, member: Peer | None, client: Peers | None, listener: str | None, yes: bool, output: out.Format
) -> None:
    """End open connections, those for which all that is said holds; both ends of a TCP connection get a RST.

    Asks before it ends more than one.

    Example: ipbackend connection kill --client 203.0.113.7:40001
    """
    if not (member or client or listener):
        raise click.UsageError("which? (write --member, --client or --listener)")
    with Client(run_directory) as daemon:
        named = {"member": str(member or ""), "client": str(client or "")}
        chosen = {**named, "listener_id": resource.find_id(daemon, LISTENER, listener) or ""}

        def ask(dry_run: bool) -> int:
            answer = daemon.request("POST", "/ipbackend/connections/kill", {"kill": {**chosen, "dry_run": dry_run}})
            count: int = answer["kill"]["connections"]
            return count

        count = 1 if yes else ask(dry_run=True)
        if count > 1:
            click.confirm(f"End {count:,} connections?", abort=True, err=True)
        killed = ask(dry_run=False) if count else 0
    if output is out.Format.TABLE:
        click.echo("1 connection ended" if killed == 1 else f"{killed:,} connections ended")
    else:
        out.show_data(output, {"connections": killed})


def find(configuration: Configuration, given: str) -> str:
    """The id of the listener with this id or name. ConfigurationError: there is none, or several."""
    have = configuration.listeners
    found = [number for number, one in have.items() if given in (number, one.name)]
    if len(found) == 1:
        return found[0]
    what = (
        f"{len(found)} are called so (write the id of one)"
        if found
        else suggestion(given, [one.name or one.id for one in have.values()])
    )
    raise ConfigurationError(f"listener {given}: {what}")
