"""How long the loop was away while others had the processor or the interpreter: a member must not pay for that."""

import asyncio

BEAT = 0.05  # seconds: what it was away for is known to within this


class Attention:
    """Of one loop: a beat in it that is late tells that everything else in it is late."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._away = 0.0
        self._due = loop.time() + BEAT
        self._beat = loop.call_at(self._due, self._beaten)

    def away(self) -> float:
        """Seconds, of all its life, in which the loop did not get round to what was due."""
        return self._away + max(0.0, self._loop.time() - self._due)

    def close(self) -> None:
        """Stop counting."""
        self._beat.cancel()

    def _beaten(self) -> None:
        self._away = self.away()
        self._due = self._loop.time() + BEAT
        self._beat = self._loop.call_at(self._due, self._beaten)
