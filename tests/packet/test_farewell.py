"""Ends of connections that a sweep has ended are asked until they have spoken, a few times and a few at a time."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from ipbackend import farewell as module
from ipbackend.abi import SweepMode, Verdict
from ipbackend.farewell import PAUSE, ROUNDS, Farewell
from tests.packet.cast import CLIENT, CLIENT_INTERFACE, MEMBER, MEMBER_INTERFACE, QUERY, VIP, Flow, from_client
from tests.packet.conftest import Dataplane


class World:
    """The links, and a clock that goes only when it is told to."""

    def __init__(self, dataplane: Dataplane) -> None:
        self.dataplane, self.now, self.step = dataplane, 100.0, 0.0
        self.sent: list[tuple[int, Ether]] = []
        self.farewell = Farewell(dataplane.maps, self.send, self.clock)

    def clock(self) -> float:
        self.now += self.step
        return self.now

    def send(self, interface: int, frame: bytes) -> None:
        self.sent.append((interface, Ether(frame)))

    def end(self, mode: SweepMode = SweepMode.DRAINED) -> None:
        for number in self.dataplane.entries.endpoints:
            self.dataplane.tables.sweep(number, mode)
        while self.dataplane.tables.untold:
            self.farewell.add(*self.dataplane.tables.untold.popitem())

    def say(self) -> Counter[str]:
        """One turn; to whom frames went."""
        self.sent.clear()
        self.farewell.say(self.dataplane.entries)
        return Counter(frame[IP].dst for _, frame in self.sent)

    def pass_(self) -> None:
        self.now += PAUSE


@pytest.fixture
def world(dataplane: Dataplane) -> World:
    while dataplane.tables.untold:
        dataplane.tables.untold.popitem()
    return World(dataplane)


def establish(world: World, count: int) -> list[Flow]:
    return [
        world.dataplane.establish(from_client() / TCP(sport=1000 + number, dport=80, flags="S"))
        for number in range(count)
    ]


def test_both_ends_are_asked_in_rounds_and_then_left_alone(world: World) -> None:
    establish(world, 3)
    assert (bool(world.farewell), world.farewell.pressing) == (False, False)
    world.end()
    for _ in range(ROUNDS):
        assert world.farewell.pressing
        assert world.say() == {CLIENT: 3, MEMBER: 3}
        assert not world.farewell.pressing
        assert world.say() == {}
        world.pass_()
    assert world.say() == {}
    assert not world.farewell


def test_frames_go_where_the_ends_are(world: World) -> None:
    (flow,) = establish(world, 1)
    world.end()
    world.say()

    (to_client, client_frame), (to_member, member_frame) = world.sent
    assert (to_client, to_member) == (CLIENT_INTERFACE, MEMBER_INTERFACE)
    assert (client_frame[IP].src, client_frame[TCP].dport) == (VIP, flow.client_port)
    assert (member_frame[IP].src, member_frame[TCP].sport) == (flow.snat, flow.snat_port)


def test_who_has_spoken_is_not_asked_again(world: World) -> None:
    first, second = establish(world, 2)
    world.end()
    world.say()
    assert world.dataplane.run(first.request(flags="A")).verdict is Verdict.REJECT_EXPIRED
    world.dataplane.run(second.reply(flags="A"))
    world.pass_()

    assert world.say() == {CLIENT: 1, MEMBER: 1}
    assert {frame[TCP].dport for _, frame in world.sent} == {second.client_port, first.member_port}
    world.dataplane.run(first.reply(flags="R"))
    world.dataplane.run(second.request(flags="A"))
    assert world.dataplane.endpoint() in world.farewell
    world.pass_()
    world.say()
    assert world.dataplane.endpoint() not in world.farewell


def test_what_ended_earlier_has_had_its_time(world: World) -> None:
    """Later ends of the same endpoint do not have the earlier ones asked again."""
    establish(world, 2)
    world.end()
    for _ in range(ROUNDS + 1):
        world.say()
        world.pass_()
    for slot in range(128):  # as if it had been ten seconds ago
        row = world.dataplane.maps.of_endpoint("conntrack", world.dataplane.endpoint())[slot]
        row.last_seen = (row.last_seen - world.dataplane.maps.clock.ticks(10)) % 2**32
    world.dataplane.establish(from_client() / TCP(sport=5000, dport=80, flags="S"))
    world.end(SweepMode.REMOVED)

    assert world.say() == {CLIENT: 1, MEMBER: 1}
    assert world.sent[0][1][TCP].dport == 5000


def test_a_slice_of_time_is_not_overrun(world: World) -> None:
    """The rest is asked in the next turns, and nobody twice in a round."""
    establish(world, 10)
    world.end()
    world.step = module.SLICE / 4
    turns = []
    while world.farewell.pressing:
        turns.append(world.say())
        assert world.sent
    assert len(turns) > 2
    assert sum(turns, Counter()) == {CLIENT: 10, MEMBER: 10}


def test_datagrams_have_no_end_to_be_told(world: World) -> None:
    world.dataplane.open(QUERY)
    world.end()
    assert world.say() == {}
    assert not world.farewell


def test_without_a_way_to_the_member_the_client_is_told(world: World) -> None:
    establish(world, 1)
    world.dataplane.unresolved = {IPv4Address(MEMBER)}
    world.dataplane.configure()
    world.end()
    assert world.say() == {CLIENT: 1}
