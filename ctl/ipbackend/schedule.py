"""The order in which a pool's members take new connections. Pure arithmetic: it knows names, weights and hashes."""

from array import array
from collections.abc import Hashable, Iterator, Sequence
from hashlib import blake2b
from itertools import cycle
from math import gcd
from weakref import WeakValueDictionary

from ipbackend.model import Algorithm

DRAWS = 16  # turns that are tried before each member is looked at; as in bpf/schedule.h, like the next ones
MAGLEV_SIZE = 65_537  # entries of a table: a prime, more than a hundred for each of the most members there are
_SPREAD, _GOLDEN, _WORD = 0xD6E8FEB86659FD93, 0x9E3779B97F4A7C15, (1 << 64) - 1
_INDEX_BITS = 16
_POSITION = 1 << 40  # a round's length, to compare positions in it as integers
_made: "WeakValueDictionary[Hashable, array[int]]" = WeakValueDictionary()  # as long as some plan holds them


def schedule(algorithm: Algorithm, names: Sequence[str], weights: Sequence[int]) -> "array[int]":
    """Turns of members, as indexes into `names`, 16 bits each. What was made before and still serves is the same one.

    By turns, or to start from where all are equal: `weighted_round_robin`; by source: `maglev`.
    """
    by_source = algorithm in (Algorithm.SOURCE_IP, Algorithm.SOURCE_IP_PORT)
    key = (tuple(names), tuple(weights)) if by_source else tuple(weights)
    turns = _made.get(key)
    if turns is None:
        turns = _made[key] = maglev(names, weights) if by_source else weighted_round_robin(weights)
    return turns


def weighted_round_robin(weights: Sequence[int]) -> "array[int]":
    """Indexes of members, each as often as its weight (over the weights' common divisor), evenly spread.

    A member of weight w stands at the middles of w equal parts of the round. Weights are 1 or more; the length
    is at most their sum.
    """
    divisor = gcd(*weights)
    turns = [
        (2 * turn + 1) * _POSITION // (2 * parts) << _INDEX_BITS | index
        for index, parts in enumerate(weight // divisor for weight in weights)
        for turn in range(parts)
    ]
    turns.sort()
    return array("H", (turn & (1 << _INDEX_BITS) - 1 for turn in turns))


def maglev(names: Sequence[str], weights: Sequence[int], size: int = MAGLEV_SIZE) -> "array[int]":
    """A table of `size` entries, a prime: indexes of members by the hash of what is looked up (Maglev, NSDI 2016, 3.4).

    Each name has a permutation of the entries of its own, and takes in turn, as often as its weight says, the next
    one of it that is free. So the table depends on names and weights alone, not on their order; each member has its
    share of it to within an entry of its turns; and little moves when a member comes or goes.
    """
    order = sorted(range(len(names)), key=lambda index: names[index])
    offsets, skips = zip(*(_permutation(names[index], size) for index in order), strict=True)
    position, table, left = list(offsets), [-1] * size, size
    for turn in cycle(weighted_round_robin([weights[index] for index in order])):
        at, skip = position[turn], skips[turn]
        while table[at] >= 0:
            at += skip
            if at >= size:
                at -= size
        table[at], position[turn] = turn, at
        left -= 1
        if not left:
            break
    return array("H", (order[turn] for turn in table))


def _permutation(name: str, size: int) -> tuple[int, int]:
    """Where it begins, and how far it is from each entry to the next: all of them come, as `size` is a prime."""
    digest = blake2b(name.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big") % size, int.from_bytes(digest[8:], "big") % (size - 1) + 1


def moved(have: Sequence[int], want: Sequence[int]) -> float:
    """The share of entries that are another member's; all of them where the tables differ in length."""
    if len(have) != len(want) or not have:
        return 1.0
    return sum(before != after for before, after in zip(have, want, strict=True)) / len(have)


def client_hash(algorithm: Algorithm, address: int, vip: int, ports: int, protocol: int) -> int:
    """What a client is known by to SOURCE_IP or SOURCE_IP_PORT (bpf/schedule.h, `source_hash`).

    Addresses, and `ports` (the client's << 16 | the VIP's), have the bytes of network order as a C struct has them.
    """
    if algorithm is not Algorithm.SOURCE_IP_PORT:
        vip = ports = protocol = 0
    return _spread(_spread(vip << 32 | address) ^ (protocol << 32 | ports))


def client_turns(number: int, turns: int) -> Iterator[int]:
    """Where a client of this hash is looked up in a table of so many turns: first, and each time that one is full."""
    while True:
        number = _spread(number + _GOLDEN)
        yield number % turns


def client_liking(number: int, endpoint: int) -> int:
    """What a client of this hash draws for an endpoint; where all it was looked up at are full, the lowest for its
    weight takes it."""
    return _spread((number ^ endpoint) * _GOLDEN) >> 40


def _spread(number: int) -> int:
    number &= _WORD
    number ^= number >> 32
    number = number * _SPREAD & _WORD
    return number ^ number >> 32
