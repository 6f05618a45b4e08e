"""What the kernel itself is handed of a member's packets, as no XDP program took them. It sends nothing."""

import ctypes
import socket
import struct
from collections.abc import Collection
from ipaddress import IPv4Address
from types import TracebackType

ETHERTYPE_IPV4 = 0x0800
SO_ATTACH_FILTER = 26
ANY_PACKET = 0xFFFF
HEADER = 20  # bytes of IPv4 up to the end of its destination
# Classic BPF (linux/filter.h) on a packet from its IP header on: load a word, jump if equal, return.
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_SOURCE_OFFSET = 12


class Tap:
    """IPv4 packets from one address, on all interfaces of the caller's namespace, from here on."""

    def __init__(self, source: IPv4Address) -> None:
        self._source = source
        program = b"".join(
            struct.pack("=HBBI", *instruction)
            for instruction in (
                (_LOAD_WORD, 0, 0, _SOURCE_OFFSET),
                (_JUMP_EQUAL, 0, 1, int(source)),
                (_RETURN, 0, 0, ANY_PACKET),
                (_RETURN, 0, 0, 0),
            )
        )
        code = ctypes.create_string_buffer(program, len(program))
        self._socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(ETHERTYPE_IPV4)
        )
        self._socket.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
        )

    def __enter__(self) -> "Tap":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def interfaces(self, destinations: Collection[IPv4Address]) -> list[str]:
        """The names of the interfaces that packets to these came in by."""
        names: dict[str, None] = {}
        while True:
            try:
                packet, (name, _, kind, *_) = self._socket.recvfrom(ANY_PACKET)
            except BlockingIOError:
                return list(names)
            ends = packet[_SOURCE_OFFSET:HEADER]
            if ends[:4] != self._source.packed:
                continue  # it came before the filter did
            if kind != socket.PACKET_OUTGOING and IPv4Address(ends[4:]) in destinations:
                names[name] = None
