"""What it costs to tell Prometheus of so many members, and to compare the books: CPU of the thread that does it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ipbackend import metrics
from ipbackend.config import parse
from ipbackend.configuration import Configuration
from ipbackend.datapath.maps import Maps
from ipbackend.view import View
from tests.bench import bed
from tests.bench.bed import clients, listening
from tests.bench.driver import Driver
from tests.bench.frames import SYN, TCP
from tests.bench.rounds import Line, Series
from tests.packet import cast
from tests.packet.conftest import RUN, Dataplane

MEMBERS = (10, 1_000, 10_000)
CEILING = 64  # of each: a table of 128 slots
POOL = 500  # members
EACH = 20  # connections of a member


def lines(dataplane: Dataplane, driver: Driver, rounds: int) -> Iterator[Line]:
    """A scrape as the daemon writes it, maps opened for it and let go, and a look at the books."""
    for members in MEMBERS:
        configuration = configured(dataplane, members)
        for port, pool in enumerate(configuration.pools.values(), 1):
            syns = bed.changed(clients(EACH * len(pool.members), TCP, port), flags=SYN, dport=port)
            bed.fill(dataplane, driver, syns)
        yield from told(dataplane, configuration, rounds).lines(members)


@dataclass
class Told:
    """How long it took, and what was written."""

    scrape: Series
    books: Series
    text: str

    def lines(self, members: int) -> Iterator[Line]:
        """As they are written down."""
        series = sum(not line.startswith("#") for line in self.text.splitlines())
        yield self.scrape.line(members=members, series=series, bytes=len(self.text))
        yield self.books.line(members=members)


def told(dataplane: Dataplane, configuration: Configuration, rounds: int) -> Told:
    """Both, so many times."""

    def scrape() -> str:
        with Maps(RUN) as maps:
            return metrics.of_view(View(maps, configuration, dataplane.entries))

    def compare() -> None:
        found = View(dataplane.maps, configuration, dataplane.entries).differences()
        if found:
            raise AssertionError(f"the books do not balance: {found}")

    return Told(Series("scrape", 0, spent(scrape, rounds)), Series("books", 0, spent(compare, rounds)), scrape())


def spent(work: Callable[[], object], rounds: int) -> list[float]:
    """Ns of this thread's time, once to warm up and then so many times."""
    times = []
    for _ in range(rounds + 1):
        began = time.thread_time_ns()
        work()
        times.append(float(time.thread_time_ns() - began))
    return times[1:]


def configured(dataplane: Dataplane, members: int) -> Configuration:
    """So many members in pools of up to 500, each with a listener on a port from 1 on."""
    numbers = [range(start, min(start + POOL, members)) for start in range(0, members, POOL)]
    listeners = (
        listening(
            f"p{port}",
            port,
            [f'address = "172.16.{n >> 8}.{n & 0xFF}", port = 80, max_connections = {CEILING}' for n in pool],
        )
        for port, pool in enumerate(numbers, 1)
    )
    text = cast.all_half_open(cast.NETWORKS.replace("[gateway]", "[gateway]\nmax_connections = 16000000"))
    dataplane.configure(text)
    configuration = parse(text + "".join(listeners), "bench")
    dataplane.configure(configuration)
    return configuration
