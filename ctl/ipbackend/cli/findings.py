"""How checks read: a line a step, what to do about what fails, and the exit status. It asks nobody."""

from collections.abc import Iterable, Mapping
from typing import Any

import click

SIGNS = {True: ("ok  ", "green"), False: ("FAIL", "red"), None: ("?   ", "yellow")}
WIDTH = 8  # of most steps


def show(findings: Iterable[Mapping[str, Any]], indent: str = "") -> None:
    """Each step, with its remedy under it."""
    findings = list(findings)
    width = max([WIDTH, *(len(one["step"]) for one in findings)])
    for one in findings:
        sign, colour = SIGNS[one["good"]]
        click.echo(f"{indent}{click.style(sign, fg=colour)}  {one['step']:{width}}  {one['what']}")
        if one["remedy"]:
            click.echo(f"{indent}{'':{width + 6}}  → {one['remedy']}")


def failed(findings: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any step failed."""
    return any(one["good"] is False for one in findings)
