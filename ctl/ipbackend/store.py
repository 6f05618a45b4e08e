"""What is wanted, kept: a SQLite file with every resource, and every change with its time and author.

It knows the model's shapes, and nothing of what becomes of them. A change is a revision; it is written whole or
not at all, and is on the disk when `write` returns. Every failure is a StoreError and leaves the file as it was.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ipbackend.changes import GATEWAY, MEMBERS, Change, Verb, between, summary
from ipbackend.codec import from_plain, to_plain
from ipbackend.configuration import SECTIONS, Configuration
from ipbackend.drains import Drain
from ipbackend.errors import ConfigurationError, Kind, Problem, StoreError
from ipbackend.model import Gateway, Member

LINK = "store.db"  # in the run directory: leads to the store of the daemon that runs there
APPLICATION = 0x49504245  # "IPBE": what kind of file it is (PRAGMA application_id)
REVISIONS_KEPT = 10_000
CHANGES_KEPT = 1_000_000  # resources changed in those, some 400 bytes each
KINDS: dict[str, type] = {GATEWAY: Gateway, MEMBERS: Member, **SECTIONS}
ORDER = (GATEWAY, *SECTIONS, MEMBERS)

# What makes each version of the schema from the one before; a file says which it has (PRAGMA user_version).
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE resources (
        id TEXT PRIMARY KEY,
        section TEXT NOT NULL,
        parent TEXT,                   -- the pool of a member
        position INTEGER NOT NULL,     -- resources of a section, and members of a pool, are in this order
        body TEXT NOT NULL,            -- JSON
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE revisions (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        time TEXT NOT NULL,
        author TEXT NOT NULL,
        summary TEXT NOT NULL
    );
    CREATE TABLE changes (
        revision INTEGER NOT NULL REFERENCES revisions ON DELETE CASCADE,
        id TEXT NOT NULL,
        section TEXT NOT NULL,
        parent TEXT,
        position INTEGER NOT NULL,
        label TEXT NOT NULL,
        before TEXT,                   -- JSON, or NULL: it was not there
        after TEXT                     -- JSON, or NULL: it is gone
    );
    CREATE INDEX changes_by_revision ON changes (revision);
    """,
    "CREATE TABLE drains (body TEXT NOT NULL)",  # JSON: members whose connections have a time left
)
SCHEMA = len(MIGRATIONS)


class Stamp(NamedTuple):
    """When a resource was made and last changed, in UTC: `2026-11-25T13:00:00Z`."""

    created_at: str
    updated_at: str


class Revision(NamedTuple):
    """One change of what is wanted."""

    number: int
    time: str
    author: str
    summary: str


class Store:
    """The file at `path`, made if it is not there; one writer at a time. Close it after use."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self._path = path
        with self._errors("open it"):
            where = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    path.touch(mode=0o600)
            self._file = sqlite3.connect(where, uri=True, isolation_level=None, check_same_thread=False)
        try:
            with self._errors("read it"):
                self._prepare(read_only)
                self.configuration, self.stamps, self._positions = self._load()
                self.drains = self._load_drains()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def revision(self) -> int:
        """The number of the last change; 0 before the first."""
        with self._errors("read it"):
            return int(self._file.execute("SELECT coalesce(max(number), 0) FROM revisions").fetchone()[0])

    def write(self, want: Configuration, author: str, what: str = "") -> int:
        """Keep `want` as a new revision and return its number; with no difference, nothing happens.

        `what` is said of it in place of a summary of the changes. StoreError: nothing was changed.
        """
        changes = between(self.configuration, want)
        positions, moved = self._placed(want)
        if not changes and not moved:
            return self.revision
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._errors("write to it"), self._transaction():
            insert = "INSERT INTO revisions (time, author, summary) VALUES (?, ?, ?)"
            number = int(self._file.execute(insert, (now, author, what or summary(changes))).lastrowid or 0)
            self._log(number, changes)
            self._log_moved(number, moved)
            self._change(changes, positions, now)
            self._move(moved)
            self._file.execute(_FORGET, (number - REVISIONS_KEPT, CHANGES_KEPT))
        self._positions = positions
        self._restamp(changes, now)
        self.configuration = want
        return number

    def undo(self, number: int, before: Configuration) -> None:
        """Take back revision `number`, the last, and with it its place in the history: the kernel refused it."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        changes = between(self.configuration, before)
        positions, moved = self._placed(before)
        with self._errors(f"take back revision {number}, which was not applied"), self._transaction():
            self._change(changes, positions, now)
            self._move(moved)
            self._file.execute("DELETE FROM revisions WHERE number = ?", (number,))
        self._positions = positions
        self._restamp(changes, now)
        self.configuration = before

    def keep_drains(self, drains: tuple[Drain, ...]) -> None:
        """Keep these, and no others. StoreError: nothing was changed."""
        if drains == self.drains:
            return
        with self._errors("write to it"), self._transaction():
            self._file.execute("DELETE FROM drains")
            rows = ((json.dumps(to_plain(one), separators=(",", ":")),) for one in drains)
            self._file.executemany("INSERT INTO drains VALUES (?)", rows)
        self.drains = drains

    def history(self, limit: int = 100) -> list[Revision]:
        """The last revisions, the newest first."""
        with self._errors("read it"):
            found = self._file.execute(
                "SELECT number, time, author, summary FROM revisions ORDER BY number DESC LIMIT ?", (limit,)
            )
            return [Revision(*row) for row in found]

    def changes(self, number: int) -> list[Change]:
        """What a revision changed. ConfigurationError: there is no such revision."""
        self._known(number)
        with self._errors("read it"):
            found = self._file.execute(
                "SELECT section, id, parent, before, after, label FROM changes "
                "WHERE revision = ? AND before IS NOT after ORDER BY rowid",
                (number,),
            )
            return [
                Change(section, one, parent, _decoded(section, one, before), _decoded(section, one, after), label)
                for section, one, parent, before, after, label in found
            ]

    def at(self, number: int) -> Configuration:
        """What was wanted after revision `number`. ConfigurationError: it is not known, or not valid any more."""
        self._known(number)
        with self._errors("read it"):
            rows = {
                row[1]: row for row in self._file.execute("SELECT section, id, parent, position, body FROM resources")
            }
            later = self._file.execute(
                "SELECT section, id, parent, position, before FROM changes WHERE revision > ? ORDER BY rowid DESC",
                (number,),
            )
            for row in later:
                if row[4] is None:
                    del rows[row[1]]
                else:
                    rows[row[1]] = row
        return _assembled(rows.values())

    def _known(self, number: int) -> None:
        last = self.revision
        with self._errors("read it"):
            first = self._file.execute("SELECT coalesce(min(number), 1) FROM revisions").fetchone()[0]
        if not (number == 0 and first == 1) and not first <= number <= last:
            what = f"revision {number} is not known (there are {first} to {last})"
            raise ConfigurationError(Problem(what, Kind.MISSING))

    def _prepare(self, read_only: bool) -> None:
        application, version = (self._file.execute(f"PRAGMA {name}").fetchone()[0] for name in _MARKS)
        empty = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if application != APPLICATION and not empty:
            raise StoreError(f"{self._path}: it is not a store of ipbackend's (name another file)")
        if version > SCHEMA:
            raise StoreError(
                f"{self._path}: it was written by a newer ipbackend, schema {version}; this one knows {SCHEMA} "
                f"(install the newer one again, or put the copy back that it made: {self._path.name}.schema-{SCHEMA}; "
                "the data plane goes on meanwhile)"
            )
        damage = " ".join(self._file.execute("PRAGMA quick_check(1)").fetchone()[0].split())
        if damage != "ok":
            raise StoreError(f"{self._path}: it is damaged: {damage} ({_RESTORE})")
        if read_only:
            if version < SCHEMA:
                raise StoreError(f"{self._path}: schema {version} is to be brought up to {SCHEMA} (`ipbackend run`)")
            return
        self._file.execute("PRAGMA journal_mode = WAL")
        self._file.execute("PRAGMA synchronous = FULL")
        self._file.execute("PRAGMA foreign_keys = ON")
        if version < SCHEMA and not empty:
            self._keep_copy(version)
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            with self._transaction():
                for statement in filter(str.strip, script.split(";")):
                    self._file.execute(statement)
                self._file.execute(f"PRAGMA application_id = {APPLICATION}")
                self._file.execute(f"PRAGMA user_version = {number}")

    def _keep_copy(self, version: int) -> None:
        """As it is before it is brought up: whoever goes back to the ipbackend before needs it."""
        copy = self._path.with_name(f"{self._path.name}.schema-{version}")
        copy.unlink(missing_ok=True)
        copy.touch(mode=0o600)
        self._file.execute("VACUUM INTO ?", (str(copy),))

    def _load(self) -> tuple[Configuration, dict[str, Stamp], dict[str, int]]:
        rows = self._file.execute(
            "SELECT section, id, parent, position, body, created_at, updated_at FROM resources"
        ).fetchall()
        stamps = {row[1]: Stamp(row[5], row[6]) for row in rows}
        positions = {row[1]: row[3] for row in rows}
        try:
            return _assembled(row[:5] for row in rows), stamps, positions
        except (ValueError, TypeError, KeyError, ConfigurationError) as error:
            raise StoreError(f"{self._path}: what it holds cannot be used: {error} ({_RESTORE})") from error

    def _load_drains(self) -> tuple[Drain, ...]:
        rows = self._file.execute("SELECT body FROM drains ORDER BY rowid").fetchall()
        try:
            return tuple(from_plain(Drain, json.loads(body)) for (body,) in rows)
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{self._path}: what it holds cannot be used: {error} ({_RESTORE})") from error

    def _placed(self, want: Configuration) -> tuple[dict[str, int], list[tuple[int, str]]]:
        """Positions that keep everything in its order, and those that change for it."""
        positions = dict(self._positions)
        last = max(positions.values(), default=0)
        there: set[str] = set()
        for numbers in _sequences(want):
            before = 0
            for number in numbers:
                position = positions.get(number, 0)
                if position <= before:
                    last += 1
                    position = positions[number] = last
                before = position
                there.add(number)
        moved = [
            (positions[one], one) for one in there & self._positions.keys() if positions[one] != self._positions[one]
        ]
        return positions, moved

    def _log(self, number: int, changes: Iterable[Change]) -> None:
        """With the positions that there were before."""
        self._file.executemany(
            "INSERT INTO changes (revision, id, section, parent, position, label, before, after) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    *(number, one.id, one.section, one.parent, self._positions.get(one.id, 0), one.label),
                    *(_encoded(one.before), _encoded(one.after)),
                )
                for one in changes
            ),
        )

    def _log_moved(self, number: int, moved: Iterable[tuple[int, str]]) -> None:
        """Where nothing but the place is another: before and after are the same."""
        self._file.executemany(
            "INSERT INTO changes SELECT ?, id, section, parent, position, '', body, body FROM resources WHERE id = ?",
            ((number, one) for _, one in moved),
        )

    def _move(self, moved: Iterable[tuple[int, str]]) -> None:
        self._file.executemany("UPDATE resources SET position = ? WHERE id = ?", moved)

    def _change(self, changes: list[Change], positions: dict[str, int], now: str) -> None:
        self._file.executemany(
            "DELETE FROM resources WHERE id = ?", ((one.id,) for one in changes if one.verb is Verb.REMOVED)
        )
        self._file.executemany(
            "UPDATE resources SET body = ?, updated_at = ? WHERE id = ?",
            ((_encoded(one.after), now, one.id) for one in changes if one.verb is Verb.CHANGED),
        )
        self._file.executemany(
            "INSERT INTO resources VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (one.id, one.section, one.parent, positions.get(one.id, 0), _encoded(one.after), now, now)
                for one in changes
                if one.verb is Verb.ADDED
            ),
        )

    def _restamp(self, changes: list[Change], now: str) -> None:
        stamps = dict(self.stamps)
        for one in changes:
            if one.verb is Verb.REMOVED:
                del stamps[one.id]
                self._positions.pop(one.id, None)
            else:
                stamps[one.id] = Stamp(stamps[one.id].created_at if one.before is not None else now, now)
        self.stamps = stamps

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._file.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._file.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite rolls some failures back by itself
                self._file.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = f"{self._path}: cannot {doing}: {error.strerror} (name a place that can be used)"
            raise StoreError(what) from error
        except sqlite3.Error as error:
            remedy = _REMEDIES.get(getattr(error, "sqlite_errorname", ""), "see `dmesg`; nothing was changed")
            raise StoreError(f"{self._path}: cannot {doing}: {error} ({remedy})") from error


_FORGET = """
    DELETE FROM revisions WHERE number <= ? OR number IN (
        SELECT revision FROM changes WHERE rowid <= (SELECT max(rowid) FROM changes) - ?
    )
"""
_MARKS = ("application_id", "user_version")
_RESTORE = (
    "put a copy of it back; the data plane goes on as it is, "
    "and as long as the daemon runs, `ipbackend export` tells what is in force"
)
_REMEDIES = {
    "SQLITE_CORRUPT": _RESTORE,
    "SQLITE_NOTADB": _RESTORE,
    "SQLITE_FULL": "make room on that file system; nothing was changed",
    "SQLITE_BUSY": "another process writes to it; nothing was changed",
    "SQLITE_CANTOPEN": "it, and the directory it is in, must be writable",
    "SQLITE_READONLY": "it, and the directory it is in, must be writable; nothing was changed",
    "SQLITE_IOERR_WRITE": "the disk does not take it, see `dmesg`; nothing was changed",
}


def _encoded(thing: Any) -> str | None:
    return None if thing is None else json.dumps(_body(thing), separators=(",", ":"))


def _body(thing: Any) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(thing)
    return {name: value for name, value in plain.items() if name not in ("id", "members")}


def _decoded(section: str, number: str, body: str | None) -> Any:
    return None if body is None else from_plain(KINDS[section], {**json.loads(body), "id": number})


def _assembled(rows: Iterable[tuple[Any, ...]]) -> Configuration:
    """A configuration of rows: section, id, parent, position, body."""
    sections: dict[str, dict[str, dict[str, Any]]] = {section: {} for section in ORDER}
    members: dict[str, list[Member]] = {}
    for section, number, parent, _, body in sorted(rows, key=lambda row: int(row[3])):
        plain = {**json.loads(body), "id": number}
        if section == MEMBERS:
            members.setdefault(parent, []).append(from_plain(Member, plain))
        else:
            sections[section][number] = plain
    made: dict[str, dict[str, Any]] = {
        section: {number: from_plain(kind, plain) for number, plain in sections[section].items()}
        for section, kind in SECTIONS.items()
    }
    for number, theirs in members.items():
        made["pools"][number] = replace(made["pools"][number], members=tuple(theirs))
    gateway = next((from_plain(Gateway, plain) for plain in sections[GATEWAY].values()), None)
    return Configuration(gateway, **made)


def _sequences(want: Configuration) -> Iterator[Iterable[str]]:
    """Ids whose order counts."""
    for _, resources in want.sections():
        yield resources
    for pool in want.pools.values():
        yield [member.id for member in pool.members]
