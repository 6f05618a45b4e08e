"""Who plays in the packet tests: addresses by role, the configuration they play in, and the packets they send."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

CLIENT = "203.0.113.7"
OTHER_CLIENT = "203.0.113.8"
VIP = "10.0.0.100"
SECOND_VIP = "10.0.0.110"
SNATS = ("10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104")
SNAT = SNATS[0]
MEMBER = "10.0.0.11"
UDP_MEMBER = "192.168.50.10"
MEMBER_PORT = 8080
UDP_PORT = 5353

CLIENT_MAC = "02:00:00:00:00:07"
GATEWAY_CLIENT_MAC = "02:00:00:00:01:00"
GATEWAY_MEMBER_MAC = "02:00:00:00:02:00"

CLIENT_INTERFACE = 1  # where BPF_PROG_TEST_RUN's packets come in: lo
MEMBER_INTERFACE = 2
MTU = 1500


def mac_of(address: IPv4Address) -> bytes:
    """The MAC of a next hop: its address behind a fixed prefix."""
    return b"\x02\x11" + address.packed


NETWORKS = """
[gateway]
interfaces = ["eth0", "eth1"]
snat_addresses = ["10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104"]

[networks.vpc]
kind = "local"
cidrs = ["10.0.0.0/24"]

[networks.peered]
kind = "peering"
cidrs = ["172.16.0.0/16"]
next_hop = "10.0.0.2"

[networks.onprem]
kind = "vpn"
cidrs = ["192.168.50.0/24"]
next_hop = "10.0.0.3"

[load_balancers.shop]
vip = "10.0.0.100"
ip_target_enable = true

[load_balancers.second]
vip = "10.0.0.110"
ip_target_enable = true
"""

CONFIGURATION = (
    NETWORKS
    + """
[listeners.web]
load_balancer = "shop"
protocol = "TCP"
port = 80
pool = "web"

[listeners.web-too]
load_balancer = "second"
protocol = "TCP"
port = 80
pool = "web"

[listeners.dns]
load_balancer = "shop"
protocol = "UDP"
port = 53
pool = "dns"

[listeners.nobody]
load_balancer = "shop"
protocol = "TCP"
port = 81
pool = "empty"

[pools.web]
protocol = "TCP"
members = [{ address = "10.0.0.11", port = 8080, max_connections = 50 }]

[pools.dns]
protocol = "UDP"
members = [{ address = "192.168.50.10", port = 5353, max_connections = 50 }]

[pools.empty]
protocol = "TCP"
"""
)


def pool_of(*members: str) -> str:
    """A configuration with one TCP listener, VIP port 80; each member is written as TOML, address and all."""
    return (
        NETWORKS
        + f"""
[listeners.web]
load_balancer = "shop"
protocol = "TCP"
port = 80
pool = "web"

[pools.web]
protocol = "TCP"
members = [{", ".join(f"{{ {member} }}" for member in members)}]
"""
    )


def all_half_open(configuration: str) -> str:
    """With a budget of handshakes as large as the ceiling: for floods of SYNs that are about something else."""
    return configuration.replace("[gateway]", "[gateway]\nhalf_open_percent = 100")


def from_client(client: str = CLIENT, vip: str = VIP, **fields: Any) -> Packet:
    """A client's packet as it reaches the gateway, up to its IP header; `fields` are of IP."""
    return Ether(src=CLIENT_MAC, dst=GATEWAY_CLIENT_MAC) / IP(src=client, dst=vip, **fields)


def to_client(client: str = CLIENT, vip: str = VIP, **fields: Any) -> Packet:
    """A packet from the VIP as it leaves towards the client."""
    return Ether(src=GATEWAY_CLIENT_MAC, dst=CLIENT_MAC) / IP(src=vip, dst=client, **fields)


def from_member(member: str = MEMBER, snat: str = SNAT, **fields: Any) -> Packet:
    """A member's packet as it reaches the gateway."""
    return Ether(src=mac_of(IPv4Address(member)).hex(":"), dst=GATEWAY_MEMBER_MAC) / IP(src=member, dst=snat, **fields)


def built(packet: Packet) -> Packet:
    """With every field filled in, as it is on the wire."""
    return Ether(bytes(packet))


def icmp(kind: int, code: int, quoted: bytes, rest: bytes = bytes(4)) -> Raw:
    """An ICMP error about the datagram quoted; `rest` is what lies between: an MTU, a pointer, a length."""
    after = rest + quoted
    return Raw(bytes([kind, code]) + checksum(bytes([kind, code, 0, 0]) + after).to_bytes(2, "big") + after)


def answer(sent: Packet, kind: int, code: int, rest: bytes = bytes(4)) -> Packet:
    """The gateway's own ICMP error to whoever sent this, as the address it was sent to."""
    sent = built(sent)
    quoted = bytes(sent[IP])[: min(sent[IP].len & ~1, 548)]  # whole words, 576 bytes with both headers
    tos = 0xC0 | sent[IP].tos & 0x1E
    ip = IP(src=sent[IP].dst, dst=sent[IP].src, tos=tos, id=0, flags="DF", proto=1)
    return Ether(src=sent.dst, dst=sent.src) / ip / icmp(kind, code, quoted, rest)


FROM_CLIENT = from_client()
SYN = FROM_CLIENT / TCP(sport=40000, dport=80, flags="S")
QUERY = FROM_CLIENT / UDP(sport=40000, dport=53) / b"who?"


@dataclass(frozen=True)
class Flow:
    """One connection as both its ends see it, to build the packets of."""

    kind: type[TCP] | type[UDP]
    client: str
    client_port: int
    vip: str
    vip_port: int
    snat: str
    snat_port: int
    member: str
    member_port: int

    @classmethod
    def of(cls, sent: Packet, left: Packet) -> Flow:
        """The connection of which a client sent a packet that left as this one."""
        kind = TCP if TCP in sent else UDP
        return cls(
            kind,
            sent[IP].src,
            sent[kind].sport,
            sent[IP].dst,
            sent[kind].dport,
            left[IP].src,
            left[kind].sport,
            left[IP].dst,
            left[kind].dport,
        )

    def request(self, ip: dict[str, Any] | None = None, **fields: Any) -> Packet:
        """What the client sends; `fields` are of TCP or UDP."""
        return from_client(self.client, self.vip, **(ip or {})) / self.kind(
            sport=self.client_port, dport=self.vip_port, **fields
        )

    def requested(self, ip: dict[str, Any] | None = None, **fields: Any) -> Packet:
        """What the member gets of it, over a next hop on the link: one hop older."""
        mac = mac_of(IPv4Address({UDP_MEMBER: "10.0.0.3"}.get(self.member, self.member))).hex(":")
        return (
            Ether(src=GATEWAY_MEMBER_MAC, dst=mac)
            / IP(src=self.snat, dst=self.member, **({"ttl": 63} | (ip or {})))
            / self.kind(sport=self.snat_port, dport=self.member_port, **fields)
        )

    def reply(self, ip: dict[str, Any] | None = None, **fields: Any) -> Packet:
        """What the member sends."""
        return from_member(self.member, self.snat, **(ip or {})) / self.kind(
            sport=self.member_port, dport=self.snat_port, **fields
        )

    def replied(self, ip: dict[str, Any] | None = None, **fields: Any) -> Packet:
        """What the client gets of it."""
        return to_client(self.client, self.vip, **({"ttl": 63} | (ip or {}))) / self.kind(
            sport=self.vip_port, dport=self.client_port, **fields
        )
