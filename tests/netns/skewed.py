"""Runs `ipbackend` with another wall clock than the machine's: ahead by the seconds that a file says, at any moment.

    skewed.py FILE ARGUMENTS…

The machine's own clock is never touched. Clocks that no one sets (monotonic, boottime) stay what they are.
"""

from __future__ import annotations

import datetime
import sys
import time
from pathlib import Path
from typing import Any

FILE = Path(sys.argv[1])
_time, _time_ns = time.time, time.time_ns


def ahead() -> float:
    return float(FILE.read_text() or 0)


class Skewed(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(time.time(), tz)


if __name__ == "__main__":
    time.time = lambda: _time() + ahead()
    time.time_ns = lambda: _time_ns() + int(ahead() * 1e9)
    plain, datetime.datetime = datetime.datetime, Skewed  # type: ignore[misc]
    sys.argv[1:] = sys.argv[2:]
    from ipbackend.cli import main

    main()
