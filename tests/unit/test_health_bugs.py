"""A bug in a health check: it is told of, and the member is asked again in its turn."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from ipbackend.health import probes
from ipbackend.health.probes import Answer, Prober, Unasked
from ipbackend.health.questions import Question
from ipbackend.model import Check

HTTP = {"method": "GET", "path": "/", "host": "member", "codes": "200"}


@pytest.fixture
def member() -> Iterator[int]:
    """One that takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


async def asked(question: Question, times: int) -> list[Answer]:
    """What is answered to one question, put so often; an answer that never comes is a failure."""
    prober = Prober(asyncio.get_running_loop())
    found: list[Answer] = []
    for _ in range(times):
        answered = asyncio.get_running_loop().create_future()
        prober.ask(question, answered.set_result)
        found.append(await asyncio.wait_for(answered, 20))
    prober.close()
    return found


STEPS = {
    "begins": (Check.TCP, probes.Asking, "_connect"),
    "is connected": (Check.TCP, probes.AskingTcp, "_connected"),
    "writes its request": (Check.HTTP, probes.AskingHttp, "_request"),
    "sends": (Check.HTTP, probes.AskingHttp, "_send"),
    "shakes hands": (Check.HTTPS, probes.AskingHttp, "_shake_hands"),
    "has waited": (Check.HTTP, probes.AskingHttp, "_timed_out"),
    "sends an echo": (Check.UDP_CONNECT, probes.Prober, "echo"),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_bug_in_any_step_ends_this_check_and_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, member: int, step: tuple[Check, type, str]
) -> None:
    check, kind, name = step

    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of all things")

    question = Question(check, IPv4Address("127.0.0.1"), member, 1, **(HTTP if check is not Check.TCP else {}))
    monkeypatch.setattr(kind, name, bug)
    with caplog.at_level(logging.ERROR):
        found = asyncio.run(asked(question, 3))

    assert found == [Unasked("for a bug of the gateway's own (ZeroDivisionError: of all things)")] * 3
    told = [record for record in caplog.records if record.exc_info]
    assert len(told) == 1, "its traceback is told once"


def test_a_bug_where_bytes_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The member answers, and what reads it fails."""

    def bug(*_: object) -> None:
        raise ValueError("cannot be read")

    monkeypatch.setattr(probes.AskingHttp, "_received", bug)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await writer.drain()
        writer.close()

    async def ask() -> list[Answer]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await asked(Question(Check.HTTP, IPv4Address("127.0.0.1"), port, 5, **HTTP), 2)

    assert asyncio.run(ask()) == [Unasked("for a bug of the gateway's own (ValueError: cannot be read)")] * 2
