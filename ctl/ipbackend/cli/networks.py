"""`ipbackend network`: where members live, and whether the way there is known."""

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ipbackend.cli import findings, resource
from ipbackend.cli import output as out
from ipbackend.cli.resource import MEMBER, NETWORK, POOL, completing, only_listed
from ipbackend.client import Client
from ipbackend.model import Network, NetworkKind

if TYPE_CHECKING:
    from ipbackend.view import View

KINDS = click.Choice([str(kind) for kind in NetworkKind])
named = click.argument("name", metavar="NAME|ID", shell_complete=completing(NETWORK))
interface = click.option("--interface", help="Where it is reached; the members' side of the gateway unless named.")
description = click.option("--description", help="Whatever is worth knowing.")


class Row(NamedTuple):
    """A network; without members it has no next hops in the maps: `resolved`, `mac` and `mtu` are None.

    On the link each member is a next hop of its own: `resolved` says whether all are, `mac` is None.
    """

    id: str
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
    from ipbackend.cli.view import looking  # takes longer to import than all else here

    with looking(run_directory) as view:
        out.show_rows(output, Row._fields, [_row(view, one) for one in view.configuration.networks.values()], ("id",))


@network.command()
@click.argument("name")
@click.option("--kind", type=KINDS, required=True, help="local is on the link; the others lie behind a next hop.")
@click.option(
    "--cidr", "cidrs", multiple=True, required=True, callback=only_listed, help="One of its blocks; repeat it."
)
@click.option("--next-hop", metavar="ADDRESS", help="The router that leads there.")
@interface
@description
@out.choice
@click.pass_obj
def create(
    run_directory: Path,
    name: str,
    kind: str,
    cidrs: list[str],
    next_hop: str | None,
    interface: str | None,
    description: str | None,
    output: out.Format,
) -> None:
    """Create a network: its routes are set from now on. It must not overlap another one.

    Example: ipbackend network create on-premises --kind vpn --cidr 192.168.50.0/24 --next-hop 10.0.0.3
    """
    fields = {
        "name": name,
        "kind": kind,
        "cidrs": cidrs,
        "next_hop": next_hop,
        "interface": interface,
        "description": description,
    }
    with Client(run_directory) as client:
        resource.create(client, NETWORK, fields, output)


@network.command()
@named
@out.choice
@click.pass_obj
def show(run_directory: Path, name: str, output: out.Format) -> None:
    """Show a network.

    Example: ipbackend network show on-premises
    """
    with Client(run_directory) as client:
        resource.show(client, NETWORK, name, output)


@network.command("set")
@named
@click.option("--name", "rename", help="Another name.")
@click.option("--kind", type=KINDS)
@click.option("--cidr", "cidrs", multiple=True, callback=only_listed, help="One of all its blocks from now on.")
@click.option("--next-hop", metavar="ADDRESS", help="The router that leads there.")
@click.option("--no-next-hop", is_flag=True, help="None: for kind local.")
@interface
@description
@out.choice
@click.pass_obj
def set_(
    run_directory: Path,
    name: str,
    rename: str | None,
    kind: str | None,
    cidrs: list[str] | None,
    next_hop: str | None,
    no_next_hop: bool,
    interface: str | None,
    description: str | None,
    output: out.Format,
) -> None:
    """Change a network: its routes change with it.

    Example: ipbackend network set on-premises --next-hop 10.0.0.4
    """
    fields = {
        "name": rename,
        "kind": kind,
        "cidrs": cidrs,
        "next_hop": next_hop,
        "interface": interface,
        "description": description,
    }
    with Client(run_directory) as client:
        resource.change(client, NETWORK, name, resource.without(fields, next_hop=no_next_hop), output)


@network.command()
@named
@click.pass_obj
def delete(run_directory: Path, name: str) -> None:
    """Delete a network that no member lives in.

    Example: ipbackend network delete on-premises
    """
    with Client(run_directory) as client:
        resource.delete(client, NETWORK, name, whole=False)


@network.command()
@named
@click.option("--limit", default=16, show_default=True, type=click.IntRange(min=0), help="Members to try at most.")
@out.choice
@click.pass_context
def check(ctx: click.Context, name: str, limit: int, output: out.Format) -> None:
    """Try whether a network is prepared: the way to it, and its members one by one, as `member check` does.

    Example: ipbackend network check on-premises
    """
    with Client(ctx.obj) as client:
        one = resource.find(client, NETWORK, name)
        found = {"": client.request("POST", f"/ipbackend/checks/networks/{one['id']}")["findings"]}
        members = _members(client, [IPv4Network(cidr) for cidr in one["cidrs"]])
        with out.progress(min(limit, len(members)), "trying members") as step:
            for member in members[:limit]:
                answer = client.request("POST", "/ipbackend/checks/members", {"member": member})
                found[f"{member['address']}:{member['protocol_port']}/{member['protocol']}"] = answer["findings"]
                step(1)
    if output is not out.Format.TABLE:
        out.show_data(output, [{"member": whom or None, "findings": some} for whom, some in found.items()])
    else:
        for whom, some in found.items():
            click.echo(whom or f"network {name}")
            findings.show(some, "  ")
        if len(members) > limit:
            click.echo(f"{len(members) - limit:,} more members were not tried (--limit)")
    ctx.exit(any(map(findings.failed, found.values())))


def _members(client: Client, cidrs: list[IPv4Network]) -> list[dict[str, Any]]:
    """Every endpoint that lives there, once."""
    chosen = {}
    for pool in resource.rows(client, POOL):
        for one in resource.rows(client, MEMBER, f"{POOL.path}/{pool['id']}"):
            if any(IPv4Address(one["address"]) in cidr for cidr in cidrs):
                member = {"address": one["address"], "protocol_port": one["protocol_port"]}
                chosen[*member.values(), pool["protocol"]] = {**member, "protocol": pool["protocol"]}
    return list(chosen.values())


def _row(view: "View", wanted: Network) -> Row:
    keys = [key for key in view.configuration.endpoints if view.configuration.network_of(key.address) is wanted]
    numbers = {view.entries.endpoints[view.endpoint_ids[key]].next_hop for key in keys if key in view.endpoint_ids}
    hops = [view.entries.next_hops[number] for number in numbers if number in view.entries.next_hops]
    router = next((hop for hop in hops if hop.address == wanted.next_hop and hop.resolved), None)
    return Row(
        wanted.id,
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
