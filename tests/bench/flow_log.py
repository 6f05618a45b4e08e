"""How fast the flow log keeps events, and how soon it tells who stood behind a SNAT address and port.

No root and no kernel: the records are made here, as a ring would hold them. A million connections on a hundred
thousand ports; the time is the process's own, all its threads together, and who is asked as the API asks.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from ipbackend.abi import EventKind, Phase
from ipbackend.flows.archive import Archive, Reader
from ipbackend.flows.event import GENERATION_SHIFT, NANO, RECORD, STRUCT, ip_raw, port_raw
from ipbackend.flows.lines import Journal, Lines
from ipbackend.flows.mark import Mark
from ipbackend.flows.who import who

BATCH = 4096  # records, as many as a transaction has
PORTS = 131_072  # SNAT addresses and ports of one member
SNATS = [ip_raw(IPv4Address(f"10.0.0.{host}")) for host in range(101, 105)]
MEMBERS = [ip_raw(IPv4Address(f"10.0.0.{host}")) for host in range(11, 21)]
VIP = ip_raw(IPv4Address("10.0.0.100"))
BEGIN = 1_800_000_000 * NANO
GAP = 100_000  # ns between two connections: 10,000 a second
ASKED = 200  # times


def batches(events: int, random: Random) -> Iterator[bytes]:
    """Records: connections of some seconds, opened one after the other, each closed when its time has come."""
    ending: dict[int, list[tuple[Any, ...]]] = {}
    out, made, number = bytearray(), 0, 0
    while made < events:
        at = BEGIN + number * GAP
        slot, member = number // len(MEMBERS) % PORTS, MEMBERS[number % len(MEMBERS)]
        state = Phase.SYN_SENT | (1 + number // (len(MEMBERS) * PORTS)) << GENERATION_SHIFT
        client, port = random.getrandbits(32), random.randrange(1024, 65536)
        ends = (client, VIP, SNATS[slot & 3], member, port, port_raw(80), port_raw(32768 + slot // 4), port_raw(8080))
        fields = (state, *ends, slot, 1, 1)
        due = ending.pop(number, [])
        for record in ((at, at, 0, 0, 0, 0, *fields, EventKind.OPENED, 0, 6), *due):
            out += STRUCT.size.to_bytes(8, "little") + STRUCT.pack(*record)
            made += 1
        lasts = 1 + int(random.expovariate(1 / 50_000))
        counts = (random.randrange(5, 100), random.randrange(500, 10**5), random.randrange(5, 500), 10**6)
        closed = (at + lasts * GAP, at, *counts, *fields, EventKind.CLOSED, random.randrange(4), 6)
        ending.setdefault(number + lasts, []).append(closed)
        number += 1
        if len(out) >= BATCH * RECORD.size:
            yield bytes(out[: BATCH * RECORD.size])
            del out[: BATCH * RECORD.size]


def written(sink: Any, events: int) -> tuple[float, float]:
    """Events a second of wall time and of CPU time, that `sink` takes."""
    wall = cpu = 0.0
    count = 0
    for batch in batches(events, Random(1)):
        began, spent = time.perf_counter(), time.process_time()
        sink.write(batch, 0, [], Mark("bench", count, 0, 0))
        wall += time.perf_counter() - began
        cpu += time.process_time() - spent
        count += len(batch) // RECORD.size
    began, spent = time.perf_counter(), time.process_time()
    sink.close()  # indexes that are still being made are a part of it
    cpu += time.process_time() - spent
    return count / (wall + time.perf_counter() - began), count / cpu


def asked(folder: Path, events: int) -> tuple[list[float], list[float]]:
    """Seconds that each answer took, of wall time and of CPU time, at random times in the log."""
    random, reader = Random(2), Reader(folder)
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(ASKED):
        at = BEGIN + random.randrange(events // 2) * GAP
        snat, port = random.choice(SNATS), port_raw(32768 + random.randrange(PORTS // 4))
        began, spent = time.perf_counter(), time.process_time()
        found = who(reader.behind(snat, port, at + 60 * NANO), [], at, at + 60 * NANO)
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - spent)
        assert all(one.event.snat == snat and one.event.snat_port == port for one in found)
    return wall, cpu


def main() -> None:
    """Each sink, and the store's answers."""
    parser = argparse.ArgumentParser(prog="make bench-flow-log", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--sinks", default="store,json,journald")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ipbackend-flows-"))
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journal.bind(str(folder / "journal"))
    threading.Thread(target=_swallow, args=(journal,), daemon=True).start()
    sinks: dict[str, Callable[[], Any]] = {
        "store": lambda: Archive(folder / "store"),
        "json": lambda: Lines(folder / "json"),
        "journald": lambda: Journal(folder / "journald", folder / "journal"),
    }
    try:
        for name in given.sinks.split(","):
            wall, cpu = written(sinks[name](), given.events)
            print(f"{name:9} {wall:9,.0f} events a second, {1e6 / cpu:.1f} µs of CPU each", flush=True)
        if "store" in given.sinks:
            kept, size = Reader(folder / "store").size()
            print(f"kept      {kept:,} events in {size / 1e6:,.0f} MB")
            for what, times in zip(("wall", "CPU"), asked(folder / "store", given.events), strict=True):
                print(f"who       {what}: median {median(times) * 1000:.1f} ms, at most {max(times) * 1000:.1f} ms")
    finally:
        shutil.rmtree(folder)


def _swallow(journal: socket.socket) -> None:
    while True:
        journal.recv(1 << 16)


if __name__ == "__main__":
    main()
