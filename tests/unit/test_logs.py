"""The log under a damage that lasts."""

from __future__ import annotations

import logging

from ipbackend.logs import KNOWN, MOST, PERIOD, Bounded


class Log:
    def __init__(self) -> None:
        self.now = 0.0
        self.filter = Bounded(lambda: self.now)

    def says(self, line: str) -> str | None:
        record = logging.LogRecord("ipbackend", logging.WARNING, "", 0, "drift: %s", (line,), None)
        return record.getMessage() if self.filter.filter(record) else None


def test_the_same_line_is_bounded_and_what_was_left_out_is_counted() -> None:
    log = Log()
    said = [log.says("route missing") for _ in range(1000)]
    assert said == ["drift: route missing"] * MOST + [None] * (1000 - MOST)
    log.now += PERIOD
    assert log.says("route missing") == f"drift: route missing (and {1000 - MOST} times more in the last minutes)"
    log.now += PERIOD
    assert log.says("route missing") == "drift: route missing"


def test_other_lines_are_said_meanwhile() -> None:
    log = Log()
    for _ in range(MOST + 1):
        log.says("route missing")
    assert log.says("address missing") == "drift: address missing"


def test_lines_that_are_all_different_are_not_kept_for_good() -> None:
    log = Log()
    assert all(log.says(str(number)) for number in range(3 * KNOWN))
    assert len(log.filter._said) == KNOWN
