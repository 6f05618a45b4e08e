"""The data plane's time: ticks of the kernel's timer, which it can read for nothing. It knows no map."""

import time

from ipbackend.abi import TICK_SHIFT

TICKS = 1 << 32  # they wrap
_NANO_TICKS = 10**9 << TICK_SHIFT  # ns of a tick, times the timer interrupts a second
_CLOCK_MONOTONIC_COARSE = 6  # linux/time.h; the time module does not name it


def timer_frequency() -> int:
    """Timer interrupts a second (HZ) of the running kernel: the resolution of its coarse clocks."""
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))


class Clock:
    """Ticks and seconds; `epoch` (ns of CLOCK_MONOTONIC when ticks were at 0) and `hz` are as in `struct gateway`."""

    def __init__(self, epoch: int, hz: int) -> None:
        self._epoch = epoch
        self._hz = hz

    def now(self) -> int:
        """The current tick, give or take one."""
        return self._passed() % TICKS

    def ticks(self, seconds: float) -> int:
        """So many seconds as ticks."""
        return int(seconds * self._hz) >> TICK_SHIFT

    def seconds_since(self, tick: int) -> float:
        """How long ago a tick of the past was."""
        return max(0, _between(tick, self._passed())) * (1 << TICK_SHIFT) / self._hz

    def earliest(self, tick: int) -> int:
        """The ns of CLOCK_MONOTONIC before which nothing of a past tick was: up to two ticks before what was."""
        passed = self._passed()
        return self._epoch + (passed - _between(tick, passed) - 1) * _NANO_TICKS // self._hz

    def _passed(self) -> int:
        """Ticks since the epoch, give or take one."""
        return (time.monotonic_ns() - self._epoch) * self._hz // _NANO_TICKS


def _between(tick: int, passed: int) -> int:
    """Ticks from a past one to now, when so many have passed; below 0 if it is up to two ahead of our reckoning."""
    since = (passed - tick) % TICKS
    return since if since < TICKS - 2 else since - TICKS


def epoch_of(tick: int, at: int, hz: int) -> int:
    """The `epoch` of a clock that shows `tick` at `at` ns of CLOCK_MONOTONIC."""
    return at - tick * _NANO_TICKS // hz
