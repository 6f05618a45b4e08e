"""One core and the time that is spent on it for us: this thread, what it waits for, and the core's ksoftirqd.

It knows nothing of what is measured. Thread clocks, never wall time: whoever else uses the core is not counted.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType


@dataclass
class Spent:
    """CPU time in nanoseconds; known when the block that is measured has ended."""

    ns: int = 0


class Core:
    """The core that the calling thread, and what it starts, is bound to while this is open: the last one."""

    def __init__(self) -> None:
        self._allowed = os.sched_getaffinity(0)
        number = max(self._allowed)
        self._others = self._allowed - {number} or self._allowed
        self._ksoftirqd = task_named(f"ksoftirqd/{number}")
        os.sched_setaffinity(0, {number})

    def __enter__(self) -> Core:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.sched_setaffinity(0, self._allowed)

    def keep_away(self, process: int) -> None:
        """Have a process run elsewhere, where there is an elsewhere."""
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(thread.name), self._others)

    @contextmanager
    def measured(self, tasks: Sequence[int] = ()) -> Iterator[Spent]:
        """What the block takes of the calling thread, the core's softirqs and the processes `tasks`."""
        spent = Spent()
        before = self._so_far(tasks)
        yield spent
        wait_until_idle(tasks)
        spent.ns = self._so_far(tasks) - before

    def _so_far(self, tasks: Sequence[int]) -> int:
        return time.thread_time_ns() + sum(nanoseconds(task) for task in (self._ksoftirqd, *tasks))


def nanoseconds(task: int) -> int:
    """What a process of one thread has run; exact while it does not run, which on one core we know."""
    return int(Path(f"/proc/{task}/schedstat").read_text().split()[0])


def task_named(name: str) -> int:
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == name:
                return int(path.parent.name)
        except OSError:
            continue  # it ended meanwhile
    raise LookupError(f"no task is named {name}")


def wait_until_idle(tasks: Sequence[int]) -> None:
    """Let processes on this core finish what they were given: until all sleep."""
    while any(Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()[0] == "R" for task in tasks):
        os.sched_yield()


@contextmanager
def at_most(seconds: int, what: str) -> Iterator[None]:
    """TimeoutError if the block, which may hang in a system call, is not left within `seconds`."""

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"{what}: not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
