"""A terminal of 80 × 24 that a test sits at: a pty, and what its screen shows (pyte)."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import pyte

from tests.netns.namespace import Namespace

COLUMNS, LINES = 80, 24


class Terminal:
    """A command that runs at a terminal, in a namespace."""

    def __init__(self, namespace: Namespace, command: tuple[str, ...], environment: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", LINES, COLUMNS, 0, 0))
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self._screen)
        environment = {**environment, "TERM": "xterm-256color", "LANG": "C.UTF-8"}
        streams: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        self.process: subprocess.Popen[Any] = namespace.popen(command, env=environment, **streams)
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    @property
    def lines(self) -> list[str]:
        """What the screen shows now, as far as it was read."""
        return [line.rstrip() for line in self._screen.display]

    def see(self, condition: Callable[[list[str]], Any], deadline: float = 20.0) -> list[str]:
        """The screen, once it shows that."""
        end = time.monotonic() + deadline
        while not condition(self.lines):
            assert time.monotonic() < end, "it was never shown:\n" + "\n".join(self.lines)
            self._read(0.1)
        return self.lines

    def ended(self, deadline: float = 10.0) -> int:
        """The status that the command ends with."""
        end = time.monotonic() + deadline
        while (status := self.process.poll()) is None:
            assert time.monotonic() < end, "it goes on"
            self._read(0.05)
        return status

    def _read(self, seconds: float) -> None:
        if select.select([self._ours], [], [], seconds)[0]:
            try:
                self._stream.feed(os.read(self._ours, 1 << 16))
            except OSError:  # the other end is closed
                time.sleep(seconds)
