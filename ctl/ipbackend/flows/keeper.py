"""Takes events out of the ring and has them kept as the gateway's settings say, on a thread of its own.

Whatever cannot be kept stays in the ring until it can: a disk that is full, a journal that is away, and the time
between two daemons cost events only where the ring is full, and those are counted. Times become the wall clock's
when they are read, by the difference of the two clocks at that moment: a clock that jumps does not tear durations.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ipbackend.abi import EventKind
from ipbackend.datapath import syscall
from ipbackend.datapath.maps import PINS, Maps
from ipbackend.datapath.ring import Ring
from ipbackend.errors import IpbackendError, NotRunningError
from ipbackend.flows.archive import Archive, Reader
from ipbackend.flows.calendar import Calendar
from ipbackend.flows.event import RECORD, STRUCT, Event, counted
from ipbackend.flows.files import DAY
from ipbackend.flows.lines import Journal, Lines
from ipbackend.flows.mark import Mark
from ipbackend.model import FlowLog, Gateway

log = logging.getLogger(__name__)

LOOK = 0.5  # seconds after which settings, losses and the ring itself are looked at again
GATHER = 0.1  # seconds that events are gathered after the first one: so many of them are one transaction
BATCHES = 64  # transactions in a row: more than the ring holds
EXPIRE = 60.0  # seconds between two looks at what is too old
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Standing(NamedTuple):
    """How the log is: where it is kept, why not at the moment, and how many events were.

    `written` counts since the daemon started, `lost` and `withheld` since the data plane was loaded; `waiting` are in
    the ring.
    """

    kind: FlowLog = FlowLog.OFF
    problem: str = ""
    written: int = 0
    waiting: int = 0
    lost: int = 0
    withheld: int = 0


class Sink(Protocol):
    """Where events go. `mark` is up to where it has them."""

    mark: Mark | None

    def write(self, records: bytes, offset: int, more: Sequence[Event], mark: Mark) -> None:
        """Keep a ring's records, `offset` added to their times, and more events. StoreError: not now."""

    def expire(self, oldest: float, limit: int) -> None:
        """Drop what is older than `oldest`, in seconds since 1970, or beyond `limit` bytes."""

    def close(self) -> None:
        """Let go of it."""


SINKS: dict[FlowLog, Callable[[Path], Sink]] = {
    FlowLog.STORE: Archive,
    FlowLog.JSON: Lines,
    FlowLog.JOURNALD: Journal,
}


class Source:
    """The ring of the data plane that is loaded, and what it counts of events that are not in it."""

    def __init__(self, run_directory: Path) -> None:
        """NotRunningError: nothing is loaded."""
        self._maps = Maps(run_directory)
        if "events" not in self._maps or tuple(self._maps["events"].leaf().as_dict()) != Event._fields:
            self._maps.close()
            raise NotRunningError(f"{run_directory}: a data plane of another version is loaded")
        self._counts = self._maps["event_counts"]
        self.ring = Ring(self._maps["events"].fd, STRUCT.size)
        self.name = f"{_BOOT.read_text().strip()}/{self._maps['events'].info.id}"

    def close(self) -> None:
        """Let go of it."""
        self.ring.close()
        self._maps.close()

    def missing(self) -> tuple[int, int]:
        """How many events were lost, and how many rejections withheld, since it was made."""
        rows = self._counts.get(0)
        return sum(row.lost for row in rows), sum(row.withheld for row in rows)

    def is_loaded(self, run_directory: Path) -> bool:
        """Whether it is still the one."""
        try:
            fd = syscall.open_pin(str(run_directory / PINS / "events"))
        except FileNotFoundError:
            return False
        with os.fdopen(fd):
            return syscall.map_info(fd).id == self._maps["events"].info.id


class Keeper:
    """The flow log of a gateway. `wanted` tells its settings, or that there is none."""

    def __init__(self, run_directory: Path, folder: Path, wanted: Callable[[], Gateway | None]) -> None:
        self.reader = Reader(folder)
        self._run_directory = run_directory
        self._folder = folder
        self._wanted = wanted
        self._source: Source | None = None
        self._sink: Sink | None = None
        self._kind = FlowLog.OFF
        self._stopping = threading.Event()
        self._expired = 0.0
        self._calendar = Calendar()
        self._standing = Standing()
        self._thread = threading.Thread(target=self._run, name="flow log", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Keep what is in the ring, and end; nothing, if it has not begun."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def standing(self) -> Standing:
        """How it is, as of the last turn."""
        return self._standing

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except IpbackendError as error:
                if str(error) != self._standing.problem:
                    log.error("flow log: %s", error)
                self._stand(problem=str(error))
                self._stopping.wait(LOOK)
            except Exception:  # whatever is wrong with it must not end the log for good
                log.exception("flow log: a bug")
                self._stopping.wait(LOOK)
        self._end()

    def _turn(self) -> None:
        """What is there, kept; then wait for more."""
        gateway = self._wanted()
        self._follow(gateway.flow_log if gateway else FlowLog.OFF)
        if not gateway or not self._source or not self._sink:
            self._stopping.wait(LOOK)
            return
        self.drain()
        if time.monotonic() >= self._expired:
            oldest = self._calendar.now() - gateway.flow_log_days * DAY
            self._sink.expire(oldest, gateway.flow_log_megabytes * 1_000_000)
            self._expired = time.monotonic() + EXPIRE
        if self._standing.problem:
            log.info("flow log: events are kept again")
        self._stand(problem="")
        self._source.ring.wait(LOOK)
        self._stopping.wait(GATHER)

    def drain(self) -> None:
        """Have everything in the ring kept, and told what is missing; what comes meanwhile may stay."""
        source, sink = self._source, self._sink
        assert source
        assert sink
        for _ in range(BATCHES):
            records, (more, mark) = source.ring.records(), self._missing(source)
            if not records and not more:
                return
            position = source.ring.position + len(records)
            offset = time.time_ns() - time.monotonic_ns()
            sink.write(records, offset, more, mark._replace(position=position))
            source.ring.advance(position)
            self._stand(written=self._standing.written + len(records) // RECORD.size)

    def _missing(self, source: Source) -> tuple[list[Event], Mark]:
        """What was lost or withheld since the last time, as events, and the mark that says so."""
        assert self._sink
        lost, withheld = source.missing()
        self._stand(lost=lost, withheld=withheld)
        mark = Mark(source.name, 0, lost, withheld)
        known = self._sink.mark
        told = (known.lost, known.withheld) if known and known.ring == source.name else (0, 0)
        kinds = (EventKind.LOST, EventKind.WITHHELD)
        more = [
            counted(kind, time.time_ns(), now - then)
            for kind, now, then in zip(kinds, mark[2:], told, strict=True)
            if now > then
        ]
        return more, mark

    def _stand(self, **changed: Any) -> None:
        waiting = self._source.ring.waiting if self._source else 0
        self._standing = self._standing._replace(kind=self._kind, waiting=waiting, **changed)

    def _follow(self, kind: FlowLog) -> None:
        """Have the ring that is loaded, and the sink that is wanted."""
        if self._source and not self._source.is_loaded(self._run_directory):
            self._end()
        if kind is not self._kind:
            self._end()
        if kind is FlowLog.OFF or self._source:
            return
        try:
            self._source = Source(self._run_directory)
        except NotRunningError:
            return
        try:
            self._sink = SINKS[kind](self._folder)
        except BaseException:
            self._close()
            raise
        self._kind, mark = kind, self._sink.mark
        self._stand()
        ring = self._source.ring
        if mark and mark.ring == self._source.name and mark.position > ring.position:
            ring.advance(mark.position)  # the last daemon was ended between keeping and saying so

    def _end(self) -> None:
        """The last events of a ring or for a sink, kept if that is possible."""
        try:
            if self._source and self._sink:
                self.drain()
        except IpbackendError as error:
            log.error("flow log: %s", error)
        self._close()

    def _close(self) -> None:
        if self._sink:
            self._sink.close()
        if self._source:
            self._source.close()
        self._sink, self._source, self._kind = None, None, FlowLog.OFF
        self._stand()
