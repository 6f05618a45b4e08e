"""From samples to figures: medians, ratios within rounds, targets. It knows no system, measures and prints nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SUBJECT = "ipbackend"
YARDSTICKS = ("xdp-redirect", "nftables", "haproxy")
PERCENTILES = (50, 99)
Record = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """What one round cost: CPU nanoseconds per unit in all; datagrams lost; nanoseconds until each answer."""

    ns: float
    lost: int = 0
    latencies: Sequence[int] = ()


@dataclass(frozen=True)
class Result:
    """A case: each system's samples, round by round; the samples of one round belong together.

    `baseline` is the system that shows what links and ends cost without a gateway.
    """

    name: str
    flows: int
    unit: str
    baseline: str
    samples: Mapping[str, Sequence[Sample]]


@dataclass(frozen=True)
class Target:
    """The subject takes at most `limit` times what a yardstick takes; `net`: of what both add to the baseline."""

    what: str
    name: str
    flows: int
    yardstick: str
    limit: float
    net: bool = False

    @property
    def key(self) -> str:
        """Under which a record has the ratio."""
        return ratio_key(self.yardstick, net=self.net)


@dataclass(frozen=True)
class Judgement:
    """The subject's ratio, the smallest and largest of any round, and whether the median is within the limit."""

    target: Target
    ratio: float
    low: float
    high: float

    @property
    def met(self) -> bool:
        return self.ratio <= self.target.limit


def records(result: Result) -> list[Record]:
    """One for each system. `ns_…` is what it adds to the baseline, `whole_ns_…` what everything took together.

    A ratio is the median of the rounds' ratios: `ratio_to_…` of the whole, `net_ratio_to_…` of what is added.
    """
    whole = {system: [sample.ns for sample in samples] for system, samples in result.samples.items()}
    zero = whole[result.baseline]
    net = {system: [ns - base for ns, base in zip(values, zero, strict=True)] for system, values in whole.items()}
    made = []
    for system, samples in result.samples.items():
        record: Record = {"name": result.name, "system": system, "flows": result.flows, "unit": result.unit}
        record |= {"rounds": len(samples), "lost": sum(sample.lost for sample in samples)}
        record |= spread("ns", net[system]) | spread("whole_ns", whole[system])
        for percent in PERCENTILES if samples[0].latencies else ():
            record |= spread(f"latency_p{percent}_ns", [percentile(sample.latencies, percent) for sample in samples])
        for yardstick in YARDSTICKS:
            if yardstick in whole and system != yardstick:
                record |= ratio(ratio_key(yardstick, net=False), whole[system], whole[yardstick])
                record |= ratio(ratio_key(yardstick, net=True), net[system], net[yardstick])
        made.append(record)
    return made


def ratio_key(yardstick: str, *, net: bool) -> str:
    return f"{'net_' if net else ''}ratio_to_{yardstick.replace('-', '_')}"


def ratio(key: str, values: Sequence[float], yardstick: Sequence[float]) -> Record:
    each = [value / other for value, other in zip(values, yardstick, strict=True)]
    return {
        key: round(statistics.median(each), 4),
        f"{key}_min": round(min(each), 4),
        f"{key}_max": round(max(each), 4),
    }


def spread(key: str, values: Sequence[float]) -> Record:
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {f"{key}_{name}": round(figure, 1) for name, figure in figures.items()}


def percentile(values: Iterable[int], percent: int) -> int:
    """The smallest value that so many percent of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[-(-len(ordered) * percent // 100) - 1]


def judge(targets: Iterable[Target], made: Sequence[Record]) -> list[Judgement]:
    """What is to be said of the targets whose cases were run."""
    judged = []
    for target in targets:
        for record in made:
            if (record["name"], record["flows"], record["system"]) == (target.name, target.flows, SUBJECT):
                key = target.key
                judged.append(Judgement(target, record[key], record[f"{key}_min"], record[f"{key}_max"]))
    return judged
