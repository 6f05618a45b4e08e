"""Who plays in the packet tests: addresses by role, and the packets they usually send."""

from ipaddress import IPv4Address

from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

CLIENT = "203.0.113.7"
OTHER_CLIENT = "203.0.113.8"
VIP = "10.0.0.100"
SECOND_VIP = "10.0.0.110"
SNAT = "10.0.0.101"
SNATS = ("10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104")
MEMBER = "10.0.0.11"
OTHER_MEMBER = "172.16.10.10"
UDP_MEMBER = "192.168.50.10"
MEMBER_PORT = 8080
UDP_PORT = 5353

CLIENT_MAC = "02:00:00:00:00:07"
GATEWAY_CLIENT_MAC = "02:00:00:00:01:00"
GATEWAY_MEMBER_MAC = "02:00:00:00:02:00"


def mac_of(address: IPv4Address) -> bytes:
    """The MAC of a next hop: its address behind a fixed prefix."""
    return b"\x02\x11" + address.packed


CONFIGURATION = """
[gateway]
interfaces = ["eth0", "eth1"]
snat_addresses = ["10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104"]

[networks.vpc]
kind = "local"
cidrs = ["10.0.0.0/24"]

[networks.peered]
kind = "peering"
cidrs = ["172.16.10.0/24"]
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
members = []
"""

FROM_CLIENT = Ether(src=CLIENT_MAC, dst=GATEWAY_CLIENT_MAC) / IP(src=CLIENT, dst=VIP)
TO_CLIENT = Ether(src=GATEWAY_CLIENT_MAC, dst=CLIENT_MAC) / IP(src=VIP, dst=CLIENT)


def from_member(address: str = MEMBER, snat: str = SNAT) -> Packet:
    """A member's packet as it reaches the gateway."""
    mac = mac_of(IPv4Address(address)).hex(":")
    return Ether(src=mac, dst=GATEWAY_MEMBER_MAC) / IP(src=address, dst=snat)


def to_member(address: str = MEMBER, snat: str = SNAT, via: str | None = None) -> Packet:
    """The same way out; the TTL is one less than a sender's."""
    mac = mac_of(IPv4Address(via or address)).hex(":")
    return Ether(src=GATEWAY_MEMBER_MAC, dst=mac) / IP(src=snat, dst=address, ttl=63)
