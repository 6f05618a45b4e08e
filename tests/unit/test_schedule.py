"""Schedules as arithmetic: exact shares, evenly spread; and of Maglev what its paper promises."""

from collections import Counter
from collections.abc import Sequence
from math import gcd
from random import Random

import pytest

from ipbackend.model import Algorithm
from ipbackend.schedule import MAGLEV_SIZE, maglev, moved, schedule, weighted_round_robin

RANDOM = Random(7)
WEIGHTS = [
    [1],
    [100],
    [1, 1],
    [5, 3, 1],
    [100, 50, 10],
    [99, 100],
    [6, 4],
    [1] * 512,
    [100] * 512,
    *([RANDOM.randint(1, 100) for _ in range(RANDOM.randint(2, 40))] for _ in range(40)),
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda weights: str(weights[:6]))
def test_each_has_its_exact_share_of_a_round(weights: list[int]) -> None:
    """Its weight over the common divisor: no round is longer than it must be."""
    turns = weighted_round_robin(weights)

    assert Counter(turns) == {index: weight // gcd(*weights) for index, weight in enumerate(weights)}


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda weights: str(weights[:6]))
def test_turns_are_spread_evenly(weights: list[int]) -> None:
    """In every stretch of the round each one's turns are its share, give or take one for itself and a few for others.

    A turn stands in the middle of its part of the round, so by any point each one has had its share to within a
    half; the point itself is off by as much as all others are.
    """
    turns = weighted_round_robin(weights)
    shares = [weight / sum(weights) for weight in weights]
    had = Counter[int]()
    for position, index in enumerate(turns, 1):
        had[index] += 1
        assert abs(had[index] - position * shares[index]) <= 1 + len(weights) * max(shares) / 2


def test_two_equal_ones_alternate() -> None:
    turns = weighted_round_robin([3, 3])

    assert list(turns) in ([0, 1], [1, 0])


def test_it_is_the_same_each_time() -> None:
    """A change that changes nothing writes nothing."""
    assert weighted_round_robin([7, 5, 3]) == weighted_round_robin([7, 5, 3])


def names(count: int) -> list[str]:
    return [f"10.{n >> 8}.{n & 255}.7:8080" for n in range(count)]


def shares_of(count: int, table: Sequence[int]) -> list[int]:
    """Entries of each member."""
    counted = Counter(table)
    return [counted[index] for index in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 100, 499, 500])
def test_equal_members_have_equal_parts_of_the_table(count: int) -> None:
    """To within one entry, as each takes one in turn until none is left."""
    table = maglev(names(count), [1] * count)
    parts = shares_of(count, table)

    assert len(table) == MAGLEV_SIZE
    assert max(parts) - min(parts) <= 1


@pytest.mark.parametrize("weights", [(1, 2, 3), (100, 1), (50, 30, 20, 10), tuple(range(1, 101))], ids=str)
def test_parts_of_the_table_are_by_weight(weights: tuple[int, ...]) -> None:
    parts = shares_of(len(weights), maglev(names(len(weights)), weights))

    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - MAGLEV_SIZE * weight / sum(weights)) <= 1 + len(weights) / 2


def test_the_size_is_a_prime() -> None:
    """Else a permutation would not come to each entry."""
    assert all(MAGLEV_SIZE % divisor for divisor in range(2, int(MAGLEV_SIZE**0.5) + 1))


@pytest.mark.parametrize("count", [2, 10, 100, 500])
def test_few_entries_move_when_a_member_goes(count: int) -> None:
    """Its own, and a hundredth of all at the most besides; when it comes back, every entry is as it was."""
    every, gone = names(count), Random(count).randrange(count)
    weights = [1] * count
    before = owners(every, weights)
    left = [name for index, name in enumerate(every) if index != gone]
    after = owners(left, weights[1:])

    assert 1 / count - 1 / MAGLEV_SIZE <= moved(before, after) <= 1 / count + 0.01
    others = [(old, new) for old, new in zip(before, after, strict=True) if old != every[gone]]
    assert sum(old != new for old, new in others) <= 0.01 * MAGLEV_SIZE
    assert owners(every, weights) == before


def owners(those: list[str], weights: Sequence[int]) -> list[str]:
    return [those[index] for index in maglev(those, weights)]


@pytest.mark.parametrize("count", [10, 100])
def test_few_entries_move_when_a_weight_changes(count: int) -> None:
    """What the member gains or loses, and a hundredth or two besides."""
    every, weights = names(count), [10] * count
    before = owners(every, weights)
    weights[3] = 5
    gained = abs(5 / sum(weights) - 1 / count)

    assert gained * 0.9 <= moved(before, owners(every, weights)) <= gained + 0.02


def test_a_table_depends_on_no_order() -> None:
    """Each gateway makes the same one, in whatever order its members came."""
    every, weights = names(50), [1 + n % 5 for n in range(50)]
    order = Random(1).sample(range(50), 50)

    assert owners(every, weights) == owners([every[n] for n in order], [weights[n] for n in order])


def test_what_has_moved() -> None:
    assert moved([1, 2, 3, 4], [1, 2, 4, 3]) == 0.5
    assert moved([1, 2], [1, 2]) == 0
    assert moved([1], [1, 2]) == moved([], []) == 1


def test_the_same_schedule_is_made_once() -> None:
    """As long as someone holds it: a change elsewhere costs nothing."""
    first = schedule(Algorithm.SOURCE_IP, names(3), [1, 2, 3])

    assert schedule(Algorithm.SOURCE_IP_PORT, names(3), [1, 2, 3]) is first
    assert schedule(Algorithm.SOURCE_IP, names(3), [1, 2, 4]) != first
    assert schedule(Algorithm.SOURCE_IP, names(4)[1:], [1, 2, 3]) != first
    assert len(schedule(Algorithm.ROUND_ROBIN, names(3), [1, 2, 3])) == 6
    assert schedule(Algorithm.LEAST_CONNECTIONS, names(3), [1, 2, 3]) == weighted_round_robin([1, 2, 3])
