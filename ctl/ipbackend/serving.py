"""How requests come in: sockets, and HTTP servers on them. It knows no request's meaning.

Whoever asks has so many connections and so much time, so that none can take the descriptors or the memory of all.
"""

import asyncio
import contextlib
import grp
import os
import pwd
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ipbackend.errors import DatapathError

GROUP = "ipbackend"  # may use the Unix socket, beside root
GOODBYE = 5  # seconds that requests under way have when the daemon stops
CONNECTIONS = 256  # of one server at a time: one more is closed unheard
PATIENCE = 60.0  # seconds, twice as many at most, for a request to be whole, and for a reader to take something


class Protocol(H11Protocol):
    """HTTP, for clients who ask and who read what they are told; others are cut off."""

    _looking: asyncio.TimerHandle | None = None
    _seen: tuple[object, ...] = ()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One client more, if there is room."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """One less."""
        super().connection_lost(exc)
        if self._looking:
            self._looking.cancel()

    def _look(self) -> None:
        """Cut off who owes the rest of the same request as the last time, or has taken nothing of an answer since.

        That is seen in steps of some 160 KB, for the kernel takes no more before a reader has taken as much.
        """
        unread = self.transport.get_write_buffer_size()
        owes = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        seen = (self.cycle, owes, unread) if owes or unread else ()
        if seen and seen == self._seen:
            self.transport.abort()
            return
        self._seen = seen
        self._looking = self.loop.call_later(PATIENCE, self._look)


class UnixProtocol(Protocol):
    """HTTP on a Unix socket: `request.client` is the user at the other end, by name, and its process id."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The kernel tells who connected (unix(7), SO_PEERCRED)."""
        super().connection_made(transport)
        peer: socket.socket = transport.get_extra_info("socket")
        pid, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = f"uid {uid}"
        self.client = (name, pid)


class Server(uvicorn.Server):
    """One that says when it serves, and leaves signals to the daemon."""

    def __init__(self, settings: uvicorn.Config) -> None:
        super().__init__(settings)
        self.serving = asyncio.Event()

    @classmethod
    def of(cls, app: ASGIApp, protocol: type[asyncio.Protocol] = Protocol) -> "Server":
        """For an application."""
        return cls(
            uvicorn.Config(
                app,
                http=protocol,
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=GOODBYE,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        self.serving.set()

    async def move(self, listening: socket.socket) -> None:
        """Take requests by this socket from here on, and by no earlier one; connections that are open stay."""

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol
            made = kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
            return made

        kind: type[Any] = self.config.http_protocol_class

        for server in self.servers:
            server.close()
        self.servers = [await asyncio.get_running_loop().create_server(protocol, sock=listening)]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class UnixSocket:
    """The Unix socket at `path` that requests come by: for root and the group, where there is one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listening = self.bind()

    def bind(self) -> socket.socket:
        """A new one, in place of whatever is there."""
        self.path.unlink(missing_ok=True)
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o117)
        try:
            self.listening.bind(str(self.path))
        finally:
            os.umask(before)
        with contextlib.suppress(KeyError):
            os.chown(self.path, -1, grp.getgrnam(GROUP).gr_gid)
        self._bound = self._there()
        return self.listening

    @property
    def is_there(self) -> bool:
        """Whether who asks for the path finds it."""
        return self._there() == self._bound

    def close(self) -> None:
        """Take it away."""
        self.listening.close()
        self.path.unlink(missing_ok=True)

    def _there(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


@contextlib.contextmanager
def on_tcp(address: str, port: int) -> Iterator[socket.socket]:
    """The TCP socket that metrics are read by. DatapathError: it cannot be had."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((address, port))
        except OSError as error:
            what = f"--metrics {address}:{port}: {error.strerror}"
            raise DatapathError(f"{what} (take an address of this machine and a free port)") from error
        yield listening
