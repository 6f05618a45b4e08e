"""One gateway under control: what is wanted (the store) and what is (the data plane), changed one change at a time.

Everything here is done by one thread, in the order it was asked for. It knows no requests, and not when to act.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from ipbackend import instruments
from ipbackend.capture import Order
from ipbackend.changes import Change, between
from ipbackend.configuration import Configuration, check_transition
from ipbackend.connections import Target
from ipbackend.conservation import Difference, Watch
from ipbackend.datapath.capture import Capture
from ipbackend.datapath.maps import Maps
from ipbackend.drains import NO_DELAYS, Claim, Drain, Drains, Stage
from ipbackend.edits import Edit
from ipbackend.errors import ConfigurationError, IpbackendError, Kind, NotRunningError, Problem
from ipbackend.finding import Finding
from ipbackend.forwarding import Forwarding, Look, unload
from ipbackend.health.book import Book
from ipbackend.model import EndpointKey, Gateway
from ipbackend.network import Network
from ipbackend.plan import gateway_of
from ipbackend.store import LINK, Revision, Stamp, Store
from ipbackend.view import View

log = logging.getLogger(__name__)

Apply = Callable[[Configuration, Configuration], None]
SHOWN = 20  # differences that are logged one by one; more are counted
PATIENCE = 16  # refreshes at most between attempts to load what could not be loaded


class Control:
    """The store at `store_path` and the data plane under `run_directory`, kept in step.

    `configuration`, `stamps` and `revision` are what is in force: they change as a whole, and may be read by
    any thread. Without a gateway in the store there is no data plane: it waits to be told its interfaces.
    """

    def __init__(self, store_path: Path, run_directory: Path, observe: bool = False) -> None:
        """Open the store. StoreError: it cannot be used; whatever forwards goes on."""
        self._run_directory = run_directory
        self._observe = observe
        self._opened = contextlib.ExitStack()
        self._store = self._opened.enter_context(Store(store_path))
        self.network = self._opened.enter_context(contextlib.closing(Network()))
        self._forwarding: Forwarding | None = None
        self.book = Book()  # who is asked whether it serves, and what was answered
        self.followed: Callable[[], None] = lambda: None  # called when the book has turned to another configuration
        self.drains = Drains(self._store.drains)
        self._down: frozenset[str] = frozenset()  # members that get no connections by what was answered
        self._skipped, self._patience = 0, 1  # refreshes since the last attempt to load, and before the next one
        self.problem = ""  # why not everything is as wanted, or nothing
        self.drift: list[str] = []  # what others changed, as the last refresh found it
        self._left: list[str] = []  # what of it was not put back
        self._watch = Watch()
        self._differing: Mapping[str, Difference] = {}  # books that must say the same and do not
        self.audited: list[str] = []  # what does not agree with the slots, a line each
        self._publish()
        link = run_directory / LINK
        link.unlink(missing_ok=True)
        link.symlink_to(store_path.absolute())

    def close(self) -> None:
        """Let go; the data plane forwards on."""
        if self._forwarding:
            self._forwarding.close()
        self._opened.close()

    @property
    def forwarding(self) -> bool:
        """Whether there is a data plane."""
        return self._forwarding is not None

    @contextlib.contextmanager
    def looking(self) -> Iterator[View]:
        """A look at the data plane, by any thread: what is wanted or loaded may change meanwhile.

        NotRunningError: nothing is loaded.
        """
        forwarding = self._forwarding
        if forwarding is None:
            raise NotRunningError("gateway: nothing is loaded (set its interfaces and SNAT addresses)")
        with Maps(self._run_directory) as maps:  # descriptors of our own: those of the data plane may be closed
            yield View(maps, self.configuration, forwarding.reconciler.entries, self.book.states, self.drains.running)

    def start(self) -> None:
        """Take over or set up the data plane. Where that fails, say so and try again with every refresh."""
        if self.configuration.gateway is None:
            log.info("there is no gateway yet: set its interfaces and SNAT addresses (`ipbackend apply -f FILE`)")
            return
        try:
            self._begin(self.configuration)
            self.problem = ""
        except IpbackendError as error:
            self._failed(error)
            self._close_forwarding()
            return
        here = self._stage(self.configuration)
        self.drains.set(self.drains.after(here, here))  # without those of a change that never came
        self._depart()

    def change(
        self, author: str, edit: Edit, what: str = "", dry_run: bool = False, delays: Mapping[Claim, int] = NO_DELAYS
    ) -> list[Change]:
        """Bring what is wanted, and then the kernel, to what `edit` makes of it; returns what that changed.

        It is kept and applied when this returns, or refused by an IpbackendError, and then nothing has changed.
        `delays`, in seconds, are for members that get no connections any more, in place of their pools'.
        """
        result, began = "refused", time.monotonic()
        try:
            changes = self._changed(author, edit, what, dry_run, delays)
            result = "tried" if dry_run else "applied"
        finally:
            instruments.applied.labels(result).observe(time.monotonic() - began)
        for one in () if dry_run else changes:
            instruments.changes.labels(one.section, one.verb).inc()
        return changes

    def _changed(self, author: str, edit: Edit, what: str, dry_run: bool, delays: Mapping[Claim, int]) -> list[Change]:
        have = self.configuration
        want = edit(have)
        check_transition(have, want)
        changes = between(have, want)
        then = Stage(want, _out(self.book.shares(want)))
        drains = self.drains.after(self._stage(have), then, delays)
        if _reloads(have, want):
            self._refuse_while_draining()
        reload = _reloads(have, want) or _recompiles(have, want)
        reload = reload or (want.gateway is not None and self._forwarding is None)
        if self._forwarding and not reload:
            self._forwarding.check(want)
        if not dry_run:
            before = self.drains.running
            self._put(drains)  # first: if nothing comes of the change, the next start drops them
            try:
                self._keep(have, want, author, what, self._reload if reload else self._apply)
            except BaseException:
                self._put(before)
                raise
            self._down = then.down
            self._depart()
        return changes

    def kill(self, choose: Callable[[View], Iterable[Target]]) -> int:
        """End the connections that `choose` finds, and tell both ends; returns how many."""
        forwarding = self._forwarding_now()
        return forwarding.kill(list(choose(self._view(forwarding))))

    def roll_back(self, author: str, number: int) -> list[Change]:
        """Make the state of revision `number` a new revision."""
        return self.change(author, lambda _: self._store.at(number), f"rolled back to revision {number}")

    def history(self, limit: int) -> list[Revision]:
        """The last revisions, the newest first."""
        return self._store.history(limit)

    def changes(self, number: int) -> list[Change]:
        """What a revision changed."""
        return self._store.changes(number)

    def refresh(self) -> None:
        """Follow next hops and interfaces, and put right, or only report, what others changed."""
        if self.configuration.gateway is None:
            return
        if self._forwarding is None:
            self._skipped += 1
            if self._skipped >= self._patience:
                self._skipped, self._patience = 0, min(2 * self._patience, PATIENCE)
                self.start()
            return
        self.weigh()  # what could not be entered when it was told
        try:
            with instruments.timed(instruments.refreshes):
                look = self._forwarding.refresh(self.configuration, self._observe)
        except IpbackendError as error:
            self._failed(error)
            return
        self._tell(look)
        self.drift = look.drift
        if look.problems:
            self._failed(IpbackendError("; ".join(look.problems)))
        elif self.problem:
            log.info("everything is as wanted again")
            self.problem = ""

    def _tell(self, look: Look) -> None:
        """What was put back, and what else is new."""
        put_back = [line for line in look.drift if line not in look.left]
        left = [line for line in look.left if line not in self._left]
        lines = [f"{line}, put back" for line in put_back]
        lines += [f"{line} ({'only observed' if self._observe else 'not put back'})" for line in left]
        for line in lines[:SHOWN]:
            log.warning("drift: %s", line)
        if len(lines) > SHOWN:
            log.warning("drift: %d more", len(lines) - SHOWN)
        instruments.drift_found.inc(len(lines))
        instruments.drift_repaired.inc(len(put_back))
        self._left = look.left

    def weigh(self) -> None:
        """Have new connections go to those who serve, by what the book says now; what the others have drains."""
        if self._forwarding is None:
            return
        shares = self.book.shares(self.configuration)
        try:
            self._forwarding.weigh(self.configuration, shares)
            if (down := _out(shares)) != self._down:
                self._put(self.drains.after(self._stage(self.configuration), Stage(self.configuration, down)))
                self._down = down
        except IpbackendError as error:
            self._failed(error)  # the next refresh tries again

    def sweep(self) -> None:
        """End what has been silent for too long, or whose delay has run out."""
        if self._forwarding is None:
            return
        with self._going_on():
            with instruments.timed(instruments.sweeps):
                looked = self._forwarding.sweep()
            instruments.swept.inc(looked)
            instruments.last_sweep.set_to_current_time()
            self._depart()

    def tell(self) -> None:
        """Have some more ends told that their connections are over."""
        if self._forwarding:
            with self._going_on():
                self._forwarding.tell()

    @property
    def telling(self) -> bool:
        """Whether there are ends that could be told right now."""
        return self._forwarding is not None and self._forwarding.telling

    def check(self) -> None:
        """Compare the books: everything counted has another count that must say the same."""
        if self._forwarding is None:
            self._differing = {}
            return
        differing: Mapping[str, Difference] = self._differing
        with self._going_on(), instruments.timed(instruments.checks):
            differing = self._watch.take(iter(self._view(self._forwarding).differences, None))
        for what in differing.keys() - self._differing.keys():
            log.error("the books do not balance: %s: they differ by %s", what, differing[what])
        if self._differing and not differing:
            log.info("the books balance again")
        self._differing = differing

    @property
    def unbalanced(self) -> list[str]:
        """Counters that must say the same and do not, a line each."""
        return [f"{what}: they differ by {one}" for what, one in self._differing.items()]

    def audit(self) -> None:
        """Hold some more of what is counted, queued and indexed against the slots. It is only told of."""
        if self._forwarding is None:
            self.audited = []
            return
        auditor = self._forwarding.auditor
        rounds = auditor.rounds
        with self._going_on(), instruments.timed(instruments.audits):
            auditor.step()
        differing = auditor.differences
        added = [line for line in differing if line not in self.audited]
        for line in added[:SHOWN]:
            log.error("audit: %s", line)
        if len(added) > SHOWN:
            log.error("audit: %d more (`ipbackend audit` shows all)", len(added) - SHOWN)
        if self.audited and not differing:
            log.info("audit: all agrees with the slots again")
        self.audited = differing
        if auditor.rounds > rounds:
            instruments.last_audit.set_to_current_time()

    def examine(self, key: EndpointKey) -> list[Finding]:
        """Whether a member that is there, or to be added, is prepared."""
        return list(self._forwarding_now().examine(self.configuration, key))

    def examine_network(self, number: str) -> list[Finding]:
        """Whether the way to a network is prepared."""
        return list(self._forwarding_now().examine_network(self.configuration, number))

    def capture(self, order: Order) -> Capture:
        """Begin to capture packets; whatever ends the data plane ends it as well."""
        return self._forwarding_now().capture(self.configuration, order)

    def end_capture(self) -> None:
        """Capture no more."""
        if self._forwarding:
            self._forwarding.end_capture()

    def _forwarding_now(self) -> Forwarding:
        if self._forwarding is None:
            raise NotRunningError(self.problem or "gateway: nothing is loaded (set its interfaces and SNAT addresses)")
        return self._forwarding

    def _view(self, forwarding: Forwarding) -> View:
        return View(forwarding.maps, self.configuration, forwarding.reconciler.entries, drains=self.drains.running)

    def _stage(self, configuration: Configuration) -> Stage:
        return Stage(configuration, self._down)

    def _put(self, drains: tuple[Drain, ...]) -> None:
        self._store.keep_drains(drains)
        self.drains.set(drains)

    def _depart(self) -> None:
        """Cut what is due and let go of what is over; where that fails, the next sweep tries again."""
        if self._forwarding is None:
            return
        try:
            done = self._forwarding.depart(self.configuration, self.drains)
            self._put(self.drains.without(done))
        except IpbackendError as error:
            self._failed(error)

    def _refuse_while_draining(self) -> None:
        """A data plane that is made anew carries nothing over."""
        if self.drains.running:
            names = ", ".join(sorted({f"{one.address}:{one.port}" for one in self.drains.running}))
            what = f"gateway: members still drain: {names} (wait for them, or kill their connections)"
            raise ConfigurationError(Problem(what, Kind.IN_USE))

    def _publish(self) -> None:
        self.configuration: Configuration = self._store.configuration
        self.stamps: Mapping[str, Stamp] = self._store.stamps
        self.revision: int = self._store.revision

    def _keep(self, have: Configuration, want: Configuration, author: str, what: str, apply: Apply) -> None:
        """Store, then apply; what the kernel refuses after all is taken back in both."""
        started = time.monotonic()
        number = self._store.write(want, author, what)
        kept = time.monotonic()
        try:
            apply(have, want)
        except BaseException as error:
            log.error("revision %d could not be applied and is taken back: %s", number, error)
            try:
                if number != self.revision:
                    self._store.undo(number, have)
            finally:
                with contextlib.suppress(IpbackendError):
                    apply(want, have)
            raise
        if number != self.revision:
            times = (kept - started, time.monotonic() - kept)
            log.info("revision %d by %s is in force (kept in %.2f s, applied in %.2f s)", number, author, *times)
        self._publish()
        self.book.follow(self.configuration)
        self.followed()

    def _apply(self, have: Configuration, want: Configuration) -> None:
        if self._forwarding:
            self._forwarding.apply(have, want, self.book.shares(want))

    def _reload(self, have: Configuration, want: Configuration) -> None:
        """A data plane made anew; where only its programs are, they take the place of those that forward, at once.

        If its tables are for other settings there are no members, hence no connections to lose.
        """
        self._close_forwarding()
        if have.gateway and _reloads(have, want):
            unload(self._run_directory, self.network)
        if want.gateway:
            self._begin(want)
        self.problem = ""

    def _begin(self, wanted: Configuration) -> None:
        """Who gets connections by what is loaded goes on getting them, until a check says otherwise."""
        forwarding = self._load(wanted)
        self.book.follow(wanted, forwarding.serving(wanted))
        shares = self.book.shares(wanted)
        self._down = _out(shares)
        forwarding.start(wanted, shares)
        self.followed()

    def _load(self, wanted: Configuration) -> Forwarding:
        self._forwarding = Forwarding(self._run_directory, self.network, gateway_of(wanted))
        try:
            self._forwarding.check(wanted)
        except BaseException:
            self._close_forwarding()
            raise
        return self._forwarding

    def _close_forwarding(self) -> None:
        if self._forwarding:
            self._forwarding.close()
            self._forwarding = None

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """What fails now is tried again in its turn."""
        try:
            yield
        except IpbackendError as error:
            self._failed(error)

    def _failed(self, error: IpbackendError) -> None:
        if str(error) != self.problem:
            log.error("not everything is as wanted: %s", error)
        self.problem = str(error)


def _out(shares: Mapping[str, int]) -> frozenset[str]:
    """The members, by id, that get no connections at all."""
    return frozenset(number for number, tenths in shares.items() if not tenths)


def _reloads(have: Configuration, want: Configuration) -> bool:
    """Whether the data plane must be made anew: check_transition lets that happen only without members."""
    if have.gateway is None or want.gateway is None:
        return have.gateway is not want.gateway
    return any(getattr(have.gateway, name) != getattr(want.gateway, name) for name in Gateway.FIXED)


def _recompiles(have: Configuration, want: Configuration) -> bool:
    """Whether the programs must be made anew."""
    return (
        have.gateway is not None
        and want.gateway is not None
        and have.gateway.counts_connections != want.gateway.counts_connections
    )
