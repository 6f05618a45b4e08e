"""Probes are frames that any stack takes as it should: checksums by scapy, numbers far outside the windows."""

from dataclasses import replace
from ipaddress import IPv4Address
from types import SimpleNamespace

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Dot1Q, Ether

from ipbackend.model import EndpointKey, Protocol
from ipbackend.plan import Endpoint, NextHop
from ipbackend.probe import SYN, tcp_frame, to_client, to_member

SNATS = tuple(IPv4Address(f"10.0.0.10{number}") for number in (1, 2, 3, 4))
ENDPOINT = Endpoint(EndpointKey(IPv4Address("192.168.50.10"), 8080, Protocol.TCP), 1, 64, 128, SNATS, 50, 50)
HOP = NextHop(7, IPv4Address("10.0.0.3"), b"\x02" * 6, b"\x04" * 6, 1500, True)


def test_both_ends_are_asked() -> None:
    connection = SimpleNamespace(
        client=int.from_bytes(IPv4Address("203.0.113.7").packed, "little"),
        vip=int.from_bytes(IPv4Address("10.0.0.100").packed, "little"),
        client_port=int.from_bytes((40000).to_bytes(2, "big"), "little"),
        vip_port=int.from_bytes((80).to_bytes(2, "big"), "little"),
        client_interface=3,
        client_mac=[6] * 6,
        gateway_mac=[8] * 6,
        client_sequence=5,
        member_sequence=0xFFFF_FFF0,
        client_vlan=0,
    )
    client, member = to_client(connection), to_member(connection, 6, ENDPOINT, HOP)
    connection.client_vlan = 7
    both = (to_client(connection), to_member(connection, 6, ENDPOINT, replace(HOP, vlan=9)))
    tagged = [Ether(probe.frame) for probe in both]

    assert [probe[Dot1Q].vlan for probe in tagged] == [7, 9]
    assert [bytes(probe[IP]) for probe in tagged] == [client.frame[14:], member.frame[14:]]
    assert (client.interface, member.interface) == (3, 7)
    expected = (
        Ether(src="08:08:08:08:08:08", dst="06:06:06:06:06:06")
        / IP(src="10.0.0.100", dst="203.0.113.7", id=0, flags="DF")
        / TCP(sport=80, dport=40000, seq=0xBFFF_FFF0, ack=5, flags="A", window=0)
    )
    assert client.frame == bytes(expected)
    expected = (
        Ether(src="04:04:04:04:04:04", dst="02:02:02:02:02:02")
        / IP(src="10.0.0.103", dst="192.168.50.10", id=0, flags="DF")
        / TCP(sport=32769, dport=8080, seq=0xC000_0005, ack=0xFFFF_FFF0, flags="A", window=0)
    )
    assert member.frame == bytes(expected)


def test_a_segment_has_its_options_and_an_odd_payload() -> None:
    link, ports = b"\x02" * 6 + b"\x04" * 6, (40000).to_bytes(2, "big") + (1).to_bytes(2, "big")
    source, destination = IPv4Address("192.0.2.1").packed, IPv4Address("192.0.2.2").packed

    frame = tcp_frame(link, source, destination, ports, -5, 0, SYN, b"\x02\x04\x05\xb4", b"odd")

    assert frame == bytes(
        Ether(src="04:04:04:04:04:04", dst="02:02:02:02:02:02")
        / IP(src="192.0.2.1", dst="192.0.2.2", id=0, flags="DF")
        / TCP(sport=40000, dport=1, seq=0xFFFF_FFFB, ack=0, flags="S", window=0, options=[("MSS", 1460)])
        / b"odd"
    )
