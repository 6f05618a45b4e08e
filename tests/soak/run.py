"""One soak from the empty lab to its books: everything that was met, to be judged by others. It judges nothing."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from ipbackend.abi import Ending, EventKind, Verdict
from ipbackend.flows.archive import Reader
from ipbackend.flows.event import Event, ip_raw
from tests.netns.clients import RawPort, UdpClient, connect
from tests.netns.gateway import Gateway
from tests.netns.lab import CLIENTS, Lab
from tests.netns.members import REPOSITORY, running
from tests.netns.test_daemon import ask

from . import clients
from .books import Kernel, Process, Remembered, leftovers
from .clients import Journey
from .judge import Flow
from .member import Server
from .operator import Met, Operators, capture
from .wanted import PASSING, PLACES, VIPS, Wanted

RATES = {"SYN": 200, "ACK": 200, "UDP": 200, "fragments": 50, "scan": 100}  # frames a second
RATES_OF_A_MEMBER = {"scan by a member": 50}
RESTARTS = 0.35  # of the time, from its beginning: later on one daemon lives, so that its memory can be seen to grow
SETTLE = 120.0  # seconds at most until nothing of the load is left
FIRST = 5.0  # seconds of load before anything else happens
LOOKS = 20  # a tenth of a second apart


@dataclass
class Books:
    """What a soak has met. Memory in bytes, times in seconds of the epoch."""

    seconds: float
    seed: int
    met: Met = field(default_factory=Met)
    journeys: list[Journey] = field(default_factory=list)
    served: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    flows: list[Flow] = field(default_factory=list)
    events: int = 0
    flow_bytes: int = 0
    flow_log: dict[str, Any] = field(default_factory=dict)
    floods: Counter[str] = field(default_factory=Counter)
    verdicts: dict[str, int] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)  # before and after
    kernels: dict[str, Kernel] = field(default_factory=dict)
    remembered: Remembered | None = None
    left: list[str] = field(default_factory=list)
    settled: float = 0.0  # seconds that it took
    revisions: tuple[int, int] = (0, 0)
    store: tuple[int, int] = (0, 0)  # bytes, with what lies beside it
    log: str = ""


def soak(seconds: float, seed: int, say: Callable[[str], None]) -> Books:
    """All of it; the machine's mounts must be our own by now."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        folder = Path("/run/soak")
        folder.mkdir()
        made = [Server(lab[one.namespace], one.name, one.address, one.tcp, one.udp, folder) for one in PLACES]
        stack.enter_context(running(made))
        servers = {server.name: server for server in made}
        wanted, quiet = Wanted(random.Random(seed)), Wanted(random.Random(seed), monitored=False)
        gateway = stack.enter_context(Gateway(lab, quiet.toml(), "soaked"))
        books, operators = Books(seconds, seed), Operators(gateway, servers, wanted)
        warm_up(gateway, lab, quiet)
        before(books, gateway)
        operators.apply()
        operators.online()
        say(f"load for {seconds:.0f} s, seed {seed}")
        with loaded(lab, folder, seed, books), operators.working() as books.met:
            began = time.monotonic()
            time.sleep(FIRST)
            while (passed := time.monotonic() - began) < seconds:
                say(f"{passed:4.0f} s: {operators.act(restarts=passed < seconds * RESTARTS)}")
        say("the load has ended")
        gateway.apply(quiet.toml())
        ended = time.monotonic()
        books.left, books.settled = settle(gateway)
        books.remembered = Remembered.of(gateway.run_directory, ended)
        warm_up(gateway, lab, quiet)
        books.left += settle(gateway)[0]
        after(books, gateway, folder)
        books.log = gateway.log()
        return books


def warm_up(gateway: Gateway, lab: Lab, quiet: Wanted) -> None:
    """Have a daemon do everything once: what it opens then, it keeps. At the end it is asked for `quiet`."""
    gateway.apply(replace(quiet, monitored=True, passing=[PASSING]).toml())
    for vip, tcp, udp in VIPS.values():
        with connect(lab["client"], CLIENTS[0], (vip, tcp)), UdpClient(lab["client"], CLIENTS[0], (vip, udp)) as one:
            one.socket.send(b"not a request")
            one.socket.recv(64)
            ask(gateway, "POST", "/ipbackend/connections/kill", {"kill": {"client": CLIENTS[0]}})
    for path in ("connections", "live/members", "revisions", "flows", "audit"):
        ask(gateway, "GET", f"/ipbackend/{path}")
    capture(gateway, 0)
    gateway.apply(quiet.toml())


def at_rest(pid: int) -> Process:
    """The daemon as it mostly is: it opens some things for a moment, now and then."""
    looks = []
    for _ in range(LOOKS):
        looks.append(Process.of(pid))
        time.sleep(0.1)
    usual, _ = Counter(frozenset(one.descriptors.items()) for one in looks).most_common(1)[0]
    return replace(looks[-1], descriptors=Counter(dict(usual)))


@contextmanager
def loaded(lab: Lab, folder: Path, seed: int, books: Books) -> Iterator[None]:
    """Clients and floods, until they are told to end; then what they have met is in the books."""
    where = [f"{pool}={vip}:{tcp}:{udp}" for pool, (vip, tcp, udp) in VIPS.items()]
    file = folder / "journeys"
    macs = {}
    for role, interface in (("client", "eth0"), ("member", "eth1")):
        with RawPort(lab["gateway"], interface) as port:
            macs[role] = port.mac
    commands = (
        ("client", "tests.soak.clients", str(file), str(seed), *where),
        ("client", "tests.soak.floods", "eth0", macs["client"], *rates(RATES)),
        ("member-1", "tests.soak.floods", "eth0", macs["member"], *rates(RATES_OF_A_MEMBER)),
    )
    its = [
        lab[role].popen((sys.executable, "-m", *command), stdout=subprocess.PIPE, cwd=REPOSITORY, text=True)
        for role, *command in commands
    ]
    try:
        yield
        for process in its:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args}: it ended by itself, with {process.returncode}")
            process.send_signal(signal.SIGTERM)
        _, *flooded = (process.communicate(timeout=300)[0] for process in its)
        for said in flooded:
            books.floods.update(json.loads(said))
        books.journeys = clients.journeys(file)
    finally:
        for process in its:
            process.kill()
            process.wait()


def rates(of: dict[str, int]) -> list[str]:
    return [f"{kind}={rate}" for kind, rate in of.items()]


def before(books: Books, gateway: Gateway) -> None:
    books.processes["before"], books.kernels["before"] = at_rest(gateway.pid), Kernel.of(gateway.run_directory)
    books.revisions = (revision(gateway), 0)
    books.store = (size(gateway.store), 0)


def settle(gateway: Gateway) -> tuple[list[str], float]:
    """Until nothing is left, or for so long; what is left then, and the seconds that it took."""
    began = time.monotonic()
    while (left := list(leftovers(gateway.run_directory))) and time.monotonic() < began + SETTLE:
        time.sleep(1)
    return left, time.monotonic() - began


def after(books: Books, gateway: Gateway, folder: Path) -> None:
    books.processes["after"], books.kernels["after"] = at_rest(gateway.pid), Kernel.of(gateway.run_directory)
    books.revisions = (books.revisions[0], revision(gateway))
    books.store = (books.store[0], size(gateway.store))
    rows = ask(gateway, "GET", "/ipbackend/counters")["verdicts"]
    books.verdicts = {row["verdict"]: row["packets"] for row in rows if row["packets"]}
    for place in PLACES:
        lines = (folder / f"{place.name}.journal").read_text().splitlines()
        books.served[place.name] = [(int(number, 16), peer) for number, peer in map(str.split, lines)]
    books.flow_log = gateway.json("flow", "status")
    reader = Reader(gateway.store.with_name("flows"))
    books.events, books.flow_bytes = reader.size()
    for client in CLIENTS:
        its = {"client": ip_raw(IPv4Address(client))}
        books.flows += flows_of(reader.newest(its, 0, 1 << 62, 1 << 40))


def flows_of(newest: list[Event]) -> Iterator[Flow]:
    """The connections that events tell of, each from its beginning to its end; and rejections, which have no member."""
    begun: dict[tuple[int, ...], Flow] = {}
    for event in reversed(newest):
        at = (event.endpoint, event.slot, event.client, event.client_port, event.vip, event.vip_port, event.protocol)
        if event.kind == EventKind.OPENED:
            ends = end(event.snat, event.snat_port), end(event.member, event.member_port)
            begun[at] = Flow(*whose(event), *ends, event.opened / 1e9)
        elif event.kind == EventKind.REJECTED:
            yield Flow(*whose(event), "", "", event.at / 1e9, event.at / 1e9, Verdict(event.reason).name)
        elif event.kind == EventKind.CLOSED and at in begun:
            yield begun.pop(at)._replace(ended=event.at / 1e9, reason=Ending(event.reason).name)
    yield from begun.values()


def whose(event: Event) -> tuple[str, str, str]:
    protocol = {6: "TCP", 17: "UDP"}[event.protocol]
    return protocol, end(event.client, event.client_port), end(event.vip, event.vip_port)


def end(address: int, port: int) -> str:
    return f"{socket.inet_ntoa(address.to_bytes(4, 'little'))}:{socket.ntohs(port)}"


def revision(gateway: Gateway) -> int:
    return int(ask(gateway, "GET", "/ipbackend/status")["status"]["revision"])


def size(store: Path) -> int:
    return sum(one.stat().st_size for one in store.parent.glob(f"{store.name}*"))
