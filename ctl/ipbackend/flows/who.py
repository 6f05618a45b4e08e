"""Who stood behind a SNAT address and port, from what the log has and from the slots. It reads neither by itself."""

import time
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any, NamedTuple

from ipbackend.abi import EventKind, Phase
from ipbackend.flows.event import GENERATION_SHIFT, NANO, Event, ip_raw, port_raw
from ipbackend.plan import Endpoint
from ipbackend.sizing import FIRST_SNAT_PORT
from ipbackend.view import View

_NEAR = NANO  # two connections of one slot and one generation that began as near to each other are one


class End(StrEnum):
    """What is known of a connection's end."""

    CLOSED = "closed"
    OPEN = "open"
    UNKNOWN = "unknown"  # its end was lost, or the data plane was unloaded under it


class Tenant(NamedTuple):
    """A connection, and the last that is known of it."""

    event: Event
    end: End


def who(log: Iterable[Event], live: Iterable[Event], since: int, until: int) -> list[Tenant]:
    """The connections that were open between `since` and `until`, ns, the last opened first.

    `log` is all that is kept of connections with one SNAT address and port, `live` those that are open now.
    """
    events = [event for event in log if event.kind in (EventKind.OPENED, EventKind.CLOSED)]
    closed = _by_identity(event for event in events if event.kind == EventKind.CLOSED)
    standing = list(live)
    running = _by_identity(standing)
    found = [Tenant(one, End.CLOSED) for some in closed.values() for one in some if one.at >= since]
    found += [Tenant(one, End.OPEN) for one in standing]
    found += [
        Tenant(one, End.UNKNOWN)
        for one in events
        if one.kind == EventKind.OPENED
        and not _has(closed, one)
        and not _has(running, one)
        and not any(_came_after(other, one) and other.opened < since for other in (*events, *standing))
    ]
    tenants = (tenant for tenant in found if tenant.event.opened < until)
    return sorted(tenants, key=lambda tenant: tenant.event.opened, reverse=True)


def standing(view: View, snat: int, port: int) -> Iterator[Event]:
    """The open connections with this SNAT address (raw) and port, one slot of each endpoint, as if just told of."""
    for number, endpoint in view.entries.endpoints.items():
        addresses = [ip_raw(address) for address in endpoint.snat]
        if snat not in addresses:
            continue
        slot = (port - FIRST_SNAT_PORT) * len(addresses) + addresses.index(snat)
        if not 0 <= slot < endpoint.slots:
            continue
        memory = view.maps.of_endpoint("conntrack", number)
        row = view.maps["conntrack"].leaf.from_buffer_copy(memory.bytes, slot * memory.step)
        if not Phase(row.state & 0xFF).is_open:
            continue
        yield _event(view, number, endpoint, slot, row)


def _event(view: View, number: int, endpoint: Endpoint, slot: int, row: Any) -> Event:
    """A connection as it would have been told of at its opening, and what has passed of it up to now."""
    counts = view.maps["connection_counts"]
    opened = view.maps.clock.earliest(row.opened)  # if not counted: up to two ticks early, never late
    passed = (0, 0, 0, 0)
    if counts.info.max_entries > 1:
        count = counts.memory()[endpoint.first + slot]
        opened = count.opened
        passed = (count.request_packets, count.request_bytes, count.reply_packets, count.reply_bytes)
    opened += time.time_ns() - time.monotonic_ns()
    return Event(
        opened,
        opened,
        *passed,
        row.state,
        row.client,
        row.vip,
        ip_raw(endpoint.snat[slot % len(endpoint.snat)]),
        ip_raw(endpoint.key.address),
        row.client_port,
        row.vip_port,
        port_raw(FIRST_SNAT_PORT + slot // len(endpoint.snat)),
        port_raw(endpoint.key.port),
        slot,
        number,
        row.listener,
        EventKind.OPENED,
        0,
        row.protocol,
    )


def _identity(event: Event) -> tuple[int, ...]:
    return event.member, event.member_port, event.protocol, event.state >> GENERATION_SHIFT


def _by_identity(events: Iterable[Event]) -> dict[tuple[int, ...], list[Event]]:
    found: dict[tuple[int, ...], list[Event]] = {}
    for event in events:
        found.setdefault(_identity(event), []).append(event)
    return found


def _has(known: dict[tuple[int, ...], list[Event]], event: Event) -> bool:
    return any(abs(one.opened - event.opened) < _NEAR for one in known.get(_identity(event), []))


def _came_after(other: Event, event: Event) -> bool:
    """Whether a member's slot was another connection's later on, so that this one had ended."""
    same = _identity(other)[:3] == _identity(event)[:3]
    return same and other.opened > event.opened and _identity(other) != _identity(event)
