"""`ipbackend ipgroup`: addresses under one name, for listeners to let in or to keep out."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ipbackend.cli import output as out
from ipbackend.cli import resource
from ipbackend.cli.batch import STDIN
from ipbackend.cli.resource import IP_GROUP, LISTENER, Fields, completing
from ipbackend.client import Client

SHOWN = 3  # entries in a list for people; the rest are counted
named = click.argument("name", metavar="NAME|ID", shell_complete=completing(IP_GROUP))
description = click.option("--description", help="Whatever is worth knowing.")


def entries(command: out.Command) -> out.Command:
    """Where entries come from; the command gets what the API has, or None, as `ip_list`."""
    for option in (
        click.option(
            "--from",
            "file",
            metavar="FILE|-",
            callback=lambda _ctx, _option, path: None if path is None else list(_lines(path)),
            help="More of them: a line each, what it is may follow; # begins a comment.",
        ),
        click.option("--ip", "ips", multiple=True, metavar="ADDRESS|CIDR", help="One of its entries; repeat it."),
    ):
        command = option(command)
    return command


@click.group()
def ipgroup() -> None:
    """IP groups: addresses under one name, for listeners to let in or to keep out."""


@ipgroup.command()
@click.argument("name")
@entries
@description
@out.choice
@click.pass_obj
def create(
    run_directory: Path,
    name: str,
    ips: tuple[str, ...],
    file: list[Fields] | None,
    description: str | None,
    output: out.Format,
) -> None:
    """Create an IP group; `ipbackend listener set --ip-group` uses it.

    Example: ipbackend ipgroup create offices --ip 198.51.100.0/24 --ip 203.0.113.7
    """
    fields = {"name": name, "ip_list": _entries(ips, file) or [], "description": description}
    with Client(run_directory) as client:
        resource.create(client, IP_GROUP, fields, output)


@ipgroup.command("list")
@out.choice
@click.pass_obj
def list_(run_directory: Path, output: out.Format) -> None:
    """List IP groups with their entries, and the listeners that use them.

    Example: ipbackend ipgroup list
    """
    with Client(run_directory) as client:
        listeners = {one["id"]: resource.label(one) for one in resource.rows(client, LISTENER)}
        found = resource.rows(client, IP_GROUP)
    rows: list[tuple[Any, ...]] = []
    for one in found:
        ips = [entry["ip"] for entry in one["ip_list"]]
        if output is out.Format.TABLE and len(ips) > SHOWN:
            ips = [*ips[:SHOWN], f"… {len(ips):,} in all"]
        users = [listeners.get(user["id"], user["id"]) for user in one["listeners"]]
        rows.append((one["id"], one["name"], ips, users, one["description"]))
    out.show_rows(output, ("id", "name", "entries", "listeners", "description"), rows, ("id",))


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
@entries
@description
@out.choice
@click.pass_obj
def set_(
    run_directory: Path,
    name: str,
    rename: str | None,
    ips: tuple[str, ...],
    file: list[Fields] | None,
    description: str | None,
    output: out.Format,
) -> None:
    """Change an IP group: entries that are given take the place of all before.

    Example: ipbackend ipgroup set offices --ip 198.51.100.0/24
    """
    fields = {"name": rename, "ip_list": _entries(ips, file), "description": description}
    with Client(run_directory) as client:
        resource.change(client, IP_GROUP, name, fields, output)


@ipgroup.command()
@named
@entries
@out.choice
@click.pass_obj
def add(run_directory: Path, name: str, ips: tuple[str, ...], file: list[Fields] | None, output: out.Format) -> None:
    """Add entries to an IP group, or describe those that are there anew.

    Example: ipbackend ipgroup add attackers --from list.txt
    """
    _change(run_directory, name, "create-or-update", _entries(ips, file), output)


@ipgroup.command()
@named
@entries
@out.choice
@click.pass_obj
def remove(run_directory: Path, name: str, ips: tuple[str, ...], file: list[Fields] | None, output: out.Format) -> None:
    """Take entries out of an IP group.

    Example: ipbackend ipgroup remove offices --ip 203.0.113.7
    """
    gone = _entries(ips, file)
    _change(run_directory, name, "batch-delete", gone and [{"ip": one["ip"]} for one in gone], output)


@ipgroup.command()
@named
@click.pass_obj
def delete(run_directory: Path, name: str) -> None:
    """Delete an IP group.

    Example: ipbackend ipgroup delete offices
    """
    with Client(run_directory) as client:
        resource.delete(client, IP_GROUP, name, whole=False)


def _change(run_directory: Path, name: str, how: str, given: list[Fields] | None, output: out.Format) -> None:
    if not given:
        raise click.UsageError("there are no entries (give them by --ip or --from)")
    with Client(run_directory) as client:
        number = resource.find(client, IP_GROUP, name)["id"]
        path = f"{IP_GROUP.path}/{number}/iplist/{how}"
        group = client.request("POST", path, {"ipgroup": {"ip_list": given}})["ipgroup"]
    resource.done(IP_GROUP, group, "changed", output)


def _entries(ips: tuple[str, ...], file: list[Fields] | None) -> list[Fields] | None:
    return None if not ips and file is None else [*({"ip": one} for one in ips), *(file or ())]


def _lines(path: str) -> Iterator[Fields]:
    """The entries of a file. ConfigurationError: it cannot be read."""
    from ipbackend.config import read  # the other commands do without it

    for line in (sys.stdin.read() if path == STDIN else read(Path(path))).splitlines():
        cidr, _, what = line.partition("#")[0].strip().partition(" ")
        if cidr:
            yield {"ip": cidr, "description": what.strip()}
