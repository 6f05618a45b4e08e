"""When a member is asked next: evenly spread over the delay, and never all at once. Pure arithmetic on seconds.

Members stand at phases of their delay, apart from each other by the golden ratio, which leaves no two close and
no gap wide however many there are; each check is later than its phase by a little chance. From the first failed
check to the end of the n-th there are at most `timeout × n + delay × (n − 1)` seconds, as published.
"""

from dataclasses import dataclass
from math import floor

GOLDEN = (5**0.5 - 1) / 2
_EXACT = 1e-6  # of a delay: a check that begins at its turn is not before it, however the sum is rounded


def phase(number: int) -> float:
    """Of the member that is the `number`-th to be asked: 0 to 1."""
    return number * GOLDEN % 1


@dataclass(frozen=True)
class Rhythm:
    """`delay` and `timeout` in seconds; `phase` of the delay, 0 to 1."""

    delay: float
    timeout: float
    phase: float

    @property
    def jitter(self) -> float:
        """Seconds that a check is late at most."""
        return min(self.delay / 10, self.timeout / 2)

    def next(self, began: float, ended: float, chance: float) -> float:
        """When to ask again after a check that took from `began` to `ended`; `chance` is 0 to 1.

        One that missed its next turn is followed at once, unless another turn is near.
        """
        due = self._turn(began) + chance * self.jitter
        if due >= ended:
            return due
        following = self._turn(ended)
        return ended if following - ended >= self.delay / 2 else following + chance * self.jitter

    def _turn(self, after: float) -> float:
        return (floor(after / self.delay - self.phase + _EXACT) + 1 + self.phase) * self.delay
