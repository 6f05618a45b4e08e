"""Rows of frames sent through a target inside the kernel, and the time that they took. It knows no target."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bcc import BPF  # noqa: TID251 - a program beside the data plane, not a part of it

from ipbackend.datapath import syscall
from ipbackend.datapath.headers import make_header_tree
from tests.bench.frames import SHOT, Row

HERE = Path(__file__).parent
FRAME = 54  # bytes
_ORDERS = np.dtype(
    [
        *[(name, "u4") for name in ("first", "undo_first", "span", "batch", "has_undo")],
        *[(name, "u4") for name in ("next", "undo_next", "left", "undoing", "pad")],
        *[(name, "u8") for name in ("started", "spent", "reserved")],
    ]
)  # struct orders of driver.c


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


def array_of(fd: int, dtype: np.dtype[Any], entries: int) -> np.ndarray[Any, Any]:
    """An mmapable array map as numpy sees it, shared with the kernel; each value a multiple of 8 bytes."""
    return np.frombuffer(syscall.map_memory(fd, dtype.itemsize * entries), dtype, entries)


@dataclass(frozen=True)
class Placed:
    """A row where the driver finds it."""

    first: int
    span: int


@dataclass(frozen=True)
class Sample:
    """`packets` measured ones took so many ns of wall time; the whole call took `cpu` ns of its thread's time."""

    packets: int
    spent: int
    cpu: int
    duration: int
    sent: int

    @property
    def each(self) -> float:
        """Ns for each measured packet."""
        return self.spent / self.packets


class Driver:
    """Room for `shots` frames in rows."""

    def __init__(self, shots: int, seen: int) -> None:
        self._bpf = compiled("driver.c", SHOTS=shots, SEEN=seen)
        self._drive = self._bpf.load_func(b"drive", BPF.XDP).fd
        self._observe = self._bpf.load_func(b"observe", BPF.XDP).fd
        self._shots = array_of(self._bpf[b"shots"].map_fd, SHOT, shots)
        self._seen = array_of(self._bpf[b"seen"].map_fd, SHOT, seen)
        self._orders = array_of(self._bpf[b"orders"].map_fd, _ORDERS, 64)
        self._used = 0

    def place(self, shots: Row) -> Placed:
        """A row of its own for these."""
        placed = Placed(self._used, len(shots))
        self._shots[placed.first : placed.first + placed.span] = shots
        self._used += placed.span
        return placed

    def replace(self, placed: Placed, shots: Row) -> None:
        """Other frames in the same row."""
        self._shots[placed.first : placed.first + placed.span] = shots

    def aim(self, target: int) -> None:
        """All that is sent from now on goes to this program."""
        syscall.update(self._bpf[b"targets"].map_fd, bytes(4), target.to_bytes(4, "little"))

    def send(self, placed: Placed, batch: int, start: int = 0) -> Sample:
        """A batch of the row, measured, from its shot number `start` on; and one packet more, not measured."""
        self._order(placed, batch=batch, next=start)
        return self._run(batch, batch + 1)

    def send_and_undo(self, placed: Placed, undo: Placed, batch: int, times: int, start: int = 0) -> Sample:
        """So many times a batch of the row, measured, and then the same batch of the row that undoes it."""
        self._order(placed, batch=batch, next=start, undo_next=start, undo_first=undo.first, has_undo=1, undoing=1)
        return self._run(batch * times, batch * times * 2)

    def observe(self, placed: Placed) -> Row:
        """The row sent once, and each frame as it left."""
        self._order(placed)
        syscall.run(self._observe, bytes(FRAME), placed.span + 1)
        return self._seen[: placed.span].copy()

    def _order(self, placed: Placed, **values: int) -> None:
        order = self._orders[os.sched_getaffinity(0).copy().pop() :][:1]
        order[:] = 0
        order["first"], order["span"] = placed.first, placed.span
        for name, value in values.items():
            order[name] = value

    def _run(self, measured: int, sent: int) -> Sample:
        cpu = os.sched_getaffinity(0).pop()
        began = time.thread_time_ns()
        _, _, duration = syscall.run(self._drive, bytes(FRAME), sent)
        spent = time.thread_time_ns() - began
        return Sample(measured, int(self._orders[cpu]["spent"]), spent, duration, sent)

    def close(self) -> None:
        self._bpf.cleanup()
