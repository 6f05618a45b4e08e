"""Which member a connection goes to: by weight, past the full ones, and never refused while one has room."""

from array import array
from collections import Counter

import pytest
from scapy.layers.inet import TCP

from ipbackend.abi import Verdict
from ipbackend.plan import Action, Pool, Step
from tests.packet.cast import FROM_CLIENT, QUERY, SYN, all_half_open, from_client, pool_of
from tests.packet.choices import member


def turns(dataplane, count: int, first: int = 0) -> list[int]:
    """The numbers of the members that so many connections go to, in their order."""
    packets = [from_client("203.0.113.9") / TCP(sport=1000 + first + n, dport=80, flags="S") for n in range(count)]
    return [int(dataplane.open(packet).member.rpartition(".")[2]) for packet in packets]


@pytest.mark.parametrize("weights", [(1,), (1, 1), (5, 3, 1), (90, 50, 10), (1, 90), (7, 0, 7)], ids=str)
def test_a_whole_round_is_exact(unconfigured, weights):
    """Whichever turn it begins with, and over and over."""
    unconfigured.configure(all_half_open(pool_of(*(member(n, weight) for n, weight in enumerate(weights, 1)))))
    whole = sum(weights)
    rounds = 1 + 2 * (whole < 20)
    seen = Counter(turns(unconfigured, whole * rounds))

    assert seen == Counter({n: weight * rounds for n, weight in enumerate(weights, 1)})


def test_turns_are_spread(unconfigured):
    unconfigured.configure(pool_of(member(1, 2), member(2, 1), member(3, 1)))

    assert all(len(set(turns(unconfigured, 4, first))) == 3 for first in range(0, 20, 4))


def test_weight_zero_gets_none_but_keeps_what_it_has(unconfigured):
    """How a member is drained."""
    unconfigured.configure(pool_of(member(1), member(2)))
    flows = [unconfigured.establish(FROM_CLIENT / TCP(sport=port, dport=80, flags="S")) for port in (1, 2)]
    unconfigured.configure(pool_of(member(1, 0), member(2)))

    assert set(turns(unconfigured, 10)) == {2}
    assert [unconfigured.run(flow.request(flags="A")).verdict for flow in flows] == [Verdict.FORWARD_REQUEST] * 2


def test_others_share_a_full_members_turns_by_weight(unconfigured):
    unconfigured.configure(pool_of(member(1, 5, 1), member(2, 3), member(3, 1)))
    seen = Counter(turns(unconfigured, 1 + 40))

    assert seen == {1: 1, 2: 30, 3: 10}


def test_none_is_refused_while_one_has_room(unconfigured):
    """Ceilings of all sorts are filled to the last place, and one more is refused."""
    ceilings = {1: 3, 2: 20, 3: 1, 4: 9}
    unconfigured.configure(pool_of(*(member(n, 10 * n, ceiling) for n, ceiling in ceilings.items())))
    seen = Counter(turns(unconfigured, sum(ceilings.values())))

    assert seen == ceilings
    assert unconfigured.run(FROM_CLIENT / TCP(sport=9, dport=80, flags="S")).verdict is Verdict.REJECT_ALL_FULL


def test_a_place_given_back_is_found(unconfigured):
    unconfigured.configure(pool_of(member(1, 100, 2), member(2, 1, 2)))
    flows = [unconfigured.open(FROM_CLIENT / TCP(sport=port, dport=80, flags="S")) for port in range(1, 5)]
    light = next(flow for flow in flows if flow.member == "172.16.0.2")
    unconfigured.run(light.request(flags="R"))

    assert turns(unconfigured, 1) == [2]


def long_pool(dataplane, members: int, *with_room: int) -> None:
    """The pool of two members, made long: the first one's endpoint, which is full, stands for all others."""
    short = pool_of(member(1, 1, 1), *(member(2 + n, 1, 98) for n in range(len(with_room))))
    dataplane.configure(all_half_open(short))
    ((number, pool),) = dataplane.entries.pools.items()
    full, *free = pool.members
    places = [full] * members
    for place, endpoint in zip(with_room, free, strict=True):
        places[place] = endpoint
    dataplane.load("172.16.0.1").ceiling = 0
    dataplane.tables.apply(
        [Step(Action.SET, "pools", number, Pool(tuple(places), (1,) * members, array("H", range(members))))]
    )


@pytest.mark.parametrize("place", [0, 255, 511])
def test_the_one_of_512_members_that_has_room(unconfigured, place):
    """A long schedule is not gone through: each member is looked at once."""
    long_pool(unconfigured, 512, place)

    assert turns(unconfigured, 98) == [2] * 98
    assert unconfigured.run(SYN).verdict is Verdict.REJECT_ALL_FULL


def test_the_few_with_room_among_many_share_fairly(unconfigured):
    """Neighbours or not: none of them gets all that the full ones cannot take."""
    long_pool(unconfigured, 512, 50, 51, 400)
    seen = Counter(turns(unconfigured, 150))

    assert min(seen[2], seen[3], seen[4]) >= 25


def test_pools_take_turns_of_their_own(unconfigured):
    """What another pool gets does not disturb the order of this one."""
    extra = """
[listeners.dns]
load_balancer = "shop"
protocol = "UDP"
port = 53
pool = "dns"

[pools.dns]
protocol = "UDP"
members = [{ address = "192.168.50.10", port = 5353, max_connections = 50 }]
"""
    unconfigured.configure(pool_of(member(1), member(2)) + extra)
    members = []
    for n in range(6):
        members += turns(unconfigured, 1, n)
        query = QUERY.copy()
        query.payload.payload.sport = n + 1
        unconfigured.open(query)

    assert members in ([1, 2] * 3, [2, 1] * 3)
