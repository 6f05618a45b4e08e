"""The share of one that came up: from a tenth to all of its weight. Pure arithmetic on seconds."""

from ipbackend.plan import WHOLE

_STEPS = WHOLE - 1  # from one tenth to ten
_EXACT = 1e-9  # of a step: at its end the next one has begun, however the quotient is rounded


def share(elapsed: float, duration: float) -> int:
    """Tenths of its weight, so many seconds after it came up."""
    return min(WHOLE, 1 + int(_STEPS * elapsed / duration + _EXACT))


def next_step(elapsed: float, duration: float) -> float:
    """How many seconds after it came up its share is next another one; `duration` at last."""
    return min(share(elapsed, duration), _STEPS) * duration / _STEPS
