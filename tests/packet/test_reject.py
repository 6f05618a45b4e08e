"""What a client is told that gets no connection, and who is told nothing."""

import time
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import TCP, UDP, IPOption_NOP

from ipbackend.abi import Verdict
from ipbackend.config import parse
from tests.packet.cast import (
    CLIENT,
    CONFIGURATION,
    MEMBER,
    QUERY,
    SYN,
    UDP_MEMBER,
    answer,
    built,
    from_client,
    pool_of,
    to_client,
)
from tests.packet.compare import assert_same

UNREACHABLE = (3, 3)  # destination, port


def reset(**fields):
    """A RST as the gateway sends it; `fields` are of TCP."""
    return to_client(id=0, flags="DF") / TCP(window=0, **fields)


def unreachable(offending):
    return answer(offending, *UNREACHABLE)


@pytest.mark.parametrize("payload", [b"", b"x", b"fast open"])
def test_a_syn_to_no_listener_is_reset(dataplane, payload):
    """RFC 9293, 3.10.7.1: sequence 0, acknowledging all that the segment takes, its SYN included."""
    result = dataplane.run(from_client() / TCP(sport=40000, dport=82, flags="S", seq=1000) / payload)

    assert (result.verdict, result.action) == (Verdict.REJECT_NO_LISTENER, "TX")
    assert_same(result.packet, reset(sport=82, dport=40000, flags="RA", seq=0, ack=1001 + len(payload)))


def test_sequence_numbers_wrap(dataplane):
    result = dataplane.run(from_client() / TCP(sport=40000, dport=82, flags="SF", seq=0xFFFFFFFF) / b"x")

    assert_same(result.packet, reset(sport=82, dport=40000, flags="RA", seq=0, ack=2))


@pytest.mark.parametrize("flags", ["A", "PA", "SA", "FA"])
def test_a_segment_of_no_connection_is_reset(dataplane, flags):
    """With an ACK the reset takes its sequence number from it."""
    result = dataplane.run(from_client() / TCP(sport=40000, dport=80, flags=flags, seq=5, ack=77) / b"data")

    assert result.verdict is Verdict.REJECT_NO_CONNECTION
    assert_same(result.packet, reset(sport=80, dport=40000, flags="R", seq=77))


@pytest.mark.parametrize(("flags", "length"), [("", 4), ("F", 5), ("SF", 6), ("P", 4)])
def test_a_segment_without_ack_is_acknowledged(dataplane, flags, length):
    result = dataplane.run(from_client() / TCP(sport=40000, dport=80, flags=flags, seq=5) / b"data")

    assert result.verdict is Verdict.REJECT_NO_CONNECTION
    assert_same(result.packet, reset(sport=80, dport=40000, flags="RA", seq=0, ack=5 + length))


@pytest.mark.parametrize("flags", ["R", "RA", "SR", "FR"])
@pytest.mark.parametrize("port", [80, 82])
def test_no_reset_answers_a_reset(dataplane, flags, port):
    result = dataplane.run(from_client() / TCP(sport=40000, dport=port, flags=flags))

    assert (result.verdict, result.action) == (Verdict.DROP_NO_CONNECTION, "DROP")


@pytest.mark.parametrize("words", [1, 10])
def test_a_reset_has_no_options_of_the_segment(dataplane, words):
    options = [IPOption_NOP()] * 4 * words
    segment = TCP(sport=40000, dport=82, flags="S", seq=9, options=[("MSS", 1460), ("SAckOK", b"")])
    result = dataplane.run(from_client(options=options) / segment / b"four")

    assert result.verdict is Verdict.REJECT_NO_LISTENER
    assert_same(result.packet, reset(sport=82, dport=40000, flags="RA", seq=0, ack=14))


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("words", [0, 1, 10])
@pytest.mark.parametrize("payload", [b"", b"xy", bytes(481), bytes(range(250)) * 4])
def test_a_datagram_to_no_listener_is_unreachable(dataplane, payload, words, padding):
    """The error quotes what was sent, as much as 576 bytes hold (RFC 1812, 4.3.2.3), but no padding."""
    sent = built(from_client(options=[IPOption_NOP()] * 4 * words, ttl=9) / UDP(sport=40000, dport=82) / payload)
    result = dataplane.run(bytes(sent) + bytes(padding))

    assert (result.verdict, result.action) == (Verdict.REJECT_NO_LISTENER, "TX")
    assert_same(result.packet, unreachable(sent))


@pytest.mark.parametrize("tos", [0, 0x10, 0x1C, 0xFF])
def test_an_error_is_of_the_datagrams_service_and_of_network_control(dataplane, tos):
    """RFC 1812, 4.3.2.5."""
    sent = from_client(tos=tos) / UDP(sport=40000, dport=82)

    assert dataplane.run(sent).packet.tos == 0xC0 | tos & 0x1E


TICK = 0.01  # seconds at most, of the clock that rates go by


@pytest.mark.parametrize("rate", [1, 20, 1000])
def test_errors_have_a_rate(dataplane, rate):
    """RFC 1812, 4.3.2.8: a second's worth at once, and then as time goes; whoever would get the next one is counted."""
    count = 3 * rate + 30
    configuration = parse(CONFIGURATION.replace("[gateway]", f"[gateway]\nicmp_error_rate = {rate}"), "test")
    dataplane.tables.set_timing(configuration.gateway)
    dataplane.forget_errors()
    sent = bytes(from_client() / UDP(sport=40000, dport=82))
    before, began = dataplane.verdicts(), time.monotonic()
    dataplane.run_on_one_cpu(sent, count)
    spent = time.monotonic() - began
    ended = dataplane.verdicts() - before

    assert rate <= ended[Verdict.REJECT_NO_LISTENER] <= rate * (1 + spent + TICK) + 1
    assert ended[Verdict.DROP_ERROR_RATE] == count - ended[Verdict.REJECT_NO_LISTENER]
    dataplane.forget_errors()
    assert dataplane.run(sent).verdict is Verdict.REJECT_NO_LISTENER


def test_resets_have_no_rate(dataplane):
    """A client whose SYN meets a closed port is to learn it, however many there are: one small answer for each."""
    before = dataplane.verdicts()
    dataplane.run_on_one_cpu(bytes(from_client() / TCP(sport=40000, dport=82, flags="S")), 1500)

    assert (dataplane.verdicts() - before)[Verdict.REJECT_NO_LISTENER] == 1500


def test_a_padded_reset_is_bare(dataplane):
    result = dataplane.run(bytes(from_client() / TCP(sport=40000, dport=82, flags="S")) + bytes(6))

    assert_same(result.packet, reset(sport=82, dport=40000, flags="RA", seq=0, ack=1))


@pytest.mark.parametrize("opening", [SYN, QUERY], ids=["TCP", "UDP"])
def test_all_full(dataplane, opening):
    """The 51st is told at once, and counted at its listener."""
    flows = []
    for port in range(50):
        packet = opening.copy()
        packet.payload.payload.sport = 1000 + port
        flows.append(dataplane.open(packet))
    listener = dataplane.connection(flows[0]).listener
    refused = dataplane.count("listener_counts", listener, "reject_all_full")
    result = dataplane.run(opening)

    assert (result.verdict, result.action) == (Verdict.REJECT_ALL_FULL, "TX")
    if opening is SYN:
        assert_same(result.packet, reset(sport=80, dport=40000, flags="RA", seq=0, ack=1))
    else:
        assert_same(result.packet, unreachable(built(opening)))
    assert dataplane.count("listener_counts", listener, "reject_all_full") == refused + 1


def test_room_is_used_at_once(dataplane):
    """At the ceiling a reset makes room for exactly one."""
    flows = []
    for port in range(50):
        syn = SYN.copy()
        syn[TCP].sport = 1000 + port
        flows.append(dataplane.open(syn))
    dataplane.run(flows[0].request(flags="R"))

    assert dataplane.run(SYN).verdict is Verdict.FORWARD_OPENED
    assert dataplane.run(from_client() / TCP(sport=7, dport=80, flags="S")).verdict is Verdict.REJECT_ALL_FULL


def test_an_empty_pool(dataplane):
    tcp = dataplane.run(from_client() / TCP(sport=40000, dport=81, flags="S"))
    dataplane.configure(CONFIGURATION.replace('{ address = "192.168.50.10", port = 5353, max_connections = 50 }', ""))
    udp = dataplane.run(QUERY)

    assert tcp.verdict is Verdict.REJECT_NO_MEMBER
    assert_same(tcp.packet, reset(sport=81, dport=40000, flags="RA", seq=0, ack=1))
    assert udp.verdict is Verdict.REJECT_NO_MEMBER
    assert_same(udp.packet, unreachable(built(QUERY)))


def test_no_member_can_be_reached(dataplane):
    dataplane.unresolved = {IPv4Address(MEMBER)}
    dataplane.configure()

    assert dataplane.run(SYN).verdict is Verdict.REJECT_NO_MEMBER
    assert dataplane.run(QUERY).verdict is Verdict.FORWARD_OPENED


def test_others_take_over_from_a_member_out_of_reach(dataplane):
    dataplane.unresolved = {IPv4Address("10.0.0.21")}
    dataplane.configure(pool_of('address = "10.0.0.21", port = 8080, weight = 9', 'address = "10.0.0.22", port = 8080'))
    members = {
        dataplane.open(from_client(CLIENT) / TCP(sport=port, dport=80, flags="S")).member for port in range(1, 41)
    }

    assert members == {"10.0.0.22"}


def test_one_endpoint_full_and_one_out_of_reach_is_full(dataplane):
    """It is a ceiling that stands in the way, whoever else is away."""
    dataplane.unresolved = {IPv4Address("10.0.0.21")}
    dataplane.configure(
        pool_of('address = "10.0.0.21", port = 80', 'address = "10.0.0.22", port = 80, max_connections = 1')
    )
    dataplane.open(from_client() / TCP(sport=1, dport=80, flags="S"))

    assert dataplane.run(SYN).verdict is Verdict.REJECT_ALL_FULL


def test_udp_member_of_the_cast_is_reached_over_its_router(dataplane):
    dataplane.unresolved = {IPv4Address("10.0.0.3")}
    dataplane.configure()

    assert UDP_MEMBER.startswith("192.168.50.")
    assert dataplane.run(QUERY).verdict is Verdict.REJECT_NO_MEMBER
