"""Rewritten packets of every shape: their checksums, adjusted by us, are what scapy computes from nothing."""

from ipaddress import IPv4Address
from random import Random
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP, IPOption_RR
from scapy.packet import Packet

from ipbackend.abi import Verdict
from tests.packet.cast import QUERY, SYN, Flow
from tests.packet.compare import assert_same, recomputed

OPTIONS = ([], [IPOption_NOP()] * 4, [IPOption_RR(length=39, routers=["10.9.8.7"] * 9)])
SIDES = (("request", Verdict.FORWARD_REQUEST), ("reply", Verdict.FORWARD_REPLY))


def send(dataplane, side: str, flow: Flow, payload: bytes, ip: dict[str, Any], **fields: Any) -> Packet:
    """One packet of one side, and what must come of it: addresses and ports replaced, everything computed anew."""
    sent = getattr(flow, side)(ip=ip, **fields) / payload
    result = dataplane.run(sent)
    expected = getattr(flow, {"request": "requested", "reply": "replied"}[side])(
        ip=ip | {"ttl": ip.get("ttl", 64) - 1}, **fields
    )
    assert result.verdict is dict(SIDES)[side]
    assert_same(result.packet, expected / payload)
    assert_same(result.packet, recomputed(result.packet))
    return result.packet


@pytest.mark.parametrize("side", ["request", "reply"])
@pytest.mark.parametrize("opening", [SYN, QUERY], ids=["TCP", "UDP"])
@pytest.mark.parametrize("options", OPTIONS, ids=["bare", "4", "40"])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 1401])
def test_options_and_lengths(dataplane, side, opening, options, length):
    flow = dataplane.open(opening)

    left = send(dataplane, side, flow, bytes(n % 251 for n in range(length)), {"options": options})
    assert left[IP].ihl == {0: 5, 1: 15, 4: 6}[len(options)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("opening", [SYN, QUERY], ids=["TCP", "UDP"])
def test_random_packets_of_both_sides(dataplane, opening, seed):
    """Everything random that a rewrite must keep or account for."""
    random = Random(seed)
    flow = dataplane.open(opening)
    for _ in range(300):
        ip = {
            "id": random.getrandbits(16),
            "tos": random.getrandbits(8),
            "ttl": random.randrange(2, 256),
            "flags": random.choice([0, "DF"]),
            "options": random.choice(OPTIONS),
        }
        fields = {}
        if flow.kind is TCP:
            numbers = {name: random.getrandbits(32) for name in ("seq", "ack")}
            fields = {**numbers, "flags": random.choice(["A", "PA"]), "window": random.getrandbits(16)}
            fields["options"] = random.choice([[], [("Timestamp", (random.getrandbits(32), 0)), ("NOP", None)]])
        payload = random.randbytes(random.randrange(0, 99))
        send(dataplane, random.choice(["request", "reply"]), flow, payload, ip, **fields)


def test_random_clients(dataplane):
    """Addresses and ports are what a checksum is adjusted for: many of them, each opened, answered and closed."""
    random = Random(5)
    for _ in range(300):
        syn = SYN.copy()
        syn[IP].src = str(IPv4Address(random.randrange(11 << 24, 100 << 24)))
        syn[TCP].sport, syn[TCP].seq = random.randrange(1, 65536), random.getrandbits(32)
        flow = dataplane.open(syn)
        answer = {"flags": "SA", "seq": random.getrandbits(32), "ack": (syn[TCP].seq + 1) % 2**32}
        send(dataplane, "reply", flow, b"", {}, **answer)
        send(dataplane, "request", flow, b"", {}, flags="R", seq=answer["ack"])


@pytest.mark.parametrize("side", ["request", "reply"])
def test_no_udp_checksum_stays_none(dataplane, side):
    flow = dataplane.open(QUERY)

    left = dataplane.run(getattr(flow, side)(chksum=0) / b"who?").packet
    assert left[UDP].chksum == 0


@pytest.mark.parametrize("side", ["request", "reply"])
def test_a_udp_checksum_of_zero_is_sent_as_all_ones(dataplane, side):
    """A payload of two bytes that makes the sum come out as it may not be sent (RFC 768)."""
    flow = dataplane.open(QUERY)
    away = {"request": flow.requested, "reply": flow.replied}[side]
    chosen = checksum_of(away() / bytes(2)).to_bytes(2, "big")

    left = send(dataplane, side, flow, chosen, {})
    assert left[UDP].chksum == 0xFFFF


def checksum_of(packet: Packet) -> int:
    """As scapy computes it."""
    return int(type(packet)(bytes(packet))[UDP].chksum)
