"""`ipbackend listener`: what clients connect to, and what became of it."""

from pathlib import Path
from typing import NamedTuple

import click

from ipbackend.cli import output as out
from ipbackend.cli.view import looking
from ipbackend.model import Listener
from ipbackend.view import View


class Row(NamedTuple):
    """A listener; counts are None while it is not in the maps."""

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
    with looking(run_directory) as view:
        out.show_rows(output, Row._fields, [_row(view, one) for one in view.configuration.listeners.values()])


def _row(view: View, wanted: Listener) -> Row:
    entry, balancer = view.listener_entry(wanted), view.configuration.load_balancers[wanted.load_balancer]
    counts = view.total("listener_counts", entry.id) if entry else {}
    return Row(
        wanted.name,
        balancer.name,
        str(balancer.vip),
        wanted.protocol,
        wanted.port,
        view.configuration.pools[wanted.pool].name if wanted.pool else None,
        wanted.idle_timeout,
        *(counts.get(field) for field in Row._fields[7:]),
    )
