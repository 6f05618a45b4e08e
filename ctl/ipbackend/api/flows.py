"""`/ipbackend/flows`: what the flow log has of connections, open ones included, and how the log itself is."""

from typing import Annotated

from fastapi import Query

from ipbackend.abi import EventKind
from ipbackend.api.base import OURS, Answer, Id, RequestId, Serving, Shown, router
from ipbackend.errors import ConfigurationError, NotRunningError
from ipbackend.flows import event as events
from ipbackend.flows.event import Event, ip_raw, port_raw, protocol_raw, time_text
from ipbackend.flows.keeper import Standing
from ipbackend.flows.times import interval
from ipbackend.flows.who import End, Tenant, standing, who
from ipbackend.model import FlowLog, Protocol
from ipbackend.peer import Peer, peer

operations = router(OURS, "flows")
LIMIT_MAX = 100_000  # events in one answer
EVER = 1 << 62  # ns: later than any event
When = Annotated[str, Query(max_length=40)]


class FlowShown(Shown):
    """An event; null is what does not apply, or was not counted. Of lost and withheld ones, `events` says how many."""

    time: str
    event: str
    reason: str | None
    protocol: Protocol | None
    client: str | None
    vip: str | None
    snat: str | None
    member: str | None
    phase: str | None
    opened: str | None
    seconds: float | None
    request_packets: int | None
    request_bytes: int | None
    reply_packets: int | None
    reply_bytes: int | None
    listener: int | None
    endpoint: int | None
    slot: int | None
    events: int | None


class FlowsAnswer(Answer):
    """The envelope."""

    flows: list[FlowShown]


class TenantShown(Shown):
    """A connection that had a SNAT address and port: `end` is closed, open, or unknown where its end was lost.

    `seconds`, packets and bytes are up to its end, or up to now; null is not counted, or not known.
    """

    client: str
    vip: str
    snat: str
    member: str
    protocol: Protocol
    opened: str
    closed: str | None
    end: End
    reason: str | None
    request_packets: int | None
    request_bytes: int | None
    reply_packets: int | None
    reply_bytes: int | None


class WhoAnswer(Answer):
    """The envelope. `log_begins` is when the first event happened that is still kept, or null: there is no log."""

    tenants: list[TenantShown]
    log_begins: str | None


class FlowLogShown(Shown):
    """How the log is; `kept` and `begins` are of the store.

    `written` counts since the daemon started, `lost` and `withheld` since the data plane was loaded.
    """

    flow_log: FlowLog
    problem: str | None
    written: int
    waiting: int
    lost: int
    withheld: int
    kept: int
    kept_bytes: int
    begins: str | None


class FlowLogAnswer(Answer):
    """The envelope."""

    flow_log: FlowLogShown


def _tenant(one: Tenant) -> TenantShown:
    event = events.shown(one.event)
    known = one.end is not End.UNKNOWN
    return TenantShown(
        client=event.client or "",
        vip=event.vip or "",
        snat=event.snat or "",
        member=event.member or "",
        protocol=Protocol(event.protocol or ""),
        opened=event.opened or "",
        closed=event.time if one.end is End.CLOSED else None,
        end=one.end,
        reason=event.reason,
        request_packets=event.request_packets if known else None,
        request_bytes=event.request_bytes if known else None,
        reply_packets=event.reply_packets if known else None,
        reply_bytes=event.reply_bytes if known else None,
    )


def _side(name: str, text: str) -> dict[str, int]:
    """A filter of one end of a connection."""
    if not text:
        return {}
    end = peer(text)
    return {name: ip_raw(end.address)} | ({f"{name}_port": port_raw(end.port)} if end.port else {})


def _snat(text: str) -> Peer:
    end = peer(text)
    if end.port is None:
        raise ConfigurationError(f"snat: {text!r} has no port (such as 10.0.0.101:40123)")
    return end


@operations.get("/flows")
async def list_flows(
    service: Serving,
    request_id: RequestId,
    project_id: Id,
    client: str = "",
    member: str = "",
    vip: str = "",
    snat: str = "",
    event: str = "",
    since: When = "",
    until: When = "",
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = 1000,
) -> FlowsAnswer:
    """List events, the newest first: each end is `ADDRESS` or `ADDRESS:PORT`, `event` its kind."""
    where: dict[str, int] = {}
    for name, text in (("client", client), ("member", member), ("vip", vip), ("snat", snat)):
        where |= _side(name, text)
    if event:
        kinds = {kind.name.lower(): int(kind) for kind in EventKind}
        if event not in kinds:
            raise ConfigurationError(f"event: {event!r} is none of {', '.join(kinds)}")
        where["kind"] = kinds[event]
    begin, end = interval(since)[0] if since else 0, interval(until)[0] if until else EVER
    found = await service.recall(lambda log: log.newest(where, begin, end, limit))
    kind = service.configuration.gateway.flow_log if service.configuration.gateway else FlowLog.OFF
    if not found and kind is not FlowLog.STORE and await service.recall(lambda log: log.begins()) is None:
        raise ConfigurationError(f"gateway.flow_log: it is {kind}, so nothing was kept to be listed (set it to store)")
    return FlowsAnswer(flows=[FlowShown(**events.shown(one)._asdict()) for one in found], request_id=request_id)


@operations.get("/flows/who")
async def show_who(
    service: Serving,
    request_id: RequestId,
    project_id: Id,
    snat: str,
    at: When = "",
    member: str = "",
    protocol: Protocol | None = None,
) -> WhoAnswer:
    """Who stood behind a SNAT address and port at some time, which is a minute or as exact as it is written.

    Of connections that are still open the slots tell, whether or not there is a log.
    """
    end = _snat(snat)
    address, port = ip_raw(end.address), end.port or 0
    since, until = interval(at or "0 s")
    log: list[Event] = await service.recall(lambda log: log.behind(address, port_raw(port), until))
    begins = await service.recall(lambda log: log.begins())
    try:
        live = await service.look(lambda view: list(standing(view, address, port)))
    except NotRunningError:
        live = []
    wanted = _side("member", member) | ({"protocol": protocol_raw(protocol)} if protocol else {})
    tenants = [
        _tenant(one)
        for one in who(log, live, since, until)
        if all(getattr(one.event, name) == value for name, value in wanted.items())
    ]
    return WhoAnswer(tenants=tenants, log_begins=None if begins is None else time_text(begins), request_id=request_id)


@operations.get("/flow-log")
async def show_flow_log(service: Serving, request_id: RequestId, project_id: Id) -> FlowLogAnswer:
    """Whether connections are written down, how many, and what of them was lost."""
    stands: Standing = service.flow_log
    kept, size, begins = await service.recall(lambda log: (*log.size(), log.begins()))
    shown = FlowLogShown(
        flow_log=stands.kind,
        problem=stands.problem or None,
        written=stands.written,
        waiting=stands.waiting,
        lost=stands.lost,
        withheld=stands.withheld,
        kept=kept,
        kept_bytes=size,
        begins=None if begins is None else time_text(begins),
    )
    return FlowLogAnswer(flow_log=shown, request_id=request_id)
