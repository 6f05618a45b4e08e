"""Asks the daemon over its socket. It knows HTTP and the API's envelopes, and nothing of what they mean.

The standard library's client does here what a larger one would, and is imported in a fraction of the time.
"""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

from ipbackend.errors import NotRunningError, ServiceError

SOCKET = "api.sock"  # in the run directory
PROJECT = "0" * 32  # a path of the API begins with one; a gateway has only this
PIECE = 1 << 16  # bytes of a stream at a time
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
        sent = None if body is None else json.dumps(body).encode()
        with self._asking():
            content = self._asked(method, path, query, sent).read()
        return json.loads(content) if content else None

    def stream(self, path: str, **query: Any) -> Iterator[bytes]:
        """What the daemon answers to a GET, piece by piece as it comes, for as long as that takes. Raises the same."""
        with self._asking():
            answer = self._asked("GET", path, query)
            if self._http.sock:
                self._http.sock.settimeout(None)
            while piece := answer.read1(PIECE):
                yield piece

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            raise ServiceError(f"the daemon did not answer: {error or type(error).__name__} (see its log)") from error

    def _asked(self, method: str, path: str, query: Any, sent: bytes | None = None) -> http.client.HTTPResponse:
        """The answer, its body not read yet."""
        where = f"/v3/{PROJECT}{path}" + (f"?{urlencode(query, doseq=True)}" if query else "")
        self._http.request(method, where, sent, {"Content-Type": "application/json"} if sent else {})
        answer = self._http.getresponse()
        if answer.status >= http.client.BAD_REQUEST:
            raise ServiceError(_refusal(answer.status, answer.read()))
        return answer


def _refusal(status: int, content: bytes) -> str:
    try:
        said = json.loads(content)
        return "\n".join(map(str, said["problems"])) or str(said["error_msg"])
    except (ValueError, KeyError, TypeError):
        return f"the daemon answered {status}: {content[:200]!r} (see its log)"
