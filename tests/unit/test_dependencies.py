"""BCC, netlink, bpf(2) and SQLite, each failing at each call: what comes of it is one of our errors, with a remedy."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError  # noqa: TID251 - what the real one raises

from ipbackend.datapath import syscall
from ipbackend.errors import DatapathError, NetworkError, StoreError
from ipbackend.network import Interface, Network, Route
from ipbackend.store import Store
from tests.unit.wanted import FULL

REMEDY = re.compile(r"\(.+\)$")
LINK = Interface(7, "eth7", bytes(6), 1500, True)
ADDRESS, ROUTE = IPv4Address("10.0.0.9"), Route(IPv4Network("10.9.0.0/16"), IPv4Address("10.0.0.1"), 7)

# Netlink


class Refusing:
    """Every request is refused."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        def ask(verb: str, **_: Any) -> Any:
            raise self._error

        return ask


ASKED: dict[str, Callable[[Network], Any]] = {
    "interfaces": lambda network: network.interfaces(),
    "addresses": lambda network: network.addresses(),
    "add_address": lambda network: network.add_address(ADDRESS, LINK),
    "remove_address": lambda network: network.remove_address(ADDRESS, LINK),
    "routes": lambda network: network.routes(),
    "add_route": lambda network: network.add_route(ROUTE),
    "lacks": lambda network: network.lacks(ROUTE),
    "remove_route": lambda network: network.remove_route(ROUTE),
    "neighbours": lambda network: network.neighbours(),
    "resolve": lambda network: network.resolve(ADDRESS, 7),
    "path_mtu": lambda network: network.path_mtu(ADDRESS),
    "way_to": lambda network: network.way_to(ADDRESS),
    "received": lambda network: network.received(),
    "attached": lambda network: network.attached(7),
    "attach": lambda network: network.attach(LINK, 3, "native", None),
    "attach in place of another": lambda network: network.attach(LINK, 3, "auto", 4),
    "detach": lambda network: network.detach(LINK, 3),
}
REFUSALS = [
    *(
        NetlinkError(code, os.strerror(code))
        for code in sorted(errno.errorcode)
        if code not in (errno.ESRCH, errno.ENOENT)
    ),
    *(OSError(code, os.strerror(code)) for code in (errno.ENOBUFS, errno.EBADF, errno.EMFILE, errno.ECONNRESET)),
    TimeoutError("timed out"),
]


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_whatever_netlink_refuses(asked: Callable[[Network], Any]) -> None:
    network = Network.__new__(Network)
    network._thread = threading.get_ident()
    for error in REFUSALS:
        network._requests = Refusing(error)
        with pytest.raises(NetworkError) as told:
            asked(network)
        assert REMEDY.search(str(told.value)), str(told.value)


class Events:
    """Where the kernel's reports come in."""

    def __init__(self, *said: OSError) -> None:
        self._said = list(said)

    def recv(self, _: int) -> bytes:
        raise self._said.pop(0) if self._said else BlockingIOError


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.EBADF, errno.ECONNRESET, errno.EIO])
def test_reports_that_cannot_be_read_are_changes(code: int) -> None:
    network = Network.__new__(Network)
    network._events = Events(OSError(code, ""))  # type: ignore[assignment]
    assert network.changed()
    assert not network.changed()


# bpf(2)


class Failing:
    """A kernel that answers every bpf(2) by one error."""

    def __init__(self, code: int) -> None:
        self._code = code

    def syscall(self, *_: Any) -> int:
        ctypes.set_errno(self._code)
        return -1


CALLS: dict[str, Callable[[], Any]] = {
    "map_create": lambda: syscall.map_create(2, 4, 4, 1, 0, "x"),
    "lookup": lambda: syscall.lookup(3, b"1234", 4),
    "lookup_many": lambda: syscall.lookup_many(3, 0, 1, 4),
    "update": lambda: syscall.update(3, b"1234", b"1234"),
    "update_batch": lambda: syscall.update_batch(3, [1], [1]),
    "lookup_keys": lambda: syscall.lookup_keys(3, 4, 4),
    "delete": lambda: syscall.delete(3, b"1234"),
    "next_key": lambda: syscall.next_key(3, None, 4),
    "pin": lambda: syscall.pin(3, "/nowhere"),
    "open_pin": lambda: syscall.open_pin("/nowhere"),
    "map_by_id": lambda: syscall.map_by_id(1),
    "map_info": lambda: syscall.map_info(3),
    "program_load": lambda: syscall.program_load(6, bytes(8), b"GPL", 0, "x"),
    "program_id": lambda: syscall.program_id(3),
    "jited_size": lambda: syscall.jited_size(3),
    "run": lambda: syscall.run(3, bytes(14)),
}
NO_SUCH_ENTRY = {"lookup", "lookup_keys", "delete", "next_key"}


@pytest.mark.parametrize("name", CALLS)
def test_whatever_bpf_refuses(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It is a DatapathError with a remedy, and the OSError that callers may know it by."""
    for code in errno.errorcode:
        if code == errno.EINTR or (code == errno.ENOENT and name in NO_SUCH_ENTRY):
            continue
        monkeypatch.setattr(syscall, "_libc", Failing(code))
        with pytest.raises(DatapathError) as told:
            CALLS[name]()
        assert isinstance(told.value, OSError)
        assert told.value.errno == code
        nothing_there = (code == errno.ENOENT and name != "program_load") or (code, name) == (errno.ENOTDIR, "open_pin")
        assert isinstance(told.value, FileNotFoundError) == nothing_there
        assert REMEDY.search(str(told.value)), str(told.value)


@pytest.mark.parametrize("name", ["lookup", "delete", "next_key"])
def test_what_is_not_there_is_no_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(syscall, "_libc", Failing(errno.ENOENT))
    assert not CALLS[name]()


def test_memory_that_cannot_be_mapped() -> None:
    with Path(os.devnull).open() as nothing, pytest.raises(DatapathError) as told:
        syscall.map_memory(nothing.fileno(), 4096)
    assert REMEDY.search(str(told.value))


# BCC


ABSENT = {
    "no module": "import sys; sys.modules['bcc'] = None",
    "another project of that name": "import sys, types; sys.modules['bcc'] = types.ModuleType('bcc')",
    "no library": """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == 'bcc':
            raise OSError('libbcc.so.0: cannot open shared object file: No such file or directory')
sys.meta_path.insert(0, Finder())
""",
}


@pytest.mark.parametrize("prelude", ABSENT.values(), ids=ABSENT)
def test_without_bcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prelude: str) -> None:
    from ipbackend.datapath import compiler

    (tmp_path / "sitecustomize.py").write_text(prelude)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(DatapathError, match=r"^bcc: .+ \(.*apt install python3-bpfcc.*\)$"):
        compiler.build("", {}, {})


def test_what_bcc_does_not_compile_or_give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ipbackend.datapath import compiling

    def refuse(*_: Any, **__: Any) -> Any:
        raise Exception("Failed to compile BPF module <text>")

    monkeypatch.setattr("bcc.BPF", refuse)
    with pytest.raises(DatapathError, match=r"BCC does not compile it: Failed to compile .+ \(.+\)$"):
        compiling.compiled("", {})
    monkeypatch.undo()

    class Older:
        module = None

        def dump_func(self, _: bytes) -> bytes:
            raise AttributeError("/lib/libbcc.so.0: undefined symbol: bpf_function_start")

    with pytest.raises(DatapathError, match=r"BCC does not give it: .+undefined symbol.+ \(.+\)$"):
        compiling.load(Older(), "ipbackend", 6)


ENDS = {
    "killed": ("#!/bin/sh\nkill -9 $$\n", "the compiler ended with status -9"),
    "without a word": ("#!/bin/sh\n", "the compiler ended with status 0"),
    "not there": ("", "the compiler does not begin: "),
}


@pytest.mark.parametrize(("script", "said"), ENDS.values(), ids=ENDS)
def test_a_compiler_that_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, said: str) -> None:
    from ipbackend.datapath import compiler

    python = tmp_path / "python3"
    if script:
        python.write_text(script)
        python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(DatapathError, match=said) as told:
        compiler.build("", {}, {})
    assert REMEDY.search(str(told.value))


def test_a_compiler_whose_descriptors_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    from ipbackend.datapath import compiler

    answer = subprocess.CompletedProcess([], 0, b'{"descriptors": ["one", "two"], "layouts": {}}', b"")
    monkeypatch.setattr(compiler.subprocess, "run", lambda *_, **__: answer)
    received = os.open(os.devnull, os.O_RDONLY)
    monkeypatch.setattr(compiler.socket, "recv_fds", lambda *_: (b".", [received], 0, None))
    with pytest.raises(DatapathError, match=r"2 more files cannot be open \(.+\)$"):
        compiler.build("", {}, {"one": 6, "two": 6})
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(received)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"fingerprint": 1}', "\x00" * 100])
def test_layouts_that_were_cut_off_or_written_over(tmp_path: Path, content: str) -> None:
    from ipbackend.datapath.layout import FILE, Layouts

    (tmp_path / FILE).write_text(content)
    with pytest.raises(DatapathError, match=r"layout\.json: .+ \(.+\)$"):
        Layouts(tmp_path)


# SQLite

ERRORS = [
    ("OperationalError", "SQLITE_BUSY", "database is locked"),
    ("OperationalError", "SQLITE_FULL", "database or disk is full"),
    ("OperationalError", "SQLITE_IOERR_WRITE", "disk I/O error"),
    ("DatabaseError", "SQLITE_CORRUPT", "database disk image is malformed"),
    ("InterfaceError", "SQLITE_MISUSE", "bad parameter or other API misuse"),
]


class Counted(sqlite3.Connection):
    """Fails at one statement, counted from now; 0 is none."""

    at = 0
    error: tuple[str, str, str] = ERRORS[0]

    def execute(self, *arguments: Any) -> Any:
        self._step()
        return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        self._step()
        return super().executemany(*arguments)

    def _step(self) -> None:
        Counted.at -= 1
        if Counted.at == 0:
            kind, name, text = Counted.error
            error = getattr(sqlite3, kind)(text)
            error.sqlite_errorname = name
            raise error


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **more: real(*given, **{**more, "factory": Counted}))
    Counted.at = 0


def refusal(work: Callable[..., Any], *arguments: Any) -> str:
    """Why, or nothing."""
    try:
        work(*arguments)
    except StoreError as error:
        return str(error)
    return ""


USES: dict[str, Callable[[Store], Any]] = {
    "revision": lambda store: store.revision,
    "write": lambda store: store.write(FULL, "root"),
    "history": lambda store: store.history(),
    "changes": lambda store: store.changes(store.revision),
    "at": lambda store: store.at(store.revision),
    "undo": lambda store: store.undo(store.write(FULL, "root"), store.configuration),
}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error[1])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_statement_may_fail(counted: None, tmp_path: Path, use: Callable[[Store], Any], error: Any) -> None:
    """One after the other, until one call meets none: each is a StoreError, and the next call works."""
    number, failed = 0, 0
    while True:
        number += 1
        path = tmp_path / f"store-{number}.db"
        with Store(path) as store:
            store.write(replace(FULL, listeners={}), "root")
            before = store.configuration
            Counted.at, Counted.error = number, error
            told = refusal(use, store)
            Counted.at = 0
            if not told:
                break
            failed += 1
            assert REMEDY.search(told), told
            assert store.configuration in (before, FULL)
            use(store)
        with Store(path) as again:
            assert again.configuration == store.configuration
    assert failed >= 1


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error[1])
def test_every_statement_of_the_beginning_may_fail(counted: None, tmp_path: Path, error: Any) -> None:
    with Store(tmp_path / "store.db") as store:
        store.write(FULL, "root")
    number = 0
    while True:
        number += 1
        Counted.at, Counted.error = number, error
        told = refusal(lambda: Store(tmp_path / "store.db").close())
        Counted.at = 0
        if not told:
            break
        assert REMEDY.search(told), told
    assert number > 5
    with Store(tmp_path / "store.db") as store:
        assert store.configuration == FULL
