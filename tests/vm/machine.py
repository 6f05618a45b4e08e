"""One virtual machine: QEMU in emulation, a command channel into it, wires to others. It knows no gateway."""

import json
import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

# cx16: QEMU 7.2 corrupts flags with it, and guests panic at random. la57: five levels of page tables only cost time.
ACCELERATION = ("-accel", "tcg,thread=multi", "-cpu", "max,la57=off,cx16=off")
BOOT = 240.0  # seconds that a machine has until it answers


@dataclass(frozen=True)
class Wire:
    """A network interface, and the socket at which its other end is another machine's: `listens` is one of the two."""

    path: Path
    listens: bool
    mac: str
    driver: str = "virtio-net-pci"


class Machine:
    """A machine that boots `kernel` from `disk`; a context manager that ends it. Writes go to `scratch` if it is set.

    Its console is written to `name`.log in `folder`.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        kernel: Path,
        initrd: Path,
        disk: Path,
        disks: tuple[Path, ...] = (),
        wires: tuple[Wire, ...] = (),
        memory: int = 2048,
        cpus: int = 2,
        keep: bool = False,
    ) -> None:
        self.name = name
        self._socket_path = folder / f"{name}.sock"
        self.console = folder / f"{name}.log"
        self._socket_path.unlink(missing_ok=True)
        drives = [
            *("-drive", f"file={disk},if=virtio,format=qcow2,snapshot={'off' if keep else 'on'}"),
            *(part for one in disks for part in ("-drive", f"file={one},if=virtio,format=raw,readonly=on")),
        ]
        networks = [
            part
            for number, wire in enumerate(wires)
            for part in (
                "-netdev",
                f"stream,id=wire{number},server={'on' if wire.listens else 'off'},addr.type=unix,addr.path={wire.path}",
                "-device",
                f"{wire.driver},netdev=wire{number},mac={wire.mac}",
            )
        ]
        self._command = [
            "qemu-system-x86_64",
            *ACCELERATION,
            *("-m", str(memory), "-smp", str(cpus), "-display", "none", "-no-reboot", "-nodefaults"),
            *("-kernel", str(kernel), "-initrd", str(initrd)),
            *("-append", "root=/dev/vda rw console=ttyS0 quiet panic=-1"),
            *("-serial", f"file:{self.console}"),
            *("-device", "virtio-serial", "-chardev", f"socket,id=agent,path={self._socket_path},server=on,wait=off"),
            *(
                "-device",
                "virtserialport,chardev=agent,name=agent",
                "-object",
                "rng-random,id=rng,filename=/dev/urandom",
            ),
            *("-device", "virtio-rng-pci,rng=rng"),
            *drives,
            *(networks or ("-nic", "none")),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._agent: socket.socket | None = None

    def __enter__(self) -> "Machine":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self) -> None:
        """Power on; returns at once."""
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)

    def wait(self) -> None:
        """Until it takes commands."""
        end = time.monotonic() + BOOT
        while self._agent is None:
            self._alive(end, "it does not come up")
            try:
                agent = socket.socket(socket.AF_UNIX)
                agent.connect(str(self._socket_path))
                self._agent = agent
            except OSError:
                agent.close()
                time.sleep(0.2)
        assert self._answer(end)["output"] == "here"

    def run(self, command: str, timeout: float = 120.0) -> str:
        """What a shell command prints; an AssertionError with it if it fails or takes longer."""
        status, output = self.attempt(command, timeout)
        assert status == 0, f"{self.name}: {command}: {status}\n{output}"
        return output

    def attempt(self, command: str, timeout: float = 120.0) -> tuple[int | None, str]:
        """Its exit status, None if it took longer than `timeout` seconds, and what it printed."""
        assert self._agent is not None
        self._agent.sendall(json.dumps({"command": command, "timeout": timeout}).encode() + b"\n")
        answer = self._answer(time.monotonic() + 2 * timeout + 30)
        return answer["status"], answer["output"]  # type: ignore[return-value]

    def reboot(self) -> None:
        """Down in an orderly way, and on again."""
        assert self._agent is not None
        assert self._process is not None
        self._agent.sendall(json.dumps({"command": "systemctl reboot", "timeout": 30}).encode() + b"\n")
        self._process.wait(BOOT)  # -no-reboot: it ends where it would begin anew
        self._agent.close()
        self._agent = None
        self.start()
        self.wait()

    def end(self) -> None:
        """Power off, whatever it does."""
        if self._agent:
            self._agent.close()
            self._agent = None
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answer(self, end: float) -> dict[str, object]:
        assert self._agent is not None
        self._agent.settimeout(1.0)
        line = b""
        while not line.endswith(b"\n"):
            self._alive(end, "it does not answer")
            try:
                got = self._agent.recv(65536)
            except TimeoutError:
                continue
            if not got:
                raise AssertionError(f"{self.name}: it has gone\n{self._tail()}")
            line += got
        answer: dict[str, object] = json.loads(line)
        return answer

    def _alive(self, end: float, problem: str) -> None:
        gone = self._process is None or self._process.poll() is not None
        if gone or time.monotonic() > end:
            raise AssertionError(f"{self.name}: {'QEMU ended' if gone else problem}\n{self._tail()}")

    def _tail(self) -> str:
        return self.console.read_text(errors="replace")[-3000:] if self.console.exists() else ""


def _die_with_parent() -> None:
    """No machine outlives the tests, however they end (prctl(2), PR_SET_PDEATHSIG)."""
    import ctypes
    import signal

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    os.setsid()
