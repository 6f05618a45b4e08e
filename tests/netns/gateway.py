"""The gateway program in the lab: the real daemon as a process of its own, and the real command line beside it."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from ipbackend.client import Client
from tests.netns.lab import Lab

CONFIGURATION = (Path(__file__).parent / "lab.toml").read_text()
COMMAND = (sys.executable, "-c", "from ipbackend.cli import main; main()")


class Gateway:
    """`ipbackend run` in the lab's gateway namespace, with a run directory and a store of its own below /run."""

    def __init__(self, lab: Lab, configuration: str = CONFIGURATION, name: str = "gateway") -> None:
        self._lab = lab
        self.run_directory = Path("/run", name)
        self.run_directory.mkdir(parents=True, exist_ok=True)
        self.store = self.run_directory / "kept" / "store.db"
        self._configuration = configuration
        self._log = self.run_directory / "log"
        self.process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> Gateway:
        self.start()
        self.apply(self._configuration)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.command("unload")

    def start(self, *options: str, deadline: float = 90.0) -> None:
        """Start the daemon and return when it tells that it is ready, as it tells systemd."""
        path = self.run_directory / "notify"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self._log.open("ab") as log:
            ready.bind(str(path))
            environment = {**os.environ, "NOTIFY_SOCKET": str(path), "IPBACKEND_RUN_DIR": str(self.run_directory)}
            command = (*COMMAND, "run", "--store", str(self.store), *options)
            self.process = self._lab["gateway"].popen(command, env=environment, stderr=log, stdin=subprocess.DEVNULL)
            end = time.monotonic() + deadline
            while time.monotonic() < end and self.process.poll() is None:
                if select.select([ready], [], [], 0.05)[0] and ready.recv(64) == b"READY=1":
                    return
        raise RuntimeError(f"the gateway did not start:\n{self.log()}")

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        """All that the daemon has said so far."""
        return self._log.read_text()

    def client(self) -> Client:
        """A connection to the daemon, from outside its namespace: a Unix socket is a file."""
        return Client(self.run_directory)

    def apply(self, configuration: str) -> list[dict[str, Any]]:
        """Have what is wanted be as this text says, and no more; returns the changes. ServiceError: refused."""
        with self.client() as client:
            body = {"apply": {"toml": configuration, "source": "lab.toml", "prune": True}}
            changes: list[dict[str, Any]] = client.request("POST", "/ipbackend/apply", body)["apply"]["changes"]
            return changes

    def stop(self) -> None:
        """End the daemon as systemd would; its data plane goes on."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=60)
            self.process = None

    def kill(self) -> None:
        """End it without warning."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=60)
        self.process = None

    def command(self, *arguments: str) -> str:
        """What `ipbackend ARGUMENTS` prints on the gateway; a status other than 0 raises."""
        return self.ask(*arguments, check=True).stdout

    def ask(self, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """The same, with its status and errors."""
        environment = {**os.environ, "IPBACKEND_RUN_DIR": str(self.run_directory)}
        done = self._lab["gateway"].run(
            (*COMMAND, *arguments), env=environment, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"ipbackend {' '.join(arguments)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def begin(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """The same, begun and not waited for."""
        environment = {**os.environ, "IPBACKEND_RUN_DIR": str(self.run_directory)}
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return self._lab["gateway"].popen((*COMMAND, *arguments), env=environment, text=True, **{**silent, **options})

    def audit(self) -> list[str]:
        """Where its books do not balance, as the daemon finds it, or the command line where none runs."""
        problems: list[str]
        if self.process is None:
            problems = self.json("audit")
        else:
            with self.client() as client:
                problems = client.request("GET", "/ipbackend/audit")["problems"]
        return problems

    def json(self, *arguments: str) -> Any:
        """The same as data."""
        return json.loads(self.command(*arguments, "--output", "json"))
