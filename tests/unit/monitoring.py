"""What the code says that there is to be read, and promtool. `python -m tests.unit.monitoring` prints docs' table."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from ipbackend import instruments
from ipbackend.exposition import FAMILIES, PREFIX, Family

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "metrics.md"
MONITORING = ROOT / "docs" / "monitoring"
PROMTOOL = ROOT / "build" / "prometheus" / "usr" / "bin" / "promtool"


def families() -> dict[str, Family]:
    """All metrics of our own by their whole name: the gateway's, and what the daemon measures of its work."""
    ours = {PREFIX + name: family for name, family in FAMILIES.items()}
    measured = [one for one in vars(instruments).values() if isinstance(one, MetricWrapperBase)]
    for one in measured:
        (described,) = one.describe()
        name = described.name + ("_total" if described.type == "counter" else "")
        ours[name] = Family(described.type, one._labelnames, described.documentation)
    return ours


def table() -> str:
    """As docs/metrics.md has it."""
    rows = [
        f"| `{name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels) or '–'} | {one.help} |"
        for name, one in families().items()
    ]
    return "\n".join(["| metric | kind | labels | meaning |", "|---|---|---|---|", *rows])


def promtool(*arguments: str, given: str = "") -> str:
    """What it prints; raises where it refuses."""
    assert PROMTOOL.exists(), f"{PROMTOOL} is missing: run `make {PROMTOOL.parents[2].relative_to(ROOT)}/.made`"
    done = subprocess.run([PROMTOOL, *arguments], input=given, text=True, capture_output=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expressions() -> list[str]:
    """Of all the dashboard's panels, with Grafana's own variables put in."""

    def found(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [value["expr"]] if "expr" in value else [one for each in value.values() for one in found(each)]
        return [one for each in value for one in found(each)] if isinstance(value, list) else []

    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [one.replace("$__rate_interval", "5m").replace("$instance", ".*") for one in found(dashboard)]


def named(expression: str) -> set[str]:
    """The metrics that an expression reads; of a histogram, the histogram."""
    names = re.findall(r"\b(?:ipbackend|process)_\w+", re.sub(r'"[^"]*"', "", expression))
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in names}


if __name__ == "__main__":
    print(table())
