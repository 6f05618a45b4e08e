"""One connection of the model, as TCP and silence change it. It knows no slots, and no other connection.

Sequence numbers are told from near or far as the rules say (README, "What it does with a packet").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from scapy.layers.inet import TCP
from scapy.packet import Packet

from ipbackend.abi import Phase
from ipbackend.model import Protocol
from ipbackend.plan import Listener

BEHIND, AHEAD, STEP, LOST = 16_384, 65_536, 16_384, 2**30  # of sequence numbers


class Side(Enum):
    CLIENT = "client"
    MEMBER = "member"


class Tuple(NamedTuple):
    """What tells a client's connection from all others."""

    client: str
    client_port: int
    vip: str
    vip_port: int
    protocol: Protocol


@dataclass
class Timeouts:
    """Seconds of silence; an established connection's are its listener's."""

    syn_sent: int = 5
    syn_received: int = 15
    closing: int = 20
    rest: int = 60


@dataclass
class Connection:
    """What a slot holds from its opening until it is used again or has rested."""

    tuple: Tuple
    listener: Listener
    heard: int
    sequence: dict[Side, int]
    phase: Phase
    macs: tuple[str, str]  # of the client's last frame: source, destination
    closing: set[Side] = field(default_factory=set)

    def patience(self, timeouts: Timeouts) -> int:
        """Seconds that it may be silent, or rest."""
        if self.phase in (Phase.CLOSED, Phase.EXPIRED):
            return timeouts.rest
        if self.phase is Phase.SYN_SENT:
            return timeouts.syn_sent
        if self.phase is Phase.SYN_RECEIVED:
            return timeouts.syn_received
        return timeouts.closing if self.phase is Phase.CLOSING else self.listener.idle_timeout

    def hear(self, packet: Packet, side: Side, now: int) -> None:
        """One packet more of one side. A closed connection has nothing to learn."""
        flags = flags_of(packet)
        if not self.phase.is_open:
            if TCP in packet:
                self._lead_on(packet, side)
            return
        believed = self._is_believed(packet, side) if TCP in packet else False
        if TCP in packet:
            self._lead_on(packet, side)
        if "R" in flags:
            if believed:
                self.phase, self.heard = Phase.EXPIRED, now
            return
        self.heard = now
        if "F" in flags and believed and self.phase is not Phase.SYN_SENT:
            self.closing.add(side)
            self.phase = Phase.CLOSED if len(self.closing) == 2 else Phase.CLOSING
        elif self.phase is Phase.SYN_SENT and side is Side.MEMBER and "S" in flags:
            self.phase = Phase.SYN_RECEIVED
        elif self.phase is Phase.SYN_RECEIVED and side is Side.CLIENT and "A" in flags and believed:
            self.phase = Phase.ESTABLISHED

    def _is_believed(self, packet: Packet, side: Side) -> bool:
        """Whether the numbers are those of one who sees the connection."""
        resets = "R" in flags_of(packet)
        if side is Side.MEMBER and self.phase is Phase.SYN_SENT and resets:
            return "A" in flags_of(packet) and is_near(packet[TCP].ack, self.sequence[Side.CLIENT])
        if side is Side.CLIENT and self.phase.is_half_open and resets:
            return wrap(packet[TCP].seq - self.sequence[Side.CLIENT]) <= 1
        if side is Side.CLIENT and self.phase.is_half_open:
            return "A" in flags_of(packet) and is_near(packet[TCP].ack, self.sequence[Side.MEMBER])
        return is_near(packet[TCP].seq, self.sequence[side])

    def _lead_on(self, packet: Packet, side: Side) -> None:
        """How far the sides have come, to within a step; a client's word counts only from near."""
        segment, flags = packet[TCP], flags_of(packet)
        if "R" in flags:
            return
        if self.phase.is_half_open:
            if side is Side.MEMBER and "S" in flags:
                self.sequence[Side.MEMBER] = segment.seq
                if "A" in flags:
                    self.sequence[Side.CLIENT] = segment.ack
            return
        if STEP <= wrap(segment.seq - self.sequence[side]) < (AHEAD if side is Side.CLIENT else LOST):
            self.sequence[side] = segment.seq
        if side is Side.MEMBER and "A" in flags and AHEAD <= wrap(segment.ack - self.sequence[Side.CLIENT]) < LOST:
            self.sequence[Side.CLIENT] = segment.ack


def wrap(number: int) -> int:
    return number % 2**32


def is_near(number: int, known: int) -> bool:
    return wrap(number - known + BEHIND) < BEHIND + AHEAD


def flags_of(packet: Packet) -> str:
    return str(packet[TCP].flags) if TCP in packet else ""
