"""ICMP echo requests to any number of members by one raw socket (RFC 792), and who answered."""

import asyncio
import secrets
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address

SOL_RAW = 255
ICMP_FILTER = 1  # linux/icmp.h: bits of the types that are not handed to this socket
REQUEST, REPLY = 8, 0
ROOM = 1 << 20  # bytes of answers that may wait to be read
_SECRET = secrets.token_bytes(8)  # answers that do not have it are somebody else's


class Echo:
    """From one source address, or the one that the kernel chooses for each destination."""

    def __init__(self, loop: asyncio.AbstractEventLoop, source: IPv4Address | None) -> None:
        """OSError: not root, or the address is not here."""
        self._loop = loop
        self._waiting: dict[tuple[str, int], Callable[[], None]] = {}
        self._identity = secrets.randbits(16)
        self._last = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
        try:
            self._socket.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("I", ~(1 << REPLY) & 0xFFFFFFFF))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
            if source:
                self._socket.bind((str(source), 0))
        except OSError:
            self._socket.close()
            raise
        loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        """Wait for no answer any more."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._waiting.clear()

    def send(self, address: IPv4Address, answered: Callable[[], None]) -> tuple[str, int]:
        """Ask; returns what to `forget` it by. OSError: it could not be sent."""
        self._last = (self._last + 1) & 0xFFFF
        header = struct.pack("!BBHHH", REQUEST, 0, 0, self._identity, self._last)
        checksum = _checksum(header + _SECRET)
        packet = struct.pack("!BBHHH", REQUEST, 0, checksum, self._identity, self._last) + _SECRET
        token = (str(address), self._last)
        self._waiting[token] = answered
        try:
            self._socket.sendto(packet, (token[0], 0))
        except OSError:
            self.forget(token)
            raise
        return token

    def forget(self, token: tuple[str, int]) -> None:
        """Its answer is not waited for any more."""
        self._waiting.pop(token, None)

    def _readable(self) -> None:
        """Take in the answers that are there."""
        while self._socket.fileno() >= 0:
            try:
                packet, (address, _) = self._socket.recvfrom(256)
            except BlockingIOError:
                return
            message = packet[(packet[0] & 0x0F) * 4 :]
            if len(message) < 16 or message[8:16] != _SECRET:
                continue
            kind, _, _, identity, number = struct.unpack("!BBHHH", message[:8])
            answered = self._waiting.pop((address, number), None)
            if kind == REPLY and identity == self._identity and answered:
                answered()


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
