"""The process: one loop for requests, netlink events, the clock and signals; one thread that changes the gateway.

Requests are served on a Unix socket in the run directory, to root and, where there is such a group, `ipbackend`.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import logging
import math
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ipbackend import instruments, serving
from ipbackend.api.app import create_app, create_metrics_app
from ipbackend.client import SOCKET
from ipbackend.control import Control
from ipbackend.errors import DatapathError
from ipbackend.flows.keeper import Keeper
from ipbackend.forwarding import unload as unload_forwarding
from ipbackend.health.monitors import Monitors
from ipbackend.network import Network
from ipbackend.service import Service
from ipbackend.store import LINK

log = logging.getLogger(__name__)

FLOWS = "flows"  # the folder of the flow log, beside the store
TICK = 1.0  # seconds between sweeps
M_MMAP_THRESHOLD, LARGE = -3, 65_536  # of mallopt(3); bytes
REFRESH = 5.0  # seconds after which everything is compared with the kernel, events or none
SHARE = 9  # a sweep or a look at the kernel is followed by a pause of so many times what it took
AUDIT_SHARE = 99  # the same of an audit's steps: nothing waits for what it finds
TELLING_SHARE = 1  # the same while many ends are told that their connections are over
SETTLE = 0.2  # seconds that netlink events are gathered
STOPPING = (signal.SIGTERM, signal.SIGINT)


def run(run_directory: Path, store: Path, observe: bool = False, scraped: tuple[str, int] | None = None) -> None:
    """Until SIGTERM or SIGINT. Leaves the data plane forwarding.

    `scraped`: an address and a TCP port where metrics, and nothing else, can be read as well.
    """
    # Else the C library keeps what is large and was freed, and the holes in it fit less and less of what comes.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
    os.umask(0o077)  # whatever we were started with; what others may use says so itself
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with _lock(run_directory):
        asyncio.run(_serve(run_directory, store, observe, scraped))


async def _serve(run_directory: Path, store: Path, observe: bool, scraped: tuple[str, int] | None) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    with contextlib.ExitStack() as opened:
        thread = opened.enter_context(ThreadPoolExecutor(1, "gateway"))
        unix = opened.enter_context(contextlib.closing(serving.UnixSocket(run_directory / SOCKET)))
        scraping = opened.enter_context(serving.on_tcp(*scraped)) if scraped else None
        control = await loop.run_in_executor(thread, Control, store, run_directory, observe)
        flows = Keeper(run_directory, store.with_name(FLOWS), lambda: control.configuration.gateway)
        try:
            await loop.run_in_executor(thread, control.start)
            flows.start()
            for number in STOPPING:
                loop.add_signal_handler(number, stopped.set)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # whoever started us may have blocked them
            service = Service(control, thread, flows)
            asked = serving.Server.of(create_app(service), serving.UnixProtocol)
            servers = {asked: unix.listening}
            if scraping:
                servers[serving.Server.of(create_metrics_app(service))] = scraping
            async with asyncio.TaskGroup() as tasks:
                for server, its in servers.items():
                    tasks.create_task(server.serve(sockets=[its]))
                others = [tasks.create_task(work(control, thread)) for work in (_keep, _monitor)]
                for server in servers:
                    await server.serving.wait()
                others.append(tasks.create_task(_be_found(unix, asked)))
                # What is there now stays. Else Python looks for cycles that nobody uses when they come to a quarter of
                # all that is imported, and what they take by then is not given back.
                gc.collect()
                gc.freeze()
                _notify("READY=1")
                await stopped.wait()
                _notify("STOPPING=1")
                if service.capturing:
                    service.capturing.stop()
                for server in servers:
                    server.should_exit = True
                for other in others:
                    other.cancel()
        finally:
            await loop.run_in_executor(thread, flows.stop)
            await loop.run_in_executor(thread, control.close)
    log.info("stopped; the data plane goes on (`ipbackend unload` ends it)")


async def _keep(control: Control, thread: ThreadPoolExecutor) -> None:
    """Sweep with every tick; look at the kernel when it reports something, and every few seconds at the latest.

    As often, compare the books; a little of the slots is audited in between.
    """
    loop, reported = asyncio.get_running_loop(), asyncio.Event()
    jobs = (
        ("sweep", control.sweep, TICK, SHARE),
        ("refresh", control.refresh, REFRESH, SHARE),
        ("check", control.check, REFRESH, SHARE),
        ("audit", control.audit, TICK, AUDIT_SHARE),
        ("tell", control.tell, 0.0, TELLING_SHARE),
    )
    due = {name: loop.time() + pause for name, _, pause, _ in jobs} | {"sweep": loop.time(), "tell": math.inf}
    rested = {**due, "tell": loop.time()}  # not before that, whatever is reported
    swept = loop.time() - TICK

    def events() -> None:
        if control.network.changed():
            reported.set()

    loop.add_reader(control.network.fileno(), events)
    try:
        while True:
            with contextlib.suppress(TimeoutError):  # Python 3.11's wait_for loses an end that comes with a report
                async with asyncio.timeout_at(min(due.values())):
                    await reported.wait()
            if reported.is_set():
                reported.clear()
                due["refresh"] = min(due["refresh"], max(loop.time() + SETTLE, rested["refresh"]))
            for name, work, pause, share in jobs:
                if loop.time() >= due[name]:
                    began, took = await loop.run_in_executor(thread, _timed, work)
                    rested[name] = loop.time() + share * took
                    due[name] = max(loop.time() + pause, rested[name])
                    if name == "sweep":
                        instruments.sweep_delays.observe(max(0.0, began - swept - TICK))
                        swept = loop.time()
            due["tell"] = rested["tell"] if control.telling else math.inf
            _notify("WATCHDOG=1")  # loop and thread both live
    finally:
        loop.remove_reader(control.network.fileno())


async def _be_found(unix: serving.UnixSocket, server: serving.Server) -> None:
    """Where somebody takes the socket away, make it again."""
    while True:
        await asyncio.sleep(REFRESH)
        if not unix.is_there:
            try:
                await server.move(unix.bind())
                log.warning("%s: the socket was gone: made again", unix.path)
            except OSError as error:
                log.error("%s: the socket is gone, and cannot be made again: %s", unix.path, error.strerror)


async def _monitor(control: Control, thread: ThreadPoolExecutor) -> None:
    """Ask members whether they serve, and have new connections go to those who do."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    monitors = Monitors(control.book, changed.set)

    def follow() -> None:
        gateway = control.configuration.gateway
        monitors.follow(gateway.health_address if gateway else None)

    def followed() -> None:
        loop.call_soon_threadsafe(follow)

    control.followed = followed
    try:
        follow()
        while True:
            await changed.wait()
            changed.clear()
            await loop.run_in_executor(thread, control.weigh)
    finally:
        control.followed = lambda: None
        monitors.close()


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    """When it began, by the loop's clock, and the seconds that it took: its wait for the thread not counted."""
    began = time.monotonic()
    work()
    return began, time.monotonic() - began


def unload(run_directory: Path) -> list[str]:
    """Take program, addresses, routes and maps away; returns what was done, a line each."""
    with _lock(run_directory), contextlib.closing(Network()) as network:
        done = unload_forwarding(run_directory, network)
        (run_directory / LINK).unlink(missing_ok=True)
    return done


@contextlib.contextmanager
def _lock(run_directory: Path) -> Iterator[None]:
    """One daemon for a run directory."""
    try:
        if not run_directory.is_dir():
            run_directory.mkdir(parents=True)
            run_directory.chmod(0o755)  # the group's way to the socket
        lock = os.fdopen(_opened_alone(run_directory / "lock"), "w")
    except OSError as error:
        raise DatapathError(f"{error.filename}: {error.strerror} (run as root)") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatapathError(f"{run_directory}: another ipbackend is running here (stop it first)") from None
        yield


def _opened_alone(path: Path) -> int:
    """A file that nobody else can open, hence not lock."""
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.fchmod(opened, 0o600)
    return opened


def _notify(state: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(state.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)
