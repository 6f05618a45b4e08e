"""The verdicts that no single packet brings about, and that every verdict has a test."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scapy.layers.inet import IP, TCP, UDP

from ipbackend.abi import Phase, Road, SweepMode, Verdict
from tests.packet.cast import (
    CONFIGURATION,
    MEMBER,
    MEMBER_PORT,
    OTHER_CLIENT,
    QUERY,
    SECOND_VIP,
    SYN,
    Flow,
    built,
    from_client,
    from_member,
    icmp,
)


@contextmanager
def replaced(memory: memoryview, content: bytes) -> Iterator[None]:
    """Shared memory with another content for a while."""
    kept = bytes(memory)
    memory[:] = content
    yield
    memory[:] = kept


def test_no_free_slot(dataplane):
    """Admission comes first, so what it took must be given back."""
    ring = dataplane.maps.of_endpoint("free_slots", dataplane.endpoint()).bytes
    with replaced(ring, bytes(len(ring))):
        result = dataplane.run(SYN)
    dataplane.load().head = 0  # the search has moved it past what is there again now

    assert (result.verdict, result.action) == (Verdict.DROP_NOT_OPENED, "DROP")
    assert dataplane.load(MEMBER, MEMBER_PORT).active == 0
    assert dataplane.run(SYN).verdict is Verdict.FORWARD_OPENED


def test_no_room_in_the_flow_index(dataplane):
    """Foreign entries everywhere: the connection is not made, and slot and count are given back."""
    index = dataplane.maps["flow_index"].memory().bytes
    with replaced(index, b"\1" * len(index)):
        results = [dataplane.run(SYN) for _ in range(200)]  # more often than there are slots

    assert {(result.verdict, result.action) for result in results} == {(Verdict.DROP_INDEX_FULL, "DROP")}
    assert dataplane.load().active == 0
    assert dataplane.run(SYN).verdict is Verdict.FORWARD_OPENED


def test_the_second_bucket_is_used_when_the_first_is_full(dataplane):
    """A connection found, changed and ended there, as in the first."""
    flow = dataplane.open()
    index = dataplane.maps["flow_index"].memory().bytes.cast("Q")
    first = next(number for number, entry in enumerate(index) if entry) // 8 * 8
    dataplane.sweep(SweepMode.ENDPOINT)
    with replaced(index[first : first + 8].cast("B"), b"\1" * 64):
        flow = dataplane.establish()
        second = next(number for number, entry in enumerate(index) if entry and entry != int.from_bytes(b"\1" * 8))
        dataplane.run(flow.request(flags="R"))
        dataplane.settings.rest = 0
        dataplane.sweep()

    assert second // 8 * 8 != first
    assert dataplane.phase(flow) is Phase.FREE
    assert not any(index)


def test_tuples_of_one_hash_are_told_apart(dataplane):
    """With a key that makes all hashes equal: what differs in one field each, and two buckets that hold 16."""
    more = """
[listeners.more]
load_balancer = "shop"
protocol = "TCP"
port = 53
pool = "web"
"""
    dataplane.configure(CONFIGURATION + more)
    secret, dataplane.settings.hash_key = tuple(dataplane.settings.hash_key), (7, 0, 0, 0, 0)
    syn = TCP(sport=40000, dport=80, flags="S")
    packets = [
        from_client() / syn,
        from_client(OTHER_CLIENT) / syn,
        from_client(vip=SECOND_VIP) / syn,
        from_client() / TCP(sport=40001, dport=80, flags="S"),
        from_client() / TCP(sport=40000, dport=53, flags="S"),
        from_client() / UDP(sport=40000, dport=53),
    ]
    flows = [dataplane.open(packet) for packet in packets]
    for flow, packet in zip(flows, packets, strict=True):
        assert Flow.of(packet, dataplane.run(packet).packet) == flow
    for port in range(10):
        dataplane.open(from_client() / TCP(sport=port, dport=80, flags="S"))
    full = dataplane.run(from_client() / TCP(sport=99, dport=80, flags="S"))
    dataplane.sweep(SweepMode.ENDPOINT)
    dataplane.settings.hash_key = secret

    assert full.verdict is Verdict.DROP_INDEX_FULL


def test_without_the_other_programs_only_the_common_road_is_open(dataplane):
    """And nothing is half open: the client's retransmission finds the road again."""
    flow = dataplane.open(QUERY)
    error = from_member(flow.member, flow.snat, proto=1) / icmp(3, 3, bytes(built(flow.requested())[IP]))
    for road in Road:
        dataplane.maps["roads"].delete(int(road))
    try:
        closed, request, told = dataplane.run(SYN), dataplane.run(flow.request()), dataplane.run(error)
    finally:
        dataplane.program.join(dataplane.maps)

    assert (closed.verdict, closed.action) == (Verdict.DROP_NO_ROAD, "DROP")
    assert request.verdict is Verdict.FORWARD_REQUEST
    assert (told.verdict, told.action) == (Verdict.DROP_NO_ROAD, "DROP")
    assert dataplane.run(SYN).verdict is Verdict.FORWARD_OPENED
    assert dataplane.run(error).verdict is Verdict.FORWARD_ICMP_ERROR


def test_every_verdict_has_a_test():
    text = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))

    assert set(re.findall(r"\bVerdict\.([A-Z][A-Z_]+)", text)) == set(Verdict.__members__)
