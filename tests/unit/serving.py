"""The API on a service without kernel or disk, asked without a socket. Changes are real edits."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from functools import partialmethod
from pathlib import Path
from typing import Any

import httpx

from ipbackend import instruments
from ipbackend.api.app import create_app
from ipbackend.changes import Change, between
from ipbackend.configuration import Configuration, check_transition
from ipbackend.drains import Drains
from ipbackend.edits import Edit
from ipbackend.errors import NotRunningError
from ipbackend.flows.archive import Reader
from ipbackend.flows.keeper import Standing
from ipbackend.health.states import Health
from ipbackend.metrics import State, of_state
from ipbackend.store import Revision, Stamp
from ipbackend.view import View
from tests.unit.wanted import FULL

PROJECT = "f" * 32
ELB, OURS = f"/v3/{PROJECT}/elb", f"/v3/{PROJECT}/ipbackend"


class Kept:
    """A service that only keeps."""

    def __init__(self, configuration: Configuration = FULL) -> None:
        self.configuration = configuration
        self.revision = 1
        self.problem = ""
        self.drift: list[str] = []
        self.unbalanced: list[str] = []
        self.audited: list[str] = []
        self.forwarding = False
        self.health: dict[str, Health] = {}
        self.drains = Drains()
        self.capturing: Any = None
        self.authors: list[str] = []
        self.refusal: Exception | None = None
        self.flows = Path("/nowhere")

    @property
    def stamps(self) -> Mapping[str, Stamp]:
        stamp = Stamp("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
        members = [one.id for pool in self.configuration.pools.values() for one in pool.members]
        ids = [number for _, resources in self.configuration.sections() for number in resources]
        return dict.fromkeys([*ids, *members], stamp)

    async def change(
        self, author: str, edit: Edit, what: str = "", dry_run: bool = False, delays: Any = ()
    ) -> list[Change]:
        if self.refusal:
            raise self.refusal
        want = edit(self.configuration)
        check_transition(self.configuration, want)
        changes = between(self.configuration, want)
        if not dry_run:
            self.configuration = want
            self.revision += 1
            self.authors.append(author)
        return changes

    async def kill(self, choose: Callable[[View], Any]) -> int:
        raise NotRunningError("nothing is loaded")

    flow_log = Standing()

    async def recall(self, read: Callable[[Reader], Any]) -> Any:
        return read(Reader(self.flows))

    async def look(self, read: Callable[[View], Any]) -> Any:
        raise NotRunningError("nothing is loaded")

    async def metrics(self) -> str:
        counts = (len(one) for one in (self.drift, self.unbalanced, self.audited))
        state = State(self.forwarding, bool(self.problem), *counts, self.revision)
        return of_state(state) + instruments.text()

    async def roll_back(self, author: str, number: int) -> list[Change]:
        return await self.change(author, lambda _: FULL)

    async def history(self, limit: int) -> list[Revision]:
        return [Revision(1, "2026-01-01T00:00:00Z", "root", "all")][:limit]

    async def changes(self, number: int) -> list[Change]:
        return between(Configuration(), FULL)


class Client:
    """Asks the application without a socket."""

    def __init__(self, kept: Kept) -> None:
        self._app = create_app(kept)

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        return asyncio.run(self._request(method, path, **more))

    async def _request(self, method: str, path: str, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False, client=("tester", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            return await http.request(method, path, **more)

    get = partialmethod(request, "GET")
    post = partialmethod(request, "POST")
    put = partialmethod(request, "PUT")
    patch = partialmethod(request, "PATCH")
    delete = partialmethod(request, "DELETE")


def ok(answer: Any, status: int = 200) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", body["request_id"])
    return body


def refused(answer: Any, status: int, code: str) -> str:
    body = answer.json()
    assert set(body) == {"error_code", "error_msg", "request_id", "problems"}
    assert (answer.status_code, body["error_code"]) == (status, code), body
    return str(body["error_msg"])
