"""`ipbackend connection`: who talks to whom right now."""

from itertools import islice
from pathlib import Path

import click

from ipbackend.cli import output as out
from ipbackend.cli import resource
from ipbackend.cli.resource import LISTENER, completing
from ipbackend.cli.view import looking
from ipbackend.client import Client
from ipbackend.connections import ALL, OPEN, Connection, Peer, connections, peer
from ipbackend.errors import ConfigurationError

LIMIT = 1000
PEER = "ADDRESS[:PORT]"


def _peer(_ctx: click.Context, _option: click.Parameter, value: str | None) -> Peer | None:
    try:
        return None if value is None else peer(value)
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from None


@click.group()
def connection() -> None:
    """Connections: TCP connections and UDP exchanges, one slot each."""


@connection.command("list")
@click.option("--member", metavar=PEER, callback=_peer, help="Only those to this member.")
@click.option("--client", metavar=PEER, callback=_peer, help="Only those from this client.")
@click.option("--all", "everything", is_flag=True, help="Also closed ones whose slots still rest.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=LIMIT, show_default=True, help="At most so many; 0 for all."
)
@out.choice
@click.pass_obj
def list_(
    run_directory: Path, member: Peer | None, client: Peer | None, everything: bool, limit: int, output: out.Format
) -> None:
    """List open connections: the client's side, the member's side, the state.

    Example: ipbackend connection list --member 10.0.0.11:8080 --limit 20
    """
    with looking(run_directory) as view:
        found = connections(view, ALL if everything else OPEN, member, client)
        rows = [(*one[:-1], one.listener.name if one.listener else None) for one in islice(found, limit or None)]
        more = next(found, None) is not None
        out.show_rows(output, Connection._fields, rows)
    if more:
        click.echo(f"There are more than these {limit} (--limit 0 shows all).", err=True)


@connection.command()
@click.option("--member", metavar=PEER, callback=_peer, help="Those to this member.")
@click.option("--client", metavar=PEER, callback=_peer, help="Those from this client.")
@click.option("--listener", metavar="NAME|ID", shell_complete=completing(LISTENER), help="Those by this listener.")
@click.option("--yes", is_flag=True, help="Do not ask, however many they are.")
@out.choice
@click.pass_obj
def kill(
    run_directory: Path, member: Peer | None, client: Peer | None, listener: str | None, yes: bool, output: out.Format
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
