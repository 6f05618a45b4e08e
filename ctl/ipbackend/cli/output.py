"""How answers look: aligned text for people, JSON or YAML for programs. It knows no map and no model.

Rows are tuples under named columns, which are the keys in JSON: None is `-` in a table and null in JSON.
"""

import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, TypeVar

import click

Row = Sequence[Any]  # of str, bool, int, float, None, and lists of them
Command = TypeVar("Command", bound=Callable[..., Any])


class Format(StrEnum):
    """What `--output` takes."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


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


def show_rows(output: Format, columns: Sequence[str], rows: Iterable[Row], hidden: Collection[str] = ()) -> None:
    """A table, without its `hidden` columns, or an array of objects."""
    if output is not Format.TABLE:
        show_data(output, [dict(zip(columns, row, strict=True)) for row in rows])
        return
    shown = [number for number, column in enumerate(columns) if column not in hidden]
    click.echo(table([columns[number] for number in shown], [[row[number] for number in shown] for row in rows]))


def show_data(output: Format, value: Any) -> None:
    """Anything, for programs."""
    if output is Format.YAML:
        import yaml  # takes longer to import than JSON takes for everything

        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), nl=False)
    else:
        click.echo(json.dumps(value, indent=2))


def show_one(output: Format, value: Mapping[str, Any]) -> None:
    """One thing: a field a line, or an object."""
    if output is not Format.TABLE:
        show_data(output, dict(value))
        return
    width = max(map(len, value))
    for name, field in value.items():
        click.echo(f"{name.replace('_', ' '):{width}}  {_text(field)}".rstrip())


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """How far long work has come, on a terminal and on stderr; gives what to call with each share of `total`."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=total, label=what, file=sys.stderr) as bar:
        yield bar.update


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
    if isinstance(value, Mapping):
        return " ".join(map(_text, value.values()))
    return str(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
