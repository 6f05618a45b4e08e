"""A network namespace held by a file descriptor: it is gone when its holder is, however the holder ends."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any

from pyroute2 import IPRoute

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def die_with_parent(parent: int) -> None:
    """For a child process: SIGKILL when the thread that started it ends, so nothing outlives a test."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above, and no signal will come
        os.kill(os.getpid(), signal.SIGKILL)


class _Homes(threading.local):
    """Where each thread that is inside a namespace came from."""

    def __init__(self) -> None:
        self.fds: list[int] = []


def _child() -> dict[str, Any]:
    """How children start: dying with us, and out of reach of a terminal's Ctrl-C, which is for us to act on."""
    return {"preexec_fn": partial(die_with_parent, os.getpid()), "start_new_session": True}


class Namespace:
    """A network namespace without a name; `with namespace:` moves the calling thread into it."""

    def __init__(self, name: str) -> None:
        self.name = name
        # Made in a thread that ends, since the thread that unshares has left its own namespace.
        with ThreadPoolExecutor(max_workers=1) as thread:
            self.fd = thread.submit(self._make).result()
        self._homes = _Homes()
        with self, IPRoute() as netlink:
            netlink.link("set", index=1, state="up")

    @staticmethod
    def _make() -> int:
        check(_libc.unshare(CLONE_NEWNET), "unshare(CLONE_NEWNET)")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Namespace:
        self._homes.fds.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        check(_libc.setns(self.fd, CLONE_NEWNET), f"setns({self.name})")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        home = self._homes.fds.pop()
        check(_libc.setns(home, CLONE_NEWNET), "setns(home)")
        os.close(home)

    def socket(self, *arguments: int) -> socket.socket:
        """A socket that belongs to this namespace, usable from any thread."""
        with self:
            return socket.socket(*arguments)

    def netlink(self) -> IPRoute:
        """A netlink socket of this namespace; close it after use."""
        with self:
            return IPRoute()

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command in the namespace; it is killed when this process ends."""
        with self:
            return subprocess.Popen(command, **_child(), **options)

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a command in the namespace to its end; a status other than 0 raises, unless `check` is False."""
        with self:
            options.setdefault("check", True)
            return subprocess.run(command, **_child(), **options)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
