"""Whether the counters add up: what one book says of packets and connections, another must say as well.

It is given what was counted and tells what differs. It reads nothing, and knows no gateway and no time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ipbackend.abi import Verdict

Columns = Mapping[str, list[int]]  # by field, by row
ENDED = ("closed", "expired", "removed", "drained", "killed")
REFUSALS = (  # why a listener did not get a connection: each has a count of its own
    *(Verdict.REJECT_NO_MEMBER, Verdict.REJECT_ALL_FULL, Verdict.REJECT_LISTENER_FULL),
    *(Verdict.DROP_NOT_OPENED, Verdict.DROP_HALF_OPEN, Verdict.DROP_INDEX_FULL),
    *(Verdict.DROP_ACCESS, Verdict.DROP_SOURCE_RATE, Verdict.DROP_LISTENER_RATE),
)
# Those that nobody is told of: an answer that is not given is counted as DROP_ERROR_RATE. Of DROP_NOT_OPENED some have
# given up before their listener was found again.
_SILENT = tuple(one for one in REFUSALS if one.name.startswith("DROP") and one is not Verdict.DROP_NOT_OPENED)
LOOKS = 8  # at once, while something differs in all of them
ROUNDS = 3  # of looks, seconds apart: no packet is on its way for so long
_ENDS = tuple(verdict for verdict in Verdict if verdict is not Verdict.NEXT_STEP)


@dataclass(frozen=True)
class Books:
    """All counters, read one after the other. Row 0 of listeners and endpoints is what those that are gone counted."""

    verdicts: list[int]
    listeners: Columns
    endpoints: Columns


class Look(NamedTuple):
    """The books, then the open connections by endpoint, then the books again: traffic need not rest meanwhile."""

    before: Books
    active: Mapping[int, int]
    after: Books


class Difference(NamedTuple):
    """By how much the first of two books said more than the second, at some moment during a look."""

    least: int
    most: int

    @property
    def excludes_none(self) -> bool:
        """Whether it cannot be that both said the same."""
        return self.least > 0 or self.most < 0

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least} to {self.most}"


def _by_verdict(*verdicts: Verdict) -> Callable[[Books], int]:
    return lambda books: sum(books.verdicts[verdict] for verdict in verdicts)


def _by_listener(*fields: str) -> Callable[[Books], int]:
    return lambda books: sum(sum(books.listeners[field]) for field in fields)


def _by_member(*fields: str) -> Callable[[Books], int]:
    return lambda books: sum(sum(books.endpoints[field]) for field in fields)


# What must be the same, each counted by itself on the packet path.
_REQUESTS, _REPLIES = (Verdict.FORWARD_OPENED, Verdict.FORWARD_REQUEST), (Verdict.FORWARD_REPLY,)
TOTALS: Mapping[str, tuple[Callable[[Books], int], Callable[[Books], int]]] = {
    "packets: received, passed + forwarded + rejected + dropped": (
        _by_verdict(Verdict.NEXT_STEP),
        _by_verdict(*_ENDS),
    ),
    "requests: by verdict, by listener": (_by_verdict(*_REQUESTS), _by_listener("request_packets")),
    "replies: by verdict, by listener": (_by_verdict(*_REPLIES), _by_listener("reply_packets")),
    "requests: by listener, by member": (_by_listener("request_packets"), _by_member("request_packets")),
    "replies: by listener, by member": (_by_listener("reply_packets"), _by_member("reply_packets")),
    "request bytes: by listener, by member": (_by_listener("request_bytes"), _by_member("request_bytes")),
    "reply bytes: by listener, by member": (_by_listener("reply_bytes"), _by_member("reply_bytes")),
    "connections opened: by listener, by member": (_by_listener("opened"), _by_member("opened")),
    "connections ended: by listener, by member": (_by_listener("ended"), _by_member(*ENDED)),
    "connections refused: in all, by reason": (
        _by_listener("refused"),
        _by_listener(*(one.name.lower() for one in REFUSALS)),
    ),
    **{
        f"connections refused, {one.name}: by verdict, by listener": (
            _by_verdict(one),
            _by_listener(one.name.lower()),
        )
        for one in _SILENT
    },
}


def differences(look: Look, name: Callable[[int], str] = str) -> dict[str, Difference]:
    """What does not add up in a look, by which books; `name` of an endpoint by its id.

    Counters only grow. So at a moment between both readings each was between what it was read as, and where the
    two ranges have no number in common the books differ. A packet that is on its way may be in one book and not
    yet in the other: what is found here is only suspicious.
    """
    found = {}
    for what, (left, right) in TOTALS.items():
        before, after = (left(look.before), right(look.before)), (left(look.after), right(look.after))
        found[what] = Difference(before[0] - after[1], after[0] - before[1])
    found |= {f"connections of {name(number)}: opened, ended + open": one for number, one in _of_endpoints(look)}
    return {what: one for what, one in found.items() if one.excludes_none}


def _of_endpoints(look: Look) -> Iterator[tuple[int, Difference]]:
    """Where opened is not closed + expired + removed + open."""
    (opened, ended), (later_opened, later_ended) = (
        (books.endpoints["opened"], list(map(sum, zip(*(books.endpoints[field] for field in ENDED), strict=True))))
        for books in (look.before, look.after)
    )
    for number, active in look.active.items():
        one = Difference(opened[number] - later_ended[number] - active, later_opened[number] - ended[number] - active)
        if one.excludes_none:
            yield number, one


def lasting(looks: Iterable[dict[str, Difference]]) -> dict[str, Difference]:
    """What differs in all of so many looks, to the same side; none is taken any more once nothing is left."""
    left: dict[str, Difference] | None = None
    for found in _at_most(looks, LOOKS):
        left = found if left is None else {what: one for what, one in found.items() if _agrees(one, left.get(what))}
        if not left:
            return {}
    return left or {}


def _at_most(looks: Iterable[dict[str, Difference]], number: int) -> Iterator[dict[str, Difference]]:
    yield from (look for _, look in zip(range(number), looks, strict=False))


def _agrees(one: Difference, other: Difference | None) -> bool:
    return other is not None and (one.least > 0) == (other.least > 0)


class Watch:
    """Remembers what was suspicious in one round after the other, and so tells packets on their way from faults."""

    def __init__(self) -> None:
        self._rounds: dict[str, tuple[int, Difference]] = {}  # how many in a row, and how it was last
        self.checks = 0

    @property
    def suspicious(self) -> bool:
        """Whether anything differed in the last round."""
        return bool(self._rounds)

    def take(self, looks: Iterable[dict[str, Difference]]) -> dict[str, Difference]:
        """A round of looks; returns what does not add up for certain."""
        self.checks += 1
        rounds = {}
        for what, one in lasting(looks).items():
            count, last = self._rounds.get(what, (0, one))
            rounds[what] = (count + 1 if _agrees(one, last) else 1, one)
        self._rounds = rounds
        return {what: one for what, (count, one) in rounds.items() if count >= ROUNDS}
