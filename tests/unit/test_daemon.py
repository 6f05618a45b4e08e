"""The loop that keeps the kernel as wanted: it ends when it is told to, whatever comes at the same moment."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from ipbackend import daemon


def control(reports: socket.socket) -> Any:
    """What the loop needs of it: nothing to do, and a kernel that reports by this socket."""
    network = SimpleNamespace(fileno=reports.fileno, changed=lambda: bool(reports.recv(1)))
    jobs = dict.fromkeys(("sweep", "refresh", "check", "audit", "tell"), lambda: None)
    return SimpleNamespace(network=network, telling=False, **jobs)


@pytest.mark.parametrize("turns", range(8))
def test_an_end_is_heard_so_many_turns_after_a_report(turns: int) -> None:
    """Of the event loop: one of them is the turn in which a wait for both is over and has not said so."""

    async def run() -> bool:
        kernel, reports = socket.socketpair()
        with kernel, reports, ThreadPoolExecutor(1) as thread:
            loop = asyncio.create_task(daemon._keep(control(reports), thread))
            await asyncio.sleep(0.1)  # its first round is done
            kernel.send(b"!")
            for _ in range(turns):
                await asyncio.sleep(0)
            loop.cancel()
            done, _ = await asyncio.wait([loop], timeout=2)
            ended = loop in done
            while not loop.done():
                loop.cancel()
                await asyncio.sleep(0.01)
        return ended

    assert asyncio.run(run())
