"""What clients and members of the soak say to each other: requests with numbers, and bytes that only they have."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import NamedTuple

HEADER = struct.Struct("!4sQII")
MAGIC = b"soak"
LENGTH = struct.Struct("!I")  # of who answers, before it
JOURNEY_SHIFT = 20  # a request's number is its client's journey << this | its place in it


class Request(NamedTuple):
    """`up` bytes follow it, `down` bytes are wanted back."""

    number: int
    up: int
    down: int

    def packed(self) -> bytes:
        """As it is sent, its bytes behind it."""
        return HEADER.pack(MAGIC, *self) + stream(self.number, self.up)


def request_of(raw: bytes) -> Request:
    """ValueError: it is none."""
    magic, *rest = HEADER.unpack(raw)
    if magic != MAGIC:
        raise ValueError(f"no request: {raw!r}")
    return Request(*rest)


def stream(number: int, length: int) -> bytes:
    """The bytes that go to the member with a request; no other request has any of them."""
    return hashlib.shake_128(number.to_bytes(8, "big")).digest(length)


def back(number: int, length: int) -> bytes:
    """Those that come back."""
    return stream(number ^ 1 << 63, length)


def answer(request: Request, member: str, peer: str) -> bytes:
    """What a member says: who it is, whom it saw, and the bytes that were wanted."""
    who = json.dumps([member, peer]).encode()
    return LENGTH.pack(len(who)) + who + back(request.number, request.down)


def said(request: Request, raw: bytes) -> tuple[str, str]:
    """Of a whole answer the member and whom it saw. ValueError: any byte is another."""
    (length,) = LENGTH.unpack_from(raw)
    who, rest = raw[LENGTH.size : LENGTH.size + length], raw[LENGTH.size + length :]
    if rest != back(request.number, request.down):
        raise ValueError(f"request {request.number:x}: wrong bytes came back, {len(rest)} of {request.down}")
    member, peer = json.loads(who)
    return member, peer
