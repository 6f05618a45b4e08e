"""`/elb/pools/{pool}/members`, `/elb/members`: who serves, one by one or many at once."""

from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal, Self
from uuid import uuid4

from fastapi import Request
from pydantic import Field, model_validator

from ipbackend import edits
from ipbackend.api.base import (
    ELB,
    Address,
    Answer,
    Author,
    Body,
    Changes,
    Id,
    Ref,
    RequestId,
    Serving,
    Shown,
    Stamped,
    Text,
    number,
    refs,
    router,
    stamps,
)
from ipbackend.api.health import ListenerStatus, OperatingStatus, ReasonShown, by_listener, reason_of, status_of
from ipbackend.api.lists import Listing, Rows
from ipbackend.api.relations import Relations
from ipbackend.api.service import Service
from ipbackend.configuration import Configuration
from ipbackend.model import Member, Pool

operations = router(ELB, "members")
NAMES = {"protocol_port": "port"}
BATCH_MAX = 200  # members in one request, as published
ProtocolPort = Annotated[int, number(Member, "port")]
Weight = Annotated[int, number(Member, "weight")]
MaxConnections = Annotated[int, number(Member, "max_connections")]


class NewMember(Body):
    """What a member that is an IP is made of; `max_connections` is ours.

    With a subnet it would be an instance, of which there are none here.
    """

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(("project_id", "admin_state_up", "subnet_cidr_id"))

    name: Text = ""
    address: Address
    protocol_port: ProtocolPort
    weight: Weight = 1
    max_connections: MaxConnections = 100_000
    project_id: Text | None = None
    subnet_cidr_id: Literal[""] | None = None
    admin_state_up: Literal[True] = True


class MemberChanges(Changes):
    """What may change later. With another port it is another endpoint: connections to the one before end."""

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(("admin_state_up",))

    name: Text = ""
    protocol_port: ProtocolPort = 1
    weight: Weight = 1
    max_connections: MaxConnections = 100_000
    admin_state_up: Literal[True] = True


class OneOfManyChanges(MemberChanges):
    """The same, of one among others."""

    WITHOUT_EFFECT: ClassVar = frozenset(("admin_state_up", "id"))

    id: Text


class OneToRemove(Body):
    """By its id, or by its address and port."""

    id: Text | None = None
    address: Address | None = None
    protocol_port: ProtocolPort | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        by_address = (self.address is not None, self.protocol_port is not None)
        if by_address not in ((True, True), (False, False)) or all(by_address) == (self.id is not None):
            raise ValueError("must have an id, or an address and a protocol_port (and not both)")
        return self


class NewMemberBody(Body):
    """The envelope."""

    member: NewMember


class MemberChangesBody(Body):
    """The envelope."""

    member: MemberChanges


class NewMembersBody(Body):
    """The envelope of many."""

    members: Annotated[list[NewMember], Field(min_length=1, max_length=BATCH_MAX)]


class MembersChangesBody(Body):
    """The envelope of many."""

    members: Annotated[list[OneOfManyChanges], Field(min_length=1, max_length=BATCH_MAX)]


class MembersToRemoveBody(Body):
    """The envelope of many."""

    members: Annotated[list[OneToRemove], Field(min_length=1, max_length=BATCH_MAX)]


class MemberShown(Stamped):
    """As published: `operating_status` is NO_MONITOR where the pool has no health monitor that is on."""

    name: str
    project_id: str
    address: str
    protocol_port: int
    weight: int
    max_connections: int
    admin_state_up: Literal[True] = True
    subnet_cidr_id: None = None
    member_type: Literal["ip"] = "ip"
    ip_version: Literal["v4"] = "v4"
    instance_id: Literal[""] = ""
    operating_status: OperatingStatus
    status: list[ListenerStatus]
    reason: ReasonShown | None


class MemberOfPoolShown(MemberShown):
    """A member among those of all pools."""

    pool_id: str
    loadbalancers: list[Ref]


class MemberAdded(MemberShown):
    """A member, and whether it was added or was there before."""

    ret_status: Literal["successful", "existed"]


class MemberRemoved(Shown):
    """A member that is gone, or was not there; then an id that was not sent is not known."""

    id: str | None
    ret_status: Literal["successful", "not found"]


class MemberAnswer(Answer):
    """The envelope."""

    member: MemberShown


class MembersAnswer(Listing):
    """The envelope of many."""

    members: list[MemberShown]


class AllMembersAnswer(Listing):
    """The envelope of many."""

    members: list[MemberOfPoolShown]


class MembersAddedAnswer(Answer):
    """The envelope of results."""

    members: list[MemberAdded]


class MembersChangedAnswer(Answer):
    """The envelope of results."""

    members: list[MemberShown]


class MembersRemovedAnswer(Answer):
    """The envelope of results."""

    members: list[MemberRemoved]


ROWS = Rows(MemberShown)
ALL_ROWS = Rows(MemberOfPoolShown, "loadbalancer_id")


def shown(service: Service, relations: Relations, pool: Pool, one: Member, project_id: str) -> MemberShown:
    """As published."""
    return MemberShown(
        id=one.id,
        name=one.name,
        project_id=project_id,
        address=str(one.address),
        protocol_port=one.port,
        weight=one.weight,
        max_connections=one.max_connections,
        operating_status=status_of(service, one),
        status=by_listener(service, relations, pool, one),
        reason=reason_of(service, one),
        **stamps(service, one.id),
    )


def made(body: NewMember) -> Member:
    """A member of what was sent."""
    return Member(**body.fields_given(), id=str(uuid4()))


def _answer(service: Service, request_id: str, project_id: str, pool: str, number: str) -> MemberAnswer:
    have = service.configuration
    its_pool = edits.find(have, "pools", pool)
    one = shown(service, Relations(have), its_pool, edits.find_member(its_pool, number), project_id)
    return MemberAnswer(member=one, request_id=request_id)


@operations.post("/pools/{pool}/members", status_code=201)
async def create_member(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, pool: Id, body: NewMemberBody
) -> MemberAnswer:
    """Add a member to a pool."""
    one = made(body.member)
    await service.change(author, lambda have: edits.add_members(have, pool, [one]))
    return _answer(service, request_id, project_id, pool, one.id)


@operations.post("/pools/{pool}/members/batch-add", status_code=201)
async def batch_create_members(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, pool: Id, body: NewMembersBody
) -> MembersAddedAnswer:
    """Add members to a pool, all in one change; those that are there already stay as they are."""
    wanted = [made(one) for one in body.members]

    def edit(have: Configuration) -> Configuration:
        there = _by_address(edits.find(have, "pools", pool).members)
        return edits.add_members(have, pool, [one for one in wanted if str(one) not in there])

    await service.change(author, edit)
    have = service.configuration
    relations, its_pool = Relations(have), edits.find(have, "pools", pool)
    there = _by_address(its_pool.members)
    added = [
        MemberAdded(
            **shown(service, relations, its_pool, one, project_id).model_dump(),
            ret_status="successful" if one.id == asked.id else "existed",
        )
        for asked in wanted
        if (one := there.get(str(asked)))  # else somebody has removed it meanwhile
    ]
    return MembersAddedAnswer(members=added, request_id=request_id)


def _by_address(members: Iterable[Member]) -> dict[str, Member]:
    return {str(member): member for member in members}


@operations.post("/pools/{pool}/members/batch-update")
async def batch_update_members(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, pool: Id, body: MembersChangesBody
) -> MembersChangedAnswer:
    """Change members of a pool, all in one change, or none; connections that are open go on."""
    fields = {one.id: one.fields_given() for one in body.members}
    await service.change(author, lambda have: edits.change_members(have, pool, fields))
    have = service.configuration
    relations, its_pool = Relations(have), edits.find(have, "pools", pool)
    changed = [one for one in its_pool.members if one.id in fields]
    rows = [shown(service, relations, its_pool, one, project_id) for one in changed]
    return MembersChangedAnswer(members=rows, request_id=request_id)


@operations.post("/pools/{pool}/members/batch-delete")
async def batch_delete_members(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, pool: Id, body: MembersToRemoveBody
) -> MembersRemovedAnswer:
    """Remove members from a pool, all in one change; those that are not there are named. Their connections end."""
    results: list[MemberRemoved] = []

    def edit(have: Configuration) -> Configuration:
        results[:] = _removed(edits.find(have, "pools", pool).members, body.members)
        gone = {one.id for one in results if one.id and one.ret_status == "successful"}
        return edits.remove_members(have, pool, gone)

    await service.change(author, edit)
    return MembersRemovedAnswer(members=results, request_id=request_id)


def _removed(there: Sequence[Member], wanted: Iterable[OneToRemove]) -> Iterable[MemberRemoved]:
    by_address, numbers = _by_address(there), {one.id for one in there}
    for one in wanted:
        found = by_address.get(f"{one.address}:{one.protocol_port}")
        number = one.id if one.address is None else found.id if found else None
        yield MemberRemoved(id=number, ret_status="successful" if number in numbers else "not found")


@operations.get("/pools/{pool}/members", openapi_extra=ROWS.openapi)
async def list_members(
    request: Request, service: Serving, request_id: RequestId, project_id: Id, pool: Id
) -> MembersAnswer:
    """List the members of a pool."""
    have = service.configuration
    relations, its_pool = Relations(have), edits.find(have, "pools", pool)
    rows = (shown(service, relations, its_pool, one, project_id) for one in its_pool.members)
    page, info = ROWS.page(request, rows)
    return MembersAnswer(members=page, page_info=info, request_id=request_id)


@operations.get("/members", openapi_extra=ALL_ROWS.openapi)
async def list_all_members(
    request: Request, service: Serving, request_id: RequestId, project_id: Id
) -> AllMembersAnswer:
    """List the members of all pools."""
    have = service.configuration
    relations = Relations(have)
    balancers = relations.balancers_of_pool

    def row(pool: Pool, one: Member) -> MemberOfPoolShown:
        its = refs(balancers.get(pool.id, ()))
        its_member = shown(service, relations, pool, one, project_id).model_dump()
        return MemberOfPoolShown(**its_member, pool_id=pool.id, loadbalancers=its)

    rows = [(pool, one) for pool in have.pools.values() for one in pool.members]
    also = {"loadbalancer_id": {one.id: balancers.get(pool.id, []) for pool, one in rows}}
    page, info = ALL_ROWS.page(request, (row(*pair) for pair in rows), also)
    return AllMembersAnswer(members=page, page_info=info, request_id=request_id)


@operations.get("/pools/{pool}/members/{number}")
async def show_member(service: Serving, request_id: RequestId, project_id: Id, pool: Id, number: Id) -> MemberAnswer:
    """Show a member."""
    return _answer(service, request_id, project_id, pool, number)


@operations.put("/pools/{pool}/members/{number}")
async def update_member(
    service: Serving,
    author: Author,
    request_id: RequestId,
    project_id: Id,
    pool: Id,
    number: Id,
    body: MemberChangesBody,
) -> MemberAnswer:
    """Change a member; connections that are open go on."""
    fields = body.member.fields_given()
    await service.change(author, lambda have: edits.change_members(have, pool, {number: fields}))
    return _answer(service, request_id, project_id, pool, number)


@operations.delete("/pools/{pool}/members/{number}", status_code=204)
async def delete_member(service: Serving, author: Author, project_id: Id, pool: Id, number: Id) -> None:
    """Remove a member from its pool; its connections end, unless another pool has it too."""
    await service.change(author, lambda have: edits.remove_members(have, pool, {number}))
