"""What of BPF this kernel has, found out by asking: small maps and programs, made and let go. It imports BCC last."""

import errno
import os
import struct
from collections.abc import Callable

from ipbackend.datapath import syscall

_PERCPU_ARRAY, _PROG_ARRAY, _LRU, _LPM, _ARRAY_OF_MAPS, _RINGBUF = 6, 3, 9, 11, 12, 27
_NO_PREALLOC = 1
_LICENCE = b"GPL"
_RETURN = struct.pack("=BBhi", 0x95, 0, 0, 0)
_PASS = struct.pack("=BBhi", 0xB7, 0, 0, 2) + _RETURN  # r0 = XDP_PASS
_OLDEST_BCC = (0, 26)  # 0.18 makes no pinned maps, and its compiler aborts at a compare-and-swap
_JIFFIES, _COARSE_CLOCK, _BUFFER_LENGTH = 118, 160, 188


def _call(helper: int) -> bytes:
    """A program that calls one helper and passes the packet; r1 is its context."""
    return struct.pack("=BBhi", 0x85, 0, 0, helper) + _PASS


def _made(kind: int, key: int, value: int, entries: int, flags: int = 0) -> int:
    return syscall.map_create(kind, key, value, entries, flags, "doctor")


def _loaded(kind: int, code: bytes, flags: int = 0) -> int:
    return syscall.program_load(kind, code, _LICENCE, flags, "doctor")


def _shared() -> int:
    fd = _made(syscall.ARRAY, 4, 64, 64, syscall.F_MMAPABLE)
    syscall.map_memory(fd, 4096).close()
    return fd


def _swapped() -> int:
    """A map of maps whose inner ones differ in size, set in one call."""
    flags = syscall.F_INNER_MAP | syscall.F_MMAPABLE
    inner = [_made(syscall.ARRAY, 4, 4, entries, flags) for entries in (1, 100)]
    try:
        outer = syscall.map_create(_ARRAY_OF_MAPS, 4, 4, 2, 0, "doctor", inner[0])
        try:
            syscall.update_batch(outer, [0, 1], inner)
        except OSError:
            os.close(outer)
            raise
        return outer
    finally:
        for fd in inner:
            os.close(fd)


def _run() -> int:
    fd = _loaded(syscall.XDP, _PASS)
    try:
        syscall.run(fd, bytes(64), 2)
    except OSError:
        os.close(fd)
        raise
    return fd


FEATURES: dict[str, Callable[[], int]] = {
    "arrays in shared memory": _shared,
    "maps of maps of several sizes, set in one call": _swapped,
    "per-CPU arrays": lambda: _made(_PERCPU_ARRAY, 4, 8, 4),
    "tail calls": lambda: _made(_PROG_ARRAY, 4, 4, 4),
    "LRU hashes": lambda: _made(_LRU, 16, 16, 16),
    "longest-prefix tries": lambda: _made(_LPM, 8, 4, 4, _NO_PREALLOC),
    "ring buffers": lambda: _made(_RINGBUF, 0, 0, 4096),
    "XDP programs": lambda: _loaded(syscall.XDP, _PASS),
    "XDP of frames in several buffers": lambda: _loaded(syscall.XDP, _call(_BUFFER_LENGTH), syscall.F_XDP_HAS_FRAGS),
    "the timer's count": lambda: _loaded(syscall.XDP, _call(_JIFFIES)),
    "the coarse clock": lambda: _loaded(syscall.XDP, _call(_COARSE_CLOCK)),
    "programs run by hand": _run,
    "programs of the sweep's kind": lambda: _loaded(syscall.SCHED_CLS, _PASS),
}


def missing() -> dict[str, str]:
    """Of FEATURES what this kernel does not give us, and why: `Invalid argument`, or that we may not ask."""
    lacking = {}
    for name, ask in FEATURES.items():
        try:
            os.close(ask())
        except OSError as error:
            lacking[name] = os.strerror(error.errno or errno.EIO)
    return lacking


def jited() -> bool | None:
    """Whether programs become machine code; None: none can be loaded. The sysctl is only there in one namespace."""
    try:
        fd = _loaded(syscall.XDP, _PASS)
    except OSError:
        return None
    try:
        return syscall.jited_size(fd) > 0
    finally:
        os.close(fd)


def compiler() -> str:
    """The version of BCC. ImportError: it is not there, is too old, or is something else that is called so."""
    import bcc

    if not hasattr(bcc, "BPF"):
        raise ImportError(f"{getattr(bcc, '__file__', 'a folder')} is another project of that name")
    version = str(getattr(bcc, "__version__", "of unknown version"))
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    if numbers and tuple(numbers) < _OLDEST_BCC:
        raise ImportError(f"BCC {version} is too old: Debian 12 and Ubuntu 24.04 have newer ones")
    return version
