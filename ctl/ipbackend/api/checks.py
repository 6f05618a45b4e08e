"""`/ipbackend/checks`: whether the way to a network, or a member, is prepared. Ours."""

from collections.abc import Iterable
from typing import Annotated

from ipbackend.api.base import OURS, Address, Answer, Body, Id, RequestId, Serving, Shown, number, router
from ipbackend.finding import Finding
from ipbackend.model import EndpointKey, Member, Protocol

operations = router(f"{OURS}/checks", "checks")


class CheckedMember(Body):
    """An address and a port that serve, or are to serve."""

    address: Address
    protocol_port: Annotated[int, number(Member, "port")]
    protocol: Protocol = Protocol.TCP


class CheckedMemberBody(Body):
    """The envelope."""

    member: CheckedMember


class FindingShown(Shown):
    """What a step found: good, bad, or null where it could not tell; and what to do about it."""

    step: str
    good: bool | None
    what: str
    remedy: str


class FindingsAnswer(Answer):
    """All steps that were taken."""

    findings: list[FindingShown]


def _answer(findings: Iterable[Finding], request_id: str) -> FindingsAnswer:
    return FindingsAnswer(findings=[FindingShown(**one._asdict()) for one in findings], request_id=request_id)


@operations.post("/members")
async def check_member(
    service: Serving, request_id: RequestId, project_id: Id, body: CheckedMemberBody
) -> FindingsAnswer:
    """Try a member on the data path, whether it is one already or not."""
    one = Member(body.member.address, body.member.protocol_port)
    findings = await service.examine(EndpointKey(one.address, one.port, body.member.protocol))
    return _answer(findings, request_id)


@operations.post("/networks/{network}")
async def check_network(service: Serving, request_id: RequestId, project_id: Id, network: Id) -> FindingsAnswer:
    """Look at the way to a network; its members are asked one by one."""
    return _answer(await service.examine_network(network), request_id)
