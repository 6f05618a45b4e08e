"""`/ipbackend/gateway` and `/ipbackend/status`: this machine, of which there is one, and how it is."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field

from ipbackend.api.base import (
    OURS,
    Address,
    Answer,
    Author,
    Body,
    Changes,
    Cidr,
    Flag,
    Id,
    RequestId,
    Serving,
    Shown,
    Text,
    number,
    router,
)
from ipbackend.api.service import Service
from ipbackend.capturing import Capturing
from ipbackend.codec import to_plain
from ipbackend.configuration import Configuration
from ipbackend.errors import ConfigurationError, Kind, Problem
from ipbackend.model import AttachMode, FlowLog, Gateway

operations = router(OURS, "gateway")
MaxConnections = Annotated[int, number(Gateway, "max_connections")]
Seconds = Annotated[int, number(Gateway, "rest")]
Days = Annotated[int, number(Gateway, "flow_log_days")]
Megabytes = Annotated[int, number(Gateway, "flow_log_megabytes")]
HalfOpenPercent = Annotated[int, number(Gateway, "half_open_percent")]
IcmpErrorRate = Annotated[int, number(Gateway, "icmp_error_rate")]


class Settings(Changes):
    """What the gateway is; of one that is there, what is not sent stays."""

    interfaces: list[Text] = Field(default_factory=list, max_length=64)
    snat_addresses: list[Address] = Field(default_factory=list, max_length=4)
    snat_interface: Text = ""
    health_address: Address | None = None
    max_connections: MaxConnections = 1_000_000
    attach_mode: AttachMode = AttachMode.AUTO
    syn_sent_timeout: Seconds = 5
    syn_received_timeout: Seconds = 15
    closing_timeout: Seconds = 15
    rest: Seconds = 60
    half_open_percent: HalfOpenPercent = 10
    icmp_error_rate: IcmpErrorRate = 1_000
    private_ranges: list[Cidr] = Field(default_factory=list, max_length=64)
    flow_log: FlowLog = FlowLog.OFF
    flow_log_counts: Flag = True
    flow_log_days: Days = 30
    flow_log_megabytes: Megabytes = 10_000


class SettingsBody(Body):
    """The envelope."""

    gateway: Settings


class GatewayShown(Shown):
    """All of it."""

    interfaces: list[str]
    snat_addresses: list[str]
    snat_interface: str
    health_address: str | None
    max_connections: int
    attach_mode: AttachMode
    syn_sent_timeout: int
    syn_received_timeout: int
    closing_timeout: int
    rest: int
    half_open_percent: int
    icmp_error_rate: int
    private_ranges: list[str]
    flow_log: FlowLog
    flow_log_counts: bool
    flow_log_days: int
    flow_log_megabytes: int


class GatewayAnswer(Answer):
    """The envelope."""

    gateway: GatewayShown


class CaptureShown(Shown):
    """A capture that runs: for whom, since when, and how many packets it has handed out or left out so far."""

    author: str
    began_at: str
    packets: int
    over_rate: int
    unread: int


AUDIT_MAX = 100  # lines: one for each slot may be wrong


class StatusShown(Shown):
    """How it is: `problem` says why not all is as wanted, or not written down, `drift` what others changed.

    `unbalanced` are counters that must say the same and do not, `audit` what does not agree with the slots: both are
    faults of the program.
    """

    revision: int
    forwarding: bool
    problem: str | None
    drift: list[str]
    unbalanced: list[str]
    audit: list[str]
    resources: dict[str, int]
    endpoints: int
    capture: CaptureShown | None


class StatusAnswer(Answer):
    """The envelope."""

    status: StatusShown


def _answer(service: Service, request_id: str) -> GatewayAnswer:
    one = GatewayShown(**to_plain(_there(service.configuration)))
    return GatewayAnswer(gateway=one, request_id=request_id)


def _there(have: Configuration) -> Gateway:
    if have.gateway is None:
        raise ConfigurationError(Problem("gateway: there is none yet (set its interfaces and addresses)", Kind.MISSING))
    return have.gateway


def _capture(one: Capturing) -> CaptureShown:
    return CaptureShown(
        author=one.author,
        began_at=datetime.fromtimestamp(one.began, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        packets=one.packets,
        over_rate=one.source.over_rate,
        unread=one.source.unread,
    )


@operations.get("/gateway")
async def show_gateway(service: Serving, request_id: RequestId, project_id: Id) -> GatewayAnswer:
    """Show the gateway."""
    return _answer(service, request_id)


@operations.put("/gateway")
async def update_gateway(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, body: SettingsBody
) -> GatewayAnswer:
    """Set up the gateway, or change it. SNAT addresses, size and mode change only while there are no members."""
    fields = body.gateway.fields_given()

    def edit(have: Configuration) -> Configuration:
        start = vars(have.gateway) if have.gateway else {"interfaces": (), "snat_addresses": ()}
        return replace(have, gateway=Gateway(**{**start, **fields}))

    await service.change(author, edit)
    return _answer(service, request_id)


@operations.delete("/gateway", status_code=204)
async def delete_gateway(service: Serving, author: Author, project_id: Id) -> None:
    """Forward nothing any more; everything else must be deleted first."""

    def edit(have: Configuration) -> Configuration:
        _there(have)
        return replace(have, gateway=None)

    await service.change(author, edit)


@operations.get("/status")
async def show_status(service: Serving, request_id: RequestId, project_id: Id) -> StatusAnswer:
    """Whether everything is as wanted."""
    have = service.configuration
    counts = {section: len(resources) for section, resources in have.sections()}
    counts["members"] = sum(len(pool.members) for pool in have.pools.values())
    status = StatusShown(
        revision=service.revision,
        forwarding=service.forwarding,
        problem="; ".join(filter(None, (service.problem, service.flow_log.problem))) or None,
        drift=service.drift,
        unbalanced=service.unbalanced,
        audit=service.audited[:AUDIT_MAX],
        resources=counts,
        endpoints=len(have.endpoints),
        capture=_capture(service.capturing) if service.capturing else None,
    )
    return StatusAnswer(status=status, request_id=request_id)
