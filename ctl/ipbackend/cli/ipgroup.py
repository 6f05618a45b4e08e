"""`ipbackend ipgroup`: addresses under one name."""

from pathlib import Path

import click

from ipbackend.cli import output as out
from ipbackend.cli import resource
from ipbackend.cli.resource import IP_GROUP, completing, only_listed
from ipbackend.client import Client

named = click.argument("name", metavar="NAME|ID", shell_complete=completing(IP_GROUP))
addresses = click.option(
    "--ip", "ips", multiple=True, callback=only_listed, metavar="ADDRESS|CIDR", help="One of its entries; repeat it."
)
description = click.option("--description", help="Whatever is worth knowing.")


@click.group()
def ipgroup() -> None:
    """IP groups: addresses under one name."""


@ipgroup.command()
@click.argument("name")
@addresses
@description
@out.choice
@click.pass_obj
def create(run_directory: Path, name: str, ips: list[str] | None, description: str | None, output: out.Format) -> None:
    """Create an IP group.

    Example: ipbackend ipgroup create offices --ip 198.51.100.0/24 --ip 203.0.113.7
    """
    fields = {"name": name, "ip_list": _entries(ips) or [], "description": description}
    with Client(run_directory) as client:
        resource.create(client, IP_GROUP, fields, output)


@ipgroup.command("list")
@out.choice
@click.pass_obj
def list_(run_directory: Path, output: out.Format) -> None:
    """List IP groups with their entries.

    Example: ipbackend ipgroup list
    """
    with Client(run_directory) as client:
        found = resource.rows(client, IP_GROUP)
    rows = [(one["id"], one["name"], [entry["ip"] for entry in one["ip_list"]], one["description"]) for one in found]
    out.show_rows(output, ("id", "name", "entries", "description"), rows, ("id",))


@ipgroup.command()
@named
@out.choice
@click.pass_obj
def show(run_directory: Path, name: str, output: out.Format) -> None:
    """Show an IP group.

    Example: ipbackend ipgroup show offices
    """
    with Client(run_directory) as client:
        resource.show(client, IP_GROUP, name, output)


@ipgroup.command("set")
@named
@click.option("--name", "rename", help="Another name.")
@addresses
@description
@out.choice
@click.pass_obj
def set_(
    run_directory: Path,
    name: str,
    rename: str | None,
    ips: list[str] | None,
    description: str | None,
    output: out.Format,
) -> None:
    """Change an IP group: entries that are given take the place of all before.

    Example: ipbackend ipgroup set offices --ip 198.51.100.0/24
    """
    fields = {"name": rename, "ip_list": _entries(ips), "description": description}
    with Client(run_directory) as client:
        resource.change(client, IP_GROUP, name, fields, output)


@ipgroup.command()
@named
@click.pass_obj
def delete(run_directory: Path, name: str) -> None:
    """Delete an IP group.

    Example: ipbackend ipgroup delete offices
    """
    with Client(run_directory) as client:
        resource.delete(client, IP_GROUP, name, whole=False)


def _entries(ips: list[str] | None) -> list[dict[str, str]] | None:
    return None if ips is None else [{"ip": one} for one in ips]
