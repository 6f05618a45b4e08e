"""Shares of weights, as health and drain give them, through the reconciler to the packets."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pytest
from scapy.layers.inet import TCP

from ipbackend.model import Algorithm
from ipbackend.reconcile import Reconciler
from tests.packet.cast import from_client
from tests.packet.choices import chosen_by, member

NETWORK: Any = None  # other shares are no matter of routes and addresses


def seen(dataplane: Any, count: int) -> Counter[str]:
    """The members that so many clients' connections go to."""
    packets = [from_client(f"100.64.0.{n}") / TCP(sport=1, dport=80, flags="S") for n in range(count)]
    members = Counter(dataplane.open(packet).member for packet in packets)
    for packet in packets:
        packet[TCP].flags = "R"
        dataplane.run(packet)
    return members


def reconciler(dataplane: Any) -> Reconciler:
    return Reconciler(NETWORK, dataplane.tables)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_whoever_is_down_gets_none_until_it_is_up(unconfigured, algorithm):
    wanted = chosen_by(algorithm, member(1), member(2), member(3))
    unconfigured.configure(wanted)
    (pool,) = wanted.pools.values()
    down = next(one.id for one in pool.members if str(one.address) == "172.16.0.2")
    one = reconciler(unconfigured)
    before = seen(unconfigured, 60)
    one.weigh(wanted, {down: 0})
    without = seen(unconfigured, 60)
    assert one.shares == {down: 0}
    one.weigh(wanted, {})

    assert set(before) == {"172.16.0.1", "172.16.0.2", "172.16.0.3"}
    assert set(without) == {"172.16.0.1", "172.16.0.3"}
    assert one.entries == unconfigured.entries == unconfigured.tables.read()
    assert set(seen(unconfigured, 60)) == set(before)


def test_a_part_of_its_turns(unconfigured):
    """Three tenths of its weight: exactly so many turns of a round."""
    wanted = chosen_by("ROUND_ROBIN", member(1, 2), member(2, 2))
    unconfigured.configure(wanted)
    (pool,) = wanted.pools.values()
    reconciler(unconfigured).weigh(wanted, {pool.members[0].id: 3})

    assert seen(unconfigured, 26) == {"172.16.0.1": 6, "172.16.0.2": 20}


def test_how_much_has_moved_is_told(unconfigured, caplog):
    """Of a pool whose clients go by their addresses; nothing of one whose table is as it was."""
    wanted = chosen_by("SOURCE_IP", *(member(n) for n in range(1, 11)))
    unconfigured.configure(wanted)
    (pool,) = wanted.pools.values()
    one = reconciler(unconfigured)
    with caplog.at_level(logging.INFO, "ipbackend.reconcile"):
        one.weigh(wanted, {pool.members[0].id: 0})
        one.weigh(wanted, {pool.members[0].id: 0})
    told = [record for record in caplog.records if "entries of its table" in record.message]

    assert len(told) == 1
    assert 10 <= told[0].args[1] <= 11  # a tenth of them was its own
