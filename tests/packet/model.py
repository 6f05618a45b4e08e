"""What the data plane promises, as a table of connections in Python. It knows the rules, and no map or kernel.

Packets are scapy's, and so are the checksums of what leaves. Time is in seconds, and passes only when it is told to.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import NamedTuple

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from ipbackend.abi import Phase, Role, Verdict
from ipbackend.model import EndpointKey, Protocol
from ipbackend.plan import Endpoint, Entries, ListenerKey
from ipbackend.sizing import FIRST_SNAT_PORT
from tests.packet.cast import CLIENT_INTERFACE, answer, icmp
from tests.packet.model_choice import Demands, Stays, Turns, chosen
from tests.packet.model_connection import Connection, Side, Timeouts, Tuple, flags_of, is_near, wrap


class Place(NamedTuple):
    """An endpoint's number, and one of its slots."""

    endpoint: int
    slot: int


@dataclass
class Outcome:
    """The verdict on a packet; `left` is what leaves, None where nothing does or it stays as it came."""

    verdict: Verdict
    left: Packet | None = None


class Table:
    """One endpoint's slots: what they hold, and the queue of those to be had."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.ceiling, self.half_open_limit = endpoint.ceiling, endpoint.half_open_limit
        self.slots: dict[int, Connection] = {}
        self.queue = deque(range(endpoint.slots))

    @property
    def active(self) -> int:
        return sum(connection.phase.is_open for connection in self.slots.values())

    @property
    def half_open(self) -> int:
        return sum(connection.phase.is_half_open for connection in self.slots.values())

    def open(self, connection: Connection) -> int:
        """In the slot that has been in the queue for longest; returns it."""
        slot = self.queue.popleft()
        self.slots[slot] = connection
        return slot

    def end(self, slot: int, connection: Connection, phase: Phase) -> None:
        """Its slot can be had again: free at once, or resting."""
        if connection.phase.is_open:
            self.queue.append(slot)
        connection.phase = phase
        if phase is Phase.FREE:
            del self.slots[slot]

    def snat_of(self, slot: int) -> tuple[str, int]:
        """The address and port that this slot is."""
        snat = self.endpoint.snat
        return str(snat[slot % len(snat)]), FIRST_SNAT_PORT + slot // len(snat)


class Model:
    """The whole gateway: what is configured, and the tables that it leads to."""

    def __init__(self, entries: Entries) -> None:
        self.now = 0
        self.timeouts = Timeouts()
        self.entries = Entries()
        self.tables: dict[int, Table] = {}
        self.demands, self.turns, self.stays = Demands(), Turns(), Stays()
        self.witness: Callable[[], int] = lambda: 0  # the endpoint that was chosen where the rules leave it open
        self.configure(entries)

    # What is configured

    def configure(self, want: Entries) -> None:
        """Connections stay, but those of a listener or an endpoint that is gone for good."""
        have, self.entries = self.entries, want
        for number, endpoint in want.endpoints.items():
            if number not in self.tables:
                self.tables[number] = Table(endpoint)
            elif have.endpoints[number] != endpoint:
                table = self.tables[number]
                table.endpoint = endpoint
                table.ceiling, table.half_open_limit = endpoint.ceiling, endpoint.half_open_limit
        gone = {have.listeners[key].id for key in have.listeners if key not in want.listeners}
        for listener in gone:
            self.demands.buckets.pop(listener, None)
        for table in self.tables.values():
            for slot, connection in sorted(table.slots.items()):
                if connection.listener.id in gone and connection.phase is not Phase.EXPIRED:
                    self._cut(table, slot, connection)
        for number in set(self.tables) - set(want.endpoints):
            del self.tables[number]

    def cut(self, endpoint: int, listener: int) -> int:
        """End the open connections of an endpoint, of one listener or, if that is 0, all; returns how many."""
        table = self.tables[endpoint]
        meant = [
            (slot, connection)
            for slot, connection in sorted(table.slots.items())
            if connection.phase.is_open and listener in (0, connection.listener.id)
        ]
        for slot, connection in meant:
            self._cut(table, slot, connection)
        return len(meant)

    def kill(self, at: Place, generation_is_its: bool) -> bool:
        """End the connection in a slot, if it is open and the one that was meant."""
        connection = self.tables[at.endpoint].slots.get(at.slot)
        if connection is None or not connection.phase.is_open or not generation_is_its:
            return False
        self._cut(self.tables[at.endpoint], at.slot, connection)
        return True

    def _cut(self, table: Table, slot: int, connection: Connection) -> None:
        """Its ends are told when they speak, if it is open and TCP."""
        is_told = connection.phase.is_open and connection.tuple.protocol is Protocol.TCP
        connection.heard = self.now
        table.end(slot, connection, Phase.EXPIRED if is_told else Phase.FREE)

    # Time

    def sweep(self) -> tuple[int, int]:
        """How many connections silence has ended, and how many slots had rested enough."""
        ended = rested = 0
        for table in self.tables.values():
            for slot, connection in sorted(table.slots.items()):
                if self.now - connection.heard < connection.patience(self.timeouts):
                    continue
                ended += connection.phase.is_open
                rested += not connection.phase.is_open
                self._cut(table, slot, connection)
        return ended, rested

    # Packets

    def receive(self, packet: Packet) -> Outcome:
        """TCP or UDP."""
        ip = packet[IP]
        address = self.entries.addresses.get(IPv4Address(ip.dst))
        if address is None:
            return Outcome(Verdict.PASS_NOT_OURS)
        if ip.ttl <= 1:
            is_false = self._is_false(ip.src)
            return Outcome(Verdict.DROP_TTL) if is_false else Outcome(Verdict.REJECT_TTL, answer(packet, 11, 0))
        return self._from_member(packet, address.index) if address.role is Role.SNAT else self._from_client(packet)

    def receive_error(self, packet: Packet, at: Place | None, side: Side, inner: bytes) -> Outcome:
        """An ICMP error from one side, about what went there; `inner` is that as it was when its sender sent it."""
        if packet[IP].ttl <= 1:
            return Outcome(Verdict.DROP_TTL)
        if self._is_false(packet[IP].src):
            return Outcome(Verdict.DROP_MALFORMED)
        if at is None or self[at].phase is Phase.EXPIRED:
            return Outcome(Verdict.DROP_ICMP_UNRELATED)
        mtu = self._mtu(at, side)
        if not mtu:
            return Outcome(Verdict.DROP_NO_NEXT_HOP)
        if len(packet[IP]) > mtu:
            return Outcome(Verdict.DROP_TOO_BIG)
        left = self._translated(packet, at, side)
        raw = bytes(packet[IP].payload)
        left[IP].remove_payload()
        return Outcome(Verdict.FORWARD_ICMP_ERROR, left / icmp(raw[0], raw[1], inner, raw[4:8]))

    def __getitem__(self, at: Place) -> Connection:
        return self.tables[at.endpoint].slots[at.slot]

    def connections(self) -> Iterator[tuple[Place, Connection]]:
        """All that are open or rest."""
        for number, table in self.tables.items():
            for slot, connection in table.slots.items():
                yield Place(number, slot), connection

    def is_at(self, at: Place, sought: Tuple, ends: tuple[str, int, str, int]) -> bool:
        """Whether the slot holds this tuple; `ends` are what it is to its member, and the member."""
        table = self.tables[at.endpoint]
        key = table.endpoint.key
        return self[at].tuple == sought and (*table.snat_of(at.slot), str(key.address), key.port) == ends

    def find(self, sought: Tuple) -> Place | None:
        """The one place that has this tuple."""
        places = [at for at, connection in self.connections() if connection.tuple == sought]
        assert len(places) <= 1
        return places[0] if places else None

    def place_of(self, packet: Packet, snat_index: int) -> Place | None:
        """What a member's packet belongs to: its address and the slot that it was sent to say it."""
        protocol, sport, dport = ports_of(packet)
        key = EndpointKey(IPv4Address(packet[IP].src), sport, protocol)
        for number, table in self.tables.items():
            slot = (dport - FIRST_SNAT_PORT) * len(table.endpoint.snat) + snat_index
            if table.endpoint.key == key and slot in table.slots:
                return Place(number, slot)
        return None

    def _from_client(self, packet: Packet) -> Outcome:
        protocol, sport, dport = ports_of(packet)
        sought = Tuple(packet[IP].src, sport, packet[IP].dst, dport, protocol)
        at = self.find(sought)
        if at and not self[at].phase.is_open and opens(packet):
            self.tables[at.endpoint].end(at.slot, self[at], Phase.FREE)
            at = None
        if at is None:
            return self._open(packet, sought)
        if self[at].phase is Phase.EXPIRED:
            return too_late(packet)
        return self._send(packet, at, Side.CLIENT, Verdict.FORWARD_REQUEST)

    def _from_member(self, packet: Packet, snat_index: int) -> Outcome:
        at = self.place_of(packet, snat_index)
        if at is None:
            return Outcome(Verdict.DROP_NO_CONNECTION)
        if self[at].phase is Phase.EXPIRED:
            return too_late(packet)
        return self._send(packet, at, Side.MEMBER, Verdict.FORWARD_REPLY)

    def _open(self, packet: Packet, sought: Tuple) -> Outcome:
        if "R" in flags_of(packet):
            return Outcome(Verdict.DROP_NO_CONNECTION)
        if self._is_false(sought.client):
            return Outcome(Verdict.DROP_MALFORMED)
        key = ListenerKey(IPv4Address(sought.vip), sought.vip_port, sought.protocol)
        listener = self.entries.listeners.get(key)
        if listener is None:
            return refused(packet, Verdict.REJECT_NO_LISTENER)
        if not opens(packet):
            return refused(packet, Verdict.REJECT_NO_CONNECTION)
        active = self.active_at(listener.id)
        endpoint, verdict = 0, self.demands.refusal(self.entries, listener, sought.client, active, self.now)
        if verdict is None:
            endpoint, verdict = self._schedule(listener.pool, sought)
        if verdict.name.startswith("DROP"):
            return Outcome(verdict)
        if verdict is not Verdict.FORWARD_OPENED:
            return refused(packet, verdict)
        self.demands.let_in(listener, sought.client, self.now)
        is_tcp = sought.protocol is Protocol.TCP
        connection = Connection(
            sought,
            listener,
            self.now,
            {Side.CLIENT: packet[TCP].seq if is_tcp else 0, Side.MEMBER: 0},
            Phase.SYN_SENT if is_tcp else Phase.ESTABLISHED,
            (packet[Ether].src, packet[Ether].dst),
        )
        at = Place(endpoint, self.tables[endpoint].open(connection))
        return self._send(packet, at, Side.CLIENT, verdict)

    def _schedule(self, number: int, ends: Tuple) -> tuple[int, Verdict]:
        """The home of a client that has one with room; else whom the pool's algorithm chooses."""
        pool = self.entries.pools[number]
        home = self.stays.home(number, pool, ends.client, dict(self.tables), self.now)
        candidates = {home} if home and self._has_room(home) else set()
        if not candidates:
            load = {endpoint: self.tables[endpoint].active for endpoint in pool.members}
            candidates = self.turns.candidates(number, pool, ends, self._has_room, load.__getitem__)
        if candidates:
            endpoint = chosen(candidates, self.witness)
            self.stays.settle(number, pool, ends.client, home, endpoint, self.tables[endpoint], self.now)
            return endpoint, Verdict.FORWARD_OPENED
        tables = [self.tables[endpoint] for endpoint in pool.members]
        if any(table.active < table.ceiling for table in tables):
            return 0, Verdict.DROP_HALF_OPEN
        return 0, Verdict.REJECT_ALL_FULL if any(table.ceiling for table in tables) else Verdict.REJECT_NO_MEMBER

    def _has_room(self, endpoint: int) -> bool:
        table = self.tables[endpoint]
        return table.active < table.ceiling and table.half_open < table.half_open_limit

    def active_at(self, listener: int) -> int:
        """Open connections of a listener, by its number."""
        return sum(one.phase.is_open and one.listener.id == listener for _, one in self.connections())

    def _send(self, packet: Packet, at: Place, side: Side, verdict: Verdict) -> Outcome:
        connection, mtu = self[at], self._mtu(at, side)
        if not mtu:
            return Outcome(Verdict.DROP_NO_NEXT_HOP)
        if len(packet[IP]) > mtu:
            if "DF" not in packet[IP].flags:
                return Outcome(Verdict.DROP_TOO_BIG)
            return Outcome(Verdict.REJECT_TOO_BIG, answer(packet, 3, 4, struct.pack("!2xH", mtu)))
        left = self._translated(packet, at, side)
        if side is Side.CLIENT and (TCP not in packet or is_near(packet[TCP].seq, connection.sequence[Side.CLIENT])):
            connection.macs = packet[Ether].src, packet[Ether].dst
        if verdict is not Verdict.FORWARD_OPENED:
            was_open = connection.phase.is_open
            connection.hear(packet, side, self.now)
            if was_open and not connection.phase.is_open:
                self.tables[at.endpoint].queue.append(at.slot)
        return Outcome(verdict, left)

    def _mtu(self, at: Place, sender: Side) -> int:
        """Of the link that it leaves by; 0: there is no way at the moment."""
        if sender is Side.MEMBER:
            return self.entries.links.get(CLIENT_INTERFACE, 0)
        hop = self.entries.next_hops[self.tables[at.endpoint].endpoint.next_hop]
        return hop.mtu if hop.resolved else 0

    def _translated(self, packet: Packet, at: Place, sender: Side) -> Packet:
        """The packet as it leaves: the other side's addresses and ports, and one hop older."""
        table, connection, left = self.tables[at.endpoint], self[at], packet.copy()
        address, port = table.snat_of(at.slot)
        key, ends = table.endpoint.key, connection.tuple
        if sender is Side.CLIENT:
            hop = self.entries.next_hops[table.endpoint.next_hop]
            left[Ether].src, left[Ether].dst = hop.source.hex(":"), hop.destination.hex(":")
            source, destination = (address, port), (str(key.address), key.port)
        else:
            left[Ether].dst, left[Ether].src = connection.macs
            source, destination = (ends.vip, ends.vip_port), (ends.client, ends.client_port)
        (left[IP].src, sport), (left[IP].dst, dport) = source, destination
        left[IP].ttl -= 1
        for layer in (TCP, UDP):
            if layer in left:
                left[layer].sport, left[layer].dport = sport, dport
        return left

    def _is_false(self, sender: str) -> bool:
        """No single host sends so: there is no one to answer to."""
        first = int(sender.split(".")[0])
        return first in (0, 127) or first >= 224 or IPv4Address(sender) in self.entries.addresses


def ports_of(packet: Packet) -> tuple[Protocol, int, int]:
    kind = TCP if TCP in packet else UDP
    return Protocol.TCP if kind is TCP else Protocol.UDP, packet[kind].sport, packet[kind].dport


def opens(packet: Packet) -> bool:
    """UDP, or a SYN alone."""
    return TCP not in packet or set(flags_of(packet)) & set("FSRA") == {"S"}


def too_late(packet: Packet) -> Outcome:
    """To a connection that silence ended: a RST is told, and is never told to a RST."""
    return Outcome(Verdict.DROP_NO_CONNECTION) if "R" in flags_of(packet) else refused(packet, Verdict.REJECT_EXPIRED)


def refused(packet: Packet, verdict: Verdict) -> Outcome:
    """By a RST with the number that its receiver expects (RFC 9293, 3.10.7.1), or "port unreachable"."""
    if TCP not in packet:
        return Outcome(verdict, answer(packet, 3, 3))
    asked, flags = packet[TCP], flags_of(packet)
    reset = TCP(sport=asked.dport, dport=asked.sport, window=0, flags="R", seq=asked.ack)
    if "A" not in flags:
        length = len(asked.payload) + ("S" in flags) + ("F" in flags)
        reset.flags, reset.seq, reset.ack = "RA", 0, wrap(asked.seq + length)
    ip = IP(src=packet[IP].dst, dst=packet[IP].src, id=0, flags="DF")
    return Outcome(verdict, Ether(src=packet[Ether].dst, dst=packet[Ether].src) / ip / reset)
