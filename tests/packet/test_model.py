"""Random lives of a gateway, step by step in a model and in the kernel: packets, time, sweeps and configurations.

After every step both agree on the verdict, on each field of the packet that left and on every slot, and the books
balance. The seed is fixed, so a failure comes again, and Hypothesis shortens it to the steps that it takes.
`MODEL_EXAMPLES` says how many lives; `make fuzz` lives more of them than `make test`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from ipbackend.abi import TICK_SHIFT, Phase, SweepMode, Verdict
from ipbackend.datapath import syscall
from ipbackend.datapath.audit import audit
from ipbackend.datapath.maps import Memory
from ipbackend.datapath.tables import ip_from_map
from ipbackend.model import Protocol
from tests.packet import cast
from tests.packet.cast import CLIENT_INTERFACE, Flow, built, from_client, icmp
from tests.packet.compare import assert_same
from tests.packet.conftest import Dataplane, start_over
from tests.packet.model import AHEAD, BEHIND, LOST, STEP, Model, Outcome, Place, Side, Tuple, wrap

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "120"))
STEPS = 40
REMEMBERED = 12  # flows whose packets are still sent, dead ones among them

CLIENTS = (cast.CLIENT, cast.OTHER_CLIENT)
VIPS = (cast.VIP, cast.SECOND_VIP)
PORTS = (40_000, 40_001, 40_002)
PEERED = "172.16.10.10"
MEMBERS = {  # by name: address, port, and the pools that they may stand in
    "near": ("10.0.0.11", 8080, ("web", "second")),
    "peered": (PEERED, 8080, ("web",)),
    "resolver": (cast.UDP_MEMBER, 5353, ("dns",)),
    "near-resolver": ("10.0.0.11", 5353, ("dns",)),
}
LISTENERS = {  # by name: load balancer, protocol, port, pool
    "web": ("shop", "TCP", 80, "web"),
    "more": ("shop", "TCP", 8443, "web"),
    "web-too": ("second", "TCP", 80, "second"),
    "dns": ("shop", "UDP", 53, "dns"),
}
FLAGS = ("A", "PA", "FA", "R", "RA", "S", "SA", "F", "", "SF", "FPA", "SR")
DISTANCES = (0, 1, -1, STEP - 1, STEP, AHEAD - 1, AHEAD, -BEHIND, -BEHIND - 1, LOST - 1, LOST, 2**31)
FIRST_NUMBERS = (0, 1, 2**31 - 20_000, 2**32 - 50_000, 2**32 - 1)
STRANGERS = ("127.0.0.1", "224.0.0.1", "0.1.2.3", cast.VIP, cast.SNAT)
# Seconds: never nearer than 5 to a timeout from below, so that a slow machine's own time changes nothing.
MOMENTS = (10, 20, 30, 60, 250, 300)

REACHED = {
    Verdict.FORWARD_OPENED, Verdict.FORWARD_REQUEST, Verdict.FORWARD_REPLY, Verdict.FORWARD_ICMP_ERROR,
    Verdict.REJECT_NO_LISTENER, Verdict.REJECT_NO_CONNECTION, Verdict.REJECT_NO_MEMBER, Verdict.REJECT_ALL_FULL,
    Verdict.REJECT_TOO_BIG, Verdict.REJECT_TTL, Verdict.REJECT_EXPIRED, Verdict.DROP_MALFORMED,
    Verdict.DROP_ICMP_UNRELATED, Verdict.DROP_TTL, Verdict.DROP_TOO_BIG, Verdict.DROP_NO_CONNECTION,
    Verdict.DROP_NO_NEXT_HOP, Verdict.DROP_HALF_OPEN,
}  # fmt: skip
OTHER = {Side.CLIENT: Side.MEMBER, Side.MEMBER: Side.CLIENT}


@dataclass(frozen=True)
class Utterance:
    """What one end of a flow says; the numbers are distances from those that are known of it."""

    side: Side
    flags: str
    ahead: int
    acknowledged: int
    size: int
    ip: tuple[tuple[str, Any], ...]
    moved: bool  # another router's MAC than before


pick = st.integers(0, REMEMBERED - 1)
flags = st.sampled_from(FLAGS)
distance = st.sampled_from((0, 0, 0, 0, 1, 1, 1, *DISTANCES))
first_number = st.sampled_from(FIRST_NUMBERS)
size = st.sampled_from((0, 1, 7, 400, 1448, 1460))
ceiling = st.sampled_from((1, 2, 3, 60))
limit = st.sampled_from((1, 2, 60))
mtu = st.sampled_from((1500, 1500, 600))
name = st.sampled_from(sorted(MEMBERS))
ip_fields = st.sampled_from(((),) * 5 + ((("flags", "DF"),),) * 3 + ((("ttl", 1),), (("ttl", 2),)))
utterance = st.builds(
    Utterance, st.sampled_from(Side), flags, distance, distance, size, ip_fields, st.sampled_from((False, False, True))
)
said = st.lists(utterance, max_size=4)


def written(members: dict[str, dict[str, tuple[int, int]]], listeners: dict[str, int]) -> str:
    """A configuration file; `members` by pool and name: weight and ceiling; `listeners`: their idle timeouts."""
    text = cast.NETWORKS
    for name, seconds in listeners.items():
        load_balancer, protocol, port, pool = LISTENERS[name]
        text += f"""
[listeners.{name}]
load_balancer = "{load_balancer}"
protocol = "{protocol}"
port = {port}
pool = "{pool}"
idle_timeout = {seconds}
"""
    for pool, its_members in members.items():
        lines = [
            f'{{ address = "{address}", port = {port}, weight = {weight}, max_connections = {ceiling} }}'
            for name, (weight, ceiling) in its_members.items()
            for address, port, _ in [MEMBERS[name]]
        ]
        protocol = "UDP" if pool == "dns" else "TCP"
        text += f'\n[pools.{pool}]\nprotocol = "{protocol}"\nmembers = [{", ".join(lines)}]\n'
    return text


class Life(RuleBasedStateMachine):
    """One gateway from its configuration to its last connection."""

    dataplane: Dataplane
    reached: Counter[Verdict]

    @initialize(ceilings=st.tuples(*[ceiling] * 4), limits=st.tuples(*[limit] * 4))
    def begin(self, ceilings: tuple[int, ...], limits: tuple[int, ...]) -> None:
        self.dataplane.reset()
        near, peered, resolver, near_resolver = ceilings
        self.members = {
            "web": {"near": (1, near), "peered": (2, peered)},
            "second": {"near": (1, near)},
            "dns": {"resolver": (1, resolver), "near-resolver": (1, near_resolver)},
        }
        self.listeners = dict.fromkeys(LISTENERS, 300)
        self.dataplane.configure(written(self.members, self.listeners))
        self.dataplane.start_anew()
        for pool in range(1, 9):
            self.dataplane.maps["cursors"].memory()[pool].position = 0
        self.model = Model(self.dataplane.entries)
        self.flows: list[Flow] = []  # the latest first
        self.memories: dict[int, tuple[Memory, Memory]] = {}
        self.learn_tables()
        self.counted = self.dataplane.verdicts()
        for name, its_limit in zip(MEMBERS, limits, strict=True):
            self.limit_handshakes(name, its_limit)

    def learn_tables(self) -> None:
        conntrack, rings = self.dataplane.maps["conntrack"], self.dataplane.maps["free_slots"]
        self.memories = {number: (conntrack.inner(number), rings.inner(number)) for number in self.model.tables}

    # What happens to a gateway

    @rule(
        client=st.sampled_from(CLIENTS),
        port=st.sampled_from(PORTS),
        vip=st.sampled_from(VIPS),
        to=st.sampled_from((80, 80, 80, 8443, 81)),
        flags=st.sampled_from(("S", "S", "S", "S", *FLAGS)),
        number=first_number,
        size=st.sampled_from((0, 0, 5)),
    )
    def knock(self, client: str, port: int, vip: str, to: int, flags: str, number: int, size: int) -> None:
        """The first segment of a client, or the last one of a tuple that is long gone."""
        self.send(from_client(client, vip) / TCP(sport=port, dport=to, flags=flags, seq=number) / Raw(bytes(size)))

    @rule(
        client=st.sampled_from(CLIENTS),
        port=st.sampled_from(PORTS),
        vip=st.sampled_from(VIPS),
        numbers=st.tuples(first_number, first_number),
        said=said,
    )
    def connect(self, client: str, port: int, vip: str, numbers: tuple[int, int], said: list[Utterance]) -> None:
        """A whole handshake, if it comes to that, and what is said then."""
        mine, its = numbers
        outcome = self.send(from_client(client, vip) / TCP(sport=port, dport=80, flags="S", seq=mine))
        if outcome.verdict is Verdict.FORWARD_OPENED:
            flow = self.flows[0]
            self.send(flow.reply(flags="SA", seq=its, ack=wrap(mine + 1)))
            self.send(flow.request(flags="A", seq=wrap(mine + 1), ack=wrap(its + 1)))
            self.talk(0, said)

    @rule(
        client=st.sampled_from(CLIENTS),
        port=st.sampled_from(PORTS),
        to=st.sampled_from((53, 53, 53, 54)),
        size=size,
        summed=st.booleans(),
    )
    def ask(self, client: str, port: int, to: int, size: int, summed: bool) -> None:
        """A datagram, with a checksum or without."""
        datagram = UDP(sport=port, dport=to) if summed else UDP(sport=port, dport=to, chksum=0)
        self.send(from_client(client) / datagram / Raw(bytes(size)))

    @rule(which=pick, said=said)
    def talk(self, which: int, said: list[Utterance]) -> None:
        """Packets of a flow's ends, their numbers near to or far from where each end is known to be."""
        for one in said:
            if not self.flows:
                return
            flow = self.flows[which % len(self.flows)]
            fields: dict[str, Any] = {}
            if flow.kind is TCP:
                known, other = self.sequences(flow), OTHER[one.side]
                fields = {"seq": wrap(known[one.side] + one.ahead), "ack": wrap(known[other] + one.acknowledged)}
                fields["flags"] = one.flags
            packet = says(flow, one.side)(dict(one.ip), **fields) / Raw(bytes(one.size))
            if one.moved and one.side is Side.CLIENT:
                packet[Ether].src = "02:00:00:00:00:77"
            self.send(packet)

    @precondition(lambda self: self.flows)
    @rule(which=pick, first=st.sampled_from(Side))
    def part(self, which: int, first: Side) -> None:
        """Both ends have nothing more to say."""
        flow = self.flows[which % len(self.flows)]
        if flow.kind is TCP:
            known = self.sequences(flow)
            numbers = {Side.CLIENT: known[Side.CLIENT] + 1, Side.MEMBER: known[Side.MEMBER] + 1}
            for side in (first, OTHER[first]):
                self.send(says(flow, side)(flags="FA", seq=wrap(numbers[side]), ack=wrap(numbers[OTHER[side]])))

    @rule(
        name=name,
        wrong=st.sampled_from((0, 0, 0, 1)),
        snat=st.sampled_from(cast.SNATS),
        port=st.one_of(st.integers(32_768, 32_772), st.sampled_from((0, 80, 32_767, 32_800, 65_535))),
        flags=flags,
    )
    def intrude(self, name: str, wrong: int, snat: str, port: int, flags: str) -> None:
        """A member's packet to any slot, whosever it is."""
        address, its_port, pools = MEMBERS[name]
        ends = {"sport": its_port + wrong, "dport": port}
        layer = UDP(**ends) if pools == ("dns",) else TCP(**ends, flags=flags)
        self.send(cast.from_member(address, snat) / layer)

    @rule(sender=st.sampled_from(STRANGERS), to=st.sampled_from((80, 53)), ttl=st.sampled_from((64, 64, 1)))
    def pretend(self, sender: str, to: int, ttl: int) -> None:
        """A sender that no host can be."""
        layer = TCP(sport=1, dport=80, flags="S") if to == 80 else UDP(sport=1, dport=53)
        self.send(from_client(sender, ttl=ttl) / layer)

    @precondition(lambda self: self.flows)
    @rule(
        which=pick,
        side=st.sampled_from(Side),
        kind=st.sampled_from(((3, 1), (3, 3), (3, 4), (11, 0), (12, 0))),
        cut=st.sampled_from((28, 40, 120)),
        size=st.sampled_from((0, 100, 500)),
        ttl=st.sampled_from((64, 64, 64, 1)),
        router=st.sampled_from(("192.0.2.1",) * 5 + ("127.0.0.1",)),
    )
    def complain(
        self, which: int, side: Side, kind: tuple[int, int], cut: int, size: int, ttl: int, router: str
    ) -> None:
        """A router on one side tells of a datagram that went to that side: to the client, or to the member."""
        flow = self.flows[which % len(self.flows)]
        snat_index = cast.SNATS.index(flow.snat)
        about: Tuple | Place | None
        if side is Side.CLIENT:
            arrived, sent, about = flow.replied, flow.reply, self.tuple_of(flow)
            outer = from_client(router, flow.vip, ttl=ttl, proto=1)
        else:
            arrived, sent = flow.requested, flow.request
            about = self.model.place_of(built(flow.reply()), snat_index)
            outer = cast.from_member(flow.member, flow.snat, ttl=ttl, proto=1)
            outer[IP].src = router
        at = self.model.find(about) if isinstance(about, Tuple) else about
        if at is not None and self.model.tuple_at(at) != self.tuple_of(flow):
            return  # the slot is another's by now: what it quotes cannot be told from what that one sent
        quoted = bytes(built(arrived() / Raw(bytes(size)))[IP])[:cut]
        inner = bytes(built(sent({"ttl": 63}) / Raw(bytes(size)))[IP])[:cut]
        if at is not None and self.model.flow_ends(at) != (flow.snat, flow.snat_port, flow.member, flow.member_port):
            return
        packet = outer / icmp(*kind, quoted)
        self.check(packet, self.model.receive_error(packet, about, inner))

    @rule(seconds=st.sampled_from(MOMENTS), swept=st.sampled_from((True, True, False)), which=pick, said=said)
    def wait(self, seconds: int, swept: bool, which: int, said: list[Utterance]) -> None:
        """Silence, and who breaks it."""
        self.model.now += seconds
        if swept:
            self.age()
            assert self.dataplane.sweep() == self.model.sweep()
            assert audit(self.dataplane.maps) == []
        self.talk(which, said)

    @rule(
        what=st.one_of(
            st.tuples(st.just("change_timeouts"), *map(st.sampled_from, ((5, 25), (15, 35), (15, 65), (25, 60, 120)))),
            st.tuples(st.just("limit_handshakes"), name, limit),
            st.tuples(st.just("change_member"), name, st.integers(0, 1), st.sampled_from((None, 0, 1, 2)), ceiling),
            st.tuples(st.just("change_listener"), st.sampled_from(sorted(LISTENERS)), st.sampled_from((None, 15, 300))),
            st.tuples(st.just("lose_or_find"), st.sampled_from(("10.0.0.11", "10.0.0.2", "10.0.0.3"))),
            st.tuples(st.just("change_mtu"), mtu, mtu),
        ),
        which=pick,
        said=said,
    )
    def change(self, what: tuple[Any, ...], which: int, said: list[Utterance]) -> None:
        """One thing of the configuration, and who meets it."""
        how, *arguments = what
        getattr(self, how)(*arguments)
        self.talk(which, said)

    def change_timeouts(self, syn_sent: int, syn_received: int, closing: int, rest: int) -> None:
        both = (self.dataplane.settings, self.model.timeouts)
        for one, names in zip(both, (("_timeout",) * 3 + ("",), ("",) * 4), strict=True):
            values = {"syn_sent": syn_sent, "syn_received": syn_received, "closing": closing, "rest": rest}
            for (name, value), ending in zip(values.items(), names, strict=True):
                setattr(one, name + ending, value)

    def limit_handshakes(self, name: str, limit: int) -> None:
        """A budget that is not the ceiling, for endpoints too small to have one."""
        for number, table in self.model.tables.items():
            if (str(table.endpoint.key.address), table.endpoint.key.port) == MEMBERS[name][:2]:
                table.half_open_limit = self.dataplane.maps["load"].memory()[number].half_open_limit = limit

    def change_member(self, name: str, pool: int, weight: int | None, ceiling: int) -> None:
        """In or out of a pool, drained, or held to another ceiling: one that is in two pools has one ceiling."""
        pools = MEMBERS[name][2]
        chosen = self.members[pools[pool % len(pools)]]
        if weight is None:
            chosen.pop(name, None)
        else:
            chosen[name] = (weight, ceiling)
        for members in self.members.values():
            if name in members:
                members[name] = (members[name][0], ceiling)
        self.configure()

    def change_listener(self, name: str, seconds: int | None) -> None:
        self.listeners.pop(name, None)
        if seconds is not None:
            self.listeners[name] = seconds
        self.configure()

    def lose_or_find(self, hop: str) -> None:
        """A next hop that no longer answers, or does again."""
        self.dataplane.unresolved ^= {IPv4Address(hop)}
        self.configure()

    def change_mtu(self, client_side: int, member_side: int) -> None:
        self.dataplane.links[CLIENT_INTERFACE], self.dataplane.mtu = client_side, member_side
        self.configure()

    # One step in both worlds

    def configure(self) -> None:
        """Whoever's member and listener are still there goes on as before."""
        self.dataplane.configure(written(self.members, self.listeners))
        want = self.dataplane.entries
        kept = {
            at: connection.phase
            for at, connection in self.model.connections()
            if at.endpoint in want.endpoints and connection.listener.id in {one.id for one in want.listeners.values()}
        }
        self.model.configure(want)
        self.learn_tables()
        assert {at: Phase(self.memories[at.endpoint][0][at.slot].state & 0xFF) for at in kept} == kept
        assert audit(self.dataplane.maps) == []

    def send(self, packet: Packet) -> Outcome:
        expected = self.model.receive(packet)
        left = self.check(packet, expected)
        if expected.verdict is Verdict.FORWARD_OPENED:
            self.flows = [Flow.of(packet, left), *self.flows][:REMEMBERED]
        return expected

    def check(self, packet: Packet, expected: Outcome) -> Packet:
        """The packet in the kernel; its verdict and what left must be the model's."""
        self.age()
        action, data, _ = syscall.run(self.dataplane.program.entry, bytes(packet))
        counted, before = self.dataplane.verdicts(), self.counted
        self.counted = counted
        left = Ether(data)
        self.reached[expected.verdict] += 1
        assert counted - before == Counter({expected.verdict: 1}), packet.summary()
        assert (action > 1) == (not expected.verdict.name.startswith("DROP"))
        if expected.left is not None:
            assert_same(left, expected.left)
        elif action == 2:
            assert data == bytes(packet)
        return left

    def age(self) -> None:
        """Put the model's time in place of the kernel's: each connection was heard of as long ago as it says."""
        now = time.monotonic_ns() >> TICK_SHIFT
        for at, connection in self.model.connections():
            seconds = self.model.now - connection.heard
            self.memories[at.endpoint][0][at.slot].last_seen = (now - (seconds * 10**9 >> TICK_SHIFT) - 1) % 2**32

    def tuple_of(self, flow: Flow) -> Tuple:
        protocol = Protocol.TCP if flow.kind is TCP else Protocol.UDP
        return Tuple(flow.client, flow.client_port, flow.vip, flow.vip_port, protocol)

    def sequences(self, flow: Flow) -> dict[Side, int]:
        at = self.model.find(self.tuple_of(flow))
        return self.model[at].sequence if at else dict.fromkeys(Side, 0)

    # What must always hold

    @invariant()
    def every_slot_is_as_the_model_says(self) -> None:
        for number, table in self.model.tables.items():
            connections, ring = self.memories[number]
            load = self.dataplane.maps["load"].memory()[number]
            assert (load.active, load.half_open) == (table.active, table.half_open)
            assert (load.ceiling, load.half_open_limit) == (table.ceiling, table.half_open_limit)
            entries = ring.bytes.cast("Q")
            turned = (entries[(load.head + n) % len(entries)] for n in range(len(entries)))
            assert [entry - 1 for entry in turned if entry] == list(table.queue)
            phases = {slot: Phase(phase) for slot, phase in enumerate(bytes(connections.column("state"))) if phase}
            assert phases == {slot: connection.phase for slot, connection in table.slots.items()}
            for slot, connection in table.slots.items():
                assert seen(connections[slot]) == known(connection)

    @invariant()
    def every_life_is_counted(self) -> None:
        for number, table in self.model.tables.items():
            opened, *ends = (
                self.dataplane.count("endpoint_counts", number, field)
                for field in ("opened", "closed", "expired", "removed")
            )
            assert opened - sum(ends) == table.active

    def teardown(self) -> None:
        """In the end everything is given back."""
        try:
            assert audit(self.dataplane.maps) == []
            self.dataplane.sweep(SweepMode.ENDPOINT)
            assert audit(self.dataplane.maps) == []
            for number in self.model.tables:
                load = self.dataplane.maps["load"].memory()[number]
                assert (load.active, load.half_open) == (0, 0)
                assert not any(self.dataplane.phases(number))
        except BaseException:
            start_over(self.dataplane)
            raise


def says(flow: Flow, side: Side) -> Callable[..., Packet]:
    """What builds a packet of this side."""
    return flow.request if side is Side.CLIENT else flow.reply


def seen(entry: Any) -> tuple[Any, ...]:
    """A slot of conntrack in the model's words."""
    ends = (str(ip_from_map(entry.client)), swapped(entry.client_port), str(ip_from_map(entry.vip)))
    protocol = Protocol.TCP if entry.protocol == 6 else Protocol.UDP
    numbers = (entry.client_sequence, entry.member_sequence)
    macs = (bytes(entry.client_mac).hex(":"), bytes(entry.gateway_mac).hex(":"))
    state = (bool(entry.state & 0x100), bool(entry.state & 0x200), bool(entry.state & 0x400))
    return (
        Tuple(*ends, swapped(entry.vip_port), protocol), entry.listener, entry.idle_timeout, numbers, macs, state
    )  # fmt: skip


def known(connection: Any) -> tuple[Any, ...]:
    """The same of the model."""
    numbers = (connection.sequence[Side.CLIENT], connection.sequence[Side.MEMBER])
    state = (Side.CLIENT in connection.closing, Side.MEMBER in connection.closing, connection.doubted)
    listener = connection.listener
    return connection.tuple, listener.id, listener.idle_timeout, numbers, connection.macs, state


def swapped(port: int) -> int:
    return int.from_bytes(port.to_bytes(2, "little"), "big")


def test_random_lives(dataplane: Dataplane) -> None:
    """Each is as the model has it, from the first step to the last."""
    life = type("LifeOfThisGateway", (Life,), {"dataplane": dataplane, "reached": Counter()})
    run_state_machine_as_test(
        life,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert set(life.reached) == REACHED, "too tame"
