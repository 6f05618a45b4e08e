"""`ipbackend lb`: who owns a VIP."""

from pathlib import Path

import click

from ipbackend.cli import output as out
from ipbackend.cli import resource
from ipbackend.cli.resource import LOAD_BALANCER, completing
from ipbackend.client import Client

COLUMNS = ("id", "name", "vip_address", "interface", "ip_target_enable", "deletion_protection_enable", "listeners")
named = click.argument("name", metavar="NAME|ID", shell_complete=completing(LOAD_BALANCER))
protection = click.option("--deletion-protection/--no-deletion-protection", default=None, help="Refuse to delete it.")
ip_target = click.option("--ip-target", is_flag=True, default=None, help="Take IP addresses as members, for ever.")
description = click.option("--description", help="Whatever is worth knowing.")


@click.group()
def lb() -> None:
    """Load balancers: each owns a VIP."""


@lb.command()
@click.argument("name")
@click.option("--vip", required=True, metavar="ADDRESS", help="Where clients connect to.")
@click.option("--interface", help="Where the VIP lives; the gateway's first interface unless named.")
@ip_target
@protection
@description
@out.choice
@click.pass_obj
def create(
    run_directory: Path,
    name: str,
    vip: str,
    interface: str | None,
    ip_target: bool | None,
    deletion_protection: bool | None,
    description: str | None,
    output: out.Format,
) -> None:
    """Create a load balancer: the VIP is answered for from now on.

    Example: ipbackend lb create shop --vip 10.0.0.100 --ip-target
    """
    fields = {
        "name": name,
        "vip_address": vip,
        "interface": interface,
        "ip_target_enable": ip_target,
        "deletion_protection_enable": deletion_protection,
        "description": description,
    }
    with Client(run_directory) as client:
        resource.create(client, LOAD_BALANCER, fields, output)


@lb.command("list")
@out.choice
@click.pass_obj
def list_(run_directory: Path, output: out.Format) -> None:
    """List load balancers, with how many listeners each has.

    Example: ipbackend lb list
    """
    with Client(run_directory) as client:
        found = resource.rows(client, LOAD_BALANCER)
    rows = [[*(one[column] for column in COLUMNS[:-1]), len(one["listeners"])] for one in found]
    out.show_rows(output, COLUMNS, rows, ("id",))


@lb.command()
@named
@out.choice
@click.pass_obj
def show(run_directory: Path, name: str, output: out.Format) -> None:
    """Show a load balancer.

    Example: ipbackend lb show shop
    """
    with Client(run_directory) as client:
        resource.show(client, LOAD_BALANCER, name, output)


@lb.command("set")
@named
@click.option("--name", "rename", help="Another name.")
@click.option("--vip", metavar="ADDRESS", help="Another VIP: connections by the one before end.")
@ip_target
@protection
@description
@out.choice
@click.pass_obj
def set_(
    run_directory: Path,
    name: str,
    rename: str | None,
    vip: str | None,
    ip_target: bool | None,
    deletion_protection: bool | None,
    description: str | None,
    output: out.Format,
) -> None:
    """Change a load balancer.

    Example: ipbackend lb set shop --deletion-protection
    """
    fields = {
        "name": rename,
        "vip_address": vip,
        "ip_target_enable": ip_target,
        "deletion_protection_enable": deletion_protection,
        "description": description,
    }
    with Client(run_directory) as client:
        resource.change(client, LOAD_BALANCER, name, fields, output)


@lb.command()
@named
@click.option("--cascade", is_flag=True, help="Also its listeners, and the pools that nothing else uses.")
@click.pass_obj
def delete(run_directory: Path, name: str, cascade: bool) -> None:
    """Delete a load balancer.

    Example: ipbackend lb delete shop --cascade
    """
    with Client(run_directory) as client:
        resource.delete(client, LOAD_BALANCER, name, cascade)
