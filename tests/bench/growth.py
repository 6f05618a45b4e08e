"""What the cost of a packet or a connection does as the configuration grows, and as a second CPU joins in."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from statistics import harmonic_mean

import numpy as np

from ipbackend.abi import Verdict
from tests.bench import bed
from tests.bench.bed import Flows, changed, clients, configured, listening
from tests.bench.choosing import member
from tests.bench.driver import Driver, Visit
from tests.bench.frames import TCP
from tests.bench.openings import LAP, LAPS, VERDICTS, above_empty, openings
from tests.bench.rounds import Case, Line, Series
from tests.packet.conftest import Dataplane

LISTENERS = {1: 100_000, 100: 1_000, 10_000: 50}  # how many, and the ceilings of the members behind each
FLOWS = 10_000  # however many listeners they are shared by
FRESH = 110_000  # slots that one listener's member, or all of many, still have after these flows
CPU_FLOWS = {1_000: 1_000, 100_000: 400}  # of both CPUs together, and laps: for longer than one starts before the other


def listeners(dataplane: Dataplane, driver: Driver, rounds: int) -> Iterator[Line]:
    """As many packets and flows at more and more listeners, each with a member of its own."""
    ports, text = {}, []
    for number, ceiling in LISTENERS.items():
        ports[number] = len(text) + 1
        text += [listening(f"l{n}", n, [member(n, ceiling)]) for n in range(len(text) + 1, len(text) + 1 + number)]
    configured(dataplane, *text)
    with bed.yardsticks(driver) as programs:
        laps = min(LAPS, FRESH // LAP // (rounds + 1))
        cases = list(_at_listeners(dataplane, driver, ports, laps))
        series = above_empty(dataplane, driver, programs, cases, rounds)
    for number, one in enumerate(series):
        yield one.line(**one.ratio_to(series[number % 3], "one_listener"))


def _at_listeners(dataplane: Dataplane, driver: Driver, ports: dict[int, int], laps: int) -> Iterator[Case]:
    """Request, reply and opening, at so many ports from that one on.

    No slot is used twice: all of 10,000 members' closed connections would be too many for the index.
    """
    order = np.random.default_rng(0).permutation(FLOWS)
    for number, port in ports.items():
        requests = clients(FLOWS, TCP, 65_536 + number)
        flows = bed.opened(dataplane, driver, changed(requests, dport=port + requests["sequence"] % number))
        more: Line = {"listeners": number}
        for name, row, verdict in (
            ("request", flows.requests, Verdict.FORWARD_REQUEST),
            ("reply", flows.replies, Verdict.FORWARD_REPLY),
        ):
            visit = Visit(dataplane.program.entry, driver.place(row[order]), 1000, 50)
            yield Case(f"{name}-by-listeners", FLOWS, visit, (verdict,), more)
        visit = openings(dataplane, driver, FRESH, port, number, laps)
        yield Case("new-by-listeners", FLOWS, visit, VERDICTS, more)


def cpus(dataplane: Dataplane, driver: Driver, rounds: int) -> Iterator[Line]:
    """Each of two CPUs with flows of its own, and what they carry together as against one alone."""
    members = [f'address = "10.0.0.{host}", port = 8080' for host in range(11, 15)]
    configured(dataplane, listening("web", 80, members))
    pair = sorted(_all_cpus())[:2]
    for number, laps in CPU_FLOWS.items():
        flows = bed.opened(dataplane, driver, clients(number, TCP, number))
        with bed.yardsticks(driver, flows) as programs:
            yield from _by_cpus(dataplane, driver, pair, programs, flows, laps, rounds)
        bed.ended(dataplane, "TCP")


def _by_cpus(
    dataplane: Dataplane,
    driver: Driver,
    pair: Sequence[int],
    programs: dict[str, int],
    flows: Flows,
    laps: int,
    rounds: int,
) -> Iterator[Line]:
    halves = np.array_split(np.random.default_rng(0).permutation(len(flows)), 2)
    requests = [driver.place(flows.requests[half]) for half in halves]
    replies = [driver.place(flows.replies[half]) for half in halves]
    entry = dataplane.program.entry
    for name, program, rows in (
        ("empty", programs["empty"], requests),
        ("reference-nat", programs["reference_nat"], requests),
        ("request", entry, requests),
        ("reply", entry, replies),
    ):
        visits = [Visit(program, row, 1000, laps) for row in rows]
        together, alone = Series(f"{name}-two-cpus", len(flows)), Series(name, len(flows))
        for number in range(rounds + 1):
            singles = [_sent(driver, [cpu], [visit])[0] for cpu, visit in zip(pair, visits, strict=True)]
            each = _sent(driver, pair, visits)
            if number:
                together.ns.append(harmonic_mean(each))
                alone.ns.append(harmonic_mean(singles) * len(pair))  # so that the ratio is that of packets
        yield together.line(**alone.ratio_to(together, "one_cpu"))


def _all_cpus() -> set[int]:
    """This process may have bound itself to one of them."""
    return set(range(os.cpu_count() or 1))


def _sent(driver: Driver, cpus: Sequence[int], visits: Sequence[Visit]) -> list[float]:
    """Each CPU its visit, all at the same time: ns of a packet on each."""
    start, each = threading.Barrier(len(cpus)), {}

    def run(cpu: int, visit: Visit) -> None:
        os.sched_setaffinity(0, {cpu})
        start.wait()
        each[cpu] = driver.send([visit]).each[0]

    threads = [threading.Thread(target=run, args=one) for one in zip(cpus, visits, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [each[cpu] for cpu in cpus]
