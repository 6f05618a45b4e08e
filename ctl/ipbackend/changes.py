"""What lies between two configurations, resource by resource, and how it reads. It applies nothing."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, NamedTuple

from ipbackend.configuration import Configuration
from ipbackend.model import Member, Pool

GATEWAY = "gateway"
MEMBERS = "members"
_LISTED = 8  # values of a list that are shown; more are counted
_SINGLE = 3  # changes that a summary names one by one; more are counted


class Verb(StrEnum):
    """What happened to a resource."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


class Change(NamedTuple):
    """One resource, before and after: None where it is not. `parent` is the pool's id for a member.

    A pool appears without its members, which are resources of their own here.
    """

    section: str
    id: str
    parent: str | None
    before: Any
    after: Any
    label: str

    @property
    def verb(self) -> Verb:
        """What happened to it."""
        if self.before is None:
            return Verb.ADDED
        return Verb.REMOVED if self.after is None else Verb.CHANGED

    def fields(self) -> dict[str, tuple[Any, Any]]:
        """The fields that differ, before and after, of something that changed."""
        if self.verb is not Verb.CHANGED:
            return {}
        pairs = {name: (value, getattr(self.after, name)) for name, value in vars(self.before).items()}
        return {name: (one, other) for name, (one, other) in pairs.items() if one != other}

    def __str__(self) -> str:
        what = f"{_singular(self.section)} {self.label}".strip()
        fields = ", ".join(f"{name} {turned(one, other)}" for name, (one, other) in self.fields().items())
        return f"{what} {self.verb}" + (f": {fields}" if fields else "")


def between(have: Configuration, want: Configuration) -> list[Change]:
    """Every change: first what is added or changed, in the order of `want`, then what is removed."""
    changes: list[Change] = []
    if have.gateway != want.gateway:
        changes.append(Change(GATEWAY, GATEWAY, None, have.gateway, want.gateway, ""))
    removed: list[Change] = []
    for section, resources in want.sections():
        before: Mapping[str, Any] = getattr(have, section)
        if before is resources:
            continue
        for number in {**before, **resources}:
            for one in _of(section, before.get(number), resources.get(number)):
                (removed if one.after is None else changes).append(one)
    return changes + removed


def _of(section: str, before: Any, after: Any) -> Iterator[Change]:
    if before is after:
        return
    there = after or before
    if not isinstance(there, Pool):
        if before != after:
            yield Change(section, there.id, None, before, after, there.name or there.id)
        return
    was, now = before.members if before else (), after.members if after else ()
    before, after = (replace(one, members=()) if one else None for one in (before, after))
    if before != after:
        yield Change(section, there.id, None, before, after, there.name or there.id)
    if was is not now:
        yield from _members(there, was, now)


def _members(pool: Pool, before: tuple[Member, ...], after: tuple[Member, ...]) -> Iterator[Change]:
    had, has = {one.id: one for one in before}, {one.id: one for one in after}
    label = pool.name or pool.id
    for number in {**had, **has}:
        one, other = had.get(number), has.get(number)
        if one is not other and one != other:
            yield Change(MEMBERS, number, pool.id, one, other, f"{other or one} of {label}")


def summary(changes: list[Change]) -> str:
    """One line: a few changes by name, many by number."""
    if not changes:
        return "order changed"
    if len(changes) <= _SINGLE:
        return "; ".join(map(str, changes))
    counted = Counter((change.section, change.verb) for change in changes)
    return "; ".join(
        f"{count:,} {section if count > 1 else _singular(section)} {verb}".replace("_", " ")
        for (section, verb), count in counted.items()
    )


def _singular(section: str) -> str:
    return section.removesuffix("s").replace("_", " ")


def turned(before: Any, after: Any) -> str:
    """`have → want` of a field; of long lists how many there are, and how many came and went."""
    if isinstance(before, list | tuple) and max(len(before), len(after)) > _LISTED:
        had, has = (set(map(str, value)) for value in (before, after))
        return f"{len(before):,} → {len(after):,} (+{len(has - had):,}, -{len(had - has):,})"
    return f"{_shown(before)} → {_shown(after)}"


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value).lower() if isinstance(value, bool) else str(value)
