"""A capture as it runs: from the ring, which somebody fills, to the chunks of a file. It knows no program, no HTTP."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Protocol

from ipbackend.capture import Captured, Order, Recording

PAUSE = 0.05  # seconds between looks at the ring
CHUNK = 1000  # packets at most in what is handed out at once
ALL = 1 << 30


class Source(Protocol):
    """Where packets come from."""

    ended: bool

    @property
    def over_rate(self) -> int:
        """Packets that came faster than ordered."""

    @property
    def unread(self) -> int:
        """Packets that were not read in time."""

    def read(self, most: int) -> list[Captured]:
        """The next ones."""


class Capturing:
    """One capture for `author`, to be read once; `stop` ends it in an orderly way, with its last block."""

    def __init__(self, author: str, order: Order, source: Source) -> None:
        self.author = author
        self.began = time.time()
        self.source = source
        self._recording = Recording(order, name_of)
        self._stopped = False

    @property
    def packets(self) -> int:
        """That were handed out."""
        return self._recording.packets

    def stop(self) -> None:
        """No more packets than are in the ring."""
        self._stopped = True

    async def chunks(self, count: int, seconds: float) -> AsyncIterator[bytes]:
        """A pcapng file of so many packets at most, or for so long; 0 is no limit."""
        end = time.monotonic() + seconds
        yield self._recording.begin()
        over = False
        while not over:
            over = self._stopped or self.source.ended or bool(seconds and time.monotonic() >= end)
            most = ALL if over else CHUNK  # at the end what is in the ring by now
            found = self.source.read(min(most, count - self.packets) if count else most)
            if found:
                yield await asyncio.to_thread(self._recording.add, found)
            over = over or bool(count and self.packets >= count)
            if len(found) < CHUNK and not over:
                await asyncio.sleep(PAUSE)
        yield self._recording.end(self.source.over_rate, self.source.unread)


def name_of(index: int) -> str:
    """An interface's name; of one that is gone, its number."""
    with suppress(OSError):
        return socket.if_indextoname(index)
    return f"if{index}"
