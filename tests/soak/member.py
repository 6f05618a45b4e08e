"""A member of the soak: answers requests by TCP and UDP, and writes down each one before it does.

The journal is a line for each request, its number in hexadecimal and whom the member saw; it outlives a kill.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from tests.netns.members import BACKLOG, READY, Member, raise_file_limit
from tests.netns.namespace import Namespace

from .exchange import HEADER, answer, request_of, stream


class Server(Member):
    """One of them, as `Member` is started and ended; all its lives write to one journal."""

    program = "tests.soak.member"

    def __init__(self, namespace: Namespace, name: str, address: str, tcp: int, udp: int, folder: Path) -> None:
        super().__init__(namespace, name, address, tcp, udp)
        self.journal = folder / f"{name}.journal"
        self.options = (str(self.journal),)


class Book:
    """Where it is written down."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def enter(self, number: int, peer: str) -> None:
        os.write(self._file, f"{number:x} {peer}\n".encode())


class Tcp:
    """Request after request, as long as the client sends them; the first wrong byte ends it by a RST."""

    def __init__(self, book: Book) -> None:
        self._book = book

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = "{}:{}".format(*writer.get_extra_info("peername"))
        try:
            while True:
                request = request_of(await reader.readexactly(HEADER.size))
                if await reader.readexactly(request.up) != stream(request.number, request.up):
                    raise ValueError(f"request {request.number:x}: wrong bytes came")
                self._book.enter(request.number, peer)
                writer.write(answer(request, self._book.name, peer))
                await writer.drain()
        except ValueError as error:
            print(f"{self._book.name}: {error}", file=sys.stderr, flush=True)
            self._book.enter(0, peer)  # whoever reads the journal sees it
            writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError):
            pass  # a client, or a health check, goes
        finally:
            writer.close()


class Udp(asyncio.DatagramProtocol):
    """One answer for each datagram that is a request; the others are floods' and come back as they are."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        try:
            request = request_of(data[: HEADER.size])
        except Exception:
            self._transport.sendto(data, addr)
            return
        peer = "{}:{}".format(*addr)
        right = data[HEADER.size :] == stream(request.number, request.up)
        self._book.enter(request.number if right else 0, peer)
        self._transport.sendto(answer(request, self._book.name, peer), addr)


async def run(name: str, address: str, tcp: int, udp: int, journal: Path) -> None:
    raise_file_limit()
    book = Book(name, journal)
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: Udp(book), local_addr=(address, udp))
    server = await asyncio.start_server(Tcp(book).serve, address, tcp, backlog=BACKLOG)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])))
