"""How a member's health is told, by itself and in what is made of members. It knows no requests."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

from ipbackend.api.base import Shown
from ipbackend.api.relations import Relations
from ipbackend.api.service import Service
from ipbackend.health.states import Code, Reason, Status
from ipbackend.model import Member, Pool

OperatingStatus = Literal["ONLINE", "OFFLINE", "INITIAL", "NO_MONITOR"]
WholeStatus = Literal["ONLINE", "DEGRADED"]


class ReasonShown(Shown):
    """Why the last check of a member that is OFFLINE failed, as published."""

    reason_code: Code
    expected_response: str
    healthcheck_response: str


class ListenerStatus(Shown):
    """A member's state towards one of its pool's listeners: the same for all, since the pool's monitor asks."""

    listener_id: str
    operating_status: OperatingStatus
    reason: ReasonShown | None
    created_at: str
    updated_at: str


def status_of(service: Service, one: Member) -> OperatingStatus:
    """Of a member."""
    health = service.health.get(one.id)
    return health.status.value if health else "NO_MONITOR"


def reason_of(service: Service, one: Member) -> ReasonShown | None:
    """Why it is OFFLINE, if it is."""
    health = service.health.get(one.id)
    if health is None or health.status is not Status.OFFLINE or health.reason is None:
        return None
    return _reason(health.reason)


def by_listener(service: Service, relations: Relations, pool: Pool, one: Member) -> list[ListenerStatus]:
    """Towards each listener of its pool; `updated_at` is when the state last changed."""
    health, stamp = service.health.get(one.id), service.stamps[one.id]
    since = _time(health.since) if health else stamp.updated_at
    status, reason = status_of(service, one), reason_of(service, one)
    return [
        ListenerStatus(
            listener_id=listener.id,
            operating_status=status,
            reason=reason,
            created_at=stamp.created_at,
            updated_at=since,
        )
        for listener in relations.listeners_of_pool.get(pool.id, ())
    ]


def whole(service: Service, pools: Iterable[Pool]) -> WholeStatus:
    """Of what hangs on these pools: DEGRADED where a member of them is OFFLINE."""
    members = (member for pool in pools for member in pool.members)
    return "DEGRADED" if any(status_of(service, one) == "OFFLINE" for one in members) else "ONLINE"


def _time(since: float) -> str:
    """A moment of the monotonic clock, as published: a clock that was set meanwhile makes it look moved."""
    return datetime.fromtimestamp(time.time() - time.monotonic() + since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _reason(reason: Reason) -> ReasonShown:
    return ReasonShown(reason_code=reason.code, expected_response=reason.expected, healthcheck_response=reason.received)
