"""A connection of our own to a member, through the data plane itself, from the SYN to the RST; no trace stays.

The entry program is handed a SYN by BPF_PROG_TEST_RUN, from a client that is nowhere to a VIP that leads to this
one member and exists only meanwhile. So the program itself admits it, takes its slot, and makes of it what it
makes of a client's SYN; that frame is put on the member's link. The answer comes in by the wire, through XDP as it
is attached, and is seen in the slot. A socket of the gateway's would show less: it never meets XDP, nor a SNAT
address. Live frames would show no more, and need a wire on the client's side; a slot taken by hand would not show
that the program takes one. What goes back to the client is redirected to the loopback interface, which takes no
frames from XDP (or in generic mode takes them for another host's). A RST by the same road ends it at the member, and
the program frees the slot.

It counts meanwhile for what it is: connections of the endpoint, opened and closed, and packets by verdict.
It must have the turn of the thread that changes maps, from beginning to end, and knows no configuration.
"""

import random
import struct
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from typing import Any, NamedTuple

from ipbackend.abi import MAX_LISTENERS, Phase, Role
from ipbackend.datapath import syscall
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.tables import Tables
from ipbackend.model import Protocol
from ipbackend.plan import Action, Address, Endpoint, Entries, Listener, ListenerKey, NextHop, Pool, Step
from ipbackend.probe import ACK, RST, SYN, tcp_frame
from ipbackend.sizing import FIRST_SNAT_PORT

NOWHERE = IPv4Network("192.0.2.0/24")  # RFC 5737: for examples only, so no client has an address of these
VIP_PORT = 1
CLIENT_MAC, GATEWAY_MAC = b"\x02\x00\x00\x00\x00\x01", b"\x02\x00\x00\x00\x00\x02"
LOOPBACK = 1  # its index in every network namespace: where a program that is run by hand takes a frame to come from
LISTENER = POOL = MAX_LISTENERS - 1  # no one else's: ids are given from 1 on
IDLE = 10  # seconds, the least; it is long over by then
ATTEMPTS = 32  # to meet every SNAT address: slots come in the order in which they became free
REPEAT = 0.4  # seconds until a SYN is sent again: one may be lost
PATIENCE = 1.2  # seconds for an answer
ECHO = 0.15  # seconds for an answer of a member that has answered faster than that
POLL = 0.001
LARGEST = 3_500  # bytes of IP: with its link header, what a page holds for a program that is run by hand
HEADERS = 40  # bytes of IP and TCP
_REDIRECT = 4  # XDP_REDIRECT: on to the member; whatever is refused goes back where it came from
_MSS = struct.pack("!BBH", 2, 4, 1460)


class Answer(StrEnum):
    """What a member does about a SYN."""

    OPEN = "open"  # SYN-ACK
    REFUSED = "refused"  # RST
    SILENT = "silent"


@dataclass
class Attempt:
    """One SYN, from which SNAT address, and what came of it after how many seconds."""

    port: int
    sequence: int
    snat: IPv4Address
    slot: int
    frame: bytes
    answer: Answer = Answer.SILENT
    seconds: float = 0.0


class Ends(NamedTuple):
    """The client that is nowhere, and the VIP that exists for a trial only."""

    client: IPv4Address
    vip: IPv4Address


class Trial:
    """Attempts on one endpoint, while `prepared`."""

    def __init__(
        self,
        entry: int,
        maps: Maps,
        send: Callable[[int, bytes], None],
        number: int,
        endpoint: Endpoint,
        hop: NextHop,
        ends: "Ends",
    ) -> None:
        self._entry = entry
        self._maps = maps
        self._send = send
        self._endpoint = endpoint
        self._hop = hop
        self._ends = ends
        self._connections = maps.of_endpoint("conntrack", number)
        self._attempts: list[Attempt] = []
        self._sent = 0.0

    def attempts(self) -> list[Attempt]:
        """A SYN from every SNAT address, if the endpoint takes so many connections; sent, and not answered yet."""
        fresh: dict[IPv4Address, Attempt] = {}
        first = random.randrange(1024, 60_000)
        for port in range(first, first + ATTEMPTS):
            attempt = self._opened(port)
            if attempt is None:
                break
            self._attempts.append(attempt)
            fresh.setdefault(attempt.snat, attempt)
            if len(fresh) == len(self._endpoint.snat):
                break
        self._sent = time.monotonic()
        for one in fresh.values():
            self._send(self._hop.interface, one.frame)
        return list(fresh.values())

    def wait(self, attempts: list[Attempt]) -> None:
        """Until all are answered, or patience ends."""
        again = self._sent + REPEAT
        while waiting := [one for one in attempts if one.answer is Answer.SILENT]:
            at = time.monotonic()
            if at - self._sent > PATIENCE:
                return
            for one in waiting:
                one.answer, one.seconds = self._answer(one), at - self._sent
                if one.answer is Answer.SILENT and at > again:
                    self._through(self._segment(one, SYN, options=_MSS))
            again += REPEAT if at > again else 0
            time.sleep(POLL)

    def close(self) -> None:
        """End all at the member and here; what the member has ended is ended."""
        for one in self._attempts:
            if Phase(self._state(one) & 0xFF).is_open:
                self._through(self._segment(one, RST, after=1))
        self._attempts.clear()

    def carries(self, attempt: Attempt, size: int, patience: float = ECHO) -> bool:
        """Whether a segment of `size` bytes of IP, not to be fragmented, reaches the member of an open attempt.

        It lies wholly before what the member expects, so its data reaches no service, and is answered by an
        acknowledgement (RFC 9293, 3.10.7.4). Repeated SYN-ACKs are longer than that, and told apart by it.
        """
        length = size - HEADERS
        acknowledged = self._connections[attempt.slot].member_sequence + 1
        before = self._replies()
        segment = self._segment(attempt, ACK, -length, acknowledged, payload=bytes(length))
        if not self._through(segment):
            return False
        end = time.monotonic() + patience
        while time.monotonic() < end:
            packets, octets = (now - then for now, then in zip(self._replies(), before, strict=True))
            if packets and octets < packets * (HEADERS + len(_MSS)):
                return True
            time.sleep(POLL)
        return False

    def _opened(self, port: int) -> Attempt | None:
        sequence = random.getrandbits(32)
        attempt = Attempt(port, sequence, self._ends.client, 0, b"")
        frame = self._run(self._segment(attempt, SYN, options=_MSS))
        if frame is None:
            return None
        source, source_port = IPv4Address(frame[26:30]), int.from_bytes(frame[34:36], "big")
        count = len(self._endpoint.snat)
        attempt.snat, attempt.frame = source, frame
        attempt.slot = (source_port - FIRST_SNAT_PORT) * count + self._endpoint.snat.index(source)
        return attempt

    def _state(self, attempt: Attempt) -> int:
        state: int = self._connections[attempt.slot].state
        return state

    def _answer(self, attempt: Attempt) -> Answer:
        phase = Phase(self._state(attempt) & 0xFF)
        if phase is Phase.SYN_SENT:
            return Answer.SILENT
        return Answer.OPEN if phase.is_open else Answer.REFUSED

    def _replies(self) -> tuple[int, int]:
        """Packets and bytes of answers to all trials: connections of no listener."""
        rows = self._maps["listener_counts"].get(LISTENER)
        return sum(row.reply_packets for row in rows), sum(row.reply_bytes for row in rows)

    def _segment(
        self,
        attempt: Attempt,
        flags: int,
        after: int = 0,
        acknowledged: int = 0,
        options: bytes = b"",
        payload: bytes = b"",
    ) -> bytes:
        """As the client would send it, `after` bytes from its first sequence number."""
        ports = struct.pack("!2H", attempt.port, VIP_PORT)
        link, sequence = GATEWAY_MAC + CLIENT_MAC, attempt.sequence + after
        client, vip = self._ends.client.packed, self._ends.vip.packed
        return tcp_frame(link, client, vip, ports, sequence, acknowledged, flags, options, payload)

    def _run(self, frame: bytes) -> bytes | None:
        """What the program sends to the member for it, or nothing."""
        action, sent, _ = syscall.run(self._entry, frame)
        return sent if action == _REDIRECT else None

    def _through(self, frame: bytes) -> bool:
        sent = self._run(frame)
        if sent is not None:
            self._send(self._hop.interface, sent)
        return sent is not None


@contextmanager
def prepared(tables: Tables, have: Entries, number: int) -> Iterator[Ends]:
    """With a VIP that leads to this endpoint, and a link for what goes back to the client; `have` is in the maps."""
    ends = Ends(*islice((address for address in NOWHERE.hosts() if address not in have.addresses), 2))
    rows: list[tuple[str, Any, Any]] = [
        ("links", LOOPBACK, 0xFFFF),
        ("pools", POOL, Pool((number,), (1,), array("H", [0]))),
        ("addresses", ends.vip, Address(Role.VIP)),
        ("listeners", ListenerKey(ends.vip, VIP_PORT, Protocol.TCP), Listener(LISTENER, POOL, IDLE)),
    ]
    if LOOPBACK in have.links:
        del rows[0]
    try:
        tables.apply([Step(Action.SET, *row) for row in rows])
        yield ends
    finally:
        listener = rows[-1]
        tables.apply([Step(Action.DELETE, *row) for row in reversed(rows)])
        tables.apply([Step(Action.END, *listener), Step(Action.WAIT, "pools", 0)])
