"""Members from the command line and from CSV, as the API takes them. It asks nobody."""

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import click

from ipbackend.errors import ConfigurationError, suggestion

BATCH = 200  # members of one request, as published
STDIN = "-"
NUMBERS = ("protocol_port", "weight", "max_connections")
COLUMNS = {
    "member": "address:port",
    "address": "address",
    "port": "protocol_port",
    "protocol_port": "protocol_port",
    "weight": "weight",
    "max_connections": "max_connections",
    "name": "name",
}


def split(given: str) -> dict[str, Any] | None:
    """`ADDRESS:PORT` as the API's two fields; of anything else, None."""
    address, colon, port = given.rpartition(":")
    return {"address": address, "protocol_port": int(port)} if colon and port.isascii() and port.isdigit() else None


def endpoint(_ctx: click.Context, _parameter: click.Parameter, given: str) -> dict[str, Any]:
    """For click: `ADDRESS:PORT`."""
    fields = split(given)
    if fields is None:
        raise click.BadParameter(f"{given!r} has no port (write ADDRESS:PORT, such as 192.168.50.10:8080)")
    return fields


def endpoints(ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> list[dict[str, Any]]:
    """For click: several of them."""
    return [endpoint(ctx, parameter, one) for one in given]


def from_csv(path: str) -> list[dict[str, Any]]:
    """The members of a CSV file, or of stdin where `path` is `-`. ConfigurationError: file, line and what is wrong."""
    if path == STDIN:
        return list(_members(sys.stdin, "stdin"))
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            return list(_members(file, path))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror} (name a file that can be read)") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: byte {error.start} is not UTF-8 (save it as UTF-8)") from error


def in_batches(members: list[dict[str, Any]], call: Callable[[list[dict[str, Any]]], Any]) -> Iterator[Any]:
    """What `call` answers to each share of the members that one request takes."""
    for start in range(0, len(members), BATCH):
        yield call(members[start : start + BATCH])


def _members(file: TextIO, source: str) -> Iterator[dict[str, Any]]:
    reader = csv.reader(file, skipinitialspace=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        _check(header, source)
        for cells in reader:
            if cells:
                yield _member(header, cells, f"{source}:{reader.line_num}")
    except csv.Error as error:
        raise ConfigurationError(f"{source}:{reader.line_num}: {error} (correct the CSV there)") from error


def _check(header: list[str], source: str) -> None:
    for name in header:
        if name not in COLUMNS:
            known = suggestion(name, COLUMNS)
            raise ConfigurationError(f"{source}:1: {name!r} is no column ({known})")
    if "member" not in header and not {"address", "port"} <= {name.replace("protocol_", "") for name in header}:
        what = "the first line names no column `member`, or `address` and `port`"
        raise ConfigurationError(f"{source}:1: {what} (begin with a line such as member,weight)")


def _member(header: list[str], cells: list[str], where: str) -> dict[str, Any]:
    if len(cells) != len(header):
        raise ConfigurationError(f"{where}: {len(cells)} cells under {len(header)} columns (give each its own)")
    fields: dict[str, Any] = {}
    for name, cell in zip(header, map(str.strip, cells), strict=True):
        field = COLUMNS[name]
        if name == "member":
            there = split(cell)
            if there is None:
                raise ConfigurationError(f"{where}: member: {cell!r} has no port (write ADDRESS:PORT)")
            fields |= there
        elif cell and field in NUMBERS:
            if not (cell.isascii() and cell.isdigit()):
                raise ConfigurationError(f"{where}: {name}: {cell!r} is not a number (write digits)")
            fields[field] = int(cell)
        elif cell:
            fields[field] = cell
    return fields
