"""What a packet costs in the kernel, beside what it could cost at the least: the cases of one run."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ipbackend.datapath.loader import unpin
from tests.bench import bed, choosing, control, established, flows, growth, openings, report, scrape, upkeep, watching
from tests.bench.driver import Driver
from tests.bench.rounds import Line
from tests.netns.lab import private_mounts
from tests.packet.conftest import RUN, Dataplane, load

ELSE = {
    "new": openings.lines,
    "pools": choosing.pools,
    "demands": choosing.demands,
    "listeners": growth.listeners,
    "cpus": growth.cpus,
    "upkeep": upkeep.lines,
    "flows": flows.lines,
    "watching": watching.lines,
    "scrape": scrape.lines,
}
CASES = (*established.CASES, *ELSE, "control")
LEVELS = (1, 1_000, 100_000, 1_000_000)

SHOTS = 7_000_000  # frames that the driver has room for, 24 bytes each
SEEN = 100_000  # frames that may be looked at afterwards, or more if there are more flows
DOCS = Path("docs")
RESULTS = Path("build/bench/packet.jsonl")


def lines(driver: Driver, wanted: set[str], flows: list[int], rounds: int) -> Iterator[Line]:
    """The figures of all that is wanted, as they come; each kind with a data plane of its own, loaded afresh."""
    if wanted & {*established.CASES}:
        with fresh() as dataplane:
            yield from established.lines(dataplane, driver, wanted, flows, rounds)
    for name, of in ELSE.items():
        if name in wanted:
            with fresh() as dataplane:
                yield from of(dataplane, driver, rounds)
    if "control" in wanted:
        yield from control.lines(rounds)


@contextmanager
def fresh() -> Iterator[Dataplane]:
    """A data plane that holds nothing yet."""
    with load(bed.CONNECTIONS) as dataplane:
        yield dataplane
    unpin(RUN)


def arguments() -> argparse.Namespace:
    def listed(kind: Callable[[str], object]) -> Callable[[str], list[object]]:
        return lambda text: [kind(one) for one in text.split(",")]

    parser = argparse.ArgumentParser(prog="make bench-packet", description=__doc__)
    parser.add_argument("--cases", type=listed(str), default=list(CASES), help=f"some of {','.join(CASES)}")
    parser.add_argument("--flows", type=listed(int), default=list(LEVELS), help="how many, such as 1,100000")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="which one all runs on")
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md and its curves as well")
    given = parser.parse_args()
    if unknown := set(given.cases) - set(CASES):
        parser.error(f"--cases: {', '.join(sorted(unknown))} is none of {', '.join(CASES)}")
    return given


def main() -> None:
    """Measure, show as it comes, write it down; then the targets and the curves."""
    given = arguments()
    private_mounts()
    os.sched_setaffinity(0, {given.cpu})
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    figures = []
    driver = Driver(SHOTS, max(*given.flows, SEEN))
    with RESULTS.open("w") as file:
        for line in lines(driver, set(given.cases), given.flows, given.rounds):
            figures.append(line)
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(report.shown(line), flush=True)
    driver.close()
    print(f"\n{report.text_table(report.targets(figures))}")
    pictures = report.curves(figures, DOCS if given.docs else RESULTS.parent)
    if given.docs:
        (DOCS / "benchmarks.md").write_text(report.page(figures, pictures))


if __name__ == "__main__":
    main()
