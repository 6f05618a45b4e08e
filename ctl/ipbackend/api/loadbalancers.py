"""`/elb/loadbalancers`: who owns a VIP."""

from ipaddress import IPv4Address
from typing import Any, ClassVar, Literal
from uuid import uuid4

from fastapi import Request
from pydantic import Field

from ipbackend import edits
from ipbackend.api.base import ELB, Address, Author, Body, Flag, Serving, Text, answer, listed, router, stamps
from ipbackend.api.service import Service
from ipbackend.configuration import Configuration
from ipbackend.model import LoadBalancer

operations = router(f"{ELB}/loadbalancers", "load balancers")
SECTION = "load_balancers"


class Create(Body):
    """The fields of a load balancer that mean something here, and those that can only have one value."""

    NAMES: ClassVar = {"vip_address": "vip"}
    WITHOUT_EFFECT: ClassVar = frozenset(("admin_state_up", "provider", "guaranteed", "availability_zone_list"))

    name: Text = ""
    description: Text = ""
    vip_address: Address
    interface: Text | None = None  # ours: where the VIP lives; the gateway's first unless named
    ip_target_enable: Flag = False
    deletion_protection_enable: Flag = False
    admin_state_up: Literal[True] = True
    provider: Literal["vlb"] = "vlb"
    guaranteed: Literal[True] = True
    availability_zone_list: list[Text] = Field(default_factory=list, max_length=64)


class Update(Body):
    """What may change later."""

    NAMES: ClassVar = {"vip_address": "vip"}
    WITHOUT_EFFECT: ClassVar = frozenset(("admin_state_up",))

    name: Text = ""
    description: Text = ""
    vip_address: Address = IPv4Address(0)
    ip_target_enable: Flag = False
    deletion_protection_enable: Flag = False
    admin_state_up: Literal[True] = True


class CreateRequest(Body):
    """The envelope."""

    loadbalancer: Create


class UpdateRequest(Body):
    """The envelope."""

    loadbalancer: Update


def shown(service: Service, have: Configuration, one: LoadBalancer, project_id: str) -> dict[str, Any]:
    """As published."""
    listeners = [listener for listener in have.listeners.values() if listener.load_balancer == one.id]
    pools = {listener.pool for listener in listeners if listener.pool}
    pools |= {pool.id for pool in have.pools.values() if pool.load_balancer == one.id}
    return {
        "id": one.id,
        "name": one.name,
        "description": one.description,
        "project_id": project_id,
        "provisioning_status": "ACTIVE",
        "operating_status": "ONLINE",
        "admin_state_up": True,
        "provider": "vlb",
        "guaranteed": True,
        "availability_zone_list": [],
        "vip_address": str(one.vip),
        "interface": one.interface,
        "ip_target_enable": one.ip_target_enable,
        "deletion_protection_enable": one.deletion_protection_enable,
        "listeners": [{"id": listener.id} for listener in listeners],
        "pools": [{"id": number} for number in have.pools if number in pools],
        **stamps(service, one.id),
    }


def _answer(request: Request, service: Service, project_id: str, number: str) -> dict[str, Any]:
    have = service.configuration
    return answer(request, loadbalancer=shown(service, have, edits.find(have, SECTION, number), project_id))


@operations.post("", status_code=201)
async def create(
    request: Request, service: Serving, author: Author, project_id: str, body: CreateRequest
) -> dict[str, Any]:
    """Create a load balancer."""
    number, fields = str(uuid4()), body.loadbalancer.fields_given()

    def edit(have: Configuration) -> Configuration:
        default = have.gateway.interfaces[0] if have.gateway else ""
        given = {"name": "", **fields, "interface": fields.get("interface") or default}
        return edits.put(have, SECTION, LoadBalancer(**given, id=number))

    await service.change(author, edit)
    return _answer(request, service, project_id, number)


@operations.get("")
async def index(request: Request, service: Serving, project_id: str) -> dict[str, Any]:
    """List load balancers."""
    have = service.configuration
    rows = (shown(service, have, one, project_id) for one in have.load_balancers.values())
    return listed(request, "loadbalancers", rows)


@operations.get("/{number}")
async def show(request: Request, service: Serving, project_id: str, number: str) -> dict[str, Any]:
    """Show a load balancer."""
    return _answer(request, service, project_id, number)


@operations.put("/{number}")
async def update(
    request: Request, service: Serving, author: Author, project_id: str, number: str, body: UpdateRequest
) -> dict[str, Any]:
    """Change a load balancer."""
    fields = body.loadbalancer.fields_given()
    await service.change(author, lambda have: edits.change(have, SECTION, number, fields))
    return _answer(request, service, project_id, number)


@operations.delete("/{number}", status_code=204)
async def delete(service: Serving, author: Author, project_id: str, number: str) -> None:
    """Delete a load balancer that has no listeners."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number))


@operations.delete("/{number}/force-elb", status_code=204)
async def delete_cascade(service: Serving, author: Author, project_id: str, number: str) -> None:
    """Delete a load balancer with its listeners, and the pools that nothing else uses."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number, cascade=True))
