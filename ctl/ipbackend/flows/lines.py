"""Events as lines of JSON: in files that follow each other, or to journald. What they mean is in docs/flow-log.md."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ipbackend.errors import StoreError
from ipbackend.flows.event import RECORD, Event, Shown, shown
from ipbackend.flows.files import Files
from ipbackend.flows.mark import Mark

SUFFIX = ".jsonl"
FILE_SIZE = 64_000_000  # bytes after which the next file begins
JOURNAL = Path("/run/systemd/journal/socket")
_MARK = "mark.json"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def told(records: bytes, offset: int, more: Sequence[Event]) -> Iterator[Shown]:
    """A ring's records, `offset` added to their times, and more events, as they are shown."""
    for at, opened, *rest in RECORD.iter_unpack(records):
        yield shown(Event(at + offset, opened + offset, *rest))
    yield from map(shown, more)


def line(event: Shown) -> str:
    """An event as JSON; what does not apply is left out."""
    return _encode({name: value for name, value in zip(Shown._fields, event, strict=True) if value is not None})


class _Marked:
    """The mark in a file of its own, beside what it is about."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = folder / _MARK
        self.mark: Mark | None = None
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            self.mark = Mark(**json.loads(self._path.read_text()))

    def _keep(self, mark: Mark) -> None:
        fresh = self._path.with_suffix(".next")
        fresh.write_text(_encode(mark._asdict()))
        fresh.replace(self._path)
        self.mark = mark


class Lines(_Marked):
    """Files of lines in a folder; a line is an event."""

    def __init__(self, folder: Path, file_size: int = FILE_SIZE) -> None:
        """StoreError: the folder cannot be used."""
        with _errors(folder):
            super().__init__(folder)
            self._files = Files(folder, SUFFIX)
            self._file_size = file_size
            self._file: BinaryIO | None = None
            if paths := self._files.paths():
                self._file = paths[-1].open("ab", buffering=0)

    def close(self) -> None:
        """Let go of the file."""
        if self._file:
            self._file.close()

    def write(self, records: bytes, offset: int, more: Sequence[Event], mark: Mark) -> None:
        """Add a line for each. StoreError: none was added."""
        with _errors(self._files.folder):
            if self._file is None or self._file.tell() >= self._file_size:
                self.close()
                self._file = self._files.next().open("ab", buffering=0)
            self._add(self._file, "".join(f"{line(one)}\n" for one in told(records, offset, more)).encode())
            self._keep(mark)

    def expire(self, oldest: float, limit: int) -> None:
        """Drop files that are too old, or too many: `limit` is in bytes."""
        with _errors(self._files.folder):
            self._files.expire(oldest, limit)

    @staticmethod
    def _add(file: BinaryIO, lines: bytes) -> None:
        """All of it, or what came of it is taken back."""
        before = file.seek(0, os.SEEK_END)
        try:
            if file.write(lines) != len(lines):
                raise OSError("the disk is full")
        except OSError:
            file.truncate(before)
            raise


class Journal(_Marked):
    """journald by its own protocol, in which a datagram is an entry (systemd's JOURNAL_NATIVE_PROTOCOL)."""

    def __init__(self, folder: Path, journal: Path = JOURNAL) -> None:
        """StoreError: there is no journal."""
        with _errors(journal):
            super().__init__(folder)
            self._path_of_journal = journal
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                self._socket.connect(str(journal))
            except OSError:
                self._socket.close()
                raise

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def write(self, records: bytes, offset: int, more: Sequence[Event], mark: Mark) -> None:
        """Send an entry for each. StoreError: it is not known which of them are in the journal."""
        with _errors(self._path_of_journal):
            for one in told(records, offset, more):
                self._socket.send(entry(one))
            self._keep(mark)

    def expire(self, oldest: float, limit: int) -> None:
        """The journal keeps its own house."""


def entry(event: Shown) -> bytes:
    """What journald is sent of an event: a line to read, and `FLOW_CLIENT=…` and so on."""
    fields = {name: value for name, value in zip(Shown._fields, event, strict=True) if value is not None}
    head = {"MESSAGE": message(event), "PRIORITY": 6, "SYSLOG_IDENTIFIER": "ipbackend-flow"}
    ours = {f"FLOW_{name.upper()}": value for name, value in fields.items()}
    return "".join(f"{name}={value}\n" for name, value in {**head, **ours}.items()).encode()


def message(event: Shown) -> str:
    """An event in a line: `closed TCP 203.0.113.7:40000 → 10.0.0.100:80 → …`."""
    if event.events is not None:
        return f"{event.events} events {event.event}"
    way = " → ".join(end for end in (event.client, event.vip, event.snat, event.member) if end)
    return " ".join(part for part in (event.event, event.protocol, way, event.reason) if part)


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot write to it: {error.strerror or error} (the flow log waits)") from error
