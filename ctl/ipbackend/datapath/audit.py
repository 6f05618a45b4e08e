"""Whether the books balance: counts, queues and index held against the slots. It reports, it repairs nothing.

It goes piece by piece, so that none takes long, and looks at each while packets pass. What cannot be as it should at
any moment of a look is suspicious; a packet on its way may be in one book and not yet in the other. So only what is
found in each of many looks, again after a while, is a difference.
"""

import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import compress
from operator import eq
from typing import NamedTuple

from ipbackend.abi import BUCKET_ENTRIES, Phase
from ipbackend.conservation import Difference, Watch
from ipbackend.datapath.flow_index import buckets_of, hash_of
from ipbackend.datapath.maps import Maps, Memory

BUDGET = 0.02  # seconds that a step takes, or little more
_AGAIN = 0.05  # seconds between two rounds of looks, if no one waits meanwhile
_SLOTS = 4096  # whose index entries are looked for in one piece
_WORDS = 1 << 16  # of the index in one piece
_TABLES = ("conntrack", "free_slots", "flow_index")
_ROW = struct.Struct("<QIIHHB")  # what a connection begins with: state, client, VIP, their ports, protocol
_WORD = struct.Struct("<Q")
_OPEN, _HALF_OPEN = (
    bytes(phase in list(Phase) and getattr(Phase(phase), its) for phase in range(256))
    for its in ("is_open", "is_half_open")
)
_INDEXED = bytes(_OPEN[phase] or phase in (Phase.CLOSED, Phase.EXPIRED) for phase in range(256))

Found = dict[str, Difference]


class Piece(NamedTuple):
    """What is looked at together: its name, and a look that tells what is suspicious."""

    name: str
    look: Callable[[], Found]


def audit(maps: Maps) -> list[str]:
    """Every difference, a line each; an empty list is the healthy answer. Packets may pass meanwhile."""
    auditor = Auditor(maps)
    while not auditor.rounds:
        auditor.step()
        if auditor.suspects:
            time.sleep(_AGAIN)
    return auditor.differences


class Auditor:
    """Goes through all books, again and again. `rounds` is how often it came to their end."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        for name in _TABLES:
            maps[name].memory()  # what the process has resident, shared or not, does not grow by it later
        self._pieces = iter(_pieces(maps))
        self._suspect: Piece | None = None
        self._watch = Watch()
        self._seen: set[str] = set()  # names of pieces, in this round
        self._found: dict[str, Found] = {}  # by the name of the piece
        self.rounds = 0

    @property
    def differences(self) -> list[str]:
        """What was found when each piece was looked at last, a line each."""
        return [f"{what}: they differ by {one}" for found in self._found.values() for what, one in found.items()]

    @property
    def suspects(self) -> bool:
        """Whether it waits to look at something once more: the next step does."""
        return self._suspect is not None

    def step(self) -> None:
        """Look at some more, for BUDGET; shorter where a suspicion is to be looked at again, or a round is over."""
        end = time.monotonic() + BUDGET
        while time.monotonic() < end:
            piece = self._suspect or next(self._pieces, None)
            if piece is None:
                self._found = {name: found for name, found in self._found.items() if name in self._seen}
                self._pieces, self._seen = iter(_pieces(self._maps)), set()
                self.rounds += 1
                return
            found = self._watch.take(iter(piece.look, None))
            if self._watch.suspicious and not found:
                self._suspect = piece
                return
            self._suspect, self._watch = None, Watch()
            self._seen.add(piece.name)
            self._found.pop(piece.name, None)
            if found:
                self._found[piece.name] = found


def _pieces(maps: Maps) -> Iterator[Piece]:
    for _, number in list(maps.directory("endpoints_by_addr").entries()):
        its = maps["endpoints"].memory()[number]
        yield Piece(f"endpoint {number}", partial(_endpoint, maps, number))
        for start in range(0, its.slots, _SLOTS):
            yield Piece(f"endpoint {number} from {start}", partial(_connections, maps, number, start))
    yield Piece("listeners", partial(_listeners, maps))
    for start in range(0, maps["flow_index"].info.max_entries * BUCKET_ENTRIES, _WORDS):
        yield Piece(f"flow_index from {start}", partial(_entries, maps, start))


class _Endpoint:
    """An endpoint's tables; where it is gone, or another by now, nothing that was seen of them counts."""

    def __init__(self, maps: Maps, number: int) -> None:
        self._row = maps["endpoints"].memory()[number]
        self._making = self._row.making
        self.first, self.slots = self._row.first, self._row.slots
        self.connections = maps["conntrack"].memory().part(self.first, self.slots)
        self.ring = maps["free_slots"].memory().part(self.first, self.slots)

    @property
    def is_the_same(self) -> bool:
        return bool(self.slots) and (self._row.making, self._row.slots) == (self._making, self.slots)

    def states(self) -> list[int]:
        """The state of each slot."""
        return self.connections.values("state").tolist()


def _endpoint(maps: Maps, number: int) -> Found:
    """Its counts and its queue, held against its slots."""
    its = _Endpoint(maps, number)
    before = its.states()
    word = maps["load"].memory()
    counts = _WORD.unpack_from(word.bytes, number * word.step)[0]
    queue = Counter(its.ring.values("slot").tolist())
    after = its.states()
    stable = bytes(map(eq, before, after))
    changed = stable.count(0)
    phases = bytes(state & 0xFF for state in before)
    is_open, is_half_open = phases.translate(_OPEN), phases.translate(_HALF_OPEN)

    found = {}
    for name, said, flags in (
        ("active", counts & 0xFFFF_FFFF, is_open),
        ("half_open", counts >> 32, is_half_open),
    ):
        counted = sum(compress(flags, stable)) if changed else flags.count(1)
        found[f"endpoint {number}: {name}, and such connections in its slots"] = Difference(
            said - counted - changed, said - counted
        )
    del queue[0]
    free = dict.fromkeys(compress(range(its.first, its.first + its.slots), map((1).__sub__, is_open)), 1)
    for place in {place for place, _ in queue.items() ^ free.items()}:
        slot = place - its.first
        if not 0 <= slot < its.slots:
            what, by = f"a place for slot {place:#x} of all in its queue", queue[place]
        elif stable[slot]:
            what = f"slot {slot}, {Phase(phases[slot]).name}, how often it is in the queue"
            by = queue[place] - free.get(place, 0)
        else:
            continue
        found[f"endpoint {number}: {what}, and should be"] = Difference(by, by)
    return {what: one for what, one in found.items() if one.excludes_none} if its.is_the_same else {}


def _listeners(maps: Maps) -> Found:
    """Their counts, held against all slots; those of one that is gone count as well."""
    endpoints = [_Endpoint(maps, number) for _, number in maps.directory("endpoints_by_addr").entries()]
    before = [its.connections.values("state").tobytes() for its in endpoints]
    said = maps["listener_load"].memory().values("active").tolist()
    counted, changed = Counter[int](), 0
    for its, states in zip(endpoints, before, strict=True):
        listeners = its.connections.values("listener").tolist()
        flags = states[:: _WORD.size].translate(_OPEN)
        if (after := its.connections.values("state").tobytes()) != states:
            stable = bytes(map(eq, memoryview(states).cast("Q"), memoryview(after).cast("Q")))
            changed += stable.count(0)
            flags = bytes(map(int.__and__, flags, stable))
        counted.update(compress(listeners, flags))
    if not all(its.is_the_same for its in endpoints):
        return {}
    found = {
        f"listener {number}: active, and its connections in all slots": Difference(
            active - counted[number] - changed, active - counted[number]
        )
        for number, active in enumerate(said)
        if active != counted[number]
    }
    return {what: one for what, one in found.items() if one.excludes_none}


def _connections(maps: Maps, number: int, start: int) -> Found:
    """The index, held against some of an endpoint's slots: an entry for each connection, also for one that rests."""
    its, index = _Endpoint(maps, number), _Index(maps)
    step = its.connections.step
    rows = bytes(its.connections.bytes[start * step : (start + _SLOTS) * step])
    found = {}
    for slot in compress(range(len(rows) // step), rows[::step].translate(_INDEXED)):
        state, *tuple_ = _ROW.unpack_from(rows, slot * step)
        there = index.count(tuple_, its.first + start + slot)
        if there != 1 and _state(its.connections, start + slot) == state:
            what = f"slot {start + slot}, {Phase(state & 0xFF).name}, how often it is in the flow index"
            found[f"endpoint {number}: {what}, and should be"] = Difference(there - 1, there - 1)
    return found if its.is_the_same else {}


def _entries(maps: Maps, start: int) -> Found:
    """Some of the slots, held against a part of the index: each entry leads to a connection, which leads there."""
    connections, index = maps["conntrack"].memory(), _Index(maps)
    found = {}
    for at, entry in _used(index.words[start : start + _WORDS]):
        bucket, place, state, leads = (start + at) // BUCKET_ENTRIES, entry & 0xFFFF_FFFF, 0, False
        if place < len(connections):
            state, *tuple_ = _ROW.unpack_from(connections.bytes, place * connections.step)
            leads = bool(_INDEXED[state & 0xFF]) and index.leads(tuple_, bucket, entry)
        if not leads and (place >= len(connections) or _state(connections, place) == state):
            what = (
                f"flow_index: bucket {bucket}, an entry for slot {place:#x} of all, and a connection that it leads to"
            )
            found[what] = Difference(1, 1)
    return found


class _Index:
    """The flow index; a connection's tuple is as it stands in its slot."""

    def __init__(self, maps: Maps) -> None:
        memory = maps["flow_index"].memory()
        self.words = memory.bytes.cast("Q")
        self._buckets = len(memory)
        self._key = tuple(maps["gateway"].memory()[0].hash_key)

    def count(self, tuple_: list[int], place: int) -> int:
        """How many entries lead from a tuple to a slot."""
        number = hash_of(self._key, *tuple_)
        entry = number >> 32 << 32 | place
        starts = (BUCKET_ENTRIES * bucket for bucket in set(buckets_of(number, self._buckets)))
        return sum(self.words[start : start + BUCKET_ENTRIES].tolist().count(entry) for start in starts)

    def leads(self, tuple_: list[int], bucket: int, entry: int) -> bool:
        """Whether a tuple is looked for there."""
        number = hash_of(self._key, *tuple_)
        return number >> 32 == entry >> 32 and bucket in buckets_of(number, self._buckets)


def _used(words: memoryview) -> Iterator[tuple[int, int]]:
    """What is not 0, with its position, in pieces: most of an index is empty, and a piece is seen to be so at once."""
    nothing = bytes(32_768)
    for start in range(0, len(words), len(nothing) // _WORD.size):
        piece = words[start : start + len(nothing) // _WORD.size]
        if piece.tobytes() != nothing[: piece.nbytes]:
            yield from ((at, entry) for at, entry in enumerate(piece.tolist(), start) if entry)


def _state(connections: Memory, slot: int) -> int:
    state: int = _WORD.unpack_from(connections.bytes, slot * connections.step)[0]
    return state
