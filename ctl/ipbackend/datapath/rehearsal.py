"""The whole program compiled and loaded on trial, out of sight and for nobody; nothing of it stays, however it ends."""

import ctypes
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from ipbackend.datapath.loader import Program
from ipbackend.errors import DatapathError

_NEW_MOUNTS, _RECURSIVE, _PRIVATE = 0x0002_0000, 0x4000, 1 << 18  # CLONE_NEWNS, MS_REC, MS_PRIVATE
_CONNECTIONS = 1_000  # small tables: the program is the same


def rehearse() -> tuple[dict[str, int], float]:
    """The programs that the kernel took, each with the instructions that its verifier went through; the seconds.

    DatapathError: BCC or the kernel does not.
    """
    with tempfile.TemporaryDirectory(prefix="ipbackend-") as directory, ThreadPoolExecutor(1) as thread:
        return thread.submit(_load, Path(directory)).result()


def _load(directory: Path) -> tuple[dict[str, int], float]:
    """In a thread of its own: its mounts, and the pins in them, end with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS) or libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None):
        raise DatapathError(f"mounts of our own: {os.strerror(ctypes.get_errno())} (run as root)")
    began = time.monotonic()
    try:
        with closing(Program(directory, _CONNECTIONS)) as program:
            return program.verified(), time.monotonic() - began
    finally:
        libc.umount(os.fsencode(directory / "bpf"))
