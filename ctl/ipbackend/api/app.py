"""The HTTP application: all families together, on whatever service it is given. It opens no socket."""

from fastapi import FastAPI

from ipbackend import __version__
from ipbackend.api import checks, errors, gateway, listeners, live, loadbalancers, members, networks, pools, revisions
from ipbackend.api.service import Service

FAMILIES = (loadbalancers, listeners, pools, members, networks, gateway, revisions, live, checks)


def create_app(service: Service) -> FastAPI:
    """The application; its OpenAPI document is at /openapi.json."""
    app = FastAPI(
        title="ipbackend",
        version=__version__,
        description="The L4 part of the Elastic Load Balance API v3, and what a gateway has beside it.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    errors.register(app)
    for family in FAMILIES:
        app.include_router(family.operations)
    return app
