"""Asks all members in time, enters the answers in the book, and tells when shares change. Lives in one loop.

It asks nobody by itself: the prober does; what a state means for new connections is the book's.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from ipaddress import IPv4Address

from ipbackend import instruments
from ipbackend.health.book import Book, Turn
from ipbackend.health.probes import Answer, Asking, Prober, Unasked
from ipbackend.health.questions import Question, question
from ipbackend.health.rhythm import Rhythm, phase
from ipbackend.health.states import Reason, Status
from ipbackend.model import place

log = logging.getLogger(__name__)

FIRST_CHECKS = 1000  # a second, where many members are new at once


class _Watch:
    """One member: what it is asked, in which rhythm, and what is under way."""

    def __init__(self, asked: Question, rhythm: Rhythm) -> None:
        self.question = asked
        self.rhythm = rhythm
        self.began = 0.0
        self.asking: Asking | None = None
        self.timer: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Ask it no more."""
        if self.asking:
            self.asking.cancel()
        if self.timer:
            self.timer.cancel()


class Monitors:
    """Everybody who is asked. `changed` is called when shares of new connections are other ones than before."""

    def __init__(self, book: Book, changed: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._book = book
        self._changed = changed
        self._prober = Prober(self._loop)
        self._watches: dict[str, _Watch] = {}
        self._number = random.randrange(1 << 20)  # of the member that is asked next for the first time
        self._free = 0.0  # when the next first check may go
        self._step: asyncio.TimerHandle | None = None
        self._troubled: dict[str, str] = {}  # why members cannot be asked, by their ids

    def follow(self, source: IPv4Address | None) -> None:
        """Ask whom the book has, from `source`; new ones at once, and who got connections before in its turn."""
        for number in self._watches.keys() - self._book.entries.keys():
            self._watches.pop(number).stop()
            self._troubled.pop(number, None)
        for number, entry in self._book.entries.items():
            asked, watch = question(entry.monitor, entry.member, source), self._watches.get(number)
            delay = entry.monitor.delay
            if watch is None:
                watch = self._watches[number] = _Watch(asked, Rhythm(delay, asked.timeout, phase(self._number)))
                self._number += 1
                self._schedule(number, watch, at_once=not entry.health.kept)
            elif (asked, delay) != (watch.question, watch.rhythm.delay):
                watch.question, watch.rhythm = asked, Rhythm(delay, asked.timeout, watch.rhythm.phase)
                watch.stop()
                self._schedule(number, watch, at_once=True)
        self._prober.keep_sources({source})
        self._plan_step()

    def close(self) -> None:
        """Ask no more."""
        for watch in self._watches.values():
            watch.stop()
        self._watches.clear()
        self._prober.close()
        if self._step:
            self._step.cancel()

    def _schedule(self, number: str, watch: _Watch, at_once: bool) -> None:
        now = self._loop.time()
        if at_once:
            when = self._free = max(now, self._free + 1 / FIRST_CHECKS)
        else:
            when = watch.rhythm.next(now, now, random.random())
        watch.timer = self._loop.call_at(when, self._ask, number, watch)

    def _ask(self, number: str, watch: _Watch) -> None:
        watch.began = self._loop.time()
        watch.asking = self._prober.ask(watch.question, lambda answer: self._answered(number, watch, answer))

    def _answered(self, number: str, watch: _Watch, answer: Answer) -> None:
        watch.asking = None
        when = watch.rhythm.next(watch.began, self._loop.time(), random.random())
        watch.timer = self._loop.call_at(when, self._ask, number, watch)
        if isinstance(answer, Unasked):
            self._not_asked(number, answer.why)
        else:
            self._enter(number, answer)
            if self._troubled.pop(number, None) and not self._troubled:
                log.info("all members can be asked again")

    def _enter(self, number: str, failure: Reason | None) -> None:
        turn = self._book.answered(number, failure)
        if turn is None:
            return
        instruments.health.labels(turn.entry.health.status.value).inc()
        log.log(logging.WARNING if turn.entry.health.status is Status.OFFLINE else logging.INFO, "%s", told(turn))
        self._changed()
        self._plan_step()

    def _not_asked(self, number: str, why: str) -> None:
        if why not in self._troubled.values():
            log.error("members cannot be asked %s (they stay as they are until they can)", why)
        self._troubled[number] = why

    def _plan_step(self) -> None:
        """Come back when slow start goes on."""
        if self._step:
            self._step.cancel()
            self._step = None
        when = self._book.next_step()
        if when is not None:
            self._step = self._loop.call_later(max(0.0, when - self._book.clock()), self._stepped)

    def _stepped(self) -> None:
        self._step = None
        self._changed()
        self._plan_step()


def told(turn: Turn) -> str:
    """A state's change on one line: who, from what, to what, why, and after how long."""
    entry, before, after = turn.entry, turn.before, turn.entry.health
    settings = entry.monitor
    count = settings.max_retries_down if after.status is Status.OFFLINE else settings.max_retries
    decided = before.status is Status.INITIAL and not (before.kept and after.status is Status.OFFLINE)
    checks = "the first check" if decided else f"{count} checks" if count > 1 else "a check"
    why = f"{checks} failed, {after.reason}" if after.reason else f"{checks} passed"
    where = place("pools", entry.pool.name or entry.pool.id)
    change = f"{before.status} → {after.status} after {_lasted(after.since - before.since)}"
    return f"member {entry.member} of {where}: {change}: {why}"


def _lasted(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
