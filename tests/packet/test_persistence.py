"""A client's address stays with its member: over schedules and weights, past a full one, for as long as is said."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import TCP
from scapy.packet import Packet

from ipbackend.abi import Verdict
from ipbackend.model import Algorithm
from tests.packet import cast
from tests.packet.cast import CLIENT, OTHER_CLIENT, from_client
from tests.packet.choices import chosen_by, member

BY_TURN = (Algorithm.ROUND_ROBIN, Algorithm.LEAST_CONNECTIONS)  # by source a client stays anyway
MEMBERS = [member(n) for n in range(1, 9)]


def syn(port: int, client: str = CLIENT, vip: str = cast.VIP) -> Packet:
    return from_client(client, vip) / TCP(sport=port, dport=80, flags="S")


def opened(dataplane: Any, port: int, client: str = CLIENT) -> str:
    """The member that the connection goes to."""
    return dataplane.open(syn(port, client)).member


def stays(dataplane: Any) -> dict[int, Any]:
    """What is kept, by client: its key and copy of its value."""
    return {key.client: (key, value) for key, value in dataplane.maps["stays"].items()}


def age(dataplane: Any, seconds: float) -> None:
    """As if no connection had been opened by those that stay for so long."""
    for key, value in stays(dataplane).values():
        value.seen = (value.seen - dataplane.maps.clock.ticks(seconds)) % 2**32
        dataplane.maps["stays"].set(key, value)


@pytest.mark.parametrize("algorithm", BY_TURN)
def test_a_client_stays_with_its_member(unconfigured, algorithm):
    """Whatever would be its turn; another client goes elsewhere."""
    unconfigured.configure(chosen_by(algorithm, *MEMBERS, persistence=1))
    mine = opened(unconfigured, 1)
    seen = {opened(unconfigured, 1, f"203.0.113.{n}") for n in range(10, 40)}

    assert len(seen) > 3
    assert {opened(unconfigured, port) for port in range(2, 40)} == {mine}


def test_without_it_nothing_is_kept(unconfigured):
    unconfigured.configure(chosen_by("ROUND_ROBIN", *MEMBERS))
    assert len({opened(unconfigured, port) for port in range(1, 9)}) == 8
    assert stays(unconfigured) == {}


@pytest.mark.parametrize("algorithm", BY_TURN)
def test_it_survives_other_members_weights_and_algorithms(unconfigured, algorithm):
    """As long as its own is there."""
    unconfigured.configure(chosen_by(algorithm, *MEMBERS, persistence=1))
    mine = opened(unconfigured, 1)
    own = next(one for one in MEMBERS if f'"{mine}"' in one)
    others = [one for one in MEMBERS if one != own]
    changes = (
        [own, *others[:3]],
        [*others[4:], own.replace("weight = 1", "weight = 7"), member(99)],
        [*(member(n) for n in range(20, 60)), own],
        [own, *(member(n, 100) for n in range(60, 90))],
    )
    for port, (members, other) in enumerate(zip(changes, BY_TURN * 2, strict=True), 2):
        unconfigured.configure(chosen_by(other, *members, persistence=1))
        assert opened(unconfigured, port) == mine


def test_a_member_that_goes_is_replaced_for_good(unconfigured):
    unconfigured.configure(chosen_by("ROUND_ROBIN", *MEMBERS, persistence=1))
    mine = opened(unconfigured, 1)
    others = [one for one in MEMBERS if f'"{mine}"' not in one]
    unconfigured.configure(chosen_by("ROUND_ROBIN", *others, persistence=1))
    then = opened(unconfigured, 2)
    assert then != mine
    unconfigured.configure(chosen_by("ROUND_ROBIN", *MEMBERS, persistence=1))

    assert {opened(unconfigured, port) for port in range(3, 20)} == {then}


def test_a_member_without_weight_is_replaced(unconfigured):
    unconfigured.configure(chosen_by("ROUND_ROBIN", member(1), member(2), persistence=1))
    mine = opened(unconfigured, 1)
    number = int(mine.rpartition(".")[2])
    unconfigured.configure(chosen_by("ROUND_ROBIN", member(number, 0), member(3 - number), persistence=1))

    assert opened(unconfigured, 2) != mine


def test_an_endpoint_of_the_same_id_is_another_member(unconfigured):
    """One is taken out, another is made in its place: who stayed with the one does not stay with the other."""
    unconfigured.configure(cast.NETWORKS)
    unconfigured.configure(chosen_by("ROUND_ROBIN", member(1), persistence=1))
    opened(unconfigured, 1)
    (before,) = unconfigured.entries.endpoints
    first = unconfigured.maps["endpoints"].memory()[before].making
    ((key, value),) = stays(unconfigured).values()
    unconfigured.configure(cast.NETWORKS)
    unconfigured.configure(chosen_by("ROUND_ROBIN", member(5), member(6), persistence=1))
    unconfigured.maps["stays"].set(key, value)
    ((number, pool),) = unconfigured.entries.pools.items()
    other = 1 - pool.members.index(before)
    unconfigured.maps["cursors"].memory()[number].position = pool.schedule.index(other)  # whose turn it is
    home = str(unconfigured.entries.endpoints[pool.members[other]].key.address)

    assert unconfigured.maps["endpoints"].memory()[before].making != first
    assert {opened(unconfigured, 2 + n) for n in range(3)} == {home}


def test_a_change_of_an_endpoint_is_no_new_making(unconfigured):
    """Its ceiling is another, its clients stay."""
    unconfigured.configure(chosen_by("ROUND_ROBIN", *MEMBERS, persistence=1))
    mine = opened(unconfigured, 1)
    lower = [member(n, ceiling=90) for n in range(1, 9)]
    unconfigured.configure(chosen_by("ROUND_ROBIN", *lower, persistence=1))

    assert {opened(unconfigured, port) for port in range(2, 20)} == {mine}


@pytest.mark.parametrize("how", ["full", "out of reach"])
def test_a_member_that_takes_none_is_passed_over_and_not_forgotten(unconfigured, how):
    unconfigured.configure(chosen_by("ROUND_ROBIN", *MEMBERS, persistence=1))
    mine = opened(unconfigured, 1)
    load = unconfigured.load(mine)
    ceiling, load.ceiling = load.ceiling, 1 if how == "full" else 0
    meanwhile = {opened(unconfigured, port) for port in range(2, 12)}
    load.ceiling = ceiling

    assert mine not in meanwhile
    assert {opened(unconfigured, port) for port in range(12, 20)} == {mine}


@pytest.mark.parametrize("minutes", [1, 60])
def test_it_lasts_as_long_as_is_said_from_the_last_connection_on(unconfigured, minutes):
    unconfigured.configure(chosen_by("ROUND_ROBIN", *MEMBERS, persistence=minutes))
    mine = opened(unconfigured, 1)
    for port in range(2, 6):
        age(unconfigured, 60 * minutes - 5)
        assert opened(unconfigured, port) == mine  # each one renews it


def test_after_that_it_is_chosen_anew(unconfigured):
    unconfigured.configure(chosen_by("ROUND_ROBIN", member(1), member(2), persistence=1))
    mine = opened(unconfigured, 1)
    seen = []
    for port in range(2, 12):
        age(unconfigured, 65)
        seen.append(opened(unconfigured, port))

    assert seen.count(mine) == 5


def test_pools_and_clients_stay_apart(unconfigured):
    """A client has a member in each pool; what one opens does not move another."""
    extra = (
        '[listeners.more]\nload_balancer = "shop"\nprotocol = "TCP"\nport = 81\npool = "more"\n'
        f'[pools.more]\nprotocol = "TCP"\npersistence = 1\nmembers = [{", ".join(f"{{ {one} }}" for one in MEMBERS)}]\n'
    )
    text = cast.pool_of(*MEMBERS).replace("[pools.web]", "[pools.web]\npersistence = 1")
    unconfigured.configure(text + extra)
    homes: dict[tuple[str, int], set[str]] = {}
    for port in range(1, 10):
        for client in (CLIENT, OTHER_CLIENT):
            for to in (80, 81):
                packet = from_client(client) / TCP(sport=port, dport=to, flags="S")
                homes.setdefault((client, to), set()).add(unconfigured.open(packet).member)

    assert all(len(members) == 1 for members in homes.values())
    assert len({next(iter(members)) for members in homes.values()}) > 1


def test_a_refused_connection_stays_nowhere(unconfigured):
    unconfigured.configure(chosen_by("ROUND_ROBIN", member(1, ceiling=1), persistence=1))
    opened(unconfigured, 1)
    assert unconfigured.run(syn(2, OTHER_CLIENT)).verdict is Verdict.REJECT_ALL_FULL
    assert len(stays(unconfigured)) == 1


@pytest.mark.parametrize("size", [1, 7, 8, 9, 63, 64, 65, 255, 500])
def test_any_place_among_the_members_is_found(unconfigured, size):
    """Members are looked for by their ids: the first, the last, and those at the ends of rows."""
    numbers = range(3000, 3000 + size)
    unconfigured.configure(chosen_by("ROUND_ROBIN", *(member(n) for n in numbers), persistence=1))
    homes = {}
    for client in range(size):
        packet = syn(1, f"100.{client >> 8}.0.{client & 255}")
        homes[client] = unconfigured.open(packet).member
    assert len(set(homes.values())) == size
    for client, home in homes.items():
        assert unconfigured.open(syn(2, f"100.{client >> 8}.0.{client & 255}")).member == home
