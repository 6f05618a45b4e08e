"""Everything that is refused or fails for a reason a user can act on; nothing here knows who raises it.

    IpbackendError              shown as one line: `where: what (remedy)`
    ├── ConfigurationError      what was asked for is wrong; holds every problem found, a line each
    ├── DatapathError           BCC or the kernel does not take the program, a map or an attachment
    ├── NetworkError            netlink refuses an address, a route or a neighbour
    └── NotRunningError         nothing is loaded

Any other exception is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class IpbackendError(Exception):
    """The root of the tree: whoever shows errors catches this and prints `str(error)`."""


class ConfigurationError(IpbackendError):
    """What the user asked for is wrong, in one place or in several."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems: tuple[str, ...] = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class DatapathError(IpbackendError):
    """BCC or the kernel does not do what the data plane needs."""


class NetworkError(IpbackendError):
    """The kernel's addresses, routes or neighbours cannot be had as wanted."""


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
