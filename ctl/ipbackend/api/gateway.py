"""`/ipbackend/gateway` and `/ipbackend/status`: this machine, of which there is one, and how it is."""

from dataclasses import replace
from typing import Any

from fastapi import Request
from pydantic import Field

from ipbackend.api.base import OURS, Address, Author, Body, Cidr, Integer, Serving, Text, answer, router
from ipbackend.codec import to_plain
from ipbackend.configuration import Configuration
from ipbackend.errors import ConfigurationError, Kind, Problem
from ipbackend.model import AttachMode, Gateway

operations = router(OURS, "gateway")


class Settings(Body):
    """What the gateway is; of one that is there, what is not sent stays."""

    interfaces: list[Text] = Field(default_factory=list, max_length=64)
    snat_addresses: list[Address] = Field(default_factory=list, max_length=4)
    snat_interface: Text = ""
    max_connections: Integer = 1_000_000
    attach_mode: AttachMode = AttachMode.AUTO
    syn_sent_timeout: Integer = 5
    syn_received_timeout: Integer = 15
    closing_timeout: Integer = 15
    rest: Integer = 60
    half_open_percent: Integer = 10
    private_ranges: list[Cidr] = Field(default_factory=list, max_length=64)


class SettingsRequest(Body):
    """The envelope."""

    gateway: Settings


def _there(have: Configuration) -> Gateway:
    if have.gateway is None:
        raise ConfigurationError(Problem("gateway: there is none yet (set its interfaces and addresses)", Kind.MISSING))
    return have.gateway


@operations.get("/gateway")
async def show(request: Request, service: Serving, project_id: str) -> dict[str, Any]:
    """Show the gateway."""
    return answer(request, gateway=to_plain(_there(service.configuration)))


@operations.put("/gateway")
async def update(
    request: Request, service: Serving, author: Author, project_id: str, body: SettingsRequest
) -> dict[str, Any]:
    """Set up the gateway, or change it. SNAT addresses, size and mode change only while there are no members."""
    fields = body.gateway.fields_given()

    def edit(have: Configuration) -> Configuration:
        start = vars(have.gateway) if have.gateway else {"interfaces": (), "snat_addresses": ()}
        return replace(have, gateway=Gateway(**{**start, **fields}))

    await service.change(author, edit)
    return answer(request, gateway=to_plain(_there(service.configuration)))


@operations.delete("/gateway", status_code=204)
async def delete(service: Serving, author: Author, project_id: str) -> None:
    """Forward nothing any more; everything else must be deleted first."""

    def edit(have: Configuration) -> Configuration:
        _there(have)
        return replace(have, gateway=None)

    await service.change(author, edit)


@operations.get("/status")
async def status(request: Request, service: Serving, project_id: str) -> dict[str, Any]:
    """Whether everything is as wanted."""
    have = service.configuration
    counts = {section: len(resources) for section, resources in have.sections()}
    counts["members"] = sum(len(pool.members) for pool in have.pools.values())
    return answer(
        request,
        status={
            "revision": service.revision,
            "forwarding": service.maps is not None,
            "problem": service.problem or None,
            "drift": service.drift,
            "resources": counts,
            "endpoints": len(have.endpoints),
        },
    )
