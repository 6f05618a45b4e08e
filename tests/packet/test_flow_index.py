"""The flow index of 256 buckets, crowded: tuples that meet, by choice or by number, and more than it is made for.

Whoever knows the secret can have tuples meet; whoever does not gets what anyone gets who draws them at random.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from ipbackend.abi import BUCKET_ENTRIES, Phase, SweepMode, Verdict
from ipbackend.datapath import loader
from ipbackend.datapath.audit import audit
from ipbackend.datapath.flow_index import buckets_of, hash_of
from ipbackend.sizing import _SPARSENESS
from tests.packet import cast
from tests.packet.cast import all_half_open, pool_of
from tests.packet.conftest import Dataplane, load
from tests.packet.driver import ACK, RST, SYN, Burst, Driver
from tests.packet.test_races import sent

RUN = Path("/run/ipbackend-crowded")
BUCKETS = 256
DESIGN = BUCKETS * BUCKET_ENTRIES // _SPARSENESS  # connections that it would be made for
SEED = 20261127
TCP_NUMBER, VIP_PORT = 6, 80
Tuples = np.ndarray  # of rows: client, port


@pytest.fixture(scope="module")
def small(own_run: None) -> Iterator[Dataplane]:
    """A data plane with few buckets, one listener and a member that has room for all who come."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "flow_index_buckets", lambda _: BUCKETS)
        with load(12 * DESIGN, counted=True, run_directory=RUN) as dataplane:
            dataplane.configure(
                all_half_open(pool_of(f'address = "{cast.MEMBER}", port = 8080, max_connections = {8 * DESIGN}'))
            )
            yield dataplane


@pytest.fixture(scope="module")
def sender(small: Dataplane) -> Iterator[Driver]:
    driver = Driver(small.program.entry, RUN)
    yield driver
    driver.close()


@pytest.fixture
def crowded(small: Dataplane) -> Iterator[Dataplane]:
    """Without connections, before and after; the books balance and the index is empty."""
    small.start_anew()
    yield small
    assert audit(small.maps) == []
    assert small.unbalanced() == {}
    small.sweep(SweepMode.ENDPOINT)
    assert small.load().active == 0
    assert not any(small.maps["flow_index"].memory().bytes.cast("Q"))
    assert audit(small.maps) == []
    assert small.unbalanced() == {}


# --- Tuples by where they stand under a key.


def key_of(dataplane: Dataplane) -> tuple[int, ...]:
    return tuple(dataplane.settings.hash_key)


def buckets_under(key: tuple[int, ...], tuples: Tuples) -> Tuples:
    """The two buckets of each; the same arithmetic as `hash_of`, for many at once."""
    word = (1 << 64) - 1
    vip = int.from_bytes(bytes(map(int, cast.VIP.split("."))), "little")
    fixed = key[0] + key[2] * vip + key[3] * int.from_bytes(VIP_PORT.to_bytes(2, "big"), "little")
    fixed += key[4] * TCP_NUMBER
    client = tuples[:, 0].astype(">u4").view("<u4").astype(np.uint64)
    port = tuples[:, 1].astype(">u2").view("<u2").astype(np.uint64)
    number = np.uint64(fixed & word) + np.uint64(key[1]) * client + np.uint64(key[3]) * (port << np.uint64(16))
    number ^= number >> np.uint64(32)
    number *= np.uint64(0xD6E8FEB86659FD93)
    number ^= number >> np.uint64(32)
    tag = number >> np.uint64(32)
    other = number ^ (tag * np.uint64(0x9E3779B1) | np.uint64(1))
    return np.stack([number, other], axis=1) & np.uint64(BUCKETS - 1)


def at_random(count: int, seed: int = SEED) -> Tuples:
    """So many different tuples of clients in 100.64.0.0/10."""
    random = np.random.default_rng(seed)
    drawn = np.unique(random.integers(1 << 22, size=2 * count) << 16 | random.integers(1, 1 << 16, size=2 * count))
    random.shuffle(drawn)
    drawn = drawn[:count]
    return np.stack([(100 << 24 | 64 << 16) + (drawn >> 16), drawn & 0xFFFF], axis=1)


@cache
def _all_meeting(key: tuple[int, ...]) -> Tuples:
    tuples = at_random(1 << 21)
    first, second = buckets_under(key, tuples).T
    return tuples[(first == 1) & (second == 2) | (first == 2) & (second == 1)]


def meeting(key: tuple[int, ...], count: int) -> Tuples:
    """Tuples that have both buckets in common, under this key."""
    return _all_meeting(key)[:count]


def in_first_bucket(key: tuple[int, ...], count: int) -> Tuples:
    """Tuples that are looked for in bucket 1 first, under this key."""
    tuples = at_random(1 << 19)
    return tuples[buckets_under(key, tuples)[:, 0] == 1][:count]


def test_buckets_are_reckoned_as_the_program_does(crowded, sender):
    key, tuples = key_of(crowded), at_random(50)
    assert len({tuple(one) for one in at_random(10_000).tolist()}) == 10_000
    sender.choose(tuples.tolist())
    sent(crowded, sender, Burst(50, SYN, chosen=True))
    used = {at // BUCKET_ENTRIES for at, one in enumerate(crowded.maps["flow_index"].memory().bytes.cast("Q")) if one}
    reckoned = buckets_under(key, tuples)
    assert used <= set(reckoned.flatten().tolist())
    assert set(reckoned[:, 0].tolist()) == used
    (client, port), vip = tuples[0].tolist(), int.from_bytes(bytes(map(int, cast.VIP.split("."))), "little")
    fields = int.from_bytes(client.to_bytes(4, "big"), "little"), vip, int.from_bytes(port.to_bytes(2, "big"), "little")
    number = hash_of(key, *fields, int.from_bytes(VIP_PORT.to_bytes(2, "big"), "little"), TCP_NUMBER)
    assert buckets_of(number, BUCKETS) == tuple(reckoned[0].tolist())


# --- Two CPUs at once.


def resting(dataplane: Dataplane) -> list[tuple[int, int]]:
    """Clients and ports of the connections that have closed, and whose slots still answer late packets."""
    connections = dataplane.maps.of_endpoint("conntrack", dataplane.endpoint())
    closed = (slot for slot, phase in enumerate(bytes(connections.column("state"))) if phase >= Phase.CLOSED)
    return [(connections[slot].client, connections[slot].client_port) for slot in closed]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU runs no races")
@pytest.mark.parametrize("count", [2, 12, 40], ids=["two", "as many as there is room for", "more"])
def test_two_cpus_insert_and_delete_what_meets(crowded, sender, count):
    """The same tuples, which have both buckets in common, opened and closed by each CPU in whatever order they come."""
    sender.choose(meeting(key_of(crowded), count).tolist())
    verdicts = sent(
        crowded,
        sender,
        Burst(40_000, SYN, span=count, then=RST, chosen=True),
        Burst(40_001, SYN, span=count, then=RST, chosen=True),
    )
    assert audit(crowded.maps) == []
    assert verdicts[Verdict.FORWARD_OPENED] > 5_000
    assert (verdicts.get(Verdict.DROP_INDEX_FULL, 0) > 0) == (count > 2 * BUCKET_ENTRIES)
    assert len(resting(crowded)) == len(set(resting(crowded))), "a tuple is in the index once"
    crowded.sweep(SweepMode.ENDPOINT)
    opened = sent(crowded, sender, Burst(count, SYN, chosen=True))
    assert sum(opened.values()) == count
    assert crowded.load().active == min(count, 2 * BUCKET_ENTRIES)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU runs no races")
def test_two_cpus_fill_what_meets(crowded, sender):
    """Each tuple once, half of them by each CPU: sixteen have room in two buckets, and all others are counted."""
    sender.choose(meeting(key_of(crowded), 60).tolist())
    for _ in range(20):
        verdicts = sent(crowded, sender, Burst(30, SYN, chosen=True), Burst(30, SYN, first=30, chosen=True))
        room = 2 * BUCKET_ENTRIES
        assert verdicts == {Verdict.FORWARD_OPENED: room, Verdict.DROP_INDEX_FULL: 60 - room}
        assert crowded.load().active == room
        crowded.sweep(SweepMode.ENDPOINT)


# --- Chosen tuples.


def spread_of(dataplane: Dataplane) -> float:
    """How far the index's buckets are from even: about 1 where tuples were drawn at random (chi square by freedom)."""
    words = np.frombuffer(dataplane.maps["flow_index"].memory().bytes, np.uint64).reshape(BUCKETS, BUCKET_ENTRIES)
    there = np.count_nonzero(words, axis=1)
    even = there.sum() / BUCKETS
    return float(((there - even) ** 2).sum() / even / (BUCKETS - 1))


def of_one_network(count: int, step: int) -> Tuples:
    return np.stack([(100 << 24 | 64 << 16) + step * np.arange(count), np.full(count, 40000)], axis=1)


def of_one_client(count: int, step: int) -> Tuples:
    return np.stack([np.full(count, 100 << 24 | 64 << 16 | 1), 1024 + step * np.arange(count)], axis=1)


STRANGE = tuple(int(one) for one in np.random.default_rng(7).integers(1 << 63, size=5, dtype=np.uint64))
CHOICES = {
    "at random": lambda: at_random(DESIGN, 1),
    "one bucket under another key": lambda: in_first_bucket(STRANGE, DESIGN),
    "without a key": lambda: in_first_bucket((0, 1, 1, 1, 1), DESIGN),
    "addresses one after the other": lambda: of_one_network(DESIGN, 1),
    "addresses that differ in upper bits": lambda: of_one_network(DESIGN, 1 << 12),
    "ports one after the other": lambda: of_one_client(DESIGN, 1),
    "ports that differ in upper bits": lambda: of_one_client(DESIGN, 1 << 6),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_choosing_without_the_key_is_as_good_as_at_random(crowded, sender, choice):
    """As many as the index is made for: none is refused, and buckets fill as evenly as by chance.

    The spread of 512 random tuples over 256 buckets is 1, give or take 0.09 (one sigma).
    """
    sender.choose(CHOICES[choice]().tolist())
    assert sent(crowded, sender, Burst(DESIGN, SYN, chosen=True)) == {Verdict.FORWARD_OPENED: DESIGN}
    assert 0.64 < spread_of(crowded) < 1.36


def test_who_has_the_key_fills_two_buckets_and_no_more(crowded, sender):
    """All others are refused and counted; whoever was there before goes on, and who comes later finds room."""
    before, attack, later = at_random(100, 1), meeting(key_of(crowded), 1000), at_random(100, 2)
    apart = buckets_under(key_of(crowded), later)
    later = later[(apart > 2).all(axis=1)]
    sender.choose([*before.tolist(), *attack.tolist(), *later.tolist()])
    first = len(before) + len(attack)
    assert sent(crowded, sender, Burst(100, SYN, chosen=True)) == {Verdict.FORWARD_OPENED: 100}
    verdicts = sent(crowded, sender, Burst(len(attack), SYN, first=100, chosen=True))

    assert len(attack) > 30
    assert verdicts[Verdict.FORWARD_OPENED] <= 2 * BUCKET_ENTRIES
    assert verdicts[Verdict.DROP_INDEX_FULL] == len(attack) - verdicts[Verdict.FORWARD_OPENED]
    (listener,) = crowded.entries.listeners.values()
    assert crowded.count("listener_counts", listener.id, "drop_index_full") == verdicts[Verdict.DROP_INDEX_FULL]
    assert sent(crowded, sender, Burst(100, ACK, chosen=True)) == {Verdict.FORWARD_REQUEST: 100}
    come = Burst(len(later), SYN, first=first, chosen=True)
    assert sent(crowded, sender, come) == {Verdict.FORWARD_OPENED: len(later)}


# --- More than it is made for.


@pytest.mark.parametrize("times", [1, 2, 3, 6])
def test_so_many_times_the_load_it_is_made_for(crowded, sender, times):
    """What is refused is counted; what is open goes on; what ends makes room again."""
    count = times * DESIGN
    verdicts = sent(crowded, sender, Burst(count, SYN))
    opened, refused = verdicts[Verdict.FORWARD_OPENED], verdicts.get(Verdict.DROP_INDEX_FULL, 0)
    assert opened + refused == count
    assert refused <= {1: 0, 2: 0, 3: count // 20, 6: count}[times]
    assert refused > 0 or times < 4
    (listener,) = crowded.entries.listeners.values()
    assert crowded.count("listener_counts", listener.id, "drop_index_full") == refused
    load = crowded.load()
    assert load.active == opened == sum(Phase(one).is_open for one in crowded.phases(crowded.endpoint()))
    assert audit(crowded.maps) == []

    again = sent(crowded, sender, Burst(count, ACK))
    assert again.get(Verdict.FORWARD_REQUEST, 0) == opened
    ended = sent(crowded, sender, Burst(count, RST))
    assert ended[Verdict.FORWARD_REQUEST] == opened
    assert load.active == 0
    crowded.sweep(SweepMode.ENDPOINT)
    assert sent(crowded, sender, Burst(DESIGN, SYN, first=1 << 20)) == {Verdict.FORWARD_OPENED: DESIGN}
