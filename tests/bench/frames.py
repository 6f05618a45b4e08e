"""Frames as rows of what differs among them, checksums right, by the million. It knows no program and no kernel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SHOT = np.dtype(
    [
        ("saddr", ">u4"),
        ("daddr", ">u4"),
        ("sequence", ">u4"),
        ("sport", ">u2"),
        ("dport", ">u2"),
        ("ip_check", ">u2"),
        ("check", ">u2"),
        ("protocol", "u1"),
        ("flags", "u1"),
        ("ttl", "u1"),
        ("pad", "u1"),
    ]
)  # struct shot of driver.c
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
TCP, UDP = 6, 17
TTL = 64
Row = NDArray[np.void]  # of SHOT


def row(count: int, protocol: int, flags: int = 0, **fields: object) -> Row:
    """So many shots; `fields` are numbers or arrays: saddr, daddr, sport, dport, sequence."""
    shots = np.zeros(count, SHOT)
    shots["protocol"], shots["flags"], shots["ttl"] = protocol, flags, TTL
    for name, value in fields.items():
        shots[name] = value
    shots["ip_check"], shots["check"] = checksums(shots)
    return shots


def checksums(shots: Row) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """What the IP and the transport checksums must be, computed afresh from the frames that driver.c makes of them."""
    addresses = words(shots["saddr"]) + words(shots["daddr"])
    ip = 0x4500 + 40 + (shots["ttl"].astype(np.uint64) << 8) + shots["protocol"] + addresses
    tcp = 0x5000 + shots["flags"].astype(np.uint64) + 0x2000 + 2 * words(shots["sequence"])
    rest = np.where(shots["protocol"] == TCP, tcp, 20)  # of UDP the length; its payload is zeros
    transport = addresses + shots["protocol"] + 20 + shots["sport"] + shots["dport"] + rest
    check = complement(transport)
    return complement(ip), np.where((shots["protocol"] == UDP) & (check == 0), 0xFFFF, check).astype(np.uint16)


def words(values: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """The two 16-bit words of each, added."""
    wide = values.astype(np.uint64)
    return (wide >> 16) + (wide & 0xFFFF)


def complement(sums: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """The one's complement of one's complement sums, folded."""
    for _ in range(3):
        sums = (sums >> 16) + (sums & 0xFFFF)
    return (~sums & 0xFFFF).astype(np.uint16)


def turned(shots: Row, **fields: object) -> Row:
    """The answers to frames: addresses and ports the other way round; `fields` besides."""
    fields = {"sequence": shots["sequence"], "flags": shots["flags"]} | fields
    return row(
        len(shots),
        int(shots["protocol"][0]),
        saddr=shots["daddr"],
        daddr=shots["saddr"],
        sport=shots["dport"],
        dport=shots["sport"],
        **fields,
    )
