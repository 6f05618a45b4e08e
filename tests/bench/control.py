"""What the controller takes, the real daemon in the lab: to load, to start over live maps, to apply many members."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.bench.bed import listening
from tests.bench.rounds import Line, Series
from tests.netns.gateway import Gateway
from tests.netns.lab import Lab

BASE = """
[gateway]
interfaces = ["eth0", "eth1"]
snat_addresses = ["10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104"]
max_connections = {connections}

[networks.peered]
kind = "peering"
cidrs = ["172.16.0.0/16"]
next_hop = "10.0.0.2"

[load_balancers.shop]
vip = "10.0.0.100"
ip_target_enable = true
"""
CEILING = 500  # of each member
POOL = 500  # members
MEMBERS = (1_000, 10_000)
REMOVED = 100  # of so many members
ROUNDS = 5


def base(members: int) -> str:
    """The gateway alone, for a million connections, or for as many as these members may have."""
    return BASE.format(connections=max(1_000_000, members * CEILING * 6 // 5))


def configuration(members: int) -> str:
    """So many members in pools of up to 500, each with a listener."""
    numbers = [range(start, min(start + POOL, members)) for start in range(0, members, POOL)]
    return base(members) + "".join(
        listening(
            f"p{port}",
            port,
            [f'address = "172.16.{n >> 8}.{n & 0xFF}", port = 80, max_connections = {CEILING}' for n in pool],
        )
        for port, pool in enumerate(numbers, 1)
    )


class Control:
    """Figures of one gateway after the other, each in its namespaces from scratch."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.load = Series("load", 0)
        self.apply = {members: Series("apply", 0, more={"members": members}) for members in MEMBERS}
        self.restart = {members: Series("restart", 0, more={"members": members}) for members in MEMBERS}
        self.remove = Series("remove", 0, more={"members": REMOVED})
        self.own: dict[str, list[int]] = {"load": [], "restart": []}  # the daemon's own time in them
        self.descriptors: dict[int, tuple[int, int]] = {}
        self.resident: dict[int, int] = {}

    def round(self, members: int) -> None:
        """Load, apply, restart; and with the fewest members, take some away."""
        gateway = Gateway(self._lab, base(members), f"bench-{members}")
        spent = started(gateway) + applied(gateway, base(members))
        if members == MEMBERS[0]:
            self.load.ns.append(spent)
            self.own["load"].append(own_time(gateway))
        before = descriptors(gateway)
        self.apply[members].ns.append(applied(gateway, configuration(members)))
        self.descriptors[members] = before, descriptors(gateway)
        self.resident[members] = max(self.resident.get(members, 0), most_resident(gateway))
        gateway.stop()
        self.restart[members].ns.append(started(gateway))
        self.own["restart"].append(own_time(gateway))
        if members == MEMBERS[0]:
            self.remove.ns.append(applied(gateway, configuration(members - REMOVED)))
        gateway.__exit__(None, None, None)

    def lines(self) -> Iterator[Line]:
        """All that was measured."""
        yield self.load.line(cpu_ns=median(self.own["load"]))
        for members, series in self.apply.items():
            before, after = self.descriptors[members]
            kept = {"descriptors_before": before, "descriptors_kept": after - before}
            yield series.line(**kept, peak_rss=self.resident[members])
        for series in self.restart.values():
            yield series.line(cpu_ns=median(self.own["restart"]))
        yield self.remove.line()


def started(gateway: Gateway) -> int:
    """Ns from the command to the word that it is ready."""
    began = time.monotonic_ns()
    gateway.start()
    return time.monotonic_ns() - began


def applied(gateway: Gateway, text: str) -> int:
    """Ns from the request to the answer: it is stored, and in force."""
    began = time.monotonic_ns()
    gateway.apply(text)
    return time.monotonic_ns() - began


def own_time(gateway: Gateway) -> int:
    """Ns of CPU that the daemon has had so far, its kernel's time with it."""
    user, system = Path(f"/proc/{gateway.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def descriptors(gateway: Gateway) -> int:
    """How many files the daemon has open."""
    return len(os.listdir(f"/proc/{gateway.pid}/fd"))  # noqa: PTH208 - the kernel's listing, entries come and go


def most_resident(gateway: Gateway) -> int:
    """The most memory that the daemon ever had, in bytes."""
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{gateway.pid}/status").read_text())
    return int(kilobytes) * 1024


def lines(rounds: int) -> Iterator[Line]:
    """All of it, in rounds; a daemon may run on any CPU."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    with Lab() as lab:
        control = Control(lab)
        for _ in range(min(rounds, ROUNDS)):
            for members in MEMBERS:
                control.round(members)
    yield from control.lines()
