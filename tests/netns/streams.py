"""Long TCP connections that carry a known stream both ways, checked byte by byte at both ends; it knows no gateway."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .members import Member
    from .namespace import Namespace

BLOCK = 1024  # bytes that are written at a time
PAUSE = 0.02  # seconds between two blocks
ROOM = 1 << 16


class Stream:
    """The bytes that a seed stands for, from the first one on."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._ahead = b""

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        while len(self._ahead) < length:
            self._ahead += self._random.randbytes(BLOCK)
        taken, self._ahead = self._ahead[:length], self._ahead[length:]
        return taken


@dataclass
class Tally:
    """What one end of a stream has sent, has received and found right, and why it is over: `done` is as it should."""

    sent: int = 0
    received: int = 0
    end: str = "open"


async def exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    seeds: tuple[str, str],
    tally: Tally,
    over: asyncio.Event,
) -> None:
    """Send the first seed's stream and expect the second's, until `over` or the other end's FIN; then until its end."""

    async def send() -> None:
        mine = Stream(seeds[0])
        while not over.is_set():
            writer.write(mine.take(BLOCK))
            tally.sent += BLOCK
            await writer.drain()
            await asyncio.sleep(PAUSE)
        writer.write_eof()

    sending = asyncio.create_task(send())
    try:
        theirs = Stream(seeds[1])
        while data := await reader.read(ROOM):
            if data != theirs.take(len(data)):
                tally.end = f"corrupted after byte {tally.received}"
                return
            tally.received += len(data)
        over.set()
        await sending
        tally.end = "done"
    except OSError as error:
        tally.end = repr(error)
    finally:
        sending.cancel()


class Streams:
    """The client's ends, by their seeds."""

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}

    def broken(self) -> list[str]:
        """Those that did not go on or end as they should."""
        return [f"stream {seed}: {one.end}" for seed, one in self.tallies.items() if one.end not in ("open", "done")]

    def differences(self, members: Iterable[Member]) -> list[str]:
        """Where, at the end, a client and its member do not say the same of what both have sent and received."""
        theirs: dict[str, dict[str, Any]] = {}
        for member in members:
            theirs |= counts(member)["streams"]
        return [
            f"stream {seed}: the client says {asdict(one)}, the member {theirs.get(seed)}"
            for seed, one in self.tallies.items()
            if {"sent": one.received, "received": one.sent, "end": one.end} != theirs.get(seed)
        ]


def counts(member: Member) -> Any:
    """What a member has counted, asked where it lives and not through any gateway."""
    with member.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as asking:
        asking.settimeout(5)
        asking.connect((member.address, member.tcp_port))
        asking.sendall(b"GET /counts HTTP/1.1\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: asking.recv(ROOM), b""))
    return json.loads(answer.partition(b"\r\n\r\n")[2])


@contextmanager
def streaming(namespace: Namespace, destination: tuple[str, int], count: int) -> Iterator[Streams]:
    """So many streams, open for as long; they are closed in order at the end."""
    streams, over, ready = Streams(), asyncio.Event(), threading.Event()
    loop = asyncio.new_event_loop()

    async def one(seed: str, tally: Tally) -> None:
        connecting = namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
        connecting.setblocking(False)
        await asyncio.wait_for(loop.sock_connect(connecting, destination), 10)
        reader, writer = await asyncio.open_connection(sock=connecting)
        writer.write(f"GET /stream/{seed} HTTP/1.1\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        begun.append(seed)
        if len(begun) == count:
            ready.set()
        await exchange(reader, writer, (f"up {seed}", f"down {seed}"), tally, over)
        writer.close()

    async def all_of_them() -> None:
        for _ in range(count):
            streams.tallies[f"{random.getrandbits(48):x}"] = Tally()
        try:
            await asyncio.gather(*(one(*item) for item in streams.tallies.items()))
        finally:
            ready.set()

    begun: list[str] = []
    thread = threading.Thread(target=loop.run_until_complete, args=[all_of_them()])
    thread.start()
    try:
        ready.wait()
        yield streams
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()
