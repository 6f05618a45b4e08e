"""What a health check may meet: servers that hang, drip, talk nonsense or reset, in one namespace over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ipbackend.model import Check
from tests.netns.namespace import Namespace

REPOSITORY = Path(__file__).parents[2]
ADDRESS = "10.99.0.1"  # of the loopback in the test's own namespace; with a prefix of 16 all of that is local
PORTS = {Check.TCP: 8080, Check.HTTP: 8080, Check.HTTPS: 8443, Check.UDP_CONNECT: 5353}  # of the program
RESET = struct.pack("ii", 1, 0)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def response(status: str = "200 OK", body: bytes = b"fine") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def saying(data: bytes, pause: float = 0.0, size: int = 1 << 20, then: str = "close") -> Serve:
    """Answers every request with `data`, `size` bytes at a time; then closes, resets or hangs."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            await reader.readuntil(b"\r\n\r\n")
            for start in range(0, len(data), size):
                writer.write(data[start : start + size])
                await writer.drain()
                await asyncio.sleep(pause)
            if then == "hang":
                await reader.read()
            if then == "reset":
                peer: socket.socket = writer.get_extra_info("socket")
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()
        writer.close()

    return serve


async def hanging(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accepts and says nothing."""
    with contextlib.suppress(ConnectionError):
        await reader.read()
        await asyncio.sleep(3600)


@contextlib.asynccontextmanager
async def server(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port that it listens on."""
    tasks: set[asyncio.Task[Any]] = set()

    async def kept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        with contextlib.suppress(asyncio.CancelledError):
            await serve(reader, writer)
        writer.transport.abort()

    running = await asyncio.start_server(kept, "0.0.0.0", 0, ssl=tls, backlog=1000)
    try:
        yield running.sockets[0].getsockname()[1]
    finally:
        running.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def apart(namespace: Namespace, serve: Serve, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The same on a thread of its own: it answers while the test's own loop is held up."""
    ready: Future[int] = Future()
    over = threading.Event()

    async def whole() -> None:
        async with server(serve, tls) as port:
            ready.set_result(port)
            while not over.is_set():
                await asyncio.sleep(0.01)

    def run() -> None:
        with namespace:
            asyncio.run(whole())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ready.result(5)
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def full() -> Iterator[int]:
    """A port whose backlog is full: SYNs are dropped without a word."""
    with contextlib.ExitStack() as opened:
        listening = opened.enter_context(socket.socket())
        listening.bind((ADDRESS, 0))
        listening.listen(0)
        for _ in range(3):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


def certificate(directory: Path) -> ssl.SSLContext:
    """A server's context with a certificate that nobody has signed."""
    key, pem = directory / "key.pem", directory / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(pem), "-days", "2", "-subj", "/CN=nobody.example"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    return context


def open_files() -> list[Path]:
    """This process's descriptors, and the one that they are listed by."""
    return list(Path("/proc/self/fd").iterdir())


def descriptors() -> int:
    return len(open_files())


def connections() -> list[str]:
    """States of the TCP sockets of the calling thread's namespace that do not listen, in hexadecimal."""
    lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    return [state for line in lines if (state := line.split()[3]) != "0A"]


class Program:
    """All of `PORTS` on all addresses of a namespace, served well by a process of its own until it is killed."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        command = [sys.executable, "-m", "tests.netns.asked", str(directory)]
        self._process = namespace.popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
        assert self._process.stdout.readline() == b"ready\n"

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)
        self._process.stdout.close()

    def stop(self) -> None:
        """It hangs: the kernel goes on accepting for it, and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)


async def serve_all(directory: Path) -> None:
    serve = saying(response())
    for kind, tls in ((Check.HTTP, None), (Check.HTTPS, certificate(directory))):
        await asyncio.start_server(serve, "0.0.0.0", PORTS[kind], ssl=tls, backlog=4096)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("0.0.0.0", PORTS[Check.UDP_CONNECT]))
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve_all(Path(sys.argv[1])))
