"""Everything that is refused or fails for a reason a user can act on; nothing here knows who raises it.

    IpbackendError              shown as one line: `where: what (remedy)`
    ├── ConfigurationError      what was asked for is wrong; holds every problem found, a line each
    ├── DatapathError           BCC or the kernel does not take the program, a map or an attachment
    ├── NetworkError            netlink refuses an address, a route or a neighbour
    ├── StoreError              what is wanted cannot be kept or read: a full disk, a damaged or newer file
    ├── ServiceError            the daemon cannot be asked, or answers with a refusal
    └── NotRunningError         nothing is loaded

Any other exception is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable
from enum import Enum, auto


class IpbackendError(Exception):
    """The root of the tree: whoever shows errors catches this and prints `str(error)`."""


class Kind(Enum):
    """Of a problem, for whoever answers programs: what sort of refusal it is."""

    INVALID = auto()  # a value that is wrong by itself, or does not fit another
    MISSING = auto()  # there is no such thing
    TAKEN = auto()  # an address or a port that something else has
    IN_USE = auto()  # something else depends on it
    PROTECTED = auto()  # it is protected from deletion
    QUOTA = auto()  # there are as many as there may be
    IP_TARGET_OFF = auto()  # members of a load balancer that takes none
    ADDRESSES = auto()  # more SNAT addresses are needed than the gateway has


class Problem(str):
    """A problem that is of another kind than INVALID, which every other string is."""

    __slots__ = ("kind",)

    kind: Kind

    def __new__(cls, what: str, kind: Kind) -> "Problem":
        """The problem as text."""
        problem = super().__new__(cls, what)
        problem.kind = kind
        return problem

    def below(self, where: str) -> "Problem":
        """The same, in a larger whole."""
        return Problem(f"{where}.{self}", self.kind)


def below(where: str, problem: str) -> str:
    """The problem as one of a thing that stands at `where`."""
    return problem.below(where) if isinstance(problem, Problem) else f"{where}.{problem}"


class ConfigurationError(IpbackendError):
    """What the user asked for is wrong, in one place or in several."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems: tuple[str, ...] = problems

    @property
    def kind(self) -> Kind:
        """Of the first problem."""
        first = self.problems[0] if self.problems else ""
        return first.kind if isinstance(first, Problem) else Kind.INVALID

    def __str__(self) -> str:
        return "\n".join(self.problems)


class DatapathError(IpbackendError):
    """BCC or the kernel does not do what the data plane needs."""


class NetworkError(IpbackendError):
    """The kernel's addresses, routes or neighbours cannot be had as wanted."""


class StoreError(IpbackendError):
    """What is wanted cannot be kept, or what was kept cannot be read."""


class ServiceError(IpbackendError):
    """The daemon cannot be asked, or refuses."""


class NotRunningError(IpbackendError):
    """There is no data plane to look at or to change."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """The remedy for an unknown `word`: the closest one, where one is close, and all that are known."""
    names = sorted(known)
    if not names:
        return "there are none"
    spellings = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), spellings, n=1)
    asked = f"did you mean {spellings[close[0]]}? " if close else ""
    return f"{asked}known: {', '.join(names)}"
