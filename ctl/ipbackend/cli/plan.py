"""How changes read: one line each, many alike in one line, and which connections they end. It asks nobody."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import click

from ipbackend.changes import turned

FEW = 5  # members that are named, of many that change alike
SIGNS = {"added": ("+", "green"), "changed": ("~", "yellow"), "removed": ("-", "red")}
NEVER_SHOWN = ("id", "members")

Change = Mapping[str, Any]


class Like(NamedTuple):
    """What changes must have in common to be told in one line."""

    section: str
    parent: str | None
    verb: str
    fields: str


def show_changes(changes: Iterable[Change], ending: Mapping[str, int] | None = None) -> None:
    """A line for each, with a sign before it; `ending` are connections that end, by the id of the change."""
    ending = ending or {}
    for like, alike in _grouped(changes).items():
        sign, colour = SIGNS[like.verb]
        many = len(alike) > FEW
        for some in [alike] if many else [[one] for one in alike]:
            ends = sum(ending.get(one["id"], 0) for one in some)
            line = f"{sign} {_many(some) if many else _single(some[0])}"
            line += f": {like.fields}" if like.fields else ""
            line += f" ({ends:,} open connections end)" if ends else ""
            click.echo(click.style(line, fg=colour))


def summary(changes: Iterable[Change], ending: Mapping[str, int]) -> str:
    """The sums of a plan."""
    changes = list(changes)
    counts = {verb: sum(one["change"] == verb for one in changes) for verb in SIGNS}
    if not changes:
        return "nothing to change"
    said = ", ".join(f"{count:,} {verb}" for verb, count in counts.items())
    ends = sum(ending.values())
    return f"{said}; {f'{ends:,} open connections end' if ends else 'no open connection ends'}"


def _grouped(changes: Iterable[Change]) -> dict[Like, list[Change]]:
    """In the order of the changes; only members are ever many."""
    groups: dict[Like, list[Change]] = {}
    for one in changes:
        groups.setdefault(Like(one["section"], one["parent"], one["change"], _fields(one)), []).append(one)
    return groups


def _single(change: Change) -> str:
    return f"{change['section'].removesuffix('s').replace('_', ' ')} {change['label']}".strip()


def _many(changes: list[Change]) -> str:
    labels = [str(one["label"]) for one in changes]
    pool = labels[0].rpartition(" of ")[2] if changes[0]["parent"] else ""
    short = [name.rpartition(" of ")[0] or name for name in labels] if pool else labels
    what = changes[0]["section"].replace("_", " ") + (f" of {pool}" if pool else "")
    return f"{len(changes):,} {what} ({', '.join(short[: FEW - 2])}, … {short[-1]})"


def _fields(change: Change) -> str:
    """`field have → want` of what changed; what is added or removed says enough by its name."""
    before, after = change["before"], change["after"]
    if not before or not after:
        return ""
    differ = [name for name in after if name not in NEVER_SHOWN and before.get(name) != after[name]]
    return ", ".join(f"{name} {turned(_plain(before.get(name)), _plain(after[name]))}" for name in differ)


def _plain(value: Any) -> Any:
    """Entries of an ip group as people write them."""
    if isinstance(value, list):
        return [" ".join(filter(None, one.values())) if isinstance(one, dict) else one for one in value]
    return value
