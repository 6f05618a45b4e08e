"""Sends floods of datagrams and counts what arrives: gateway_flood.c from Python. It knows no gateway."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import tempfile
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address
from pathlib import Path

from bcc import BPF  # noqa: TID251 - a program beside the data plane, not a part of it
from scapy.utils import checksum

from ipbackend.datapath.headers import make_header_tree
from tests.bench.gateway_core import Core
from tests.bench.gateway_links import CLIENT_SIDE_INDEX, MACS, MEMBER_SIDE_INDEX, Links
from tests.netns.lab import CLIENT, bpf

FRAME = 64
HEADERS = 42  # Ethernet, IPv4 and UDP
FIRST_PORT = 1024
PROG_TEST_RUN = 10
LIVE_FRAMES = 1 << 1


class Side(IntEnum):
    """Whose end of the links; as `enum side` in gateway_flood.c."""

    CLIENT = 0
    MEMBER = 1


class Mode(IntEnum):
    """What an end does with what arrives; as `enum mode` in gateway_flood.c."""

    COUNT = 0
    VERIFY = 1
    ANSWER = 2


@dataclass(frozen=True)
class Expectation:
    """How datagrams look that arrive as they should: sources are consecutive, port 0 means any."""

    destination: str
    sources: tuple[str, ...]
    destination_port: int = 0
    source_port: int = 0


@dataclass(frozen=True)
class Flood:
    """Datagrams from the client to an address, each of `flows` source ports in turn or in random order."""

    packets: int
    flows: int
    destination: str
    port: int
    random: bool = False


class Flooder:
    """The programs, and one way to use them: send, and look at what arrived."""

    def __init__(self, core: Core) -> None:
        self.core = core
        with tempfile.TemporaryDirectory(dir="/run") as headers:
            os.environ["BCC_KERNEL_SOURCE"] = str(make_header_tree(Path(headers)))
            self._bpf = BPF(
                text=Path(__file__).with_suffix(".c").read_bytes(),
                cflags=[
                    "-D__LINUX_BPF_H__",
                    f"-DCLIENT_SIDE={CLIENT_SIDE_INDEX}",
                    f"-DMEMBER_SIDE={MEMBER_SIDE_INDEX}",
                ],
            )
            del os.environ["BCC_KERNEL_SOURCE"]
        self._flood, self.patch = (self._bpf.load_func(name, BPF.XDP).fd for name in (b"flood", b"patch"))
        self.ends = {side: self._bpf.load_func(f"{side.name.lower()}_end".encode(), BPF.XDP).fd for side in Side}

    def close(self) -> None:
        self._bpf.cleanup()

    def expect(self, side: Side, what: Expectation, mode: Mode = Mode.COUNT) -> None:
        """From now on count, at the ends of this side, what arrives so and what otherwise; both from 0."""
        ends = self._bpf[b"ends"]
        ends[side] = ends.Leaf(
            destination=in_network_order(what.destination),
            first_source=int(IPv4Address(what.sources[0])),
            sources=len(what.sources),
            destination_port=socket.htons(what.destination_port),
            source_port=socket.htons(what.source_port),
            mode=mode,
        )

    def arrived(self, side: Side) -> tuple[int, int]:
        """How many datagrams have arrived there as expected, and how many otherwise."""
        counted = self._bpf[b"ends"][side]
        return counted.right, counted.wrong

    def send(self, links: Links, flood: Flood) -> int:
        """Send; returns the nanoseconds that it took on the core, with all that came of it there."""
        orders = self._bpf[b"orders"]
        headers = headers_of(flood)
        orders[0] = orders.Leaf(
            interface=links.indices["client", "eth0"],
            flows=flood.flows,
            random=flood.random,
            udp_sum=udp_sum(headers),
            first_port=FIRST_PORT,
            headers=(ctypes.c_ubyte * HEADERS)(*headers),
        )
        data = ctypes.create_string_buffer(FRAME)
        attributes = struct.pack(
            "=IIIIQQIIIIQQIII", self._flood, 0, FRAME, 0, ctypes.addressof(data), 0,
            flood.packets, 0, 0, 0, 0, 0, LIVE_FRAMES, 0, 0,
        )  # fmt: skip
        with links["client"]:  # where the interface has its index
            with self.core.measured() as spent:
                bpf(PROG_TEST_RUN, attributes)
            return spent.ns


def headers_of(flood: Flood) -> bytes:
    """The headers of all datagrams, but for source port and UDP checksum."""
    length = FRAME - 14
    addresses = IPv4Address(CLIENT).packed + IPv4Address(flood.destination).packed
    ip = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0, 64, 17, 0) + addresses
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    ethernet = bytes.fromhex((MACS["gateway", "eth0"] + MACS["client", "eth0"]).replace(":", "")) + b"\x08\x00"
    return ethernet + ip + struct.pack("!HHHH", 0, flood.port, length - 20, 0)


def udp_sum(headers: bytes) -> int:
    """Of pseudo header, header and an empty payload, without the source port; of words as the machine reads them."""
    pseudo = headers[26:34] + struct.pack("!HH", 17, FRAME - 34)
    return sum(struct.unpack("=6H", pseudo)) + sum(struct.unpack("=4H", headers[34:]))


def in_network_order(address: str) -> int:
    return int.from_bytes(IPv4Address(address).packed, sys.byteorder)
