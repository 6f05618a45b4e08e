"""What `explain` is made of, without a kernel: who is looked at in which order, and frames that mean what was asked."""

from __future__ import annotations

import re
from array import array
from dataclasses import replace
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

import pytest

from ipbackend.abi import Verdict
from ipbackend.datapath import lookup
from ipbackend.datapath.flow_index import buckets_of, hash_of
from ipbackend.datapath.source import bpf_directory
from ipbackend.explain import candidates, flows, frame
from ipbackend.explain.candidates import choose
from ipbackend.explain.frame import ACK, SYN, Packet, Tuple, build
from ipbackend.explain.reader import Endpoint, Load
from ipbackend.model import Algorithm
from ipbackend.plan import Pool
from tests.unit.serving import OURS, Client, refused

CLIENT, VIP = IPv4Address("203.0.113.7"), IPv4Address("10.0.0.100")
WEB = Tuple(CLIENT, 40_000, VIP, 80, 6)
ROOM, FULL, SHAKING, LOST = Load(1, 0, 5, 5), Load(5, 0, 5, 5), Load(2, 2, 5, 2), Load(0, 0, 0, 5)


def reader(*loads: Load, turn: int = 0, stay: int = 0, **pool: Any) -> Any:
    """A pool whose members are endpoints 1, 2, …, all of weight 1 and in turn unless said."""
    members = tuple(range(1, len(loads) + 1))
    given = {"weights": (1,) * len(loads), "schedule": array("H", range(len(loads)))} | pool
    return SimpleNamespace(
        pool=lambda _: Pool(members, **given),
        turn=lambda _: turn,
        load=lambda number: loads[number - 1],
        endpoint=lambda number: Endpoint(IPv4Address(f"10.0.0.{number}"), 80, 1, 64, 128, ()),
        stay=lambda *_: stay,
    )


def constant(file: str, name: str) -> int:
    (value,) = re.findall(rf"#define {name} (\w+)", (bpf_directory() / file).read_text())
    return int(value.rstrip("UL"), 0)


@pytest.mark.parametrize(
    ("file", "name", "ours"),
    [
        ("schedule.h", "SPREAD", candidates.SPREAD),
        ("schedule.h", "GOLDEN", candidates.GOLDEN),
        ("schedule.h", "TIE_BITS", candidates.TIE_BITS),
        ("slots.h", "RING_TRIES", flows.RING_TRIES),
        ("icmp.h", "CHECKED_ICMP", frame.CHECKED),
        ("clock.h", "BURST", lookup.BURST),
        ("abi.h", "FRAGMENT_LIFE", lookup.FRAGMENT_LIFE),
    ],
)
def test_what_is_repeated_of_the_program_is_what_stands_there(file: str, name: str, ours: int) -> None:
    assert constant(file, name) == ours


def chosen(having: Any) -> tuple[int, list[str], list[str]]:
    """Who takes it, who was looked at, and how."""
    found = choose(having, 1, WEB)
    return found.endpoint, [one.member.split(":")[0] for one in found.candidates], [what for _, what in found.how]


def test_whoever_s_turn_it_is_takes_it() -> None:
    assert chosen(reader(ROOM, ROOM, turn=3)) == (
        2,
        ["10.0.0.2"],
        ["2 members, weighted round robin, turn 2 of 2 is next"],
    )


def test_full_members_are_passed_over_in_their_order() -> None:
    found = choose(reader(FULL, SHAKING, ROOM, schedule=array("H", [0, 0, 1, 2])), 1, WEB)

    assert found.endpoint == 3
    assert [(one.takes, one.why) for one in found.candidates] == [
        (False, "passed over: full, 5 of 5 connections"),
        (False, "passed over: 2 of 2 handshakes are under way"),
        (True, "has room: 1 of 5 connections, weight 1"),
    ]


def test_behind_a_row_of_full_members_it_is_the_least_loaded_of_all() -> None:
    endpoint, looked, how = chosen(reader(*[FULL] * 28, Load(2, 0, 5, 5), ROOM))

    assert (endpoint, len(looked), looked[0]) == (30, 30, "10.0.0.30")
    assert "all are looked at, by load" in how[1]


def test_the_fewest_connections_for_its_weight() -> None:
    loads = (Load(4, 0, 9, 9), Load(6, 0, 9, 9), Load(3, 0, 9, 9))
    least = {"algorithm": Algorithm.LEAST_CONNECTIONS, "weights": (2, 4, 1)}

    assert chosen(reader(*loads, **least))[:2] == (2, ["10.0.0.2", "10.0.0.1", "10.0.0.3"])


def test_of_equals_it_is_the_one_whose_turn_it_is() -> None:
    for turn in range(3):
        having = reader(ROOM, ROOM, ROOM, turn=turn, algorithm=Algorithm.LEAST_CONNECTIONS)
        assert chosen(having)[0] == turn + 1


def test_a_client_comes_to_the_same_member_each_time() -> None:
    having = reader(*[ROOM] * 5, algorithm=Algorithm.SOURCE_IP)
    elsewhere = WEB._replace(client_port=1, vip_port=2)

    assert {choose(having, 1, one).endpoint for one in (WEB, elsewhere)} == {chosen(having)[0]}
    by_port = reader(*[ROOM] * 5, algorithm=Algorithm.SOURCE_IP_PORT)
    assert len({choose(by_port, 1, WEB._replace(client_port=port)).endpoint for port in range(1, 60)}) == 5


def test_a_client_stays_with_its_member_while_that_has_room() -> None:
    home, _, how = chosen(reader(ROOM, ROOM, stay=2, persistence=60))
    assert (home, how[1]) == (2, "203.0.113.7 stays with 10.0.0.2:80")

    other, _, how = chosen(reader(ROOM, FULL, stay=2, persistence=60))
    assert (other, "another one takes this connection" in how[1]) == (1, True)

    gone, _, how = chosen(reader(ROOM, stay=9, persistence=60))
    assert (gone, "stays with none yet" in how[1]) == (1, True)


@pytest.mark.parametrize(
    ("loads", "verdict"),
    [
        ((FULL, LOST), Verdict.REJECT_ALL_FULL),
        ((LOST, LOST), Verdict.REJECT_NO_MEMBER),
        ((FULL, SHAKING), Verdict.DROP_HALF_OPEN),
    ],
)
@pytest.mark.parametrize("algorithm", Algorithm)
def test_why_none_takes_it(loads: tuple[Load, ...], verdict: Verdict, algorithm: Algorithm) -> None:
    found = choose(reader(*loads, algorithm=algorithm), 1, WEB)

    assert found.endpoint == 0
    assert len(found.candidates) == 2
    assert found.ending is not None
    assert found.ending.verdict is verdict


def test_a_pool_without_members() -> None:
    ending = choose(reader(), 1, WEB).ending

    assert ending is not None
    assert ending.verdict is Verdict.REJECT_NO_MEMBER


@pytest.mark.parametrize("size", [40, 41, 1500])
def test_a_frame_is_what_was_asked_for(size: int) -> None:
    packet = frame.parse_ip(build(WEB, SYN | ACK, size, 7, dont_fragment=True))

    assert isinstance(packet, Packet)
    assert frame.parse_lengths(packet) is None
    assert frame.parse_transport(packet) is None
    assert frame.parse_options(packet) is None
    assert (packet.tuple, packet.flags, packet.length) == (WEB, SYN | ACK, size)
    assert (packet.ttl, packet.dont_fragment, packet.offset, packet.more) == (7, True, 0, False)
    assert not packet.opens
    assert frame.checksum(packet.data[:20]) == bytes(2)


def test_an_error_quotes_what_it_is_about() -> None:
    about = build(WEB._replace(protocol=17), 0, 28)
    packet = frame.parse_ip(frame.build_error(IPv4Address("192.0.2.1"), about))

    assert isinstance(packet, Packet)
    assert frame.parse_icmp(packet) is None
    inner = frame.quoted(packet)
    assert inner is not None
    assert inner.tuple == WEB._replace(protocol=17)
    assert frame.is_intact(packet, inner)
    assert not frame.is_intact(replace(packet, data=packet.data[:-1] + b"\1"), inner)


def test_every_part_of_a_tuple_and_of_the_secret_counts() -> None:
    key, parts = tuple(2**61 + 9**n for n in range(17, 22)), (101, 202, 303, 404, 6)
    numbers = {hash_of(key, *parts)}
    for at in range(5):
        numbers.add(hash_of(key, *(part + (at == place) for place, part in enumerate(parts))))
        numbers.add(hash_of([one + (at == place) for place, one in enumerate(key)], *parts))

    assert len(numbers) == 11


def test_each_bucket_leads_to_the_other() -> None:
    number = hash_of((3, 5, 7, 11, 13), 1, 2, 3, 4, 6)
    first, second = buckets_of(number, 1 << 10)

    assert buckets_of(number >> 32 << 32 | second, 1 << 10) == (second, first)


def test_the_api_has_nothing_to_explain_where_nothing_is_loaded(client: Client) -> None:
    path = f"{OURS}/explain?source=203.0.113.7:1&destination=10.0.0.100:80"

    assert "nothing is loaded" in refused(client.get(path), 404, "ELB.8904")
    assert "ttl" in refused(client.get(f"{path}&ttl=256"), 400, "ELB.8902")
    assert "destination" in refused(client.get(f"{OURS}/explain?source=1.2.3.4:5"), 400, "ELB.8902")
