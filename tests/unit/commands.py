"""The command line asked in a test, and a small gateway that it talks about."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from click.testing import CliRunner, Result  # noqa: TID251 - the command line is what is tested

from ipbackend.cli import main
from tests.unit.wanted import CHECK, GROUP, HTTP, SHOP, VPC, WEB, member, wanted

NAMED = wanted(
    *(VPC, SHOP, replace(WEB, members=(member(11, weight=3), member(12), member(13, name="third"))), HTTP, GROUP, CHECK)
)


def ipbackend(line: str, **more: Any) -> Result:
    return CliRunner().invoke(main, line.split(), catch_exceptions=False, **more)


def said(line: str, **more: Any) -> str:
    result = ipbackend(line, **more)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(line: str, **more: Any) -> str:
    result = ipbackend(line, **more)
    assert (result.exit_code, result.stdout) == (1, "")
    return result.stderr


def data(line: str) -> Any:
    return json.loads(said(f"{line} --output json"))
