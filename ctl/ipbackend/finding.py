"""What a check finds, and what to do about it: for `member check`, `network check` and `doctor`."""

from typing import NamedTuple


class Finding(NamedTuple):
    """What a step found: good, bad, or None where it could not tell or there is nothing to be done; and the remedy."""

    step: str
    good: bool | None
    what: str
    remedy: str = ""
