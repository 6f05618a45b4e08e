"""Injected into a connection from either side, over real links, by who does not see it: the stream goes on."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.netns.clients import RawPort, connect
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import CLIENT, MEMBERS, SHOP_VIP, SNATS, Lab

pytestmark = pytest.mark.root

WEB = (SHOP_VIP, 80)
FRAMES = 150  # of each kind
LENGTH = 300_000
ALONE = "\n".join(line for line in CONFIGURATION.splitlines() if not re.search(r"port = 8080, weight = [12] ", line))
"""member-1 is the only one of its pool."""


def far(known: int) -> int:
    """A sequence number that is nowhere near."""
    return (known + (1 << 20) + random.Random(known).randrange(1 << 31)) % (1 << 32)


def from_clients_side(port: int, snat: tuple[str, int], known: int) -> Iterator[Packet]:
    """In the client's name to the VIP, and in the member's to the SNAT address."""
    for number in range(FRAMES):
        for flags in ("R", "RA", "FA", "S", "SA", "PA"):
            yield IP(src=CLIENT, dst=SHOP_VIP) / TCP(
                sport=port, dport=80, flags=flags, seq=far(known + number), ack=far(number)
            )
        quoted = IP(src=SHOP_VIP, dst=CLIENT) / TCP(sport=80, dport=port, seq=far(number))
        error = ICMP(type=3, code=(0, 1, 2, 3, 4)[number % 5], nexthopmtu=(0, 68, 552)[number % 3])
        yield IP(src=CLIENT, dst=SHOP_VIP) / error / quoted
        yield IP(src="198.51.100.77", dst=snat[0]) / TCP(sport=8080, dport=snat[1], flags="R", seq=far(number))


def from_members_side(member: str, snat: tuple[str, int], known: int) -> Iterator[Packet]:
    """In the member's name to the slot, in another's, to other slots, and SYNs."""
    for number in range(FRAMES):
        for flags in ("R", "RA", "FA", "S", "PA"):
            yield IP(src=member, dst=snat[0]) / TCP(
                sport=8080, dport=snat[1], flags=flags, seq=far(known + number), ack=far(number)
            )
        for source, sport, dport in (
            (MEMBERS["member-2"], 8080, snat[1]),
            (member, 8081, snat[1]),
            (member, 8080, 32768 + number),
            ("10.0.0.200", 8080, snat[1]),
        ):
            if (source, sport, dport) != (member, 8080, snat[1]):
                yield IP(src=source, dst=snat[0]) / TCP(sport=sport, dport=dport, flags="R", seq=number)
        quoted = IP(src=snat[0], dst=member) / TCP(sport=snat[1], dport=8080, seq=far(number))
        error = ICMP(type=3, code=(0, 1, 2, 3, 4)[number % 5], nexthopmtu=(0, 68, 552)[number % 3])
        yield IP(src=member, dst=snat[0]) / error / quoted


def test_a_stream_goes_on_whatever_strangers_inject(lab: Lab, gateway: Gateway) -> None:
    """Thousands of frames with its addresses and ports, and no sequence number of it: every byte comes through."""
    gateway.apply(ALONE)
    with RawPort(lab["client"], "eth0") as near, RawPort(lab["member-1"], "eth0") as beyond:
        with connect(lab["client"], CLIENT, WEB) as connection:
            connection.download(LENGTH)
            answer = near.expect(lambda frame: TCP in frame and frame[IP].src == SHOP_VIP)
            asked = beyond.expect(lambda frame: TCP in frame and frame[IP].src in SNATS)
            port, snat = answer[TCP].dport, (asked[IP].src, asked[TCP].sport)
            injected = 0
            known = answer[TCP].ack, answer[TCP].seq
            for side, frames, gateways in (
                (near, from_clients_side(port, snat, known[0]), answer[Ether].src),
                (beyond, from_members_side(MEMBERS["member-1"], snat, known[1]), asked[Ether].src),
            ):
                for packet in frames:
                    side.send(bytes(Ether(src=side.mac, dst=gateways) / packet))
                    injected += 1
                    if injected % 500 == 0:
                        connection.upload(LENGTH // 10)
                        connection.download(LENGTH // 10)
            connection.upload(LENGTH)
            connection.download(LENGTH)
            open_now = gateway.json("connection", "list", "--client", f"{CLIENT}:{port}")
            assert [row["state"] for row in open_now] == ["ESTABLISHED"]
        assert injected > 10 * FRAMES
