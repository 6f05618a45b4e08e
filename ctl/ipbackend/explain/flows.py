"""Connections as the program finds them, and the slot of the next one: conntrack.h, flow_index.h, slots.h. No I/O."""

from collections.abc import Iterator
from ipaddress import IPv4Address
from itertools import islice
from typing import NamedTuple

from ipbackend.abi import Phase
from ipbackend.explain.frame import Tuple
from ipbackend.explain.reader import NOWHERE, Bucket, Connection, Endpoint, Reader
from ipbackend.sizing import FIRST_SNAT_PORT

RING_TRIES = 8  # as in slots.h, held equal by a test
OPENINGS = 32  # of one packet, each with a slot of its own: what the kernel allows of tail calls, less the first


class Flow(NamedTuple):
    """A connection where it was found; `slot` is its endpoint's."""

    place: int
    slot: int
    connection: Connection
    endpoint: Endpoint

    def __str__(self) -> str:
        snat, port = snat_of(self.endpoint, self.slot)
        at = f"slot {self.slot:,} of {self.endpoint} is {snat}:{port}"
        return f"{self.connection.phase.name}, of client {self.connection.tuple.client}, {at}"


def snat_of(endpoint: Endpoint, slot: int) -> tuple[IPv4Address, int]:
    """The SNAT address and port that a slot is."""
    return endpoint.snat[slot % len(endpoint.snat)], FIRST_SNAT_PORT + slot // len(endpoint.snat)


def find_quickly(reader: Reader, sought: Tuple) -> Flow | None:
    """By the first entry with its tag, as the common road does."""
    places = [place for bucket in reader.buckets(sought) for place in bucket.places[:1]]
    flow = _flow(reader, places[0]) if places else None
    if flow is None or flow.connection.phase < Phase.PENDING or flow.connection.tuple != sought:
        return None
    return flow


def find(reader: Reader, sought: Tuple, last: Phase) -> Flow | None:
    """By all entries with its tag, from pending up to phase `last`."""
    for bucket in reader.buckets(sought):
        for flow in (_flow(reader, place) for place in bucket.places):
            if Phase.PENDING <= flow.connection.phase <= last and flow.connection.tuple == sought:
                return flow
    return None


def _flow(reader: Reader, place: int) -> Flow:
    connection = reader.connection(place)
    endpoint = reader.endpoint(connection.endpoint)
    return Flow(place, place - endpoint.first, connection, endpoint)


def by_slot(
    reader: Reader, member: IPv4Address, member_port: int, protocol: int, index: int, snat_port: int
) -> Flow | None:
    """Of a member's packet to a SNAT address, by `index` of its kind: member and slot tell it."""
    number = reader.endpoint_of(member, member_port, protocol)
    if not number or snat_port < FIRST_SNAT_PORT:
        return None
    endpoint = reader.endpoint(number)
    slot = (snat_port - FIRST_SNAT_PORT) * len(endpoint.snat) | index
    if slot >= endpoint.slots:
        return None
    connection = reader.connection(endpoint.first + slot)
    return Flow(endpoint.first + slot, slot, connection, endpoint) if connection.phase >= Phase.SYN_SENT else None


def next_slot(reader: Reader, number: int) -> int:
    """Of an endpoint, as it comes out of its ring, or NOWHERE; one that someone holds is put back."""
    for place in islice(_drawn(reader.queue(number)), OPENINGS):
        phase = reader.connection(place).phase
        if phase is Phase.FREE or phase >= Phase.CLOSED:
            return place
    return NOWHERE


def _drawn(queue: Iterator[int]) -> Iterator[int]:
    """Slots as they come out of a ring, whose places may be empty for a while."""
    while True:
        place = next((one for one in islice(queue, RING_TRIES) if one != NOWHERE), NOWHERE)
        if place == NOWHERE:
            return
        yield place


def without(buckets: tuple[Bucket, Bucket], others: tuple[Bucket, Bucket], place: int) -> tuple[Bucket, Bucket]:
    """Two buckets after an entry for `place` has left the first of the others that has it."""
    left = next((other.number for other in others if place in other.places), None)
    first, second = (one._replace(free=one.free + (one.number == left)) for one in buckets)
    return first, second
