"""The API of a gateway that only keeps, for the tests that ask it, and for the command line."""

from __future__ import annotations

from typing import Any

import pytest

from ipbackend import client as daemon
from ipbackend.errors import ServiceError
from tests.unit.commands import NAMED
from tests.unit.serving import Client, Kept


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def client(kept: Kept) -> Client:
    return Client(kept)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """What the daemon keeps: every request of the client is answered by the real application on it."""
    service = Kept(NAMED)
    application = Client(service)

    def request(_: daemon.Client, method: str, path: str, body: Any = None, **query: Any) -> Any:
        sent = {"json": body} if body is not None else {}
        answer = application.request(method, f"/v3/{daemon.PROJECT}{path}", params=query, **sent)
        if answer.status_code >= 400:
            raise ServiceError(daemon._refusal(answer.status_code, answer.content))
        return answer.json() if answer.content else None

    monkeypatch.setattr(daemon.Client, "request", request)
    return service
