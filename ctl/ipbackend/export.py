"""Writes what is wanted as the TOML that config.parse reads back, so that nothing differs. It knows no store.

What has its default is not written, except for interfaces, whose default depends on the gateway.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from ipbackend.config import WRITTEN
from ipbackend.configuration import SECTIONS, Configuration, references
from ipbackend.errors import ConfigurationError
from ipbackend.model import place

_ALWAYS = ("interface",)


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
    for section in WRITTEN:
        for one in getattr(configuration, section).values():
            yield f"[{section}.{_key(one.name)}]"
            yield from _fields(configuration, one)
            yield ""
    for section in SECTIONS:
        count = len(getattr(configuration, section))
        if count and section not in WRITTEN:
            yield f"# {section.replace('_', ' ')}, which no file holds: {count} (`apply` leaves them alone)"
            yield ""


def _fields(configuration: Configuration, one: Any) -> Iterator[str]:
    refers = references(type(one)) if hasattr(one, "id") else {}
    for field in fields(one):
        value = getattr(one, field.name)
        if field.name in ("id", "name") or _is_left_out(field, value):
            continue
        if field.name in refers:
            value = getattr(configuration, refers[field.name].section)[value].name
        if isinstance(value, tuple) and is_dataclass(value[0]):
            yield f"{field.name} = ["
            yield from (f"    {_table(member)}," for member in value)
            yield "]"
        else:
            yield f"{field.name} = {_value(value)}"


def _is_left_out(field: Any, value: Any) -> bool:
    return value is None or (field.name not in _ALWAYS and field.default is not MISSING and value == field.default)


def _table(one: Any) -> str:
    """A member, whose name is a key like any other."""
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
