"""Has what the daemon is built on fail on order: bpf(2), netlink and SQLite, as they would, below our own code.

`begin` is called before the command line by whoever starts it; the order is a file in the run directory, read at
every call.
"""

from __future__ import annotations

import ctypes
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from ipbackend.datapath import syscall
from ipbackend.network import Network

FILE = "fault"
_ORDER = Path(os.environ.get("IPBACKEND_RUN_DIR", "/nowhere"), FILE)


def ordered(what: str) -> Any:
    """What is to become of a call to this dependency, or None."""
    try:
        order = json.loads(_ORDER.read_text())
    except (OSError, ValueError):
        return None
    return order["how"] if order["what"] == what else None


class Library:
    """libc, whose bpf(2) fails on order."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def syscall(self, *arguments: Any) -> int:
        if number := ordered("bpf"):
            ctypes.set_errno(number)
            return -1
        return int(self._real.syscall(*arguments))


_ask = Network._ask


def ask(self: Network, kind: str, verb: str, /, **wanted: Any) -> Any:
    how = ordered("netlink")
    if how == "timeout":
        raise TimeoutError("timed out")
    if how:
        raise NetlinkError(how, os.strerror(how))
    return _ask(self, kind, verb, **wanted)


class Connection(sqlite3.Connection):
    """One whose statements fail on order."""

    def execute(self, *arguments: Any) -> Any:
        fail()
        return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        fail()
        return super().executemany(*arguments)


def fail() -> None:
    if how := ordered("sqlite"):
        kind, name, text = how
        error = getattr(sqlite3, kind)(text)
        error.sqlite_errorname = name
        raise error


_connect = sqlite3.connect


def connect(*arguments: Any, **more: Any) -> sqlite3.Connection:
    return _connect(*arguments, **{**more, "factory": Connection})


def begin() -> None:
    """From here on, in this process."""
    syscall._libc = Library(syscall._libc)  # type: ignore[assignment]
    Network._ask = ask  # type: ignore[method-assign]
    sqlite3.connect = connect  # type: ignore[assignment]
