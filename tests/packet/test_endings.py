"""What ends by order: the connections of a member or a listener that go, or a single one; their ends are told."""

from __future__ import annotations

import itertools
import os
import threading

import pytest
from scapy.layers.inet import IP, TCP, UDP

from ipbackend.abi import STATE_TOLD_CLIENT, STATE_TOLD_MEMBER, Phase, SweepMode, Verdict
from ipbackend.datapath.audit import audit
from tests.packet.cast import (
    CONFIGURATION,
    QUERY,
    SECOND_VIP,
    SYN,
    UDP_MEMBER,
    UDP_PORT,
    VIP,
    all_half_open,
    from_client,
    pool_of,
)
from tests.packet.conftest import Dataplane
from tests.packet.driver import RST, Burst, Driver
from tests.packet.driver import SYN as SYN_FLAG

ORDERED = (SweepMode.REMOVED, SweepMode.DRAINED)
NAMES = {SweepMode.REMOVED: "removed", SweepMode.DRAINED: "drained", SweepMode.ORPHANS: "removed"}


def syn(port: int, vip: str = VIP):
    return from_client(vip=vip) / TCP(sport=port, dport=80, flags="S")


def counts(dataplane: Dataplane, *member) -> dict[str, int]:
    """How the endpoint's connections ended, but for what is 0; what was opened is in these and in `active`."""
    number = dataplane.endpoint(*member)
    names = ("closed", "expired", "removed", "drained", "killed")
    found = {name: dataplane.count("endpoint_counts", number, name) for name in names}
    opened, active = dataplane.count("endpoint_counts", number, "opened"), dataplane.load(*member).active
    assert opened == sum(found.values()) + active
    return {name: count for name, count in found.items() if count}


def listener_of(dataplane: Dataplane, vip: str) -> int:
    return next(one.id for key, one in dataplane.entries.listeners.items() if str(key.vip) == vip and key.port == 80)


def in_every_phase(dataplane: Dataplane, vip: str = VIP) -> dict[Phase, list]:
    """Two connections in each open phase, by the same listener, and a closed one."""
    flows: dict[Phase, list] = {}
    for number, phase in enumerate([*(one for one in Phase if one.is_open), Phase.CLOSED]):
        for twin in range(2):
            flow = dataplane.open(syn(1000 + 10 * number + twin, vip))
            steps = [flow.reply(flags="SA"), flow.request(flags="A"), flow.request(flags="FA"), flow.reply(flags="FA")]
            for packet in steps[: phase - Phase.SYN_SENT]:
                dataplane.run(packet)
            assert dataplane.phase(flow) is phase
            flows.setdefault(phase, []).append(flow)
    return flows


@pytest.mark.parametrize("mode", ORDERED, ids=str)
def test_all_open_connections_of_an_endpoint(dataplane, mode):
    """In whatever phase; what rests already goes on resting, and other endpoints notice nothing."""
    flows = in_every_phase(dataplane)
    other = dataplane.open(QUERY)

    assert dataplane.tables.sweep(dataplane.endpoint(), mode) == (8, 0)
    load = dataplane.load()
    assert (load.active, load.half_open) == (0, 0)
    closed = flows.pop(Phase.CLOSED)
    assert {dataplane.phase(flow) for its in flows.values() for flow in its} == {Phase.EXPIRED}
    assert {dataplane.phase(flow) for flow in closed} == {Phase.CLOSED}
    assert dataplane.phase(other) is Phase.ESTABLISHED
    assert counts(dataplane) == {"closed": 2, NAMES[mode]: 8}
    assert dataplane.tables.sweep(dataplane.endpoint(), mode) == (0, 0)


@pytest.mark.parametrize("mode", ORDERED, ids=str)
def test_of_one_listener_only(dataplane, mode):
    """Two listeners share the pool, and so the endpoint."""
    meant, others = in_every_phase(dataplane), in_every_phase(dataplane, SECOND_VIP)
    before = {flow: dataplane.connection(flow).state for its in others.values() for flow in its}

    assert dataplane.tables.sweep(dataplane.endpoint(), mode, listener_of(dataplane, VIP)) == (8, 0)
    del meant[Phase.CLOSED]
    assert {dataplane.phase(flow) for its in meant.values() for flow in its} == {Phase.EXPIRED}
    assert {flow: dataplane.connection(flow).state for flow in before} == before
    assert dataplane.load().active == 8
    assert counts(dataplane) == {"closed": 4, NAMES[mode]: 8}


@pytest.mark.parametrize("mode", ORDERED, ids=str)
def test_datagrams_are_let_go_at_once(dataplane, mode):
    """There is no RST in UDP: the next one from the client is a new exchange."""
    flow = dataplane.open(QUERY)
    assert dataplane.tables.sweep(dataplane.endpoint(UDP_MEMBER, UDP_PORT, "UDP"), mode) == (1, 0)

    assert dataplane.phase(flow) is Phase.FREE
    assert counts(dataplane, UDP_MEMBER, UDP_PORT, "UDP") == {NAMES[mode]: 1}
    assert dataplane.run(flow.reply() / b"late").verdict is Verdict.DROP_NO_CONNECTION
    assert dataplane.run(QUERY).verdict is Verdict.FORWARD_OPENED


@pytest.mark.parametrize("order", [("request", "reply"), ("reply", "request")], ids=" ".join)
def test_either_end_is_told_by_a_reset_and_it_is_written_down(dataplane, order):
    """With the number that the end expects next; each of them when it speaks, and as often as it does."""
    flow = dataplane.establish()
    dataplane.tables.sweep(dataplane.endpoint(), SweepMode.DRAINED)
    told = {"request": STATE_TOLD_CLIENT, "reply": STATE_TOLD_MEMBER}
    known = 0
    for side in order:
        assert dataplane.connection(flow).state & (STATE_TOLD_CLIENT | STATE_TOLD_MEMBER) == known
        for _ in range(2):
            result = dataplane.run(getattr(flow, side)(flags="A", seq=77, ack=4711))
            assert result.verdict is Verdict.REJECT_EXPIRED
            assert (str(result.packet[TCP].flags), result.packet[TCP].seq) == ("R", 4711)
            assert result.packet[IP].dst == getattr(flow, side)()[IP].src
        known |= told[side]
        assert dataplane.connection(flow).state & (STATE_TOLD_CLIENT | STATE_TOLD_MEMBER) == known
    assert dataplane.phase(flow) is Phase.EXPIRED


def test_an_end_that_resets_knows(dataplane):
    """It is not answered, as no RST is."""
    flow = dataplane.establish()
    dataplane.tables.sweep(dataplane.endpoint(), SweepMode.DRAINED)

    assert dataplane.run(flow.reply(flags="R", seq=1)).verdict is Verdict.DROP_NO_CONNECTION
    assert dataplane.connection(flow).state & STATE_TOLD_MEMBER


def test_a_client_of_a_cut_connection_may_begin_anew(dataplane):
    """With the same port: it is a new connection, of which nobody has been told anything."""
    flow = dataplane.establish()
    dataplane.tables.sweep(dataplane.endpoint(), SweepMode.DRAINED)
    dataplane.run(flow.request(flags="A"))
    again = dataplane.establish(SYN)

    assert dataplane.connection(again).state & (STATE_TOLD_CLIENT | STATE_TOLD_MEMBER) == 0
    assert counts(dataplane) == {"drained": 1}
    assert dataplane.load().active == 1


def test_orphans_are_told_and_rest(dataplane):
    """A listener that is removed: its connections are cut, those of the other one go on; a second look finds none."""
    gone, stays = dataplane.establish(), dataplane.establish(syn(41000, SECOND_VIP))
    closed = in_every_phase(dataplane)[Phase.CLOSED]
    before = dataplane.load().active
    dataplane.configure(
        CONFIGURATION.replace(
            '[listeners.web]\nload_balancer = "shop"\nprotocol = "TCP"\nport = 80',
            '[listeners.web]\nload_balancer = "shop"\nprotocol = "TCP"\nport = 90',
        )
    )

    assert before - dataplane.load().active == 9
    assert dataplane.phase(gone) is Phase.EXPIRED
    assert {dataplane.phase(flow) for flow in closed} == {Phase.FREE}
    assert dataplane.run(gone.request(flags="A")).verdict is Verdict.REJECT_EXPIRED
    assert dataplane.run(gone.reply(flags="A")).verdict is Verdict.REJECT_EXPIRED
    assert dataplane.run(stays.request(flags="A")).verdict is Verdict.FORWARD_REQUEST
    assert dataplane.sweep(SweepMode.ORPHANS) == (0, 0)
    assert dataplane.phase(gone) is Phase.EXPIRED
    assert counts(dataplane) == {"closed": 2, "removed": 9}


@pytest.mark.parametrize("packet", [SYN, QUERY], ids=["tcp", "udp"])
def test_one_connection_is_killed(dataplane, packet):
    """The slot that is named, and none beside it."""
    kind = TCP if packet is SYN else UDP
    flows = []
    for port in range(40):
        one = packet.copy()
        one[kind].sport = 2000 + port
        flows.append(dataplane.open(one))
    victim = flows[20]
    member = (victim.member, victim.member_port, "TCP" if kind is TCP else "UDP")
    before = {flow: dataplane.connection(flow).state for flow in flows if flow is not victim}
    number, slot = dataplane.endpoint(*member), dataplane.slot(victim)

    assert dataplane.tables.kill(number, slot, dataplane.connection(victim).state)
    assert dataplane.phase(victim) is (Phase.EXPIRED if kind is TCP else Phase.FREE)
    assert {flow: dataplane.connection(flow).state for flow in before} == before
    assert dataplane.load(*member).active == len(flows) - 1
    assert counts(dataplane, *member) == {"killed": 1}


def test_only_the_generation_that_was_seen_is_killed(dataplane):
    """Between the look and the order its slot became another connection's, which lives on."""
    flow = dataplane.establish()
    number, slot, seen = dataplane.endpoint(), dataplane.slot(flow), dataplane.connection(flow).state
    dataplane.run(flow.request(flags="R", seq=1))
    while dataplane.load().head % dataplane.entries.endpoints[number].slots:  # every slot but its own is taken first
        passing = dataplane.open(syn(3000 + dataplane.load().head % 60_000))
        dataplane.run(passing.request(flags="R"))
    later = dataplane.establish(syn(50000))
    assert dataplane.slot(later) == slot

    assert not dataplane.tables.kill(number, slot, seen)
    assert dataplane.phase(later) is Phase.ESTABLISHED
    assert dataplane.tables.kill(number, slot, dataplane.connection(later).state)
    assert not dataplane.tables.kill(number, slot, dataplane.connection(later).state)
    assert counts(dataplane)["killed"] == 1


def test_a_connection_that_went_on_since_it_was_seen_is_killed(dataplane):
    """Its phase is another, its generation is not."""
    flow = dataplane.open()
    seen = dataplane.connection(flow).state
    dataplane.run(flow.reply(flags="SA"))
    dataplane.run(flow.request(flags="A"))

    assert dataplane.tables.kill(dataplane.endpoint(), dataplane.slot(flow), seen)
    assert counts(dataplane) == {"killed": 1}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU runs no races")
@pytest.mark.parametrize("mode", [SweepMode.DRAINED, SweepMode.KILLED], ids=str)
def test_cut_here_and_closed_there_is_released_once(unconfigured: Dataplane, driver: Driver, mode: SweepMode) -> None:
    """One CPU opens and resets, the other cuts whatever it finds; each connection ends by one of both."""
    unconfigured.configure(all_half_open(pool_of('address = "10.0.0.21", port = 7900, max_connections = 300')))
    load = unconfigured.load("10.0.0.21", 7900)
    ((number, entry),) = unconfigured.entries.endpoints.items()
    memory = unconfigured.maps.of_endpoint("conntrack", number)
    begun, done, cut = threading.Event(), threading.Event(), 0

    def end_all() -> None:
        nonlocal cut
        os.sched_setaffinity(0, {driver.cpus[1]})
        for turn in itertools.count():
            if mode is SweepMode.DRAINED:
                cut += unconfigured.tables.sweep(number, mode)[0]
            else:
                slot = turn % entry.slots
                cut += unconfigured.tables.kill(number, slot, memory[slot].state)
            begun.set()
            if done.is_set():
                return

    thread = threading.Thread(target=end_all)
    thread.start()
    try:
        assert begun.wait(10)
        for _ in range(5):
            driver.send(Burst(200_000, SYN_FLAG, span=250), Burst(200_000, RST, span=250))
    finally:
        done.set()
        thread.join()
    assert audit(unconfigured.maps) == []
    assert cut == unconfigured.count("endpoint_counts", number, NAMES.get(mode, "killed"))
    assert cut > 0
    assert counts(unconfigured, "10.0.0.21", 7900)["closed"] > 0
    unconfigured.tables.sweep(number, SweepMode.DRAINED)
    assert load.active == load.half_open == 0
