"""New connections, and nothing but them: each lap of openings is undone by RSTs before the next, unmeasured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ipbackend.abi import Verdict
from tests.bench import bed
from tests.bench.bed import Yardsticks, changed, clients, configured, listening
from tests.bench.driver import Driver, Visit
from tests.bench.frames import RST, SYN, TCP
from tests.bench.rounds import Case, Line, measured
from tests.packet.conftest import Dataplane

LAP = 100  # connections: that many places are free at 99.9 % of the ceiling
LAPS = 300
CEILING = 100_000
SLOTS = 131_072  # for so many
HOT = 500  # a ceiling whose tables stay in the cache
HOT_SLOTS = 1024
OCCUPANCIES = (0.01, 0.5, 0.99, 0.999)
VERDICTS = (Verdict.FORWARD_OPENED, Verdict.FORWARD_REQUEST)


def openings(dataplane: Dataplane, driver: Driver, slots: int, port: int, ports: int = 1) -> Visit:
    """Ever other clients' SYNs to a port of the VIP, or by turns to that many from it on, and the RSTs that undo them.

    Each of the members' `slots` has been used once when this returns, so that what is measured is what goes on for
    ever: an opening evicts a closed connection. That stays in the index until then: its tuple must not come before.
    """
    syns = clients(slots * 3 // 2 // LAP * LAP + LAP, TCP, port)
    syns = changed(syns, dport=port + syns["sequence"] % ports, flags=SYN)
    undo = driver.place(changed(syns, flags=RST))
    visit = Visit(dataplane.program.entry, driver.place(syns), LAP, LAPS, undo)
    used = replace(visit, laps=slots // LAP + 1, start=visit.row.span - (slots // LAP + 1) * LAP)
    driver.send([used])
    return visit


def lines(dataplane: Dataplane, driver: Driver, rounds: int) -> Iterator[Line]:
    """At one member of a small table, and at members more and less full."""
    hot = f'address = "10.0.0.11", port = 8080, max_connections = {HOT}'
    large = [f'address = "10.0.0.{12 + n}", port = 8080' for n in range(len(OCCUPANCIES))]
    pools = [listening(f"at-{number}", 1001 + number, [member]) for number, member in enumerate(large)]
    configured(dataplane, listening("hot", 1000, [hot]), *pools)
    yardsticks = Yardsticks(driver, bed.opened(dataplane, driver, clients(0, TCP, 0)))
    cases = [Case("new", LAP, openings(dataplane, driver, HOT_SLOTS, 1000), VERDICTS, {"ceiling": HOT})]
    for number, at in enumerate(OCCUPANCIES):
        others = clients(round(at * CEILING) - LAP, TCP, number)
        bed.fill(dataplane, driver, changed(others, dport=1001 + number, flags=SYN))
        visit = openings(dataplane, driver, SLOTS, 1001 + number)
        more: Line = {"occupancy": at, "ceiling": CEILING}
        cases.append(Case("new-occupied", round(at * CEILING), visit, VERDICTS, more))
    empty = Case("empty", 0, replace(cases[0].visit, program=yardsticks.programs["empty"]))
    _, new, *occupied = measured(dataplane, driver, [empty, *cases], rounds * 3)
    yield new.line()
    for series in occupied:
        yield series.line(**series.ratio_to(occupied[0], "one_percent"))
    driver.free(cases[0].visit.undo)
    yardsticks.close()
    bed.ended(dataplane, "TCP")
