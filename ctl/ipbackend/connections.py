"""Connections as they are right now, read from the slots themselves without stopping them. It changes nothing."""

import re
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any, NamedTuple

from ipbackend.abi import Phase
from ipbackend.datapath.clock import Clock
from ipbackend.datapath.maps import Memory
from ipbackend.datapath.tables import ip_from_map, ip_to_map, protocol_from_map
from ipbackend.errors import ConfigurationError
from ipbackend.model import Listener
from ipbackend.plan import Endpoint
from ipbackend.sizing import FIRST_SNAT_PORT
from ipbackend.view import View

OPEN = bytes(phase for phase in Phase if phase.is_open)
ALL = OPEN + bytes([Phase.CLOSED, Phase.EXPIRED])  # with those whose slots still rest
_GENERATION_SHIFT = 16  # of the state word: below are phase and FINs


class Connection(NamedTuple):
    """One slot in use; `age` and `idle` in seconds; `listener` is None if it is gone."""

    client: str
    vip: str
    member: str
    snat: str
    protocol: str
    state: str
    age: float
    idle: float
    listener: Listener | None


class Peer(NamedTuple):
    """One side of a connection, with any port or with this one."""

    address: IPv4Address
    port: int | None


def peer(text: str) -> Peer:
    """`ADDRESS` or `ADDRESS:PORT`. ConfigurationError: it is neither."""
    address, colon, port = text.partition(":")
    try:
        found = Peer(IPv4Address(address), int(port) if colon else None)
    except ValueError:
        what = f"{text!r} is not an IPv4 address, or one with a port (such as 10.0.0.11:8080)"
        raise ConfigurationError(what) from None
    if found.port is not None and not 1 <= found.port <= 65_535:
        raise ConfigurationError(f"{text!r} has no possible port (write 1 to 65535)")
    return found


def connections(
    view: View, phases: bytes = OPEN, member: Peer | None = None, client: Peer | None = None
) -> Iterator[Connection]:
    """The connections in one of `phases`, endpoint by endpoint, slot by slot."""
    wanted = view.configuration.listeners.values()
    listeners = {entry.id: one for one in wanted if (entry := view.listener_entry(one))}
    for number, endpoint in view.entries.endpoints.items():
        if member and not _is(member, endpoint.key.address, endpoint.key.port):
            continue
        memory = view.maps.of_endpoint("conntrack", number)
        for slot in _slots(memory, view.maps["conntrack"].leaf, phases, client):
            row = _copy(view.maps["conntrack"].leaf, memory, slot)
            if row is not None and row.state & 0xFF in phases:
                yield _connection(row, endpoint, slot, listeners.get(row.listener), view.maps.clock)


def open_by_snat(view: View) -> dict[IPv4Address, int]:
    """How many open connections each SNAT address carries: a slot's number says which it is."""
    carried: dict[IPv4Address, int] = {}
    for _, endpoint, its in phases(view):
        for address, count in zip(endpoint.snat, by_snat(endpoint, its), strict=True):
            carried[address] = carried.get(address, 0) + count
    return carried


def by_snat(endpoint: Endpoint, its: bytes) -> list[int]:
    """How many of an endpoint's open connections each of its SNAT addresses carries; `its` phases slot by slot."""
    parts = (its[index :: len(endpoint.snat)] for index in range(len(endpoint.snat)))
    return [len(part) - len(part.translate(None, OPEN)) for part in parts]


def phases(view: View) -> Iterator[tuple[int, Endpoint, bytes]]:
    """Each endpoint that ever took a slot, its id in front, and the phases of all its slots behind it."""
    loads = view.maps["load"].memory()
    for number, endpoint in view.entries.endpoints.items():
        if loads[number].head:
            yield number, endpoint, bytes(view.maps.of_endpoint("conntrack", number).column("state"))


def _is(peer: Peer, address: IPv4Address, port: int) -> bool:
    return peer.address == address and peer.port in (None, port)


def _slots(memory: Memory, leaf: Any, phases: bytes, client: Peer | None) -> Iterator[int]:
    """Slots in one of `phases`, and of this client: found by whole columns, as most slots are neither."""
    states = bytes(memory.column("state"))
    found = (match.start() for match in re.finditer(b"[" + re.escape(phases) + b"]", states))
    if client is None:
        yield from found
        return
    addresses = memory.bytes.cast("I")[leaf.client.offset // 4 :: memory.step // 4]
    ports = memory.bytes.cast("H")[leaf.client_port.offset // 2 :: memory.step // 2]
    address, port = ip_to_map(client.address), client.port and socket.htons(client.port)
    yield from (slot for slot in found if addresses[slot] == address and port in (None, ports[slot]))


def _copy(leaf: Any, memory: Memory, slot: int) -> Any:
    """The slot's content, or None if it became another connection's while it was copied."""
    row = leaf.from_buffer_copy(memory.bytes, slot * memory.step)
    return None if (row.state ^ memory[slot].state) >> _GENERATION_SHIFT else row


def _connection(row: Any, endpoint: Endpoint, slot: int, listener: Listener | None, clock: Clock) -> Connection:
    snat, port = endpoint.snat[slot % len(endpoint.snat)], FIRST_SNAT_PORT + slot // len(endpoint.snat)
    return Connection(
        f"{ip_from_map(row.client)}:{socket.ntohs(row.client_port)}",
        f"{ip_from_map(row.vip)}:{socket.ntohs(row.vip_port)}",
        f"{endpoint.key.address}:{endpoint.key.port}",
        f"{snat}:{port}",
        protocol_from_map(row.protocol),
        Phase(row.state & 0xFF).name,
        round(clock.seconds_since(row.opened), 1),
        round(clock.seconds_since(row.last_seen), 1),
        listener,
    )
