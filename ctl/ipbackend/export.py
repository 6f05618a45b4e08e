"""Writes what is wanted as the TOML that config.parse reads back, so that nothing differs. It knows no store.

What has its default is not written, except for interfaces, whose default depends on the gateway.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from ipbackend.config import KEYS, MONITOR, WRITTEN
from ipbackend.configuration import Configuration, references
from ipbackend.errors import ConfigurationError
from ipbackend.model import Entry, place
from ipbackend.rules import Reference

_ALWAYS = ("interface",)
_NEVER = ("id", "name")  # the name is the table's own key


def to_toml(configuration: Configuration) -> str:
    """The text. ConfigurationError: names that are missing or shared, since in a file they stand for ids."""
    problems = list(_unnamed(configuration))
    if problems:
        raise ConfigurationError(*problems)
    return "\n".join(_lines(configuration))


def _unnamed(configuration: Configuration) -> Iterator[str]:
    for section in WRITTEN:
        names = Counter(one.name for one in getattr(configuration, section).values())
        for name, count in names.items():
            if not name:
                yield f"{section}: {count} have no name (give each one: a file knows no ids)"
            elif count > 1:
                yield f"{place(section, name)}: {count} are called so (rename all but one: a file knows no ids)"


def _lines(configuration: Configuration) -> Iterator[str]:
    if configuration.gateway:
        yield "[gateway]"
        yield from _fields(configuration, configuration.gateway)
        yield ""
    monitors = {one.pool: one for one in configuration.health_monitors.values()}
    for section in WRITTEN:
        for one in getattr(configuration, section).values():
            yield f"[{section}.{_key(one.name)}]"
            yield from _fields(configuration, one)
            yield ""
            if one.id in monitors:
                yield f"[{section}.{_key(one.name)}.{MONITOR}]"
                yield from _fields(configuration, monitors[one.id], never=("id", "pool"))
                yield ""


def _fields(configuration: Configuration, one: Any, never: tuple[str, ...] = _NEVER) -> Iterator[str]:
    refers = references(type(one)) if hasattr(one, "id") else {}
    for field in fields(one):
        value = getattr(one, field.name)
        key = KEYS.get(field.name, field.name)
        if field.name in never or _is_left_out(field, value):
            continue
        if field.name in refers:
            there = getattr(configuration, refers[field.name].section)
            names = tuple(there[number].name for number in Reference.ids(value))
            value = names if isinstance(value, tuple) else names[0]
        if isinstance(value, tuple) and is_dataclass(value[0]):
            yield f"{key} = ["
            yield from (f"    {_item(item)}," for item in value)
            yield "]"
        else:
            yield f"{key} = {_value(value)}"


def _is_left_out(field: Any, value: Any) -> bool:
    return value is None or (field.name not in _ALWAYS and field.default is not MISSING and value == field.default)


def _item(one: Any) -> str:
    """A member, whose name is a key like any other, or an entry, which is its CIDR unless there is more to say."""
    if isinstance(one, Entry) and not one.description:
        return _string(str(one.cidr))
    pairs = ((field, getattr(one, field.name)) for field in fields(one) if field.name != "id")
    written = (f"{field.name} = {_value(value)}" for field, value in pairs if not _is_left_out(field, value))
    return "{ " + ", ".join(written) + " }"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return _string(str(value))


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _string(name)


def _string(text: str) -> str:
    """JSON's escapes are TOML's; DEL, which only TOML escapes, is not printable and in no text."""
    return json.dumps(text, ensure_ascii=False)
