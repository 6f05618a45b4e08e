"""What a packet costs in the kernel, beside what it could cost at the least: every case in every round of one run."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from ipbackend.abi import Verdict
from tests.bench import bed, frames
from tests.bench.bed import Flows, Yardsticks, changed, clients, configured, counted, listening
from tests.bench.driver import Driver, Placed
from tests.bench.frames import RST, SYN, TCP, UDP
from tests.netns.lab import private_mounts
from tests.packet.conftest import Dataplane, load

CASES = ("array-nat", "reference-nat", "not-ours", "request", "reply", "request-udp", "reply-udp", "reject", "new")
LEVELS = (1, 1_000, 100_000, 1_000_000)
MEMBERS = 10  # of 100,000 TCP connections each
DATAGRAM_FLOWS = 100_000  # at the most
PACKETS = 500_000  # of a case in a round
RESULTS = Path("build/bench/packet.jsonl")


@dataclass
class Series:
    """A case's figures, round by round: ns above the empty target."""

    name: str
    flows: int
    ns: list[float] = field(default_factory=list)
    more: dict[str, object] = field(default_factory=dict)

    def line(self) -> dict[str, object]:
        """As it is written down."""
        figures = {"ns_median": median(self.ns), "ns_min": min(self.ns), "ns_max": max(self.ns)}
        return {
            "name": self.name,
            "flows": self.flows,
            **{name: round(value, 2) for name, value in figures.items()},
            "rounds": len(self.ns),
            **self.more,
        }


def ratio(series: Series, to: Series) -> dict[str, float]:
    """The median of the rounds' ratios, and the extremes."""
    ratios = [mine / its for mine, its in zip(series.ns, to.ns, strict=True)]
    return {"median": round(median(ratios), 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)}


@dataclass(frozen=True)
class Case:
    """A row of frames for a target; `verdict` is how each must end, None for a target that counts none."""

    name: str
    target: int
    placed: Placed
    verdict: Verdict | None = None


class Level:
    """All cases over one number of flows."""

    def __init__(self, dataplane: Dataplane, wanted: set[str], flows: Flows, datagrams: Flows | None) -> None:
        self._dataplane = dataplane
        self._flows = len(flows)
        self._driver = Driver(6 * len(flows), len(flows))
        self._yardsticks = Yardsticks(flows)
        order = np.random.default_rng(len(flows)).permutation(len(flows))
        self._cases = [
            case for case in self._all(flows, datagrams, order) if case.name in wanted or case.name == "empty"
        ]

    def _all(self, flows: Flows, datagrams: Flows | None, order: np.ndarray) -> Iterator[Case]:
        place, entry, programs = self._driver.place, self._dataplane.program.entry, self._yardsticks.programs
        requests, replies = flows.requests[order], flows.replies[order]
        row, answers = place(requests), place(replies)
        yield Case("empty", programs["empty"], row)
        for name in ("array", "reference"):
            yield self._checked(Case(f"{name}-nat", programs[f"{name}_nat"], row), requests, frames.turned(replies))
        strangers = place(changed(requests, daddr=bed.ELSEWHERE))
        yield Case("not-ours", entry, strangers, Verdict.PASS_NOT_OURS)
        yield self._checked(Case("request", entry, row, Verdict.FORWARD_REQUEST), requests, frames.turned(replies))
        yield self._checked(Case("reply", entry, answers, Verdict.FORWARD_REPLY), replies, frames.turned(requests))
        refused = place(changed(requests, dport=bed.NO_LISTENER, flags=SYN))
        yield Case("reject", entry, refused, Verdict.REJECT_NO_LISTENER)
        if datagrams:
            requests, replies = datagrams.requests[order], datagrams.replies[order]
            case = Case("request-udp", entry, place(requests), Verdict.FORWARD_REQUEST)
            yield self._checked(case, requests, frames.turned(replies))
            case = Case("reply-udp", entry, place(replies), Verdict.FORWARD_REPLY)
            yield self._checked(case, replies, frames.turned(requests))

    def _checked(self, case: Case, sent: frames.Row, expected: frames.Row) -> Case:
        self._driver.aim(case.target)
        bed.check_rewritten(self._driver, case.placed, sent, expected)
        return case

    def measure(self, rounds: int) -> list[Series]:
        """The cases by turns."""
        series = {case.name: Series(case.name, self._flows) for case in self._cases}
        for number in range(-1, rounds):  # one to warm up
            base = 0.0
            for case in self._cases:
                each = self._send(case, number * PACKETS % self._flows)
                if case.name == "empty":
                    base = each
                if number >= 0:
                    series[case.name].ns.append(each if case.name == "empty" else each - base)
        reference = series.get("reference-nat")
        for one in series.values():
            if reference and one.name != "empty":
                one.more["ratio_to_reference"] = ratio(one, reference)
        return list(series.values())

    def _send(self, case: Case, start: int) -> float:
        self._driver.aim(case.target)
        expected = {case.verdict.name: PACKETS + 1} if case.verdict else {}
        with counted(self._dataplane, **expected):
            sample = self._driver.send(case.placed, PACKETS, start)
        return sample.cpu / sample.sent

    def close(self) -> None:
        self._driver.close()
        self._yardsticks.close()


def levels(dataplane: Dataplane, wanted: set[str], numbers: list[int], rounds: int) -> Iterator[Series]:
    """Packets of established connections, over more and more of them."""
    members = [f'address = "10.0.0.{host}", port = 8080' for host in range(11, 11 + MEMBERS)]
    few = [f"{member}, max_connections = {DATAGRAM_FLOWS // MEMBERS}" for member in members]
    configured(dataplane, listening("web", 80, members), listening("dns", 53, few, "UDP"))
    requests = clients(max(numbers), TCP, 1)
    udp = {"request-udp", "reply-udp"} & wanted
    datagrams = clients(min(max(numbers), DATAGRAM_FLOWS), UDP, 2) if udp else None
    flows, streams = None, None
    for number in sorted(numbers):
        flows = more(dataplane, flows, requests[:number])
        if datagrams is not None and number <= len(datagrams):
            streams = more(dataplane, streams, datagrams[:number])
        else:
            streams = None
            bed.closed(dataplane, "UDP")
        level = Level(dataplane, wanted, flows, streams)
        yield from level.measure(rounds)
        level.close()
    bed.closed(dataplane, "TCP")
    bed.closed(dataplane, "UDP")


def more(dataplane: Dataplane, have: Flows | None, requests: frames.Row) -> Flows:
    """As many connections as requests, those that are open already among them."""
    fresh = bed.opened(dataplane, requests[len(have) if have else 0 :])
    return have + fresh if have else fresh


CEILING = 100_000
BATCH = 100
SLOTS = 131_072
OCCUPANCIES = (0.01, 0.5, 0.99, 0.999)


def openings(dataplane: Dataplane, rounds: int) -> list[Series]:
    """New connections at one member: of a small table that stays in the cache, and at levels of its ceiling."""
    hot = 'address = "10.0.0.11", port = 8080, max_connections = 1000'
    large = [f'address = "10.0.0.{12 + n}", port = 8080' for n in range(len(OCCUPANCIES))]
    configured(
        dataplane,
        listening("hot", 1000, [hot]),
        *(listening(f"at-{n}", 1001 + n, [member]) for n, member in enumerate(large)),
    )
    names = ["new", *(f"new-at-{occupancy:.1%}" for occupancy in OCCUPANCIES)]
    series = {"new": Series("new", BATCH, more={"ceiling": 1000})}
    series |= {
        name: Series("new-occupied", int(at * CEILING), more={"occupancy": at, "ceiling": CEILING})
        for name, at in zip(names[1:], OCCUPANCIES, strict=True)
    }
    span = 2 * SLOTS
    driver = Driver(2 * span * len(names), 1)
    yardsticks = Yardsticks(Flows(clients(1, TCP, 3), clients(1, TCP, 3)))
    rows = {}
    for number, (name, one) in enumerate(series.items()):
        syns = changed(clients(span if number else 8192, TCP, 10 + number), dport=1000 + number, flags=SYN)
        rows[name] = driver.place(syns), driver.place(changed(syns, flags=RST))
        if number:
            background = clients(one.flows - BATCH, TCP, 20 + number)
            background["dport"] = 1000 + number
            fill(dataplane, changed(background, flags=SYN))
    for number in range(-1, rounds):
        for name, one in series.items():
            times = 500 if number >= 0 else SLOTS // BATCH + 1  # the first time each slot is used
            driver.aim(yardsticks.programs["empty"])
            base = driver.send_and_undo(*rows[name], BATCH, times).each
            driver.aim(dataplane.program.entry)
            start = (number + 1) * 50_000 + (SLOTS if number >= 0 else 0)
            with counted(dataplane, FORWARD_OPENED=times * BATCH, FORWARD_REQUEST=times * BATCH):
                sample = driver.send_and_undo(*rows[name], BATCH, times, start % rows[name][0].span)
            if number >= 0:
                one.ns.append(sample.each - base)
    for one in series.values():
        if "occupancy" in one.more:
            one.more["ratio_to_one_percent"] = ratio(one, series[names[1]])
    driver.close()
    yardsticks.close()
    bed.closed(dataplane, "TCP")
    return list(series.values())


def fill(dataplane: Dataplane, syns: frames.Row) -> None:
    """Connections that stay."""
    driver = Driver(len(syns), 1)
    driver.aim(dataplane.program.entry)
    with counted(dataplane, FORWARD_OPENED=len(syns), FORWARD_REQUEST=1):
        driver.send(driver.place(syns), len(syns))
    driver.close()


def arguments() -> argparse.Namespace:
    def listed(kind: Callable[[str], object]) -> Callable[[str], list[object]]:
        return lambda text: [kind(one) for one in text.split(",")]

    parser = argparse.ArgumentParser(prog="make bench-packet", description=__doc__)
    parser.add_argument("--cases", type=listed(str), default=list(CASES), help=f"some of {','.join(CASES)}")
    parser.add_argument("--flows", type=listed(int), default=list(LEVELS), help="how many, such as 1,100000")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="which one all runs on")
    given = parser.parse_args()
    if unknown := set(given.cases) - set(CASES):
        parser.error(f"--cases: {', '.join(sorted(unknown))} is none of {', '.join(CASES)}")
    return given


def main() -> None:
    given = arguments()
    private_mounts()
    os.sched_setaffinity(0, {given.cpu})
    wanted = set(given.cases) | {"array-nat", "reference-nat"}
    lines = []
    with load(1_000_000) as dataplane:
        if wanted - {"new", "array-nat", "reference-nat"}:
            for one in levels(dataplane, wanted, given.flows, given.rounds):
                lines.append(one.line())
                show(lines[-1])
        if "new" in wanted:
            for one in openings(dataplane, given.rounds):
                lines.append(one.line())
                show(lines[-1])
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines))


def show(line: dict[str, object]) -> None:
    ratios = line.get("ratio_to_reference") or line.get("ratio_to_one_percent")
    print(
        f"{line['name']:14} {line['flows']:>9,} flows {line['ns_median']:8.1f} ns "
        f"({line['ns_min']:.1f} to {line['ns_max']:.1f})" + (f"  × {ratios['median']:.2f}" if ratios else ""),
        flush=True,
    )


if __name__ == "__main__":
    main()
