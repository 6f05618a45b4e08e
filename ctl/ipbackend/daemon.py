"""The one loop: configuration, netlink events, the clock and signals in; plans carried out and sweeps run out.

The data plane outlives it: maps and programs are pinned, and a fresh daemon takes over what is there.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import selectors
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ipbackend import config
from ipbackend.abi import TICK_SHIFT, SweepMode
from ipbackend.configuration import check_transition
from ipbackend.datapath import syscall
from ipbackend.datapath.loader import ENTRY, Program, pinned_program, unpin
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.tables import Tables
from ipbackend.errors import DatapathError, IpbackendError
from ipbackend.network import Network
from ipbackend.plan import gateway_of
from ipbackend.probe import expired, probes
from ipbackend.reconcile import Reconciler
from ipbackend.store import LINK, Store

log = logging.getLogger(__name__)

TICK = 1.0  # seconds between sweeps
REFRESH = 5.0  # seconds after which everything is compared with the kernel, events or none
SETTLE = 0.2  # seconds that netlink events are gathered
PROBES = 1000  # expired connections of an endpoint whose ends are told at once; others learn it when they speak
RESOLVE = 3.0  # seconds that the start waits for next hops: the kernel gives up on one after that time


class Daemon:
    """One gateway: takes over or sets up its data plane, then keeps it as the configuration file says."""

    def __init__(self, path: Path, run_directory: Path) -> None:
        self._path = path
        self._run_directory = run_directory
        self._configuration = config.load(path)
        self._due = {"reconcile": 0.0, "sweep": 0.0}

    def run(self) -> None:
        """Until SIGTERM or SIGINT; SIGHUP reads the file again. Leaves the data plane forwarding."""
        with _lock(self._run_directory), contextlib.ExitStack() as opened:
            wakeup = opened.enter_context(_signals())
            self._network = opened.enter_context(contextlib.closing(Network()))
            self._start(opened)
            _notify("READY=1")
            self._loop(wakeup)
            _notify("STOPPING=1")
            log.info("stopped; the data plane goes on (`ipbackend unload` ends it)")

    def _start(self, opened: contextlib.ExitStack) -> None:
        gateway = gateway_of(self._configuration)
        earlier = pinned_program(self._run_directory, ENTRY)
        started = time.monotonic()
        program = opened.enter_context(contextlib.closing(Program(self._run_directory, gateway.max_connections)))
        maps = opened.enter_context(Maps(self._run_directory))
        log.info("data plane loaded in %.1f s, %s", time.monotonic() - started, "taken over" if earlier else "fresh")
        self._settle(maps)
        self._maps, self._tables = maps, Tables(maps, program.sweep)
        self._tables.drop_unused_pools()
        self._reconciler = Reconciler(self._network, self._tables)
        self._reconciler.check(self._configuration)
        self._reconciler.plan(self._configuration)
        program.join(maps)
        self._attach(program, earlier)
        program.pin()
        if earlier is not None:
            os.close(earlier)
        self._find_next_hops()
        self._reconciler.apply(self._configuration)
        self._keep_copy()

    def _settle(self, maps: Maps) -> None:
        """The settings of a fresh data plane; one that is taken over keeps its secret, its connections hang on it."""
        settings = maps["gateway"].memory()[0]
        if not any(settings.hash_key):
            settings.hash_key = tuple(secrets.randbits(64) | 1 for _ in settings.hash_key)
        settings.fingerprint = maps.fingerprint
        settings.snat_shift = len(gateway_of(self._configuration).snat_addresses).bit_length() - 1

    def _find_next_hops(self) -> None:
        """Before the first packet: give the kernel the time it takes to find them, or to give up."""
        end = time.monotonic() + RESOLVE
        with selectors.DefaultSelector() as selector:
            selector.register(self._network.fileno(), selectors.EVENT_READ)
            while (missing := self._reconciler.unresolved(self._configuration)) and time.monotonic() < end:
                selector.select(end - time.monotonic())
                self._network.changed()
        for address in missing:
            log.warning("next hop %s does not answer: its members get no connections until it does", address)

    def _attach(self, program: Program, earlier: int | None) -> None:
        links = self._network.interfaces()
        earlier_id = syscall.program_id(earlier) if earlier is not None else None
        for link in links.values():
            present = self._network.attached(link.index)
            ours = earlier if present and present.program_id == earlier_id else None
            if link.name in gateway_of(self._configuration).interfaces:
                mode = self._network.attach(link, program.entry, gateway_of(self._configuration).attach_mode, ours)
                log.info("%s: XDP %s, %s mode", link.name, "attached" if ours is None else "replaced", mode)
            elif ours is not None:
                self._network.detach(link, ours)
                log.info("%s: XDP detached", link.name)

    def _keep_copy(self) -> None:
        """What is in force, for everyone who looks: whole or not at all."""
        with Store(self._run_directory / LINK) as store:
            store.write(self._configuration, "daemon")

    def _loop(self, wakeup: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(wakeup, selectors.EVENT_READ)
            selector.register(self._network.fileno(), selectors.EVENT_READ)
            now = time.monotonic()
            self._due = {"reconcile": now + REFRESH, "sweep": now}
            while True:
                ready = {key.fileobj for key, _ in selector.select(max(0, min(self._due.values()) - time.monotonic()))}
                if wakeup in ready:
                    received = set(wakeup.recv(64))
                    if received & {signal.SIGTERM, signal.SIGINT}:
                        return
                    if signal.SIGHUP in received:
                        self._reload()
                now = time.monotonic()
                if ready - {wakeup} and self._network.changed():
                    self._due["reconcile"] = min(self._due["reconcile"], now + SETTLE)
                if now >= self._due["sweep"]:
                    self._sweep()
                    self._due["sweep"] = now + TICK
                if now >= self._due["reconcile"]:
                    self._reconcile()
                    self._due["reconcile"] = time.monotonic() + REFRESH

    def _reload(self) -> None:
        """The file again; where it is refused, or cannot be applied, what is in force stays."""
        try:
            want = config.parse(config.read(self._path), str(self._path), self._configuration, prune=True)
            check_transition(self._configuration, want)
            self._reconciler.apply(want)
        except IpbackendError as error:
            log.error("%s refused, nothing changed:\n%s", self._path, error)
            self._reconcile()
            return
        self._configuration = want
        self._keep_copy()
        log.info("%s reloaded", self._path)

    def _reconcile(self) -> None:
        try:
            self._reconciler.apply(self._configuration)
        except IpbackendError as error:
            log.error("not everything is as configured: %s", error)

    def _sweep(self) -> None:
        """What has been silent for too long ends; both ends of it are made to speak, and so learn it."""
        entries = self._reconciler.entries
        for number, endpoint in entries.endpoints.items():
            started = time.monotonic_ns() >> TICK_SHIFT
            ended, _ = self._tables.sweep(number, SweepMode.EXPIRED)
            connections = self._maps["conntrack"].inner(number) if ended else None
            if connections is None:
                continue
            for slot in expired(connections, started - 1)[:PROBES]:
                for probe in probes(connections[slot], slot, endpoint, entries.next_hops[endpoint.next_hop]):
                    self._network.send(probe.interface, probe.frame)


def unload(run_directory: Path) -> list[str]:
    """Take program, addresses, routes and maps away; returns what was done, a line each."""
    done = []
    with _lock(run_directory), contextlib.closing(Network()) as network:
        links = {link.index: link for link in network.interfaces().values()}
        program = pinned_program(run_directory, ENTRY)
        if program is not None:
            for link in links.values():
                present = network.attached(link.index)
                if present and present.program_id == syscall.program_id(program):
                    network.detach(link, program)
                    done.append(f"{link.name}: XDP detached")
            os.close(program)
        done += [
            f"{links[one.interface].name}: address {one.address} removed"
            for one in network.addresses()
            if one.ours and network.remove_address(one.address, links[one.interface])
        ]
        done += [f"route {route.cidr} removed" for route in network.routes() if network.remove_route(route)]
        done += [f"map {name} removed" for name in unpin(run_directory)]
        (run_directory / LINK).unlink(missing_ok=True)
    return done


@contextlib.contextmanager
def _lock(run_directory: Path) -> Iterator[None]:
    """One daemon for a run directory."""
    try:
        run_directory.mkdir(parents=True, exist_ok=True)
        lock = (run_directory / "lock").open("w")
    except OSError as error:
        raise DatapathError(f"{error.filename}: {error.strerror} (run as root)") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatapathError(f"{run_directory}: another ipbackend is running here (stop it first)") from None
        yield


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket that gets a byte for each signal, so that one select waits for everything."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    before = signal.set_wakeup_fd(writer.fileno())
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


def _notify(state: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(state.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)
