"""Events kept in SQLite files, to be asked who stood behind a SNAT address and port at some time, and what there was.

A file takes a quarter of a million events, or those of a day. While it is written it has no index: an entry at a random
place of one costs three times what the event itself does. A file that is full gets its index, sorted, from a thread
of its own; the one that is not is searched whole, which takes some hundredths of a second.

With the events a file says up to where they were read, in the same transaction: none is kept twice, and none is
passed over, however the writer ends.
"""

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ipbackend.errors import StoreError
from ipbackend.flows.event import RECORD, Event
from ipbackend.flows.files import DAY, Files
from ipbackend.flows.mark import Mark

log = logging.getLogger(__name__)

SUFFIX = ".db"
SEGMENT = 250_000  # events
_COLUMNS = ", ".join(Event._fields)
_TABLES = f"""
PRAGMA journal_mode = WAL;
CREATE TABLE events ({_COLUMNS});
CREATE TABLE mark (ring, position, lost, withheld);
"""
_INDEX = "CREATE INDEX IF NOT EXISTS events_by_snat ON events (snat, snat_port)"
_VALUES = ", ".join(f"?{number}" for number in range(3, len(Event._fields) + 1))


class Archive:
    """The files in a folder, for one writer."""

    def __init__(self, folder: Path, segment: int = SEGMENT) -> None:
        """Go on where the last writer stopped. StoreError: that cannot be."""
        self._segment = segment
        with _errors(folder, "open it"):
            self._files = Files(folder, SUFFIX)
            self._indexer = ThreadPoolExecutor(1, "flow index")
            self._file: sqlite3.Connection | None = None
            self._entries, self._began = 0, 0.0
            self.mark: Mark | None = None
            paths = self._files.paths()
            for path in paths[:-1]:
                self._indexer.submit(_finish, path)
            if paths:
                self._take_up(paths[-1])

    def close(self) -> None:
        """Let go of the files."""
        if self._file:
            self._file.close()
        self._indexer.shutdown()

    def write(self, records: bytes, offset: int, more: Sequence[Event], mark: Mark) -> None:
        """Keep a ring's records, `offset` added to their times, and `more` events; both, and `mark`, or nothing.

        StoreError: nothing was kept.
        """
        with _errors(self._files.folder, "write to it"):
            if self._file is None or self._entries >= self._segment or abs(time.time() - self._began) > DAY:
                self._begin()
            assert self._file is not None
            self._file.execute("BEGIN IMMEDIATE")
            try:
                shifted = f"INSERT INTO events VALUES (?1 + {offset}, ?2 + {offset}, {_VALUES})"
                self._file.executemany(shifted, RECORD.iter_unpack(records))
                self._file.executemany(f"INSERT INTO events VALUES (?1, ?2, {_VALUES})", more)
                self._file.execute("DELETE FROM mark")
                self._file.execute("INSERT INTO mark VALUES (?, ?, ?, ?)", mark)
                self._file.execute("COMMIT")
            except BaseException:
                self._file.rollback()
                raise
        self._entries += len(records) // RECORD.size + len(more)
        self.mark = mark

    def expire(self, oldest: float, limit: int) -> None:
        """Drop files that are too old, or too many: `limit` is in bytes."""
        with _errors(self._files.folder, "remove old files"):
            for path in self._files.expire(oldest, limit):
                log.info("flow log: %s is dropped", path.name)

    def _begin(self) -> None:
        """A file of its own for what comes now."""
        if self._file:
            self._file.close()
            self._indexer.submit(_finish, self._files.paths()[-1])
        self._open(self._files.next())
        assert self._file is not None
        self._file.executescript(_TABLES)
        self._entries, self._began = 0, time.time()

    def _take_up(self, path: Path) -> None:
        """The newest file, with what it says of itself; one that was never begun is made anew."""
        self._open(path)
        assert self._file is not None
        if not self._file.execute("SELECT 1 FROM sqlite_master WHERE name = 'mark'").fetchone():
            self._file.executescript(_TABLES)
        (self._entries,) = self._file.execute("SELECT coalesce(max(rowid), 0) FROM events").fetchone()
        self._began = path.stat().st_ctime if not self._entries else self._first()
        row = self._file.execute("SELECT * FROM mark").fetchone()
        self.mark = Mark(*row) if row else None

    def _first(self) -> float:
        assert self._file is not None
        at: int = self._file.execute("SELECT at FROM events LIMIT 1").fetchone()[0]
        return at / 1e9

    def _open(self, path: Path) -> None:
        self._file = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._file.execute("PRAGMA synchronous = NORMAL")


class Reader:
    """The same files, for whoever asks: any number at a time, beside the writer. StoreError: they cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def behind(self, snat: int, port: int, until: int) -> list[Event]:
        """All that is known of connections which had this SNAT address and port, and were opened before `until`.

        Address and port are raw, as in events.
        """
        sql = f"SELECT {_COLUMNS} FROM events WHERE snat = ? AND snat_port = ? AND opened < ?"
        return [Event(*row) for path in self._paths() for row in _asked(path, sql, (snat, port, until))]

    def newest(self, where: Mapping[str, int], since: int, until: int, limit: int) -> list[Event]:
        """The last events at or after `since` and before `until`, the newest first: those whose fields are so."""
        wanted = "".join(f" AND {name} = ?" for name in where)
        sql = f"SELECT {_COLUMNS} FROM events WHERE at >= ? AND at < ?{wanted} ORDER BY rowid DESC LIMIT ?"
        found: list[Event] = []
        for path in reversed(self._paths()):
            rows = _asked(path, sql, (since, until, *where.values(), limit - len(found)))
            found += (Event(*row) for row in rows)
            last = _asked(path, "SELECT at FROM events ORDER BY rowid DESC LIMIT 1", ())
            if len(found) == limit or (last and last[0][0] < since):
                break
        return found

    def begins(self) -> int | None:
        """When the first event that is still kept happened."""
        for path in self._paths():
            if rows := _asked(path, "SELECT at FROM events LIMIT 1", ()):
                return int(rows[0][0])
        return None

    def size(self) -> tuple[int, int]:
        """How many events are kept, and in how many bytes."""
        paths = self._paths()
        counts = [row[0] for path in paths for row in _asked(path, "SELECT coalesce(max(rowid), 0) FROM events", ())]
        return sum(counts), Files(self._folder, SUFFIX).size() if paths else 0

    def _paths(self) -> list[Path]:
        return Files(self._folder, SUFFIX).paths() if self._folder.is_dir() else []


def _asked(path: Path, sql: str, values: Sequence[int]) -> list[Any]:
    """What a file says; nothing where it was dropped meanwhile or is not begun yet."""
    with _errors(path, "read it"):
        try:
            file = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        except sqlite3.OperationalError:
            if path.exists():
                raise
            return []
        with contextlib.closing(file):
            begun = file.execute("SELECT 1 FROM sqlite_master WHERE name = 'mark'").fetchone()
            return file.execute(sql, values).fetchall() if begun else []


def _finish(path: Path) -> None:
    """A file that nothing is added to any more: its index, and no log beside it."""
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as file:
            file.execute(_INDEX)
            with contextlib.suppress(sqlite3.OperationalError):  # someone reads: it stays as it is
                file.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        log.warning("flow log: %s stays without an index: %s", path.name, error)


@contextlib.contextmanager
def _errors(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{path}: cannot {what}: {error} (is the disk full, or the folder not ours?)") from error
