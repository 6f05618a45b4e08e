"""The clients: HTTP, crowds of connections, datagrams and raw frames; they know addresses, not a gateway."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import selectors
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from scapy.layers.l2 import Ether
from scapy.packet import Packet

from .members import payload, raise_file_limit
from .namespace import Namespace

Address = tuple[str, int]
"""IPv4 address and port, as sockets take them."""

# Handshakes of a crowd under way at a time: an XDP veth's ring holds 256 frames, a lost SYN costs a second.
HANDSHAKES = 128

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_IGNORE_OUTGOING = 23
SO_RCVBUFFORCE = 33


@dataclass(frozen=True)
class Identity:
    """Who answered, whom that member saw, and the address it was reached at; the two as "address:port"."""

    member: str
    peer: str
    local: str

    @property
    def peer_address(self) -> str:
        return self.peer.split(":")[0]


@dataclass(frozen=True)
class Response:
    """An HTTP response, body read to its end."""

    status: int
    body: bytes

    @property
    def identity(self) -> Identity:
        return Identity(**json.loads(self.body))


class Connection:
    """One TCP connection that carries HTTP requests until it is closed; it never connects again by itself."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._http = http.client.HTTPConnection(*connected.getpeername())
        self._http.auto_open = 0  # a reconnection would start in the wrong namespace
        self._http.sock = connected

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def local(self) -> Address:
        """The client's own address and port."""
        address, port = self.socket.getsockname()
        return address, port

    def get(self, path: str = "/") -> Response:
        return self._request("GET", path)

    def post(self, path: str, body: bytes) -> Response:
        return self._request("POST", path, body)

    def download(self, length: int) -> None:
        """Fetch `length` bytes; AssertionError unless they are the bytes the member was to send."""
        got, want = hashlib.sha256(self.get(f"/bytes/{length}").body), hashlib.sha256(payload(length))
        if got.digest() != want.digest():
            raise AssertionError(f"download of {length} bytes: sha256 {got.hexdigest()}, not {want.hexdigest()}")

    def upload(self, length: int) -> None:
        """Send `length` bytes; AssertionError unless the member hashes them to what was sent."""
        body = payload(length)
        got = json.loads(self.post("/echo-hash", body).body)
        want = {"sha256": hashlib.sha256(body).hexdigest(), "length": length}
        if got != want:
            raise AssertionError(f"upload: the member received {got}, not {want}")

    def close(self) -> None:
        """Close in order, by FIN."""
        self._http.close()

    def reset(self) -> None:
        """Close by RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def _request(self, method: str, path: str, body: bytes | None = None) -> Response:
        self._http.request(method, path, body)
        response = self._http.getresponse()
        return Response(response.status, response.read())


def connect(namespace: Namespace, source: str | None, destination: Address, timeout: float = 5.0) -> Connection:
    """A connection from `source` (None: the kernel's choice); `timeout` seconds hold for each step.

    Raises what sockets raise: ConnectionRefusedError after an RST, TimeoutError after silence.
    """
    connecting = namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        connecting.settimeout(timeout)
        if source:
            connecting.bind((source, 0))
        connecting.connect(destination)
        return Connection(connecting)
    except BaseException:
        connecting.close()
        raise


def http_get(namespace: Namespace, source: str | None, destination: Address, path: str = "/") -> Response:
    """One request over a connection of its own. Raises as `connect` does."""
    with connect(namespace, source, destination) as connection:
        return connection.get(path)


@dataclass
class Crowd:
    """What became of many attempts to connect: the connections, and how many were refused or unanswered."""

    connected: list[Connection] = field(default_factory=list)
    refused: int = 0
    timed_out: int = 0

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for connection in self.connected:
            connection.close()


def open_many(
    namespace: Namespace, source: str | None, destination: Address, count: int, timeout: float = 5.0
) -> Crowd:
    """Try to open `count` connections side by side, each within `timeout` seconds.

    Raises OSError when an attempt ends otherwise than connected, refused or unanswered.
    """
    raise_file_limit()
    crowd = Crowd()
    waiting: dict[socket.socket, float] = {}
    with selectors.DefaultSelector() as selector:
        try:
            while count or waiting:
                while count and len(waiting) < HANDSHAKES:
                    attempt = _begin(namespace, source, destination)
                    waiting[attempt] = time.monotonic() + timeout
                    selector.register(attempt, selectors.EVENT_WRITE)
                    count -= 1
                _settle(crowd, selector, waiting)
        except BaseException:
            crowd.close()
            for attempt in waiting:
                attempt.close()
            raise
    for connection in crowd.connected:
        connection.socket.settimeout(timeout)
    return crowd


def _begin(namespace: Namespace, source: str | None, destination: Address) -> socket.socket:
    attempt = namespace.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if source:
            attempt.bind((source, 0))
        result = attempt.connect_ex(destination)
        if result not in (0, errno.EINPROGRESS):
            raise OSError(result, f"connect to {destination[0]}:{destination[1]}")
    except BaseException:
        attempt.close()
        raise
    return attempt


def _settle(crowd: Crowd, selector: selectors.BaseSelector, waiting: dict[socket.socket, float]) -> None:
    """Wait for the next attempts to end, by an answer or by their deadline, and enter them in `crowd`."""
    first_deadline = next(iter(waiting.values()))  # they were begun in this order
    answered = {key.fileobj for key, _ in selector.select(max(0.0, first_deadline - time.monotonic()))}
    now = time.monotonic()
    for attempt in [a for a, deadline in waiting.items() if a in answered or deadline <= now]:
        selector.unregister(attempt)
        del waiting[attempt]
        error = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if attempt in answered and not error:
            crowd.connected.append(Connection(attempt))
            continue
        attempt.close()
        if error == errno.ECONNREFUSED:
            crowd.refused += 1
        elif error in (0, errno.ETIMEDOUT):
            crowd.timed_out += 1
        else:
            raise OSError(error, "connection attempt ended unexpectedly")


class UdpClient:
    """One UDP socket towards one destination; it asks once and never again by itself."""

    def __init__(self, namespace: Namespace, source: str | None, destination: Address, timeout: float = 2.0) -> None:
        self.socket = namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(timeout)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect(destination)  # so that ICMP errors reach us, and nobody else's datagrams

    def __enter__(self) -> UdpClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, message: bytes) -> Identity:
        """Who answered; AssertionError unless the message came back whole.

        Raises ConnectionRefusedError after an ICMP port unreachable, TimeoutError after silence.
        """
        self.socket.send(message)
        line, _, echo = self.socket.recv(1 << 16).partition(b"\n")
        if echo != message:
            raise AssertionError(f"sent {message!r}, came back {echo!r}")
        return Identity(**json.loads(line))

    def close(self) -> None:
        self.socket.close()


class RawPort:
    """An interface's frames, all that arrive from the moment of opening, and a way to send any other."""

    def __init__(self, namespace: Namespace, interface: str) -> None:
        self.name = f"{namespace.name} {interface}"
        self._socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind((interface, ETH_P_ALL))  # receives from here on, and from this interface only
        self._frames: list[Packet] = []

    def __enter__(self) -> RawPort:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def mac(self) -> str:
        """The interface's own MAC address."""
        return ":".join(f"{byte:02x}" for byte in self._socket.getsockname()[4])

    def send(self, frame: bytes) -> None:
        """Put a whole Ethernet frame on the wire; nothing is added, nothing corrected."""
        self._socket.send(frame)

    def expect(self, predicate: Callable[[Packet], bool], deadline: float = 2.0) -> Packet:
        """Take the first frame, of those that have arrived and were not taken, that fits `predicate`.

        Raises TimeoutError after `deadline` seconds, with the frames that did arrive.
        """
        end = time.monotonic() + deadline
        examined = 0
        while True:
            for position in range(examined, len(self._frames)):
                if predicate(self._frames[position]):
                    return self._frames.pop(position)
            examined = len(self._frames)
            if not self._receive(end - time.monotonic()):
                arrived = "\n".join(f"  {frame.summary()}" for frame in self._frames) or "  nothing"
                raise TimeoutError(f"{self.name}: no such frame in {deadline} s; what arrived:\n{arrived}")

    def arrived(self) -> list[Packet]:
        """All frames that have arrived and were not taken, without waiting; they stay."""
        while self._receive(0):
            pass
        return list(self._frames)

    def close(self) -> None:
        self._socket.close()

    def _receive(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for one frame."""
        self._socket.settimeout(max(0.0, timeout))
        try:
            frame = self._socket.recv(1 << 16)
        except (TimeoutError, BlockingIOError):
            return False
        lost = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        if lost:
            raise RuntimeError(f"{self.name}: {lost} frames lost, the receive buffer was full")
        self._frames.append(Ether(frame))
        return True
