"""The controller's maps: what they hold as plan's entries, and the steps of a plan carried out on them."""

import secrets
import socket
import struct
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from itertools import groupby, islice
from typing import Any

from ipbackend import abi
from ipbackend.abi import (
    ACCESS_BITS,
    POOL_WORDS,
    ROLE_SHIFT,
    STATE_GENERATION,
    SWEEP_SLICE,
    WORD_TURNS,
    PoolWord,
    Role,
    SweepMode,
)
from ipbackend.datapath import syscall
from ipbackend.datapath.directory import key_of, parts_of
from ipbackend.datapath.layout import SWEEP_ORDERS
from ipbackend.datapath.maps import Map, Maps
from ipbackend.model import Access, Algorithm, EndpointKey, FlowLog, Gateway, Protocol
from ipbackend.plan import (
    NO_POOL,
    AccessKey,
    Action,
    Address,
    Endpoint,
    Entries,
    Listener,
    ListenerKey,
    NextHop,
    Pool,
    Step,
)

_BATCH = 256  # pools made at a time: each takes a file descriptor meanwhile
_LIST_BITS = 32  # of an access list's entry, before the address
_ENDPOINT_BITS = 16  # of a member's word, below its weight
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


def _directory_key(address: IPv4Address, port: int, protocol: Protocol) -> int:
    return key_of(ip_to_map(address), socket.htons(port), protocol is Protocol.UDP)


def _socket_of(key: int) -> tuple[IPv4Address, int, Protocol]:
    address, port, udp = parts_of(key)
    return ip_from_map(address), socket.ntohs(port), Protocol.UDP if udp else Protocol.TCP


class Tables:
    """Reads and changes what the packets are forwarded by."""

    def __init__(self, maps: Maps, sweep_program: int) -> None:
        self._maps = maps
        self._sweep_program = sweep_program
        self._addresses = maps.directory("addresses")
        self._listeners = maps.directory("listeners_by_addr")
        self._endpoint_ids = maps.directory("endpoints_by_addr")
        self.untold: dict[int, int] = {}  # endpoints with connections that ended, and from which tick on
        self._gone: dict[str, set[int]] = {"listener_counts": set(), "endpoint_counts": set()}  # since the last wait
        self._endpoints: dict[bytes, Endpoint] = {}  # as decoded, by what the maps hold of them
        self._actions: dict[tuple[Action, str], Callable[[Any, Any], object]] = {
            (Action.SET, "links"): lambda index, mtu: maps["links"].set(index, maps["links"].leaf(mtu=mtu)),
            (Action.SET, "next_hops"): self._set_next_hop,
            (Action.SET, "endpoints"): self._set_endpoint,
            (Action.SET, "addresses"): self._set_address,
            (Action.SET, "listeners"): self._set_listener,
            (Action.SET, "access"): lambda key, _: maps["access"].set(self._access_key(key), 1),
            (Action.DELETE, "access"): lambda key, _: maps["access"].delete(self._access_key(key)),
            (Action.DELETE, "listeners"): self._delete_listener,
            (Action.DELETE, "addresses"): lambda address, _: self._addresses.delete(key_of(ip_to_map(address))),
            (Action.SET, "endpoint_ids"): lambda key, number: self._endpoint_ids.set(_directory_key(*key), number),
            (Action.DELETE, "endpoint_ids"): lambda key, _: self._endpoint_ids.delete(_directory_key(*key)),
            (Action.DELETE, "endpoints"): self._delete_endpoint,
            (Action.DELETE, "next_hops"): self._delete_next_hop,
            (Action.DELETE, "links"): lambda index, _: maps["links"].set(index, maps["links"].leaf()),
            (Action.WAIT, "pools"): lambda *_: self.wait(),
            (Action.END, "endpoints"): lambda number, _: self._end(number, SweepMode.ENDPOINT),
        }
        self._together: dict[tuple[Action, str], Callable[[list[Step]], object]] = {
            (Action.SET, "pools"): self._set_pools,
            (Action.DELETE, "pools"): lambda steps: maps["pools"].clear_inner([step.key for step in steps]),
            (Action.END, "listeners"): self._end_listeners,
        }

    @property
    def slots(self) -> int:
        """How many all endpoints have between them, and those before the first one."""
        return self._maps["conntrack"].info.max_entries

    def apply(self, steps: Iterable[Step]) -> None:
        """Carry out the steps of a plan in their order."""
        for what, group in groupby(steps, key=lambda step: (step.action, step.table)):
            if what not in self._together:
                for step in group:
                    self._actions[what](step.key, step.value)
                continue
            for some in batched(group, _BATCH):
                self._together[what](some)

    def read(self, pools: Collection[int] = ()) -> Entries:
        """What the maps hold now; of pools those that a listener points to, and `pools` where they are there."""
        listeners = {ListenerKey(*_socket_of(key)): self.listener(number) for key, number in self._listeners.entries()}
        return Entries(
            addresses={
                ip_from_map(parts_of(key)[0]): Address(Role(number >> ROLE_SHIFT), number & (1 << ROLE_SHIFT) - 1)
                for key, number in self._addresses.entries()
            },
            access={_access_of(key): True for key in self._maps["access"].all_keys()},
            listeners=listeners,
            pools={
                number: self.pool(number)
                for number in {one.pool for one in listeners.values()} - {NO_POOL} | set(pools)
                if number not in pools or self._maps["pools"].inner_size(number)
            },
            endpoints={number: self._endpoint(number) for number in self._numbers()},
            endpoint_ids={EndpointKey(*_socket_of(key)): number for key, number in self._endpoint_ids.entries()},
            next_hops=self._next_hops(),
            links={index: mtu for index, mtu in enumerate(self._maps["links"].memory().bytes.cast("I")[::2]) if mtu},
        )

    def set_timing(self, gateway: Gateway) -> None:
        """How long a connection may be silent in each phase, as of the next sweep; how much is told, and to whom."""
        settings = self._maps["gateway"].memory()[0]
        for name in ("syn_sent_timeout", "syn_received_timeout", "closing_timeout", "rest"):
            setattr(settings, name, getattr(gateway, name))
        settings.error_interval = 10**9 // gateway.icmp_error_rate
        settings.events = gateway.flow_log is not FlowLog.OFF

    def drop_leftovers(self) -> None:
        """What a controller left that died between two steps: pools that are no listener's, orphans, ends untold."""
        used = {self._maps["listeners"].memory()[number].pool for _, number in self._listeners.entries()}
        unused = [number for number, there in enumerate(self._maps["pools"].there) if there and number not in used]
        if unused:
            self._maps["pools"].clear_inner(unused)
        self._end_orphans()
        clock, rest = self._maps.clock, self._maps["gateway"].memory()[0].rest
        for number in filter(self._was_used, self._numbers()):
            self.untold[number] = (clock.now() - clock.ticks(rest)) & 0xFFFF_FFFF
        for name, directory in (("listener_counts", self._listeners), ("endpoint_counts", self._endpoint_ids)):
            ids = {number for _, number in directory.entries()}
            self._gone[name].update(set(self._maps[name].rows_in_use()) - ids - {0})
        self.wait()

    def sweep(self, endpoint: int, mode: SweepMode, listener: int = 0) -> tuple[int, int]:
        """Look at all slots of an endpoint; returns how many connections ended and how many slots rested enough.

        REMOVED and DRAINED are about the connections of one listener, if it is named.
        """
        rounds = -(-self._maps["endpoints"].memory()[endpoint].slots // SWEEP_SLICE)
        return self._run_sweep(endpoint, 0, mode, listener, rounds) if rounds else (0, 0)

    def set_swept(self) -> None:
        """All endpoints have been looked at: until UNSWEPT seconds from now, openings need not do it."""
        self._maps["gateway"].memory()[0].swept = max(1, self._maps.clock.now())

    def kill(self, endpoint: int, slot: int, state: int) -> bool:
        """End the connection whose slot had this state word; False: it has ended, or a packet was in the way."""
        ended, _ = self._run_sweep(endpoint, slot, SweepMode.KILLED, state // STATE_GENERATION & 0xFFFF_FFFF, 1)
        return bool(ended)

    def _run_sweep(self, endpoint: int, slot: int, mode: SweepMode, only: int, rounds: int) -> tuple[int, int]:
        began = self._maps.clock.now()
        orders = SWEEP_ORDERS.pack(endpoint, slot, mode, only, 0, 0, 0)
        _, result, _ = syscall.run(self._sweep_program, orders, rounds)
        *_, ended, rested, _ = SWEEP_ORDERS.unpack(result)
        if ended and mode is not SweepMode.ENDPOINT:
            self.untold.setdefault(endpoint, began)
        return ended, rested

    def wait(self) -> None:
        """Return when every packet that entered before has left: the kernel waits so after a map of maps changes.

        Nothing is counted any more for who was gone before.
        """
        self._maps["pools"].clear_inner([NO_POOL])
        for name, numbers in self._gone.items():
            if numbers:
                self._retire(self._maps[name], numbers)
                numbers.clear()

    def move_clients(self, gone: int, instead: int) -> None:
        """Have connections whose client came by an interface that is gone be answered by another one.

        A client that only listens would never be heard there, and no packet comes in by the one that is gone.
        """
        interfaces = self._maps["conntrack"].memory().values("client_interface")
        for at, number in enumerate(interfaces):
            if number == gone:
                interfaces[at] = instead

    def pool(self, number: int) -> Pool:
        """A pool as it is now; of one that is not there, an empty one."""
        inner = self._maps["pools"].inner(number)
        if inner is None:
            return Pool()
        words = inner.bytes.cast("Q")
        members = words[POOL_WORDS : POOL_WORDS + words[PoolWord.MEMBERS]]
        turns = inner.bytes.cast("H")[WORD_TURNS * (POOL_WORDS + _whole_rows(len(members))) :]
        return Pool(
            tuple(word & (1 << _ENDPOINT_BITS) - 1 for word in members),
            tuple(word >> _ENDPOINT_BITS for word in members),
            array("H", turns[: words[PoolWord.TURNS]].tobytes()),
            Algorithm[abi.Algorithm(words[PoolWord.ALGORITHM]).name],
            words[PoolWord.PERSISTENCE],
        )

    def listener(self, number: int) -> Listener:
        """A listener as it is now."""
        value = self._maps["listeners"].memory()[number]
        mode = abi.Access(value.access & (1 << ACCESS_BITS) - 1)
        return Listener(
            number,
            value.pool,
            value.idle_timeout,
            value.limit,
            value.rate,
            value.source_rate,
            None if mode is abi.Access.ALL else Access[mode.name],
            value.access >> ACCESS_BITS,
        )

    def _numbers(self) -> list[int]:
        """Of the endpoints that have slots."""
        memory = self._maps["endpoints"].memory()
        slots = memory.bytes.cast("I")[self._maps["endpoints"].leaf.slots.offset // 4 :: memory.step // 4]
        return [number for number, count in enumerate(slots) if count]

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
                value.first,
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
                value.vlan,
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
                vlan=hop.vlan,
            ),
        )

    def _delete_next_hop(self, number: int, _: object) -> None:
        self._maps["next_hops"].set(number, self._maps["next_hops"].leaf())

    def _set_address(self, address: IPv4Address, value: Address) -> None:
        self._addresses.set(key_of(ip_to_map(address)), value.role << ROLE_SHIFT | value.index)

    def _set_listener(self, key: ListenerKey, value: Listener) -> None:
        table = self._maps["listeners"]
        mode = abi.Access[value.access.name] if value.access else abi.Access.ALL
        row = table.leaf(
            pool=value.pool,
            idle_timeout=value.idle_timeout,
            limit=value.limit,
            access=value.list << ACCESS_BITS | mode,
            rate=value.rate,
            source_rate=value.source_rate,
        )
        table.set(value.id, row)
        self._listeners.set(_directory_key(*key), value.id)

    def _delete_listener(self, key: ListenerKey, value: Listener) -> None:
        self._listeners.delete(_directory_key(*key))
        self._maps["listeners"].set(value.id, self._maps["listeners"].leaf())  # its connections are orphans now

    def _end_listeners(self, steps: list[Step]) -> None:
        self._end_orphans()
        for step in steps:
            self._gone["listener_counts"].add(step.value.id)
            self._maps["listener_load"].memory()[step.value.id].due = 0  # whoever gets the id next has a full bucket

    def _end_orphans(self) -> None:
        """All connections whose listener is gone."""
        for number in self._numbers():
            self._end(number, SweepMode.ORPHANS)

    def _end(self, endpoint: int, mode: SweepMode) -> None:
        if self._was_used(endpoint):
            self.sweep(endpoint, mode)

    @property
    def were_used(self) -> bool:
        """Whether any slot of any endpoint was ever taken."""
        return any(map(self._was_used, self._numbers()))

    def _was_used(self, endpoint: int) -> bool:
        """Whether any slot of it was ever taken."""
        return bool(self._maps["load"].memory()[endpoint].head)

    def _set_pools(self, steps: list[Step]) -> None:
        fresh = {}
        for step in steps:
            pool: Pool = step.value
            content = _rows_of(pool)
            fresh[step.key] = self._maps["pools"].new_inner(-(-len(content) // (8 * POOL_WORDS)), content)
        self._maps["pools"].set_inner(fresh)

    def _set_endpoint(self, number: int, endpoint: Endpoint) -> None:
        there = self._maps["endpoints"].memory()[number]
        making = there.making
        if (there.first, there.slots) != (endpoint.first, endpoint.slots):
            self._make_table(number, endpoint)
            making = secrets.randbits(32)  # no client's address that stayed with this id's last one stays with this
        snat = [ip_to_map(address) for address in endpoint.snat]
        self._maps["endpoints"].set(
            number,
            self._maps["endpoints"].leaf(
                address=ip_to_map(endpoint.key.address),
                port=socket.htons(endpoint.key.port),
                protocol=_NUMBERS[endpoint.key.protocol],
                next_hop=endpoint.next_hop,
                first=endpoint.first,
                slots=endpoint.slots,
                snat=tuple(snat + [0] * (4 - len(snat))),
                making=making,
            ),
        )
        its_load = self._maps["load"].memory()[number]
        its_load.half_open_limit, its_load.ceiling = endpoint.half_open_limit, endpoint.ceiling

    def _make_table(self, number: int, endpoint: Endpoint) -> None:
        """All slots free, and in the ring in their order.

        From any one on: a member that was here before may still know a connection on a port that came first then.
        """
        connections = self._maps["conntrack"].memory().part(endpoint.first, endpoint.slots)
        ring = self._maps["free_slots"].memory().part(endpoint.first, endpoint.slots)
        connections.bytes[:] = bytes(len(connections.bytes))
        places = array("Q", range(endpoint.first, endpoint.first + endpoint.slots))
        begin = secrets.randbelow(endpoint.slots)
        ring.bytes[:] = (places[begin:] + places[:begin]).tobytes()
        self._maps["load"].set(number, self._maps["load"].leaf(tail=endpoint.slots))

    def _delete_endpoint(self, number: int, _: Endpoint) -> None:
        self._maps["endpoints"].set(number, self._maps["endpoints"].leaf())
        self._maps["load"].set(number, self._maps["load"].leaf())
        self._gone["endpoint_counts"].add(number)

    def _access_key(self, key: AccessKey) -> Any:
        cidr = key.cidr
        prefix = _LIST_BITS + cidr.prefixlen
        return self._maps["access"].key(prefix=prefix, list=key.list, address=ip_to_map(cidr.network_address))

    @staticmethod
    def _retire(table: Map, numbers: Collection[int]) -> None:
        """What those have counted goes to row 0, which is no one's; whoever gets their ids next starts at 0."""
        first = min(numbers)
        counted = list(zip(*table.columns(max(numbers) + 1 - first, first).values(), strict=True))
        moved = [number for number in numbers if any(counted[number - first])]
        before = (column[0] for column in table.columns(1).values())
        table.put_row(0, map(sum, zip(before, *(counted[number - first] for number in moved), strict=True)))
        for number in moved:
            table.put_row(number, [0] * len(counted[0]))


def _whole_rows(words: int) -> int:
    return -(-words // POOL_WORDS) * POOL_WORDS


def _rows_of(pool: Pool) -> bytes:
    """What the inner array of a pool begins with; two rows at least, as one of a single row counts as none."""
    algorithm = abi.Algorithm[pool.algorithm.name]
    members = [weight << _ENDPOINT_BITS | endpoint for endpoint, weight in zip(pool.members, pool.weights, strict=True)]
    header = (len(members), len(pool.schedule), algorithm, pool.persistence)
    words = _whole_rows(len(members)) or POOL_WORDS
    head, body = struct.pack(f"{POOL_WORDS}Q", *header, *[0] * (POOL_WORDS - len(header))), array("Q", members)
    return head + body.tobytes().ljust(8 * words, b"\0") + pool.schedule.tobytes()


def _access_of(key: Any) -> AccessKey:
    return AccessKey(key.list, IPv4Network((ip_from_map(key.address), key.prefix - _LIST_BITS)))


def batched(steps: Iterable[Step], size: int) -> Iterator[list[Step]]:
    """The steps in lists of at most `size`."""
    rest = iter(steps)
    while some := list(islice(rest, size)):
        yield some
