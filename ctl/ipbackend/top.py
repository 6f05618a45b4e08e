"""Members as a list that lives: measured again and again, sorted, filtered, gone through by keys. It draws nothing."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Any

HISTORY = 60  # measurements that a line remembers
DRAINED = 0  # the weight of a member that gets no new connections

# Key → what it sorts by, and the words for it. The largest come first, but names in their own order.
SORTS = {
    "c": ("active", "connections"),
    "n": ("rate", "new per second"),
    "p": ("full", "how full"),
    "m": ("member", "member"),
    "o": ("pool", "pool"),
    "h": ("state", "health"),
}
NAMES = ("member", "pool", "state")
TOLD = ("id", "pool_id", "pool", "member", "protocol", "weight", "state", "ceiling")  # a line's first fields
KEYS = {key: by for key, (by, _) in SORTS.items()}


@dataclass(slots=True)
class Line:
    """A member, as last measured; `rate` is new connections a second since the measurement before."""

    id: str
    pool_id: str
    pool: str
    member: str
    protocol: str
    weight: int
    state: str
    ceiling: int
    active: int
    half_open: int
    rate: float = 0.0
    history: deque[int] = field(default_factory=lambda: deque(maxlen=HISTORY))

    @property
    def full(self) -> float:
        """The share of the ceiling that is taken."""
        return self.active / self.ceiling

    @property
    def words(self) -> str:
        """What filters look through."""
        return f"{self.member} {self.pool} {self.protocol} {self.state}".lower()


@dataclass(frozen=True)
class Drain:
    """What was asked for: that this member gets no new connections."""

    line: Line


class Quit:
    """What was asked for: the end."""


class Board:
    """All members, and what somebody looks at of them: `sort` and `filter`, the line at the cursor, a question."""

    def __init__(self, sort: str = "active", words: str = "") -> None:
        self.sort = sort
        self.filter = words
        self.typing = False  # the filter
        self.asking: Line | None = None  # whether this one is to be drained
        self.message = ""  # until the next key
        self.trouble = ""  # why the last measurement failed
        self.page = 10  # lines that are seen at a time
        self._lines: dict[str, Line] = {}
        self._begun: dict[str, int] = {}
        self._at: float | None = None
        self._cursor = 0
        self._chosen: str | None = None  # the id at the cursor, once somebody moved it
        self._shown: list[Line] = []

    def measure(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], at: float) -> None:
        """What `/ipbackend/live/members` tells, a row for each member; `at` in seconds of any steady clock."""
        since = at - self._at if self._at is not None else 0.0
        before, lines, begun = self._begun, dict[str, Line](), dict[str, int]()
        told = itemgetter(*(columns.index(name) for name in (*TOLD, "active", "half_open", "begun")))
        for *fields, active, half_open, count in map(told, rows):
            line = Line(*[*fields, active or 0, half_open or 0])
            have = self._lines.get(line.id)
            if have:
                line.history = have.history
            if count is not None:
                begun[line.id] = count
                if since > 0 and line.id in before:  # an endpoint that was made anew counts from 0
                    line.rate = max(count - before[line.id], 0) / since
            line.history.append(line.active)
            lines[line.id] = line
        self._lines, self._begun, self._at, self.trouble = lines, begun, at, ""
        self._arrange()

    @property
    def lines(self) -> Sequence[Line]:
        """Those that the filter lets through, in order."""
        return self._shown

    @property
    def total(self) -> int:
        """All members."""
        return len(self._lines)

    @property
    def carried(self) -> tuple[int, float]:
        """Connections, and new ones a second, of what is shown: a member that several pools have counts once."""
        endpoints = {(one.member, one.protocol): one for one in self._shown}.values()
        return sum(one.active for one in endpoints), sum(one.rate for one in endpoints)

    @property
    def cursor(self) -> int:
        """The number of the line that keys are about."""
        return self._cursor

    @property
    def window(self) -> tuple[int, Sequence[Line]]:
        """The page with the cursor on it: the number of its first line, and its lines."""
        first = self._cursor // self.page * self.page
        return first, self._shown[first : first + self.page]

    def press(self, key: str) -> Drain | Quit | None:
        """What a key makes of it: characters, or `up`, `down`, `page up`, `page down`, `home`, `end`, `enter`,
        `escape`, `backspace`. Returns what somebody else has to do.
        """
        self.message = ""
        if self.typing:
            self._type(key)
        elif self.asking:
            line, self.asking = self.asking, None
            return Drain(line) if key == "y" else None
        elif key == "q":
            return Quit()
        else:
            self._look(key)
        return None

    def _type(self, key: str) -> None:
        if key in ("enter", "escape"):
            self.typing = False
            self.filter = self.filter if key == "enter" else ""
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif len(key) == 1 and key.isprintable():
            self.filter += key
        self._arrange()

    def _look(self, key: str) -> None:
        steps = {"up": -1, "down": 1, "page up": -self.page, "page down": self.page, "home": -self.total}
        steps |= {"end": self.total, "k": -1, "j": 1}
        if key in steps:
            self._go_to(self._cursor + steps[key])
        elif key in KEYS:
            self.sort = KEYS[key]
            self._chosen = None
            self._arrange()
            self._cursor = 0
        elif key == "/":
            self.typing = True
        elif key == "escape":
            self.filter = ""
            self._arrange()
        elif key == "d" and self._shown:
            line = self._shown[self._cursor]
            if line.weight == DRAINED:
                self.message = f"{line.member} has weight 0 already: it gets no new connections"
            else:
                self.asking = line

    def _go_to(self, number: int) -> None:
        if self._shown:
            self._cursor = min(max(number, 0), len(self._shown) - 1)
            self._chosen = self._shown[self._cursor].id

    def _arrange(self) -> None:
        """Filter and sort anew; the cursor stays with the member that somebody moved it to."""
        words = self.filter.lower().split()
        shown = sorted(self._lines.values(), key=attrgetter("member"))
        if words:
            shown = [one for one in shown if all(word in one.words for word in words)]
        shown.sort(key=attrgetter(self.sort), reverse=self.sort not in NAMES)
        self._shown = shown
        numbers = {one.id: number for number, one in enumerate(shown)} if self._chosen else {}
        self._cursor = numbers.get(self._chosen or "", min(self._cursor, max(len(shown) - 1, 0)))
