"""`ipbackend member`: who serves, how full each is, and whether it can be reached."""

from pathlib import Path
from typing import NamedTuple

import click

from ipbackend.cli import output as out
from ipbackend.cli.view import looking
from ipbackend.errors import ConfigurationError, suggestion
from ipbackend.model import Member, Pool
from ipbackend.view import View

REACHABLE, NO_NEXT_HOP, NOT_APPLIED = "reachable", "no next hop", "not applied"


class Row(NamedTuple):
    """A member of a pool. What it carries is its endpoint's, so members of two pools show the same counts."""

    pool: str
    member: str
    protocol: str
    network: str
    weight: int
    active: int | None
    ceiling: int
    used_percent: float | None
    state: str
    opened: int | None
    closed: int | None
    expired: int | None
    removed: int | None


@click.group()
def member() -> None:
    """Members: an address and a port that serve a pool."""


@member.command("list")
@click.option("--pool", "name", help="Only the members of this pool.")
@out.choice
@click.pass_obj
def list_(run_directory: Path, name: str | None, output: out.Format) -> None:
    """List members with their open connections, ceilings and counters.

    Example: ipbackend member list --pool web
    """
    with looking(run_directory) as view:
        pools = view.configuration.pools.values()
        chosen = [pool for pool in pools if name in (None, pool.name, pool.id)]
        if name is not None and not chosen:
            known = suggestion(name, [pool.name for pool in pools])
            raise ConfigurationError(f"--pool: {name!r} is not one of pools ({known})")
        rows = [_row(view, pool, member) for pool in chosen for member in pool.members]
        out.show_rows(output, Row._fields, rows)


def _row(view: View, pool: Pool, member: Member) -> Row:
    found = view.endpoint(pool, member)
    active, state, counts = None, NOT_APPLIED, {}
    if found:
        number, endpoint = found
        active, counts = view.active(number), view.total("endpoint_counts", number)
        state = REACHABLE if endpoint.ceiling else NO_NEXT_HOP
    return Row(
        pool.name,
        str(member),
        pool.protocol,
        view.configuration.network_of(member.address).name,
        member.weight,
        active,
        member.max_connections,
        None if active is None else round(100 * active / member.max_connections, 1),
        state,
        *(counts.get(field) for field in ("opened", "closed", "expired", "removed")),
    )
