"""The HTTP application: all families together, on whatever service it is given. It opens no socket."""

import time
from uuid import uuid4

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ipbackend import __version__, instruments
from ipbackend.api import (
    capture,
    checks,
    endings,
    errors,
    explain,
    flows,
    gateway,
    healthmonitors,
    ipgroups,
    listeners,
    live,
    loadbalancers,
    members,
    networks,
    pools,
    quotas,
    revisions,
    scrape,
    statuses,
    traffic,
    zones,
)
from ipbackend.api.service import Service

FAMILIES = (
    *(loadbalancers, statuses, listeners, pools, members, healthmonitors, ipgroups, quotas, zones),
    *(networks, gateway, traffic, flows, revisions, live, checks, endings, explain, capture, scrape),
)


BODY = 1 << 25  # bytes that a request may have: some 300,000 members in a file
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class RequestIds:
    """Draws an id for each request, and has every answer carry it, with a body or none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        number = scope.setdefault("state", {})["request_id"] = str(uuid4())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = number
            await send(message)

        await self._app(scope, receive, send_with_id)


class Latencies:
    """Measures how long each request takes, by what it asks and how it ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Paths that lead nowhere are one route: they are whatever somebody tries."""
        began, status = time.monotonic(), 500

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if route != "none" and scope["method"] in _METHODS else "other"
            instruments.api.labels(method, route, status).observe(time.monotonic() - began)


def create_metrics_app(service: Service) -> FastAPI:
    """Metrics, and nothing else."""
    app = FastAPI(title="ipbackend metrics", version=__version__, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(scrape.operations)
    return app


def create_app(service: Service) -> FastAPI:
    """The application; its OpenAPI document is at /openapi.json, and calls operations as the SDKs do."""
    app = FastAPI(
        title="ipbackend",
        version=__version__,
        description="The L4 part of the Elastic Load Balance API v3, and what a gateway has beside it.",
        docs_url=None,
        redoc_url=None,
        responses=errors.RESPONSES,
        generate_unique_id_function=lambda operation: operation.name,
    )
    app.state.service = service
    app.state.operations = [operation for family in FAMILIES for operation in family.operations.routes]
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=BODY)
    app.add_middleware(Latencies)
    app.add_middleware(RequestIds)
    errors.register(app)
    for family in FAMILIES:
        app.include_router(family.operations)
    return app
