"""`/ipbackend/checks`: whether the way to a network, or a member, is prepared. Ours."""

from typing import Any

from fastapi import Request

from ipbackend.api.base import OURS, Address, Body, Integer, Serving, answer, router
from ipbackend.errors import ConfigurationError
from ipbackend.model import EndpointKey, Protocol

operations = router(f"{OURS}/checks", "checks")
PORT_MAX = 65_535


class Member(Body):
    """An address and a port that serve, or are to serve."""

    address: Address
    protocol_port: Integer
    protocol: Protocol = Protocol.TCP


class MemberRequest(Body):
    """The envelope."""

    member: Member


@operations.post("/members")
async def member(request: Request, service: Serving, project_id: str, body: MemberRequest) -> dict[str, Any]:
    """Try a member on the data path, whether it is one already or not."""
    one = body.member
    if not 1 <= one.protocol_port <= PORT_MAX:
        raise ConfigurationError(f"protocol_port: {one.protocol_port} is out of range (write 1 to {PORT_MAX})")
    found = await service.examine(EndpointKey(one.address, one.protocol_port, one.protocol))
    return answer(request, findings=[finding._asdict() for finding in found])


@operations.post("/networks/{number}")
async def network(request: Request, service: Serving, project_id: str, number: str) -> dict[str, Any]:
    """Look at the way to a network; its members are asked one by one."""
    return answer(request, findings=[finding._asdict() for finding in await service.examine_network(number)])
