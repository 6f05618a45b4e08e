"""Path MTU discovery, traceroute and closed ports through the real gateway, with the kernels' own ICMP."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet

from tests.netns.clients import RawPort, UdpClient, connect
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import CLIENT, MEMBER_UDP_PORT, MEMBERS, ROUTES, SHOP_VIP, SNATS, VPC, Lab
from tests.netns.test_gateway import MEGABYTE, RESOLVER, WEB, frame_to_vip, only, verdicts, wait_until

pytestmark = pytest.mark.root

NARROW = 1400
MSS = 1460  # what 1,500 bytes hold
CLOSED_PORT = 5399
FRAGMENTATION_NEEDED, PORT_UNREACHABLE, TIME_EXCEEDED = (3, 4), (3, 3), (11, 0)
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2  # linux/in.h; in the socket module from Python 3.13 on
ON_PREMISES = only("member-onprem").replace('    { address = "10.0.0.11", port = 5353, max_connections = 1000 },\n', "")


def is_error(packet: Packet, kind: tuple[int, int]) -> bool:
    return ICMP in packet and (packet[ICMP].type, packet[ICMP].code) == kind


def forget_path_mtus(lab: Lab) -> None:
    for namespace in lab.namespaces.values():
        with namespace:
            Path("/proc/sys/net/ipv4/route/flush").write_text("1")


@contextmanager
def narrowed(lab: Lab, *ends: tuple[str, str]) -> Iterator[None]:
    """Interfaces, by role and name, that take 1,400 bytes for a while; what anybody learned of it is forgotten."""

    def set_all(mtu: int) -> None:
        for role, interface in ends:
            with lab[role].netlink() as netlink:
                netlink.link("set", index=netlink.link_lookup(ifname=interface)[0], mtu=mtu)

    forget_path_mtus(lab)
    set_all(NARROW)
    try:
        yield
    finally:
        set_all(1500)
        forget_path_mtus(lab)


@contextmanager
def claiming(lab: Lab, role: str) -> Iterator[None]:
    """A host that tells its peers a segment size that its own link cannot carry: only ICMP saves them."""
    gateway = next(next_hop for whose, _, next_hop in ROUTES if whose == role)
    with lab[role].netlink() as netlink:
        netlink.route("replace", dst=VPC, gateway=gateway, metrics={"advmss": MSS})
        try:
            yield
        finally:
            netlink.route("replace", dst=VPC, gateway=gateway)


def transfer(lab: Lab) -> None:
    with connect(lab["client"], None, WEB, timeout=20) as connection:
        connection.upload(5 * MEGABYTE)
        connection.download(5 * MEGABYTE)


def test_a_narrow_link_on_the_member_s_side(gateway: Gateway, lab: Lab) -> None:
    """Its router tells the SNAT address of it; the client hears it from the VIP, about its own segment."""
    gateway.apply(ON_PREMISES)
    with narrowed(lab, ("router-onprem", "eth1"), ("member-onprem", "eth0")), claiming(lab, "member-onprem"):
        before = verdicts(gateway)
        with RawPort(lab["client"], "eth0") as wire:
            with connect(lab["client"], None, WEB, timeout=20) as connection:
                connection.upload(5 * MEGABYTE)
                port = connection.local[1]
            greeting = wire.expect(lambda packet: TCP in packet and packet[TCP].flags == "SA")
            told = wire.expect(lambda packet: is_error(packet, FRAGMENTATION_NEEDED))
        transfer(lab)
        counted = verdicts(gateway) - before

    assert ("MSS", MSS) in greeting[TCP].options
    assert (told[IP].src, told[IP].dst, told[ICMP].nexthopmtu) == (SHOP_VIP, CLIENT, NARROW)
    about = told[ICMP].payload
    assert (about.src, about.dst, about.payload.sport, about.payload.dport) == (CLIENT, SHOP_VIP, port, 80)
    assert counted["FORWARD_ICMP_ERROR"] >= 1
    assert counted["REJECT_TOO_BIG"] == 0


def test_a_datagram_s_sender_learns_the_path_mtu(gateway: Gateway, lab: Lab) -> None:
    """As tracepath does: one datagram as long as the link takes, and the socket knows."""
    gateway.apply(ON_PREMISES)
    with (
        narrowed(lab, ("router-onprem", "eth1"), ("member-onprem", "eth0")),
        UdpClient(lab["client"], None, RESOLVER) as client,
    ):
        client.socket.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        with pytest.raises(OSError, match="too long") as told:
            client.ask(bytes(1500 - 28))
        assert told.value.errno == errno.EMSGSIZE
        with pytest.raises(OSError, match="too long"):  # by its own kernel, which knows now
            client.ask(bytes(NARROW - 28 + 1))
        assert client.ask(bytes(1000)).member == "member-onprem"


def test_the_gateway_s_own_narrow_link_to_the_members(gateway: Gateway, lab: Lab) -> None:
    """The gateway itself tells the client, as the VIP; the other way it is the router that tells the member."""
    gateway.apply(ON_PREMISES)
    with narrowed(lab, ("gateway", "eth1"), ("router-onprem", "eth0")):
        wait_until(lambda: {row["mtu"] for row in gateway.json("network", "list")} >= {NARROW})
        before = verdicts(gateway)
        with RawPort(lab["client"], "eth0") as wire:
            with connect(lab["client"], None, WEB, timeout=20) as connection:
                connection.upload(5 * MEGABYTE)
            told = wire.expect(lambda packet: is_error(packet, FRAGMENTATION_NEEDED))
        transfer(lab)
        counted = verdicts(gateway) - before

    assert (told[IP].src, told[IP].dst, told[ICMP].nexthopmtu) == (SHOP_VIP, CLIENT, NARROW)
    assert counted["REJECT_TOO_BIG"] >= 1
    wait_until(lambda: NARROW not in {row["mtu"] for row in gateway.json("network", "list")})


@pytest.mark.parametrize("member", ["member-1", "member-onprem"])
def test_the_gateway_s_own_narrow_link_to_the_clients(gateway: Gateway, lab: Lab, member: str) -> None:
    """A member hears of it from the SNAT address that it talks to."""
    gateway.apply(only(member))
    said = len(gateway.log())
    with narrowed(lab, ("gateway", "eth0"), ("client", "eth0")), claiming(lab, "client"):
        wait_until(lambda: "links" in gateway.log()[said:])
        before = verdicts(gateway)
        with RawPort(lab[member], "eth0") as wire:
            with connect(lab["client"], None, WEB, timeout=20) as connection:
                connection.download(5 * MEGABYTE)
            greeting = wire.expect(lambda packet: TCP in packet and packet[TCP].flags == "S")
            told = wire.expect(lambda packet: is_error(packet, FRAGMENTATION_NEEDED))
        transfer(lab)
        counted = verdicts(gateway) - before
        said = len(gateway.log())
    wait_until(lambda: "links" in gateway.log()[said:])

    assert ("MSS", MSS) in greeting[TCP].options
    assert (told[IP].dst, told[ICMP].nexthopmtu) == (MEMBERS[member], NARROW)
    assert told[IP].src in SNATS
    about = told[ICMP].payload
    assert (about.src, about.dst, about.payload.sport) == (MEMBERS[member], told[IP].src, 8080)
    assert counted["REJECT_TOO_BIG"] >= 1


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_a_traceroute_sees_the_vip_at_every_hop(gateway: Gateway, lab: Lab, kind: type[Packet]) -> None:
    """Hop 1 is the gateway, hop 2 the router on the members' side, hop 3 the member: all say that they are the VIP."""
    gateway.apply(ON_PREMISES)
    before = verdicts(gateway)
    with RawPort(lab["client"], "eth0") as port:
        probes = [frame_to_vip(lab, port) / probe(kind, 41000 + ttl) for ttl in (1, 2, 3)]
        for ttl, sent in enumerate(probes, start=1):
            sent[IP].ttl = ttl
            port.send(bytes(sent))
        hops = [port.expect(lambda packet, sent=sent: is_time_exceeded_about(packet, sent)) for sent in probes[:2]]
        answer = port.expect(lambda packet: kind in packet and packet[kind].dport == 41003)
    counted = verdicts(gateway) - before
    gateway.apply(only("member-1"))  # ends what the probes opened: nothing expires while a later test looks

    for hop, sent in zip(hops, probes, strict=False):
        assert (hop[IP].src, hop[IP].dst) == (SHOP_VIP, CLIENT)
        sent[IP].ttl = 1  # as whoever sent the error got it
        about = bytes(hop[ICMP].payload)
        assert about == bytes(sent[IP])[: len(about)]
        assert len(about) >= 28
    assert (answer[IP].src, answer[IP].dst) == (SHOP_VIP, CLIENT)
    assert (counted["REJECT_TTL"], counted["FORWARD_ICMP_ERROR"] >= 1, counted["FORWARD_OPENED"]) == (1, True, 2)


def probe(kind: type[Packet], port: int) -> Packet:
    return TCP(sport=port, dport=80, flags="S") if kind is TCP else UDP(sport=port, dport=53) / b"probe"


def is_time_exceeded_about(packet: Packet, sent: Packet) -> bool:
    return is_error(packet, TIME_EXCEEDED) and packet[ICMP].payload.payload.sport == sent[IP].payload.sport


@pytest.mark.parametrize("member", ["member-1", "member-onprem"])
def test_a_member_s_closed_port_refuses_the_client(gateway: Gateway, lab: Lab, member: str) -> None:
    closed = f"""
[listeners.closed]
load_balancer = "shop"
protocol = "UDP"
port = {CLOSED_PORT}
pool = "closed"

[pools.closed]
protocol = "UDP"
members = [{{ address = "{MEMBERS[member]}", port = {CLOSED_PORT} }}]
"""
    gateway.apply(CONFIGURATION + closed)
    before = verdicts(gateway)
    with UdpClient(lab["client"], None, (SHOP_VIP, CLOSED_PORT)) as client, pytest.raises(ConnectionRefusedError):
        client.ask(b"anybody?")
    assert (verdicts(gateway) - before)["FORWARD_ICMP_ERROR"] == 1


def test_a_client_s_closed_port_is_told_to_the_member(gateway: Gateway, lab: Lab) -> None:
    """A client that is gone when the answer comes: the member hears it from the SNAT address, about its answer."""
    gateway.apply(ON_PREMISES)
    with RawPort(lab["client"], "eth0") as port, RawPort(lab["member-onprem"], "eth0") as wire:
        port.send(bytes(frame_to_vip(lab, port) / UDP(sport=41234, dport=53) / b"and away"))
        question = wire.expect(lambda packet: UDP in packet and packet[UDP].dport == MEMBER_UDP_PORT)
        told = wire.expect(lambda packet: is_error(packet, PORT_UNREACHABLE))

    assert (told[IP].src, told[IP].dst) == (question[IP].src, MEMBERS["member-onprem"])
    about = told[ICMP].payload
    assert (about.src, about.dst) == (question[IP].dst, question[IP].src)
    assert (about.payload.sport, about.payload.dport) == (question[UDP].dport, question[UDP].sport)


def test_an_error_about_nothing_of_ours_goes_no_further(gateway: Gateway, lab: Lab) -> None:
    with RawPort(lab["client"], "eth0") as port, RawPort(lab["vpc"], "gateway") as wire:
        datagram = bytes(IP(src=SHOP_VIP, dst=CLIENT) / UDP(sport=53, dport=999))
        before = verdicts(gateway)
        port.send(bytes(frame_to_vip(lab, port) / ICMP(type=3, code=3) / datagram))
        wait_until(lambda: (verdicts(gateway) - before)["DROP_ICMP_UNRELATED"] == 1)
        assert [packet for packet in wire.arrived() if ICMP in packet] == []
