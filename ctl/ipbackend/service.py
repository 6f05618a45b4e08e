"""What the API may ask of the daemon: looks on threads of their own, changes in turn on the gateway's thread."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ipbackend import instruments, metrics
from ipbackend.capture import Order
from ipbackend.capturing import Capturing
from ipbackend.changes import Change
from ipbackend.configuration import Configuration
from ipbackend.connections import Target
from ipbackend.control import Control
from ipbackend.drains import NO_DELAYS, Claim, Drains
from ipbackend.edits import Edit
from ipbackend.errors import ConfigurationError, DatapathError, Kind, NotRunningError, Problem
from ipbackend.finding import Finding
from ipbackend.flows.archive import Reader
from ipbackend.flows.keeper import Keeper, Standing
from ipbackend.health.states import Health
from ipbackend.model import EndpointKey
from ipbackend.store import Revision, Stamp
from ipbackend.view import View

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class Service:
    """What the API asks of the daemon: looks are immediate, changes wait for their turn on the one thread."""

    def __init__(self, control: Control, thread: ThreadPoolExecutor, flows: Keeper) -> None:
        self._control = control
        self._thread = thread
        self._flows = flows
        self._capture_asked = False
        self.capturing: Capturing | None = None
        self._scraping: asyncio.Future[str] | None = None

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
    def unbalanced(self) -> list[str]:
        """Counters that must say the same and do not, a line each."""
        return self._control.unbalanced

    @property
    def audited(self) -> list[str]:
        """Counts, queues and index entries that do not agree with the slots, a line each."""
        return self._control.audited

    @property
    def forwarding(self) -> bool:
        """Whether there is a data plane."""
        return self._control.forwarding

    @property
    def health(self) -> Mapping[str, Health]:
        """The state of each member that a health monitor asks, by the member's id."""
        return self._control.book.states

    @property
    def flow_log(self) -> Standing:
        """How the flow log is."""
        return self._flows.standing

    async def recall(self, read: Callable[[Reader], Result]) -> Result:
        """What `read` finds in the flow log, on a thread of its own."""
        return await asyncio.to_thread(read, self._flows.reader)

    async def look(self, read: Callable[[View], Result]) -> Result:
        """What `read` finds, on a thread of its own: it may take long, and changes nothing."""

        def looked() -> Result:
            with self._control.looking() as view:
                return read(view)

        return await asyncio.to_thread(looked)

    @property
    def drains(self) -> Drains:
        """Who drains, and how long yet."""
        return self._control.drains

    async def metrics(self) -> str:
        """A Prometheus scrape, written on a thread of its own; who comes meanwhile gets the same."""
        if self._scraping is None or self._scraping.done():
            self._scraping = asyncio.ensure_future(asyncio.to_thread(self._scrape))
        return await asyncio.shield(self._scraping)

    def _scrape(self) -> str:
        control = self._control
        state = metrics.State(
            forwarding=control.forwarding,
            problem=bool(control.problem or self.flow_log.problem),
            drift=len(control.drift),
            unbalanced=len(control.unbalanced),
            audited=len(control.audited),
            revision=control.revision,
        )
        carried = ""
        with (
            contextlib.suppress(NotRunningError, DatapathError),
            control.looking() as view,
            instruments.timed(instruments.scrapes),
        ):
            carried = metrics.of_view(view)
        return metrics.of_state(state) + carried + instruments.text()

    async def change(
        self, author: str, edit: Edit, what: str = "", dry_run: bool = False, delays: Mapping[Claim, int] = NO_DELAYS
    ) -> list[Change]:
        """As `Control.change`."""
        return await self._in_turn(lambda: self._control.change(author, edit, what, dry_run, delays))

    async def kill(self, choose: Callable[[View], Iterable[Target]]) -> int:
        """As `Control.kill`."""
        return await self._in_turn(lambda: self._control.kill(choose))

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

    async def capture(self, author: str, order: Order) -> Capturing:
        """As `Control.capture`, if no other capture runs."""
        if self._capture_asked:
            by = f" (by {self.capturing.author})" if self.capturing else ""
            what = f"capture: another one runs{by}: there is one at a time (wait, or end it by a DELETE)"
            raise ConfigurationError(Problem(what, Kind.IN_USE))
        self._capture_asked = True
        try:
            self.capturing = Capturing(author, order, await self._in_turn(lambda: self._control.capture(order)))
        except BaseException:
            self._capture_asked = False
            raise
        log.info("capture by %s begun", author)
        return self.capturing

    async def end_capture(self, capturing: Capturing) -> None:
        """As `Control.end_capture`."""
        if self.capturing is not capturing:
            return
        self.capturing = None
        try:
            await self._in_turn(self._control.end_capture)
        finally:
            self._capture_asked = False
            log.info("capture by %s ended: %d packets", capturing.author, capturing.packets)

    async def _in_turn(self, work: Callable[[], Result]) -> Result:
        """A client that goes away does not stop what it began."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))
