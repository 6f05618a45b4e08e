"""Rules of a single value, hung on a field's type: each yields what is wrong with it, and the remedy."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import chain, combinations
from typing import Any, ClassVar, get_type_hints

from ipbackend.errors import ConfigurationError
from ipbackend.sizing import CEILING_PER_SNAT, SNAT_COUNTS

PREFIX_MIN = 8
NOT_UNICAST = tuple(IPv4Network(cidr) for cidr in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"))

Rule = Callable[[Any], Iterator[str]]


@dataclass(frozen=True)
class Range:
    """A whole number from `low` to `high`."""

    low: int
    high: int

    def __call__(self, value: int) -> Iterator[str]:
        """As a rule."""
        if not self.low <= value <= self.high:
            yield f"{value} is out of range (write {self.low} to {self.high})"


def within(low: int, high: int) -> Range:
    """A whole number from `low` to `high`."""
    return Range(low, high)


def at_most(length: int) -> Rule:
    """A text of so many characters or fewer."""

    def rule(value: str) -> Iterator[str]:
        if len(value) > length:
            yield f"{len(value)} characters are too many (write {length} or fewer)"

    return rule


def is_text(value: str) -> Iterator[str]:
    """What a name or a description may be: anything that can be shown on one line."""
    if not value.isprintable():
        yield f"{value!r} holds characters that cannot be shown (write printable text on one line)"


def is_interface(value: str) -> Iterator[str]:
    """What the kernel takes as an interface's name."""
    if not re.fullmatch(r"[!-.0-9;-~]{1,15}", value) or value in (".", ".."):
        yield f"{value!r} is not the name of an interface (`ip link` shows them)"


def is_unicast(value: IPv4Address) -> Iterator[str]:
    """An address that a host can have."""
    if any(value in block for block in NOT_UNICAST):
        yield f"{value} is not a usable unicast address (take one that a host can have)"


def is_narrow_unicast(value: IPv4Network) -> Iterator[str]:
    """A CIDR of hosts, and not half the world."""
    if value.prefixlen < PREFIX_MIN:
        yield f"{value} would swallow the way to the clients (write CIDRs of /{PREFIX_MIN} or narrower)"
    elif any(value.overlaps(block) for block in NOT_UNICAST):
        yield f"{value} is not unicast (write the CIDRs that members live in)"


def is_url_path(value: str) -> Iterator[str]:
    """What is asked for by HTTP: the published characters, and `=`, without which no query can be written."""
    if not re.fullmatch(r"/[A-Za-z0-9/.%?#&_;~!()*\[\]@$^:',+=-]{0,79}", value):
        yield f"{value!r} cannot be asked for (write 1 to 80 characters of a URL, / first, such as /health)"


def is_domain(value: str) -> Iterator[str]:
    """A name of a host, or nothing."""
    if not re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9.-]{0,99})?", value):
        yield f"{value!r} is not the name of a host (write letters, digits, - and ., at most 100, such as example.com)"


def lists_codes(value: str) -> Iterator[str]:
    """HTTP status codes: one, several, or all from one to another."""
    first, _, last = value.partition("-")
    if not re.fullmatch(r"[1-5]\d\d((,[1-5]\d\d){0,15}|-[1-5]\d\d)", value, re.ASCII) or (last and last < first):
        yield f"{value!r} are not HTTP status codes (write one, up to 16, or a range: 200 or 200,202 or 200-204)"


def not_empty(values: tuple[object, ...]) -> Iterator[str]:
    """At least one."""
    if not values:
        yield "there are none (write at least one)"


def unique(values: tuple[object, ...]) -> Iterator[str]:
    """None twice."""
    for value in (value for value, count in Counter(values).items() if count > 1):
        yield f"{str(value)!r} is there more than once (write it once)"


def disjoint(values: tuple[IPv4Network, ...]) -> Iterator[str]:
    """No address in two of them."""
    for one, other in combinations(values, 2):
        if one.overlaps(other):
            yield f"{other} overlaps {one} (write the wider one only)"


def snat_count(values: tuple[object, ...]) -> Iterator[str]:
    """As many as slots can be told apart by."""
    if len(values) not in SNAT_COUNTS:
        yield f"{len(values)} addresses cannot be used (write 1, 2 or 4: each carries {CEILING_PER_SNAT})"


def each(rule: Rule) -> Rule:
    """The rule for each of several values."""
    return lambda values: chain.from_iterable(map(rule, values))


def metadata(hint: Any) -> tuple[Any, ...]:
    """What is hung on a type."""
    found: tuple[Any, ...] = getattr(hint, "__metadata__", ())
    return found


@dataclass(frozen=True)
class Reference:
    """Hung on a field: it holds the id of a resource of this section, or several."""

    section: str

    @staticmethod
    def ids(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
        """The ids that such a field holds."""
        return value if isinstance(value, tuple) else () if value is None else (value,)


class Checked:
    """Is not made with a field that breaks a rule of its type, or with a `_conflict` between fields."""

    hints: ClassVar[Mapping[str, Any]]  # the type of each field, with what is hung on it
    _rules: ClassVar[list[tuple[str, Rule]]]

    def __init_subclass__(cls) -> None:
        hints = cls.hints = get_type_hints(cls, include_extras=True)
        cls._rules = [(name, rule) for name, hint in hints.items() for rule in metadata(hint) if callable(rule)]

    @classmethod
    def wrong(cls, values: Mapping[str, object]) -> list[str]:
        """What is wrong with each of `values`, fields of this class, by itself."""
        set_values = [(name, rule, values[name]) for name, rule in cls._rules if values.get(name) is not None]
        return [f"{name}: {what}" for name, rule, value in set_values for what in rule(value)]

    def __post_init__(self) -> None:
        if problems := [*self.wrong(vars(self)), *self._conflict()]:
            raise ConfigurationError(*problems)

    def _conflict(self) -> Iterator[str]:
        yield from ()
