"""One event as the data plane tells it, and as it is shown. It knows no file and no ring.

Raw values stay as they lie in the kernel's memory for as long as they are only kept: addresses and ports are in
network order, times in nanoseconds: of CLOCK_MONOTONIC in the ring, of the epoch in UTC from there on.
"""

import socket
import struct
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import IPv4Address
from typing import NamedTuple

from ipbackend.abi import Ending, EventKind, Phase, Verdict

STRUCT = struct.Struct("<7Q4I4HI2H3B5x")  # struct event of abi.h
RECORD = struct.Struct("<8x7Q4I4HI2H3B5x")  # the same behind a ring's header
GENERATION_SHIFT = 16  # of the state word: below it are phase and flags
NANO = 10**9
_Passed = tuple[int | None, int | None, int | None, int | None]
_PROTOCOLS = {int(socket.IPPROTO_TCP): "TCP", int(socket.IPPROTO_UDP): "UDP"}


class Event(NamedTuple):
    """The fields of struct event, in its order. Of LOST and WITHHELD, `request_packets` is how many there were."""

    at: int
    opened: int
    request_packets: int
    request_bytes: int
    reply_packets: int
    reply_bytes: int
    state: int
    client: int
    vip: int
    snat: int
    member: int
    client_port: int
    vip_port: int
    snat_port: int
    member_port: int
    slot: int
    endpoint: int
    listener: int
    kind: int
    reason: int
    protocol: int


class Shown(NamedTuple):
    """An event for people and programs. Times are in UTC; what does not apply or was not counted is None."""

    time: str
    event: str
    reason: str | None = None
    protocol: str | None = None
    client: str | None = None
    vip: str | None = None
    snat: str | None = None
    member: str | None = None
    phase: str | None = None
    opened: str | None = None
    seconds: float | None = None
    request_packets: int | None = None
    request_bytes: int | None = None
    reply_packets: int | None = None
    reply_bytes: int | None = None
    listener: int | None = None
    endpoint: int | None = None
    slot: int | None = None
    events: int | None = None


def shown(event: Event) -> Shown:
    """As it is shown."""
    at, kind = time_text(event.at), event.kind
    if kind in _COUNTS:
        return Shown(at, _KINDS[kind], events=event.request_packets)
    protocol = _PROTOCOLS[event.protocol]
    client, vip = _end(event.client, event.client_port), _end(event.vip, event.vip_port)
    if kind == EventKind.REJECTED:
        return Shown(at, _KINDS[kind], Verdict(event.reason).name, protocol, client, vip)
    passed: _Passed = (
        event[2:6] if event.request_packets else (None, None, None, None)
    )  # else there is one at the least
    return Shown(
        at,
        _KINDS[kind],
        _ENDINGS[event.reason] if kind == EventKind.CLOSED else None,
        protocol,
        client,
        vip,
        _end(event.snat, event.snat_port),
        _end(event.member, event.member_port),
        _PHASES.get(event.state & 0xFF),
        time_text(event.opened),
        round((event.at - event.opened) / NANO, 6),
        *passed,
        event.listener,
        event.endpoint,
        event.slot,
    )


def counted(kind: EventKind, at: int, events: int) -> Event:
    """So many events of which nothing else is known."""
    return Event._make((at, at, events, *[0] * 15, kind, 0, 0))


def ip_raw(address: IPv4Address) -> int:
    """An address as it lies in the kernel's memory."""
    return int.from_bytes(address.packed, "little")


def port_raw(port: int) -> int:
    """A port, the same."""
    return socket.htons(port)


def protocol_raw(name: str) -> int:
    """A protocol's number."""
    return next(number for number, known in _PROTOCOLS.items() if known == name)


def time_text(at: int) -> str:
    """Nanoseconds since the epoch as `2026-11-22T14:03:07.123456Z`."""
    seconds, rest = divmod(at, NANO)
    return f"{_second(seconds)}.{rest // 1000:06}Z"


@lru_cache(1024)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(4096)
def _address(raw: int) -> str:
    return socket.inet_ntoa(raw.to_bytes(4, "little"))


def _end(address: int, port: int) -> str:
    return f"{_address(address)}:{socket.ntohs(port)}"


_COUNTS = (EventKind.LOST, EventKind.WITHHELD)
_KINDS = {int(kind): kind.name.lower() for kind in EventKind}
_ENDINGS = {int(one): one.name for one in Ending}
_PHASES = {int(phase): phase.name for phase in Phase}
