"""The model's objects as plain values for JSON, and back. It knows their types and no meaning."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache
from ipaddress import IPv4Address, IPv4Network
from types import NoneType
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

Thing = TypeVar("Thing")


def to_plain(thing: Any) -> Any:
    """Strings, numbers, lists and dictionaries."""
    if thing is None or type(thing) in (str, int, bool):
        return thing
    if isinstance(thing, IPv4Address | IPv4Network | StrEnum):
        return str(thing)
    if hasattr(thing, "_asdict"):
        return {name: to_plain(value) for name, value in thing._asdict().items()}
    if isinstance(thing, tuple):
        return [to_plain(one) for one in thing]
    return {name: to_plain(value) for name, value in vars(thing).items() if not name.startswith("_")}


def from_plain(kind: type[Thing], plain: Mapping[str, Any]) -> Thing:
    """The object of the dataclass `kind`; what is not there has its default. ValueError, TypeError: it is none."""
    read: Callable[[Any], Thing] = _reader(cast(Any, kind))
    return read(plain)


@cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    if get_origin(hint) is Annotated:
        return _reader(get_args(hint)[0])
    if NoneType in get_args(hint):
        inner = _reader(next(one for one in get_args(hint) if one is not NoneType))
        return lambda value: None if value is None else inner(value)
    if get_origin(hint) is tuple:
        item = _reader(get_args(hint)[0])
        return lambda values: tuple(item(value) for value in values)
    if is_dataclass(hint) or hasattr(hint, "_fields"):
        hints = get_type_hints(hint, include_extras=True)
        names = [field.name for field in fields(hint)] if is_dataclass(hint) else hint._fields
        readers = {name: _reader(hints[name]) for name in names}
        return lambda values: hint(**{name: readers[name](value) for name, value in values.items() if name in readers})
    if hint in (str, int, bool):
        return lambda value: value
    kind: Callable[[Any], Any] = hint
    return kind
