"""Mutated frames by the hundred thousand: what leaves must be explained by the rules, however broken what came.

`make fuzz` runs five million of them; the seed is fixed, so a failure comes again. The judge is written from the
rules, in Python and bytes, and shares nothing with the program but the maps.
"""

from __future__ import annotations

import os
import random
import struct
from ipaddress import IPv4Address

from scapy.layers.inet import ICMP, TCP, UDP, IPerror, TCPerror, UDPerror, fragment
from scapy.packet import Raw

from ipbackend.abi import SweepMode
from ipbackend.datapath import syscall
from ipbackend.datapath.audit import audit
from tests.packet import cast
from tests.packet.conftest import Dataplane

FRAMES = int(os.environ.get("FUZZ_FRAMES", "100000"))
SEED = 20261122
DROP, PASS, TX, REDIRECT = 1, 2, 3, 4
TCP_NUMBER, UDP_NUMBER, ICMP_NUMBER = 6, 17, 1

VIPS = {IPv4Address(address).packed for address in (cast.VIP, cast.SECOND_VIP)}
SNATS = [IPv4Address(address).packed for address in cast.SNATS]
MEMBERS = {
    (IPv4Address(cast.MEMBER).packed, cast.MEMBER_PORT, TCP_NUMBER): ("TCP", cast.MEMBER),
    (IPv4Address(cast.UDP_MEMBER).packed, cast.UDP_PORT, UDP_NUMBER): ("UDP", cast.UDP_MEMBER),
}
# Values that parsers stumble over, for one, two and four bytes.
BORDERS = (0, 1, 4, 5, 6, 7, 8, 15, 16, 19, 20, 21, 28, 0x3F, 0x40, 0x44, 0x45, 0x4F, 0x7F, 0x80, 0xFE, 0xFF)


def seeds() -> list[bytes]:
    """Good frames of every kind, on both sides, to start from."""
    client, member = cast.from_client(), cast.from_member()
    udp_member = cast.from_member(cast.UDP_MEMBER)
    quoted = IPerror(src=cast.SNAT, dst=cast.MEMBER) / TCPerror(sport=32768, dport=cast.MEMBER_PORT)
    to_client = IPerror(src=cast.VIP, dst=cast.CLIENT) / UDPerror(sport=53, dport=4000)
    frames = [
        client / TCP(sport=4000, dport=80, flags="S"),
        client / TCP(sport=4000, dport=80, flags="A") / Raw(b"x" * 100),
        client / TCP(sport=4000, dport=80, flags="FA"),
        client / TCP(sport=4000, dport=80, flags="R"),
        client / TCP(sport=4000, dport=81, flags="S", options=[("MSS", 1460), ("WScale", 7)]),
        client / UDP(sport=4000, dport=53) / Raw(b"question"),
        client / UDP(sport=4000, dport=9999) / Raw(b"nobody"),
        client / ICMP(id=1, seq=1) / Raw(b"echo"),
        client / ICMP(type=3, code=3) / to_client,
        member / TCP(sport=cast.MEMBER_PORT, dport=32768, flags="SA"),
        member / TCP(sport=cast.MEMBER_PORT, dport=32769, flags="A") / Raw(b"y" * 64),
        udp_member / UDP(sport=cast.UDP_PORT, dport=32768) / Raw(b"answer"),
        member / ICMP(type=3, code=4, nexthopmtu=1400) / quoted,
        member / ICMP(type=11) / quoted,
        cast.from_client(options=[b"\x01\x01\x01\x00"]) / TCP(sport=4001, dport=80, flags="S"),
        *(piece for piece in fragment(client / UDP(sport=4002, dport=53) / Raw(b"z" * 3000), fragsize=1200)),
    ]
    return [bytes(frame) for frame in frames]


def mutated(frame: bytes, rng: random.Random) -> bytearray:
    """The frame with a few bytes set, flipped, cut off, added or moved; its addresses mostly kept."""
    data = bytearray(frame)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        kind = rng.random()
        at = rng.randrange(12, len(data)) if rng.random() < 0.9 else rng.randrange(len(data))
        if kind < 0.4:
            data[at] = rng.choice(BORDERS)
        elif kind < 0.6:
            data[at] ^= 1 << rng.randrange(8)
        elif kind < 0.75:
            del data[max(15, at) :]
        elif kind < 0.85:
            data += bytes(rng.randrange(1, 60))
        elif kind < 0.95 and len(data) > 38:
            data[34:36] = struct.pack("!H", rng.choice((0, 1, 80, 4000, rng.randrange(65536))))
        elif len(data) > 20:
            data[16:18] = struct.pack("!H", rng.choice((0, 19, 20, 27, 28, 40, len(data) - 14, len(data), 65535)))
        if len(data) < 15:
            data += bytes(15 - len(data))
    return data


def is_sound(datagram: bytes, header: int) -> bool:
    """Whether the transport's own lengths fit into the datagram; of fragments, what can be told."""
    fragment_bits = struct.unpack_from("!H", datagram, 6)[0] & 0x3FFF
    if fragment_bits & 0x1FFF:
        return True
    room = len(datagram) - header
    if datagram[9] == TCP_NUMBER:
        return room >= 20 and 20 <= (datagram[header + 12] >> 4) * 4 <= room
    if datagram[9] == UDP_NUMBER:
        said = struct.unpack_from("!H", datagram, header + 4)[0] if room >= 8 else 0
        return said >= 8 and (said <= room or bool(fragment_bits))
    return room >= 8


class Judge:
    """Says what is wrong with what the program did to a frame; an empty text is right."""

    def __init__(self, dataplane: Dataplane) -> None:
        self.dataplane = dataplane
        self.connections = {
            key: dataplane.maps.of_endpoint("conntrack", dataplane.endpoint(member, key[1], kind))
            for key, (kind, member) in MEMBERS.items()
        }

    def verdict(self, came: bytes, action: int, left: bytes) -> str:
        if action == DROP:
            return ""
        is_ip = len(came) >= 34 and came[12:14] == b"\x08\x00"
        source, destination = came[26:30], came[30:34]
        ours = is_ip and (destination in VIPS or destination in SNATS)
        if action == PASS:
            if ours and came[23] != ICMP_NUMBER:
                return "handed to the kernel"
            return "" if left == came else "changed and handed to the kernel"
        if action not in (TX, REDIRECT) or not ours:
            return "sent on though it is not ours"
        length, header = struct.unpack_from("!H", left, 16)[0], (left[14] & 15) * 4
        if left[14] >> 4 != 4 or header < 20 or length < header or len(left) < 14 + length:
            return "left with lengths that lie"
        if left[30:34] == source and left[26:30] == destination:
            return self.answered(came, left, length)
        if len(left) != len(came) or left[16:18] != came[16:18]:
            return "left longer or shorter than it came"
        if left[22] != came[22] - 1:
            return "its TTL is not one less"
        if not is_sound(left[14 : 14 + length], header):
            return "left with a transport header that lies"
        if came[23] == ICMP_NUMBER:
            return "" if left[34 - 20 + header] in (3, 11, 12) else "ICMP that is no error was sent on"
        return self.to_member(left, header) if destination in VIPS else self.to_client(came, left, header)

    def answered(self, came: bytes, left: bytes, length: int) -> str:
        if left[23] == TCP_NUMBER:
            return "" if came[23] == TCP_NUMBER and left[47] & 4 and length == 40 else "answered by TCP, but no RST"
        return "" if left[23] == ICMP_NUMBER and left[34] in (3, 11) else "answered by what is no ICMP error"

    def to_member(self, left: bytes, header: int) -> str:
        if left[26:30] not in SNATS:
            return "on to a member from no SNAT address"
        if struct.unpack_from("!H", left, 20)[0] & 0x1FFF:  # a later fragment: it has no ports
            return "" if left[30:34] in {key[0] for key in MEMBERS} else "a fragment to no member"
        sport, dport = struct.unpack_from("!2H", left, 14 + header)
        entry = self.connection((left[30:34], dport, left[23]), left[26:30], sport)
        return "" if entry else "on to a member, but no connection of his has this slot"

    def to_client(self, came: bytes, left: bytes, header: int) -> str:
        if struct.unpack_from("!H", came, 20)[0] & 0x1FFF:
            return "" if left[26:30] in VIPS else "a fragment from no VIP"
        sport, dport = struct.unpack_from("!2H", came, 14 + header)
        entry = self.connection((came[26:30], sport, came[23]), came[30:34], dport)
        if entry is None:
            return "on to a client, but no connection has this slot"
        ends = (entry.vip, entry.client, entry.vip_port, entry.client_port)
        return (
            ""
            if ends == struct.unpack_from("=2I", left, 26) + struct.unpack_from("=2H", left, 14 + header)
            else ("on to somebody else than the connection's client")
        )

    def connection(self, member: tuple[bytes, int, int], snat: bytes, port: int):
        table = self.connections.get(member)
        slot = (port - 32768) * len(SNATS) + SNATS.index(snat)
        if table is None or not 0 <= slot < len(table) or not table[slot].state & 0xFF:
            return None
        return table[slot]


def test_nothing_leaves_that_the_rules_do_not_explain(dataplane: Dataplane) -> None:
    rng = random.Random(SEED)
    corpus = seeds()
    judge = Judge(dataplane)
    actions = [0] * 5
    for number in range(FRAMES):
        came = bytes(mutated(rng.choice(corpus), rng))
        action, left, _ = syscall.run(dataplane.program.entry, came)
        actions[action] += 1
        wrong = judge.verdict(came, action, left)
        assert not wrong, f"frame {number}: {wrong}\ncame {came.hex()}\nleft {left.hex()}"
        if number % 5000 == 4999:
            dataplane.tables.wait()
            assert audit(dataplane.maps) == []
            for endpoint in dataplane.entries.endpoints:  # so that there is room to open again
                dataplane.tables.sweep(endpoint, SweepMode.ENDPOINT)
    assert all(actions[1:]), f"too tame: drop, pass, answer, forward were {actions[1:]}"
