"""Long-lived TCP connections that talk all the time, each byte checked at both ends; it knows no gateway."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator

from .clients import Address, Connection, open_many
from .namespace import Namespace

PATIENCE = 60.0  # seconds that a connection may stand still: what is lost on the way is sent again
LARGEST = 40_000  # bytes that go one way at once


class Streams:
    """What became of them: a connection that ends or carries a wrong byte is lost, one that waits is not."""

    def __init__(self, connections: list[Connection]) -> None:
        self.lost: list[str] = []
        self.size = len(connections)
        self._rounds = [0] * self.size
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._talk, args=(number, one)) for number, one in enumerate(connections)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self, deadline: float = PATIENCE) -> float:
        """Until each has carried new bytes both ways; returns the seconds that took. AssertionError: one has not."""
        began, before = time.monotonic(), list(self._rounds)
        while min(done := [now - then for now, then in zip(self._rounds, before, strict=True)]) < 2:  # 1: under way
            assert self.lost == []
            assert time.monotonic() < began + deadline, f"rounds carried: {done}"
            time.sleep(0.01)
        return time.monotonic() - began

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _talk(self, number: int, connection: Connection) -> None:
        sizes = random.Random(number)
        try:
            while not self._over.is_set():
                connection.upload(sizes.randint(1, LARGEST))
                connection.download(sizes.randint(1, LARGEST))
                self._rounds[number] += 1
                time.sleep(0.02)
        except (OSError, EOFError, AssertionError) as error:
            self.lost.append(f"{connection.local}: {error!r}")


@contextlib.contextmanager
def streams(namespace: Namespace, destination: Address, count: int = 16) -> Iterator[Streams]:
    """So many of them; on leaving, none may have been lost."""
    with open_many(namespace, None, destination, count) as crowd:
        assert len(crowd.connected) == count
        for connection in crowd.connected:
            connection.socket.settimeout(PATIENCE)
        talking = Streams(crowd.connected)
        try:
            talking.wait()
            yield talking
            talking.wait()
        finally:
            talking.close()
        assert talking.lost == []
