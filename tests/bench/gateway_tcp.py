"""TCP loads: client and member in one thread, so that one core does everything in turn. They know no gateway.

A call on one side runs the packets' whole way, gateway and all, before it returns; only where a proxy must run
in between does the other side wait. So no wake-up of client or member is in any figure.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from contextlib import ExitStack
from types import TracebackType

from tests.netns.namespace import Namespace

BATCH = 32  # connections side by side, so that a proxy finds several events at a time, as under load
BACKLOG = 4096
REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNK = 1 << 16
SEND_BUFFER = 1 << 17  # in flight at most: fewer frames than the 256 that an XDP veth's ring holds
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close by RST, so that nobody keeps TIME_WAIT


class Exchange:
    """The client's side and the member's, a listener, of what is between them.

    Every connection that the member accepts must come from one of `sources`, or it did not come by that way.
    """

    def __init__(
        self,
        client: Namespace,
        member: Namespace,
        listener: tuple[str, int],
        destination: str,
        sources: tuple[str, ...],
    ) -> None:
        self._client = client
        self._destination = (destination, listener[1])
        self._sources = frozenset(sources)
        self._listener = member.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)  # accepted connections inherit it
        self._listener.bind(listener)
        self._listener.listen(BACKLOG)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def connections(self, count: int) -> None:
        """Open, ask, answer and reset `count` connections."""
        with self._client:
            for start in range(0, count, BATCH):
                with ExitStack() as opened:
                    self._batch(opened, min(BATCH, count - start))

    def _batch(self, opened: ExitStack, size: int) -> None:
        clients = [opened.enter_context(self._connect()) for _ in range(size)]
        members = [opened.enter_context(self._accept()) for _ in range(size)]
        for member in members:
            take(member, REQUEST)
            member.send(RESPONSE)
        for client in clients:
            take(client, RESPONSE)
            client.close()

    def requests(self, count: int) -> list[int]:
        """Send `count` requests over one connection; nanoseconds until each was answered."""
        with self._client, self._connect() as client, self._accept() as member:
            take(member, REQUEST)
            member.send(RESPONSE)
            take(client, RESPONSE)
            latencies = []
            for _ in range(count):
                start = time.perf_counter_ns()
                client.send(REQUEST)
                take(member, REQUEST)
                member.send(RESPONSE)
                take(client, RESPONSE)
                latencies.append(time.perf_counter_ns() - start)
        return latencies

    def bulk(self, length: int) -> None:
        """Send `length` bytes over one connection."""
        with self._client, self._connect(SEND_BUFFER) as client, self._accept() as member:
            take(member, REQUEST)
            client.setblocking(False)
            member.setblocking(False)
            chunk, buffer = memoryview(bytes(CHUNK)), bytearray(CHUNK)
            unsent, missing = length, length
            while missing:
                sent = try_send(client, chunk[:unsent])
                received = try_receive(member, buffer)
                unsent -= sent
                missing -= received
                if not sent and not received:  # a proxy's turn
                    select.select([member], [client] if unsent else [], [])

    def _connect(self, send_buffer: int = 0) -> socket.socket:
        """A connection that has asked."""
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if send_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        client.connect(self._destination)
        client.send(REQUEST)
        return client

    def _accept(self) -> socket.socket:
        member, peer = self._listener.accept()
        if peer[0] not in self._sources:
            member.close()
            raise RuntimeError(f"a connection came from {peer[0]}, not from {', '.join(sorted(self._sources))}")
        return member


def take(end: socket.socket, expected: bytes) -> None:
    received = end.recv(CHUNK)
    if received != expected:
        raise RuntimeError(f"received {received!r} instead of {expected!r}")


def try_send(end: socket.socket, data: memoryview) -> int:
    try:
        return end.send(data) if data else 0
    except BlockingIOError:
        return 0


def try_receive(end: socket.socket, buffer: bytearray) -> int:
    try:
        received = end.recv_into(buffer)
    except BlockingIOError:
        return 0
    if not received:
        raise ConnectionError("closed before all had arrived")
    return received
