"""Frames that make both ends of a connection that has been ended speak, so that the data plane can tell them.

It sends nothing.
A sweep cannot send, and does not know the ends' exact sequence numbers. An end answers an acknowledgement from
far outside its window with its own (RFC 9293, 3.10.7.4), and the data plane answers that with a RST that has
exactly the number the end expects (RFC 5961).
"""

import struct
from typing import Any, NamedTuple

from ipbackend.plan import Endpoint, NextHop
from ipbackend.sizing import FIRST_SNAT_PORT

_FAR = 1 << 30  # outside any window
_WINDOW = 0
SYN, RST, ACK = 0x02, 0x04, 0x10
_TTL = 64


class Probe(NamedTuple):
    """A frame, and the index of the interface that it leaves by."""

    interface: int
    frame: bytes


def to_client(connection: Any) -> Probe:
    """What makes the client speak; `connection` is an entry of conntrack."""
    client, vip = connection.client.to_bytes(4, "little"), connection.vip.to_bytes(4, "little")
    ports = connection.vip_port.to_bytes(2, "little") + connection.client_port.to_bytes(2, "little")
    link = bytes(connection.client_mac) + bytes(connection.gateway_mac) + _tag(connection.client_vlan)
    numbers = (connection.member_sequence - _FAR, connection.client_sequence)
    return Probe(connection.client_interface, tcp_frame(link, vip, client, ports, *numbers))


def to_member(connection: Any, slot: int, endpoint: Endpoint, next_hop: NextHop) -> Probe:
    """What makes the member speak; `slot` is the connection's, of the endpoint."""
    snat, port = endpoint.snat[slot % len(endpoint.snat)], FIRST_SNAT_PORT + slot // len(endpoint.snat)
    ports = struct.pack("!2H", port, endpoint.key.port)
    link = next_hop.destination + next_hop.source + _tag(next_hop.vlan)
    numbers = (connection.client_sequence - _FAR, connection.member_sequence)
    return Probe(next_hop.interface, tcp_frame(link, snat.packed, endpoint.key.address.packed, ports, *numbers))


def _tag(vlan: int) -> bytes:
    return struct.pack("!HH", 0x8100, vlan) if vlan else b""


def tcp_frame(
    link: bytes,
    source: bytes,
    destination: bytes,
    ports: bytes,
    sequence: int,
    acknowledgement: int,
    flags: int = ACK,
    options: bytes = b"",
    payload: bytes = b"",
) -> bytes:
    """An Ethernet frame with one segment, not to be fragmented; `link` are both MACs, `options` whole words."""
    numbers = struct.pack("!2I", sequence & 0xFFFF_FFFF, acknowledgement & 0xFFFF_FFFF)
    offset = 5 + len(options) // 4
    tcp = ports + numbers + struct.pack("!BBHHH", offset << 4, flags, _WINDOW, 0, 0) + options + payload
    check = checksum(source + destination + struct.pack("!2H", 6, len(tcp)) + tcp)
    tcp = tcp[:16] + check + tcp[18:]
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0x4000, _TTL, 6, 0, source, destination)
    return link + b"\x08\x00" + ip[:10] + checksum(ip) + ip[12:] + tcp


def checksum(data: bytes) -> bytes:
    """The Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
