"""Random lives of a gateway, step by step in a model and in the kernel: packets, time, sweeps and configurations.

After every step both agree on the verdict, on each field of the packet that left, on every slot, queue and count; at
the end of each life the books balance, the index's too. The seeds are fixed, so a failure comes again, and Hypothesis
shortens it to the steps that it takes. `MODEL_LIVES` says how many lives; `make fuzz` lives more of them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
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

from ipbackend.abi import Verdict
from ipbackend.configuration import Configuration
from tests.packet import cast, chances
from tests.packet.both import Both, tuple_of
from tests.packet.cast import CLIENT_INTERFACE, Flow, built, from_client, icmp
from tests.packet.chances import (
    CLIENTS,
    FLAGS,
    LISTENERS,
    MEMBERS,
    MOMENTS,
    OTHER,
    PORTS,
    REMEMBERED,
    VIPS,
    Utterance,
    configured,
)
from tests.packet.conftest import Dataplane, start_over
from tests.packet.model import Outcome, Place
from tests.packet.model_connection import Side, Timeouts, wrap

LIVES = int(os.environ.get("MODEL_LIVES", "80"))
# Each life is a run of its own: within one, Hypothesis would draw most lives as variants of few others.
SETTINGS = settings(
    max_examples=2,  # the first is always the shortest there is
    stateful_step_count=40,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
SLOTS = 4  # of a table, so few that each is used again within a life

REACHED = {
    Verdict.FORWARD_OPENED, Verdict.FORWARD_REQUEST, Verdict.FORWARD_REPLY, Verdict.FORWARD_ICMP_ERROR,
    Verdict.REJECT_NO_LISTENER, Verdict.REJECT_NO_CONNECTION, Verdict.REJECT_NO_MEMBER, Verdict.REJECT_ALL_FULL,
    Verdict.REJECT_TOO_BIG, Verdict.REJECT_TTL, Verdict.REJECT_EXPIRED, Verdict.DROP_MALFORMED,
    Verdict.DROP_ICMP_UNRELATED, Verdict.DROP_TTL, Verdict.DROP_TOO_BIG, Verdict.DROP_NO_CONNECTION,
    Verdict.DROP_NO_NEXT_HOP, Verdict.DROP_HALF_OPEN, Verdict.REJECT_LISTENER_FULL, Verdict.DROP_ACCESS,
    Verdict.DROP_SOURCE_RATE, Verdict.DROP_LISTENER_RATE,
}  # fmt: skip


class Life(RuleBasedStateMachine):
    """One gateway from its configuration to its last connection."""

    dataplane: Dataplane
    reached: Counter[Verdict]

    @initialize(
        ceilings=st.tuples(*[chances.ceiling] * 4),
        limits=st.tuples(*[chances.limit] * 4),
        demands=st.fixed_dictionaries(dict.fromkeys(LISTENERS, chances.demands)),
    )
    def begin(self, ceilings: tuple[int, ...], limits: tuple[int, ...], demands: dict[str, dict[str, Any]]) -> None:
        near, peered, resolver, near_resolver = ceilings
        self.members = {
            "web": {"near": (1, near), "peered": (2, peered)},
            "second": {"near": (1, near)},
            "dns": {"resolver": (1, resolver), "near-resolver": (1, near_resolver)},
        }
        self.listeners = dict.fromkeys(LISTENERS, 300)
        self.choices: dict[str, dict[str, Any]] = {}
        self.demands = demands
        self.both = Both(self.dataplane, self.configured())
        self.flows: list[Flow] = []  # the latest first
        for name, limit in zip(MEMBERS, limits, strict=True):
            self.limit_handshakes(name, limit)

    def configured(self) -> Configuration:
        return configured(self.members, self.listeners, self.choices, self.demands)

    # What happens to a gateway

    @rule(
        sender=chances.anyone,
        ttl=chances.ttl,
        port=st.sampled_from(PORTS),
        vip=st.sampled_from(VIPS),
        to=st.sampled_from((80, 80, 80, 8443, 81)),
        flags=st.sampled_from(("S", "S", "S", "S", *FLAGS)),
        number=chances.first_number,
        size=st.sampled_from((0, 0, 5)),
    )
    def knock(self, sender: str, ttl: int, port: int, vip: str, to: int, flags: str, number: int, size: int) -> None:
        """The first segment of a client, or the last one of a tuple that is long gone, or of no host at all."""
        segment = TCP(sport=port, dport=to, flags=flags, seq=number) / Raw(bytes(size))
        self.send(from_client(sender, vip, ttl=ttl) / segment)

    @rule(
        client=st.sampled_from(CLIENTS),
        port=st.sampled_from(PORTS),
        vip=st.sampled_from(VIPS),
        numbers=st.tuples(chances.first_number, chances.first_number),
        steps=st.sampled_from((2, 2, 1, 0)),
        silence=st.sampled_from((0, 0, 10, 100)),
        said=chances.said_after_silence,
    )
    def connect(
        self,
        client: str,
        port: int,
        vip: str,
        numbers: tuple[int, int],
        steps: int,
        silence: int,
        said: list[Utterance],
    ) -> None:
        """A handshake, if it comes to that and as far as it comes, and what is said then."""
        mine, its = numbers
        outcome = self.send(from_client(client, vip) / TCP(sport=port, dport=80, flags="S", seq=mine))
        if outcome.verdict is not Verdict.FORWARD_OPENED:
            return
        flow = self.flows[0]
        answer = flow.reply(flags="SA", seq=its, ack=wrap(mine + 1))
        for packet in (answer, flow.request(flags="A", seq=wrap(mine + 1), ack=wrap(its + 1)))[:steps]:
            self.send(packet)
        self.both.wait(silence)
        self.talk(0, said)

    @rule(
        sender=chances.anyone,
        ttl=chances.ttl,
        port=st.sampled_from(PORTS),
        to=st.sampled_from((53, 53, 53, 54)),
        size=chances.size,
        summed=st.booleans(),
    )
    def ask(self, sender: str, ttl: int, port: int, to: int, size: int, summed: bool) -> None:
        """A datagram, with a checksum or without."""
        datagram = UDP(sport=port, dport=to) if summed else UDP(sport=port, dport=to, chksum=0)
        self.send(from_client(sender, ttl=ttl) / datagram / Raw(bytes(size)))

    @rule(which=chances.pick, said=chances.said)
    def talk(self, which: int, said: list[Utterance]) -> None:
        """Packets of a flow's ends, their numbers near to or far from where each end is known to be."""
        for one in said:
            if not self.flows:
                return
            flow = self.flows[which % len(self.flows)]
            fields: dict[str, Any] = {}
            if flow.kind is TCP:
                known, other = self.both.sequences(flow), OTHER[one.side]
                fields = {"seq": wrap(known[one.side] + one.ahead), "ack": wrap(known[other] + one.acknowledged)}
                fields["flags"] = one.flags
            packet = says(flow, one.side)(dict(one.ip), **fields) / Raw(bytes(one.size))
            if one.moved and one.side is Side.CLIENT:
                packet[Ether].src = "02:00:00:00:00:77"
            self.send(packet)

    @precondition(lambda self: self.flows)
    @rule(which=st.integers(0, REMEMBERED - 1), first=st.sampled_from(Side))
    def part(self, which: int, first: Side) -> None:
        """Both ends have nothing more to say."""
        flow = self.flows[which % len(self.flows)]
        if flow.kind is TCP:
            known = self.both.sequences(flow)
            numbers = {Side.CLIENT: known[Side.CLIENT] + 1, Side.MEMBER: known[Side.MEMBER] + 1}
            for side in (first, OTHER[first]):
                self.send(says(flow, side)(flags="FA", seq=wrap(numbers[side]), ack=wrap(numbers[OTHER[side]])))

    @rule(
        name=chances.name,
        wrong=st.sampled_from((0, 0, 0, 1)),
        snat=st.sampled_from(cast.SNATS),
        port=st.one_of(st.integers(32_768, 32_772), st.sampled_from((0, 80, 32_767, 32_800, 65_535))),
        flags=chances.flags,
    )
    def intrude(self, name: str, wrong: int, snat: str, port: int, flags: str) -> None:
        """A member's packet to any slot, whosever it is."""
        address, its_port, pools = MEMBERS[name]
        ends = {"sport": its_port + wrong, "dport": port}
        layer = UDP(**ends) if pools == ("dns",) else TCP(**ends, flags=flags)
        self.send(cast.from_member(address, snat) / layer)

    @precondition(lambda self: self.flows)
    @rule(
        which=chances.pick,
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
        flow, model = self.flows[which % len(self.flows)], self.both.model
        if side is Side.CLIENT:
            arrived, sent = flow.replied, flow.reply
            outer = from_client(router, flow.vip, ttl=ttl, proto=1)
            at = model.find(tuple_of(flow))
        else:
            arrived, sent = flow.requested, flow.request
            outer = cast.from_member(flow.member, flow.snat, ttl=ttl, proto=1)
            outer[IP].src = router
            at = model.place_of(built(flow.reply()), cast.SNATS.index(flow.snat))
        if at and not model.is_at(at, tuple_of(flow), (flow.snat, flow.snat_port, flow.member, flow.member_port)):
            return  # the tuple or the slot is another connection's by now, and that one never sent the datagram
        quoted = bytes(built(arrived() / Raw(bytes(size)))[IP])[:cut]
        inner = bytes(built(sent({"ttl": 63}) / Raw(bytes(size)))[IP])[:cut]
        self.both.receive_error(outer / icmp(*kind, quoted), at, side, inner)

    @rule(
        seconds=st.sampled_from(MOMENTS),
        swept=st.sampled_from((True, True, False)),
        which=chances.pick,
        said=chances.said_after_silence,
    )
    def wait(self, seconds: int, swept: bool, which: int, said: list[Utterance]) -> None:
        """Silence, and who breaks it."""
        self.both.wait(seconds)
        if swept:
            self.both.sweep()
        self.talk(which, said)

    @precondition(lambda self: self.both.model.tables)
    @rule(
        endpoint=st.integers(0, 7),
        by=st.sampled_from((None, None, 0, 1, 2)),
        slot=st.one_of(st.none(), st.integers(0, SLOTS - 1)),
        later=st.sampled_from((0, 0, 0, 1)),
        which=chances.pick,
        said=chances.said_after_silence,
    )
    def cut(
        self, endpoint: int, by: int | None, slot: int | None, later: int, which: int, said: list[Utterance]
    ) -> None:
        """The connections of a member whose time has run out, or one that is killed; and who speaks then."""
        if slot is None:
            self.both.cut(endpoint, by)
        else:
            tables = sorted(self.both.model.tables)
            self.both.kill(Place(tables[endpoint % len(tables)], slot), later)
        self.talk(which, said)

    @rule(
        what=st.one_of(
            st.tuples(st.just("change_timeouts"), *map(st.sampled_from, ((5, 25), (15, 35), (15, 65), (25, 60, 120)))),
            st.tuples(st.just("limit_handshakes"), chances.name, chances.limit),
            st.tuples(
                st.just("change_member"),
                chances.name,
                st.integers(0, 1),
                st.sampled_from((None, 0, 1, 2)),
                chances.ceiling,
            ),
            st.tuples(st.just("change_listener"), st.sampled_from(sorted(LISTENERS)), st.sampled_from((None, 15, 300))),
            st.tuples(st.just("lose_or_find"), st.sampled_from(("10.0.0.11", "10.0.0.2", "10.0.0.3"))),
            st.tuples(st.just("change_mtu"), chances.mtu, chances.mtu),
            st.tuples(
                st.just("change_choice"),
                st.sampled_from(("web", "second", "dns")),
                chances.choice,
            ),
            st.tuples(st.just("change_demands"), st.sampled_from(sorted(LISTENERS)), chances.demands),
        ),
        which=chances.pick,
        said=chances.said,
    )
    def change(self, what: tuple[Any, ...], which: int, said: list[Utterance]) -> None:
        """One thing of the configuration, and who meets it."""
        how, *arguments = what
        getattr(self, how)(*arguments)
        self.talk(which, said)

    def change_timeouts(self, *seconds: int) -> None:
        self.both.set_timeouts(Timeouts(*seconds))

    def limit_handshakes(self, name: str, limit: int) -> None:
        """A budget that is not the ceiling, for endpoints too small to have one."""
        self.both.limit_handshakes(*MEMBERS[name][:2], limit)

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
        self.both.configure(self.configured())

    def change_listener(self, name: str, seconds: int | None) -> None:
        self.listeners.pop(name, None)
        if seconds is not None:
            self.listeners[name] = seconds
        self.both.configure(self.configured())

    def change_choice(self, pool: str, choice: dict[str, Any]) -> None:
        """How the pool's members are chosen among, and whether clients stay."""
        self.choices[pool] = choice
        self.both.configure(self.configured())

    def change_demands(self, name: str, demands: dict[str, Any]) -> None:
        """Whom the listener is for, how many there may be, and how often one may come."""
        self.demands[name] = demands
        self.both.configure(self.configured())

    def lose_or_find(self, hop: str) -> None:
        """A next hop that no longer answers, or does again."""
        self.dataplane.unresolved ^= {IPv4Address(hop)}
        self.both.configure(self.configured())

    def change_mtu(self, client_side: int, member_side: int) -> None:
        self.dataplane.links[CLIENT_INTERFACE], self.dataplane.mtu = client_side, member_side
        self.both.configure(self.configured())

    def send(self, packet: Packet) -> Outcome:
        outcome, left = self.both.receive(packet)
        if outcome.verdict is Verdict.FORWARD_OPENED:
            self.flows = [Flow.of(packet, left), *self.flows][:REMEMBERED]
        return outcome

    # What must always hold

    @invariant()
    def every_slot_is_as_the_model_says(self) -> None:
        self.both.check_tables()

    @invariant()
    def every_choice_is_kept(self) -> None:
        self.both.check_choices()

    @invariant()
    def every_life_is_counted(self) -> None:
        self.both.check_counts()

    def teardown(self) -> None:
        """In the end everything is given back."""
        try:
            self.both.end()
        except BaseException:
            start_over(self.dataplane)
            raise
        self.reached.update(self.both.reached)


def says(flow: Flow, side: Side) -> Callable[..., Packet]:
    """What builds a packet of this side."""
    return flow.request if side is Side.CLIENT else flow.reply


def test_random_lives(dataplane: Dataplane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is as the model has it, from the first step to the last."""
    monkeypatch.setattr("ipbackend.plan.slots_for", lambda *_: SLOTS)
    start_over(dataplane)
    life = type("LifeOfThisGateway", (Life,), {"dataplane": dataplane, "reached": Counter()})
    try:
        for number in range(LIVES):
            run_state_machine_as_test(seed(number)(life), settings=SETTINGS)
    finally:
        start_over(dataplane)
    assert set(life.reached) == REACHED, "too tame"
