"""Frames that make both ends of an expired connection speak, so that the data plane can tell them. It sends nothing.

A sweep cannot send, and does not know the ends' exact sequence numbers. An end answers an acknowledgement from
far outside its window with its own (RFC 9293, 3.10.7.4), and the data plane answers that with a RST that has
exactly the number the end expects (RFC 5961).
"""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from ipbackend.abi import Phase
from ipbackend.datapath.maps import Memory
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


def expired(connections: Memory, since: int) -> list[int]:
    """Slots of the connections that expired at tick `since` or later."""
    states = bytes(connections.column("state"))
    slots, at = [], states.find(Phase.EXPIRED)
    while at >= 0:
        if (connections[at].last_seen - since) & 0xFFFF_FFFF < 1 << 31:
            slots.append(at)
        at = states.find(Phase.EXPIRED, at + 1)
    return slots


def probes(connection: Any, slot: int, endpoint: Endpoint, next_hop: NextHop) -> Iterator[Probe]:
    """One frame to the client and one to the member; `connection` is its entry of conntrack."""
    client, member = connection.client.to_bytes(4, "little"), endpoint.key.address.packed
    vip = connection.vip.to_bytes(4, "little")
    ports = connection.vip_port.to_bytes(2, "little") + connection.client_port.to_bytes(2, "little")
    link = bytes(connection.client_mac) + bytes(connection.gateway_mac) + _tag(connection.client_vlan)
    yield Probe(
        connection.client_interface,
        tcp_frame(link, vip, client, ports, connection.member_sequence - _FAR, connection.client_sequence),
    )
    snat, port = endpoint.snat[slot % len(endpoint.snat)], FIRST_SNAT_PORT + slot // len(endpoint.snat)
    ports = struct.pack("!2H", port, endpoint.key.port)
    link = next_hop.destination + next_hop.source + _tag(next_hop.vlan)
    yield Probe(
        next_hop.interface,
        tcp_frame(link, snat.packed, member, ports, connection.client_sequence - _FAR, connection.member_sequence),
    )


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
