"""`ipbackend member`: who serves, how full each is, and whether it can be reached."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ipbackend.cli import batch, findings, resource
from ipbackend.cli import output as out
from ipbackend.cli.drain import drain, remains
from ipbackend.cli.resource import MEMBER, POOL, completing
from ipbackend.client import Client
from ipbackend.drains import Claim, Reason
from ipbackend.errors import ConfigurationError, ServiceError, suggestion
from ipbackend.model import EndpointKey, Member, Pool

if TYPE_CHECKING:
    from ipbackend.cli.view import Told
    from ipbackend.view import Draining, View

REACHABLE, NO_NEXT_HOP, NOT_APPLIED = "reachable", "no next hop", "not applied"

in_pool = click.option(
    "--pool", required=True, metavar="NAME|ID", shell_complete=completing(POOL), help="The pool it serves."
)
weight = click.option("--weight", type=int, help="Its share of new connections, 0 to 100; with 0 it gets none.")
ceiling = click.option("--max-connections", type=int, help="How many it holds at the same time, at most 100,000.")
from_file = click.option("--from", "file", metavar="FILE|-", help="CSV: a header line, then a member a line.")


COUNTED = ("opened", "closed", "expired", "removed", "drained", "killed")


class Row(NamedTuple):
    """A member of a pool. What it carries is its endpoint's, so members of two pools show the same counts.

    `health` and `reason` are known while a daemon runs.
    """

    id: str
    pool: str
    member: str
    protocol: str
    network: str
    weight: int
    active: int | None
    ceiling: int
    used_percent: float | None
    state: str
    health: str | None
    reason: str | None
    opened: int | None
    closed: int | None
    expired: int | None
    removed: int | None
    drained: int | None
    killed: int | None


@click.group()
def member() -> None:
    """Members: an address and a port that serve a pool."""


member.add_command(drain)


@member.command("list")
@click.option("--pool", "name", help="Only the members of this pool.")
@out.choice
@click.pass_obj
def list_(run_directory: Path, name: str | None, output: out.Format) -> None:
    """List members with their open connections, ceilings, health and counters.

    Example: ipbackend member list --pool web
    """
    from ipbackend.cli.view import health, looking  # takes longer to import than all else here

    told = health(run_directory)
    with looking(run_directory) as view:
        pools = view.configuration.pools.values()
        chosen = [pool for pool in pools if name in (None, pool.name, pool.id)]
        if name is not None and not chosen:
            known = suggestion(name, [pool.name for pool in pools])
            raise ConfigurationError(f"--pool: {name!r} is not one of pools ({known})")
        draining = {one.drain.claim: one for one in view.draining()}
        rows = [_row(view, pool, member, told.get(member.id), draining) for pool in chosen for member in pool.members]
        rows += [_gone(view, one) for one in draining.values() if one.drain.reason is Reason.REMOVED]
        out.show_rows(output, Row._fields, rows, ("id",))


@member.command()
@click.argument("members", metavar="[ADDRESS:PORT]...", nargs=-1, callback=batch.endpoints)
@in_pool
@weight
@ceiling
@click.option("--name", help="What to call it.")
@from_file
@out.choice
@click.pass_obj
def add(
    run_directory: Path,
    members: list[dict[str, Any]],
    pool: str,
    weight: int | None,
    max_connections: int | None,
    name: str | None,
    file: str | None,
    output: out.Format,
) -> None:
    """Add members to a pool; what is there already stays as it is.

    Columns of a CSV file: member, or address and port; weight, max_connections, name. The options hold for
    members that do not say otherwise.

    Example: ipbackend member add 192.168.50.10:8080 --pool web --weight 2
    """
    common = {"weight": weight, "max_connections": max_connections, "name": name}
    common = {field: value for field, value in common.items() if value is not None}
    wanted = [{**common, **one} for one in [*members, *(batch.from_csv(file) if file else [])]]
    if not wanted:
        raise click.UsageError("there is no member to add (write ADDRESS:PORT, or --from FILE)")
    with Client(run_directory) as client:
        at = f"{POOL.path}/{resource.find_id(client, POOL, pool)}{MEMBER.path}/batch-add"
        answers = _call(client, at, wanted, "adding members")
    if output is not out.Format.TABLE:
        out.show_data(output, answers)
        return
    counts = Counter(one["ret_status"] for one in answers)
    there = f", {counts['existed']:,} were there already" if counts["existed"] else ""
    click.echo(f"{counts['successful']:,} members added to {pool}{there}")


@member.command()
@click.argument("name", metavar="ADDRESS:PORT|NAME|ID")
@in_pool
@out.choice
@click.pass_obj
def show(run_directory: Path, name: str, pool: str, output: out.Format) -> None:
    """Show a member of a pool.

    Example: ipbackend member show 192.168.50.10:8080 --pool web
    """
    with Client(run_directory) as client:
        number = resource.find_id(client, POOL, pool)
        one = _found(client, name, f"{POOL.path}/{number}")
        its = client.request("GET", "/ipbackend/drains", pool_id=number, member_id=one["id"])["drains"]
    one["drain"] = remains(its[0]["connections"], its[0]["until"]) if its else None
    if output is out.Format.TABLE:
        one = {field: value for field, value in one.items() if field not in resource.CONSTANT}
    out.show_one(output, one)


@member.command("set")
@click.argument("names", metavar="[ADDRESS:PORT|NAME|ID]...", nargs=-1)
@in_pool
@click.option("--all", "everyone", is_flag=True, help="All members of the pool.")
@from_file
@weight
@ceiling
@click.option("--name", "rename", help="Another name.")
@out.choice
@click.pass_obj
def set_(
    run_directory: Path,
    names: tuple[str, ...],
    pool: str,
    everyone: bool,
    file: str | None,
    weight: int | None,
    max_connections: int | None,
    rename: str | None,
    output: out.Format,
) -> None:
    """Change members of a pool. Weight 0 drains: no new connections come, and those that are there go on until they
    end, or until the pool's connection_drain runs out.

    Example: ipbackend member set 192.168.50.10:8080 --pool web --weight 0
    """
    given = {"weight": weight, "max_connections": max_connections, "name": rename}
    lines = batch.from_csv(file) if file else []
    if not (names or everyone or lines):
        raise click.UsageError("there is no member to change (write ADDRESS:PORT, --from FILE or --all)")
    fields = resource.wanted(given) if not lines else {key: value for key, value in given.items() if value is not None}
    with Client(run_directory) as client:
        under = f"{POOL.path}/{resource.find_id(client, POOL, pool)}"
        if len(names) == 1 and not everyone and not lines:
            one = _found(client, names[0], under)
            body = {MEMBER.one: fields}
            changed = client.request("PUT", f"{under}{MEMBER.path}/{one['id']}", body)[MEMBER.one]
            resource.done(MEMBER, changed, "changed", output)
            return
        there = resource.rows(client, MEMBER, under)
        wanted = [{**fields, "id": one["id"]} for one in there] if everyone else _by_name(there, names, fields)
        wanted += _by_address(there, lines, fields)
        answers = _call(client, f"{under}{MEMBER.path}/batch-update", wanted, "changing members")
    if output is not out.Format.TABLE:
        out.show_data(output, answers)
    else:
        click.echo(f"{len(answers):,} members of {pool} changed")


@member.command()
@click.argument("names", metavar="[ADDRESS:PORT|NAME|ID]...", nargs=-1)
@in_pool
@from_file
@click.pass_obj
def delete(run_directory: Path, names: tuple[str, ...], pool: str, file: str | None) -> None:
    """Take members out of a pool. Their connections by this pool's listeners end, after its connection_drain if it
    has one; both ends of them are told.

    Example: ipbackend member delete 192.168.50.10:8080 --pool web
    """
    lines = batch.from_csv(file) if file else []
    if not (names or lines):
        raise click.UsageError("there is no member to delete (write ADDRESS:PORT, or --from FILE)")
    with Client(run_directory) as client:
        under = f"{POOL.path}/{resource.find_id(client, POOL, pool)}"
        if len(names) == 1 and not lines:
            one = _found(client, names[0], under)
            client.request("DELETE", f"{under}{MEMBER.path}/{one['id']}")
            click.echo(f"member {resource.label(one)} deleted")
            return
        there = resource.rows(client, MEMBER, under)
        doomed = [{"id": one["id"]} for one in [*_by_name(there, names, {}), *_by_address(there, lines, {})]]
        _call(client, f"{under}{MEMBER.path}/batch-delete", doomed, "deleting members")
    click.echo(f"{len(doomed):,} members of {pool} deleted")


@member.command()
@click.argument("member", metavar="ADDRESS:PORT", callback=batch.endpoint)
@click.option("--protocol", type=click.Choice(["TCP", "UDP"]), default="TCP", show_default=True)
@out.choice
@click.pass_context
def check(ctx: click.Context, member: dict[str, Any], protocol: str, output: out.Format) -> None:
    """Try whether a member is prepared, be it one already or not.

    Step by step: its network, the route, the next hop; then a real connection from every SNAT address through
    the data plane, the way its answer came back, and the path MTU. Nothing of it stays. The exit status is 1 if
    a step fails.

    Example: ipbackend member check 192.168.50.10:8080
    """
    with Client(ctx.obj) as client:
        body = {"member": {**member, "protocol": protocol}}
        found = client.request("POST", "/ipbackend/checks/members", body)["findings"]
    if output is out.Format.TABLE:
        findings.show(found)
    else:
        out.show_data(output, found)
    ctx.exit(findings.failed(found))


def _call(client: Client, at: str, members: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    """As many requests as it takes; a refusal says how many members went before."""
    answers: list[dict[str, Any]] = []
    with out.progress(len(members), what) as step:
        try:
            for some in batch.in_batches(members, lambda some: client.request("POST", at, {MEMBER.many: some})):
                answers += some[MEMBER.many]
                step(len(some[MEMBER.many]))
        except ServiceError as error:
            if answers:
                raise ServiceError(f"{error}\nthe first {len(answers):,} of {len(members):,} are done") from error
            raise
    return answers


def _found(client: Client, given: str, under: str) -> dict[str, Any]:
    return resource.find(client, MEMBER, given, under, **(batch.split(given) or {}))


def _by_name(there: list[dict[str, Any]], names: tuple[str, ...], fields: dict[str, Any]) -> list[dict[str, Any]]:
    """What each name, address or id stands for, out of one listing."""
    chosen = []
    for given in names:
        found = [one for one in there if given in (one["id"], one["name"], resource.label(one))]
        if len(found) != 1:
            known = suggestion(given, [resource.label(one) for one in there])
            ids = ", ".join(one["id"] for one in found)
            why = f"{len(found)} are called so (write the id of one: {ids})" if found else f"there is none ({known})"
            raise ServiceError(f"member {given}: {why}")
        chosen.append({**fields, "id": found[0]["id"]})
    return chosen


def _by_address(
    there: list[dict[str, Any]], lines: list[dict[str, Any]], fields: dict[str, Any]
) -> list[dict[str, Any]]:
    """The lines of a file, each with the id that its address and port have in the pool."""
    ids = {(one["address"], one["protocol_port"]): one["id"] for one in there}
    missing = [resource.label(one) for one in lines if (one["address"], one["protocol_port"]) not in ids]
    if missing:
        raise ServiceError(f"member {missing[0]}: it is not in the pool, nor are {len(missing) - 1} others (add them)")
    kept = ("weight", "max_connections", "name")
    return [
        {**fields, **{key: one[key] for key in kept if key in one}, "id": ids[one["address"], one["protocol_port"]]}
        for one in lines
    ]


def _gone(view: "View", draining: "Draining") -> Row:
    """A member that its pool has no more, as long as it has connections."""
    drain, have = draining.drain, view.configuration
    pool = have.pools.get(drain.pool)
    number = view.endpoint_ids.get(drain.endpoint)
    counts = view.total("endpoint_counts", number) if number else {}
    return Row(
        drain.member,
        pool.name if pool else drain.pool,
        f"{drain.address}:{drain.port}",
        drain.protocol,
        have.network_of(drain.address).name,
        0,
        view.active(number) if number else None,
        0,
        None,
        f"removed, {remains(draining.connections, drain.until)}",
        None,
        None,
        *(counts.get(field) for field in COUNTED),
    )


def _row(view: "View", pool: Pool, member: Member, told: "Told | None", draining: Mapping[Claim, "Draining"]) -> Row:
    found = view.endpoint(pool, member)
    active, state, counts = None, NOT_APPLIED, {}
    if found:
        number, endpoint = found
        active, counts = view.active(number), view.total("endpoint_counts", number)
        state = REACHABLE if endpoint.ceiling else NO_NEXT_HOP
    its = draining.get(Claim(pool.id, EndpointKey(member.address, member.port, pool.protocol)))
    if its:
        state = remains(its.connections, its.drain.until if its.bounded else None)
    return Row(
        member.id,
        pool.name,
        str(member),
        pool.protocol,
        view.configuration.network_of(member.address).name,
        member.weight,
        active,
        member.max_connections,
        None if active is None else round(100 * active / member.max_connections, 1),
        state,
        told.health if told else None,
        told.reason if told else None,
        *(counts.get(field) for field in COUNTED),
    )
