"""Moments as people write them, as intervals of nanoseconds since the epoch. It knows no log."""

import re
from datetime import UTC, datetime, timedelta

from ipbackend.errors import ConfigurationError

_AGO = re.compile(r"(\d+) ?(s|min|h|d)")
_ZONE = re.compile(r"(Z|[+-]\d\d:?\d\d)$")
_UNITS = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def interval(text: str) -> tuple[int, int]:
    """From when up to when `2026-11-22 14:03` is: a minute, a second, a day, or less, as exact as it is written.

    `10 min`, `2 h`, `1 d` is so long ago. Without a zone (`Z`, `+01:00`) it is the caller's time.
    ConfigurationError: it is no time.
    """
    try:
        if ago := _AGO.fullmatch(text):
            at = _ns(datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])}))
            return at, at + 1000
        begin = datetime.fromisoformat(text).astimezone(UTC)
        return _ns(begin), _ns(begin + _grain(text))
    except (ValueError, OverflowError):
        example = '"2026-11-22 14:03", with seconds, "+01:00" or Z if need be, or "10 min" for so long ago'
        raise ConfigurationError(f"{text!r} is no time (write {example})") from None


def with_zone(text: str) -> str:
    """The same time with the caller's zone, for whoever may live in another; so exact as it was."""
    if _AGO.fullmatch(text) or _ZONE.search(text) or not _has_clock(text):
        return text
    return text + datetime.fromisoformat(text).astimezone().strftime("%z")


def _has_clock(text: str) -> bool:
    return len(re.split(r"[T ]", text, maxsplit=1)) == 2


def _grain(text: str) -> timedelta:
    if not _has_clock(text):
        return timedelta(days=1)
    clock = re.split(r"[T ]", _ZONE.sub("", text), maxsplit=1)[1]
    if "." in clock:
        return timedelta(microseconds=1)
    return timedelta(minutes=1) if len(clock) == len("14:03") else timedelta(seconds=1)


def _ns(at: datetime) -> int:
    """As near as 62 bits come to it, which is from 1970 to 2116."""
    return max(0, min((at - _EPOCH) // timedelta(microseconds=1) * 1000, 1 << 62))
