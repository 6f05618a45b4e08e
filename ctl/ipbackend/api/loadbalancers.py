"""`/elb/loadbalancers`: who owns a VIP."""

from ipaddress import IPv4Address
from typing import ClassVar, Literal
from uuid import uuid4

from fastapi import Request
from pydantic import Field

from ipbackend import edits
from ipbackend.api.base import (
    ELB,
    Address,
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
from ipbackend.api.lists import Listing, Rows
from ipbackend.api.relations import Relations
from ipbackend.api.service import Service
from ipbackend.api.zones import ZONE
from ipbackend.configuration import Configuration
from ipbackend.model import LoadBalancer

operations = router(f"{ELB}/loadbalancers", "load balancers")
SECTION = "load_balancers"
NAMES = {"vip_address": "vip"}


class NewLoadBalancer(Body):
    """What a load balancer is made of.

    Where it is in a cloud (`vpc_id`, `vip_subnet_cidr_id`, `availability_zone_list`) clients have to say; here there
    is one place, so it is taken and not kept. Other fields of the published API can only have the value they have here.
    """

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(
        (
            *("project_id", "vpc_id", "vip_subnet_cidr_id", "availability_zone_list"),
            *("admin_state_up", "provider", "guaranteed", "protection_status"),
        )
    )

    name: Text = ""
    description: Text = ""
    vip_address: Address
    interface: Text | None = None  # ours: where the VIP lives; the gateway's first unless named
    ip_target_enable: Flag = False
    deletion_protection_enable: Flag = False
    project_id: Text | None = None
    vpc_id: Text | None = None
    vip_subnet_cidr_id: Text | None = None
    availability_zone_list: list[Text] = Field(default_factory=list, max_length=64)
    admin_state_up: Literal[True] = True
    provider: Literal["vlb"] = "vlb"
    guaranteed: Literal[True] = True
    protection_status: Literal["nonProtection"] = "nonProtection"


class LoadBalancerChanges(Changes):
    """What may change later."""

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(("vip_subnet_cidr_id", "admin_state_up", "protection_status"))

    name: Text = ""
    description: Text = ""
    vip_address: Address = Field(default_factory=lambda: IPv4Address(0))  # never looked at
    ip_target_enable: Flag = False
    deletion_protection_enable: Flag = False
    vip_subnet_cidr_id: Text | None = None
    admin_state_up: Literal[True] = True
    protection_status: Literal["nonProtection"] = "nonProtection"


class LoadBalancerShown(Stamped):
    """As published; `interface` is ours."""

    name: str
    description: str
    project_id: str
    provisioning_status: Literal["ACTIVE"] = "ACTIVE"
    operating_status: Literal["ONLINE"] = "ONLINE"
    admin_state_up: Literal[True] = True
    provider: Literal["vlb"] = "vlb"
    guaranteed: Literal[True] = True
    availability_zone_list: list[str]
    vip_address: str
    interface: str
    ip_target_enable: bool
    deletion_protection_enable: bool
    protection_status: Literal["nonProtection"] = "nonProtection"
    listeners: list[Ref]
    pools: list[Ref]


class NewLoadBalancerBody(Body):
    """The envelope."""

    loadbalancer: NewLoadBalancer


class LoadBalancerChangesBody(Body):
    """The envelope."""

    loadbalancer: LoadBalancerChanges


class Cascade(Body):
    """Without `unbounded_pool` pools stay, and lose only their listeners. There are no public addresses to delete."""

    unbounded_pool: Flag = True
    public_ip: Literal[False] = False


class CascadeBody(Body):
    """The envelope."""

    loadbalancer: Cascade = Field(default_factory=Cascade)


class LoadBalancerAnswer(Answer):
    """The envelope."""

    loadbalancer: LoadBalancerShown


class LoadBalancersAnswer(Listing):
    """The envelope of many."""

    loadbalancers: list[LoadBalancerShown]


ROWS = Rows(LoadBalancerShown, "member_address")


def shown(service: Service, relations: Relations, one: LoadBalancer, project_id: str) -> LoadBalancerShown:
    """As published."""
    return LoadBalancerShown(
        id=one.id,
        name=one.name,
        description=one.description,
        project_id=project_id,
        availability_zone_list=[ZONE],
        vip_address=str(one.vip),
        interface=one.interface,
        ip_target_enable=one.ip_target_enable,
        deletion_protection_enable=one.deletion_protection_enable,
        listeners=refs(listener.id for listener in relations.listeners_of_balancer.get(one.id, ())),
        pools=refs(pool.id for pool in relations.pools_of_balancer.get(one.id, ())),
        **stamps(service, one.id),
    )


def _answer(service: Service, request_id: str, project_id: str, number: str) -> LoadBalancerAnswer:
    have = service.configuration
    one = shown(service, Relations(have), edits.find(have, SECTION, number), project_id)
    return LoadBalancerAnswer(loadbalancer=one, request_id=request_id)


@operations.post("", status_code=201)
async def create_load_balancer(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, body: NewLoadBalancerBody
) -> LoadBalancerAnswer:
    """Create a load balancer."""
    number, fields = str(uuid4()), body.loadbalancer.fields_given()

    def edit(have: Configuration) -> Configuration:
        default = have.gateway.interfaces[0] if have.gateway else ""
        given = {"name": "", **fields, "interface": fields.get("interface") or default}
        return edits.put(have, SECTION, LoadBalancer(**given, id=number))

    await service.change(author, edit)
    return _answer(service, request_id, project_id, number)


@operations.get("", openapi_extra=ROWS.openapi)
async def list_load_balancers(
    request: Request, service: Serving, request_id: RequestId, project_id: Id
) -> LoadBalancersAnswer:
    """List load balancers."""
    have = service.configuration
    relations = Relations(have)
    rows = (shown(service, relations, one, project_id) for one in have.load_balancers.values())
    members = {
        number: relations.addresses(relations.pools_of_balancer.get(number, ())) for number in have.load_balancers
    }
    page, info = ROWS.page(request, rows, {"member_address": members})
    return LoadBalancersAnswer(loadbalancers=page, page_info=info, request_id=request_id)


@operations.get("/{number}")
async def show_load_balancer(service: Serving, request_id: RequestId, project_id: Id, number: Id) -> LoadBalancerAnswer:
    """Show a load balancer."""
    return _answer(service, request_id, project_id, number)


@operations.put("/{number}")
async def update_load_balancer(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, number: Id, body: LoadBalancerChangesBody
) -> LoadBalancerAnswer:
    """Change a load balancer."""
    fields = body.loadbalancer.fields_given()
    await service.change(author, lambda have: edits.change(have, SECTION, number, fields))
    return _answer(service, request_id, project_id, number)


@operations.delete("/{number}", status_code=204)
async def delete_load_balancer(service: Serving, author: Author, project_id: Id, number: Id) -> None:
    """Delete a load balancer that has no listeners."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number))


@operations.delete("/{number}/force-elb", status_code=204)
async def delete_load_balancer_force(service: Serving, author: Author, project_id: Id, number: Id) -> None:
    """Delete a load balancer with its listeners, and the pools that nothing else uses."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number, cascade=True))


@operations.post("/{number}/delete-cascade", status_code=204)
async def delete_load_balancer_cascade(
    service: Serving, author: Author, project_id: Id, number: Id, body: CascadeBody
) -> None:
    """The same; or with its listeners only, and pools stay."""
    keep = not body.loadbalancer.unbounded_pool
    await service.change(author, lambda have: edits.delete(have, SECTION, number, cascade=True, keep_pools=keep))
