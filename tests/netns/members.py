"""The members: real HTTP and UDP servers that say whom they see; they know neither gateway nor lab.

Run as a program it is the servers of one address; `Member` is the handle on that program from outside.

    GET /             who answered whom: {"member": …, "peer": "address:port", "local": "address:port"}
    GET /bytes/N      N bytes of `payload`
    GET /hold         the same as /, and the connection stays open until the client closes it
    GET /stream/SEED  the seed's stream both ways (streams.py), until the client ends it
    GET /counts       {"requests": …, "datagrams": …, "streams": {seed: …}}: what was answered so far
    POST /echo-hash   {"sha256": …, "length": …} of the body
    any datagram      who answered whom as one line, then the datagram
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.netns.streams import Tally, exchange

if TYPE_CHECKING:
    from .namespace import Namespace

REPOSITORY = Path(__file__).parents[2]
BACKLOG = 4096
CHUNK = 1 << 16
READY = b"ready\n"


class Member:
    """The servers of one member, in a child process that ends with the thread that started it."""

    program = "tests.netns.members"
    options: tuple[str, ...] = ()

    def __init__(self, namespace: Namespace, name: str, address: str, tcp_port: int, udp_port: int) -> None:
        self.namespace = namespace
        self.name = name
        self.address = address
        self.tcp_port = tcp_port
        self.udp_port = udp_port
        self._process: Any = None  # subprocess.Popen, while the servers run

    def start(self) -> None:
        """Start the servers without waiting, so that several members can start side by side."""
        if self._process:
            raise RuntimeError(f"{self.name}: already running; stop it first")
        ports = (str(self.tcp_port), str(self.udp_port))
        command = [sys.executable, "-m", self.program, self.name, self.address, *ports, *self.options]
        self._process = self.namespace.popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)

    def wait_ready(self, deadline: float = 60.0) -> None:
        """Return when both ports are open. TimeoutError after `deadline` seconds; RuntimeError if it died."""
        if not self._process:
            raise RuntimeError(f"{self.name}: not started")
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(deadline):
                self.kill()
                raise TimeoutError(f"{self.name}: not ready after {deadline} s")
        if self._process.stdout.readline() != READY:
            self.kill()
            raise RuntimeError(f"{self.name}: ended before it was ready; its message is on stderr")

    def stop(self) -> None:
        """Ask the servers to end, and wait until they have."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the servers at once."""
        self._end(signal.SIGKILL)

    def _end(self, by: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(by)
            self._process.wait(timeout=10)
            self._process.stdout.close()
            self._process = None


@contextmanager
def running(members: Iterable[Member]) -> Iterator[dict[str, Member]]:
    """The members by name, started side by side; those that still run are killed on leaving."""
    with ExitStack() as stack:
        started = {member.name: member for member in members}
        for member in started.values():
            member.start()
            stack.callback(member.kill)
        for member in started.values():
            member.wait_ready()
        yield started


def payload(length: int) -> bytes:
    """The `length` bytes that both sides know: a hash's stream, so no piece of it looks like another."""
    return hashlib.shake_128(b"ipbackend").digest(length)


def raise_file_limit() -> None:
    """As many open files as this process may have: one per connection is needed."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def identity(name: str, peer: tuple[Any, ...], local: tuple[Any, ...]) -> bytes:
    return json.dumps({"member": name, "peer": f"{peer[0]}:{peer[1]}", "local": f"{local[0]}:{local[1]}"}).encode()


@dataclass
class Counts:
    """What a member has answered: requests for /, datagrams, and its ends of streams by their seeds."""

    requests: int = 0
    datagrams: int = 0
    streams: dict[str, Tally] = field(default_factory=dict)


class HttpServer:
    """As much of HTTP/1.1 (RFC 9112) as the lab's clients and curl speak."""

    def __init__(self, name: str, counts: Counts) -> None:
        self.name = name
        self.counts = counts

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        try:
            while await self._answer_one(reader, writer):
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # a client may go at any time
        finally:
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays open."""
        request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {key.lower(): value.strip().lower() for key, _, value in (line.partition(":") for line in lines)}
        whom = identity(self.name, writer.get_extra_info("peername"), writer.get_extra_info("sockname"))
        match request.split(" ")[:2]:
            case ["GET", "/"]:
                self.counts.requests += 1
                reply(writer, whom)
            case ["GET", "/counts"]:
                reply(writer, json.dumps(asdict(self.counts)).encode())
            case ["GET", path] if path.startswith("/stream/"):
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                seed = path.removeprefix("/stream/")
                tally = self.counts.streams[seed] = Tally()
                await exchange(reader, writer, (f"down {seed}", f"up {seed}"), tally, asyncio.Event())
                return False
            case ["GET", "/hold"]:
                writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + whom + b"\n")
                await writer.drain()
                while await reader.read(CHUNK):
                    pass
                return False
            case ["GET", path] if path.removeprefix("/bytes/").isdecimal():
                reply(writer, payload(int(path.removeprefix("/bytes/"))))
            case ["POST", "/echo-hash"]:
                reply(writer, await hash_of_body(reader, int(headers.get("content-length", 0))))
            case _:
                reply(writer, b"not found\n", status="404 Not Found")
        return headers.get("connection") != "close"


def reply(writer: asyncio.StreamWriter, body: bytes, status: str = "200 OK") -> None:
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


async def hash_of_body(reader: asyncio.StreamReader, length: int) -> bytes:
    digest, left = hashlib.sha256(), length
    while left:
        chunk = await reader.read(min(left, CHUNK))
        if not chunk:
            raise asyncio.IncompleteReadError(b"", left)
        digest.update(chunk)
        left -= len(chunk)
    return json.dumps({"sha256": digest.hexdigest(), "length": length}).encode()


class UdpServer(asyncio.DatagramProtocol):
    """Answers each datagram with one line of identity and the datagram itself."""

    def __init__(self, name: str, counts: Counts) -> None:
        self.name = name
        self.counts = counts

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.counts.datagrams += 1
        whom = identity(self.name, addr, self.transport.get_extra_info("sockname"))
        self.transport.sendto(whom + b"\n" + data, addr)


async def serve(name: str, address: str, tcp_port: int, udp_port: int) -> None:
    raise_file_limit()
    loop, counts = asyncio.get_running_loop(), Counts()
    await loop.create_datagram_endpoint(lambda: UdpServer(name, counts), local_addr=(address, udp_port))
    server = await asyncio.start_server(HttpServer(name, counts).serve, address, tcp_port, backlog=BACKLOG)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
