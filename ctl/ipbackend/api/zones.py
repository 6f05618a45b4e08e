"""`/versions`, `/elb/availability-zones`, `/elb/flavors`: what there is to choose from, which is one of each."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from ipbackend import edits
from ipbackend.api.base import ELB, Answer, Id, Ref, RequestId, Serving, Shown
from ipbackend.api.lists import Listing, Rows
from ipbackend.api.service import Service

operations = APIRouter(tags=["what there is"])
ZONE = "gateway"  # the only availability zone, and the only flavor: this machine


class Version(Shown):
    """Of the API."""

    id: Literal["v3"] = "v3"
    status: Literal["CURRENT"] = "CURRENT"


class VersionsAnswer(BaseModel):
    """The envelope."""

    versions: list[Version]


class Zone(Shown):
    """Where a load balancer can be."""

    code: str
    state: Literal["ACTIVE"] = "ACTIVE"
    protocol: list[str]


class ZonesAnswer(Answer):
    """The envelope: a list of sets of zones that can be combined."""

    availability_zones: list[list[Zone]]


class FlavorInfo(Shown):
    """What it can hold."""

    connection: int


class FlavorShown(Ref):
    """What the gateway was sized for."""

    name: str
    type: Literal["L4"] = "L4"
    shared: Literal[True] = True
    flavor_sold_out: Literal[False] = False
    project_id: str
    info: FlavorInfo


class FlavorAnswer(Answer):
    """The envelope."""

    flavor: FlavorShown


class FlavorsAnswer(Listing):
    """The envelope of many."""

    flavors: list[FlavorShown]


ROWS = Rows(FlavorShown)


def _flavors(service: Service, project_id: str) -> dict[str, FlavorShown]:
    gateway = service.configuration.gateway
    if gateway is None:
        return {}
    info = FlavorInfo(connection=gateway.max_connections)
    return {ZONE: FlavorShown(id=ZONE, name=ZONE, project_id=project_id, info=info)}


@operations.get("/versions")
async def list_api_versions() -> VersionsAnswer:
    """Tell the versions of the API."""
    return VersionsAnswer(versions=[Version()])


@operations.get(f"{ELB}/availability-zones")
async def list_availability_zones(request_id: RequestId, project_id: Id) -> ZonesAnswer:
    """List availability zones."""
    return ZonesAnswer(availability_zones=[[Zone(code=ZONE, protocol=["L4"])]], request_id=request_id)


@operations.get(f"{ELB}/flavors", openapi_extra=ROWS.openapi)
async def list_flavors(request: Request, service: Serving, request_id: RequestId, project_id: Id) -> FlavorsAnswer:
    """List flavors."""
    page, info = ROWS.page(request, _flavors(service, project_id).values())
    return FlavorsAnswer(flavors=page, page_info=info, request_id=request_id)


@operations.get(f"{ELB}/flavors/{{number}}")
async def show_flavor(service: Serving, request_id: RequestId, project_id: Id, number: Id) -> FlavorAnswer:
    """Show a flavor."""
    found = _flavors(service, project_id)
    if number not in found:
        raise edits.missing("flavors", number)
    return FlavorAnswer(flavor=found[number], request_id=request_id)
