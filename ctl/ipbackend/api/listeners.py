"""`/elb/listeners`: a port of a load balancer's VIP."""

from typing import Annotated, ClassVar, Literal
from uuid import uuid4

from fastapi import Request

from ipbackend import edits
from ipbackend.api.base import (
    ELB,
    Answer,
    Author,
    Body,
    Changes,
    Id,
    Ref,
    RequestId,
    Serving,
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
from ipbackend.model import Listener, Protocol

operations = router(f"{ELB}/listeners", "listeners")
SECTION = "listeners"
NAMES = {
    "loadbalancer_id": "load_balancer",
    "protocol_port": "port",
    "default_pool_id": "pool",
    "keepalive_timeout": "idle_timeout",
}
ProtocolPort = Annotated[int, number(Listener, "port")]
KeepaliveTimeout = Annotated[int, number(Listener, "idle_timeout")]


class NewListener(Body):
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
    project_id: Text | None = None
    admin_state_up: Literal[True] = True
    protection_status: Literal["nonProtection"] = "nonProtection"


class ListenerChanges(Changes):
    """What may change later."""

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(("admin_state_up", "protection_status"))

    name: Text = ""
    description: Text = ""
    default_pool_id: Text | None = None
    keepalive_timeout: KeepaliveTimeout = 300
    admin_state_up: Literal[True] = True
    protection_status: Literal["nonProtection"] = "nonProtection"


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
        **stamps(service, one.id),
    )


def _answer(service: Service, request_id: str, project_id: str, number: str) -> ListenerAnswer:
    one = edits.find(service.configuration, SECTION, number)
    return ListenerAnswer(listener=shown(service, one, project_id), request_id=request_id)


@operations.post("", status_code=201)
async def create_listener(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, body: NewListenerBody
) -> ListenerAnswer:
    """Create a listener."""
    one = Listener(**{"name": "", **body.listener.fields_given()}, id=str(uuid4()))
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
    fields = body.listener.fields_given()
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
