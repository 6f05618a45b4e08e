"""Rows of frames sent through targets inside the kernel, and the time that they took. It knows no target."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bcc import BPF  # noqa: TID251 - a program beside the data plane, not a part of it

from ipbackend.datapath import syscall
from ipbackend.datapath.compiling import load
from ipbackend.datapath.headers import make_header_tree
from tests.bench.frames import SHOT, Row

HERE = Path(__file__).parent
FRAME = 54  # bytes
MAX_CPUS, MAX_VISITS, MAX_LAPS, MAX_TARGETS = 64, 32, 16384, 4  # of driver.c, as the structs
_VISIT = [(name, "u4") for name in ("first", "undo_first", "span", "start", "lap", "laps", "target", "has_undo")]
_ORDERS = [
    *_VISIT,
    *[(name, "u4") for name in ("undo_start", "visits", "next", "undoing", "left", "timed")],
    ("started", "u8"),
    ("pad", "u8"),
]


def compiled(name: str, **constants: int) -> BPF:
    """One of the C files here, with these macros defined."""
    with tempfile.TemporaryDirectory(prefix="ipbackend-") as headers:
        os.environ["BCC_KERNEL_SOURCE"] = str(make_header_tree(Path(headers)))
        try:
            return BPF(
                text=(HERE / name).read_bytes(),
                cflags=["-D__LINUX_BPF_H__", *(f"-D{key}={value}" for key, value in constants.items())],
            )
        finally:
            del os.environ["BCC_KERNEL_SOURCE"]


def array_of(fd: int, dtype: Any, entries: int) -> np.ndarray[Any, Any]:
    """An mmapable array map as numpy sees it, shared with the kernel; each value a multiple of 8 bytes."""
    kind = np.dtype(dtype)
    return np.frombuffer(syscall.map_memory(fd, kind.itemsize * entries), kind, entries)


@dataclass(frozen=True)
class Placed:
    """A row where the driver finds it."""

    first: int
    span: int


@dataclass(frozen=True)
class Visit:
    """`laps` times `lap` packets of the row for a program, from shot `start` on; `undo` is a row as long."""

    program: int
    row: Placed
    lap: int
    laps: int
    undo: Placed | None = None
    start: int = 0

    @property
    def packets(self) -> int:
        """That are measured."""
        return self.lap * self.laps

    @property
    def sent(self) -> int:
        """With those that undo them."""
        return self.packets * (2 if self.undo else 1)


@dataclass(frozen=True)
class Sent:
    """What came of visits: ns of one packet for each, in its median lap, and ns of the thread's time in all."""

    each: list[float]
    cpu: int


class Driver:
    """Room for `shots` frames in rows, and for `seen` that are observed."""

    def __init__(self, shots: int, seen: int) -> None:
        self._bpf = compiled("driver.c", SHOTS=shots, SEEN=seen)
        self._drive = load(self._bpf, "drive", BPF.XDP)
        self._observe = load(self._bpf, "observe", BPF.XDP)
        self._shots = self._array("shots", SHOT, shots)
        self._seen = self._array("seen", SHOT, seen)
        self._orders = self._array("orders", _ORDERS, MAX_CPUS)
        self._visits = self._array("visits", _VISIT, MAX_CPUS * MAX_VISITS)
        self._lap_times = self._array("lap_times", "u8", MAX_CPUS * MAX_LAPS)
        self._targets: dict[int, int] = {}
        self._used = 0

    def _array(self, name: str, dtype: Any, entries: int) -> np.ndarray[Any, Any]:
        return array_of(self._bpf[name.encode()].map_fd, dtype, entries)

    def place(self, shots: Row) -> Placed:
        """A row of its own for these."""
        placed = Placed(self._used, len(shots))
        assert placed.first + placed.span <= len(self._shots)
        self._used += placed.span
        self.replace(placed, shots)
        return placed

    def replace(self, placed: Placed, shots: Row) -> None:
        """Other frames in the same row."""
        self._shots[placed.first : placed.first + placed.span] = shots

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Rows placed meanwhile are given up at the end; programs may be closed then, and their numbers be others'."""
        used = self._used
        yield
        self._used, self._targets = used, {}

    def send(self, visits: Sequence[Visit]) -> Sent:
        """All visits one after the other, on this thread's one CPU.

        Each series of runs has the kernel patch its own code first, which takes 20 ms: so one series does it all.
        If no undoing ends the last lap, one packet more as the first visit's does.
        """
        (cpu,) = os.sched_getaffinity(0)
        self._aim({visit.program for visit in visits})
        for number, visit in enumerate(visits, cpu * MAX_VISITS):
            self._visits[number] = self._written(visit)
        self._orders[cpu] = 0
        self._orders[cpu]["visits"] = len(visits)
        laps = self._lap_times[cpu * MAX_LAPS :][: sum(visit.laps for visit in visits)]
        began = time.thread_time_ns()
        syscall.run(self._drive, bytes(FRAME), sum(visit.sent for visit in visits) + (not visits[-1].undo))
        spent = time.thread_time_ns() - began
        if self._orders[cpu]["timed"] != len(laps):
            raise AssertionError(f"{self._orders[cpu]['timed']} laps were timed instead of {len(laps)}")
        times = iter(laps.tolist())
        return Sent([median(next(times) for _ in range(visit.laps)) / visit.lap for visit in visits], spent)

    def one(self, program: int, row: Placed) -> bytes:
        """The row's first frame, whole, as it leaves."""
        self._order(program, row)
        return syscall.run(self._observe, bytes(FRAME))[1]

    def observe(self, program: int, row: Placed) -> Row:
        """The row sent once, unmeasured, and each frame as it left."""
        self._order(program, row)
        syscall.run(self._observe, bytes(FRAME), row.span + 1)
        return self._seen[: row.span].copy()

    def _order(self, program: int, row: Placed) -> None:
        (cpu,) = os.sched_getaffinity(0)
        self._aim({program})
        self._orders[cpu] = 0
        for name, value in zip(self._orders.dtype.names, self._written(Visit(program, row, 0, 0)), strict=False):
            self._orders[cpu][name] = value

    def _written(self, visit: Visit) -> tuple[int, ...]:
        undo = visit.undo.first if visit.undo else 0
        target = self._targets[visit.program]
        return visit.row.first, undo, visit.row.span, visit.start, visit.lap, visit.laps, target, bool(visit.undo)

    def _aim(self, programs: set[int]) -> None:
        """Have the targets be these programs, unless they are among them already."""
        if programs <= self._targets.keys():
            return
        assert len(programs) <= MAX_TARGETS
        self._targets = {program: number for number, program in enumerate(sorted(programs))}
        for program, number in self._targets.items():
            syscall.update(self._bpf[b"targets"].map_fd, number.to_bytes(4, "little"), program.to_bytes(4, "little"))

    def close(self) -> None:
        """Let go of the kernel's memory."""
        self._bpf.cleanup()
