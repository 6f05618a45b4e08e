"""`/ipbackend/drains` and `connections/kill`: what ends connections that others would go on with. Ours."""

from typing import Annotated, Any, Self

from fastapi import Query
from pydantic import Field, model_validator

from ipbackend import edits
from ipbackend.api.base import OURS, Answer, Author, Body, Flag, Id, RequestId, Serving, Shown, Text, router
from ipbackend.connections import Target, Wanted, targets
from ipbackend.drains import Claim, Drains, Reason
from ipbackend.errors import NotRunningError
from ipbackend.model import EndpointKey, Protocol
from ipbackend.peer import peer, peers
from ipbackend.view import Draining, View

operations = router(OURS, "endings")
DELAY_MAX = 4000  # seconds, as of a pool's connection_drain


class NewDrain(Body):
    """A member that is to get no new connections, and how long it keeps those it has: else as its pool says.

    0 cuts them now. Where neither says how long, they stay until they end.
    """

    pool_id: Text
    member_id: Text
    delay: Annotated[int, Field(strict=True, ge=0, le=DELAY_MAX)] | None = None


class NewDrainBody(Body):
    """The envelope."""

    drain: NewDrain


class ShareShown(Shown):
    """Connections by the listener that brought them; null: it is gone."""

    listener_id: str | None
    connections: int


class DrainShown(Shown):
    """A member that gets no new connections, and those that it still has.

    `reason` is weight (it is 0), removed (it is in the pool no more) or down. At `until`, in seconds since 1970, after
    `seconds_left`, they are cut; null: they stay until they end.
    """

    pool_id: str
    member_id: str
    address: str
    protocol_port: int
    protocol: Protocol
    reason: Reason
    until: int | None
    seconds_left: float | None
    connections: int
    listeners: list[ShareShown]


class DrainAnswer(Answer):
    """The envelope."""

    drain: DrainShown


class DrainsAnswer(Answer):
    """The envelope of many."""

    drains: list[DrainShown]


class Kill(Body):
    """Which connections: of clients (`ADDRESS[/LENGTH][:PORT]`), to a member (`ADDRESS[:PORT]`), by a listener.

    All that are said must hold. With `dry_run` they are only counted.
    """

    client: Text = ""
    member: Text = ""
    listener_id: Text = ""
    dry_run: Flag = False

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not (self.client or self.member or self.listener_id):
            raise ValueError("must say which: a client, a member or a listener_id")
        return self


class KillBody(Body):
    """The envelope."""

    kill: Kill


class Killed(Shown):
    """How many connections ended, or would."""

    connections: int
    dry_run: bool


class KillAnswer(Answer):
    """The envelope."""

    kill: Killed


def _shown(one: Draining, drains: Drains) -> DrainShown:
    drain = one.drain
    return DrainShown(
        pool_id=drain.pool,
        member_id=drain.member,
        address=str(drain.address),
        protocol_port=drain.port,
        protocol=drain.protocol,
        reason=drain.reason,
        until=drain.until if one.bounded else None,
        seconds_left=round(drains.left(drain), 1) if one.bounded else None,
        connections=one.connections,
        listeners=[ShareShown(listener_id=number, connections=count) for number, count in one.listeners.items()],
    )


@operations.post("/drains", status_code=201)
async def create_drain(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, body: NewDrainBody
) -> DrainAnswer:
    """Have a member get no new connections: its weight becomes 0. It is called off by giving it a weight again."""
    if not service.forwarding:
        raise NotRunningError("gateway: nothing is loaded (set its interfaces and SNAT addresses)")
    asked = body.drain
    pool = edits.find(service.configuration, "pools", asked.pool_id)
    member = edits.find_member(pool, asked.member_id)
    claim = Claim(pool.id, EndpointKey(member.address, member.port, pool.protocol))
    delays = {} if asked.delay is None else {claim: asked.delay}
    fields: dict[str, Any] = {member.id: {"weight": 0}}
    await service.change(author, lambda have: edits.change_members(have, pool.id, fields), delays=delays)

    def read(view: View) -> DrainShown:
        return _shown(view.draining_member(claim, member.id), service.drains)

    return DrainAnswer(drain=await service.look(read), request_id=request_id)


@operations.get("/drains")
async def list_drains(
    service: Serving,
    request_id: RequestId,
    project_id: Id,
    pool_id: Annotated[str, Query()] = "",
    member_id: Annotated[str, Query()] = "",
) -> DrainsAnswer:
    """List members that get no new connections and still have some, those that were removed included."""

    def read(view: View) -> list[DrainShown]:
        return [
            _shown(one, service.drains)
            for one in view.draining()
            if pool_id in ("", one.drain.pool) and member_id in ("", one.drain.member)
        ]

    try:
        return DrainsAnswer(drains=await service.look(read), request_id=request_id)
    except NotRunningError:
        return DrainsAnswer(drains=[], request_id=request_id)


@operations.post("/connections/kill")
async def kill_connections(service: Serving, request_id: RequestId, project_id: Id, body: KillBody) -> KillAnswer:
    """End open connections: both ends of a TCP connection get a RST."""
    asked = body.kill
    wanted = Wanted(
        client=peers(asked.client) if asked.client else None,
        member=peer(asked.member) if asked.member else None,
        listener=asked.listener_id or None,
    )

    def choose(view: View) -> list[Target]:
        return list(targets(view, wanted))

    count = len(await service.look(choose)) if asked.dry_run else await service.kill(choose)
    return KillAnswer(kill=Killed(connections=count, dry_run=asked.dry_run), request_id=request_id)
