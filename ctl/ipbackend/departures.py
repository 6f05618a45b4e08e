"""What leaves the data plane, and how: the connections that members who drain still have, and those that are cut.

It carries drains out on the maps and keeps no deadline. Endpoints and VIPs that nobody wants stay until both ends of
their connections know that these are over, or do not answer.
"""

import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from ipbackend.abi import SweepMode
from ipbackend.datapath.tables import Tables
from ipbackend.drains import Claim, Drain, Reason
from ipbackend.farewell import Farewell
from ipbackend.model import EndpointKey
from ipbackend.plan import Leaving
from ipbackend.reconcile import Reconciler
from ipbackend.view import View


class Departures:
    """Of one data plane; used by the thread that changes it."""

    def __init__(
        self, tables: Tables, reconciler: Reconciler, farewell: Farewell, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tables, self._reconciler, self._farewell, self._clock = tables, reconciler, farewell, clock
        self._known: frozenset[Claim] = frozenset()  # drains that no packet can have missed
        self._parting: frozenset[EndpointKey] = frozenset()  # of no member, and of no drain
        self._vips: dict[IPv4Address, float] = {}  # of no load balancer, and until when they stay at the latest

    def step(self, view: View, due: Iterable[Drain], patience: float) -> set[Claim]:
        """Cut what is due, tell ends, and let go of what has been told; returns the drains that are over.

        `patience`: seconds after which a connection that ended answers nobody any more.
        """
        claims = frozenset(one.claim for one in view.drains)
        leaving = self._reconciler.leaving(view.configuration)
        parting = leaving.endpoints - {one.endpoint for one in view.drains}
        if claims - self._known or parting - self._parting:
            self._tables.wait()  # a packet that saw the state before may have opened one more
        self._known, self._parting = claims, parting
        for drain in due:
            self._cut(view, drain)
        for key in parting:
            self._sweep(view, view.endpoint_ids[key], SweepMode.REMOVED)
        self.tell()
        self._release(view, self._reconciler.leaving(view.configuration), patience)
        return {one.claim for one in view.drains if not view.has_some(one)}

    def tell(self) -> None:
        """Ask some ends of what has ended; the sweeps have left word of it."""
        while self._tables.untold:
            self._farewell.add(*self._tables.untold.popitem())
        self._farewell.say(self._reconciler.entries)

    @property
    def pressing(self) -> bool:
        """Whether ends could be asked right now."""
        return bool(self._tables.untold) or self._farewell.pressing

    def _cut(self, view: View, drain: Drain) -> None:
        number = view.endpoint_ids.get(drain.endpoint)
        if number is None:
            return
        mode = SweepMode.DRAINED if drain.delay or drain.reason is not Reason.REMOVED else SweepMode.REMOVED
        its = view.scope(drain)
        for listener in (0,) if its is None else its:
            self._sweep(view, number, mode, listener)

    def _sweep(self, view: View, number: int, mode: SweepMode, listener: int = 0) -> None:
        if view.active(number):
            self._tables.sweep(number, mode, listener)

    def _release(self, view: View, leaving: Leaving, patience: float) -> None:
        """Whose connections have ended, and whose ends have been told or had their time."""
        numbers = {key: view.endpoint_ids[key] for key in self._parting}
        endpoints = {key for key, one in numbers.items() if not view.active(one) and one not in self._farewell}
        now = self._clock()
        self._vips = {vip: self._vips.get(vip, now + patience) for vip in leaving.vips}
        vips = {vip for vip, end in self._vips.items() if not self._farewell or end <= now}
        if endpoints or vips:
            self._reconciler.release(view.configuration, Leaving(frozenset(endpoints), frozenset(vips)))
