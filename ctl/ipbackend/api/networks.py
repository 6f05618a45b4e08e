"""`/ipbackend/networks`: where members live, and how they are reached. Ours: ELB has no word for it."""

from typing import Annotated
from uuid import uuid4

from fastapi import Request
from pydantic import Field

from ipbackend import edits
from ipbackend.api.base import (
    OURS,
    Address,
    Answer,
    Author,
    Body,
    Changes,
    Cidr,
    Id,
    RequestId,
    Serving,
    Stamped,
    Text,
    router,
    stamps,
)
from ipbackend.api.lists import Listing, Rows
from ipbackend.api.service import Service
from ipbackend.configuration import Configuration
from ipbackend.model import Network, NetworkKind

operations = router(f"{OURS}/networks", "networks")
SECTION = "networks"
Cidrs = Annotated[list[Cidr], Field(max_length=1000)]


class NewNetwork(Body):
    """Kind `local` is on the link; the others need a next hop. The interface is the members' side unless named."""

    name: Text = ""
    description: Text = ""
    kind: NetworkKind
    cidrs: Cidrs
    next_hop: Address | None = None
    interface: Text | None = None


class NetworkChanges(Changes):
    """What may change later: everything."""

    name: Text = ""
    description: Text = ""
    kind: NetworkKind = NetworkKind.LOCAL
    cidrs: Cidrs = Field(default_factory=list)
    next_hop: Address | None = None
    interface: Text = ""


class NetworkShown(Stamped):
    """All of it."""

    name: str
    description: str
    kind: NetworkKind
    cidrs: list[str]
    next_hop: str | None
    interface: str


class NewNetworkBody(Body):
    """The envelope."""

    network: NewNetwork


class NetworkChangesBody(Body):
    """The envelope."""

    network: NetworkChanges


class NetworkAnswer(Answer):
    """The envelope."""

    network: NetworkShown


class NetworksAnswer(Listing):
    """The envelope of many."""

    networks: list[NetworkShown]


ROWS = Rows(NetworkShown)


def shown(service: Service, one: Network) -> NetworkShown:
    """All of it."""
    return NetworkShown(
        id=one.id,
        name=one.name,
        description=one.description,
        kind=one.kind,
        cidrs=[str(cidr) for cidr in one.cidrs],
        next_hop=str(one.next_hop) if one.next_hop else None,
        interface=one.interface,
        **stamps(service, one.id),
    )


def _answer(service: Service, request_id: str, number: str) -> NetworkAnswer:
    one = shown(service, edits.find(service.configuration, SECTION, number))
    return NetworkAnswer(network=one, request_id=request_id)


@operations.post("", status_code=201)
async def create_network(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, body: NewNetworkBody
) -> NetworkAnswer:
    """Create a network; it must not overlap another one."""
    number, fields = str(uuid4()), body.network.fields_given()

    def edit(have: Configuration) -> Configuration:
        default = have.gateway.snat_interface if have.gateway else ""
        given = {"name": "", **fields, "interface": fields.get("interface") or default}
        return edits.put(have, SECTION, Network(**given, id=number))

    await service.change(author, edit)
    return _answer(service, request_id, number)


@operations.get("", openapi_extra=ROWS.openapi)
async def list_networks(request: Request, service: Serving, request_id: RequestId, project_id: Id) -> NetworksAnswer:
    """List networks."""
    page, info = ROWS.page(request, (shown(service, one) for one in service.configuration.networks.values()))
    return NetworksAnswer(networks=page, page_info=info, request_id=request_id)


@operations.get("/{number}")
async def show_network(service: Serving, request_id: RequestId, project_id: Id, number: Id) -> NetworkAnswer:
    """Show a network."""
    return _answer(service, request_id, number)


@operations.put("/{number}")
async def update_network(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, number: Id, body: NetworkChangesBody
) -> NetworkAnswer:
    """Change a network: its routes change with it."""
    fields = body.network.fields_given()
    await service.change(author, lambda have: edits.change(have, SECTION, number, fields))
    return _answer(service, request_id, number)


@operations.delete("/{number}", status_code=204)
async def delete_network(service: Serving, author: Author, project_id: Id, number: Id) -> None:
    """Delete a network that no member lives in."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number))
