"""What health checks cost, and how soon they tell: 1,000 members that are asked every 5 seconds.

    python -m tests.bench.health        as root; two minutes

Everything is in a namespace of its own, over loopback: 1,000 addresses of one server, which is another process.
The kernel's work for both ends of a connection is done in the time of whoever sends, so the figures hold more
than what a gateway pays.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from statistics import median

from ipbackend.configuration import Configuration
from ipbackend.health.book import Book
from ipbackend.health.monitors import Monitors
from ipbackend.health.states import Status
from ipbackend.model import Check, HealthMonitor, Member, Pool, Protocol
from tests.netns.asked import ADDRESS, PORTS, Program
from tests.netns.namespace import Namespace
from tests.unit.wanted import VPC, wanted

MEMBERS = 1000
DELAY, TIMEOUT, FALLS = 5, 3, 3
ROUNDS = 3


def members(kind: Check) -> Configuration:
    """Pools of 500, each with a monitor of this kind."""
    made: list[object] = []
    for first in range(0, MEMBERS, 500):
        its = tuple(Member(IPv4Address(0x0A630000 + 256 + number), PORTS[kind]) for number in range(first, first + 500))
        protocol = Protocol.UDP if kind is Check.UDP_CONNECT else Protocol.TCP
        pool = Pool(f"p{first}", protocol, members=tuple(replace(one, max_connections=100) for one in its))
        made += [pool, HealthMonitor(pool.id, kind, DELAY, TIMEOUT, 3, FALLS)]
    return wanted(replace(VPC, cidrs=(IPv4Network("10.99.0.0/16"),)), *made)


async def measure(kind: Check) -> tuple[float, float, int]:
    """CPU seconds of this process for each second, checks for each second, and members that are not ONLINE."""
    book = Book()
    asked = 0
    enter = book.answered

    def counted(*arguments: object) -> object:
        nonlocal asked
        asked += 1
        return enter(*arguments)  # type: ignore[arg-type]

    book.answered = counted  # type: ignore[method-assign,assignment]
    book.follow(members(kind))
    monitors = Monitors(book, lambda: None)
    monitors.follow(None)
    await asyncio.sleep(DELAY)
    asked, cpu, began = 0, time.process_time(), time.monotonic()
    await asyncio.sleep(DELAY * ROUNDS)
    took = time.monotonic() - began
    cpu = time.process_time() - cpu
    monitors.close()
    return cpu / took, asked / took, sum(one.status is not Status.ONLINE for one in book.states.values())


async def until_out(kind: Check, end: Callable[[], None]) -> list[float]:
    """Seconds from `end`, which takes all members down, until each is OFFLINE, in their order."""
    book = Book()
    book.follow(members(kind), serving=set())
    monitors = Monitors(book, lambda: None)
    monitors.follow(None)
    while not all(one.status is Status.ONLINE for one in book.states.values()):
        await asyncio.sleep(0.1)
    await asyncio.sleep(DELAY)
    began = time.monotonic()
    end()
    while not all(one.status is Status.OFFLINE for one in book.states.values()):
        await asyncio.sleep(0.1)
    monitors.close()
    return sorted(one.since - began for one in book.states.values())


def main() -> None:
    logging.disable()  # a thousand members go down at once
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    namespace = Namespace("health bench")
    with namespace, namespace.netlink() as netlink, tempfile.TemporaryDirectory() as directory:
        netlink.addr("add", index=1, address=ADDRESS, prefixlen=16)  # on the loopback all of it is local
        print(f"{MEMBERS:,} members, each asked every {DELAY} s, for {DELAY * ROUNDS} s")
        with Program(namespace, Path(directory)):
            for kind in Check:
                cpu, rate, wrong = asyncio.run(measure(kind))
                each = f"{1e6 * cpu / rate:6.0f} us a check {rate:6.0f} checks/s"
                print(f"{kind:12} {100 * cpu:5.1f} % of a core {each}   {wrong} not ONLINE")
        window = TIMEOUT * FALLS + DELAY * (FALLS - 1)
        print(f"until they are OFFLINE; from the first check that fails it is {window} s at most")
        for what, kind, end in (("refused", Check.TCP, "kill"), ("hanging", Check.HTTP, "stop")):
            with Program(namespace, Path(directory)) as program:
                found = asyncio.run(until_out(kind, getattr(program, end)))
            times = f"{found[0]:.1f} to {found[-1]:.1f} s, half of them within {median(found):.1f} s"
            print(f"{kind:12} {what}: {times}")


if __name__ == "__main__":
    sys.exit(main())
