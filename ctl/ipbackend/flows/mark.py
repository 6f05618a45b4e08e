"""Up to where a ring was read: kept with what was written, so that it is neither written twice nor passed over."""

from typing import NamedTuple


class Mark(NamedTuple):
    """`position` in a `ring`, which a name tells from those of other boots; and how many were lost up to there."""

    ring: str
    position: int
    lost: int
    withheld: int
