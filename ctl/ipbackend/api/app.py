"""The HTTP application: all families together, on whatever service it is given. It opens no socket."""

from fastapi import FastAPI

from ipbackend import __version__
from ipbackend.api import (
    checks,
    errors,
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
    statuses,
    traffic,
    zones,
)
from ipbackend.api.service import Service

FAMILIES = (
    *(loadbalancers, statuses, listeners, pools, members, healthmonitors, ipgroups, quotas, zones),
    *(networks, gateway, traffic, revisions, live, checks),
)


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
    errors.register(app)
    for family in FAMILIES:
        app.include_router(family.operations)
    return app
