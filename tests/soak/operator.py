"""Those who work on the soak's gateway: changes every second, members that die, captures, restarts, and who looks on.

Whatever is done to members or clients is written down as a `Disturbance`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from ipbackend.errors import NotRunningError, ServiceError
from tests.netns.gateway import Gateway
from tests.netns.lab import CLIENTS
from tests.netns.test_daemon import ask, wait_until
from tests.netns.test_metrics import scrape

from .books import Process
from .clients import VICTIMS
from .judge import Disturbance
from .member import Server
from .wanted import DRAIN, PLACES, Place, Wanted

CHANGE = 1.0  # seconds between two changes
LOOK = 1.0  # the same between two looks of `top`, and of the process from outside
RARE = 20  # of those looks, one asks for what is asked for now and then
PATIENCE = 600.0  # seconds until a member serves again, a capture has begun: whatever a busy machine takes
ROUGH = tuple(place for place in PLACES if place.pool == "rough")


@dataclass(frozen=True)
class Sample:
    """Of the daemon from outside: when, which process it was, and how large."""

    at: float
    pid: int
    process: Process


@dataclass
class Met:
    """What the operators met."""

    changes: Counter[str] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    looks: Counter[str] = field(default_factory=Counter)
    disturbances: list[Disturbance] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # changes and questions, with the answer
    complaints: list[str] = field(default_factory=list)  # of the status, each with the second


class Operators:
    """Changes and looks on threads of their own, while `act` is called by whoever started the members."""

    def __init__(self, gateway: Gateway, servers: dict[str, Server], wanted: Wanted) -> None:
        self.met = Met()
        self._gateway = gateway
        self._servers = servers
        self._wanted = wanted
        self._turn = threading.Lock()  # one change at a time, and none while there is no daemon
        self._over = threading.Event()
        self._place = 0
        self._began = time.time()
        self._ends = 0  # of daemons, on purpose: what is asked meanwhile gets no answer
        self._away = False

    @contextlib.contextmanager
    def working(self) -> Iterator[Met]:
        """While they do."""
        threads = [
            threading.Thread(target=self._repeat, args=one) for one in ((CHANGE, self._change), (LOOK, self._look))
        ]
        for thread in threads:
            thread.start()
        try:
            yield self.met
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def act(self, restarts: bool) -> str:
        """Do the next thing to members, clients or the daemon, and see it right again."""
        ends, acts = (
            (self._restart, self._daemon_killed),
            (*(self._member_dies, self._kill, self._remove, self._capture, self._drain),),
        )
        self._place += 1
        if restarts and self._place % 2:
            act = ends[self._place // 2 % len(ends)]
        else:
            act = acts[(self._place // 2 if restarts else self._place) % len(acts)]
        name = act.__name__.removeprefix("_").replace("_", " ")
        try:
            act()
        except (AssertionError, ServiceError, NotRunningError) as error:  # the load goes on, and the soak has failed
            self.met.refused.append(f"{name}: {error}")
        self.met.acts[name] += 1
        return name

    # --- On threads of their own.

    def _repeat(self, pause: float, work: Callable[[], None]) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due = max(due + pause, time.monotonic())
            there = (self._away, self._ends)
            try:
                work()
            except (ServiceError, NotRunningError, OSError, httpx.HTTPError) as error:
                if there == (False, self._ends):
                    self.met.refused.append(f"{work.__name__.removeprefix('_')}: {error}")
            except Exception as error:  # the thread goes on, and the soak has failed
                self.met.refused.append(f"{work.__name__.removeprefix('_')}, by a bug: {error!r}")

    def _change(self) -> None:
        with self._turn:
            what = self._wanted.change()
            self._apply()
            self.met.changes[what] += 1

    def _look(self) -> None:
        looks, gateway = self.met.looks, self._gateway
        looks["live/members, as `top` asks"] += 1
        turn = looks["live/members, as `top` asks"]
        with contextlib.suppress(AttributeError, AssertionError, OSError):  # there is none at the moment
            pid = gateway.pid
            self.met.samples.append(Sample(time.time(), pid, Process.of(pid)))
        ask(gateway, "GET", "/ipbackend/live/members")
        self._complain(ask(gateway, "GET", "/ipbackend/status")["status"])
        looks["status"] += 1
        scrape(gateway)
        looks["metrics"] += 1
        if turn % RARE == 1:
            for path in ("connections", "revisions", "flows"):
                ask(gateway, "GET", f"/ipbackend/{path}", limit=1000)
            looks["connection list, history, flow list"] += 1

    def _complain(self, status: dict[str, Any]) -> None:
        for name in ("problem", "drift", "unbalanced"):
            if status[name]:
                self.met.complaints.append(f"{name} after {time.time() - self._began:.0f} s: {status[name]}")

    # --- In the turn of whoever calls.

    def apply(self) -> None:
        """What is wanted, as it is now."""
        with self._turn:
            self._apply()

    def _apply(self) -> None:
        self._gateway.apply(self._wanted.toml())

    def _next(self) -> Place:
        return ROUGH[self._place % len(ROUGH)]

    @contextlib.contextmanager
    def _disturbing(self, what: str, whom: str) -> Iterator[None]:
        began = time.time()
        try:
            yield
        finally:
            self.met.disturbances.append(Disturbance(what, whom, began, time.time()))

    def online(self) -> None:
        """Until all members serve, as the health monitors have it."""
        wait_until(lambda: self._offline() == [], PATIENCE)

    def _offline(self) -> list[str]:
        with contextlib.suppress(ServiceError, NotRunningError):
            rows = ask(self._gateway, "GET", "/elb/members", limit=2000)["members"]
            return [row["address"] for row in rows if row["operating_status"] not in ("ONLINE", "NO_MONITOR")]
        return ["?"]

    def _member_dies(self) -> None:
        server = self._servers[self._next().name]
        with self._disturbing("member down", server.name):
            server.kill()
            time.sleep(self._wanted.rng.uniform(3, 6))
            server.start()
            server.wait_ready()
        self.online()

    def _remove(self) -> None:
        """Its connections go on for the delay, or are cut at once."""
        place = self._next()
        with self._turn:
            self._wanted.drains = not self._wanted.drains
            self._apply()
        with self._disturbing("member removed", place.name):
            with self._turn:
                self._wanted.removed.add(place.name)
                self._apply()
            time.sleep(self._wanted.rng.uniform(2, 4) + DRAIN * self._wanted.drains)
        with self._turn:
            self._wanted.removed.clear()
            self._apply()
        self.online()

    def _drain(self) -> None:
        """By its own verb, for some seconds."""
        place = self._next()
        with self._disturbing("member drained", place.name):
            with self._turn:
                (pool,) = ask(self._gateway, "GET", "/elb/pools", name="rough-TCP")["pools"]
                path = f"/elb/pools/{pool['id']}/members"
                (member,) = ask(self._gateway, "GET", path, address=place.address, protocol_port=place.tcp)["members"]
                self._wanted.weights[place.name] = 0
                asked = {"pool_id": pool["id"], "member_id": member["id"], "delay": 3}
                ask(self._gateway, "POST", "/ipbackend/drains", {"drain": asked})
            time.sleep(5)
        with self._turn:
            self._wanted.weights[place.name] = 2
            self._apply()
        self.online()

    def _kill(self) -> None:
        """A client's connections, one by one."""
        for client in VICTIMS:
            with self._disturbing("connections killed", client), self._turn:
                ask(self._gateway, "POST", "/ipbackend/connections/kill", {"kill": {"client": client}})
            time.sleep(0.5)

    def _capture(self) -> None:
        """By the command, of one client; it must end well."""
        if status := capture(self._gateway, 2):
            self.met.refused.append(f"capture ended with {status}")

    def _restart(self) -> None:
        with self._daemon_away():
            self._gateway.stop()
            self._gateway.start()
        self.online()

    def _daemon_killed(self) -> None:
        with self._daemon_away():
            self._gateway.kill()
            time.sleep(1)
            self._gateway.start()
        self.online()

    @contextlib.contextmanager
    def _daemon_away(self) -> Iterator[None]:
        with self._turn:
            self._away, self._ends = True, self._ends + 1
            try:
                yield
            finally:
                self._away = False


def capture(gateway: Gateway, seconds: float) -> int:
    """Packets captured for so long by the command, whose status it is; then no program of it is left."""

    def running() -> bool:
        return ask(gateway, "GET", "/ipbackend/status")["status"]["capture"] is not None

    process = gateway.begin("capture", "-w", "/dev/null", "--client", CLIENTS[0])
    wait_until(running, PATIENCE)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    status = process.wait(PATIENCE)
    wait_until(lambda: not running(), PATIENCE)
    return status
