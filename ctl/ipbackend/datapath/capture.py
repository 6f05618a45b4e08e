"""The programs once more, such that they show packets as they come and as they leave. They cost only while they run.

They stand in for the others on the same maps: connections notice nothing. What shows them is bpf/capture.h.
"""

import os
import socket
import struct
from typing import Any

from ipbackend.capture import Captured, Order
from ipbackend.datapath import syscall
from ipbackend.datapath.layout import type_of
from ipbackend.datapath.loader import ROADS, Loaded, Program
from ipbackend.datapath.maps import Memory
from ipbackend.datapath.packet_ring import Ring
from ipbackend.datapath.pins import ENTRY
from ipbackend.datapath.tables import ip_to_map

LEAVING = f"{ENTRY}_capture"
KINDS = dict.fromkeys((ENTRY, *ROADS.values(), LEAVING), syscall.XDP)
_INSTEAD = {"quiet.h": "capture.h"}
_MAPS = ("capture_orders", "capture_tallies", "capture_ring", "capture_road")
_HEADER = struct.Struct("Q8I")  # struct captured
_SECOND = 10**9
_BURST = _SECOND // 10  # packets of so many nanoseconds may come at once


class Capture(Loaded):
    """A data plane's programs that look for what is ordered; `ended` once they are closed, or to be."""

    def __init__(self, program: Program, order: Order) -> None:
        """Loaded, on the maps of `program`, and not joined or attached. DatapathError: they cannot be."""
        built = program.variant(_INSTEAD, KINDS, _MAPS)
        super().__init__(built.programs)
        orders, tallies, ring, self._road = (built.maps[name] for name in _MAPS)
        self._order, tally = (
            Memory.of(fd, type_of(built.layouts[name]["leaf"]), 1)
            for fd, name in ((orders, _MAPS[0]), (tallies, _MAPS[1]))
        )
        self._tally = tally[0]
        self._ring = Ring(ring, syscall.map_info(ring).max_entries)
        for fd in (orders, tallies, ring):
            os.close(fd)
        syscall.update(self._road, bytes(4), struct.pack("I", self._fds[LEAVING]))
        self.ended = False
        self.look_for(order)

    def look_for(self, order: Order) -> None:
        """Show this from here on, and no more what was ordered before."""
        self._order.write(0, bytes(_order(self._order[0], order)))

    @property
    def over_rate(self) -> int:
        """Packets that came faster than ordered, and were left out."""
        count: int = self._tally.over_rate
        return count

    @property
    def unread(self) -> int:
        """Packets that there was no room for, as they were not read in time."""
        count: int = self._tally.lost
        return count

    def read(self, most: int) -> list[Captured]:
        """The next packets, at most so many, by any one thread; also after the end."""
        return [_captured(record) for record in self._ring.read(most)]

    def close(self) -> None:
        """Let go of the programs; what they had seen can still be read."""
        self.ended = True
        os.close(self._road)
        super().close()


def _order(row: Any, order: Order) -> Any:
    return type(row)(
        verdicts=sum(1 << verdict for verdict in order.verdicts),
        interval=_SECOND // order.rate,
        burst=max(_BURST, _SECOND // order.rate),
        client=ip_to_map(order.client.network_address),
        client_mask=ip_to_map(order.client.netmask),
        vip=ip_to_map(order.vip) if order.vip else 0,
        member=ip_to_map(order.member.address) if order.member else 0,
        vip_port=socket.htons(order.port or 0),
        member_port=socket.htons((order.member and order.member.port) or 0),
        most=order.snaplen,
    )


def _captured(record: bytes) -> Captured:
    at, verdict, action, came_by, left_by, came_length, came_kept, left_length, left_kept = _HEADER.unpack_from(record)
    behind = _HEADER.size + came_kept
    return Captured(
        at,
        verdict,
        action,
        (came_by, came_length, record[_HEADER.size : behind]),
        (left_by, left_length, record[behind : behind + left_kept]) if left_length else None,
    )
