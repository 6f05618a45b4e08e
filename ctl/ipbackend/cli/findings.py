"""How checks read: a line a step, what to do about what fails, and the exit status. It asks nobody."""

from collections.abc import Iterable, Mapping
from typing import Any

import click

SIGNS = {True: ("ok  ", "green"), False: ("FAIL", "red"), None: ("?   ", "yellow")}
WIDTH = 8  # of the longest step


def show(findings: Iterable[Mapping[str, Any]], indent: str = "") -> None:
    """Each step, with its remedy under it."""
    for one in findings:
        sign, colour = SIGNS[one["good"]]
        click.echo(f"{indent}{click.style(sign, fg=colour)}  {one['step']:{WIDTH}}  {one['what']}")
        if one["remedy"]:
            click.echo(f"{indent}{'':{WIDTH + 6}}  → {one['remedy']}")


def failed(findings: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any step failed."""
    return any(one["good"] is False for one in findings)
