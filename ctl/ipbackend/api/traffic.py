"""`/ipbackend/connections`, `counters`, `members`, `snat-addresses`, `audit`: what passes, and how full it is.

All of it is read from the data plane itself, and changes nothing.
"""

from itertools import islice
from typing import Annotated

from fastapi import Query

from ipbackend import connections, verdicts
from ipbackend.api.base import OURS, Answer, AnyOf, Id, QueryFlag, RequestId, Serving, Shown, router
from ipbackend.datapath import audit
from ipbackend.live import Reach
from ipbackend.model import Member, Pool, Protocol
from ipbackend.peer import address, peer, peers
from ipbackend.view import View

operations = router(OURS, "traffic")
LIMIT_MAX = 100_000  # connections in one answer
ENDINGS = ("opened", "closed", "expired", "removed", "drained", "killed")  # opened = the others + active


class ConnectionShown(Shown):
    """One slot in use; each side is `address:port`; `age` and `idle` in seconds; without listener: it is gone."""

    client: str
    vip: str
    member: str
    snat: str
    protocol: Protocol
    state: str
    age: float
    idle: float
    listener_id: str | None


class ConnectionsAnswer(Answer):
    """The envelope; `more` says whether there are others."""

    connections: list[ConnectionShown]
    more: bool


class VerdictShown(Shown):
    """How a packet's journey can end, and how many ended so."""

    verdict: str
    packets: int
    meaning: str


class Totals(Shown):
    """received = passed + forwarded + rejected + dropped, but for packets that are on their way at this moment."""

    received: int
    passed: int
    forwarded: int
    rejected: int
    dropped: int


class CountersAnswer(Answer):
    """The envelope; since the data plane was loaded."""

    verdicts: list[VerdictShown]
    totals: Totals


class LoadShown(Shown):
    """How full a member is. What it carries is its endpoint's, so members of two pools show the same counts.

    `ceiling` connections may be open, `half_open_limit` of them in the handshake; `free_slots` hold none: more than
    the ceiling leaves, since ports rest. Null: it is not in the data plane yet.
    """

    id: str
    pool_id: str
    address: str
    protocol_port: int
    protocol: Protocol
    network_id: str
    weight: int
    state: Reach
    ceiling: int
    active: int | None
    half_open: int | None
    half_open_limit: int | None
    free_slots: int | None
    opened: int | None
    closed: int | None
    expired: int | None
    removed: int | None
    drained: int | None
    killed: int | None


class LoadsAnswer(Answer):
    """The envelope."""

    members: list[LoadShown]


class SnatAddressShown(Shown):
    """A source address towards members, and the open connections that it carries."""

    address: str
    active: int


class SnatAddressesAnswer(Answer):
    """The envelope."""

    snat_addresses: list[SnatAddressShown]


class AuditAnswer(Answer):
    """The envelope; nothing is wrong where there are no problems."""

    problems: list[str]


def _connection(one: connections.Connection) -> ConnectionShown:
    return ConnectionShown(
        client=one.client,
        vip=one.vip,
        member=one.member,
        snat=one.snat,
        protocol=Protocol(one.protocol),
        state=one.state,
        age=one.age,
        idle=one.idle,
        listener_id=one.listener.id if one.listener else None,
    )


def _load(view: View, pool: Pool, member: Member) -> LoadShown:
    found = view.endpoint(pool, member)
    carried: dict[str, int | None] = {}
    state: Reach = "not applied"
    if found:
        number, endpoint = found
        active = view.active(number)
        counts = view.total("endpoint_counts", number)
        carried = {name: counts[name] for name in ENDINGS}
        carried |= {"active": active, "half_open": view.half_open(number)}
        carried |= {"half_open_limit": endpoint.half_open_limit, "free_slots": endpoint.slots - active}
        state = "reachable" if endpoint.ceiling else "no next hop"
    names = ("active", "half_open", "half_open_limit", "free_slots", *ENDINGS)
    return LoadShown(
        id=member.id,
        pool_id=pool.id,
        address=str(member.address),
        protocol_port=member.port,
        protocol=pool.protocol,
        network_id=view.configuration.network_of(member.address).id,
        weight=member.weight,
        state=state,
        ceiling=member.max_connections,
        **{name: carried.get(name) for name in names},
    )


@operations.get("/connections")
async def list_connections(
    service: Serving,
    request_id: RequestId,
    project_id: Id,
    state: AnyOf,
    client: str = "",
    vip: str = "",
    port: Annotated[int | None, Query(ge=1, le=65_535)] = None,
    member: str = "",
    listener: str = "",
    older_than: Annotated[float, Query(ge=0)] = 0,
    resting: QueryFlag = False,
    limit: Annotated[int, Query(ge=0, le=LIMIT_MAX)] = 1000,
) -> ConnectionsAnswer:
    """List open connections: from clients (`ADDRESS[/LENGTH][:PORT]`), to a VIP, to a port of it,
    to a member (`ADDRESS[:PORT]`), by a listener (its id), in one of these states, opened so many seconds ago.

    With `resting` also closed ones whose slots still answer late packets.
    """
    wanted = connections.Wanted(
        connections.phases(state) or (connections.ALL if resting else connections.OPEN),
        peers(client) if client else None,
        address(vip) if vip else None,
        port,
        peer(member) if member else None,
        listener or None,
        older_than,
    )

    def read(view: View) -> tuple[list[ConnectionShown], bool]:
        found = connections.connections(view, wanted)
        rows = [_connection(one) for one in islice(found, limit)]
        return rows, next(found, None) is not None

    rows, more = await service.look(read)
    return ConnectionsAnswer(connections=rows, more=more, request_id=request_id)


@operations.get("/counters")
async def show_counters(service: Serving, request_id: RequestId, project_id: Id) -> CountersAnswer:
    """Count packets by how their journey ended."""
    packets = await service.look(lambda view: verdicts.counts(view.maps))
    rows = [
        VerdictShown(verdict=one.name, packets=packets[one], meaning=meaning)
        for one, meaning in verdicts.MEANINGS.items()
    ]
    return CountersAnswer(verdicts=rows, totals=Totals(**verdicts.totals(packets)), request_id=request_id)


@operations.get("/members")
async def list_loads(
    service: Serving,
    request_id: RequestId,
    project_id: Id,
    pool_id: AnyOf,
) -> LoadsAnswer:
    """Tell how full each member is: of all pools, or of some."""

    def read(view: View) -> list[LoadShown]:
        pools = [one for one in view.configuration.pools.values() if not pool_id or one.id in pool_id]
        return [_load(view, pool, member) for pool in pools for member in pool.members]

    return LoadsAnswer(members=await service.look(read), request_id=request_id)


@operations.get("/snat-addresses")
async def list_snat_addresses(service: Serving, request_id: RequestId, project_id: Id) -> SnatAddressesAnswer:
    """List the SNAT addresses, and how many connections each carries."""

    def read(view: View) -> list[SnatAddressShown]:
        gateway, carried = view.configuration.gateway, connections.open_by_snat(view)
        addresses = gateway.snat_addresses if gateway else ()
        return [SnatAddressShown(address=str(one), active=carried.get(one, 0)) for one in addresses]

    return SnatAddressesAnswer(snat_addresses=await service.look(read), request_id=request_id)


@operations.get("/audit")
async def show_audit(service: Serving, request_id: RequestId, project_id: Id) -> AuditAnswer:
    """Check that counts, queues and index agree with the slots.

    What differs is looked at several times: under traffic a connection may be between two books.
    """
    problems = await service.look(lambda view: audit.audit(view.maps))
    return AuditAnswer(problems=problems, request_id=request_id)
