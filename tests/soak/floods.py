"""What nobody asked for, as raw frames at a steady rate: SYN, unknown ACK, UDP, fragments, scans of SNAT addresses.

Run as a program in the namespace of whoever sends: interface, the gateway's MAC address, and kind=rate for each
kind. It goes on until SIGTERM, and then says how many frames of each kind it has sent, as JSON.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address

from tests.netns.lab import CLIENTS, MEMBERS, SHOP_VIP, SNATS

from .wanted import FLOODED_TCP, FLOODED_UDP

BURSTS = 50  # a second: a veth's ring has room for few frames
STRANGERS = int(IPv4Address("198.18.0.0"))  # to /15: kept for tests (RFC 2544), and no one's here
SCANNER = CLIENTS[12]
SYN, ACK = 0x02, 0x10
MORE_FRAGMENTS = 0x2000


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ip(source: int, destination: int, protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    addresses = struct.pack("!II", source, destination)
    start = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(payload), random.getrandbits(16), fragment, 64, protocol)
    return start + struct.pack("!H", checksum(start + b"\0\0" + addresses)) + addresses + payload


def tcp(source: int, sport: int, destination: int, dport: int, flags: int) -> bytes:
    start = struct.pack("!HHIIBBH", sport, dport, random.getrandbits(32), random.getrandbits(32), 0x50, flags, 8192)
    pseudo = struct.pack("!IIHH", source, destination, 6, 20)
    segment = start + struct.pack("!HH", checksum(pseudo + start + bytes(4)), 0)
    return ip(source, destination, 6, segment)


def udp(source: int, sport: int, destination: int, dport: int, fragment: int = 0) -> bytes:
    return ip(source, destination, 17, struct.pack("!HHHH", sport, dport, 16, 0) + random.randbytes(8), fragment)


def number(address: str) -> int:
    return int(IPv4Address(address))


def stranger() -> int:
    return STRANGERS + random.getrandbits(17)


def port() -> int:
    return random.randint(20_000, 60_000)  # of no member's


def syn_to_snat() -> bytes:
    return tcp(number(SCANNER), port(), number(random.choice(SNATS)), random.getrandbits(16), SYN)


def datagram_to_snat() -> bytes:
    return udp(number(SCANNER), port(), number(random.choice(SNATS)), random.getrandbits(16))


KINDS: dict[str, Callable[[], bytes]] = {
    "SYN": lambda: tcp(stranger(), port(), number(SHOP_VIP), FLOODED_TCP, SYN),
    "ACK": lambda: tcp(stranger(), port(), number(SHOP_VIP), 80, ACK),
    "UDP": lambda: udp(stranger(), port(), number(SHOP_VIP), FLOODED_UDP),
    "fragments": lambda: udp(stranger(), port(), number(SHOP_VIP), FLOODED_UDP, MORE_FRAGMENTS | 100),
    "scan": lambda: random.choice((syn_to_snat, datagram_to_snat))(),
    "scan by a member": lambda: tcp(
        number(MEMBERS["member-1"]), port(), number(random.choice(SNATS)), random.randint(32_768, 65_535), SYN
    ),
}


def run(interface: str, gateway: str, rates: dict[str, int]) -> Counter[str]:
    sent, over = Counter[str](), []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:  # 0: it receives nothing
        wire.bind((interface, 0))
        ethernet = bytes.fromhex(gateway.replace(":", "")) + wire.getsockname()[4] + b"\x08\x00"
        began = time.monotonic()
        while not over:
            passed = time.monotonic() - began
            for kind, rate in rates.items():
                for _ in range(min(int(passed * rate) - sent[kind], rate // BURSTS + 1)):
                    wire.send(ethernet + KINDS[kind]())
                    sent[kind] += 1
            time.sleep(1 / BURSTS)
    return sent


if __name__ == "__main__":
    wanted = dict(one.split("=") for one in sys.argv[3:])
    print(json.dumps(run(sys.argv[1], sys.argv[2], {kind: int(rate) for kind, rate in wanted.items()})))
