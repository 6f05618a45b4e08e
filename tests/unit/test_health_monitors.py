"""The loop that asks, with members that answer as they are told, and at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from ipbackend.health.book import Book
from ipbackend.health.monitors import Monitors
from ipbackend.health.questions import Question
from ipbackend.health.states import Code, Reason, Status
from ipbackend.model import Check, HealthMonitor
from tests.unit.wanted import API, SHARED, SHOP, VPC, member, wanted

REFUSED = Reason(Code.CONNECT_REFUSED)
POOL = replace(SHARED, slow_start=30, members=(member(11), member(12)))
MONITOR = HealthMonitor("shared", Check.TCP, 1, 1, 1, 1, id="monitor")


class Answers:
    """In place of the prober: what each address answers; and all that was asked."""

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.asked: list[Question] = []

    def __call__(self, loop: asyncio.AbstractEventLoop) -> Answers:
        return self

    def ask(self, question: Question, done: Callable[[Reason | None], None]) -> asyncio.Handle:
        self.asked.append(question)
        failure = REFUSED if str(question.address) in self.failing else None
        return asyncio.get_running_loop().call_soon(done, failure)  # can be cancelled, as what the prober gives

    def keep_sources(self, _: object) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    made = Answers()
    monkeypatch.setattr("ipbackend.health.monitors.Prober", made)
    return made


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def test_shares_are_told_when_states_change_and_when_slow_start_goes_on(answers: Answers) -> None:
    book, changes = Book(), list[dict[str, int]]()
    want = wanted(VPC, SHOP, POOL, API, MONITOR)
    book.follow(want, serving={"m11", "m12"})

    async def run() -> None:
        monitors = Monitors(book, lambda: changes.append(book.shares(want)))
        monitors.follow(None)
        await until(lambda: {one.status for one in book.states.values()} == {Status.ONLINE})
        answers.failing = {"10.0.0.12"}
        await until(lambda: changes[-1:] == [{"m12": 0}])
        answers.failing = set()
        await until(lambda: changes[-1:] == [{"m12": 1}])
        await until(lambda: changes[-1:] == [{"m12": 2}])  # by itself, after a ninth of the time
        monitors.close()

    asyncio.run(run())
    assert changes == [{}, {}, {"m12": 0}, {"m12": 1}, {"m12": 2}]


def test_who_is_asked_and_what_follows_the_configuration(answers: Answers) -> None:
    book = Book()
    book.follow(wanted(VPC, SHOP, POOL, API, MONITOR), serving=set())
    changed = replace(MONITOR, type=Check.HTTP, url_path="/up", monitor_port=9000)

    async def run() -> list[Question]:
        monitors = Monitors(book, lambda: None)
        monitors.follow(None)
        await until(lambda: len({one.address for one in answers.asked}) == 2)
        book.follow(wanted(VPC, SHOP, replace(POOL, members=POOL.members[1:]), API, changed))
        monitors.follow(IPv4Address("10.0.0.5"))
        answers.asked.clear()
        await until(lambda: len(answers.asked) >= 3)
        monitors.close()
        seen = list(answers.asked)
        await asyncio.sleep(1.2)
        assert answers.asked == seen  # nobody is asked any more
        return seen

    asked = {(one.type, str(one.address), one.port, one.path, str(one.source)) for one in asyncio.run(run())}
    assert asked == {("HTTP", "10.0.0.12", 9000, "/up", "10.0.0.5")}
