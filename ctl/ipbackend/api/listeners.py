"""`/elb/listeners`: a port of a load balancer's VIP."""

from typing import Annotated, Any, ClassVar, Literal
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
    Shown,
    Stamped,
    Text,
    number,
    refs,
    router,
    stamps,
)
from ipbackend.api.lists import Listing, Rows
from ipbackend.api.relations import Relations
from ipbackend.api.service import Service
from ipbackend.model import Access, Listener, Protocol

operations = router(f"{ELB}/listeners", "listeners")
SECTION = "listeners"
NAMES = {
    "loadbalancer_id": "load_balancer",
    "protocol_port": "port",
    "default_pool_id": "pool",
    "keepalive_timeout": "idle_timeout",
    "connection": "max_connections",
}
ACCESS = {"white": Access.ALLOW, "black": Access.DENY}
OPEN = {"ip_groups": (), "access": Access.ALLOW, "access_enabled": True}
ProtocolPort = Annotated[int, number(Listener, "port")]
KeepaliveTimeout = Annotated[int, number(Listener, "idle_timeout")]
Connection = Annotated[int, number(Listener, "max_connections")]
Cps = Annotated[int, number(Listener, "cps")]
IdList = Annotated[str, Field(strict=True, max_length=4_000)]


class IpGroups(Changes):
    """Whom the listener serves by its ip groups, or does not; their ids have commas between."""

    NAMES: ClassVar = {"ipgroup_id": "ip_groups", "enable_ipgroup": "access_enabled", "type": "access"}

    ipgroup_id: IdList = ""
    enable_ipgroup: Flag = True
    type: Literal["white", "black"] = "white"

    def wanted(self) -> dict[str, Any]:
        """What was sent, as the model has it."""
        given = self.fields_given()
        if "ip_groups" in given:
            given["ip_groups"] = tuple(given["ip_groups"].split(","))
        if "access" in given:
            given["access"] = ACCESS[given["access"]]
        return given


class NewIpGroups(IpGroups):
    """The same for a listener that has none yet."""

    ipgroup_id: IdList


class Limits(Body):
    """How many connections, and whose. `ipgroup` null is no access control."""

    connection: Connection = 0
    cps: Cps = 0
    source_cps: Cps = 0  # ours: of each client address
    ipgroup: IpGroups | None = None

    def wanted(self) -> dict[str, Any]:
        """What was sent, all other fields included, as the model has it."""
        given = self.fields_given()
        if "ipgroup" in given:
            groups: IpGroups | None = given.pop("ipgroup")
            given |= groups.wanted() if groups else OPEN
        return given


class NewListener(Limits):
    """What a listener is made of. Of the published API is not here what means nothing at L4, or is not built."""

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(("project_id", "admin_state_up", "protection_status"))

    name: Text = ""
    description: Text = ""
    loadbalancer_id: Text
    protocol: Protocol
    protocol_port: ProtocolPort
    default_pool_id: Text | None = None
    keepalive_timeout: KeepaliveTimeout = 300
    ipgroup: NewIpGroups | None = None
    project_id: Text | None = None
    admin_state_up: Literal[True] = True
    protection_status: Literal["nonProtection"] = "nonProtection"


class ListenerChanges(Limits, Changes):
    """What may change later."""

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(("admin_state_up", "protection_status"))

    name: Text = ""
    description: Text = ""
    default_pool_id: Text | None = None
    keepalive_timeout: KeepaliveTimeout = 300
    admin_state_up: Literal[True] = True
    protection_status: Literal["nonProtection"] = "nonProtection"


class IpGroupsShown(Shown):
    """As published: ids have commas between."""

    ipgroup_id: str
    enable_ipgroup: bool
    type: Literal["white", "black"]


class ListenerShown(Stamped):
    """As published. `transparent_client_ip_enable` is false since members see SNAT addresses."""

    name: str
    description: str
    project_id: str
    admin_state_up: Literal[True] = True
    protocol: Protocol
    protocol_port: int
    loadbalancers: list[Ref]
    default_pool_id: str | None
    keepalive_timeout: int
    connection: int
    cps: int
    source_cps: int
    ipgroup: IpGroupsShown | None
    transparent_client_ip_enable: Literal[False] = False
    protection_status: Literal["nonProtection"] = "nonProtection"


class NewListenerBody(Body):
    """The envelope."""

    listener: NewListener


class ListenerChangesBody(Body):
    """The envelope."""

    listener: ListenerChanges


class ListenerAnswer(Answer):
    """The envelope."""

    listener: ListenerShown


class ListenersAnswer(Listing):
    """The envelope of many."""

    listeners: list[ListenerShown]


ROWS = Rows(ListenerShown, "loadbalancer_id", "member_address")


def shown(service: Service, one: Listener, project_id: str) -> ListenerShown:
    """As published."""
    return ListenerShown(
        id=one.id,
        name=one.name,
        description=one.description,
        project_id=project_id,
        protocol=one.protocol,
        protocol_port=one.port,
        loadbalancers=refs([one.load_balancer]),
        default_pool_id=one.pool,
        keepalive_timeout=one.idle_timeout,
        connection=one.max_connections,
        cps=one.cps,
        source_cps=one.source_cps,
        ipgroup=_groups_shown(one),
        **stamps(service, one.id),
    )


def _groups_shown(one: Listener) -> IpGroupsShown | None:
    if not one.ip_groups:
        return None
    kind: Literal["white", "black"] = "white" if one.access is Access.ALLOW else "black"
    return IpGroupsShown(ipgroup_id=",".join(one.ip_groups), enable_ipgroup=one.access_enabled, type=kind)


def _answer(service: Service, request_id: str, project_id: str, number: str) -> ListenerAnswer:
    one = edits.find(service.configuration, SECTION, number)
    return ListenerAnswer(listener=shown(service, one, project_id), request_id=request_id)


@operations.post("", status_code=201)
async def create_listener(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, body: NewListenerBody
) -> ListenerAnswer:
    """Create a listener."""
    one = Listener(**{"name": "", **body.listener.wanted()}, id=str(uuid4()))
    await service.change(author, lambda have: edits.put(have, SECTION, one))
    return _answer(service, request_id, project_id, one.id)


@operations.get("", openapi_extra=ROWS.openapi)
async def list_listeners(request: Request, service: Serving, request_id: RequestId, project_id: Id) -> ListenersAnswer:
    """List listeners."""
    have = service.configuration
    there, relations = have.listeners.values(), Relations(have)
    also = {
        "loadbalancer_id": {one.id: [one.load_balancer] for one in there},
        "member_address": {one.id: relations.addresses([have.pools.get(one.pool or "")]) for one in there},
    }
    page, info = ROWS.page(request, (shown(service, one, project_id) for one in there), also)
    return ListenersAnswer(listeners=page, page_info=info, request_id=request_id)


@operations.get("/{number}")
async def show_listener(service: Serving, request_id: RequestId, project_id: Id, number: Id) -> ListenerAnswer:
    """Show a listener."""
    return _answer(service, request_id, project_id, number)


@operations.put("/{number}")
async def update_listener(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, number: Id, body: ListenerChangesBody
) -> ListenerAnswer:
    """Change a listener; connections that are open go on."""
    fields = body.listener.wanted()
    await service.change(author, lambda have: edits.change(have, SECTION, number, fields))
    return _answer(service, request_id, project_id, number)


@operations.delete("/{number}", status_code=204)
async def delete_listener(service: Serving, author: Author, project_id: Id, number: Id) -> None:
    """Delete a listener; its connections end."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number))


@operations.delete("/{number}/force", status_code=204)
async def delete_listener_force(service: Serving, author: Author, project_id: Id, number: Id) -> None:
    """Delete a listener, and its pool if nothing else uses it."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number, cascade=True))
