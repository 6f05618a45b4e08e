"""Packets compared field by field against one that scapy builds anew, so its checksums are scapy's, not ours."""

from scapy.layers.l2 import Ether
from scapy.packet import Packet


def shown(packet: Packet) -> list[str]:
    """Every field of every layer, a line each, after scapy has built the packet from nothing."""
    return Ether(bytes(packet)).show(dump=True).splitlines()


def recomputed(packet: Packet) -> Packet:
    """The same packet with all lengths and checksums left for scapy to compute."""
    fresh = packet.copy()
    for layer in fresh.layers():
        for name in ("chksum", "len"):
            if name in fresh[layer].fields:
                del fresh[layer].fields[name]
    return fresh


def assert_same(got: Packet, expected: Packet) -> None:
    """Equal to the expected packet in each field, the checksums and lengths included."""
    if bytes(got) != bytes(expected):  # a show takes milliseconds: only for a failure that names the field
        assert shown(got) == shown(expected)
        assert bytes(got) == bytes(expected)
