"""What comes from outside and belongs nowhere: nothing of it is forwarded, and each packet ends in one verdict."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from ipbackend.abi import Verdict
from tests.packet.cast import (
    GATEWAY_CLIENT_MAC,
    MEMBER,
    OTHER_CLIENT,
    QUERY,
    SNATS,
    SYN,
    UDP_MEMBER,
    VIP,
    from_client,
    from_member,
)

STAYS = {"PASS", "DROP"}
DATA = from_client() / TCP(sport=40000, dport=80, flags="PA", options=[("Timestamp", (1, 2))]) / b"payload"


@pytest.mark.parametrize(
    "packet",
    [
        from_client(len=19) / TCP(dport=80, flags="S"),
        from_client(len=39) / TCP(dport=80, flags="S"),
        from_client(len=41) / TCP(dport=80, flags="S"),
        from_client(len=65535) / TCP(dport=80, flags="S"),
        from_client(len=0) / TCP(dport=80, flags="S"),
        from_client(ihl=4) / TCP(dport=80, flags="S"),
        from_client(ihl=4) / TCP(dport=80, flags="S", ack=0x50020000),  # what lies where the TCP header would be
        from_client(ihl=0) / TCP(dport=80, flags="S"),
        from_client(ihl=11) / TCP(dport=80, flags="S"),
        from_client(ihl=15) / TCP(dport=80, flags="S"),
        from_client(version=6) / TCP(dport=80, flags="S"),
        from_client(version=0) / TCP(dport=80, flags="S"),
        from_client() / TCP(dport=80, flags="S", dataofs=4),
        from_client() / TCP(dport=80, flags="S", dataofs=0),
        from_client() / TCP(dport=80, flags="S", dataofs=6),
        from_client() / TCP(dport=80, flags="PA", dataofs=15) / bytes(39),
        from_client() / UDP(dport=53, len=7) / b"xx",
        from_client() / UDP(dport=53, len=0) / b"xx",
        from_client() / UDP(dport=53, len=11) / b"xx",
        from_client() / UDP(dport=53, len=65535) / b"xx",
        from_client(len=27) / UDP(dport=53, len=8),
        from_client(len=27) / ICMP(),
        from_client(proto=6) / Raw(bytes(19)),
        from_client(proto=17) / Raw(bytes(7)),
        from_client(proto=1) / Raw(bytes(7)),
    ],
    ids=lambda packet: packet.summary(),
)
def test_lengths_that_lie(dataplane, packet):
    result = dataplane.run(packet)

    assert (result.verdict, result.action) == (Verdict.DROP_MALFORMED, "DROP")


def test_a_datagram_may_be_shorter_than_its_packet(dataplane):
    """Bytes behind the UDP payload are odd, but no lie (RFC 768 says nothing against them)."""
    assert dataplane.run(from_client() / UDP(sport=40000, dport=53, len=9) / b"xyz").verdict is Verdict.FORWARD_OPENED


@pytest.mark.parametrize("packet", [DATA, QUERY, from_client() / ICMP() / b"echo"], ids=["TCP", "UDP", "ICMP"])
@pytest.mark.parametrize("side", ["client", "member"])
def test_truncated_anywhere(dataplane, packet, side):
    """Cut behind every byte from the Ethernet header on: no part of it is taken for a packet."""
    flow = dataplane.open(QUERY if UDP in packet else SYN)
    packet = packet.copy()
    packet[Ether].type = 0x0800
    if side == "member":
        packet[IP].src, packet[IP].dst = flow.member, flow.snat
        if ICMP not in packet:
            packet[flow.kind].sport, packet[flow.kind].dport = flow.member_port, flow.snat_port
    frame = bytes(packet)

    for length in range(14, len(frame)):
        result = dataplane.run(frame[:length])
        assert result.action in STAYS, f"cut to {length} bytes"
        assert result.verdict is (Verdict.PASS_NOT_OURS if length < 34 else Verdict.DROP_MALFORMED)
    assert dataplane.run(frame).verdict in (Verdict.FORWARD_REQUEST, Verdict.FORWARD_REPLY, Verdict.PASS_ECHO)


@pytest.mark.parametrize(
    "frame",
    [
        Ether(dst=GATEWAY_CLIENT_MAC) / Dot1Q(vlan=7) / ARP(pdst=VIP) / bytes(18),
        Ether(dst=GATEWAY_CLIENT_MAC) / Dot1Q(vlan=7) / IP(dst=OTHER_CLIENT) / TCP(dport=80, flags="S"),
        Ether(dst=GATEWAY_CLIENT_MAC) / Dot1Q(vlan=7) / Dot1Q(vlan=8) / IP(dst=VIP) / TCP(dport=80, flags="S"),
        Ether(dst=GATEWAY_CLIENT_MAC, type=0x88A8) / Dot1Q(vlan=8) / IP(dst=VIP) / TCP(dport=80, flags="S"),
        Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(pdst=VIP) / bytes(18),
        Ether(dst=GATEWAY_CLIENT_MAC) / IPv6(dst="fd00::1") / TCP(dport=80, flags="S"),
        Ether(dst=GATEWAY_CLIENT_MAC, type=0x88CC) / bytes(50),
    ],
    ids=["ARP in a VLAN", "to another in a VLAN", "two tags", "802.1ad", "ARP", "IPv6", "LLDP"],
)
def test_other_frames_are_the_kernels(dataplane, frame):
    result = dataplane.run(frame)

    assert (result.verdict, result.action) == (Verdict.PASS_NOT_OURS, "PASS")
    assert bytes(result.packet) == bytes(frame)


@pytest.mark.parametrize("fields", [{"frag": 1}, {"frag": 8191}, {"flags": "MF", "frag": 100}])
@pytest.mark.parametrize("transport", [TCP(dport=80, flags="S"), UDP(dport=53)], ids=["TCP", "UDP"])
def test_fragments_of_nothing(dataplane, transport, fields):
    assert dataplane.run(from_client(**fields) / transport).verdict is Verdict.DROP_FRAGMENT


@pytest.mark.parametrize("protocol", [0, 2, 4, 41, 47, 50, 132, 255])
def test_other_protocols(dataplane, protocol):
    assert dataplane.run(from_client(proto=protocol) / Raw(bytes(40))).verdict is Verdict.DROP_PROTOCOL


@pytest.mark.parametrize("address", [VIP, SNATS[3]])
@pytest.mark.parametrize("ttl", [1, 64])
def test_an_echo_request_is_the_kernels(dataplane, address, ttl):
    """It goes no further than the gateway, so the last hop of a traceroute's is as good as any."""
    echo = from_client(vip=address, ttl=ttl) / ICMP() / b"ping"
    result = dataplane.run(echo)

    assert (result.verdict, result.action) == (Verdict.PASS_ECHO, "PASS")
    assert bytes(result.packet) == bytes(echo)


@pytest.mark.parametrize("kind", [0, 4, 5, 9, 10, 13, 14, 17, 255])
def test_other_icmp(dataplane, kind):
    assert dataplane.run(from_client() / ICMP(type=kind) / bytes(28)).verdict is Verdict.DROP_ICMP


@pytest.mark.parametrize("transport", [TCP(dport=80, flags="S"), UDP(dport=53), ICMP()], ids=["TCP", "UDP", "ICMP"])
@pytest.mark.parametrize("mac", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"])
def test_frames_to_many(dataplane, mac, transport):
    """A unicast datagram in a broadcast frame is for no one; least of all is it answered from that address."""
    packet = from_client() / transport
    packet[Ether].dst = mac

    assert dataplane.run(packet).verdict is Verdict.DROP_MALFORMED


@pytest.mark.parametrize("sender", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", VIP, SNATS[1]])
@pytest.mark.parametrize("port", [80, 82])
def test_senders_that_are_no_one_else(dataplane, sender, port):
    """Nothing is opened for them, and nothing answered: it would go to many, or come back to us."""
    tcp = dataplane.run(from_client(sender) / TCP(sport=80, dport=port, flags="S"))
    udp = dataplane.run(from_client(sender) / UDP(sport=53, dport=port - 27))

    assert [tcp.verdict, udp.verdict] == [Verdict.DROP_MALFORMED] * 2


def spoofed(**change):
    """A reply of the connection in slot 0, but for one thing."""
    fields = {"member": MEMBER, "snat": SNATS[0], "sport": 8080, "dport": 32768} | change
    return from_member(fields["member"], fields["snat"]) / TCP(sport=fields["sport"], dport=fields["dport"], flags="A")


@pytest.mark.parametrize(
    "change",
    [
        {"member": "10.0.0.12"},
        {"member": UDP_MEMBER, "sport": 5353},
        {"sport": 8081},
        {"dport": 32767},
        {"dport": 0},
        {"dport": 80},
        {"dport": 32768 + 128 // 4},
        {"dport": 65535},
    ],
    ids=str,
)
def test_replies_of_no_connection(dataplane, change):
    """Another address, another port, a slot beyond the table: all of them held, but for the one thing, by a flow."""
    for port in range(50):
        dataplane.open(from_client() / TCP(sport=1000 + port, dport=80, flags="S"))
    result = dataplane.run(spoofed(**change))

    assert (result.verdict, result.action) == (Verdict.DROP_NO_CONNECTION, "DROP")


def test_a_reply_to_a_slot_of_nobody(dataplane):
    flow = dataplane.open(SYN)
    dataplane.run(flow.request(flags="R"))
    dataplane.settings.rest = 0
    dataplane.sweep()

    assert dataplane.run(flow.reply(flags="A")).verdict is Verdict.DROP_NO_CONNECTION


def test_each_slot_answers_on_its_own_snat_address(dataplane):
    """The same port of the other SNAT addresses is another slot."""
    flow = dataplane.open(SYN)
    others = [from_member(snat=snat) / TCP(sport=8080, dport=flow.snat_port, flags="A") for snat in SNATS]

    forwarded = [packet[IP].dst for packet in others if dataplane.run(packet).verdict is Verdict.FORWARD_REPLY]
    assert forwarded == [flow.snat]


def test_a_tcp_reply_of_a_udp_endpoint(dataplane):
    flow = dataplane.open(QUERY)
    reply = from_member(flow.member, flow.snat) / TCP(sport=flow.member_port, dport=flow.snat_port, flags="SA")

    assert dataplane.run(reply).verdict is Verdict.DROP_NO_CONNECTION


def test_the_gateways_own_services_are_not_reached_by_its_snat_addresses(dataplane):
    for transport in (TCP(dport=22, flags="S"), UDP(dport=53)):
        result = dataplane.run(from_client(vip=SNATS[0]) / transport)
        assert (result.verdict, result.action) == (Verdict.DROP_NO_CONNECTION, "DROP")
