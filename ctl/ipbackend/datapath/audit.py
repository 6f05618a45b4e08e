"""Whether the books balance: counts, queue and index derived anew from the slots. It reports, it repairs nothing.

The truth is what holds while traffic rests; under traffic a connection may be between two books.
"""

from collections import Counter
from collections.abc import Iterator

from ipbackend.abi import Phase
from ipbackend.datapath.maps import Maps


def audit(maps: Maps) -> list[str]:
    """Every difference that two looks find, a line each; an empty list is the healthy answer.

    A connection that begins or ends during a look is in one book and not yet in the other.
    """
    first = _differences(maps)
    if not first:
        return []
    second = set(_differences(maps))
    return [problem for problem in first if problem in second]


def _differences(maps: Maps) -> list[str]:
    indexed = Counter(entry & 0xFFFFFFFF for entry in _entries(maps["flow_index"].memory().bytes))
    problems = [
        f"flow_index: {count} entries for one slot ({place:#x})" for place, count in indexed.items() if count > 1
    ]
    open_at = Counter[int]()
    for _, endpoint in maps.directory("endpoints_by_addr").entries():
        problems += _audit_endpoint(maps, endpoint, indexed, open_at)
    problems += _audit_listeners(maps, open_at)
    problems += [f"flow_index: an entry for a slot that holds no connection ({place:#x})" for place in indexed]
    return problems


def _entries(index: memoryview) -> Iterator[int]:
    """What is not 0, in pieces: most of an index is empty, and a piece is seen to be so at once."""
    nothing = bytes(4096)
    for start in range(0, len(index), len(nothing)):
        piece = bytes(index[start : start + len(nothing)])
        if piece != nothing[: len(piece)]:
            yield from filter(None, memoryview(piece).cast("Q"))


def _audit_listeners(maps: Maps, open_at: Counter[int]) -> Iterator[str]:
    """The problems of listeners, at which so many connections are open; those of one that is gone count as well."""
    memory = maps["listener_load"].memory()
    words = memory.bytes.cast("Q")[maps["listener_load"].leaf.active.offset // 8 :: memory.step // 8]
    for listener, said in enumerate(words):
        if said != open_at[listener]:
            yield f"listener {listener}: active is {said}, all slots hold {open_at[listener]} of its connections"


def _audit_endpoint(maps: Maps, endpoint: int, indexed: Counter[int], open_at: Counter[int]) -> Iterator[str]:
    """The problems of one endpoint; what it accounts for is taken out of `indexed`, and counted in `open_at`."""
    connections, ring = maps.of_endpoint("conntrack", endpoint), maps.of_endpoint("free_slots", endpoint)
    first = maps["endpoints"].memory()[endpoint].first
    phases = [Phase(value) for value in bytes(connections.column("state"))]
    listeners = connections.bytes.cast("H")[maps["conntrack"].leaf.listener.offset // 2 :: connections.step // 2]
    open_at.update(listeners[slot] for slot, phase in enumerate(phases) if phase.is_open)
    its_load = maps["load"].memory()[endpoint]
    counts = {
        "active": (its_load.active, sum(phase.is_open for phase in phases)),
        "half_open": (its_load.half_open, sum(phase.is_half_open for phase in phases)),
    }
    for name, (said, counted) in counts.items():
        if said != counted:
            yield f"endpoint {endpoint}: {name} is {said}, its slots hold {counted} such connections"

    queued = Counter(entry - first for entry in ring.values("slot") if entry)
    for slot, phase in enumerate(phases):
        expected = 0 if phase.is_open else 1
        if queued[slot] != expected:
            yield f"endpoint {endpoint}: slot {slot}, {phase.name}, is in the queue {queued[slot]} times"
        entries = indexed.pop(first + slot, 0)
        if phase.is_open and not entries:
            yield f"endpoint {endpoint}: slot {slot}, {phase.name}, is not in the flow index"
        if entries and not phase.is_open and phase not in (Phase.CLOSED, Phase.EXPIRED):
            yield f"endpoint {endpoint}: slot {slot}, {phase.name}, is in the flow index"
