"""Cases measured by turns, round after round, and what the rounds say together. It knows no program and no packet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from ipbackend.abi import Verdict
from tests.bench.bed import counted
from tests.bench.driver import Driver, Visit
from tests.packet.conftest import Dataplane

Line = dict[str, object]  # a result as it is written down


@dataclass(frozen=True)
class Case:
    """What is sent in a turn, and the verdicts that its packets, and those that undo them, must end in."""

    name: str
    flows: int
    visit: Visit
    verdicts: tuple[Verdict, ...] = ()
    more: Line = field(default_factory=dict)

    def expected(self) -> Counter[Verdict]:
        """So many packets under each verdict in a turn."""
        return Counter(dict.fromkeys(self.verdicts, self.visit.packets))


@dataclass(frozen=True)
class Series:
    """Figures of one thing, round by round: ns."""

    name: str
    flows: int
    ns: list[float] = field(default_factory=list)
    more: Line = field(default_factory=dict)

    def line(self, **more: object) -> Line:
        """The figures as they are written down, and what else there is to say."""
        ns = {"ns_median": median(self.ns), "ns_min": min(self.ns), "ns_max": max(self.ns)}
        rounded: Line = {name: round(value, 2) for name, value in ns.items()}
        return {"name": self.name, "flows": self.flows, **rounded, "rounds": len(self.ns)} | self.more | more

    def ratio_to(self, other: Series, name: str) -> Line:
        """`ratio_to_NAME`, the median of the rounds' ratios, and their extremes."""
        ratios = [mine / its for mine, its in zip(self.ns, other.ns, strict=True)]
        figures = {"": median(ratios), "_min": min(ratios), "_max": max(ratios)}
        return {f"ratio_to_{name}{which}": round(value, 3) for which, value in figures.items()}


def measured(dataplane: Dataplane, driver: Driver, cases: Sequence[Case], rounds: int) -> list[Series]:
    """Every case once in every round, after a round that only warms up; all less the first, which is the empty one."""
    series = [Series(case.name, case.flows, more=case.more) for case in cases]
    expected = sum((case.expected() for case in cases), Counter())
    assert not cases[0].verdicts
    for number in range(rounds + 1):
        visits = [replace(case.visit, start=number * case.visit.packets % case.visit.row.span) for case in cases]
        with counted(dataplane, expected):
            each = driver.send(visits).each
        for one, ns in zip(series, each, strict=True):
            if number:
                one.ns.append(ns - (0 if one is series[0] else each[0]))
    return series
