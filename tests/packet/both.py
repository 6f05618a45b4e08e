"""The gateway twice, in the model and in the kernel: each step is taken in both, and what comes of it compared."""

from __future__ import annotations

import ctypes
from collections import Counter
from fractions import Fraction
from ipaddress import IPv4Address
from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from ipbackend.abi import RATE_SECOND, STATE_GENERATION, TICK_SHIFT, Phase, SweepMode, Verdict
from ipbackend.configuration import Configuration
from ipbackend.datapath import syscall
from ipbackend.datapath.audit import audit
from ipbackend.datapath.clock import Clock
from ipbackend.datapath.tables import ip_from_map, ip_to_map
from ipbackend.model import Protocol
from tests.packet import cast
from tests.packet.cast import Flow
from tests.packet.compare import assert_same
from tests.packet.conftest import Dataplane
from tests.packet.model import Model, Outcome, Place
from tests.packet.model_choice import Bucket
from tests.packet.model_connection import Connection, Side, Timeouts, Tuple, wrap

POOLS = 8  # no more are ever in use at once
SLACK = Fraction(1, 6)  # seconds, more than two ticks; rates have one token in each


class Both:
    """From a configuration to its last connection."""

    def __init__(self, dataplane: Dataplane, configuration: Configuration) -> None:
        self.dataplane = dataplane
        self.reached: Counter[Verdict] = Counter()
        dataplane.reset()
        dataplane.configure(cast.NETWORKS)  # no id depends on what was there before
        dataplane.configure(configuration)
        dataplane.start_anew()
        for pool in range(1, POOLS + 1):
            dataplane.maps["cursors"].memory()[pool].position = 0
        self.model = Model(dataplane.entries)
        self._learn_tables()
        self._counted = dataplane.verdicts()
        self._ran: tuple[int, bytes] | None = None
        self._aged_at, self._rates_aged = 0, (0, 0)

    def configure(self, configuration: Configuration) -> None:
        """Whoever's member and listener are still there goes on as before."""
        self.dataplane.configure(configuration)
        want = self.dataplane.entries
        kept = {
            at: connection.phase
            for at, connection in self.model.connections()
            if at.endpoint in want.endpoints and connection.listener.id in {one.id for one in want.listeners.values()}
        }
        before = dict(self.model.tables)
        self.model.configure(want)
        self._learn_tables()
        for number, table in self.model.tables.items():
            if table is not before.get(number):  # its queue begins anywhere
                begin = self._memories[number][1].values("slot")[0] - table.endpoint.first
                table.queue.rotate(-begin)
        assert {at: Phase(self._memories[at.endpoint][0][at.slot].state & 0xFF) for at in kept} == kept

    def receive(self, packet: Packet) -> tuple[Outcome, Packet]:
        """A packet of TCP or UDP; what became of it, and what left."""
        self._age()
        self._ran = None
        self.model.witness = lambda: self._taken_by(packet)
        expected = self.model.receive(packet)
        return expected, self._check(packet, expected)

    def receive_error(self, packet: Packet, at: Place | None, side: Side, inner: bytes) -> None:
        """An ICMP error, as the model takes it."""
        self._age()
        self._ran = None
        self._check(packet, self.model.receive_error(packet, at, side, inner))

    def wait(self, seconds: int) -> None:
        self.model.now += seconds

    def sweep(self) -> None:
        self._age()
        assert self.dataplane.sweep() == self.model.sweep()
        self._check_times()

    def cut(self, number: int, by: int | None) -> None:
        """All connections of one of the endpoints, or those of one of the listeners."""
        self._age()
        endpoint = sorted(self.model.tables)[number % len(self.model.tables)]
        listeners = sorted(one.id for one in self.dataplane.entries.listeners.values())
        listener = 0 if by is None or not listeners else listeners[by % len(listeners)]
        ended = self.model.cut(endpoint, listener)
        assert self.dataplane.tables.sweep(endpoint, SweepMode.DRAINED, listener) == (ended, 0)
        self._check_times()

    def kill(self, at: Place, later: int) -> None:
        """The connection in a slot, or one of another generation that was there or is to come."""
        self._age()
        state = self._memories[at.endpoint][0][at.slot].state + later * STATE_GENERATION
        assert self.dataplane.tables.kill(at.endpoint, at.slot, state) == self.model.kill(at, not later)
        self._check_times()

    def set_timeouts(self, timeouts: Timeouts) -> None:
        self.model.timeouts = timeouts
        live = self.dataplane.settings
        live.syn_sent_timeout, live.syn_received_timeout = timeouts.syn_sent, timeouts.syn_received
        live.closing_timeout, live.rest = timeouts.closing, timeouts.rest

    def limit_handshakes(self, address: str, port: int, limit: int) -> None:
        for number, table in self.model.tables.items():
            if (str(table.endpoint.key.address), table.endpoint.key.port) == (address, port):
                table.half_open_limit = self.dataplane.maps["load"].memory()[number].half_open_limit = limit

    def sequences(self, flow: Flow) -> dict[Side, int]:
        """How far the ends of the flow are known to be; 0 of one that is gone."""
        at = self.model.find(tuple_of(flow))
        return self.model[at].sequence if at else dict.fromkeys(Side, 0)

    def check_tables(self) -> None:
        for number, table in self.model.tables.items():
            connections, ring = self._memories[number]
            load = self.dataplane.maps["load"].memory()[number]
            assert (load.active, load.half_open) == (table.active, table.half_open)
            assert (load.ceiling, load.half_open_limit) == (table.ceiling, table.half_open_limit)
            entries = ring.values("slot")
            turned = (entries[(load.head + n) % len(entries)] for n in range(len(entries)))
            assert [entry - table.endpoint.first for entry in turned if entry] == list(table.queue)
            phases = {slot: Phase(phase) for slot, phase in enumerate(bytes(connections.column("state"))) if phase}
            assert phases == {slot: connection.phase for slot, connection in table.slots.items()}
            for slot, connection in table.slots.items():
                assert seen(connections[slot]) == known(connection)

    def check_choices(self) -> None:
        """What listeners count, and where clients stay."""
        for one in self.dataplane.entries.listeners.values():
            assert self.dataplane.maps["listener_load"].memory()[one.id].active == self.model.active_at(one.id)
        tick = (1 << TICK_SHIFT) * RATE_SECOND // self.dataplane.settings.hz
        spent = wrap(self.dataplane.maps.clock.now() - self._aged_at) * tick
        for number, bucket in self.model.demands.buckets.items():
            if bucket.due > self._rates_aged[1]:
                due = self.dataplane.maps["listener_load"].memory()[number].due
                assert 0 <= due - self._due(bucket) + 2 * tick <= SLACK * RATE_SECOND + spent + 4 * tick
        there = {
            (key.number, str(ip_from_map(key.client))): value.endpoint
            for key, value in self.dataplane.maps["stays"].items()
        }
        assert there == {key: stay.endpoint for key, stay in self.model.stays.there.items()}

    def check_counts(self) -> None:
        for number, table in self.model.tables.items():
            counts = self.dataplane.maps["endpoint_counts"].get(number)
            opened = sum(one.opened for one in counts)
            ended = sum(one.closed + one.expired + one.removed + one.drained + one.killed for one in counts)
            assert opened - ended == table.active

    def end(self) -> None:
        """The books balance, the index's too; whatever there is ends, and everything is given back."""
        assert audit(self.dataplane.maps) == []
        self.dataplane.sweep(SweepMode.ENDPOINT)
        assert audit(self.dataplane.maps) == []
        for number in self.model.tables:
            load = self.dataplane.maps["load"].memory()[number]
            assert (load.active, load.half_open) == (0, 0)
            assert not any(self.dataplane.phases(number))

    def _learn_tables(self) -> None:
        maps = self.dataplane.maps
        self._memories = {
            number: (maps.of_endpoint("conntrack", number), maps.of_endpoint("free_slots", number))
            for number in self.model.tables
        }

    def _check(self, packet: Packet, expected: Outcome) -> Packet:
        """The packet in the kernel; its verdict and what left must be the model's."""
        action, data = self._run(packet)
        counted, before = self.dataplane.verdicts(), self._counted
        self._counted = counted
        left = Ether(data)
        self.reached[expected.verdict] += 1
        assert counted - before == Counter({expected.verdict: 1}), packet.summary()
        assert (action > 1) == (not expected.verdict.name.startswith("DROP"))
        if expected.left is not None:
            assert_same(left, expected.left)
        elif action == 2:
            assert data == bytes(packet)
        self._check_times()
        return left

    def _run(self, packet: Packet) -> tuple[int, bytes]:
        """In the kernel, once."""
        if self._ran is None:
            self._ran = syscall.run(self.dataplane.program.entry, bytes(packet))[:2]
        return self._ran

    def _taken_by(self, packet: Packet) -> int:
        """The endpoint that the kernel chose for it."""
        left = Ether(self._run(packet)[1])
        kind = TCP if TCP in left else UDP
        protocol = Protocol.TCP if kind is TCP else Protocol.UDP
        return self.dataplane.endpoint(left[IP].dst, left[kind].dport, protocol)

    def _age(self) -> None:
        """Put the model's time in place of the kernel's: each connection was heard of as long ago as it says."""
        clock = self.dataplane.maps.clock
        self._aged_at, self._aged = clock.now(), {}
        for at, connection in self.model.connections():
            ticks = clock.ticks(self.model.now - connection.heard)
            self._aged[at] = self._memories[at.endpoint][0][at.slot].last_seen = wrap(self._aged_at - ticks - 1)
        self._age_stays(clock)
        self._age_rates(clock)

    def _age_stays(self, clock: Clock) -> None:
        """The same for where clients stay."""
        stays = self.dataplane.maps["stays"]
        for key, value in list(stays.items()):
            heard = self.model.stays.there[key.number, str(ip_from_map(key.client))].heard
            value.seen = wrap(self._aged_at - clock.ticks(self.model.now - heard) - 1)
            stays.set(key, value)

    def _age_rates(self, clock: Clock) -> None:
        """And for rates, with something off what is due: a machine that is slow puts no token into a bucket."""
        tick = (1 << TICK_SHIFT) * RATE_SECOND // self.dataplane.settings.hz
        self._rates_aged = self._aged_at * tick, self.model.now
        loads, dues = self.dataplane.maps["listener_load"].memory(), self.dataplane.maps["source_dues"]
        for number, bucket in self.model.demands.buckets.items():
            loads[number].due = self._due(bucket)
        for (number, client), bucket in self.model.demands.of_clients.items():
            key = dues.key(number=number, client=ip_to_map(IPv4Address(client)))
            dues.set(key, ctypes.c_uint64(self._due(bucket)))

    def _due(self, bucket: Bucket) -> int:
        """In the kernel's time, which was set beside the model's last."""
        at, now = self._rates_aged
        return int(at + (bucket.due - now - SLACK) * RATE_SECOND)

    def _check_times(self) -> None:
        """Whether the kernel has heard of the same connections since then as the model."""
        latest = self.dataplane.maps.clock.now() + 1
        for at, connection in self.model.connections():
            last_seen = self._memories[at.endpoint][0][at.slot].last_seen
            if connection.heard == self.model.now:
                assert wrap(last_seen - self._aged_at + 2) <= wrap(latest - self._aged_at + 2)
            else:
                assert last_seen == self._aged[at]


def tuple_of(flow: Flow) -> Tuple:
    protocol = Protocol.TCP if flow.kind is TCP else Protocol.UDP
    return Tuple(flow.client, flow.client_port, flow.vip, flow.vip_port, protocol)


def seen(entry: Any) -> tuple[Any, ...]:
    """A slot of conntrack in the model's words."""
    ends = (str(ip_from_map(entry.client)), swapped(entry.client_port), str(ip_from_map(entry.vip)))
    protocol = Protocol.TCP if entry.protocol == 6 else Protocol.UDP
    numbers = (entry.client_sequence, entry.member_sequence)
    macs = (bytes(entry.client_mac).hex(":"), bytes(entry.gateway_mac).hex(":"))
    state = (bool(entry.state & 0x100), bool(entry.state & 0x200))
    return (
        Tuple(*ends, swapped(entry.vip_port), protocol), entry.listener, entry.idle_timeout, numbers, macs, state
    )  # fmt: skip


def known(connection: Connection) -> tuple[Any, ...]:
    """The same of the model."""
    numbers = (connection.sequence[Side.CLIENT], connection.sequence[Side.MEMBER])
    state = (Side.CLIENT in connection.closing, Side.MEMBER in connection.closing)
    listener = connection.listener
    return connection.tuple, listener.id, listener.idle_timeout, numbers, connection.macs, state


def swapped(port: int) -> int:
    return int.from_bytes(port.to_bytes(2, "little"), "big")
