"""What connections cost that send nothing: the sweep's time for each slot, and the kernel's memory for each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from ipbackend import daemon
from ipbackend.abi import SweepMode
from tests.bench import bed
from tests.bench.bed import changed, clients, configured, listening
from tests.bench.driver import Driver
from tests.bench.frames import SYN, TCP
from tests.bench.rounds import Line, Series
from tests.packet.conftest import Dataplane

MEMBERS = 10
CONNECTIONS = 1_000_000
LONG = 3_600  # seconds that nothing expires in
SMALL = 500  # a ceiling
TABLES = ("conntrack", "free_slots")  # of each endpoint
ROWS = (*TABLES, "endpoints", "endpoints_by_addr", "load", "endpoint_counts")  # an entry for each endpoint


def lines(dataplane: Dataplane, driver: Driver, rounds: int) -> Iterator[Line]:
    """A million connections at ten members, before they begin, while they are silent, and as they end."""
    members = [f'address = "10.0.0.{host}", port = 8080' for host in range(11, 11 + MEMBERS)]
    small = f'address = "10.0.0.9", port = 8080, max_connections = {SMALL}'
    configured(dataplane, listening("web", 80, members), listening("small", 81, [small]))
    endpoints = dataplane.entries.endpoints
    numbers = [number for number, endpoint in endpoints.items() if endpoint.ceiling != SMALL]
    (smallest,) = endpoints.keys() - numbers
    yield memory(dataplane, numbers, smallest)

    slots = sum(endpoints[number].slots for number in numbers)
    dataplane.settings.syn_sent_timeout = LONG
    free = [swept(dataplane, numbers, 0, 0) for _ in range(rounds)]
    bed.fill(dataplane, driver, changed(clients(CONNECTIONS, TCP, 5), flags=SYN))
    idle = [swept(dataplane, numbers, 0, 0) for _ in range(rounds)]
    yield Series("sweep-free", 0, [spent / slots for spent in free]).line()
    share = median(idle) / 1e9 / daemon.TICK  # of one core
    yield Series("sweep-idle", CONNECTIONS, [spent / slots for spent in idle]).line(core_share=round(share, 4))

    each = CONNECTIONS // MEMBERS
    dataplane.settings.syn_sent_timeout = 0
    expired = [swept(dataplane, [number], each, 0) / each for number in numbers]
    dataplane.settings.rest = 0
    rested = [swept(dataplane, [number], 0, each) / each for number in numbers]
    dataplane.reset()
    yield Series("sweep-expired", CONNECTIONS, expired).line()
    yield Series("sweep-rested", CONNECTIONS, rested).line()


def swept(dataplane: Dataplane, numbers: Sequence[int], ended: int, rested: int) -> int:
    """Ns of this thread's time for one sweep of these endpoints, of each of which so many must end and have rested."""
    began = time.thread_time_ns()
    results = [dataplane.tables.sweep(number, SweepMode.EXPIRED) for number in numbers]
    spent = time.thread_time_ns() - began
    if set(results) != {(ended, rested)}:
        raise AssertionError(f"sweeps ended {results} instead of {ended}, {rested} each")
    return spent


def memory(dataplane: Dataplane, numbers: Sequence[int], smallest: int) -> Line:
    """Bytes as the kernel accounts them: for each connection at the ceilings, and for each endpoint."""
    each_slot = sum(locked(dataplane.maps[name].fd) / dataplane.maps[name].info.max_entries for name in TABLES)
    tables = {number: each_slot * dataplane.entries.endpoints[number].slots for number in (*numbers, smallest)}
    index = locked(dataplane.maps["flow_index"].fd)
    connections = sum(tables[number] for number in numbers) + index
    rows = sum(locked(dataplane.maps[name].fd) / dataplane.maps[name].info.max_entries for name in ROWS)
    return {
        "name": "memory",
        "flows": CONNECTIONS,
        **dict.fromkeys(("ns_median", "ns_min", "ns_max")),
        "rounds": 1,
        "bytes_per_connection": round(connections / CONNECTIONS, 1),
        "bytes_per_endpoint": round(tables[numbers[0]] + rows),
        f"bytes_per_endpoint_of_{SMALL}": round(tables[smallest] + rows),
        "bytes_of_all_maps": sum(locked(one.fd) for one in dataplane.maps),
    }


def locked(fd: int) -> int:
    """What a map takes: `memlock` of its fdinfo."""
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return int(dict(line.split(":", 1) for line in text.splitlines())["memlock"])
