"""`/ipbackend/explain`: what the data plane would do with a packet, and why. Ours; it changes nothing."""

from typing import Annotated

from fastapi import Query

from ipbackend.api.base import OURS, Answer, Id, QueryFlag, RequestId, Serving, Shown, router
from ipbackend.explain import question
from ipbackend.model import Protocol

operations = router(OURS, "traffic")


class StepShown(Shown):
    """One thing that the program looks at, and what it finds."""

    step: str
    what: str


class CandidateShown(Shown):
    """A member in the order in which they are looked at: whether it takes the packet, or why not."""

    member: str
    takes: bool
    why: str


class OutcomeShown(Shown):
    """How it ends; from `source` on what it leaves as, and by which link. Null where it does not come to that."""

    verdict: str
    meaning: str
    member: str | None
    snat: str | None
    slot: int | None
    source: str | None
    destination: str | None
    interface: str | None
    mac: str | None
    vlan: int | None
    mtu: int | None


class Explanation(Shown):
    """More than one outcome is what the program leaves to chance."""

    steps: list[StepShown]
    candidates: list[CandidateShown]
    outcomes: list[OutcomeShown]


class ExplanationAnswer(Answer):
    """The envelope."""

    explanation: Explanation


@operations.get("/explain")
async def explain(
    service: Serving,
    request_id: RequestId,
    project_id: Id,
    source: str,
    destination: str,
    protocol: Protocol = Protocol.TCP,
    flags: str = "S",
    size: Annotated[int, Query(ge=0, le=65_535)] = 0,
    interface: str = "",
    ttl: Annotated[int, Query(ge=0, le=255)] = 64,
    dont_fragment: QueryFlag = False,
    icmp_error: QueryFlag = False,
) -> ExplanationAnswer:
    """Tell what would become of a packet from `ADDRESS:PORT` to `ADDRESS:PORT` that came in now.

    `size` is in bytes of IP, 0 for the bare headers. With `icmp_error` it is a router's error about this packet.
    """
    asked = question.Question(source, destination, protocol, flags, size, interface, ttl, dont_fragment, icmp_error)
    told = await service.look(lambda view: question.answer(view, asked))
    rows = {name: [one._asdict() for one in some] for name, some in told._asdict().items()}
    return ExplanationAnswer(explanation=Explanation.model_validate(rows), request_id=request_id)
