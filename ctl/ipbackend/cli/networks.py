"""`ipbackend network`: where members live, and whether the way there is known."""

from pathlib import Path
from typing import NamedTuple

import click

from ipbackend.cli import output as out
from ipbackend.cli.view import looking
from ipbackend.model import Network
from ipbackend.view import View


class Row(NamedTuple):
    """A network; without members it has no next hops in the maps: `resolved`, `mac` and `mtu` are None.

    On the link each member is a next hop of its own: `resolved` says whether all are, `mac` is None.
    """

    name: str
    kind: str
    cidrs: list[str]
    interface: str
    next_hop: str | None
    mac: str | None
    resolved: bool | None
    mtu: int | None
    members: int


@click.group()
def network() -> None:
    """Networks: where members live and how they are reached."""


@network.command("list")
@out.choice
@click.pass_obj
def list_(run_directory: Path, output: out.Format) -> None:
    """List networks with their next hops as the data plane uses them.

    Example: ipbackend network list
    """
    with looking(run_directory) as view:
        out.show_rows(output, Row._fields, [_row(view, one) for one in view.configuration.networks.values()])


def _row(view: View, wanted: Network) -> Row:
    keys = [key for key in view.configuration.endpoints if view.configuration.network_of(key.address) is wanted]
    numbers = {view.entries.endpoints[view.endpoint_ids[key]].next_hop for key in keys if key in view.endpoint_ids}
    hops = [view.entries.next_hops[number] for number in numbers if number in view.entries.next_hops]
    router = next((hop for hop in hops if hop.address == wanted.next_hop and hop.resolved), None)
    return Row(
        wanted.name,
        wanted.kind,
        [str(cidr) for cidr in wanted.cidrs],
        wanted.interface,
        str(wanted.next_hop) if wanted.next_hop else None,
        router.destination.hex(":") if router else None,
        all(hop.resolved for hop in hops) if hops else None,
        min((hop.mtu for hop in hops), default=None),
        len(keys),
    )
