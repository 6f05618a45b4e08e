"""The real `ipbackend` in a process that is killed before a step of its choice; it knows no gateway and no test.

A step is whatever changes something outside the process: bpf(2) that makes, loads, pins, writes, deletes or sweeps;
a write to memory shared with the kernel; netlink that is no question; what SQLite and the loader do to files. The
kernel reports each system call before it is made (seccomp_unotify(2)), libraries' own included; writes to memory, which
no kernel sees, are told by a call that means nothing.

Run as a program it forks one child at a time, with everything imported, and takes orders as lines of JSON; `Failing`
is the handle on that program from outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import platform
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .namespace import Namespace

REPOSITORY = Path(__file__).parents[2]
_X86 = {
    "bpf": 321, "seccomp": 317, "sendto": 44, "pwrite64": 18, "fsync": 74, "fdatasync": 75,
    "ftruncate": 77, "rename": 82, "unlink": 87, "symlink": 88, "mkdir": 83, "rmdir": 84, "mount": 165,
}  # fmt: skip
_ARM = {
    "bpf": 280, "seccomp": 277, "sendto": 206, "pwrite64": 68, "fsync": 82, "fdatasync": 83,
    "ftruncate": 46, "renameat": 38, "unlinkat": 35, "symlinkat": 36, "mkdirat": 34, "mount": 40,
}  # fmt: skip
NUMBERS = {"x86_64": _X86, "aarch64": _ARM}[platform.machine()]
NAMES = {number: name for name, number in NUMBERS.items()}
BPF_STEPS = {
    0: "create", 2: "update", 3: "delete", 5: "load", 6: "pin", 10: "run", 26: "update batch", 27: "delete batch",
}  # fmt: skip
MEMORY = 0xFA11  # no command of bpf(2)
PATHS = ("rename", "unlink", "symlink", "mkdir", "rmdir", "mount")
NETLINK = {
    16: "RTM_NEWLINK", 19: "RTM_SETLINK", 20: "RTM_NEWADDR", 21: "RTM_DELADDR", 24: "RTM_NEWROUTE",
    25: "RTM_DELROUTE", 28: "RTM_NEWNEIGH", 29: "RTM_DELNEIGH",
}  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)


class Failing:
    """`ipbackend ARGUMENTS` in a namespace, with a run directory and a log; its steps counted, and it killed."""

    def __init__(self, namespace: Namespace, run_directory: Path, log: Path) -> None:
        command = [sys.executable, "-m", "tests.netns.failing", str(run_directory), str(log)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = namespace.popen(command, cwd=REPOSITORY, text=True, bufsize=1, **pipes)

    def close(self) -> None:
        """End it, and its child."""
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()

    def start(self, *arguments: str, limit: int = 0, source: Path | None = None) -> dict[str, Any]:
        """Until it is ready, has ended, or was killed before step `limit` (from 1 on; 0: never).

        `source` is where the data plane's C files are, if they are other ones than the product's.
        """
        return self._ask(start=arguments, limit=limit, source=source and str(source), wait=True)

    def arm(self, limit: int = 0) -> None:
        """Count its steps from now on, and kill it before step `limit`."""
        self._ask(arm=limit)

    def steps(self) -> list[str]:
        """The steps since then."""
        return list(self._ask()["steps"])

    def kill(self) -> dict[str, Any]:
        """End it without warning, if it lives; says whether it did, and the steps, the last one not taken."""
        return self._ask(kill=int(signal.SIGKILL), wait=True)

    def stop(self) -> dict[str, Any]:
        """End it as systemd would."""
        return self._ask(kill=int(signal.SIGTERM), wait=True)

    def _ask(self, **order: Any) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(order) + "\n")
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"failing: it ended, with status {self._process.wait()}; its message is on stderr")
        found: dict[str, Any] = json.loads(answer)
        return found


class Server:
    """The program's side: one child, and what the kernel reports of it."""

    def __init__(self, run_directory: Path, log: Path) -> None:
        self._run_directory = run_directory
        self._log = log
        self._pid = self._limit = 0
        self._steps: list[str] = []
        self._killed = False
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._reports = self._ended = -1
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Orders until there are none."""
        path = self._run_directory / "notify"
        path.unlink(missing_ok=True)
        self._ready.bind(str(path))
        os.environ |= {"NOTIFY_SOCKET": str(path), "IPBACKEND_RUN_DIR": str(self._run_directory)}
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # by the compiler's process: no step of ours
        self._selector.register(sys.stdin, selectors.EVENT_READ, self._obey)
        self._selector.register(self._ready, selectors.EVENT_READ, self._told)
        self._waiting = False
        while True:
            for key, _ in self._selector.select():
                if key.data():
                    return

    def _obey(self) -> bool:
        line = sys.stdin.readline()
        if not line:
            if self._pid:
                os.kill(self._pid, signal.SIGKILL)
            return True
        order = json.loads(line)
        self._waiting = bool(order.get("wait"))
        if "arm" in order:
            self._limit, self._steps = order["arm"], []
        if "start" in order:
            self._limit, self._steps, self._killed = order["limit"], [], False
            self._fork(order["start"], order["source"])
        elif "kill" in order and self._pid:
            os.kill(self._pid, order["kill"])
        elif "kill" in order or not self._waiting:
            self._answer()
        return False

    def _answer(self, **more: Any) -> None:
        self._waiting = False
        print(json.dumps({"steps": self._steps, "killed": self._killed, **more}), flush=True)

    def _told(self) -> bool:
        if self._ready.recv(64) == b"READY=1" and self._waiting:
            self._answer(status=None)
        return False

    def _fork(self, arguments: Sequence[str], source: str | None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        parent = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            try:
                self._become(parent, theirs, arguments, source)
            finally:
                os._exit(70)
        theirs.close()
        with ours:
            _, (self._reports,), _, _ = socket.recv_fds(ours, 1, 1)
        self._ended = os.pidfd_open(self._pid)
        self._selector.register(self._reports, selectors.EVENT_READ, self._reported)
        self._selector.register(self._ended, selectors.EVENT_READ, self._gone)

    def _become(self, parent: int, server: socket.socket, arguments: Sequence[str], source: str | None) -> None:
        from ipbackend.cli import main
        from ipbackend.datapath import loader
        from tests.netns.namespace import die_with_parent

        die_with_parent(parent)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if source:
            loader.bpf_directory = lambda: Path(source)
        report_memory()
        reports = install_filter()
        socket.send_fds(server, [b"."], [reports])
        os.close(reports)
        server.close()
        try:
            main(list(arguments))
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)

    def _gone(self) -> bool:
        self._selector.unregister(self._ended)
        self._selector.unregister(self._reports)
        os.close(self._ended)
        os.close(self._reports)
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        if self._waiting:
            self._answer(status=os.waitstatus_to_exitcode(status))
        return False

    def _reported(self) -> bool:
        """One system call, before it is made."""
        report = bytearray(80)
        try:
            fcntl.ioctl(self._reports, 0xC0502100, report)  # SECCOMP_IOCTL_NOTIF_RECV
        except OSError:
            return False  # its thread has ended meanwhile
        number, pid = struct.unpack_from("QI", report)
        call = struct.unpack_from("i4x8x6Q", report, 16)
        step = self._step_of(pid, NAMES[call[0]], call[1:])
        if step:
            self._steps.append(step)
            if len(self._steps) == self._limit:
                self._killed = True
                os.kill(self._pid, signal.SIGKILL)
                return False
        with contextlib.suppress(OSError):  # SECCOMP_IOCTL_NOTIF_SEND: go on
            fcntl.ioctl(self._reports, 0xC0182101, struct.pack("QqiI", number, 0, 0, 1))
        return False

    def _step_of(self, pid: int, name: str, arguments: Sequence[int]) -> str:
        """What it is called; nothing if it changes nothing."""
        if name == "bpf":
            if arguments[0] == MEMORY:
                return "memory " + self._read(pid, arguments[1], arguments[2]).decode()
            return f"bpf {BPF_STEPS[arguments[0]]}"
        if name == "sendto":
            length, kind = struct.unpack("IH", self._read(pid, arguments[1], 6).ljust(6, b"\0"))
            return NETLINK.get(kind, "") if length == arguments[2] else ""
        if name in PATHS:
            path = Path(self._read(pid, arguments[0], 256).split(b"\0")[0].decode())
            return "" if path.is_relative_to(tempfile.gettempdir()) else f"{name} {path.name}"
        return name

    @staticmethod
    def _read(pid: int, address: int, length: int) -> bytes:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            try:
                return memory.read(length)
            except OSError:
                return b""


def report_memory() -> None:
    """Have each write to the maps' memory told of before it is made."""
    from ipbackend.datapath import directory, layout, maps, tables

    def told(what: str) -> None:
        text = what.encode()
        _libc.syscall(NUMBERS["bpf"], MEMORY, ctypes.c_char_p(text), len(text))

    class Words:
        """A directory's entries."""

        def __init__(self, name: str, words: memoryview) -> None:
            self.name, self.words = name, words

        def __len__(self) -> int:
            return len(self.words)

        def __iter__(self) -> Any:
            return iter(self.words)

        def __getitem__(self, at: int) -> int:
            return int(self.words[at])

        def __setitem__(self, at: int, word: int) -> None:
            told(self.name)
            self.words[at] = word

    made, written, fielded = directory.Directory.__init__, maps.Memory.write, layout.Struct.__setattr__
    table = tables.Tables._make_table

    def make(self: Any, name: str, words: Any) -> None:
        made(self, name, Words(name, words))

    def write(self: Any, index: int, raw: bytes) -> None:
        told(self._kind.__name__)
        written(self, index, raw)

    def set_field(self: Any, name: str, value: Any) -> None:
        if not self._b_needsfree_:  # a view, not a value of its own
            told(f"{type(self).__name__}.{name}")
        fielded(self, name, value)

    def make_table(self: Any, number: int, endpoint: Any) -> None:
        told("a new endpoint's table")
        table(self, number, endpoint)

    changes: list[tuple[Any, str, Callable[..., Any]]] = [
        (directory.Directory, "__init__", make),
        (maps.Memory, "write", write),
        (layout.Struct, "__setattr__", set_field),
        (tables.Tables, "_make_table", make_table),
    ]
    for owner, name, function in changes:
        setattr(owner, name, function)


def install_filter() -> int:
    """Have the kernel report the steps among this process's system calls; returns the descriptor that tells of them."""
    allow, report = (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x7FC00000)  # SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF
    equal, load = 0x15, 0x20
    commands, others = (
        [*BPF_STEPS, MEMORY],
        [number for name, number in NUMBERS.items() if name not in ("bpf", "seccomp")],
    )
    code: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 0),
        (equal, 0, len(commands) + 3, NUMBERS["bpf"]),
        (load, 0, 0, 16),
    ]
    code += [(equal, len(commands) - at, 0, command) for at, command in enumerate(commands)]
    code += [allow, report]
    code += [(equal, len(others) - at, 0, number) for at, number in enumerate(others)]
    code += [allow, report]
    packed = b"".join(struct.pack("HBBI", *one) for one in code)
    instructions = ctypes.create_string_buffer(packed, len(packed))
    program = ctypes.create_string_buffer(struct.pack("H6xQ", len(code), ctypes.addressof(instructions)), 16)
    if _libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "prctl")
    listener = int(_libc.syscall(NUMBERS["seccomp"], 1, 1 << 3, program))  # SECCOMP_FILTER_FLAG_NEW_LISTENER
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


if __name__ == "__main__":
    import ipbackend.cli.run
    import ipbackend.daemon  # noqa: F401  so that no child has to

    Server(Path(sys.argv[1]), Path(sys.argv[2])).serve()
