"""The daemon's log: a line that repeats is bounded, however long what it tells of lasts. It knows no line's meaning."""

import logging
import time
from collections.abc import Callable

PERIOD = 60.0  # seconds
MOST = 10  # times that the same line is written in one period
KNOWN = 1000  # lines that are watched at a time


class Bounded(logging.Filter):
    """Lets the same line through `MOST` times a minute; the next one after that says how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}  # since when, and how often

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is to be written."""
        line, now = record.getMessage(), self._clock()
        began, count = self._said.pop(line, (now, 0))
        if now >= began + PERIOD:
            if count > MOST:
                record.msg, record.args = f"{line} (and {count - MOST} times more in the last minutes)", ()
            began, count = now, 0
        self._said[line] = (began, count + 1)
        if len(self._said) > KNOWN:
            del self._said[next(iter(self._said))]
        return count < MOST


def begin() -> None:
    """Write to stderr, where systemd and whoever started us look."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(Bounded())
