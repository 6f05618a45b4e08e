"""Weighted round robin, as arithmetic: exact shares over a round, spread evenly, whatever the weights."""

from collections import Counter
from math import gcd
from random import Random

import pytest

from ipbackend.schedule import weighted_round_robin

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
