"""The order in which a pool's members take new connections. Pure arithmetic: it knows weights and nothing else."""

from collections.abc import Sequence
from math import gcd


def weighted_round_robin(weights: Sequence[int]) -> tuple[int, ...]:
    """Indexes of members, each as often as its weight (over the weights' common divisor), evenly spread.

    A member of weight w stands at the middles of w equal parts of the round. Weights are 1 or more; the length
    is at most their sum.
    """
    divisor = gcd(*weights)
    turns = [
        ((2 * turn + 1) / (2 * (weight // divisor)), index)
        for index, weight in enumerate(weights)
        for turn in range(weight // divisor)
    ]
    return tuple(index for _, index in sorted(turns))
