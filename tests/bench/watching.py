"""What it costs to look: packets while some are captured, lists out of a million connections, members as `top` asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing

from ipbackend import live
from ipbackend.abi import Verdict
from ipbackend.capture import Order, order
from ipbackend.config import parse
from ipbackend.connections import Wanted, connections
from ipbackend.datapath.capture import Capture
from ipbackend.peer import peer, peers
from ipbackend.view import View
from tests.bench import bed
from tests.bench.bed import changed, clients, configured, listening
from tests.bench.driver import Driver, Visit
from tests.bench.frames import SYN, TCP
from tests.bench.rounds import Case, Line, Series, measured
from tests.packet import cast
from tests.packet.conftest import Dataplane

FLOWS, LAP, LAPS = 1_000, 1_000, 20  # as many packets in two turns as the ring holds
MEMBERS, CONNECTIONS = 10, 1_000_000
MANY, POOL = 10_000, 500  # members, and those of a pool
NOBODY = "192.0.2.1"
QUICK, SLOW = 1_000_000_000, 1  # packets a second
LISTS = {
    "list-one-client": Wanted(client=peers("198.51.100.1")),
    "list-a-network": Wanted(client=peers("11.0.0.0/16")),
    "list-by-everything": Wanted(
        client=peers("198.51.100.0/24"), port=80, member=peer("10.0.0.20:8080"), older_than=0.001
    ),
    "list-none-so-old": Wanted(port=80, older_than=1e6),
}


def lines(dataplane: Dataplane, driver: Driver, rounds: int) -> Iterator[Line]:
    """Captures, then lists, then members."""
    yield from captures(dataplane, driver, rounds * 5)
    yield from lists(dataplane, driver, rounds)
    yield from members(dataplane, rounds)


def captures(dataplane: Dataplane, driver: Driver, rounds: int) -> Iterator[Line]:
    """Requests through the programs that show, in view of others only, too many, all; beside those that do not."""
    configured(dataplane, listening("web", 80, _members(MEMBERS)))
    row = driver.place(bed.opened(dataplane, driver, clients(FLOWS, TCP, 1)).requests)
    orders = {
        "request-others-captured": ordered(client=NOBODY),
        "request-over-rate": ordered(rate=SLOW),
        "request-captured": ordered(),
    }
    with bed.yardsticks(driver) as programs, closing(Capture(dataplane.program, ordered())) as capture:
        for name, wanted in orders.items():
            capture.look_for(wanted)
            entries = {"empty": programs["empty"], "request-quiet": dataplane.program.entry, name: capture.entry}
            cases = [
                Case(name, FLOWS, Visit(entry, row, LAP, LAPS), (Verdict.FORWARD_REQUEST,) if name != "empty" else ())
                for name, entry in entries.items()
            ]
            turns = []
            for _ in range(rounds):
                turns.append(measured(dataplane, driver, cases, 1))
                capture.read(1 << 20)
            if capture.unread:
                raise AssertionError("the ring was full: this is no figure of captured packets")
            quiet, shown = (
                Series(one[0].name, FLOWS, [turn.ns[0] for turn in one]) for one in list(zip(*turns, strict=True))[1:]
            )
            if name == "request-others-captured":
                yield quiet.line()
            yield shown.line(**shown.ratio_to(quiet, "quiet"))


def ordered(client: str = "", rate: int = QUICK) -> Order:
    """Of anybody, or of one client."""
    return order(client, "", None, "", (), rate, 2048)


def lists(dataplane: Dataplane, driver: Driver, rounds: int) -> Iterator[Line]:
    """What of a million connections the filters find."""
    listeners = listening("web", 80, _members(MEMBERS))
    configured(dataplane, listeners)
    dataplane.settings.syn_sent_timeout = 3600
    bed.fill(dataplane, driver, changed(clients(CONNECTIONS, TCP, 5), flags=SYN))
    view = View(dataplane.maps, parse(cast.NETWORKS + listeners, "bench"), dataplane.entries)
    for name, wanted in LISTS.items():
        spent, found = timed(rounds, lambda wanted=wanted: sum(1 for _ in connections(view, wanted)))
        yield Series(name, CONNECTIONS, spent).line(found=found)
    dataplane.reset()


def members(dataplane: Dataplane, rounds: int) -> Iterator[Line]:
    """What the daemon does for one look of `top` at many members."""
    each = [f'address = "172.16.{n // 250}.{n % 250 + 1}", port = 8080, max_connections = 50' for n in range(MANY)]
    listeners = [listening(f"pool-{n}", 1000 + n, each[n : n + POOL]) for n in range(0, MANY, POOL)]
    configured(dataplane, *listeners)
    configuration = parse(cast.NETWORKS + "".join(listeners), "bench")
    spent, found = timed(rounds, lambda: len(live.members(View(dataplane.maps, configuration, dataplane.entries))))
    yield Series("top-members", 0, spent).line(members=found)


def timed(rounds: int, work: Callable[[], int]) -> tuple[list[float], int]:
    """Ns of this thread's time for each round, and what it found."""
    spent = []
    for _ in range(rounds):
        began = time.thread_time_ns()
        found = work()
        spent.append(float(time.thread_time_ns() - began))
    return spent, found


def _members(count: int) -> list[str]:
    return [f'address = "10.0.0.{host}", port = 8080' for host in range(11, 11 + count)]
