"""What day it is, for whoever drops what is old: a clock that jumps ahead must not make everything old at once."""

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

LEEWAY = 3600.0  # seconds that a clock may be corrected by while we run


def _boot() -> float:
    """Seconds that no one sets; those that a machine was suspended for count."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Calendar:
    """The wall clock, as long as it has not gone further ahead since the start than time has."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = _boot) -> None:
        self._wall, self._steady = wall, steady
        self._difference = wall() - steady()
        self._ahead = False

    def now(self) -> float:
        """Seconds since 1970. A clock that was set back is followed: what is kept for longer is not lost."""
        ahead = self._wall() - self._steady() - self._difference
        if (ahead > LEEWAY) != self._ahead:
            self._ahead = ahead > LEEWAY
            if self._ahead:
                what = "nothing is dropped for its age by that until the daemon is started again"
                log.warning("flow log: the clock has gone ahead by %.1f h: %s (is it right?)", ahead / 3600, what)
            else:
                log.info("flow log: the clock is back")
        return self._wall() - (ahead if self._ahead else 0.0)
