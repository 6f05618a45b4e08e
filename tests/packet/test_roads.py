"""One packet in, one packet out: the road of requests and replies."""

from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from ipbackend.abi import Verdict
from tests.packet.cast import CLIENT_INTERFACE, GATEWAY_CLIENT_MAC, MEMBER, MTU, QUERY, SYN, UDP_MEMBER, answer
from tests.packet.compare import assert_same


def test_request_and_reply_are_full_natted(dataplane):
    """The member sees the SNAT address, the client sees the VIP, and neither sees the other."""
    flow = dataplane.open(SYN)
    request = dataplane.run(flow.request(flags="S"))
    reply = dataplane.run(flow.reply(flags="SA", seq=7, ack=1))

    assert flow.member == MEMBER
    assert request.verdict is Verdict.FORWARD_REQUEST
    assert_same(request.packet, flow.requested(flags="S"))
    assert reply.verdict is Verdict.FORWARD_REPLY
    assert_same(reply.packet, flow.replied(flags="SA", seq=7, ack=1))


def test_datagram_and_answer_over_a_router(dataplane):
    flow = dataplane.open(QUERY)
    request = dataplane.run(flow.request() / b"who?")
    reply = dataplane.run(flow.reply() / b"me")

    assert flow.member == UDP_MEMBER
    assert request.verdict is Verdict.FORWARD_REQUEST
    assert_same(request.packet, flow.requested() / b"who?")
    assert reply.verdict is Verdict.FORWARD_REPLY
    assert_same(reply.packet, flow.replied() / b"me")


def test_the_opening_packet_is_forwarded_itself(dataplane):
    flow = dataplane.open(SYN)
    again = dataplane.run(SYN)

    assert again.verdict is Verdict.FORWARD_REQUEST
    assert_same(again.packet, flow.requested(flags="S"))


def test_another_interface_is_redirected_to(dataplane):
    flow = dataplane.open(SYN)

    assert dataplane.run(flow.request(flags="A")).action == "REDIRECT"
    assert dataplane.run(flow.reply(flags="SA")).action == "TX"


def test_the_same_interface_is_sent_back_on(dataplane):
    dataplane.member_interface = CLIENT_INTERFACE
    dataplane.configure()

    assert dataplane.run(SYN).action == "TX"
    assert dataplane.run(SYN).action == "TX"


def test_a_reply_goes_to_the_interface_its_client_is_behind(dataplane):
    dataplane.links[3] = MTU
    dataplane.configure()
    flow = dataplane.open(SYN)
    dataplane.connection(flow).client_interface = 3

    assert dataplane.run(flow.reply(flags="SA")).action == "REDIRECT"
    assert dataplane.run(flow.request(flags="A")).verdict is Verdict.FORWARD_REQUEST
    assert dataplane.run(flow.reply(flags="SA")).action == "TX"


def test_replies_follow_a_clients_changed_mac(dataplane):
    flow = dataplane.open(SYN)
    moved = flow.request(flags="A")
    moved[Ether].src, moved[Ether].dst = "02:00:00:00:00:99", "02:00:00:00:01:99"
    dataplane.run(moved)

    reply = dataplane.run(flow.reply(flags="SA"))
    expected = flow.replied(flags="SA")
    expected[Ether].dst, expected[Ether].src = "02:00:00:00:00:99", "02:00:00:00:01:99"
    assert_same(reply.packet, expected)


@pytest.mark.parametrize("padding", [1, 6, 45])
def test_padding_of_short_frames_is_kept(dataplane, padding):
    flow = dataplane.open(SYN)
    tail = bytes(range(padding))
    request = dataplane.run(bytes(flow.request(flags="A")) + tail)
    reply = dataplane.run(bytes(flow.reply(flags="A")) + tail)

    assert bytes(request.packet) == bytes(flow.requested(flags="A")) + tail
    assert bytes(reply.packet) == bytes(flow.replied(flags="A")) + tail


def test_time_to_live_goes_down_by_one(dataplane):
    flow = dataplane.open(SYN)
    request = dataplane.run(flow.request(flags="A", ip={"ttl": 2}))
    reply = dataplane.run(flow.reply(flags="A", ip={"ttl": 255}))

    assert_same(request.packet, flow.requested(flags="A", ip={"ttl": 1}))
    assert_same(reply.packet, flow.replied(flags="A", ip={"ttl": 254}))


@pytest.mark.parametrize("ttl", [0, 1])
@pytest.mark.parametrize("side", ["request", "reply"])
def test_nothing_outlives_its_time(dataplane, side, ttl):
    flow = dataplane.open(SYN)
    sent = getattr(flow, side)(flags="A", ip={"ttl": ttl})
    result = dataplane.run(sent)

    assert (result.verdict, result.action) == (Verdict.REJECT_TTL, "TX")
    assert_same(result.packet, answer(sent, 11, 0))


@pytest.mark.parametrize(("size", "verdict"), [(1500, Verdict.FORWARD_REQUEST), (1501, Verdict.DROP_TOO_BIG)])
def test_a_packet_that_may_be_fragmented_fits_the_mtu_or_is_dropped(dataplane, size, verdict):
    flow = dataplane.open(QUERY)
    result = dataplane.run(flow.request() / bytes(size - 28))

    assert result.verdict is verdict


def test_a_connection_whose_next_hop_is_lost_waits_for_it(dataplane):
    flow = dataplane.establish()
    dataplane.unresolved = {IPv4Address(MEMBER)}
    dataplane.configure()

    assert dataplane.run(flow.request(flags="A")).verdict is Verdict.DROP_NO_NEXT_HOP
    assert dataplane.run(flow.reply(flags="A")).verdict is Verdict.FORWARD_REPLY
    dataplane.unresolved = set()
    dataplane.configure()
    assert dataplane.run(flow.request(flags="A")).verdict is Verdict.FORWARD_REQUEST


def test_packets_and_bytes_are_counted_by_listener(dataplane):
    flow = dataplane.open(SYN)
    listener = dataplane.connection(flow).listener
    fields = ("request_packets", "request_bytes", "reply_packets", "reply_bytes")
    before = [dataplane.count("listener_counts", listener, field) for field in fields]
    dataplane.run(flow.request(flags="A") / bytes(60))
    dataplane.run(flow.reply(flags="A") / bytes(160))

    after = [dataplane.count("listener_counts", listener, field) for field in fields]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 100, 1, 200]


def test_two_vips_share_a_member_without_collision(dataplane):
    """One client, the same source port, to both VIPs: two connections of one endpoint."""
    first = dataplane.establish(SYN)
    second_syn = Ether(bytes(SYN))
    second_syn[IP].dst = "10.0.0.110"
    second = dataplane.establish(second_syn)

    assert (first.member, first.member_port) == (second.member, second.member_port)
    assert (first.snat, first.snat_port) != (second.snat, second.snat_port)
    for flow in (first, second):
        assert_same(dataplane.run(flow.request(flags="PA") / b"x").packet, flow.requested(flags="PA") / b"x")
        assert_same(dataplane.run(flow.reply(flags="PA") / b"y").packet, flow.replied(flags="PA") / b"y")
    assert dataplane.load().active == 2


def test_what_is_not_ours_is_the_kernels(dataplane):
    elsewhere = Ether(dst=GATEWAY_CLIENT_MAC) / IP(dst="10.0.0.99") / TCP(dport=80, flags="S")
    result = dataplane.run(elsewhere)

    assert (result.verdict, result.action) == (Verdict.PASS_NOT_OURS, "PASS")
    assert bytes(result.packet) == bytes(elsewhere)


def test_datagrams_of_one_tuple_are_one_connection(dataplane):
    flow = dataplane.open(QUERY)
    again = dataplane.run(QUERY)

    assert again.verdict is Verdict.FORWARD_REQUEST
    assert again.packet[UDP].sport == flow.snat_port
