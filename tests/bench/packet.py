"""What a packet costs in the kernel, beside what it could cost at the least: the cases of one run."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import control, established, growth, openings, upkeep
from tests.bench.driver import Driver
from tests.bench.rounds import Line
from tests.netns.lab import private_mounts
from tests.packet.conftest import Dataplane, load

CASES = (*established.CASES, "new", "pools", "cpus", "upkeep", "control", "listeners")
LEVELS = (1, 1_000, 100_000, 1_000_000)
CONNECTIONS = 1_200_000  # that the data plane is loaded for
SHOTS = 7_000_000  # frames that the driver has room for, 24 bytes each
SEEN = 100_000  # frames that may be looked at afterwards, or more if there are more flows
RESULTS = Path("build/bench/packet.jsonl")


def lines(dataplane: Dataplane, driver: Driver, wanted: set[str], flows: list[int], rounds: int) -> Iterator[Line]:
    """The figures of all that is wanted, as they come."""
    if wanted & {*established.CASES}:
        yield from established.lines(dataplane, driver, wanted, flows, rounds)
    rest = {
        "new": openings.lines,
        "pools": growth.pools,
        "cpus": growth.cpus,
        "upkeep": upkeep.lines,
        "control": control.lines,
        "listeners": growth.listeners,
    }
    for name, of in rest.items():
        if name in wanted:
            yield from of(dataplane, driver, rounds)


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
    """Measure, show as it comes, and write it down."""
    given = arguments()
    private_mounts()
    os.sched_setaffinity(0, {given.cpu})
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with load(CONNECTIONS) as dataplane, RESULTS.open("w") as file:
        driver = Driver(SHOTS, max(*given.flows, SEEN))
        for line in lines(dataplane, driver, set(given.cases), given.flows, given.rounds):
            show(line)
            file.write(json.dumps(line) + "\n")
        driver.close()


def show(line: Line) -> None:
    """One line for a person to watch."""
    ratio = next((f"  × {value:.2f}" for name, value in line.items() if name.startswith("ratio_to")), "")
    if line["ns_median"] is None:
        print(line)
        return
    spread = f"({line['ns_min']:.1f} to {line['ns_max']:.1f})"
    print(f"{line['name']:14} {line['flows']:>9,} flows {line['ns_median']:8.1f} ns {spread:20}{ratio}", flush=True)


if __name__ == "__main__":
    main()
