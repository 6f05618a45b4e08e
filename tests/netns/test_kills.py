"""`kill -9` before every step of all that the daemon does: no connection lost, and a restart brings what the store says.

`make test` takes some steps of each; with KILLS=all every one is taken.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ipbackend.datapath.source import bpf_directory
from ipbackend.errors import NotRunningError, ServiceError
from tests.netns.carried import carried, problems, wanted
from tests.netns.clients import open_many
from tests.netns.failing import Failing
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import SHOP_VIP, Lab
from tests.netns.load import datagrams, load
from tests.netns.members import Member
from tests.netns.streams import counts, streaming

pytestmark = pytest.mark.root

WEB, RESOLVER, EXTRA = (SHOP_VIP, 80), (SHOP_VIP, 53), (SHOP_VIP, 8001)
ALL = os.environ.get("KILLS") == "all"
SAMPLE = 5  # steps of each kind of change, where not all are taken

BEFORE = CONFIGURATION + """
[listeners.extra]
load_balancer = "shop"
protocol = "TCP"
port = 8001
pool = "extra"

[pools.extra]
protocol = "TCP"
members = [{ address = "10.0.0.12", port = 8080 }, { address = "10.0.0.12", port = 9001 }]
"""
AFTER = CONFIGURATION.replace("weight = 3 },\n", 'weight = 5 },\n    { address = "10.0.0.11", port = 9002, weight = 0 },\n') + """
[networks.more]
kind = "vpn"
cidrs = ["172.30.0.0/16"]
next_hop = "10.0.0.3"

[load_balancers.more]
vip = "10.0.0.120"
ip_target_enable = true

[listeners.more]
load_balancer = "more"
protocol = "TCP"
port = 8000
pool = "web"

[pools.extra]
protocol = "TCP"
members = [{ address = "10.0.0.12", port = 9003 }]
"""


def wait_until(condition: Callable[[], bool], deadline: float = 30.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)


def chosen(steps: list[str]) -> list[int]:
    """Which steps to be killed before; one more than there are is when all are taken."""
    last = len(steps) + 1
    return list(range(1, last + 1)) if ALL else sorted({1 + last * at // SAMPLE for at in range(SAMPLE)} | {last})


class Daemon:
    """A gateway whose daemon is killed all the time."""

    def __init__(self, lab: Lab, gateway: Gateway, failing: Failing) -> None:
        self.lab, self.gateway, self.failing = lab, gateway, failing
        self.source: Path | None = None

    def run(self, limit: int = 0) -> dict[str, Any]:
        return self.failing.start("run", "--store", str(self.gateway.store), limit=limit, source=self.source)

    def come_up(self) -> None:
        assert self.run()["status"] is None, self.gateway.log()[-2000:]
        with self.gateway.client() as client:
            assert client.request("GET", "/ipbackend/status")["status"]["problem"] is None

    def apply(self, configuration: str) -> None:
        self.gateway.apply(configuration)

    def state(self) -> tuple[Any, Any]:
        return wanted(self.gateway), carried(self.lab, self.gateway)


@pytest.fixture
def daemon(lab: Lab, gateway: Gateway) -> Iterator[Daemon]:
    gateway.stop()
    failing = Failing(lab["gateway"], gateway.run_directory, gateway.run_directory / "log")
    try:
        yield Daemon(lab, gateway, failing)
    finally:
        failing.stop()
        failing.close()
        gateway.start()


@contextmanager
def traffic(lab: Lab, members: dict[str, Member]) -> Iterator[Callable[[], None]]:
    """Streams, requests and datagrams all the while; to be called: whether anything was lost. Counted at both ends."""
    before = {name: counts(member) for name, member in members.items()}
    with ExitStack() as stack:
        streams = stack.enter_context(streaming(lab["client"], WEB, 12))
        loads = [
            stack.enter_context(load(lab["client"], WEB, clients=1)),
            stack.enter_context(datagrams(lab["client"], RESOLVER)),
        ]

        def check() -> None:
            assert [one for met in loads for one in met.failed()] == []
            assert streams.broken() == []

        yield check
        check()
        for met in loads:
            met.wait_for(3)
    wait_until(lambda: streams.differences(members.values()) == [])
    assert {one.end for one in streams.tallies.values()} == {"done"}
    after = {name: counts(member) for name, member in members.items()}
    for met, what in zip(loads, ("requests", "datagrams"), strict=True):
        answered = met.answered_since(0)
        assert met.failed() == []
        assert {name: after[name][what] - before[name][what] for name in members} == {n: answered[n] for n in members}


def test_a_change_is_whole_or_undone(daemon: Daemon, lab: Lab, members: dict[str, Member]) -> None:
    """Members, listeners, a network and a VIP come and go."""
    daemon.come_up()
    daemon.apply(AFTER)
    daemon.apply(BEFORE)
    with traffic(lab, members) as check:
        for have, want in ((BEFORE, AFTER), (AFTER, BEFORE)):
            undone = daemon.state()
            daemon.failing.arm()
            daemon.apply(want)
            steps, whole = daemon.failing.steps(), daemon.state()
            for step in chosen(steps):
                daemon.apply(have)
                daemon.failing.arm(step)
                answered = False
                with suppress(ServiceError, NotRunningError):
                    daemon.apply(want)
                    answered = True
                daemon.failing.kill()
                daemon.come_up()
                check()
                what = f"killed before step {step} of {len(steps)}: {[*steps, 'end'][step - 1]}"
                now = daemon.state()
                assert now[0] in ([whole[0]] if answered else [whole[0], undone[0]]), what
                assert now[1] == (whole if now[0] == whole[0] else undone)[1], what
                wait_until(lambda: problems(daemon.gateway) == [])
            daemon.apply(want)
