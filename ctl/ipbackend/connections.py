"""Connections as they are right now, read from the slots themselves without stopping them. It changes nothing."""

import re
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, NamedTuple

from ipbackend.abi import Phase
from ipbackend.datapath.clock import TICKS, Clock
from ipbackend.datapath.maps import Memory
from ipbackend.datapath.tables import ip_from_map, ip_to_map, protocol_from_map
from ipbackend.errors import ConfigurationError, suggestion
from ipbackend.model import Listener
from ipbackend.peer import Peer, Peers
from ipbackend.plan import Endpoint
from ipbackend.sizing import FIRST_SNAT_PORT
from ipbackend.view import View

OPEN = bytes(phase for phase in Phase if phase.is_open)
ALL = OPEN + bytes([Phase.CLOSED, Phase.EXPIRED])  # with those whose slots still rest
_ANY = 0xFFFFFFFF  # a mask that leaves a field as it is
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


@dataclass(frozen=True)
class Wanted:
    """Which connections: in one of `phases`, and as all that is given says.

    `port` is the VIP's, `listener` an id, `older_than` seconds since the opening.
    """

    phases: bytes = OPEN
    client: Peers | None = None
    vip: IPv4Address | None = None
    port: int | None = None
    member: Peer | None = None
    listener: str | None = None
    older_than: float = 0.0

    @property
    def fields(self) -> Iterator[tuple[str, int, int]]:
        """What a slot must hold: a field, a mask, and what the field is under the mask."""
        if self.client:
            network, port = self.client
            yield "client", ip_to_map(network.netmask), ip_to_map(network.network_address)
            if port:
                yield "client_port", _ANY, socket.htons(port)
        if self.vip:
            yield "vip", _ANY, ip_to_map(self.vip)
        if self.port:
            yield "vip_port", _ANY, socket.htons(self.port)


class Target(NamedTuple):
    """A connection to be ended: its endpoint's id, its slot, and the state word that it had when it was found."""

    endpoint: int
    slot: int
    state: int


def phases(names: Collection[str]) -> bytes:
    """Those of these names. ConfigurationError: there is none of a name that connections can be in."""
    known = {Phase(phase).name: phase for phase in ALL}
    for name in names:
        if name.upper() not in known:
            raise ConfigurationError(f"state: there is no {name} ({suggestion(name, known)})")
    return bytes(known[name.upper()] for name in names)


def connections(view: View, wanted: Wanted = Wanted()) -> Iterator[Connection]:
    """The wanted ones, endpoint by endpoint, slot by slot. ConfigurationError: there is no such listener."""
    clock, listeners = view.maps.clock, _listeners(view)
    for number, slot, row in _found(view, wanted):
        yield _connection(row, view.entries.endpoints[number], slot, listeners.get(row.listener), clock)


def targets(view: View, wanted: Wanted) -> Iterator[Target]:
    """The wanted ones, to be ended. ConfigurationError: there is no such listener."""
    return (Target(number, slot, row.state) for number, slot, row in _found(view, wanted))


def _found(view: View, wanted: Wanted) -> Iterator[tuple[int, int, Any]]:
    """The endpoint's id, the slot, and what it holds."""
    fields = list(wanted.fields)
    if wanted.listener:
        fields.append(("listener", _ANY, _id_of(_listeners(view), wanted.listener)))
    clock, leaf = view.maps.clock, view.maps["conntrack"].leaf
    ticks = clock.ticks(wanted.older_than)
    for number, endpoint in view.entries.endpoints.items():
        if wanted.member and not _is(wanted.member, endpoint.key.address, endpoint.key.port):
            continue
        memory = view.maps.of_endpoint("conntrack", number)
        slots = _slots(memory, wanted.phases, fields)
        if ticks:
            slots = _older(memory, slots, (clock.now() - ticks) % TICKS)
        for slot in slots:
            row = _copy(leaf, memory, slot)
            if row is not None and row.state & 0xFF in wanted.phases:
                yield number, slot, row


def _listeners(view: View) -> dict[int, Listener]:
    """By their ids in the maps."""
    have = view.configuration.listeners.values()
    return {entry.id: one for one in have if (entry := view.listener_entry(one))}


def _id_of(listeners: Mapping[int, Listener], listener: str) -> int:
    """Its id in the maps."""
    for number, one in listeners.items():
        if listener == one.id:
            return number
    raise ConfigurationError(f"listener: there is no {listener} in the data plane (`ipbackend listener list`)")


def open_by_snat(view: View) -> dict[IPv4Address, int]:
    """How many open connections each SNAT address carries: a slot's number says which it is."""
    carried: dict[IPv4Address, int] = {}
    for _, endpoint, its in slot_phases(view):
        for address, count in zip(endpoint.snat, by_snat(endpoint, its), strict=True):
            carried[address] = carried.get(address, 0) + count
    return carried


def by_snat(endpoint: Endpoint, its: bytes) -> list[int]:
    """How many of an endpoint's open connections each of its SNAT addresses carries; `its` phases slot by slot."""
    parts = (its[index :: len(endpoint.snat)] for index in range(len(endpoint.snat)))
    return [len(part) - len(part.translate(None, OPEN)) for part in parts]


def slot_phases(view: View) -> Iterator[tuple[int, Endpoint, bytes]]:
    """Each endpoint that ever took a slot, its id in front, and the phases of all its slots behind it."""
    loads = view.maps["load"].memory()
    for number, endpoint in view.entries.endpoints.items():
        if loads[number].head:
            yield number, endpoint, bytes(view.maps.of_endpoint("conntrack", number).column("state"))


def _is(peer: Peer, address: IPv4Address, port: int) -> bool:
    return peer.address == address and peer.port in (None, port)


def _slots(memory: Memory, phases: bytes, fields: Iterable[tuple[str, int, int]]) -> Iterator[int]:
    """Slots in one of `phases` that hold this: found by whole columns, as most slots are not wanted."""
    states = bytes(memory.column("state"))
    found: Iterator[int] = (match.start() for match in re.finditer(b"[" + re.escape(phases) + b"]", states))
    for field, mask, value in fields:
        found = _holding(memory.values(field), found, mask, value)
    return found


def _holding(column: memoryview, slots: Iterable[int], mask: int, value: int) -> Iterator[int]:
    return (slot for slot in slots if column[slot] & mask == value)


def _older(memory: Memory, slots: Iterable[int], tick: int) -> Iterator[int]:
    """Those opened at this tick or before."""
    opened = memory.values("opened")
    return (slot for slot in slots if (tick - opened[slot]) % TICKS < TICKS // 2)


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
