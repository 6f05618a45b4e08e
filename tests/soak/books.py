"""What a gateway holds: its process from outside, its maps from inside. It judges nothing.

`Process` is memory, threads and descriptors; `Kernel` is what must be the same before and after any load;
`leftovers` is what a load has left and has to go.
"""

from __future__ import annotations

import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ipbackend.abi import Phase
from ipbackend.datapath.audit import audit
from ipbackend.datapath.maps import PINS, Map, Maps

KB = 1024
RATE_SHIFT = 8  # dues are in 256ths of a nanosecond since the epoch of ticks
_SEEN = ("fragments", "stays")


@dataclass(frozen=True)
class Process:
    """At one moment; memory in bytes. `anonymous` is its own: the rest is code, and maps that it looks at."""

    resident: int
    anonymous: int
    threads: int
    descriptors: Counter[str]  # by kind

    @classmethod
    def of(cls, pid: int) -> Process:
        """ProcessLookupError or FileNotFoundError: it is gone."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        if "VmRSS" not in status:
            raise ProcessLookupError(f"{pid}: it has ended, and was not waited for yet")
        return cls(
            int(status["VmRSS"].split()[0]) * KB,
            int(status["RssAnon"].split()[0]) * KB,
            int(status["Threads"]),
            Counter(kinds(pid)),
        )


def kinds(pid: int) -> Iterator[str]:
    """What each descriptor is of, numbers left out."""
    for one in Path(f"/proc/{pid}/fd").iterdir():
        try:
            yield re.sub(r"\d+", "N", str(one.readlink()))
        except FileNotFoundError:
            continue


def memory_of(one: Map) -> int:
    """Bytes of the kernel's."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{one.fd}").read_text().splitlines())
    return int(fields["memlock"])


@dataclass(frozen=True)
class Kernel:
    """What was made for a configuration, by name: with the same configuration it is the same."""

    pins: tuple[str, ...]
    memory: dict[str, int]
    endpoints: dict[str, int]  # slots of each
    listeners: int
    addresses: int
    pools: int
    access: int

    @classmethod
    def of(cls, run_directory: Path) -> Kernel:
        with Maps(run_directory) as maps:
            rows = maps["endpoints"].memory()
            numbers = [number for _, number in maps.directory("endpoints_by_addr").entries()]
            return cls(
                tuple(sorted(one.name for one in (run_directory / PINS).iterdir())),
                {one.name: memory_of(one) for one in maps},
                {endpoint_name(rows[number]): rows[number].slots for number in numbers},
                len(list(maps.directory("listeners_by_addr").entries())),
                len(list(maps.directory("addresses").entries())),
                len(list(maps["pools"].items())),
                len(maps["access"].all_keys()),
            )


def endpoint_name(row: object) -> str:
    address = socket.inet_ntoa(row.address.to_bytes(4, "little"))  # type: ignore[attr-defined]
    return f"{address}:{socket.ntohs(row.port)}/{row.protocol}"  # type: ignore[attr-defined]


def leftovers(run_directory: Path) -> Iterator[str]:
    """What connections have left in the books, a line each; none once every timeout and every rest are over."""
    with Maps(run_directory) as maps:
        rows = maps["endpoints"].memory()
        for _, number in maps.directory("endpoints_by_addr").entries():
            name, load = endpoint_name(rows[number]), maps["load"].memory()[number]
            if load.active or load.half_open:
                yield f"{name}: active {load.active}, half open {load.half_open}"
            phases = Counter(bytes(maps.of_endpoint("conntrack", number).column("state")))
            if used := {Phase(phase).name: count for phase, count in phases.items() if phase != Phase.FREE}:
                yield f"{name}: slots {used}"
            queue = [entry - rows[number].first for entry in maps.of_endpoint("free_slots", number).values("slot")]
            if sorted(queue) != list(range(rows[number].slots)):
                yield f"{name}: {len(set(queue) & set(range(rows[number].slots)))} of {rows[number].slots} slots queued"
        for place, load in enumerate(maps["listener_load"].memory().values("active")):
            if load:
                yield f"listener {place}: active {load}"
        index = maps["flow_index"].memory().bytes
        if any(index):
            yield f"flow_index: {sum(1 for entry in index.cast('Q') if entry)} entries"
        yield from audit(maps)


@dataclass(frozen=True)
class Remembered:
    """The maps in which the kernel forgets by itself: how many entries, and how many were written after a moment."""

    entries: dict[str, int]
    late: dict[str, int]

    @classmethod
    def of(cls, run_directory: Path, moment: float) -> Remembered:
        """`moment` by the monotonic clock; of `source_dues` those count that lie in the future."""
        ago = time.monotonic() - moment
        with Maps(run_directory) as maps:
            seen = {name: [maps.clock.seconds_since(one.seen) for one in maps[name].values()] for name in _SEEN}
            dues = [due >> RATE_SHIFT for due in maps["source_dues"].values()]
            now = time.monotonic_ns() - maps["gateway"].memory()[0].epoch
        entries = {name: len(ticks) for name, ticks in seen.items()}
        late = {name: sum(since < ago for since in its) for name, its in seen.items()}
        return cls(entries | {"source_dues": len(dues)}, late | {"source_dues": sum(due > now for due in dues)})
