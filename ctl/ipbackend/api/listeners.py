"""`/elb/listeners`: a port of a load balancer's VIP."""

from typing import Any, ClassVar, Literal
from uuid import uuid4

from fastapi import Request

from ipbackend import edits
from ipbackend.api.base import ELB, Author, Body, Integer, Serving, Text, answer, listed, router, stamps
from ipbackend.api.service import Service
from ipbackend.model import Listener, Protocol

operations = router(f"{ELB}/listeners", "listeners")
SECTION = "listeners"
NAMES = {
    "loadbalancer_id": "load_balancer",
    "protocol_port": "port",
    "default_pool_id": "pool",
    "keepalive_timeout": "idle_timeout",
}


class Create(Body):
    """The fields of a listener that mean something at L4."""

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(("admin_state_up",))

    name: Text = ""
    description: Text = ""
    loadbalancer_id: Text
    protocol: Protocol
    protocol_port: Integer
    default_pool_id: Text | None = None
    keepalive_timeout: Integer = 300
    admin_state_up: Literal[True] = True


class Update(Body):
    """What may change later."""

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(("admin_state_up",))

    name: Text = ""
    description: Text = ""
    default_pool_id: Text | None = None
    keepalive_timeout: Integer = 300
    admin_state_up: Literal[True] = True


class CreateRequest(Body):
    """The envelope."""

    listener: Create


class UpdateRequest(Body):
    """The envelope."""

    listener: Update


def shown(service: Service, one: Listener, project_id: str) -> dict[str, Any]:
    """As published."""
    return {
        "id": one.id,
        "name": one.name,
        "description": one.description,
        "project_id": project_id,
        "admin_state_up": True,
        "protocol": str(one.protocol),
        "protocol_port": one.port,
        "loadbalancers": [{"id": one.load_balancer}],
        "default_pool_id": one.pool,
        "keepalive_timeout": one.idle_timeout,
        **stamps(service, one.id),
    }


def _answer(request: Request, service: Service, project_id: str, number: str) -> dict[str, Any]:
    one = edits.find(service.configuration, SECTION, number)
    return answer(request, listener=shown(service, one, project_id))


@operations.post("", status_code=201)
async def create(
    request: Request, service: Serving, author: Author, project_id: str, body: CreateRequest
) -> dict[str, Any]:
    """Create a listener."""
    one = Listener(**{"name": "", **body.listener.fields_given()}, id=str(uuid4()))
    await service.change(author, lambda have: edits.put(have, SECTION, one))
    return _answer(request, service, project_id, one.id)


@operations.get("")
async def index(request: Request, service: Serving, project_id: str) -> dict[str, Any]:
    """List listeners."""
    rows = (shown(service, one, project_id) for one in service.configuration.listeners.values())
    return listed(request, "listeners", rows)


@operations.get("/{number}")
async def show(request: Request, service: Serving, project_id: str, number: str) -> dict[str, Any]:
    """Show a listener."""
    return _answer(request, service, project_id, number)


@operations.put("/{number}")
async def update(
    request: Request, service: Serving, author: Author, project_id: str, number: str, body: UpdateRequest
) -> dict[str, Any]:
    """Change a listener; connections that are open go on."""
    fields = body.listener.fields_given()
    await service.change(author, lambda have: edits.change(have, SECTION, number, fields))
    return _answer(request, service, project_id, number)


@operations.delete("/{number}", status_code=204)
async def delete(service: Serving, author: Author, project_id: str, number: str) -> None:
    """Delete a listener; its connections end."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number))


@operations.delete("/{number}/force", status_code=204)
async def delete_cascade(service: Serving, author: Author, project_id: str, number: str) -> None:
    """Delete a listener, and its pool if nothing else uses it."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number, cascade=True))
