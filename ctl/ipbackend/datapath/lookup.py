"""Looks things up in the maps as the program does, for `explain`: from shared memory, and without a trace."""

import os
import socket
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

from ipbackend.abi import RATE_SECOND, ROLE_SHIFT, TICK_SHIFT, Phase, Role
from ipbackend.datapath.directory import key_of
from ipbackend.datapath.flow_index import buckets_of, hash_of
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.tables import Tables, ip_from_map, ip_to_map
from ipbackend.explain.frame import Packet, Tuple
from ipbackend.explain.reader import Bucket, Connection, Datagram, Endpoint, ListenerLoad, Load
from ipbackend.plan import Address, Listener, NextHop, Pool

_READ_ONLY = -1  # in place of the sweep program
_LIST_BITS = 32  # of an access list's key, before the address
_COARSE_CLOCK = 6  # CLOCK_MONOTONIC_COARSE, which the program asks
BURST = 10**9  # nanoseconds' worth of errors that may come at once: as in clock.h, held equal by a test
FRAGMENT_LIFE = 30  # seconds


class Lookup:
    """A `Reader` of pinned maps."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._tables = Tables(maps, _READ_ONLY)
        self._settings = maps["gateway"].memory()[0]
        self._index = maps["flow_index"].memory()
        self._directories = {
            name: maps.directory(name) for name in ("addresses", "listeners_by_addr", "endpoints_by_addr")
        }

    def address(self, address: IPv4Address) -> Address | None:
        """What an address is to us."""
        number = self._directories["addresses"].get(key_of(ip_to_map(address)))
        return Address(Role(number >> ROLE_SHIFT), number & (1 << ROLE_SHIFT) - 1) if number else None

    def listener(self, vip: IPv4Address, port: int, protocol: int) -> Listener | None:
        """Who listens there."""
        number = self._number("listeners_by_addr", vip, port, protocol)
        return self._tables.listener(number) if number else None

    def listener_load(self, number: int) -> ListenerLoad:
        """What is open at a listener."""
        row = self._maps["listener_load"].memory()[number]
        return ListenerLoad(row.active, row.due)

    def is_listed(self, access: int, client: IPv4Address) -> bool:
        """Whether an access list, by its id, has a client."""
        table = self._maps["access"]
        key = table.key(prefix=_LIST_BITS + client.max_prefixlen, list=access, address=ip_to_map(client))
        return table.get(key) is not None

    def source_due(self, listener: int, client: IPv4Address) -> int:
        """As a listener's `due`, of one client; 0 of one that is not known."""
        table = self._maps["source_dues"]
        return table.get(table.key(number=listener, client=ip_to_map(client))) or 0

    def rate_now(self) -> tuple[int, int]:
        """What time it is as rates go: ticks are known to some jiffies, of which they are counted."""
        since = time.monotonic_ns() - self._settings.epoch
        jiffy, unsure = RATE_SECOND // self._settings.hz, 2 << TICK_SHIFT
        jiffies = since * self._settings.hz // 10**9
        return (jiffies - unsure) * jiffy, (jiffies + unsure) * jiffy

    def endpoint_of(self, address: IPv4Address, port: int, protocol: int) -> int:
        """The endpoint's id, or 0."""
        return self._number("endpoints_by_addr", address, port, protocol)

    def endpoint(self, number: int) -> Endpoint:
        """One that is there."""
        row = self._maps["endpoints"].memory()[number]
        snat = tuple(ip_from_map(address) for address in row.snat[: 1 << self._settings.snat_shift])
        return Endpoint(ip_from_map(row.address), socket.ntohs(row.port), row.next_hop, row.first, row.slots, snat)

    def load(self, number: int) -> Load:
        """Of an endpoint."""
        row = self._maps["load"].memory()[number]
        return Load(row.active, row.half_open, row.ceiling, row.half_open_limit)

    def queue(self, number: int) -> Iterator[int]:
        """An endpoint's ring of free slots, once round from the next one out on; 0 where there is none."""
        ring, head = self._maps.of_endpoint("free_slots", number), self._maps["load"].memory()[number].head
        entries, slots = ring.values("slot"), len(ring)
        return (entries[(head + turn) % slots] for turn in range(slots))

    def pool(self, number: int) -> Pool:
        """Its members and turns; of one that is not there, none."""
        return self._tables.pool(number)

    def turn(self, pool: int) -> int:
        """How many turns of a pool's schedule are used up."""
        position: int = self._maps["cursors"].memory()[pool].position
        return position

    def stay(self, pool: int, client: IPv4Address, seconds: int) -> int:
        """The endpoint that a client stayed with not longer ago, if it is still the same one; else 0."""
        table = self._maps["stays"]
        row = table.get(table.key(number=pool, client=ip_to_map(client)))
        if row is None or self._maps.clock.seconds_since(row.seen) > seconds:
            return 0
        number: int = row.endpoint
        return number if self._maps["endpoints"].memory()[number].making == row.making else 0

    def next_hop(self, number: int) -> NextHop:
        """Where packets to members go."""
        row = self._maps["next_hops"].memory()[number]
        address, resolved = ip_from_map(row.address), bool(row.resolved)
        macs = bytes(row.destination), bytes(row.source)
        return NextHop(row.interface, address, *macs, row.mtu, resolved, row.vlan)

    def link(self, interface: int) -> int:
        """The MTU of one of the gateway's interfaces, or 0."""
        links = self._maps["links"].memory()
        return links[interface].mtu if interface < len(links) else 0

    def connection(self, place: int) -> Connection:
        """What a slot, of all, holds: copied at once, since packets go on meanwhile."""
        memory, leaf = self._maps["conntrack"].memory(), self._maps["conntrack"].leaf
        row = leaf.from_buffer_copy(memory.bytes, place * memory.step)
        ports = socket.ntohs(row.client_port), socket.ntohs(row.vip_port)
        return Connection(
            Phase(row.state & 0xFF),
            Tuple(ip_from_map(row.client), ports[0], ip_from_map(row.vip), ports[1], row.protocol),
            row.endpoint,
            row.client_interface,
            bytes(row.client_mac),
            bytes(row.gateway_mac),
            row.client_vlan,
        )

    def buckets(self, sought: Tuple) -> tuple[Bucket, Bucket]:
        """The two of the flow index where a tuple may stand."""
        client, vip = ip_to_map(sought.client), ip_to_map(sought.vip)
        ports = socket.htons(sought.client_port), socket.htons(sought.vip_port)
        number = hash_of(self._settings.hash_key, client, vip, *ports, sought.protocol)
        first, second = buckets_of(number, len(self._index))
        return self._bucket(first, number >> 32), self._bucket(second, number >> 32)

    def fragments_of(self, packet: Packet) -> Datagram | None:
        """What is remembered of a fragment's datagram, if that is not too long ago."""
        table = self._maps["fragments"]
        source, destination = ip_to_map(packet.source), ip_to_map(packet.destination)
        key = table.key(saddr=source, daddr=destination, id=socket.htons(packet.id), protocol=packet.protocol)
        row: Any = table.get(key)
        if row is None or self._maps.clock.seconds_since(row.seen) > FRAGMENT_LIFE:
            return None
        return Datagram(socket.ntohs(row.sport), socket.ntohs(row.dport), row.header)

    def errors_due(self) -> set[bool]:
        """Of all CPUs, whether they may send one more ICMP error."""
        at = time.clock_gettime_ns(_COARSE_CLOCK)
        rows = self._maps["answers"].get(0)
        online = os.sched_getaffinity(0)
        return {max(row.next_error - at, 0) < BURST for cpu, row in enumerate(rows) if cpu in online}

    def _number(self, directory: str, address: IPv4Address, port: int, protocol: int) -> int:
        udp = protocol == socket.IPPROTO_UDP
        return self._directories[directory].get(key_of(ip_to_map(address), socket.htons(port), udp))

    def _bucket(self, number: int, tag: int) -> Bucket:
        entries = list(self._index[number].entry)
        places = tuple(entry & 0xFFFF_FFFF for entry in entries if entry >> 32 == tag and entry)
        return Bucket(number, entries.count(0), places)
