"""Packets as a file that Wireshark reads: the blocks of pcapng (draft-ietf-opsawg-pcapng). It knows no verdict."""

import struct
from collections.abc import Iterable
from enum import IntEnum

ETHERNET = 1  # LINKTYPE_ETHERNET
_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_BYTE_ORDER, _ANY_LENGTH = 0x1A2B3C4D, -1
_COMMENT, _END = 1, 0  # options of every block
_APPLICATION = 4  # of a section
_NAME, _RESOLUTION = 2, 9  # of an interface
_FLAGS, _PACKET_ID, _VERDICT = 2, 5, 7  # of a packet
_RECEIVED, _DROPPED, _DELIVERED = 4, 5, 8  # of statistics
_NANOSECONDS = b"\x09"  # 10^-9
_XDP = 2  # a verdict of XDP's, as opposed to hardware's and tc's

_AROUND = 12  # bytes of a block around its body: type, length, and length once more
_TO_OPTIONS = 20  # bytes of statistics up to their options

Option = tuple[int, bytes]


class Direction(IntEnum):
    """Of a packet, as its flags have it."""

    INBOUND = 1
    OUTBOUND = 2


def section(application: str) -> bytes:
    """What a file begins with."""
    head = struct.pack("=IHHq", _BYTE_ORDER, 1, 0, _ANY_LENGTH)
    return _block(_SECTION, head, [(_APPLICATION, application.encode())])


def interface(name: str, snaplen: int) -> bytes:
    """An interface: the first one is 0 to what follows. Times are in nanoseconds."""
    head = struct.pack("=HHI", ETHERNET, 0, snaplen)
    return _block(_INTERFACE, head, [(_NAME, name.encode()), (_RESOLUTION, _NANOSECONDS)])


def packet(
    at: int, interface: int, direction: Direction, length: int, frame: bytes, number: int, action: int, comment: str
) -> bytes:
    """A frame at `at` ns since 1970, of which `frame` was kept; `number` is the same for those of one packet."""
    head = struct.pack("=IIIII", interface, at >> 32, at & 0xFFFFFFFF, len(frame), length)
    return _block(
        _PACKET,
        head + _padded(frame),
        [
            (_COMMENT, comment.encode()),
            (_FLAGS, struct.pack("=I", direction)),
            (_PACKET_ID, struct.pack("=Q", number)),
            (_VERDICT, struct.pack("=BQ", _XDP, action)),
        ],
    )


def statistics(at: int, interface: int, delivered: int, dropped: int, comment: str) -> bytes:
    """How many packets are there, and how many were to be and are not."""
    head = struct.pack("=III", interface, at >> 32, at & 0xFFFFFFFF)
    counts = ((_RECEIVED, delivered + dropped), (_DROPPED, dropped), (_DELIVERED, delivered))
    options = [(code, struct.pack("=Q", count)) for code, count in counts]
    return _block(_STATISTICS, head, [(_COMMENT, comment.encode()), *options])


def closing(tail: bytes) -> str | None:
    """The comment of the statistics that a file ends with, from its last bytes; None: it does not end with any."""
    (length,) = struct.unpack("=I", tail[-4:]) if len(tail) >= _AROUND else (0,)
    block = tail[-length:]
    if not _AROUND < length <= len(tail) or struct.unpack_from("=I", block)[0] != _STATISTICS:
        return None
    code, size = struct.unpack_from("=HH", block, _TO_OPTIONS)
    return block[_TO_OPTIONS + 4 :][:size].decode() if code == _COMMENT else None


def _block(kind: int, body: bytes, options: Iterable[Option]) -> bytes:
    every = [*options, (_END, b"")]
    whole = body + b"".join(struct.pack("=HH", code, len(value)) + _padded(value) for code, value in every)
    length = struct.pack("=I", len(whole) + _AROUND)
    return struct.pack("=I", kind) + length + whole + length


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)
