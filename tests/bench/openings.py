"""New connections, and nothing but them: each lap of openings is undone by RSTs before the next, unmeasured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ipbackend.abi import Verdict
from tests.bench import bed
from tests.bench.bed import changed, clients, configured, listening
from tests.bench.driver import Driver, Visit
from tests.bench.frames import RST, SYN, TCP
from tests.bench.rounds import Case, Line, Series, measured
from tests.packet.conftest import Dataplane

LAP = 100  # connections: that many places are free at 99.9 % of the ceiling
LAPS = 300
CEILING = 100_000
SLOTS = 131_072  # for so many
HOT = 500  # a ceiling whose tables stay in the cache
HOT_SLOTS = 1024
OCCUPANCIES = (0.01, 0.5, 0.99, 0.999)
VERDICTS = (Verdict.FORWARD_OPENED, Verdict.FORWARD_REQUEST)


def openings(dataplane: Dataplane, driver: Driver, tuples: int, port: int, ports: int = 1, laps: int = LAPS) -> Visit:
    """So many clients' SYNs to a port of the VIP, or by turns to that many from it on, and the RSTs that undo them."""
    syns = clients(tuples // LAP * LAP, TCP, port)
    syns = changed(syns, dport=port + syns["sequence"] % ports, flags=SYN)
    undo = driver.place(changed(syns, flags=RST))
    return Visit(dataplane.program.entry, driver.place(syns), LAP, laps, undo)


def worn(dataplane: Dataplane, driver: Driver, slots: int, port: int) -> Visit:
    """Openings at members whose slots, so many in all, have all been used: each evicts a closed connection.

    This is what goes on for ever. A closed one stays in the index until then: its tuple must not come before.
    """
    visit = openings(dataplane, driver, slots * 3 // 2 + LAP, port)
    laps = slots // LAP + 1
    driver.send([replace(visit, laps=laps, start=visit.row.span - laps * LAP)])
    return visit


def lines(dataplane: Dataplane, driver: Driver, rounds: int) -> Iterator[Line]:
    """At one member of a small table, and at members more and less full."""
    hot = f'address = "10.0.0.11", port = 8080, max_connections = {HOT}'
    large = [f'address = "10.0.0.{12 + n}", port = 8080' for n in range(len(OCCUPANCIES))]
    pools = [listening(f"at-{number}", 1001 + number, [member]) for number, member in enumerate(large)]
    configured(dataplane, listening("hot", 1000, [hot]), *pools)
    with bed.yardsticks(driver) as programs:
        cases = [Case("new", LAP, worn(dataplane, driver, HOT_SLOTS, 1000), VERDICTS, {"ceiling": HOT})]
        for number, at in enumerate(OCCUPANCIES):
            others = clients(round(at * CEILING) - LAP, TCP, number)
            bed.fill(dataplane, driver, changed(others, dport=1001 + number, flags=SYN))
            visit = worn(dataplane, driver, SLOTS, 1001 + number)
            more: Line = {"occupancy": at, "ceiling": CEILING}
            cases.append(Case("new-occupied", round(at * CEILING), visit, VERDICTS, more))
        new, *occupied = above_empty(dataplane, driver, programs, cases, rounds * 3)
    yield new.line()
    for series in occupied:
        yield series.line(**series.ratio_to(occupied[0], "one_percent"))


def above_empty(
    dataplane: Dataplane, driver: Driver, programs: dict[str, int], cases: list[Case], rounds: int
) -> list[Series]:
    """The cases measured, and beside them the first one's frames to an empty program, which is taken off."""
    empty = Case("empty", 0, replace(cases[0].visit, program=programs["empty"]))
    return measured(dataplane, driver, [empty, *cases], rounds)[1:]
