"""The controller's maps: what they hold as plan's entries, and the steps of a plan carried out on them."""

import resource
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from ipaddress import IPv4Address
from itertools import groupby, islice
from typing import Any

from ipbackend.abi import SLOT_BITS, SWEEP_SLICE, PoolWord, Role, SweepMode
from ipbackend.datapath import syscall
from ipbackend.datapath.maps import Map, Maps
from ipbackend.model import EndpointKey, Gateway, Protocol
from ipbackend.plan import NO_POOL, Action, Address, Endpoint, Entries, Listener, ListenerKey, NextHop, Pool, Step

_BATCH_MAX = 2048  # endpoints or pools made at a time: each takes two file descriptors meanwhile
_OTHER_DESCRIPTORS = 256  # that may be open beside those
_TABLES_CHECKED = 512  # endpoints whose tables are looked for each time everything is read
_NOTHING = bytes(4096)  # a piece of the flow index without entries
_SWEEP = struct.Struct("16x6I")  # struct sweep of abi.h
_NUMBERS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
_PROTOCOLS = {int(number): protocol for protocol, number in _NUMBERS.items()}


def ip_to_map(address: IPv4Address) -> int:
    """A __be32 as a struct's field takes it: the bytes stay in network order."""
    return int.from_bytes(address.packed, "little")


def ip_from_map(value: int) -> IPv4Address:
    """The reverse."""
    return IPv4Address(value.to_bytes(4, "little"))


def protocol_from_map(number: int) -> Protocol:
    """TCP or UDP by its IP protocol number."""
    return _PROTOCOLS[number]


class Tables:
    """Reads and changes what the packets are forwarded by."""

    def __init__(self, maps: Maps, sweep_program: int) -> None:
        self._maps = maps
        self._sweep_program = sweep_program
        self._rings: dict[int, bytes] = {}  # of free slots, as they begin, by their number
        self._endpoints: dict[bytes, Endpoint] = {}  # as decoded, by what the maps hold of them
        self._ended: set[int] = set()  # endpoints that lost all their connections in this series of steps
        self._lost: set[int] = set()  # endpoints without their tables, as they were read last
        self._checked = 0  # up to where endpoints were looked at for their tables
        self._actions: dict[tuple[Action, str], Callable[[Any, Any], object]] = {
            (Action.SET, "links"): lambda index, mtu: maps["links"].set(index, maps["links"].leaf(mtu=mtu)),
            (Action.SET, "next_hops"): self._set_next_hop,
            (Action.SET, "endpoints"): self._set_endpoint,
            (Action.SET, "addresses"): self._set_address,
            (Action.SET, "listeners"): self._set_listener,
            (Action.DELETE, "listeners"): self._delete_listener,
            (Action.DELETE, "addresses"): lambda address, _: maps["addresses"].delete(ip_to_map(address)),
            (Action.DELETE, "endpoint_ids"): lambda key, _: maps["endpoints_by_addr"].delete(self._endpoint_key(key)),
            (Action.DELETE, "next_hops"): self._delete_next_hop,
            (Action.DELETE, "links"): lambda index, _: maps["links"].set(index, maps["links"].leaf()),
            (Action.WAIT, "pools"): lambda *_: self.wait(),
            (Action.END, "listeners"): self._end_listener,
            (Action.END, "endpoints"): self._end_endpoint,
        }
        self._together: dict[tuple[Action, str], Callable[[list[Step]], object]] = {
            (Action.SET, "pools"): self._set_pools,
            (Action.SET, "endpoint_ids"): lambda steps: maps["endpoints_by_addr"].set_many(
                {bytes(self._endpoint_key(step.key)): step.value for step in steps}
            ),
            (Action.DELETE, "pools"): lambda steps: maps["pools"].clear_inner([step.key for step in steps]),
            (Action.DELETE, "endpoints"): self._delete_endpoints,
        }

    def apply(self, steps: Iterable[Step]) -> None:
        """Carry out the steps of a plan in their order."""
        size = _batch_size()
        self._ended.clear()
        for what, group in groupby(steps, key=lambda step: (step.action, step.table)):
            for some in batched(group, size):
                if what in self._together:
                    self._together[what](some)
                    continue
                if what == (Action.SET, "endpoints"):
                    self._make_tables(some)
                for step in some:
                    self._actions[what](step.key, step.value)

    def read(self, pools: Collection[int] = ()) -> Entries:
        """What the maps hold now; of pools those that a listener points to, and `pools` where they are there."""
        listeners = {
            ListenerKey(ip_from_map(key.vip), socket.ntohs(key.port), _PROTOCOLS[key.protocol]): Listener(
                value.id, value.pool, value.idle_timeout
            )
            for key, value in self._maps["listeners"].items()
        }
        return Entries(
            addresses={
                ip_from_map(key): Address(Role(value.role), value.index)
                for key, value in self._maps["addresses"].items()
            },
            listeners=listeners,
            pools={
                number: self._pool(number)
                for number in {one.pool for one in listeners.values()} - {NO_POOL} | set(pools)
                if number not in pools or self._maps["pools"].inner_size(number)
            },
            endpoints=self._read_endpoints(),
            endpoint_ids={
                EndpointKey(ip_from_map(key.address), socket.ntohs(key.port), _PROTOCOLS[key.protocol]): number
                for key, number in self._maps["endpoints_by_addr"].items()
            },
            next_hops=self._next_hops(),
            links={index: mtu for index, mtu in enumerate(self._maps["links"].memory().bytes.cast("I")[::2]) if mtu},
        )

    def set_timeouts(self, gateway: Gateway) -> None:
        """How long a connection may be silent in each phase; the next sweep goes by it."""
        settings = self._maps["gateway"].memory()[0]
        for name in ("syn_sent_timeout", "syn_received_timeout", "closing_timeout", "rest"):
            setattr(settings, name, getattr(gateway, name))

    def drop_unused_pools(self) -> None:
        """Pools that no listener points to, left by a controller that died between two steps."""
        used = {listener.pool for listener in self._maps["listeners"].values()}
        unused = [number for number, _ in self._maps["pools"].items() if number not in used]
        if unused:
            self._maps["pools"].clear_inner(unused)

    def sweep(self, endpoint: int, mode: SweepMode, listener: int = 0) -> tuple[int, int]:
        """Look at all slots of an endpoint; returns how many connections ended and how many slots rested enough."""
        rounds = -(-self._maps["endpoints"].memory()[endpoint].slots // SWEEP_SLICE)
        if not rounds:
            return 0, 0
        orders = _SWEEP.pack(endpoint, 0, mode, listener, 0, 0)
        _, result, _ = syscall.run(self._sweep_program, orders, rounds)
        _, _, _, _, ended, rested = _SWEEP.unpack(result)
        return ended, rested

    def wait(self) -> None:
        """Return when every packet that entered before has left: the kernel waits so after a map of maps changes."""
        self._maps["pools"].clear_inner([NO_POOL])

    def _pool(self, number: int) -> Pool:
        inner = self._maps["pools"].inner(number)
        if inner is None:
            return Pool()
        words = inner.bytes.cast("Q")  # 32-bit words, 8 bytes apart
        members, turns, start = words[PoolWord.MEMBERS], words[PoolWord.SCHEDULE], int(PoolWord.HEADER)
        return Pool(tuple(words[start : start + members]), tuple(words[start + members : start + members + turns]))

    def _numbers(self) -> list[int]:
        """Of the endpoints that have slots."""
        memory = self._maps["endpoints"].memory()
        slots = memory.bytes.cast("I")[self._maps["endpoints"].leaf.slots.offset // 4 :: memory.step // 4]
        return [number for number, count in enumerate(slots) if count]

    def _has_tables(self, number: int) -> bool:
        """Whether its slots and its ring are there: without, it is made anew."""
        return all(self._maps[name].inner_size(number) for name in ("conntrack", "free_slots"))

    def _read_endpoints(self) -> dict[int, Endpoint]:
        """All that have slots; of some, in turn, it is checked that their tables are there as well."""
        numbers = self._numbers()
        turn = ([number for number in numbers if number > self._checked] or numbers)[:_TABLES_CHECKED]
        self._checked = turn[-1] if turn else 0
        self._lost = {number for number in turn if not self._has_tables(number)}
        return {number: self._endpoint(number) for number in numbers if number not in self._lost}

    def _endpoint(self, number: int) -> Endpoint:
        """Decoded once for what the maps hold: as long as nothing changes, the same object is returned."""
        row, load = self._maps["endpoints"].memory(), self._maps["load"].memory()[number]
        raw = bytes(row.bytes[number * row.step : (number + 1) * row.step])
        known = raw + struct.pack("QQ", load.ceiling, load.half_open_limit)
        endpoint = self._endpoints.get(known)
        if endpoint is None:
            value = self._maps["endpoints"].leaf.from_buffer_copy(raw)
            endpoint = self._endpoints[known] = Endpoint(
                EndpointKey(ip_from_map(value.address), socket.ntohs(value.port), _PROTOCOLS[value.protocol]),
                value.next_hop,
                value.slots,
                tuple(ip_from_map(address) for address in value.snat if address),
                load.ceiling,
                load.half_open_limit,
            )
        return endpoint

    def _next_hops(self) -> dict[int, NextHop]:
        memory = self._maps["next_hops"].memory()
        used = memory.bytes.cast("I")[:: memory.step // 4]  # the first word of each: its interface
        return {
            number: NextHop(
                value.interface,
                ip_from_map(value.address),
                bytes(value.destination),
                bytes(value.source),
                value.mtu,
                bool(value.resolved),
            )
            for number, interface in enumerate(used)
            if interface
            for value in [memory[number]]
        }

    def _set_next_hop(self, number: int, hop: NextHop) -> None:
        self._maps["next_hops"].set(
            number,
            self._maps["next_hops"].leaf(
                interface=hop.interface,
                address=ip_to_map(hop.address),
                destination=hop.destination,
                source=hop.source,
                mtu=hop.mtu,
                resolved=hop.resolved,
            ),
        )

    def _delete_next_hop(self, number: int, _: object) -> None:
        self._maps["next_hops"].set(number, self._maps["next_hops"].leaf())

    def _set_address(self, address: IPv4Address, value: Address) -> None:
        table = self._maps["addresses"]
        table.set(ip_to_map(address), table.leaf(role=value.role, index=value.index))

    def _listener_key(self, key: ListenerKey) -> Any:
        return self._maps["listeners"].key(
            vip=ip_to_map(key.vip), port=socket.htons(key.port), protocol=_NUMBERS[key.protocol]
        )

    def _set_listener(self, key: ListenerKey, value: Listener) -> None:
        table = self._maps["listeners"]
        table.set(self._listener_key(key), table.leaf(id=value.id, pool=value.pool, idle_timeout=value.idle_timeout))

    def _delete_listener(self, key: ListenerKey, _: object) -> None:
        self._maps["listeners"].delete(self._listener_key(key))

    def _end_endpoint(self, number: int, _: Endpoint) -> None:
        self._ended.add(number)
        if self._maps["load"].memory()[number].head:  # else no slot of it was ever taken
            self.sweep(number, SweepMode.ENDPOINT)

    def _end_listener(self, _: ListenerKey, listener: Listener) -> None:
        for endpoint in self._maps["endpoints_by_addr"].values():
            if endpoint not in self._ended and self._maps["load"].memory()[endpoint].head:
                self.sweep(endpoint, SweepMode.LISTENER, listener.id)
        self._zero(self._maps["listener_counts"], listener.id)

    def _set_pools(self, steps: list[Step]) -> None:
        fresh = {}
        for step in steps:
            pool: Pool = step.value
            words = (len(pool.members), len(pool.schedule), 0, 0, *pool.members, *pool.schedule)
            content = struct.pack(f"{len(words)}Q", *words)  # 32-bit words, 8 bytes apart
            fresh[step.key] = self._maps["pools"].new_inner(len(words), content)
        self._maps["pools"].set_inner(fresh)

    def _endpoint_key(self, key: EndpointKey) -> Any:
        return self._maps["endpoints_by_addr"].key(
            address=ip_to_map(key.address), port=socket.htons(key.port), protocol=_NUMBERS[key.protocol]
        )

    def _make_tables(self, steps: list[Step]) -> None:
        """Tables for the endpoints that are new: all slots free, and in the ring in their order."""
        there = set(self._numbers())
        slots = {
            step.key: step.value.slots
            for step in steps
            if step.key not in there or not self._same_tables(step.key, step.value)
        }
        self._forget(self._lost & slots.keys())
        connections, rings = {}, {}
        for number, count in slots.items():
            if count not in self._rings:
                self._rings[count] = struct.pack(f"{count}Q", *range(1, count + 1))
            connections[number] = self._maps["conntrack"].new_inner(count)
            rings[number] = self._maps["free_slots"].new_inner(count, self._rings[count])
            self._maps["load"].set(number, self._maps["load"].leaf(tail=count))
        if slots:
            self._maps["conntrack"].set_inner(connections)
            self._maps["free_slots"].set_inner(rings)

    def _forget(self, endpoints: Collection[int]) -> None:
        """Take what points to slots that are lost out of the flow index; without tables, nothing is put in."""
        if not endpoints:
            return
        index = self._maps["flow_index"].memory().bytes
        for start in range(0, len(index), len(_NOTHING)):
            piece = index[start : start + len(_NOTHING)]
            if piece == _NOTHING[: len(piece)]:
                continue
            entries = piece.cast("Q")
            for place, entry in enumerate(entries):
                if (entry & 0xFFFF_FFFF) >> SLOT_BITS in endpoints and entry:
                    entries[place] = 0

    def _same_tables(self, number: int, endpoint: Endpoint) -> bool:
        there = self._endpoint(number)
        return (there.key, there.slots) == (endpoint.key, endpoint.slots) and number not in self._lost

    def _set_endpoint(self, number: int, endpoint: Endpoint) -> None:
        at = self._endpoint_key(endpoint.key)
        snat = [ip_to_map(address) for address in endpoint.snat]
        self._maps["endpoints"].set(
            number,
            self._maps["endpoints"].leaf(
                address=at.address,
                port=at.port,
                protocol=at.protocol,
                next_hop=endpoint.next_hop,
                slots=endpoint.slots,
                snat=tuple(snat + [0] * (4 - len(snat))),
            ),
        )
        its_load = self._maps["load"].memory()[number]
        its_load.half_open_limit, its_load.ceiling = endpoint.half_open_limit, endpoint.ceiling

    def _delete_endpoints(self, steps: list[Step]) -> None:
        numbers = [step.key for step in steps]
        for number in numbers:
            self._maps["endpoints"].set(number, self._maps["endpoints"].leaf())
            self._maps["load"].set(number, self._maps["load"].leaf())
            self._zero(self._maps["endpoint_counts"], number)
        self._maps["conntrack"].clear_inner(numbers)
        self._maps["free_slots"].clear_inner(numbers)

    @staticmethod
    def _zero(table: Map, number: int) -> None:
        """Counters start anew for whoever gets the id next."""
        values = table.get(number)
        syscall.update(table.fd, struct.pack("I", number), b"".join(bytes(type(value)()) for value in values))


def _batch_size() -> int:
    """How many inner maps may be open at once."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(_BATCH_MAX, max(64, (limit - _OTHER_DESCRIPTORS) // 2))


def batched(steps: Iterable[Step], size: int) -> Iterator[list[Step]]:
    """The steps in lists of at most `size`."""
    rest = iter(steps)
    while some := list(islice(rest, size)):
        yield some
