"""Reads TOML into the model: shapes, types, unknown keys, and names, which stand for ids. It knows no store.

The dataclasses of the model are the table of what may be written: a key for each field, read by its type.
"""

import tomllib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints
from uuid import uuid4

from ipbackend import wording
from ipbackend.configuration import SECTIONS, Configuration, Draft, references
from ipbackend.errors import ConfigurationError, below, suggestion
from ipbackend.model import Entry, Gateway, HealthMonitor, Member, Pool, Resource, place

WRITTEN = ("networks", "load_balancers", "ip_groups", "pools", "listeners")
MONITOR = "health_monitor"  # a table in its pool's
KEYS = {"entries": "cidrs"}  # fields that a file calls otherwise
EMPTY = Configuration()


def load(path: Path) -> Configuration:
    """What the file `path` asks of an empty gateway. Raises ConfigurationError, also if the file cannot be read."""
    return parse(read(path), str(path))


def read(path: Path) -> str:
    """The text of a file. ConfigurationError: it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror} (name a file that can be read)") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: byte {error.start} is not UTF-8 (save it as UTF-8)") from error


def parse(text: str, source: str, have: Configuration = EMPTY, prune: bool = False) -> Configuration:
    """What `have` becomes when `text`, which came from `source`, is applied to it.

    Names in the text stand for the resources that have them now; other names make resources. What is named is
    as the text says, whole, with defaults for what is not written, and a pool without a health monitor if none is;
    only `members` that are not written stay. What is not named stays, or goes with `prune`. Raises
    ConfigurationError with all problems.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: TOML's own, and integers too long to convert
        raise ConfigurationError(f"{source}: {error} (correct the TOML there)") from error

    reader = _Reader(have, document, prune)
    reader.refuse_unknown(document, ["gateway", *WRITTEN], "")
    gateway: Gateway | None = have.gateway
    if "gateway" in document or gateway is None:
        gateway = reader.table(Gateway, document.get("gateway"), "gateway")
    defaults = {
        "networks": {"interface": gateway.snat_interface if gateway else ""},
        "load_balancers": {"interface": gateway.interfaces[0] if gateway else ""},
    }
    wanted: dict[str, dict[str, Any]] = {}
    for section in WRITTEN:
        wanted[section] = reader.section(section, document.get(section, {}), defaults.get(section, {}))
    monitors = reader.monitors(document.get("pools", {}), wanted["pools"])
    everything: dict[str, Any] = {**wanted, "health_monitors": monitors}
    if gateway and not reader.problems:
        return Configuration(gateway, **everything)
    if gateway:  # what could be read is held against it even so, that one run names everything
        reader.problems += Draft(gateway, **everything, unreadable=reader.unreadable).conflicts()
    raise ConfigurationError(*reader.problems)


def _with_ids_kept(pool: Pool, before: Pool) -> Pool:
    """Members with an address and port that were there before are the same ones."""
    had = {(member.address, member.port): member for member in before.members}

    def kept(member: Member) -> Member:
        same = had.get((member.address, member.port))
        if same is None:
            return member
        return same if vars(same) == {**vars(member), "id": same.id} else replace(member, id=same.id)

    return replace(pool, members=tuple(map(kept, pool.members)))


class _Reader:
    """Turns TOML values into the model's, and notes what cannot be.

    None, which no TOML value is, stands for what could not be read; `unreadable` are the places of objects
    that could not be made for it.
    """

    def __init__(self, have: Configuration, document: Mapping[str, Any], prune: bool) -> None:
        self.problems: list[str] = []
        self.unreadable: set[str] = set()
        self._have = have
        self._prune = prune
        self._ids = {section: self._names(section, document.get(section, {})) for section in WRITTEN}

    def _names(self, section: str, written: object) -> dict[str, str]:
        """The ids that names of a section stand for: what is there already keeps its own."""
        there: Mapping[str, Any] = getattr(self._have, section)
        had = {one.name: number for number, one in there.items() if one.name}
        counts = Counter(one.name for one in there.values())
        names = {} if self._prune else dict(had)
        for name in written if isinstance(written, dict) else ():
            if counts[name] > 1:
                what = f"{counts[name]} of {section} are called so (rename all but one)"
                self.problems.append(f"{place(section, name)}: {what}")
            if not name:
                self.problems.append(f"{section}: a name is empty (write one)")
            names[name] = had.get(name) or str(uuid4())
        return names

    def section(self, section: str, raw: object, defaults: dict[str, Any]) -> dict[str, Any]:
        """What `have` becomes with the readable objects of a section like [pools], by id."""
        there: Mapping[str, Any] = getattr(self._have, section)
        if not isinstance(raw, dict):
            self.expected("a table of tables", raw, section)
            self.unreadable.add(section)
            return {}
        made = dict[str, Any]()
        for name, table in raw.items():
            number = self._ids[section][name]
            before = there.get(number)
            given = {"id": number, "name": name, **defaults}
            if isinstance(before, Pool) and not self._prune:
                given["members"] = before.members
            one = self.table(SECTIONS[section], table, place(section, name), given)
            if one is not None:
                made[number] = _with_ids_kept(one, before) if isinstance(before, Pool) else one
        wanted = made if self._prune else {**there, **made}
        return {number: wanted[number] for number in {**there, **wanted} if number in wanted}  # all keep their places

    def monitors(self, raw: object, pools: Collection[str]) -> dict[str, HealthMonitor]:
        """The health monitors of `pools`, by id: those in the tables of [pools], and of other pools what there was."""
        all_tables = raw.items() if isinstance(raw, dict) else ()
        tables = {name: table for name, table in all_tables if isinstance(table, dict)}
        written = {self._ids["pools"][name] for name in tables}
        there = self._have.health_monitors.values()
        made = {one.id: one for one in there if one.pool in pools and one.pool not in written}
        had = {one.pool: one.id for one in there}
        for name, table in tables.items():
            pool = self._ids["pools"][name]
            if MONITOR in table:
                given = {"id": had.get(pool) or str(uuid4()), "pool": pool}
                one = self.table(HealthMonitor, table[MONITOR], f"{place('pools', name)}.{MONITOR}", given)
                if one is not None:
                    made[one.id] = one
        order = {**self._have.health_monitors, **made}
        return {number: made[number] for number in order if number in made}  # all keep their places

    def table(self, kind: Any, raw: object, where: str, given: dict[str, Any] | None = None) -> Any:
        """An object of the dataclass `kind`; `given` are values for what is not written. Name and id never are."""
        made = self._made(kind, raw, where, given or {})
        if made is None:
            self.unreadable.add(where)
        return made

    def _made(self, kind: Any, raw: object, where: str, given: dict[str, Any]) -> Any:
        if raw is None:
            self.problems.append(f"{where}: is missing (write a table [{where}])")
            return None
        if not isinstance(raw, dict):
            self.expected("a table", raw, where)
            return None
        hints = _hints(kind)
        self.refuse_unknown(raw, [*map(_key, hints), *([MONITOR] if kind is Pool else ())], where)
        read = {
            name: self.value(hint, raw[_key(name)], f"{where}.{_key(name)}")
            for name, hint in hints.items()
            if _key(name) in raw
        }
        for key, reference in references(kind).items() if issubclass(kind, Resource) else ():
            if read.get(key) is not None:
                read[key] = self._ids_of(reference.section, read[key], f"{where}.{key}")
        missing = _required(kind) - read.keys() - given.keys()
        for key in sorted(missing):
            self.problems.append(f"{where}.{key}: is missing (write {wording.expected(hints[key])})")
        if missing or None in read.values():
            self.problems += [below(where, problem) for problem in kind.wrong(read)]
            return None
        try:
            return kind(**given | read)
        except ConfigurationError as error:
            self.problems += [below(where, problem) for problem in error.problems]
            return None

    def _ids_of(self, section: str, named: str | tuple[str, ...], where: str) -> str | tuple[str, ...] | None:
        """What a name stands for, or each of several."""
        if isinstance(named, str):
            return self._id(section, named, where)
        found = [self._id(section, name, f"{where}[{index}]") for index, name in enumerate(named)]
        readable = tuple(number for number in found if number is not None)
        return readable if len(readable) == len(found) else None

    def _id(self, section: str, name: str, where: str) -> str | None:
        """What a name stands for."""
        known = self._ids[section]
        if name not in known and section not in self.unreadable:
            self.problems.append(f"{where}: {name!r} is not one of {section} ({suggestion(name, known)})")
        return known.get(name)

    def value(self, hint: Any, raw: object, where: str) -> Any:
        """A field of the type `hint`."""
        hint = wording.without_none(hint)
        if get_origin(hint) is tuple:
            return self._array(get_args(hint)[0], raw, where)
        if hint is Entry and not isinstance(raw, dict):
            cidr = self._scalar(IPv4Network, raw, where)
            return None if cidr is None else Entry(cidr)
        if is_dataclass(hint):
            return self.table(hint, raw, where)
        return self._scalar(hint, raw, where)

    def _array(self, kind: Any, raw: object, where: str) -> tuple[Any, ...] | None:
        if not isinstance(raw, list):
            self.expected(wording.expected(tuple[kind, ...]), raw, where)
            return None
        items = [self.value(kind, item, f"{where}[{index}]") for index, item in enumerate(raw)]
        readable = tuple(item for item in items if item is not None)
        # Tables are objects of their own and may be missing; an array of values is all there or not read.
        return readable if is_dataclass(kind) or len(readable) == len(items) else None

    def _scalar(self, kind: Any, raw: Any, where: str) -> Any:
        written = kind if kind in (str, int, bool) else str
        if type(raw) is not written or wording.too_long(raw):
            self.expected(wording.expected(kind), raw, where)
            return None
        try:
            return kind(raw)
        except ValueError:
            self.problems.append(f"{where}: {wording.quoted(raw)} {wording.why_not(kind, raw)}")
            return None

    def expected(self, what: str, raw: object, where: str) -> None:
        """Note that something else than `what` is written."""
        self.problems.append(f"{where}: got {wording.shown(raw)} (expected {what})")

    def refuse_unknown(self, table: dict[str, Any], known: Collection[str], where: str) -> None:
        """Note every key that means nothing here."""
        for key in table:
            if key not in known:
                self.problems.append(f"{place(where, key)}: unknown key ({suggestion(key, known)})")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The fields a table of `kind` may hold, and their types; a name that is the table's own key is none of them."""
    hints = get_type_hints(kind)
    never = {Member: ("id",), HealthMonitor: ("id", "pool")}.get(kind, ("id", "name"))
    return {field.name: hints[field.name] for field in fields(kind) if field.name not in never}


@cache
def _required(kind: Any) -> frozenset[str]:
    return frozenset(
        field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING
    )


def _key(name: str) -> str:
    """What a file calls a field."""
    return KEYS.get(name, name)
