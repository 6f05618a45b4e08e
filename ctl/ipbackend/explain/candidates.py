"""Which member of a pool would take a connection, in the steps and the order of bpf/schedule.h. No I/O."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from socket import htons
from typing import NamedTuple

from ipbackend.abi import Verdict
from ipbackend.explain.frame import Ending, Tuple
from ipbackend.explain.reader import Load, Reader
from ipbackend.model import Algorithm
from ipbackend.plan import Pool
from ipbackend.schedule import DRAWS, client_hash, client_turns

SPREAD, GOLDEN, TIE_BITS = 0xD6E8FEB86659FD93, 0x9E3779B97F4A7C15, 10  # as in schedule.h, held equal by a test
_WORD = (1 << 64) - 1
_HOW = {
    Algorithm.ROUND_ROBIN: "weighted round robin",
    Algorithm.LEAST_CONNECTIONS: "the fewest connections for its weight",
    Algorithm.SOURCE_IP: "by the client's address",
    Algorithm.SOURCE_IP_PORT: "by both addresses and ports",
}


class Candidate(NamedTuple):
    """A member in the order of preference; `takes` the connection, or why not."""

    member: str
    takes: bool
    why: str


class Choice(NamedTuple):
    """`endpoint` takes it, 0 where it ends; `how` it was chosen, a line each."""

    endpoint: int
    candidates: list[Candidate]
    how: list[tuple[str, str]]
    ending: Ending | None = None


@dataclass
class _Draw:
    """A pool that is being chosen from; `seed` is the client's hash, or the turn's."""

    reader: Reader
    pool: Pool
    seed: int

    def rank(self, index: int, tie: bool = True) -> Fraction:
        """For its weight: its connections, or what is drawn for client and member; of equals, what is drawn decides."""
        endpoint = self.pool.members[index]
        drawn = (self.seed ^ endpoint) * GOLDEN & _WORD
        drawn = (drawn ^ drawn >> 32) * SPREAD & _WORD
        amount = drawn >> 40 if self.pool.by_source else self.reader.load(endpoint).active
        below = drawn >> 16 & (1 << TIE_BITS) - 1 if tie else 0
        return Fraction(amount << 2 * TIE_BITS | below, self.pool.weights[index])

    def has_room(self, index: int) -> bool:
        """For one connection more."""
        return self.reader.load(self.pool.members[index]).has_room


def source_hash(client: Tuple, algorithm: Algorithm) -> int:
    """What a client is known by: its address, or all that tells its connection from others."""
    address, vip = (int.from_bytes(one.packed, "little") for one in (client.client, client.vip))
    ports = htons(client.client_port) << 16 | htons(client.vip_port)
    return client_hash(algorithm, address, vip, ports, client.protocol)


def choose(reader: Reader, number: int, client: Tuple) -> Choice:
    """Of a pool, by the number that its listener has for it."""
    pool = reader.pool(number)
    if not pool.members or not pool.schedule:
        ending = Ending(Verdict.REJECT_NO_MEMBER, "it has no member that gets new connections")
        return Choice(0, [], [("pool", "no members")], ending)
    turn, length = reader.turn(number), len(pool.schedule)
    next_turn = "" if pool.by_source else f", turn {turn % length + 1:,} of {length:,} is next"
    how = [("pool", f"{len(pool.members):,} members, {_HOW[pool.algorithm]}{next_turn}")]
    home = _home(reader, number, pool, client, how)
    if home and reader.load(home).has_room:
        return Choice(home, [_candidate(reader, pool, home)], how)
    draw = _Draw(reader, pool, source_hash(client, pool.algorithm))
    looked = list(_in_order(draw, turn, how))
    endpoints = [pool.members[index] for index in dict.fromkeys(looked)]
    taking = next((index for index in looked if draw.has_room(index)), None)
    candidates = [_candidate(reader, pool, endpoint) for endpoint in endpoints]
    if taking is None:
        return Choice(0, candidates, how, _refusal(reader.load(endpoint) for endpoint in endpoints))
    return Choice(pool.members[taking], candidates, how)


def _home(reader: Reader, number: int, pool: Pool, client: Tuple, how: list[tuple[str, str]]) -> int:
    """The member that the client's address stays with, or 0."""
    if not pool.persistence:
        return 0
    endpoint = reader.stay(number, client.client, pool.persistence)
    if endpoint not in pool.members:
        how.append(("persistence", f"{client.client} stays with none yet: it will with whoever takes this connection"))
        return 0
    room = "" if reader.load(endpoint).has_room else ", which has no room: another one takes this connection"
    how.append(("persistence", f"{client.client} stays with {reader.endpoint(endpoint)}{room}"))
    return endpoint


def _in_order(draw: _Draw, turn: int, how: list[tuple[str, str]]) -> Iterator[int]:
    """Members, by index, in the order in which they are preferred, some again; all after the last one with room."""
    pool = draw.pool
    least = pool.algorithm is Algorithm.LEAST_CONNECTIONS
    drawn = list(_turns(draw, turn, 1 if least else DRAWS))
    if not least:
        with_room = next((place for place, index in enumerate(drawn) if draw.has_room(index)), None)
        if with_room is not None:
            yield from drawn[: with_room + 1]
            return
        how.append(("pool", f"the next {len(drawn)} turns are of members without room: all are looked at, by load"))
    if not pool.by_source:
        draw.seed = (turn + len(drawn) - 1) * SPREAD & _WORD
    first = drawn[0] if least and draw.has_room(drawn[0]) else None
    ranks = {index: draw.rank(index, tie=index != first) for index in range(len(pool.members))}
    yield from sorted(ranks, key=lambda index: (ranks[index], index != first, index))


def _turns(draw: _Draw, turn: int, most: int) -> Iterator[int]:
    """The members whose turns come next."""
    schedule = draw.pool.schedule
    length = len(schedule)
    if draw.pool.by_source:
        places = islice(client_turns(draw.seed, length), min(most, length))
        return (schedule[place] for place in places)
    return (schedule[(turn + number) % length] for number in range(min(most, length)))


def _refusal(loads: Iterable[Load]) -> Ending:
    """Why no member of a pool takes it."""
    loads = list(loads)
    if not any(load.ceiling for load in loads):
        return Ending(Verdict.REJECT_NO_MEMBER, "no member can be reached: no next hop is known")
    if any(load.active < load.ceiling for load in loads):
        return Ending(Verdict.DROP_HALF_OPEN, "every member with room has too many handshakes under way")
    return Ending(Verdict.REJECT_ALL_FULL, "every member is at its ceiling")


def _candidate(reader: Reader, pool: Pool, endpoint: int) -> Candidate:
    load, weight = reader.load(endpoint), pool.weights[pool.members.index(endpoint)]
    if not load.ceiling:
        why = "passed over: it cannot be reached (no next hop)"
    elif load.active >= load.ceiling:
        why = f"passed over: full, {load.active:,} of {load.ceiling:,} connections"
    elif not load.has_room:
        why = f"passed over: {load.half_open:,} of {load.half_open_limit:,} handshakes are under way"
    else:
        why = f"has room: {load.active:,} of {load.ceiling:,} connections, weight {weight:,}"
    return Candidate(str(reader.endpoint(endpoint)), load.has_room, why)
