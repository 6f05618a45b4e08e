"""`ipbackend connection`: who talks to whom right now."""

from itertools import islice
from pathlib import Path

import click

from ipbackend.cli import output as out
from ipbackend.cli.view import looking
from ipbackend.connections import ALL, OPEN, Connection, connections
from ipbackend.errors import ConfigurationError
from ipbackend.peer import Peer, peer

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
