"""Figures as JSON lines, as tables, as a picture and as a page of the documentation. It measures nothing."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.gateway_figures import Judgement, Record
from tests.netns.members import REPOSITORY

Case = tuple[str, int, str]
"""Name, flows and unit."""


def write_jsonl(path: Path, made: Iterable[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in made))


def by_case(made: Iterable[Record]) -> dict[Case, list[Record]]:
    found: dict[Case, list[Record]] = {}
    for record in made:
        found.setdefault((record["name"], record["flows"], record["unit"]), []).append(record)
    return found


def title(case: Case) -> str:
    name, flows, unit = case
    return f"{name}, {flows:,} flow{'s' * (flows > 1)}: CPU ns per {unit}"


def tables(made: Sequence[Record], judged: Sequence[Judgement]) -> str:
    """Markdown that reads as plain text too."""
    parts = []
    for case, of_case in by_case(made).items():
        rows = [["", "added", "(min – max)", "whole", "× XDP redirect", "× nftables", "added × nftables", ""]]
        rows += [row(record) for record in of_case]
        parts.append(f"**{title(case)}**\n\n{markdown(rows)}")
    if judged:
        rows = [["target", "at most", "measured", "(min – max)", ""]]
        for one in judged:
            figures = [f"{one.target.limit:.3f}", f"{one.ratio:.3f}", f"{one.low:.3f} – {one.high:.3f}"]
            rows.append([one.target.what, *figures, "met" if one.met else "**not met**"])
        parts.append(f"**Targets**\n\n{markdown(rows)}")
    return "\n\n".join(parts) + "\n"


def row(record: Record) -> list[str]:
    def shown(key: str) -> str:
        return f"{record[key]:.2f}" if key in record else ""

    return [
        record["system"],
        f"{record['ns_median']:,.0f}",
        f"{record['ns_min']:,.0f} – {record['ns_max']:,.0f}",
        f"{record['whole_ns_median']:,.0f}",
        shown("ratio_to_xdp_redirect"),
        shown("ratio_to_nftables"),
        shown("net_ratio_to_nftables"),
        ", ".join(remarks(record)),
    ]


def remarks(record: Record) -> list[str]:
    said = []
    if record["lost"]:
        said.append(f"{record['lost']:,} lost")
    if "latency_p50_ns" + "_median" in record:
        p50, p99 = (record[f"latency_p{percent}_ns_median"] / 1000 for percent in (50, 99))
        said.append(f"p50 {p50:.1f} µs, p99 {p99:.1f} µs")
    if record["unit"] == "KiB":
        said.append(f"{8 * 1024 / record['whole_ns_median']:.1f} Gbit/s for a core")
    return said


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths = [max(width, 3) for width in widths]
    lines = [
        " | ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in rows
    ]
    rule = " | ".join(("-" * (width - 1) + ":") if number else "-" * width for number, width in enumerate(widths))
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))


def picture(path: Path, made: Sequence[Record]) -> None:
    """Bars of what each system adds, smallest to largest round as a line across their ends."""
    import matplotlib  # an extra that only this needs

    matplotlib.use("agg")
    from matplotlib import pyplot

    found = by_case(made)
    figure, axes = pyplot.subplots(len(found), 1, figsize=(9, 1 + 2.2 * len(found)), squeeze=False)
    for axis, (case, of_case) in zip(axes[:, 0], found.items(), strict=True):
        bars = [record for record in of_case if record["ns_median"] > 0][::-1]
        medians = [record["ns_median"] for record in bars]
        below = [median - max(record["ns_min"], 0) for median, record in zip(medians, bars, strict=True)]
        above = [record["ns_max"] - median for median, record in zip(medians, bars, strict=True)]
        colours = ["tab:orange" if record["system"] == "ipbackend" else "tab:blue" for record in bars]
        drawn = axis.barh([record["system"] for record in bars], medians, xerr=(below, above), color=colours)
        axis.bar_label(drawn, [f"{median:,.0f}" for median in medians], padding=4)  # beyond the line
        axis.margins(x=0.1)
        axis.set_title(f"{title(case)} that the gateway adds", fontsize="medium")
        axis.set_xlim(left=0)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


PAGE = """# Benchmarks: the gateway beside others

Written by `make bench-gateway ARGS=--docs` on {date} at commit {commit}: {machine}.

{method}

![CPU time that each gateway adds](benchmarks-gateway.png)

{tables}"""


def page(method: str, shown: str) -> str:
    return PAGE.format(
        date=f"{datetime.now(UTC):%Y-%m-%d}", commit=commit(), machine=machine(), method=method, tables=shown
    )


def commit() -> str:
    """Of the working tree, marked if it holds more than was committed."""
    command = ("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--exclude=*")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> str:
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return f"{model.partition(':')[2].strip()}, one core used, Linux {platform.release()}"
