"""Clients that never rest: request after request over connections of their own, each with what became of it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .clients import Address, UdpClient, http_get
from .namespace import Namespace


@dataclass(frozen=True)
class Request:
    """From `began` to `ended`, in seconds of the monotonic clock; the member that answered, or how it failed."""

    began: float
    ended: float
    member: str = ""
    error: str = ""


class Load:
    """What a number of clients met so far."""

    def __init__(self) -> None:
        self.requests: list[Request] = []  # any thread may append
        self.turns: list[threading.Lock] = []  # of the clients: held while one asks
        self.late = 0.0  # seconds that a sleeper beside them woke up too late at most: how busy the machine is

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """No client asks meanwhile."""
        with contextlib.ExitStack() as stack:
            for turn in self.turns:
                stack.enter_context(turn)
            yield

    def failed(self) -> list[Request]:
        return [one for one in self.requests if one.error]

    def answered_since(self, moment: float) -> Counter[str]:
        """Answers to what began after a moment, by member."""
        return Counter(one.member for one in self.requests if one.began >= moment and one.member)

    def wait_for(self, answers: int, deadline: float = 20.0) -> float:
        """Until so many more requests are answered; returns when it began to wait."""
        began, there = time.monotonic(), len(self.requests)
        while sum(1 for one in self.requests[there:] if one.member) < answers:
            assert time.monotonic() < began + deadline, f"{len(self.requests) - there} requests in {deadline} s"
            time.sleep(0.01)
        return began


def load(namespace: Namespace, destination: Address, clients: int = 4) -> contextlib.AbstractContextManager[Load]:
    """Requests, each over a TCP connection of its own."""
    return _load(lambda: http_get(namespace, None, destination).identity.member, clients)


@contextlib.contextmanager
def datagrams(namespace: Namespace, destination: Address) -> Iterator[Load]:
    """Datagrams of one flow, each after the answer to the one before."""

    def ask() -> str:
        time.sleep(0.005)
        return client.ask(b"x" * 100).member

    with UdpClient(namespace, None, destination) as client, _load(ask, 1) as met:
        yield met


@contextlib.contextmanager
def _load(ask: Callable[[], str], clients: int) -> Iterator[Load]:
    met, over = Load(), threading.Event()

    def work(turn: threading.Lock) -> None:
        while not over.is_set():
            began = time.monotonic()
            try:
                with turn:
                    member, error = ask(), ""
            except (OSError, EOFError) as failure:
                member, error = "", repr(failure)
            time.sleep(0)  # whoever waits for the turn gets it
            met.requests.append(Request(began, time.monotonic(), member, error))

    def sleep() -> None:
        while not over.is_set():
            due = time.monotonic() + 0.05
            time.sleep(0.05)
            met.late = max(met.late, time.monotonic() - due)

    met.turns = [threading.Lock() for _ in range(clients)]
    threads = [threading.Thread(target=work, args=[turn]) for turn in met.turns] + [threading.Thread(target=sleep)]
    for thread in threads:
        thread.start()
    try:
        yield met
    finally:
        over.set()
        for thread in threads:
            thread.join()
