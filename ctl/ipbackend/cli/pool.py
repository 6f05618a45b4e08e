"""`ipbackend pool`: who serves together, and how much more they can take."""

from pathlib import Path
from typing import NamedTuple

import click

from ipbackend.cli import output as out
from ipbackend.cli.view import looking
from ipbackend.model import Pool
from ipbackend.view import View


class Row(NamedTuple):
    """A pool; `active` counts its members' connections whichever pool they came by."""

    name: str
    protocol: str
    algorithm: str
    members: int
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
    with looking(run_directory) as view:
        out.show_rows(output, Row._fields, [_row(view, one) for one in view.configuration.pools.values()])


def _row(view: View, wanted: Pool) -> Row:
    active = room = 0
    for member in wanted.members:
        found = view.endpoint(wanted, member)
        if found is None:
            continue
        number, endpoint = found
        count = view.active(number)
        active += count
        if member.weight:  # one without a weight gets no new connections
            room += max(endpoint.ceiling - count, 0)
    return Row(wanted.name, wanted.protocol, wanted.algorithm, len(wanted.members), active, room)
