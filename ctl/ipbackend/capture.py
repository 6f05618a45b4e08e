"""What is to be captured, and what was, as a pcapng file. It knows no kernel: packets are given to it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from ipbackend import __version__, pcapng
from ipbackend.abi import Verdict
from ipbackend.errors import ConfigurationError, suggestion
from ipbackend.pcapng import Direction
from ipbackend.peer import Peer, address, peer, peers
from ipbackend.verdicts import MEANINGS

LEAST, MOST = 96, 9216  # bytes kept of a frame: all headers, and CAPTURE_MOST of bpf/capture.h
ANY_CLIENT = IPv4Network("0.0.0.0/0")
USUAL = frozenset(MEANINGS) - {Verdict.PASS_NOT_OURS}  # what is the kernel's may be how the capture itself is read


@dataclass(frozen=True)
class Order:
    """Whose packets: of one client or several, of a VIP or its port, of a member, and how they ended.

    `rate` is packets a second at most, `snaplen` bytes kept of each frame.
    """

    client: IPv4Network
    vip: IPv4Address | None
    port: int | None
    member: Peer | None
    verdicts: frozenset[Verdict]
    rate: int
    snaplen: int


class Captured(NamedTuple):
    """One packet: when (ns of CLOCK_MONOTONIC), its verdict, and the XDP action.

    As it came and as it left: interface's index, length of the frame, what is kept of it.
    """

    at: int
    verdict: int
    action: int
    came: tuple[int, int, bytes]
    left: tuple[int, int, bytes] | None


def order(
    client: str, vip: str, port: int | None, member: str, verdicts: Iterable[str], rate: int, snaplen: int
) -> Order:
    """What is asked for, from text; what is empty or none is not asked. ConfigurationError: it says nothing."""
    network, port_of_client = peers(client) if client else (ANY_CLIENT, None)
    if port_of_client:
        raise ConfigurationError(f"client: {client!r} has a port (filter by it when the capture is read)")
    wanted = frozenset(map(_verdict, verdicts)) or USUAL
    return Order(network, address(vip) if vip else None, port, peer(member) if member else None, wanted, rate, snaplen)


def _verdict(name: str) -> Verdict:
    known = {verdict.name: verdict for verdict in MEANINGS}
    if name.upper() not in known:
        raise ConfigurationError(f"verdict: there is no {name} ({suggestion(name, known)})")
    return known[name.upper()]


class Recording:
    """A file as it grows. `packets` counts those that are in it, each as it came and, if it did, as it left."""

    def __init__(self, order: Order, name_of: Callable[[int], str]) -> None:
        """`name_of` an interface of that index."""
        self._order = order
        self._name_of = name_of
        self._interfaces: dict[int, int] = {}  # number in the file, by index
        self._since_1970 = time.time_ns() - time.monotonic_ns()
        self.packets = 0

    def begin(self) -> bytes:
        """What it begins with."""
        return pcapng.section(f"ipbackend {__version__}")

    def add(self, packets: Iterable[Captured]) -> bytes:
        """These packets."""
        return b"".join(map(self._packet, packets))

    def end(self, over_rate: int, unread: int) -> bytes:
        """What it ends with: how many packets are missing, and why."""
        number, before = self._interface(0) if not self._interfaces else (0, b"")
        missing = f"{over_rate:,} over {self._order.rate:,} a second, {unread:,} not read in time"
        comment = f"{self.packets:,} packets; left out: {missing}"
        return before + pcapng.statistics(
            time.monotonic_ns() + self._since_1970, number, self.packets, over_rate + unread, comment
        )

    def _packet(self, one: Captured) -> bytes:
        self.packets += 1
        verdict = Verdict(one.verdict)
        frames = [(Direction.INBOUND, "as it came", one.came)]
        if one.left:
            frames.append((Direction.OUTBOUND, "as it left", one.left))
        blocks = []
        for direction, when, (index, length, frame) in frames:
            interface, before = self._interface(index)
            comment = f"{verdict.name}: {MEANINGS[verdict]}; packet {self.packets} {when}"
            blocks.append(before)
            blocks.append(
                pcapng.packet(
                    one.at + self._since_1970, interface, direction, length, frame, self.packets, one.action, comment
                )
            )
        return b"".join(blocks)

    def _interface(self, index: int) -> tuple[int, bytes]:
        """Its number in the file, and its block if it is met for the first time."""
        if index in self._interfaces:
            return self._interfaces[index], b""
        self._interfaces[index] = len(self._interfaces)
        return self._interfaces[index], pcapng.interface(self._name_of(index), self._order.snaplen)
