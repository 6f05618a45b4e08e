"""`/ipbackend/networks`: where members live, and how they are reached. Ours: ELB has no word for it."""

from typing import Annotated, Any
from uuid import uuid4

from fastapi import Request
from pydantic import Field

from ipbackend import edits
from ipbackend.api.base import OURS, Address, Author, Body, Cidr, Serving, Text, answer, listed, router, stamps
from ipbackend.api.service import Service
from ipbackend.configuration import Configuration
from ipbackend.model import Network, NetworkKind

operations = router(f"{OURS}/networks", "networks")
SECTION = "networks"
Cidrs = Annotated[list[Cidr], Field(max_length=1000)]


class Create(Body):
    """Kind `local` is on the link; the others need a next hop. The interface is the members' side unless named."""

    name: Text = ""
    description: Text = ""
    kind: NetworkKind
    cidrs: Cidrs
    next_hop: Address | None = None
    interface: Text | None = None


class Update(Body):
    """What may change later: everything."""

    name: Text = ""
    description: Text = ""
    kind: NetworkKind = NetworkKind.LOCAL
    cidrs: Cidrs = Field(default_factory=list)
    next_hop: Address | None = None
    interface: Text = ""


class CreateRequest(Body):
    """The envelope."""

    network: Create


class UpdateRequest(Body):
    """The envelope."""

    network: Update


def shown(service: Service, one: Network) -> dict[str, Any]:
    """All of it."""
    return {
        "id": one.id,
        "name": one.name,
        "description": one.description,
        "kind": str(one.kind),
        "cidrs": [str(cidr) for cidr in one.cidrs],
        "next_hop": str(one.next_hop) if one.next_hop else None,
        "interface": one.interface,
        **stamps(service, one.id),
    }


def _answer(request: Request, service: Service, number: str) -> dict[str, Any]:
    return answer(request, network=shown(service, edits.find(service.configuration, SECTION, number)))


@operations.post("", status_code=201)
async def create(
    request: Request, service: Serving, author: Author, project_id: str, body: CreateRequest
) -> dict[str, Any]:
    """Create a network; it must not overlap another one."""
    number, fields = str(uuid4()), body.network.fields_given()

    def edit(have: Configuration) -> Configuration:
        default = have.gateway.snat_interface if have.gateway else ""
        given = {"name": "", **fields, "interface": fields.get("interface") or default}
        return edits.put(have, SECTION, Network(**given, id=number))

    await service.change(author, edit)
    return _answer(request, service, number)


@operations.get("")
async def index(request: Request, service: Serving, project_id: str) -> dict[str, Any]:
    """List networks."""
    return listed(request, "networks", (shown(service, one) for one in service.configuration.networks.values()))


@operations.get("/{number}")
async def show(request: Request, service: Serving, project_id: str, number: str) -> dict[str, Any]:
    """Show a network."""
    return _answer(request, service, number)


@operations.put("/{number}")
async def update(
    request: Request, service: Serving, author: Author, project_id: str, number: str, body: UpdateRequest
) -> dict[str, Any]:
    """Change a network: its routes change with it."""
    fields = body.network.fields_given()
    await service.change(author, lambda have: edits.change(have, SECTION, number, fields))
    return _answer(request, service, number)


@operations.delete("/{number}", status_code=204)
async def delete(service: Serving, author: Author, project_id: str, number: str) -> None:
    """Delete a network that no member lives in."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number))
