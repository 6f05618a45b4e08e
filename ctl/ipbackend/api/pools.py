"""`/elb/pools`: members that serve together."""

from typing import Any, ClassVar, Literal
from uuid import uuid4

from fastapi import Request

from ipbackend import edits
from ipbackend.api.base import ELB, Author, Body, Flag, Serving, Text, answer, listed, router, stamps
from ipbackend.api.service import Service
from ipbackend.configuration import Configuration, where_is
from ipbackend.errors import ConfigurationError, Kind, Problem
from ipbackend.model import Algorithm, Pool, Protocol

operations = router(f"{ELB}/pools", "pools")
SECTION = "pools"
NAMES = {"lb_algorithm": "algorithm", "loadbalancer_id": "load_balancer"}


class Create(Body):
    """The fields of a pool that mean something at L4."""

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(("admin_state_up", "type", "session_persistence", "listener_id"))

    name: Text = ""
    description: Text = ""
    protocol: Protocol
    lb_algorithm: Algorithm
    listener_id: Text | None = None  # its default pool from now on; it must have none
    loadbalancer_id: Text | None = None
    type: Literal["ip", ""] | None = None
    session_persistence: None = None
    member_deletion_protection_enable: Flag = False
    admin_state_up: Literal[True] = True


class Update(Body):
    """What may change later."""

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(("admin_state_up", "session_persistence"))

    name: Text = ""
    description: Text = ""
    lb_algorithm: Algorithm = Algorithm.ROUND_ROBIN
    session_persistence: None = None
    member_deletion_protection_enable: Flag = False
    admin_state_up: Literal[True] = True


class CreateRequest(Body):
    """The envelope."""

    pool: Create


class UpdateRequest(Body):
    """The envelope."""

    pool: Update


def shown(service: Service, have: Configuration, one: Pool, project_id: str) -> dict[str, Any]:
    """As published."""
    listeners = [listener for listener in have.listeners.values() if listener.pool == one.id]
    owners = {listener.load_balancer for listener in listeners} | ({one.load_balancer} - {None})
    monitor = next((monitor.id for monitor in have.health_monitors.values() if monitor.pool == one.id), None)
    return {
        "id": one.id,
        "name": one.name,
        "description": one.description,
        "project_id": project_id,
        "admin_state_up": True,
        "protocol": str(one.protocol),
        "lb_algorithm": str(one.algorithm),
        "type": "ip",
        "ip_version": "v4",
        "session_persistence": None,
        "member_deletion_protection_enable": one.member_deletion_protection_enable,
        "healthmonitor_id": monitor,
        "listeners": [{"id": listener.id} for listener in listeners],
        "loadbalancers": [{"id": number} for number in have.load_balancers if number in owners],
        "members": [{"id": member.id} for member in one.members],
        **stamps(service, one.id),
    }


def _answer(request: Request, service: Service, project_id: str, number: str) -> dict[str, Any]:
    have = service.configuration
    return answer(request, pool=shown(service, have, edits.find(have, SECTION, number), project_id))


def _made(have: Configuration, pool: Pool, listener: str | None) -> Configuration:
    want = edits.put(have, SECTION, pool)
    if listener is None:
        return want
    user = edits.find(have, "listeners", listener)
    if user.pool:
        raise ConfigurationError(Problem(f"listener_id: {where_is(user)} has a pool (change that one)", Kind.TAKEN))
    return edits.change(want, "listeners", listener, {"pool": pool.id})


@operations.post("", status_code=201)
async def create(
    request: Request, service: Serving, author: Author, project_id: str, body: CreateRequest
) -> dict[str, Any]:
    """Create a pool."""
    one = Pool(**{"name": "", **body.pool.fields_given()}, id=str(uuid4()))
    await service.change(author, lambda have: _made(have, one, body.pool.listener_id))
    return _answer(request, service, project_id, one.id)


@operations.get("")
async def index(request: Request, service: Serving, project_id: str) -> dict[str, Any]:
    """List pools."""
    have = service.configuration
    return listed(request, "pools", (shown(service, have, one, project_id) for one in have.pools.values()))


@operations.get("/{number}")
async def show(request: Request, service: Serving, project_id: str, number: str) -> dict[str, Any]:
    """Show a pool."""
    return _answer(request, service, project_id, number)


@operations.put("/{number}")
async def update(
    request: Request, service: Serving, author: Author, project_id: str, number: str, body: UpdateRequest
) -> dict[str, Any]:
    """Change a pool; connections that are open go on."""
    fields = body.pool.fields_given()
    await service.change(author, lambda have: edits.change(have, SECTION, number, fields))
    return _answer(request, service, project_id, number)


@operations.delete("/{number}", status_code=204)
async def delete(service: Serving, author: Author, project_id: str, number: str) -> None:
    """Delete a pool that has no members, and that no listener uses."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number))


@operations.delete("/{number}/delete-cascade", status_code=204)
async def delete_cascade(service: Serving, author: Author, project_id: str, number: str) -> None:
    """Delete a pool that no listener uses, with its members and its health monitor."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number, cascade=True))
