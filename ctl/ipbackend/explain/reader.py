"""What `explain` asks of a data plane's maps, and the rows that it is told. No I/O: datapath/lookup.py answers."""

from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import NamedTuple, Protocol

from ipbackend.abi import Phase
from ipbackend.explain.frame import Packet, Tuple
from ipbackend.plan import Address, Listener, NextHop, Pool

NOWHERE = 0  # no slot


class Endpoint(NamedTuple):
    """A member to the data plane: its slots are `slots` from `first` on."""

    address: IPv4Address
    port: int
    next_hop: int
    first: int
    slots: int
    snat: tuple[IPv4Address, ...]  # one for each value that a slot's lowest bits can have

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


class Load(NamedTuple):
    """How full an endpoint is."""

    active: int
    half_open: int
    ceiling: int
    half_open_limit: int

    @property
    def has_room(self) -> bool:
        """For one connection more."""
        return self.active < self.ceiling and self.half_open < self.half_open_limit


class Connection(NamedTuple):
    """What a slot holds."""

    phase: Phase
    tuple: Tuple
    endpoint: int
    client_interface: int
    client_mac: bytes
    gateway_mac: bytes
    client_vlan: int


class Datagram(NamedTuple):
    """What the first fragment of a datagram told of the others."""

    sport: int
    dport: int
    header: int


class ListenerLoad(NamedTuple):
    """Open connections of a listener; `due` is when its next new one would come if all came evenly, as rates go."""

    active: int
    due: int


class Bucket(NamedTuple):
    """One of the flow index: its number, its free entries, and the slots under the tag that was sought."""

    number: int
    free: int
    places: tuple[int, ...]


class Reader(Protocol):
    """One look into the maps, and another one with the next call: packets go on meanwhile."""

    def address(self, address: IPv4Address) -> Address | None:
        """What an address is to us."""

    def listener(self, vip: IPv4Address, port: int, protocol: int) -> Listener | None:
        """Who listens there."""

    def listener_load(self, number: int) -> ListenerLoad:
        """What is open at a listener."""

    def is_listed(self, access: int, client: IPv4Address) -> bool:
        """Whether an access list, by its id, has a client."""

    def source_due(self, listener: int, client: IPv4Address) -> int:
        """As a listener's `due`, of one client; 0 of one that is not known."""

    def rate_now(self) -> tuple[int, int]:
        """What time it is as rates go: no earlier and no later than these."""

    def endpoint_of(self, address: IPv4Address, port: int, protocol: int) -> int:
        """The endpoint's id, or 0."""

    def endpoint(self, number: int) -> Endpoint:
        """One that is there."""

    def load(self, number: int) -> Load:
        """Of an endpoint."""

    def queue(self, number: int) -> Iterator[int]:
        """An endpoint's ring of free slots from the next one out on; NOWHERE where there is none."""

    def pool(self, number: int) -> Pool:
        """Its members and turns; of one that is not there, none."""

    def turn(self, pool: int) -> int:
        """How many turns of a pool's schedule are used up."""

    def stay(self, pool: int, client: IPv4Address, seconds: int) -> int:
        """The endpoint that a client stayed with not longer ago, if it is still the same one; else 0."""

    def next_hop(self, number: int) -> NextHop:
        """Where packets to members go."""

    def link(self, interface: int) -> int:
        """The MTU of one of the gateway's interfaces, or 0."""

    def connection(self, place: int) -> Connection:
        """What a slot, of all, holds."""

    def buckets(self, sought: Tuple) -> tuple[Bucket, Bucket]:
        """The two of the flow index where a tuple may stand."""

    def fragments_of(self, packet: Packet) -> Datagram | None:
        """What is remembered of a fragment's datagram."""

    def errors_due(self) -> set[bool]:
        """Of all CPUs, whether they may send one more ICMP error."""
