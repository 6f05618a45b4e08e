"""How a pool chooses: by load, by the client's address or by turns; past full members, whatever the algorithm."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import TCP, UDP
from scapy.packet import Packet

from ipbackend.abi import SweepMode, Verdict
from ipbackend.model import Algorithm
from tests.packet import cast
from tests.packet.cast import from_client
from tests.packet.choices import chosen_by, member
from tests.packet.driver import RST, SYN, TUPLES_PER_CLIENT, Burst

BY_SOURCE = ("SOURCE_IP", "SOURCE_IP_PORT")


def syn(port: int, client: str = cast.CLIENT, vip: str = cast.VIP) -> Packet:
    return from_client(client, vip) / TCP(sport=port, dport=80, flags="S")


def number_of(address: str) -> int:
    """Which of `choices.member` it is."""
    return int(address.split(".")[2]) << 8 | int(address.split(".")[3])


def opened(dataplane: Any, packet: Packet) -> int:
    """The number of the member that the connection goes to."""
    return number_of(dataplane.open(packet).member)


def loads(dataplane: Any) -> dict[int, int]:
    """Open connections, by members' numbers."""
    return {
        number_of(str(endpoint.key.address)): dataplane.maps["load"].memory()[number].active
        for number, endpoint in dataplane.entries.endpoints.items()
    }


def fits(seen: dict[int, int], weights: dict[int, int]) -> bool:
    """Whether the counts are those of independent draws by these weights, as 1 in 10,000 such would not be.

    Pearson's chi-square; the critical value by Wilson and Hilferty's approximation, 3.72 being the quantile.
    """
    total, whole, freedom = sum(seen.values()), sum(weights.values()), len(weights) - 1
    expected = {one: total * weight / whole for one, weight in weights.items()}
    assert min(expected.values()) > 5, "too few for the test to mean anything"
    statistic = sum((seen.get(one, 0) - number) ** 2 / number for one, number in expected.items())
    critical = freedom * (1 - 2 / (9 * freedom) + 3.72 * (2 / (9 * freedom)) ** 0.5) ** 3
    return set(seen) <= set(weights) and statistic < critical


# Least connections


@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1), (5, 3, 1), (100, 1), (1,) * 20], ids=str)
def test_the_least_loaded_for_its_weight_is_chosen(unconfigured, weights):
    """Each time one of those with the lowest active/weight, whoever ends meanwhile."""
    unconfigured.configure(chosen_by("LEAST_CONNECTIONS", *(member(n, one) for n, one in enumerate(weights, 1))))
    random, flows = Random(1), []
    for port in range(1, 151):
        before = {n: active / weights[n - 1] for n, active in loads(unconfigured).items()}
        flows.append(unconfigured.open(syn(port)))
        assert before[number_of(flows[-1].member)] == min(before.values())
        if random.random() < 0.4:
            unconfigured.run(flows.pop(random.randrange(len(flows))).request(flags="R"))


def test_equal_ones_take_turns_by_weight(unconfigured):
    """As long as each connection is over before the next, all are equal: a whole round is exact."""
    weights = {1: 5, 2: 3, 3: 1}
    unconfigured.configure(chosen_by("LEAST_CONNECTIONS", *(member(n, one) for n, one in weights.items())))
    seen = Counter[int]()
    for port in range(1, 91):
        flow = unconfigured.open(syn(port))
        seen[number_of(flow.member)] += 1
        unconfigured.run(flow.request(flags="R"))

    assert seen == {n: 10 * weight for n, weight in weights.items()}


def test_equal_ones_that_are_not_next_are_drawn(unconfigured):
    """Of three equal ones beside one that has more: none is left out, and none gets all."""
    unconfigured.configure(chosen_by("LEAST_CONNECTIONS", member(1), member(2), member(3), member(4)))
    first = unconfigured.open(syn(1))
    seen = Counter[int]()
    for port in range(2, 302):
        flow = unconfigured.open(syn(port))
        seen[number_of(flow.member)] += 1
        unconfigured.run(flow.request(flags="R"))

    assert number_of(first.member) not in seen
    assert len(seen) == 3
    assert fits(seen, dict.fromkeys(seen, 1))


def test_what_other_listeners_opened_counts(unconfigured):
    """It is the endpoint's own counter that the choice goes by."""
    unconfigured.configure(chosen_by("LEAST_CONNECTIONS", member(1), member(2)))
    unconfigured.load("172.16.0.1").active += 10  # as if ten more were open
    try:
        seen = [opened(unconfigured, syn(port)) for port in range(1, 11)]
    finally:
        unconfigured.load("172.16.0.1").active -= 10

    assert seen == [2] * 10


def test_five_hundred_members_are_filled_evenly(unconfigured, driver):
    """All are looked at each time: however many are opened, no two differ by more than one."""
    unconfigured.configure(chosen_by("LEAST_CONNECTIONS", *(member(n) for n in range(256, 756))))
    for sent in (250, 250, 700, 5000):
        driver.send(Burst(sent, SYN, first=sum(loads(unconfigured).values())))
        there = loads(unconfigured).values()
        assert max(there) - min(there) <= 1
    assert sum(loads(unconfigured).values()) == 6200


def test_churn_is_levelled(unconfigured, driver):
    """Whoever's connections end gets the next: what one lost is made good, by weight."""
    weights = {n: 1 + n % 3 for n in range(1, 31)}
    unconfigured.configure(chosen_by("LEAST_CONNECTIONS", *(member(n, one) for n, one in weights.items())))
    random, first, open_ones = np.random.default_rng(1), 0, 0
    for _ in range(20):
        more = 1200 - open_ones
        driver.send(Burst(more, SYN, first=first))
        first += more
        ratios = {n: active / weights[n] for n, active in loads(unconfigured).items()}
        assert max(ratios.values()) - min(ratios.values()) <= 1
        for start in random.choice(np.arange(first - 1000, first - 50, 50), 12, replace=False):
            driver.send(Burst(50, RST, first=int(start)))
        open_ones = sum(loads(unconfigured).values())
        assert open_ones < 1200


# By the client's address


@pytest.mark.parametrize("algorithm", BY_SOURCE)
def test_the_same_client_comes_to_the_same_member(unconfigured, algorithm):
    """From any port and to any VIP by its address; by all that tells a connection, only each one of its own."""
    unconfigured.configure(chosen_by(algorithm, *(member(n) for n in range(1, 21))))
    first = {client: opened(unconfigured, syn(1, client)) for client in clients(50)}
    unconfigured.sweep(SweepMode.ENDPOINT)
    again = {client: opened(unconfigured, syn(1, client)) for client in clients(50)}
    elsewhere = {client: opened(unconfigured, syn(2, client)) for client in clients(50)}

    assert again == first
    assert (elsewhere == first) is (algorithm == "SOURCE_IP")


def clients(count: int) -> list[str]:
    random = Random(count)
    return [f"203.{random.randrange(256)}.{random.randrange(256)}.{random.randrange(1, 255)}" for _ in range(count)]


@pytest.mark.parametrize("algorithm", BY_SOURCE)
@pytest.mark.parametrize("weights", [(1,) * 10, (10, 5, 1), (100, 50, 1, 30)], ids=str)
def test_clients_are_spread_by_weight(unconfigured, driver, algorithm, weights):
    """Neighbours as well as strangers: their members are as if drawn, each with its weight's chance."""
    by_number = dict(enumerate(weights, 2000))
    wanted = chosen_by(algorithm, *(member(n, one, 20_000) for n, one in by_number.items()))
    unconfigured.configure(wanted)
    for client in range(3000):
        driver.send(Burst(1, SYN, first=client * TUPLES_PER_CLIENT + 17 * client % TUPLES_PER_CLIENT))

    assert fits(loads(unconfigured), by_number)


def test_ports_of_one_client_are_spread(unconfigured, driver):
    by_number = dict.fromkeys(range(2000, 2010), 1)
    unconfigured.configure(chosen_by("SOURCE_IP_PORT", *(member(n, 1, 20_000) for n in by_number)))
    driver.send(Burst(5000, SYN))

    assert fits(loads(unconfigured), by_number)


@pytest.mark.parametrize("algorithm", BY_SOURCE)
def test_it_depends_on_no_id_and_no_order(unconfigured, algorithm):
    """Another gateway, whose members came in another order, sends each client where this one does."""
    numbers, seen = list(range(1, 13)), []
    for order in (numbers, numbers[::-1], Random(2).sample(numbers, 12)):
        unconfigured.configure(cast.NETWORKS)
        for some in range(4, 13, 4):
            unconfigured.configure(chosen_by(algorithm, *(member(n) for n in order[:some])))
        seen.append([opened(unconfigured, syn(7, client)) for client in clients(60)])

    assert all(one == other for one, other in pairwise(seen))


@pytest.mark.parametrize("algorithm", BY_SOURCE)
def test_a_full_members_clients_have_the_same_second_choice(unconfigured, algorithm):
    """And others' stay where they are."""
    unconfigured.configure(chosen_by(algorithm, *(member(n) for n in range(1, 9))))
    some = clients(80)
    first = [opened(unconfigured, syn(3, client)) for client in some]
    full = first[0]
    second = []
    for _ in range(2):
        unconfigured.sweep(SweepMode.ENDPOINT)
        unconfigured.load(f"172.16.0.{full}").ceiling = 0
        second.append([opened(unconfigured, syn(3, client)) for client in some])
    unconfigured.load(f"172.16.0.{full}").ceiling = 98

    assert second[0] == second[1]
    assert all(after == before for before, after in zip(first, second[0], strict=True) if before != full)
    assert len({after for before, after in zip(first, second[0], strict=True) if before == full}) > 2


def test_little_moves_when_a_member_goes(unconfigured):
    """Its clients go to others, by weight; few of the others' do. When it comes back, all is as before."""
    some = clients(1500)
    there = tuple(member(n) for n in range(1, 21))
    unconfigured.configure(chosen_by("SOURCE_IP", *there))
    before = [opened(unconfigured, syn(1, client)) for client in dict.fromkeys(some)]
    unconfigured.configure(chosen_by("SOURCE_IP", *there[:-1]))
    unconfigured.sweep(SweepMode.ENDPOINT)
    without = [opened(unconfigured, syn(1, client)) for client in dict.fromkeys(some)]
    unconfigured.configure(chosen_by("SOURCE_IP", *there))
    unconfigured.sweep(SweepMode.ENDPOINT)
    after = [opened(unconfigured, syn(1, client)) for client in dict.fromkeys(some)]

    assert after == before
    stayed = [old == new for old, new in zip(before, without, strict=True) if old != 20]
    assert stayed.count(False) < 0.02 * len(stayed)


def test_udp_and_tcp_of_one_client_by_its_address(unconfigured):
    """Its protocol is no part of it, where only the address counts: the same table gives the same place."""
    extra = (
        '[listeners.dns]\nload_balancer = "shop"\nprotocol = "UDP"\nport = 53\npool = "dns"\n'
        '[pools.dns]\nprotocol = "UDP"\nalgorithm = "SOURCE_IP"\n'
        f"members = [{', '.join(f'{{ {member(n)} }}' for n in range(1, 9))}]\n"
    )
    text = cast.pool_of(*(member(n) for n in range(1, 9))).replace(
        "[pools.web]", '[pools.web]\nalgorithm = "SOURCE_IP"'
    )
    unconfigured.configure(text + extra)
    for client in clients(30):
        datagram = from_client(client) / UDP(sport=9, dport=53)
        assert opened(unconfigured, datagram) == opened(unconfigured, syn(9, client))


# Whatever the algorithm


@pytest.mark.parametrize("algorithm", Algorithm)
def test_none_is_refused_while_one_has_room(unconfigured, driver, algorithm):
    """The last place of the last of 500 members is found, and one more is refused."""
    ceilings = {n: 1 + n % 4 for n in range(1000, 1500)}
    unconfigured.configure(chosen_by(algorithm, *(member(n, 1 + n % 7, ceiling) for n, ceiling in ceilings.items())))
    places = sum(ceilings.values())
    before = unconfigured.verdicts()
    driver.send(Burst(places + 300, SYN))

    assert dict(unconfigured.verdicts() - before) == {Verdict.FORWARD_OPENED: places, Verdict.REJECT_ALL_FULL: 300}
    assert loads(unconfigured) == ceilings


@pytest.mark.parametrize("algorithm", Algorithm)
def test_none_is_refused_while_one_has_room_by_racing_cpus(unconfigured, driver, algorithm):
    """Both open at once, to the last place: never above a ceiling, never refused before all are full."""
    ceilings = {n: 1 + n % 3 for n in range(1600, 1640)}
    unconfigured.configure(chosen_by(algorithm, *(member(n, 1 + n % 7, ceiling) for n, ceiling in ceilings.items())))
    places = sum(ceilings.values())
    for _ in range(30):
        before = unconfigured.verdicts()
        driver.send(Burst(places, SYN), Burst(places, SYN, first=places))
        assert dict(unconfigured.verdicts() - before) == {
            Verdict.FORWARD_OPENED: places,
            Verdict.REJECT_ALL_FULL: places,
        }
        assert loads(unconfigured) == ceilings
        driver.send(Burst(2 * places, RST))
        assert sum(loads(unconfigured).values()) == 0


@pytest.mark.parametrize("algorithm", Algorithm)
def test_no_member_that_can_be_reached(unconfigured, algorithm):
    unconfigured.configure(chosen_by(algorithm, member(1), member(2)))
    for number in (1, 2):
        unconfigured.load(f"172.16.0.{number}").ceiling = 0
    verdict = unconfigured.run(syn(1)).verdict
    for number in (1, 2):
        unconfigured.load(f"172.16.0.{number}").ceiling = 98

    assert verdict is Verdict.REJECT_NO_MEMBER


@pytest.mark.parametrize("algorithm", Algorithm)
def test_weight_zero_gets_none(unconfigured, algorithm):
    unconfigured.configure(chosen_by(algorithm, member(1, 0), member(2), member(3, 0)))

    assert {opened(unconfigured, syn(port, client)) for port, client in enumerate(clients(30), 1)} == {2}
    unconfigured.configure(chosen_by(algorithm, member(1, 0), member(2, 0), member(3, 0)))
    assert unconfigured.run(syn(99)).verdict is Verdict.REJECT_NO_MEMBER
