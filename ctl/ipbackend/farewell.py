"""Tells both ends of connections that a sweep has ended: makes them speak, a few at a time, so that they get a RST.

It knows which ends have spoken since, as the data plane writes it down, and asks those that have not once more. It
decides about no connection.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ipbackend.abi import STATE_TOLD_CLIENT, STATE_TOLD_MEMBER, Phase
from ipbackend.datapath.maps import Maps
from ipbackend.plan import Entries
from ipbackend.probe import to_client, to_member

ROUNDS = 3  # in which an end is asked: a frame may be lost
PAUSE = 1.0  # seconds between them, and after the last one
SLICE = 0.05  # seconds that frames are sent at a time: whatever else is to be done waits no longer
_EXPIRED = re.compile(re.escape(bytes([Phase.EXPIRED])))


@dataclass
class _Group:
    """Connections of one endpoint that ended between two ticks."""

    endpoint: int
    first: int
    last: int
    rounds: int = 0
    due: float = 0.0
    asking: Iterator[None] | None = field(default=None, repr=False)


class Farewell:
    """The ends that are still to be told; `send` takes an interface's index and a frame."""

    def __init__(
        self,
        maps: Maps,
        send: Callable[[int, bytes], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._maps, self._send, self._clock = maps, send, clock
        self._groups: list[_Group] = []

    def add(self, endpoint: int, tick: int) -> None:
        """Connections of this endpoint have ended since `tick`, give or take one."""
        self._groups.append(_Group(endpoint, tick - 1, self._maps.clock.now() + 1))

    def __contains__(self, endpoint: int) -> bool:
        """Whether some end of it is still to be told."""
        return any(one.endpoint == endpoint for one in self._groups)

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def pressing(self) -> bool:
        """Whether there are ends to be asked right now."""
        return any(one.due <= self._clock() for one in self._groups)

    def say(self, entries: Entries) -> None:
        """Ask ends for a moment, endpoint by endpoint."""
        end = self._clock() + SLICE
        for group in list(self._groups):
            now = self._clock()
            if now >= end:
                return
            if group.due > now:
                continue
            if group.asking is None:
                group.rounds += 1
                group.asking = self._ask(group, entries) if group.rounds <= ROUNDS else iter(())
                if group.rounds > ROUNDS or not self._untold(group):
                    self._groups.remove(group)
                    continue
            for _ in group.asking:
                if self._clock() >= end:
                    return
            group.asking, group.due = None, self._clock() + PAUSE

    def _untold(self, group: _Group) -> bool:
        """Whether anybody is to be asked."""
        return next(self._slots(group), None) is not None

    def _slots(self, group: _Group) -> Iterator[tuple[int, int]]:
        """Slots that hold such a connection, and which of its ends have been told."""
        connections = self._maps.of_endpoint("conntrack", group.endpoint)
        both, span = STATE_TOLD_CLIENT | STATE_TOLD_MEMBER, (group.last - group.first) & 0xFFFF_FFFF
        for match in _EXPIRED.finditer(bytes(connections.column("state"))):
            connection = connections[match.start()]
            told = connection.state & both
            if told != both and (connection.last_seen - group.first) & 0xFFFF_FFFF <= span:
                yield match.start(), told

    def _ask(self, group: _Group, entries: Entries) -> Iterator[None]:
        """One round, connection by connection."""
        endpoint = entries.endpoints.get(group.endpoint)
        if endpoint is None:
            return
        next_hop = entries.next_hops.get(endpoint.next_hop)
        connections = self._maps.of_endpoint("conntrack", group.endpoint)
        for slot, told in self._slots(group):
            if not told & STATE_TOLD_CLIENT:
                self._send(*to_client(connections[slot]))
            if not told & STATE_TOLD_MEMBER and next_hop and next_hop.resolved:
                self._send(*to_member(connections[slot], slot, endpoint, next_hop))
            yield
