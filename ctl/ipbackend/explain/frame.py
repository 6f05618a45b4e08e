"""A frame taken apart, in the steps and the order of bpf/parse.h; and one made of what a person says of a packet.

No I/O: it knows neither maps nor what becomes of the packet.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from socket import IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP
from typing import NamedTuple

from ipbackend.abi import Verdict
from ipbackend.probe import checksum

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
FLAGS = {"F": FIN, "S": SYN, "R": RST, "A": ACK}
ETHERNET, TAG, IP_HEADER, TCP_HEADER, UDP_HEADER, ICMP_HEADER = 14, 4, 20, 20, 8, 8
PROTOCOLS = {IPPROTO_TCP: "TCP", IPPROTO_UDP: "UDP", IPPROTO_ICMP: "ICMP"}
UNREACHABLE, ECHO, TIME_EXCEEDED, PARAMETER_PROBLEM = 3, 8, 11, 12
ERRORS = (UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM)
_IPV4, _VLAN = 0x0800, 0x8100
_DONT_FRAGMENT, _MORE_FRAGMENTS, _OFFSET = 0x4000, 0x2000, 0x1FFF
_END, _NOOP, _LSRR, _SSRR = 0, 1, 131, 137  # IP options
_VLAN_ID = 0x0FFF
CHECKED = 576  # bytes of an ICMP message whose checksum is looked at
_MACS = b"\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01"


class Ending(NamedTuple):
    """Where a packet's journey ends, and why."""

    verdict: Verdict
    why: str


class Tuple(NamedTuple):
    """What tells a connection from others, on the client's side; `protocol` is IP's number."""

    client: IPv4Address
    client_port: int
    vip: IPv4Address
    vip_port: int
    protocol: int


@dataclass
class Packet:
    """An IPv4 datagram in its frame. Ports, flags and `header` (bytes of the transport's) are 0 until they are read."""

    link_header: int  # bytes before the IP header
    vlan: int  # its tag's id, or 0
    to_all: bool  # the frame is a broadcast or multicast
    data: bytes  # from the IP header on, to the end of the frame
    source: IPv4Address
    destination: IPv4Address
    protocol: int
    length: int  # as the IP header says
    ttl: int
    id: int
    sport: int = 0
    dport: int = 0
    flags: int = 0
    header: int = 0

    @property
    def ip_header(self) -> int:
        """Bytes of it, options included."""
        return (self.data[0] & 0xF) * 4

    @property
    def _fragmentation(self) -> int:
        return int.from_bytes(self.data[6:8], "big")

    @property
    def dont_fragment(self) -> bool:
        """Whether its sender forbids that."""
        return bool(self._fragmentation & _DONT_FRAGMENT)

    @property
    def offset(self) -> int:
        """Bytes of its datagram before it: not 0 for a later fragment."""
        return (self._fragmentation & _OFFSET) * 8

    @property
    def more(self) -> bool:
        """Whether fragments follow."""
        return bool(self._fragmentation & _MORE_FRAGMENTS)

    @property
    def is_tcp(self) -> bool:
        """By its protocol."""
        return self.protocol == IPPROTO_TCP

    @property
    def opens(self) -> bool:
        """Whether it may open a connection: UDP, or a SYN alone."""
        return not self.is_tcp or self.flags == SYN

    @property
    def tuple(self) -> Tuple:
        """Of a client's packet."""
        return Tuple(self.source, self.sport, self.destination, self.dport, self.protocol)

    def __str__(self) -> str:
        ends = f"{self.source} → {self.destination}"
        if self.header and self.protocol != IPPROTO_ICMP:
            ends = f"{self.source}:{self.sport} → {self.destination}:{self.dport}"
        flags = "".join(letter for letter, bit in FLAGS.items() if self.flags & bit)
        parts = [f"{PROTOCOLS.get(self.protocol, f'protocol {self.protocol}')} {ends}"]
        parts += [f"flags {flags or 'none'}"] if self.is_tcp and self.header else []
        parts += [f"{self.length} bytes of IP", f"TTL {self.ttl}"]
        parts += ["not to be fragmented"] if self.dont_fragment else []
        parts += ["a fragment"] if self.offset or self.more else []
        parts += [f"VLAN {self.vlan}"] if self.vlan else []
        return ", ".join(parts)


def parse_ip(frame: bytes) -> Packet | Ending:
    """Up to the IPv4 header's fixed part, with one 802.1Q tag or without."""
    kind, within = (int.from_bytes(frame[at : at + 2], "big") for at in (12, 16))
    tagged = kind == _VLAN and within == _IPV4
    start = ETHERNET + (TAG if tagged else 0)
    if (kind != _IPV4 and not tagged) or len(frame) < start + IP_HEADER:
        return Ending(Verdict.PASS_NOT_OURS, "it is no IPv4")
    data = frame[start:]
    return Packet(
        start,
        int.from_bytes(frame[14:16], "big") & _VLAN_ID if tagged else 0,
        bool(frame[0] & 1),
        data,
        IPv4Address(data[12:16]),
        IPv4Address(data[16:20]),
        data[9],
        int.from_bytes(data[2:4], "big"),
        data[8],
        int.from_bytes(data[4:6], "big"),
    )


def parse_lengths(packet: Packet) -> Ending | None:
    """Whether the frame, the header and the datagram are as long as they say."""
    if packet.to_all:
        return _malformed("its frame is a broadcast or multicast around a datagram for one host")
    if packet.data[0] >> 4 != 4 or packet.ip_header < IP_HEADER or packet.length < packet.ip_header:
        return _malformed("its IP header's version or lengths are impossible")
    if packet.length > len(packet.data):
        return _malformed(f"its IP header says {packet.length} bytes, its frame holds {len(packet.data)}")
    return None


def parse_transport(packet: Packet) -> Ending | None:
    """A whole TCP or UDP header whose own lengths agree with the datagram's."""
    at, room = packet.ip_header, packet.length - packet.ip_header
    if packet.is_tcp:
        if room < TCP_HEADER:
            return _malformed(f"{room} bytes hold no TCP header")
        header = (packet.data[at + 12] >> 4) * 4
        if not TCP_HEADER <= header <= room:
            return _malformed(f"its TCP header says that it has {header} bytes, of {room}")
        packet.flags = packet.data[at + 13] & (FIN | SYN | RST | ACK)
    else:
        header = UDP_HEADER
        if room < header:
            return _malformed(f"{room} bytes hold no UDP header")
        said = int.from_bytes(packet.data[at + 4 : at + 6], "big")
        if said < header or (said > room and not packet.more):
            return _malformed(f"its UDP header says {said} bytes, and there are {room}")
    packet.header = header
    packet.sport, packet.dport = struct.unpack_from("!HH", packet.data, at)
    return None


def parse_options(packet: Packet) -> Ending | None:
    """Each IP option is whole, and none is a source route."""
    at = IP_HEADER
    while at < packet.ip_header:
        kind, size = packet.data[at], packet.data[at + 1] if at + 1 < len(packet.data) else 0
        if at + 2 > len(packet.data):
            return _malformed("its IP options end beyond the frame")
        if kind == _END:
            return None
        if kind in (_LSRR, _SSRR):
            return Ending(Verdict.DROP_SOURCE_ROUTE, "its IP options have a source route")
        if kind != _NOOP and size < 2:
            return _malformed(f"an IP option says that it has {size} bytes")
        at += 1 if kind == _NOOP else size
    return _malformed("its IP options end beyond its header") if at > packet.ip_header else None


def parse_icmp(packet: Packet) -> Ending | None:
    """Whether it is an ICMP error: anything else ends here."""
    if packet.offset:
        return Ending(Verdict.PASS_ECHO, "a later fragment of ICMP: an error is never that long")
    at, room = packet.ip_header, min(packet.length, len(packet.data)) - packet.ip_header
    if room < ICMP_HEADER:
        return _malformed(f"{room} bytes hold no ICMP header")
    kind = packet.data[at]
    if kind == ECHO:
        return Ending(Verdict.PASS_ECHO, "an echo request: the kernel answers")
    if kind not in ERRORS or packet.more:
        return Ending(Verdict.DROP_ICMP, f"ICMP type {kind} is neither an echo request nor an error")
    packet.header = ICMP_HEADER
    return None


def quoted(packet: Packet) -> Packet | None:
    """The datagram that an ICMP error quotes, with its ports; None where it quotes nothing that could be ours."""
    start = packet.ip_header + ICMP_HEADER
    data = packet.data[start : packet.length]
    if len(data) < IP_HEADER:
        return None
    inner = parse_ip(bytes(12) + _IPV4.to_bytes(2, "big") + data)
    assert isinstance(inner, Packet)
    at = inner.ip_header
    if data[0] >> 4 != 4 or at < IP_HEADER or inner.offset or len(data) < at + UDP_HEADER:
        return None
    if inner.protocol not in (IPPROTO_TCP, IPPROTO_UDP):
        return None
    inner.sport, inner.dport = struct.unpack_from("!HH", data, at)
    inner.header = UDP_HEADER
    return inner


def is_intact(packet: Packet, inner: Packet) -> bool:
    """Whether an ICMP error's own checksum, and that of the IP header it quotes, are right."""
    message = packet.data[packet.ip_header : packet.length]
    ours = len(message) > CHECKED or checksum(message) == bytes(2)
    return ours and checksum(inner.data[: inner.ip_header]) == bytes(2)


def build(packet: Tuple, flags: int, size: int, ttl: int = 64, dont_fragment: bool = False) -> bytes:
    """A frame with one datagram of `size` bytes of IP, from the tuple's client to its VIP; `size` holds the headers."""
    ports = struct.pack("!HH", packet.client_port, packet.vip_port)
    if packet.protocol == IPPROTO_TCP:
        transport = ports + struct.pack("!IIBBHHH", 0, 0, TCP_HEADER // 4 << 4, flags, 0, 0, 0)
    else:
        transport = ports + struct.pack("!HH", size - IP_HEADER, 0)
    return _framed(packet.client, packet.vip, packet.protocol, transport, size, ttl, dont_fragment)


def build_error(router: IPv4Address, about: bytes, ttl: int = 64) -> bytes:
    """A frame with the ICMP error "host unreachable" of a router about the datagram of another frame."""
    quote = about[ETHERNET:][: IP_HEADER + UDP_HEADER]
    message = bytes([UNREACHABLE, 1, 0, 0, 0, 0, 0, 0]) + quote
    message = message[:2] + checksum(message) + message[4:]
    size = IP_HEADER + len(message)
    return _framed(router, IPv4Address(quote[12:16]), IPPROTO_ICMP, message, size, ttl, False)


def _framed(
    source: IPv4Address, destination: IPv4Address, protocol: int, payload: bytes, size: int, ttl: int, whole: bool
) -> bytes:
    flags = _DONT_FRAGMENT if whole else 0
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 0, flags, ttl, protocol, 0, source.packed, destination.packed)
    ip = ip[:10] + checksum(ip) + ip[12:]
    return _MACS + _IPV4.to_bytes(2, "big") + ip + payload + bytes(size - len(ip) - len(payload))


def _malformed(why: str) -> Ending:
    return Ending(Verdict.DROP_MALFORMED, why)
