"""What telling of connections costs a packet: established ones and new ones, by turns without it, told, and counted.

The programs share their tables, so that only they differ; where events are told, the ring is emptied between turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np

from ipbackend.abi import Verdict
from ipbackend.datapath.loader import Program
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.ring import HEADER, Ring
from ipbackend.flows.event import STRUCT
from tests.bench import bed, openings
from tests.bench.bed import clients, configured, counted, listening
from tests.bench.driver import Driver, Visit
from tests.bench.established import LAP, MEMBERS, turns
from tests.bench.frames import TCP
from tests.bench.rounds import Case, Line, Series, measured
from tests.packet.conftest import RUN, Dataplane

LEVELS = (1, 1_000, 100_000, 1_000_000)


def lines(dataplane: Dataplane, driver: Driver, rounds: int) -> Iterator[Line]:
    """Established packets over more and more flows, then openings."""
    members = [f'address = "10.0.0.{host}", port = 8080' for host in range(11, 11 + MEMBERS)]
    hot = f'address = "10.0.0.9", port = 8080, max_connections = {openings.HOT}'
    configured(dataplane, listening("web", 80, members), listening("hot", 1000, [hot]))
    with closing(Program(RUN, bed.CONNECTIONS, counted=True)) as counting, Maps(RUN) as maps:
        yield from _new(dataplane, driver, counting, maps, rounds * 3)
        dataplane.program.join(dataplane.maps)
        requests = clients(max(LEVELS), TCP, 1)
        flows = bed.opened(dataplane, driver, requests[:0])
        for number in LEVELS:
            flows += bed.opened(dataplane, driver, requests[len(flows) : number])
            laps, rounds_each = turns(number, rounds)
            order = np.random.default_rng(number).permutation(number)
            with driver.borrowed(), bed.yardsticks(driver) as programs:
                rows = {
                    "request": (driver.place(flows.requests[order]), Verdict.FORWARD_REQUEST),
                    "reply": (driver.place(flows.replies[order]), Verdict.FORWARD_REPLY),
                }
                cases = [Case("empty", number, Visit(programs["empty"], rows["request"][0], LAP, laps))]
                for name, (row, verdict) in rows.items():
                    for which, program in (("off", dataplane.program), ("counted", counting)):
                        visit = Visit(program.entry, row, LAP, laps)
                        cases.append(Case(f"{name}-{which}", number, visit, (verdict,)))
                _, *series = measured(dataplane, driver, cases, rounds_each)
            for off, on in zip(series[::2], series[1::2], strict=True):
                yield off.line()
                yield on.line(**on.ratio_to(off, "off"), more_ns=_more(on, off))


def _new(dataplane: Dataplane, driver: Driver, counting: Program, maps: Maps, rounds: int) -> Iterator[Line]:
    """A connection opened at a member whose tables stay in the cache."""
    ring = Ring(maps["events"].fd, STRUCT.size)
    visit = openings.worn(dataplane, driver, openings.HOT_SLOTS, 1000)
    variants = {"off": (dataplane.program, 0), "told": (dataplane.program, 1), "counted": (counting, 1)}
    series = {name: Series(f"new-{name}", openings.LAP) for name in variants}
    with bed.yardsticks(driver) as programs:
        for number in range(rounds + 1):
            start = number * visit.packets % visit.row.span
            for name, (program, events) in variants.items():
                program.join(maps)
                dataplane.settings.events = events
                visits = [replace(visit, program=one, start=start) for one in (programs["empty"], program.entry)]
                with counted(dataplane, dict.fromkeys(openings.VERDICTS, visit.packets)):
                    empty, each = driver.send(visits).each
                if number:
                    series[name].ns.append(each - empty)
                ring.advance(ring.position + ring.waiting * (HEADER + STRUCT.size))
    dataplane.settings.events = 0
    lost = sum(row.lost for row in maps["event_counts"].get(0))
    assert not lost, f"{lost} events found no room: what is measured would not be the telling of them"
    ring.close()
    off = series["off"]
    for one in series.values():
        yield one.line(**one.ratio_to(off, "off"), more_ns=_more(one, off))


def _more(series: Series, off: Series) -> float:
    """Ns more than without, the median of the rounds' differences."""
    return round(float(np.median(np.subtract(series.ns, off.ns))), 2)
