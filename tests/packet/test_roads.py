"""One packet in, one packet out: the road of requests and replies, and every verdict there is."""

from scapy.layers.inet import IP, TCP

from ipbackend.abi import Verdict
from tests.packet.cast import *  # noqa: F403
from tests.packet.compare import assert_same


def test_request_and_reply_are_full_natted(dataplane):
    """The member sees the SNAT address, the client sees the VIP, and neither sees the other."""
    request = dataplane.run(FROM_CLIENT / TCP(sport=40000, dport=80, flags="S"))
    snat_port = request.packet[TCP].sport

    assert request.verdict is Verdict.FORWARD_OPENED
    assert request.action == "REDIRECT"
    assert_same(request.packet, to_member() / TCP(sport=snat_port, dport=8080, flags="S"))

    reply = dataplane.run(from_member() / TCP(sport=8080, dport=snat_port, flags="SA", seq=7, ack=1))
    assert reply.verdict is Verdict.FORWARD_REPLY
    assert reply.action == "TX"
    expected = TO_CLIENT / TCP(sport=80, dport=40000, flags="SA", seq=7, ack=1)
    expected[IP].ttl = 63
    assert_same(reply.packet, expected)
