"""`/elb/pools/{pool}/members`: who serves, one by one or many at once."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal
from uuid import uuid4

from fastapi import Request
from pydantic import Field

from ipbackend import edits
from ipbackend.api.base import ELB, Address, Author, Body, Integer, Serving, Text, answer, listed, router, stamps
from ipbackend.api.service import Service
from ipbackend.configuration import Configuration
from ipbackend.model import MEMBERS_MAX, Member

operations = router(ELB, "members")
NAMES = {"protocol_port": "port"}


class Create(Body):
    """The fields of a member that is an IP; `max_connections` is ours."""

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(("admin_state_up", "subnet_cidr_id"))

    name: Text = ""
    address: Address
    protocol_port: Integer
    weight: Integer = 1
    max_connections: Integer = 100_000
    subnet_cidr_id: Literal[""] | None = None  # with one it would be an instance, of which there are none here
    admin_state_up: Literal[True] = True


class Update(Body):
    """What may change later."""

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(("admin_state_up",))

    name: Text = ""
    weight: Integer = 1
    max_connections: Integer = 100_000
    admin_state_up: Literal[True] = True


class CreateRequest(Body):
    """The envelope."""

    member: Create


class UpdateRequest(Body):
    """The envelope."""

    member: Update


class BatchCreateRequest(Body):
    """The envelope of many."""

    members: Annotated[list[Create], Field(min_length=1, max_length=MEMBERS_MAX)]


def shown(service: Service, one: Member, project_id: str) -> dict[str, Any]:
    """As published; no health monitor is at work."""
    return {
        "id": one.id,
        "name": one.name,
        "project_id": project_id,
        "address": str(one.address),
        "protocol_port": one.port,
        "weight": one.weight,
        "max_connections": one.max_connections,
        "admin_state_up": True,
        "subnet_cidr_id": None,
        "member_type": "ip",
        "ip_version": "v4",
        "operating_status": "NO_MONITOR",
        **stamps(service, one.id),
    }


def made(body: Create) -> Member:
    """A member of what was sent."""
    return Member(**body.fields_given(), id=str(uuid4()))


def _answer(request: Request, service: Service, project_id: str, pool: str, number: str) -> dict[str, Any]:
    one = edits.find_member(edits.find(service.configuration, "pools", pool), number)
    return answer(request, member=shown(service, one, project_id))


@operations.post("/pools/{pool}/members", status_code=201)
async def create(
    request: Request, service: Serving, author: Author, project_id: str, pool: str, body: CreateRequest
) -> dict[str, Any]:
    """Add a member to a pool."""
    one = made(body.member)
    await service.change(author, lambda have: edits.add_members(have, pool, [one]))
    return _answer(request, service, project_id, pool, one.id)


@operations.post("/pools/{pool}/members/batch-add", status_code=201)
async def create_many(
    request: Request, service: Serving, author: Author, project_id: str, pool: str, body: BatchCreateRequest
) -> dict[str, Any]:
    """Add members to a pool, all in one change; those that are there already stay as they are."""
    wanted = [made(one) for one in body.members]

    def edit(have: Configuration) -> Configuration:
        there = _by_address(edits.find(have, "pools", pool).members)
        return edits.add_members(have, pool, [one for one in wanted if str(one) not in there])

    await service.change(author, edit)
    there = _by_address(edits.find(service.configuration, "pools", pool).members)
    return answer(request, members=[_result(service, one, there.get(str(one)), project_id) for one in wanted])


def _by_address(members: Iterable[Member]) -> dict[str, Member]:
    return {str(member): member for member in members}


def _result(service: Service, wanted: Member, there: Member | None, project_id: str) -> dict[str, Any]:
    if there is None:  # somebody removed it meanwhile
        return {
            "id": wanted.id,
            "address": str(wanted.address),
            "protocol_port": wanted.port,
            "ret_status": "successful",
        }
    status = "successful" if there.id == wanted.id else "existed"
    return {**shown(service, there, project_id), "ret_status": status}


@operations.get("/pools/{pool}/members")
async def index(request: Request, service: Serving, project_id: str, pool: str) -> dict[str, Any]:
    """List the members of a pool."""
    members = edits.find(service.configuration, "pools", pool).members
    return listed(request, "members", (shown(service, one, project_id) for one in members))


@operations.get("/pools/{pool}/members/{number}")
async def show(request: Request, service: Serving, project_id: str, pool: str, number: str) -> dict[str, Any]:
    """Show a member."""
    return _answer(request, service, project_id, pool, number)


@operations.put("/pools/{pool}/members/{number}")
async def update(
    request: Request, service: Serving, author: Author, project_id: str, pool: str, number: str, body: UpdateRequest
) -> dict[str, Any]:
    """Change a member; connections that are open go on."""
    fields = body.member.fields_given()
    await service.change(author, lambda have: edits.change_members(have, pool, {number: fields}))
    return _answer(request, service, project_id, pool, number)


@operations.delete("/pools/{pool}/members/{number}", status_code=204)
async def delete(service: Serving, author: Author, project_id: str, pool: str, number: str) -> None:
    """Remove a member from its pool; its connections end, unless another pool has it too."""
    await service.change(author, lambda have: edits.remove_members(have, pool, {number}))
