"""What is told of connections: each one opened, closed or refused, once, with what has passed of it."""

import ctypes
import time
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import IP, TCP

from ipbackend.abi import EVENTS_SIZE, Ending, EventKind, Phase, SweepMode, Verdict
from ipbackend.datapath.ring import HEADER, Ring
from ipbackend.flows.event import GENERATION_SHIFT, RECORD, STRUCT, Event, ip_raw, port_raw
from tests.packet import cast
from tests.packet.cast import (
    CLIENT,
    FROM_CLIENT,
    OTHER_CLIENT,
    QUERY,
    SYN,
    UDP_MEMBER,
    UDP_PORT,
    VIP,
    all_half_open,
    from_client,
    pool_of,
)
from tests.packet.driver import RST, Burst
from tests.packet.driver import SYN as SYN_FLAG
from tests.packet.test_sweep import IDLE, silent_for


class Watched:
    """The data plane's events, from here on."""

    def __init__(self, dataplane) -> None:
        self.dataplane = dataplane
        self.ring = Ring(dataplane.maps["events"].fd, STRUCT.size)
        self.take()

    def take(self) -> list[Event]:
        """All that have come since the last time, in their order."""
        found = []
        while records := self.ring.records():
            self.ring.advance(self.ring.position + len(records))
            found += [Event(*row) for row in RECORD.iter_unpack(records)]
        return found

    def one(self) -> Event:
        (event,) = self.take()
        return event

    def missing(self, what: str) -> int:
        return sum(getattr(row, what) for row in self.dataplane.maps["event_counts"].get(0))


@pytest.fixture
def watched(dataplane):
    watched = Watched(dataplane)
    dataplane._zero("event_counts", 0)
    dataplane.settings.events = 1
    yield watched
    dataplane.settings.events = 0
    watched.ring.close()


def ends_of(flow) -> dict[str, int]:
    """The fields that tell a flow's addresses."""
    sides = {
        "client": (flow.client, flow.client_port),
        "vip": (flow.vip, flow.vip_port),
        "snat": (flow.snat, flow.snat_port),
        "member": (flow.member, flow.member_port),
    }
    addresses = {name: ip_raw(IPv4Address(address)) for name, (address, _) in sides.items()}
    return addresses | {f"{name}_port": port_raw(port) for name, (_, port) in sides.items()}


def is_told(event: Event, **fields: int) -> None:
    assert {name: getattr(event, name) for name in fields} == fields


def length(packet) -> int:
    """Bytes of IP."""
    return len(bytes(packet[IP]))


def test_a_connection_that_took_two_tries_was_never_refused(watched, dataplane):
    """The next slot is being swept at this moment: it is put back, and another one taken."""
    connections = dataplane.maps.of_endpoint("conntrack", dataplane.endpoint())
    connections[0].state = Phase.BUSY
    try:
        flow = dataplane.open()
    finally:
        connections[0].state = Phase.FREE

    assert dataplane.slot(flow) == 1
    assert watched.one().kind == EventKind.OPENED


def test_an_event_is_laid_out_as_python_reads_it(dataplane):
    leaf = dataplane.maps["events"].leaf
    names = [name for name in leaf.names() if name != "pad"]
    offsets = [getattr(leaf, name).offset for name in names]

    assert tuple(names) == Event._fields
    assert ctypes.sizeof(leaf) == STRUCT.size == RECORD.size - HEADER
    marked = bytearray(STRUCT.size)
    for number, name in enumerate(names, 1):
        marked[getattr(leaf, name).offset] = number
    assert STRUCT.unpack(marked) == tuple(range(1, len(names) + 1))
    assert offsets == sorted(offsets)
    assert dataplane.maps["events"].info.max_entries == EVENTS_SIZE


def test_opened(dataplane, watched):
    before = time.monotonic_ns()
    flow = dataplane.open()
    event = watched.one()

    is_told(event, kind=EventKind.OPENED, protocol=6, **ends_of(flow))
    is_told(
        event, slot=dataplane.slot(flow), endpoint=dataplane.endpoint(), listener=dataplane.connection(flow).listener
    )
    assert (event.state & 0xFF, event.state >> GENERATION_SHIFT) == (
        Phase.SYN_SENT,
        dataplane.connection(flow).state >> GENERATION_SHIFT,
    )
    assert before <= event.opened <= event.at <= time.monotonic_ns()


FINS = {
    Ending.CLIENT_FIN: [("request", "FA"), ("reply", "A"), ("reply", "FA")],
    Ending.MEMBER_FIN: [("reply", "FA"), ("request", "A"), ("request", "FA")],
    Ending.CLIENT_RST: [("request", "R")],
    Ending.MEMBER_RST: [("reply", "RA")],
}


@pytest.mark.parametrize("ending", FINS, ids=str)
def test_closed_by_whom(dataplane, watched, ending):
    """And with all that has passed, the packet that closes it included."""
    flow = dataplane.open()
    packets = [("reply", "SA"), ("request", "A"), ("request", "PA"), ("reply", "PA"), *FINS[ending]]
    sent = {"request": [SYN], "reply": []}
    for side, flags in packets:
        packet = getattr(flow, side)(flags=flags)
        if "P" in flags:
            packet /= b"x" * (100 if side == "request" else 1000)
        if flags.startswith("R"):
            packet[TCP].seq = {"request": 100, "reply": 1000}[side]
        dataplane.run(packet)
        sent[side].append(packet)
    opened, closed = watched.take()

    is_told(closed, kind=EventKind.CLOSED, reason=ending, protocol=6, **ends_of(flow))
    is_told(closed, request_packets=len(sent["request"]), reply_packets=len(sent["reply"]))
    is_told(closed, request_bytes=sum(map(length, sent["request"])), reply_bytes=sum(map(length, sent["reply"])))
    assert closed.state >> GENERATION_SHIFT == opened.state >> GENERATION_SHIFT
    assert opened.opened - closed.opened < 1000 * 1000
    assert closed.at > opened.at


def test_late_packets_tell_nothing(dataplane, watched):
    flow = dataplane.establish()
    dataplane.run(flow.request(flags="FA"))
    dataplane.run(flow.reply(flags="FA"))
    assert [event.kind for event in watched.take()] == [EventKind.OPENED, EventKind.CLOSED]
    dataplane.run(flow.request(flags="A"))
    dataplane.run(flow.reply(flags="FA"))
    dataplane.run(flow.request(flags="R"))

    assert watched.take() == []


def test_expired(dataplane, watched):
    """Told when the connection ends, and not again when its slot has rested."""
    flow = dataplane.open()
    silent_for(dataplane, flow, 6)
    dataplane.sweep()
    _, event = watched.take()
    is_told(event, kind=EventKind.CLOSED, reason=Ending.EXPIRED, request_packets=1, request_bytes=40, **ends_of(flow))
    assert event.state & 0xFF == Phase.SYN_SENT
    silent_for(dataplane, flow, 61)
    dataplane.sweep()

    assert watched.take() == []


def test_datagrams(dataplane, watched):
    flow = dataplane.open(QUERY)
    dataplane.run(flow.reply() / b"answer")
    silent_for(dataplane, flow, IDLE + 1)
    dataplane.sweep()
    opened, closed = watched.take()

    assert (flow.member, flow.member_port) == (UDP_MEMBER, UDP_PORT)
    is_told(opened, kind=EventKind.OPENED, protocol=17, **ends_of(flow))
    is_told(closed, kind=EventKind.CLOSED, reason=Ending.EXPIRED, protocol=17, **ends_of(flow))
    is_told(closed, request_packets=1, request_bytes=length(QUERY), reply_packets=1, reply_bytes=34)


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        (SweepMode.ENDPOINT, Ending.ENDPOINT_REMOVED),
        (SweepMode.ORPHANS, Ending.LISTENER_REMOVED),
        (SweepMode.REMOVED, Ending.MEMBER_REMOVED),
        (SweepMode.DRAINED, Ending.DRAINED),
    ],
    ids=str,
)
def test_removed(dataplane, watched, mode, ending):
    flow = dataplane.establish()
    if mode is SweepMode.ORPHANS:
        dataplane.maps["listeners"].memory()[dataplane.connection(flow).listener].idle_timeout = 0
    dataplane.tables.sweep(dataplane.endpoint(), mode)
    _, event = watched.take()

    is_told(event, kind=EventKind.CLOSED, reason=ending, request_packets=2, reply_packets=1, **ends_of(flow))
    if mode is SweepMode.ORPHANS:
        dataplane.maps["listeners"].memory()[dataplane.connection(flow).listener].idle_timeout = IDLE


def test_counts_begin_anew_with_each_connection(dataplane, watched):
    """Of a slot that is used again: the table is made anew, as an earlier test may have had a large one."""
    dataplane.configure(cast.NETWORKS)
    dataplane.configure()
    slots = len(dataplane.phases(dataplane.endpoint()))
    for port in range(1024, 1024 + slots + 1):
        syn = FROM_CLIENT / TCP(sport=port, dport=80, flags="S")
        flow = dataplane.open(syn)
        dataplane.run(flow.request(flags="R"))
    closed = [event for event in watched.take() if event.kind == EventKind.CLOSED]

    assert len(closed) == slots + 1
    assert closed[-1].slot == closed[0].slot
    assert {(event.request_packets, event.reply_packets) for event in closed} == {(2, 0)}


REJECTIONS = {
    Verdict.REJECT_NO_LISTENER: FROM_CLIENT / TCP(sport=40000, dport=9, flags="S"),
    Verdict.REJECT_NO_MEMBER: FROM_CLIENT / TCP(sport=40000, dport=81, flags="S"),
    Verdict.REJECT_ALL_FULL: SYN,
    Verdict.DROP_HALF_OPEN: SYN,
}


@pytest.mark.parametrize("verdict", REJECTIONS, ids=str)
def test_rejected(dataplane, watched, verdict):
    packet = REJECTIONS[verdict]
    load, before = dataplane.load(), (dataplane.load().ceiling, dataplane.load().half_open_limit)
    if verdict is Verdict.REJECT_ALL_FULL:
        load.ceiling = load.active = 1
    if verdict is Verdict.DROP_HALF_OPEN:
        load.half_open_limit = 0
    assert dataplane.run(packet).verdict is verdict
    load.ceiling, load.half_open_limit, load.active = *before, 0
    event = watched.one()

    client, vip = ip_raw(IPv4Address(CLIENT)), ip_raw(IPv4Address(VIP))
    is_told(event, kind=EventKind.REJECTED, reason=verdict, protocol=6, client=client, client_port=port_raw(40000))
    is_told(event, vip=vip, vip_port=port_raw(packet[TCP].dport), snat=0, member=0, snat_port=0, member_port=0)
    assert event.at == event.opened


def test_what_would_not_open_is_not_told_of(dataplane, watched):
    assert dataplane.run(FROM_CLIENT / TCP(sport=1, dport=80, flags="A")).verdict is Verdict.REJECT_NO_CONNECTION
    assert dataplane.run(FROM_CLIENT / TCP(sport=1, dport=80, flags="R")).verdict is Verdict.DROP_NO_CONNECTION

    assert watched.take() == []


def test_rejections_are_bounded_and_the_rest_is_counted(dataplane, watched):
    """However many there are: a second's worth at once from each CPU, and no more than one for each interval."""
    flood = bytes(REJECTIONS[Verdict.REJECT_NO_LISTENER])
    began = time.monotonic()
    dataplane.run_on_one_cpu(flood, 5000)
    took = time.monotonic() - began
    told = len(watched.take())

    assert 1000 <= told <= 1000 + 1000 * took + 10
    assert watched.missing("withheld") == 5000 - told
    assert watched.missing("lost") == 0
    dataplane.open()  # what is let in is told of all the same
    assert watched.one().kind == EventKind.OPENED


def filled(dataplane, driver, watched, events: int) -> None:
    """With connections opened and closed, two events each."""
    dataplane.configure(all_half_open(pool_of('address = "10.0.0.51", port = 8080, max_connections = 20000')))
    while (wanted := events - watched.ring.waiting) > 0:
        batch = min((wanted + 1) // 2, 20_000)
        driver.send(Burst(batch, SYN_FLAG))
        driver.send(Burst(batch, RST))


def test_rejections_leave_half_of_the_room(dataplane, watched, driver):
    room = EVENTS_SIZE // RECORD.size
    filled(dataplane, driver, watched, room // 2 + 2)
    before = watched.ring.waiting
    dataplane.run(REJECTIONS[Verdict.REJECT_NO_LISTENER])
    assert (watched.ring.waiting, watched.missing("withheld")) == (before, 1)
    dataplane.open()

    assert watched.ring.waiting == before + 1


def test_what_finds_no_room_is_counted(dataplane, watched, driver):
    """Nothing of what is there is overwritten, and when there is room again, all is told again."""
    room = EVENTS_SIZE // RECORD.size
    filled(dataplane, driver, watched, room - 1)
    first = watched.missing("lost")
    flow = dataplane.open()
    for _ in range(3):
        dataplane.run(flow.request(flags="A"))
    dataplane.run(flow.request(flags="R"))
    there, lost = watched.ring.waiting, watched.missing("lost")
    assert there + lost - first >= room
    assert lost - first in (1, 2)
    taken = watched.take()
    assert len(taken) == there
    assert sum(event.kind == EventKind.OPENED for event in taken) >= there // 2

    dataplane.open(from_client(OTHER_CLIENT) / TCP(sport=1, dport=80, flags="S"))
    assert watched.one().kind == EventKind.OPENED
    assert watched.missing("lost") == lost


def test_nothing_is_told_unless_asked_for(dataplane, watched):
    dataplane.settings.events = 0
    flow = dataplane.establish()
    dataplane.run(flow.request(flags="R"))
    dataplane.run(REJECTIONS[Verdict.REJECT_NO_LISTENER])
    dataplane.open(QUERY)
    dataplane.tables.sweep(dataplane.endpoint(UDP_MEMBER, UDP_PORT, "UDP"), SweepMode.ENDPOINT)

    assert (watched.take(), watched.missing("lost"), watched.missing("withheld")) == ([], 0, 0)
