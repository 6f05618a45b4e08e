"""Asks the daemon over its socket. It knows HTTP and the API's envelopes, and nothing of what they mean.

The standard library's client does here what a larger one would, and is imported in a fraction of the time.
"""

import http.client
import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

from ipbackend.errors import NotRunningError, ServiceError

SOCKET = "api.sock"  # in the run directory
PROJECT = "0" * 32  # a path of the API begins with one; a gateway has only this
TIMEOUT = 300.0  # seconds that a change may take


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("ipbackend", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        """NotRunningError: nobody listens there, or we may not ask."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(str(self._path))
        except OSError as error:
            self.close()
            what = f"{self._path}: no daemon answers there: {error.strerror}"
            raise NotRunningError(f"{what} (start it: `ipbackend run`; root and group ipbackend may ask)") from error


class Client:
    """A connection to the daemon that runs in `run_directory`; a context manager."""

    def __init__(self, run_directory: Path) -> None:
        self._http = _Connection(run_directory / SOCKET)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def request(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """What the daemon answers, or None where there is nothing to say.

        `path` begins after the project: `/elb/pools`; a query value that is a list is sent once for each.
        NotRunningError: no daemon there. ServiceError: it refuses, or goes away.
        """
        where = f"/v3/{PROJECT}{path}" + (f"?{urlencode(query, doseq=True)}" if query else "")
        sent = None if body is None else json.dumps(body).encode()
        try:
            self._http.request(method, where, sent, {"Content-Type": "application/json"} if sent else {})
            answer = self._http.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            raise ServiceError(f"the daemon did not answer: {error or type(error).__name__} (see its log)") from error
        if answer.status >= http.client.BAD_REQUEST:
            raise ServiceError(_refusal(answer.status, content))
        return json.loads(content) if content else None


def _refusal(status: int, content: bytes) -> str:
    try:
        said = json.loads(content)
        return "\n".join(map(str, said["problems"])) or str(said["error_msg"])
    except (ValueError, KeyError, TypeError):
        return f"the daemon answered {status}: {content[:200]!r} (see its log)"
