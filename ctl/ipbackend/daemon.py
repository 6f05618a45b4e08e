"""The process: one loop for requests, netlink events, the clock and signals; one thread that changes the gateway.

Requests are served on a Unix socket in the run directory, to root and, where there is such a group, `ipbackend`.
"""

import asyncio
import contextlib
import fcntl
import grp
import logging
import os
import pwd
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ipbackend.api.app import create_app
from ipbackend.changes import Change
from ipbackend.client import SOCKET
from ipbackend.configuration import Configuration
from ipbackend.control import Control
from ipbackend.edits import Edit
from ipbackend.errors import DatapathError
from ipbackend.forwarding import unload as unload_forwarding
from ipbackend.model import EndpointKey
from ipbackend.network import Network
from ipbackend.preparation import Finding
from ipbackend.store import LINK, Revision, Stamp
from ipbackend.view import View

log = logging.getLogger(__name__)

GROUP = "ipbackend"  # may use it, beside root
TICK = 1.0  # seconds between sweeps
REFRESH = 5.0  # seconds after which everything is compared with the kernel, events or none
SHARE = 9  # a sweep or a look at the kernel is followed by a pause of so many times what it took
SETTLE = 0.2  # seconds that netlink events are gathered
GOODBYE = 5  # seconds that requests under way have when the daemon stops
STOPPING = (signal.SIGTERM, signal.SIGINT)
Result = TypeVar("Result")


class Service:
    """What the API asks of the daemon: looks are immediate, changes wait for their turn on the one thread."""

    def __init__(self, control: Control, thread: ThreadPoolExecutor) -> None:
        self._control = control
        self._thread = thread

    @property
    def configuration(self) -> Configuration:
        """What is in force."""
        return self._control.configuration

    @property
    def stamps(self) -> Mapping[str, Stamp]:
        """When each resource was made and last changed, by id."""
        return self._control.stamps

    @property
    def revision(self) -> int:
        """The number of the last change."""
        return self._control.revision

    @property
    def problem(self) -> str:
        """Why not everything is as wanted, or nothing."""
        return self._control.problem

    @property
    def drift(self) -> list[str]:
        """What others changed, as the last look at the kernel found it."""
        return self._control.drift

    @property
    def forwarding(self) -> bool:
        """Whether there is a data plane."""
        return self._control.forwarding

    async def look(self, read: Callable[[View], Result]) -> Result:
        """What `read` finds, on a thread of its own: it may take long, and changes nothing."""

        def looked() -> Result:
            with self._control.looking() as view:
                return read(view)

        return await asyncio.to_thread(looked)

    async def change(self, author: str, edit: Edit, what: str = "", dry_run: bool = False) -> list[Change]:
        """As `Control.change`."""
        return await self._in_turn(lambda: self._control.change(author, edit, what, dry_run))

    async def roll_back(self, author: str, number: int) -> list[Change]:
        """As `Control.roll_back`."""
        return await self._in_turn(lambda: self._control.roll_back(author, number))

    async def history(self, limit: int) -> list[Revision]:
        """As `Control.history`."""
        return await self._in_turn(lambda: self._control.history(limit))

    async def changes(self, number: int) -> list[Change]:
        """As `Control.changes`."""
        return await self._in_turn(lambda: self._control.changes(number))

    async def examine(self, key: EndpointKey) -> list[Finding]:
        """As `Control.examine`."""
        return await self._in_turn(lambda: self._control.examine(key))

    async def examine_network(self, number: str) -> list[Finding]:
        """As `Control.examine_network`."""
        return await self._in_turn(lambda: self._control.examine_network(number))

    async def _in_turn(self, work: Callable[[], Result]) -> Result:
        """A client that goes away does not stop what it began."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))


class Protocol(H11Protocol):
    """HTTP on a Unix socket: `request.client` is the user at the other end, by name, and its process id."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The kernel tells who connected (unix(7), SO_PEERCRED)."""
        super().connection_made(transport)
        peer: socket.socket = transport.get_extra_info("socket")
        pid, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = f"uid {uid}"
        self.client = (name, pid)


class Server(uvicorn.Server):
    """One that says when it serves, and leaves signals to the daemon."""

    def __init__(self, settings: uvicorn.Config) -> None:
        super().__init__(settings)
        self.serving = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        self.serving.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def run(run_directory: Path, store: Path, observe: bool = False) -> None:
    """Until SIGTERM or SIGINT. Leaves the data plane forwarding."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with _lock(run_directory):
        asyncio.run(_serve(run_directory, store, observe))


async def _serve(run_directory: Path, store: Path, observe: bool) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    with ThreadPoolExecutor(1, "gateway") as thread, _listening(run_directory / SOCKET) as listening:
        control = await loop.run_in_executor(thread, Control, store, run_directory, observe)
        try:
            await loop.run_in_executor(thread, control.start)
            for number in STOPPING:
                loop.add_signal_handler(number, stopped.set)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # whoever started us may have blocked them
            server = Server(
                uvicorn.Config(
                    create_app(Service(control, thread)),
                    http=Protocol,
                    lifespan="off",
                    log_config=None,
                    access_log=False,
                    timeout_graceful_shutdown=GOODBYE,
                )
            )
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(server.serve(sockets=[listening]))
                keeping = tasks.create_task(_keep(control, thread))
                await server.serving.wait()
                _notify("READY=1")
                await stopped.wait()
                _notify("STOPPING=1")
                server.should_exit = True
                keeping.cancel()
        finally:
            await loop.run_in_executor(thread, control.close)
    log.info("stopped; the data plane goes on (`ipbackend unload` ends it)")


async def _keep(control: Control, thread: ThreadPoolExecutor) -> None:
    """Sweep with every tick; look at the kernel when it reports something, and every few seconds at the latest."""
    loop, reported = asyncio.get_running_loop(), asyncio.Event()
    due = {"sweep": loop.time(), "refresh": loop.time() + REFRESH}
    rested = dict(due)  # not before that, whatever is reported

    def events() -> None:
        if control.network.changed():
            reported.set()

    loop.add_reader(control.network.fileno(), events)
    try:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reported.wait(), max(0.0, min(due.values()) - loop.time()))
            if reported.is_set():
                reported.clear()
                due["refresh"] = min(due["refresh"], max(loop.time() + SETTLE, rested["refresh"]))
            for name, work, pause in (("sweep", control.sweep, TICK), ("refresh", control.refresh, REFRESH)):
                if loop.time() >= due[name]:
                    took = await loop.run_in_executor(thread, _timed, work)
                    rested[name] = loop.time() + SHARE * took
                    due[name] = max(loop.time() + pause, rested[name])
            _notify("WATCHDOG=1")  # loop and thread both live
    finally:
        loop.remove_reader(control.network.fileno())


def _timed(work: Callable[[], None]) -> float:
    """Seconds that it took, its wait for the thread not counted."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def unload(run_directory: Path) -> list[str]:
    """Take program, addresses, routes and maps away; returns what was done, a line each."""
    with _lock(run_directory), contextlib.closing(Network()) as network:
        done = unload_forwarding(run_directory, network)
        (run_directory / LINK).unlink(missing_ok=True)
    return done


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """The socket that requests come by: for root and the group, where there is one."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        before = os.umask(0o117)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        with contextlib.suppress(KeyError):
            os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)
        yield listening
    path.unlink(missing_ok=True)


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


def _notify(state: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(state.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)
