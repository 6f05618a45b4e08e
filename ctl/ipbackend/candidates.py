"""Which member of a pool would take a connection, in the steps and the order of bpf/schedule.h. No I/O.

Where the program draws a random number, or only the cursor's next position is known, all that it may choose are told.
"""

from typing import NamedTuple

from ipbackend.abi import Verdict
from ipbackend.frame import Ending
from ipbackend.plan import Pool
from ipbackend.reader import Load, Reader

DRAWS = 16  # as in schedule.h, held equal by a test


class Candidate(NamedTuple):
    """A member in the order in which they are looked at; `takes` it, or why not."""

    member: str
    takes: bool
    why: str


class Choice(NamedTuple):
    """`endpoints`: who takes it, or one of whom; none where it ends there."""

    endpoints: tuple[int, ...]
    candidates: list[Candidate]
    how: str
    ending: Ending | None = None


def choose(reader: Reader, number: int) -> Choice:
    """Of a pool, by the number that its listener has for it."""
    pool = reader.pool(number)
    if not pool.members or not pool.schedule:
        ending = Ending(Verdict.REJECT_NO_MEMBER, "it has no member with a weight")
        return Choice((), [], "no members", ending)
    return _by_turns(reader, number, pool)


def _by_turns(reader: Reader, number: int, pool: Pool) -> Choice:
    """Weighted round robin: a full member's turn is used up; when a while of turns finds no one, all are looked at."""
    turn, length = reader.turn(number), len(pool.schedule)
    drawn = [pool.members[pool.schedule[(turn + n) % length]] for n in range(min(DRAWS, length))]
    how = f"weighted round robin of {len(pool.members)} members, turn {turn % length + 1} of {length} is next"
    looked: list[int] = []
    for endpoint in dict.fromkeys(drawn):
        looked.append(endpoint)
        if reader.load(endpoint).has_room:
            return Choice((endpoint,), [_candidate(reader, one) for one in looked], how)
    looked += [endpoint for endpoint in dict.fromkeys(pool.members) if endpoint not in looked]
    free = tuple(endpoint for endpoint in looked if reader.load(endpoint).has_room)
    candidates = [_candidate(reader, one) for one in looked]
    if free:
        return Choice(free, candidates, f"{how}; the next {len(drawn)} turns are of full members, so by chance")
    return Choice((), candidates, how, _refusal([reader.load(endpoint) for endpoint in looked]))


def _refusal(loads: list[Load]) -> Ending:
    """Why no member of a pool takes it."""
    if not any(load.ceiling for load in loads):
        return Ending(Verdict.REJECT_NO_MEMBER, "no member can be reached: no next hop is known")
    if any(load.active < load.ceiling for load in loads):
        return Ending(Verdict.DROP_HALF_OPEN, "every member with room has too many handshakes under way")
    return Ending(Verdict.REJECT_ALL_FULL, "every member is at its ceiling")


def _candidate(reader: Reader, endpoint: int) -> Candidate:
    load = reader.load(endpoint)
    if not load.ceiling:
        why = "passed over: it cannot be reached (no next hop)"
    elif load.active >= load.ceiling:
        why = f"passed over: full, {load.active:,} of {load.ceiling:,} connections"
    elif not load.has_room:
        why = f"passed over: {load.half_open:,} of {load.half_open_limit:,} handshakes are under way"
    else:
        why = f"has room: {load.active:,} of {load.ceiling:,} connections"
    return Candidate(str(reader.endpoint(endpoint)), load.has_room, why)
