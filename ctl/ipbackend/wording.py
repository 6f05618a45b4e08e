"""How refusals speak of what a file holds: what was expected, what is there, and why it cannot be. It reads nothing."""

import reprlib
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from types import NoneType
from typing import Any, get_args, get_origin

from ipbackend.errors import suggestion
from ipbackend.model import Entry, Member

_EXPECTED: dict[type, str] = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
    dict: "a table",
    list: "an array",
    IPv4Address: 'an IPv4 address in quotes, such as "10.0.0.11"',
    IPv4Network: 'an IPv4 CIDR in quotes, such as "10.0.0.0/24"',
    Entry: 'an IPv4 CIDR in quotes, such as "10.0.0.0/24"',
}

_SHORT = reprlib.Repr()
_SHORT.maxstring = 80


def without_none(hint: Any) -> Any:
    """`X` of `X | None`: what may be left out is still never written as nothing."""
    return next(arg for arg in get_args(hint) if arg is not NoneType) if NoneType in get_args(hint) else hint


def expected(hint: Any) -> str:
    """What a field of the type `hint` is written as."""
    hint = without_none(hint)
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return "an array of tables" if item is Member else f"an array, each {expected(item)}"
    if issubclass(hint, StrEnum):
        return "one of " + ", ".join(f'"{choice}"' for choice in hint)
    return _EXPECTED[hint]


def too_long(raw: object) -> bool:
    """TOML's integers are of 64 bits; Python may even refuse to print much longer ones."""
    return isinstance(raw, int) and not -(2**63) <= raw < 2**63


def quoted(raw: object) -> str:
    """A string, not too long to read."""
    return _SHORT.repr(raw)


def shown(raw: object) -> str:
    """What is there."""
    if isinstance(raw, dict | list):
        return _EXPECTED[type(raw)]
    if too_long(raw):
        return "an integer of more than 64 bits"
    if isinstance(raw, str):
        return f"the string {quoted(raw)}"
    return str(raw).lower() if isinstance(raw, bool) else str(raw)


def why_not(kind: type, raw: str) -> str:
    """What is wrong with the string `raw` as an enum, an address or a CIDR, and the remedy."""
    if issubclass(kind, StrEnum):
        return f"cannot be used ({suggestion(raw, kind)})"
    remedy = f"write {_EXPECTED[kind]}"
    if _parses(IPv6Network, raw):
        return f"is IPv6 (members and their networks are IPv4: {remedy})"
    if kind is IPv4Address:
        return f"is not an IPv4 address (names are not looked up: {remedy})"
    if _parses(IPv4Network, raw):
        return f"is an address inside its CIDR (did you mean {IPv4Network(raw, strict=False)}?)"
    return f"is not an IPv4 CIDR ({remedy})"


def _parses(kind: type[IPv4Network | IPv6Network], raw: str) -> bool:
    try:
        kind(raw, strict=False)
    except ValueError:
        return False
    return True
