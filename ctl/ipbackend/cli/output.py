"""How answers look: aligned text for people, JSON for programs. It knows no map and no model.

Rows are tuples under named columns, which are the keys in JSON: None is `-` in a table and null in JSON.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any, TypeVar

import click

Row = Sequence[Any]  # of str, bool, int, float, None, and lists of them
Command = TypeVar("Command", bound=Callable[..., Any])


class Format(StrEnum):
    """What `--output` takes."""

    TABLE = "table"
    JSON = "json"


def choice(command: Command) -> Command:
    """Give a command `--output`; it gets a Format named `output`."""
    return click.option(
        "--output",
        type=click.Choice([str(one) for one in Format]),
        default=str(Format.TABLE),
        show_default=True,
        callback=lambda _ctx, _option, value: Format(value),
        help="For people or for programs.",
    )(command)


def show_rows(output: Format, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """A table, or an array of objects."""
    if output is Format.JSON:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        click.echo(table(columns, rows))


def show_json(value: Any) -> None:
    """Anything, as JSON."""
    click.echo(json.dumps(value, indent=2))


def table(columns: Sequence[str], rows: Iterable[Row]) -> str:
    """Lines of aligned text, a header first; columns that hold only numbers are aligned to the right."""
    rows = list(rows)
    header = [column.replace("_", " ").upper() for column in columns]
    lines = [header, *([_text(value) for value in row] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    numeric = [bool(rows) and all(map(_is_number, values)) for values in zip(*rows, strict=True)] or [False] * len(
        header
    )
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(_text, value)) or "-"
    return str(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
