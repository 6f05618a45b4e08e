"""Hundreds of members asked by real monitors in one loop: in time, spread out, and right whatever else goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ipbackend.configuration import Configuration
from ipbackend.health.book import Book
from ipbackend.health.monitors import Monitors
from ipbackend.health.states import Reason, Status
from ipbackend.model import Check, HealthMonitor, Member, Pool, Protocol
from tests.netns.asked import ADDRESS, PORTS, Program, connections, descriptors
from tests.netns.namespace import Namespace
from tests.unit.wanted import VPC, wanted

pytestmark = pytest.mark.root

FIRST = int(IPv4Address("10.99.1.1"))


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    namespace = Namespace("monitors")
    with namespace.netlink() as netlink:
        netlink.addr("add", index=1, address=ADDRESS, prefixlen=16)
    yield namespace
    namespace.close()


def members(count: int, delay: int = 1, timeout: int = 1, falls: int = 3) -> Configuration:
    """So many of each kind of check, in pools of their own."""
    made: list[Any] = []
    for place, kind in enumerate(Check):
        protocol = Protocol.UDP if kind is Check.UDP_CONNECT else Protocol.TCP
        start = FIRST + place * 1000
        its = tuple(
            Member(IPv4Address(start + number), PORTS[kind], max_connections=10, id=f"{kind}-{number}")
            for number in range(count)
        )
        made += [Pool(kind, protocol, members=its, id=kind), HealthMonitor(kind, kind, delay, timeout, 2, falls)]
    return wanted(replace(VPC, cidrs=(IPv4Network("10.99.0.0/16"),)), *made)


@asynccontextmanager
async def asking(book: Book, want: Configuration, serving: set[str] | None = None) -> AsyncIterator[Monitors]:
    book.follow(want, serving)
    monitors = Monitors(book, lambda: None)
    monitors.follow(None)
    try:
        yield monitors
    finally:
        monitors.close()


async def until(condition: Callable[[], bool], deadline: float = 30.0) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < deadline, "it did not come true in time"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def all_are(book: Book, status: Status) -> Callable[[], bool]:
    return lambda: all(one.status is status for one in book.states.values())


def run(namespace: Namespace, work: Callable[[], Awaitable[None]]) -> None:
    with namespace:
        before = descriptors()
        asyncio.run(work())  # type: ignore[arg-type]
        assert descriptors() == before
        assert [state for state in connections() if state in ("01", "02")] == []  # none that is up, or coming up


def test_new_members_are_asked_at_once_and_go_out_in_time(namespace: Namespace, tmp_path: Path) -> None:
    """They all die, they hang, they return: each within its window, and what the loop was away for."""
    book, want = Book(), members(25, delay=2, timeout=1)
    window = 3 * 1 + 2 * 2  # timeout × n + delay × (n − 1)

    async def work() -> None:
        with Program(namespace, tmp_path) as program:
            async with asking(book, want) as monitors:
                attention = monitors._prober.attention
                await until(all_are(book, Status.ONLINE))  # UDP waits for the whole second
                away = attention.away()
                program.kill()
                took = await until(all_are(book, Status.OFFLINE))
                # The window begins with the first check that fails, up to a delay and its jitter later.
                assert took <= window + 2.2 + slack(attention.away() - away)
                reasons = {number.split("-")[0]: one.reason for number, one in book.states.items()}
                assert {kind: reason.code for kind, reason in reasons.items() if reason} == dict.fromkeys(
                    Check, "CONNECT_REFUSED"
                )
                with Program(namespace, tmp_path) as again:
                    await until(all_are(book, Status.ONLINE))
                    again.stop()
                    asked = (Check.HTTP, Check.HTTPS)  # the kernel answers for the others
                    hanging = [f"{kind}-{number}" for kind in asked for number in range(25)]
                    away = attention.away()
                    took = await until(lambda: not any(book.states[number].serves for number in hanging))
                    assert took <= window + 2.2 + slack(attention.away() - away)
                    again.go_on()
                    await until(all_are(book, Status.ONLINE))

    run(namespace, work)


def slack(away: float) -> float:
    """Seconds that the machine may add: each of three checks may be late by what the loop was away for."""
    return 1.0 + 4 * away


def test_nobody_is_blamed_while_others_hold_the_interpreter(namespace: Namespace, tmp_path: Path) -> None:
    """The gateway's thread computes for seconds, at times without letting go at all."""
    book, over = Book(), threading.Event()
    failures: list[tuple[str, Reason]] = []
    enter = book.answered

    def spied(number: str, failure: Reason | None) -> Any:
        if failure:
            failures.append((number, failure))
        return enter(number, failure)

    book.answered = spied  # type: ignore[method-assign]

    def compute(count: int) -> None:
        while not over.is_set():
            sum(range(count))  # all of it without letting go

    async def work() -> None:
        threads = [threading.Thread(target=compute, args=(count,)) for count in (10_000, 15_000_000)]
        async with asking(book, members(20)) as monitors:
            await until(all_are(book, Status.ONLINE))
            for thread in threads:
                thread.start()
            try:
                await asyncio.sleep(5)
            finally:
                over.set()
                for thread in threads:
                    thread.join()
            assert monitors._prober.attention.away() > 1  # or nothing was shown

    with Program(namespace, tmp_path):
        run(namespace, work)
    assert failures == []


def test_the_gateways_own_trouble_is_told_once_and_takes_nobody_out(
    namespace: Namespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The address that checks come from is gone: everybody stays, and is asked again when it is back."""
    book = Book()
    caplog.set_level("INFO")

    async def work() -> None:
        with Program(namespace, tmp_path):
            async with asking(book, members(5, falls=1)) as monitors:
                await until(all_are(book, Status.ONLINE))
                since = {number: one.since for number, one in book.states.items()}
                monitors.follow(IPv4Address("10.98.0.1"))
                await until(lambda: len(monitors._troubled) == 20)
                await asyncio.sleep(2)
                assert {number: one.since for number, one in book.states.items()} == since
                monitors.follow(None)
                await until(lambda: not monitors._troubled)
                assert all_are(book, Status.ONLINE)()

    run(namespace, work)
    trouble = [one.getMessage() for one in caplog.records if "asked" in one.getMessage()]
    why = "from 10.98.0.1: Cannot assign requested address (they stay as they are until they can)"
    assert trouble == [f"members cannot be asked {why}", "all members can be asked again"]


def test_the_first_checks_are_spread_out(namespace: Namespace) -> None:
    """New members are asked at once, a thousand a second; whom an earlier daemon asked waits for its own turn."""
    want = members(250, delay=2)
    ids = {member.id for pool in want.pools.values() for member in pool.members}

    async def due(serving: set[str] | None) -> list[float]:
        """When each is asked for the first time, from the moment on when the first one is known."""
        began = asyncio.get_running_loop().time()
        async with asking(Book(), want, serving) as monitors:
            return sorted(watch.timer.when() - began for watch in monitors._watches.values() if watch.timer)

    with namespace:
        fresh, kept = asyncio.run(due(None)), asyncio.run(due(ids))
    assert len(fresh) == len(kept) == 1000
    assert min(after - before for before, after in pairwise(fresh)) > 0.0009
    assert fresh[-1] - fresh[0] < 2
    turns = Counter(int(10 * (moment - kept[0])) for moment in kept)
    assert max(turns.values()) < 100  # a thousand in twenty tenths
    assert kept[-1] - kept[0] > 1.8
