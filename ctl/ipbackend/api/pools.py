"""`/elb/pools`: members that serve together."""

from typing import Annotated, ClassVar, Literal
from uuid import uuid4

from fastapi import Request
from pydantic import Field

from ipbackend import edits
from ipbackend.api.base import (
    ELB,
    Answer,
    Author,
    Body,
    Changes,
    Flag,
    Id,
    Ref,
    RequestId,
    Serving,
    Stamped,
    Text,
    refs,
    router,
    stamps,
)
from ipbackend.api.errors import CODES
from ipbackend.api.lists import Listing, Rows
from ipbackend.api.poolsettings import PoolSettings, SettingsShown, settings_shown
from ipbackend.api.relations import Relations
from ipbackend.api.service import Service
from ipbackend.configuration import Configuration, where_is
from ipbackend.errors import ConfigurationError, Kind, Problem
from ipbackend.model import Algorithm, Pool, Protocol

operations = router(f"{ELB}/pools", "pools")
SECTION = "pools"
NAMES = {"lb_algorithm": "algorithm", "loadbalancer_id": "load_balancer"}
BATCH_MAX = 200  # pools in one request
SETTLED = ("admin_state_up", "type", "any_port_enable", "protection_status")


class NewPool(PoolSettings):
    """What a pool is made of."""

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(("project_id", "listener_id", "ip_version", *SETTLED))

    name: Text = ""
    description: Text = ""
    protocol: Protocol
    lb_algorithm: Algorithm
    listener_id: Text | None = None  # its default pool from now on; it must have none
    loadbalancer_id: Text | None = None
    member_deletion_protection_enable: Flag = False
    project_id: Text | None = None
    ip_version: Literal["v4"] = "v4"
    type: Literal["ip", ""] | None = None
    any_port_enable: Literal[False] = False
    admin_state_up: Literal[True] = True
    protection_status: Literal["nonProtection"] = "nonProtection"


class PoolChanges(PoolSettings, Changes):
    """What may change later."""

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(SETTLED)

    name: Text = ""
    description: Text = ""
    lb_algorithm: Algorithm = Algorithm.ROUND_ROBIN
    member_deletion_protection_enable: Flag = False
    type: Literal["ip"] = "ip"
    any_port_enable: Literal[False] = False
    admin_state_up: Literal[True] = True
    protection_status: Literal["nonProtection"] = "nonProtection"


class PoolShown(SettingsShown, Stamped):
    """As published."""

    name: str
    description: str
    project_id: str
    admin_state_up: Literal[True] = True
    protocol: Protocol
    lb_algorithm: Algorithm
    type: Literal["ip"] = "ip"
    ip_version: Literal["v4"] = "v4"
    any_port_enable: Literal[False] = False
    member_deletion_protection_enable: bool
    protection_status: Literal["nonProtection"] = "nonProtection"
    healthmonitor_id: str | None
    listeners: list[Ref]
    loadbalancers: list[Ref]
    members: list[Ref]


class NewPoolBody(Body):
    """The envelope."""

    pool: NewPool


class PoolChangesBody(Body):
    """The envelope."""

    pool: PoolChanges


class PoolsToDeleteBody(Body):
    """Ids."""

    pools: Annotated[list[Text], Field(min_length=1, max_length=BATCH_MAX)]


class PoolDeleted(Ref):
    """A pool that is gone, was not there, or stays: `ret_code` says by what code it is refused."""

    ret_status: Literal["successful", "not found", "failed"]
    ret_code: str | None


class PoolsDeletedAnswer(Answer):
    """The envelope of results."""

    pools: list[PoolDeleted]


class PoolAnswer(Answer):
    """The envelope."""

    pool: PoolShown


class PoolsAnswer(Listing):
    """The envelope of many."""

    pools: list[PoolShown]


ROWS = Rows(PoolShown, "loadbalancer_id", "listener_id", "member_address")


def shown(service: Service, relations: Relations, one: Pool, project_id: str) -> PoolShown:
    """As published."""
    monitor = relations.monitor_of_pool.get(one.id)
    return PoolShown(
        id=one.id,
        name=one.name,
        description=one.description,
        project_id=project_id,
        protocol=one.protocol,
        lb_algorithm=one.algorithm,
        member_deletion_protection_enable=one.member_deletion_protection_enable,
        healthmonitor_id=monitor.id if monitor else None,
        listeners=refs(listener.id for listener in relations.listeners_of_pool.get(one.id, ())),
        loadbalancers=refs(relations.balancers_of_pool.get(one.id, ())),
        members=refs(member.id for member in one.members),
        **settings_shown(one),
        **stamps(service, one.id),
    )


def _answer(service: Service, request_id: str, project_id: str, number: str) -> PoolAnswer:
    have = service.configuration
    one = shown(service, Relations(have), edits.find(have, SECTION, number), project_id)
    return PoolAnswer(pool=one, request_id=request_id)


def _made(have: Configuration, pool: Pool, listener: str | None) -> Configuration:
    want = edits.put(have, SECTION, pool)
    if listener is None:
        return want
    user = edits.find(have, "listeners", listener)
    if user.pool:
        raise ConfigurationError(Problem(f"listener_id: {where_is(user)} has a pool (change that one)", Kind.TAKEN))
    return edits.change(want, "listeners", listener, {"pool": pool.id})


@operations.post("", status_code=201)
async def create_pool(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, body: NewPoolBody
) -> PoolAnswer:
    """Create a pool."""
    one = Pool(**{"name": "", **body.pool.wanted()}, id=str(uuid4()))
    await service.change(author, lambda have: _made(have, one, body.pool.listener_id))
    return _answer(service, request_id, project_id, one.id)


@operations.get("", openapi_extra=ROWS.openapi)
async def list_pools(request: Request, service: Serving, request_id: RequestId, project_id: Id) -> PoolsAnswer:
    """List pools."""
    have = service.configuration
    relations = Relations(have)
    also = {
        "loadbalancer_id": {one: relations.balancers_of_pool.get(one, []) for one in have.pools},
        "listener_id": {one: [user.id for user in relations.listeners_of_pool.get(one, ())] for one in have.pools},
        "member_address": {one.id: relations.addresses([one]) for one in have.pools.values()},
    }
    page, info = ROWS.page(request, (shown(service, relations, one, project_id) for one in have.pools.values()), also)
    return PoolsAnswer(pools=page, page_info=info, request_id=request_id)


@operations.post("/batch-delete")
async def batch_delete_pools(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, body: PoolsToDeleteBody
) -> PoolsDeletedAnswer:
    """Delete pools, all that can be in one change; those that stay, or were not there, are named."""
    results: list[PoolDeleted] = []

    def edit(have: Configuration) -> Configuration:
        results.clear()
        for number in body.pools:
            try:
                have = edits.delete(have, SECTION, number)
            except ConfigurationError as refusal:
                missing = refusal.kind is Kind.MISSING
                status: Literal["not found", "failed"] = "not found" if missing else "failed"
                code = None if missing else CODES[refusal.kind][1]
                results.append(PoolDeleted(id=number, ret_status=status, ret_code=code))
            else:
                results.append(PoolDeleted(id=number, ret_status="successful", ret_code=None))
        return have

    await service.change(author, edit)
    return PoolsDeletedAnswer(pools=results, request_id=request_id)


@operations.get("/{number}")
async def show_pool(service: Serving, request_id: RequestId, project_id: Id, number: Id) -> PoolAnswer:
    """Show a pool."""
    return _answer(service, request_id, project_id, number)


@operations.put("/{number}")
async def update_pool(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, number: Id, body: PoolChangesBody
) -> PoolAnswer:
    """Change a pool; connections that are open go on."""

    def edit(have: Configuration) -> Configuration:
        return edits.change(have, SECTION, number, body.pool.wanted(edits.find(have, SECTION, number)))

    await service.change(author, edit)
    return _answer(service, request_id, project_id, number)


@operations.delete("/{number}", status_code=204)
async def delete_pool(service: Serving, author: Author, project_id: Id, number: Id) -> None:
    """Delete a pool that has no members, and that no listener uses."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number))


@operations.delete("/{number}/delete-cascade", status_code=204)
async def delete_pool_cascade(service: Serving, author: Author, project_id: Id, number: Id) -> None:
    """Delete a pool that no listener uses, with its members and its health monitor."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number, cascade=True))
