"""Figures beside their targets: a table, curves, a page for the docs. It measures nothing, it reads results."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS_FROM = 1_000_000  # ns
Figures = Sequence[dict[str, Any]]  # lines of the results


@dataclass(frozen=True)
class Target:
    """What the figure of a case should be at the most, or at the least; `of` says which one, in `unit`."""

    what: str
    case: dict[str, Any]
    of: str
    limit: float
    unit: str = "×"
    scale: float = 1
    at_least: bool = False

    def figure(self, figures: Figures) -> float | None:
        """What was measured, if it was."""
        found = [line for line in figures if all(line.get(key) == value for key, value in self.case.items())]
        return found[0][self.of] / self.scale if found and self.of in found[0] else None

    def row(self, figures: Figures) -> tuple[str, str, str, str]:
        """Of the table: what, the target, the figure, whether it is met."""
        figure = self.figure(figures)
        target = f"{'≥' if self.at_least else '≤'} {self.limit:g} {self.unit}"
        if figure is None:
            return self.what, target, "–", "not measured"
        met = figure >= self.limit if self.at_least else figure <= self.limit
        return self.what, target, f"{figure:.3g} {self.unit}", "yes" if met else "no"


def _established(name: str, what: str, flows: int, limit: float) -> Target:
    return Target(
        f"{what}, {flows:,} flow{'s' if flows > 1 else ''}, over reference NAT",
        {"name": name, "flows": flows},
        "ratio_to_reference",
        limit,
    )


TARGETS = (
    _established("request", "request", 1, 2.0),
    Target("request, 1 flow", {"name": "request", "flows": 1}, "ns_median", 50, "ns"),
    _established("request", "request", 100_000, 1.1),
    _established("request", "request", 1_000_000, 1.0),
    _established("reply", "reply", 1, 1.7),
    _established("reply", "reply", 100_000, 0.7),
    _established("reply", "reply", 1_000_000, 0.7),
    Target("packet that is not ours", {"name": "not-ours", "flows": 1}, "ns_median", 12, "ns"),
    Target("new connection, one member, hot", {"name": "new"}, "ns_median", 350, "ns"),
    Target(
        "the same at 99.9 % of the ceiling, over 1 %",
        {"name": "new-occupied", "occupancy": 0.999},
        "ratio_to_one_percent",
        1.2,
    ),
    Target("sweep, idle slot", {"name": "sweep-idle"}, "ns_median", 10, "ns"),
    Target("sweep, expired connection", {"name": "sweep-expired"}, "ns_median", 350, "ns"),
    Target("sweep of 1,000,000 connections, of one core", {"name": "sweep-idle"}, "core_share", 2, "%", 0.01),
    Target(
        "two CPUs, requests", {"name": "request-two-cpus", "flows": 100_000}, "ratio_to_one_cpu", 1.9, at_least=True
    ),
    Target("two CPUs, replies", {"name": "reply-two-cpus", "flows": 100_000}, "ratio_to_one_cpu", 1.9, at_least=True),
    Target("load", {"name": "load"}, "ns_median", 2, "s", 1e9),
    Target("restart over live maps", {"name": "restart", "members": 1_000}, "ns_median", 1, "s", 1e9),
    Target("10,000 members applied", {"name": "apply", "members": 10_000}, "ns_median", 3, "s", 1e9),
    Target("descriptors kept for each", {"name": "apply", "members": 10_000}, "descriptors_kept", 0.001, "", 10_000),
)


def targets(figures: Figures) -> Iterator[tuple[str, str, str, str]]:
    """The table of targets, with its heading."""
    yield "what", "target", "figure", "met"
    yield from (target.row(figures) for target in TARGETS)


def everything(figures: Figures) -> Iterator[tuple[str, ...]]:
    """The table of all figures, with its heading."""
    yield "case", "flows", "median", "least", "most", "rounds", "besides"
    known = {"name", "flows", "ns_median", "ns_min", "ns_max", "rounds"}
    for line in figures:
        numbers = [_time(line[key]) for key in ("ns_median", "ns_min", "ns_max")]
        besides = ", ".join(
            _besides(line, key) for key in line if key not in known and not key.endswith(("_min", "_max"))
        )
        yield line["name"], f"{line['flows']:,}", *numbers, str(line["rounds"]), besides


def _besides(line: dict[str, Any], key: str) -> str:
    """What else a line says; a ratio with its extremes."""
    name, value = key.replace("_", " "), line[key]
    if f"{key}_min" in line:
        return f"{name} {value:.2f} ({line[f'{key}_min']:.2f} to {line[f'{key}_max']:.2f})"
    return f"{name} {value}" if isinstance(value, str) else f"{name} {value:,}"


def _time(ns: float | None) -> str:
    if ns is None:
        return ""
    return f"{ns:,.1f} ns" if ns < SECONDS_FROM else f"{ns / 1e9:.2f} s"


def shown(line: dict[str, Any]) -> str:
    """One line for a person to watch."""
    _, (name, flows, median, least, most, _, besides) = everything([line])
    return f"{name:22} {flows:>9} flows  {median:>10}  ({least} to {most})  {besides}"


def text_table(rows: Iterator[tuple[str, ...]]) -> str:
    """For a terminal."""
    table = list(rows)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)


def markdown_table(rows: Iterator[tuple[str, ...]]) -> str:
    """For the docs."""
    heading, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([heading, re.sub(r"[^|]+", "---", heading), *rest])


def machine() -> str:
    """What it was measured on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"


def commit() -> str:
    """What was measured; `+` where files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(("git", *arguments), check=True, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "bpf", "ctl") else "")


def curves(figures: Figures, directory: Path) -> list[Path]:
    """The pictures, as far as there is more than one point to draw."""
    import matplotlib  # only here, and only in the extra `bench`

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pictures = []
    for name, title, across, key in (
        ("packet-flows", "An established connection's packet", "flows", _flow_curve),
        ("packet-occupancy", "A new connection at an endpoint of 100,000", "occupancy", _curve("new-occupied")),
        ("packet-members", "A new connection", "members of the pool", _member_curve),
        ("packet-listeners", "10,000 flows", "listeners and endpoints", _listener_curve),
    ):
        lines: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        for line in figures:
            point = key(line)
            if point:
                lines.setdefault(line["name"], []).append((point, line))
        if not any(len(points) > 1 for points in lines.values()):
            continue
        figure, axes = pyplot.subplots(figsize=(7, 4.2))
        for label, points in lines.items():
            at = [x for x, _ in points]
            (drawn,) = axes.plot(at, [line["ns_median"] for _, line in points], marker="o", label=label)
            least, most = ([line[which] for _, line in points] for which in ("ns_min", "ns_max"))
            axes.fill_between(at, least, most, color=drawn.get_color(), alpha=0.15)
        axes.set(title=title, xlabel=across, ylabel="ns above an empty program")
        axes.set_xscale("linear" if across == "occupancy" else "log")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
        pictures.append(directory / f"{name}.png")
        figure.savefig(pictures[-1], dpi=110, bbox_inches="tight")
        pyplot.close(figure)
    return pictures


def _flow_curve(line: dict[str, Any]) -> float | None:
    shown = ("array-nat", "reference-nat", "not-ours", "request", "reply")
    return line["flows"] if line["name"] in shown else None


def _member_curve(line: dict[str, Any]) -> float | None:
    return line["members"] if "members" in line and line["name"] != "new-one-has-room" else None


def _listener_curve(line: dict[str, Any]) -> float | None:
    return line.get("listeners")


def _curve(name: str, key: str = "occupancy") -> Callable[[dict[str, Any]], float | None]:
    return lambda line: line[key] if line["name"] == name else None


def page(figures: Figures, pictures: Sequence[Path]) -> str:
    """The docs' page."""
    shown = "\n\n".join(f"![{picture.stem}]({picture.name})" for picture in pictures)
    return f"""# Benchmarks: a packet in the kernel

Written by `make bench-packet ARGS=--docs` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d} at commit {commit()}:
{machine()}.

{HOW}
## Targets

{markdown_table(targets(figures))}

## Curves

{shown}

## All figures

{markdown_table(everything(figures))}
"""


HOW = """\
A driver program inside the kernel (BPF_PROG_TEST_RUN) writes the next frame of a shuffled row whole and tail-calls the
program that is measured. All figures are ns on one CPU above an *empty* program that is called the same way in the same
round: the median over rounds, with the least and the most; ratios are medians of the rounds' ratios. Figures of
different runs differ by half on a shared machine, ratios within one hardly. Yardsticks, in the same rounds:

* *array-nat*: parse, one array lookup by an index that the packet brings along, and the full rewrite of addresses,
  ports, MACs, TTL and checksums: what a NAT can cost at the least.
* *reference-nat*: the same with one lookup in the kernel's hash, 16-byte keys, over as many flows. It has no state of
  connections, no counters, no way back.

Every frame of each case is looked at once as it leaves, its checksums computed anew, and every measured packet must be
counted under the verdict that it is meant to end in.

Time is the median lap of 1,000 packets (of 100 openings), by the kernel's clock between laps: as steady as the thread's
CPU clock when nothing else runs, and blind to what interrupts a lap; the `duration` of the call itself is a mean, in
whole ns, of everything.
Instructions and cache misses cannot be counted where the virtual machine has no performance counters, as here.
*new* opens, in laps of 100, and undoes by RSTs between laps; each opening evicts a closed connection from its slot.
"""
