"""Asks the daemon over its socket. It knows HTTP and the API's envelopes, and nothing of what they mean."""

from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from ipbackend.errors import NotRunningError, ServiceError

SOCKET = "api.sock"  # in the run directory
PROJECT = "0" * 32  # a path of the API begins with one; a gateway has only this
TIMEOUT = 300.0  # seconds that a change may take


class Client:
    """A connection to the daemon that runs in `run_directory`; a context manager."""

    def __init__(self, run_directory: Path) -> None:
        self._socket = run_directory / SOCKET
        transport = httpx.HTTPTransport(uds=str(self._socket))
        self._http = httpx.Client(transport=transport, base_url=f"http://ipbackend/v3/{PROJECT}", timeout=TIMEOUT)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def request(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """What the daemon answers, or None where there is nothing to say.

        `path` begins after the project: `/elb/pools`. NotRunningError: no daemon there. ServiceError: it refuses.
        """
        try:
            answer = self._http.request(method, path, json=body, params=query)
        except httpx.ConnectError as error:
            what = f"{self._socket}: no daemon answers there: {error}"
            raise NotRunningError(f"{what} (start it: `ipbackend run`; root and group ipbackend may ask)") from error
        except httpx.HTTPError as error:
            raise ServiceError(f"{self._socket}: the daemon did not answer: {error} (see its log)") from error
        if answer.is_error:
            raise ServiceError(_refusal(answer))
        return answer.json() if answer.content else None


def _refusal(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error_msg"])
    except (ValueError, KeyError, TypeError):
        return f"the daemon answered {answer.status_code}: {answer.text[:200]} (see its log)"
