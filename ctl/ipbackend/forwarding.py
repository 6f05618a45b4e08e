"""The data plane of one gateway as it is loaded: compiled, pinned, attached, kept as wanted, swept, taken away.

It outlives its controller: what an earlier one left pinned is taken over. It knows no store and no requests.
"""

import contextlib
import logging
import os
import secrets
import select
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ipbackend import preparation
from ipbackend.abi import SweepMode
from ipbackend.capture import Order
from ipbackend.configuration import Configuration
from ipbackend.connections import Target
from ipbackend.datapath import syscall
from ipbackend.datapath.audit import Auditor
from ipbackend.datapath.capture import Capture
from ipbackend.datapath.layout import FILE
from ipbackend.datapath.loader import Loaded, Program, entries, unpin
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.pins import Pins, rescue
from ipbackend.datapath.tables import Tables
from ipbackend.departures import Departures
from ipbackend.drains import Claim, Drains
from ipbackend.edits import find
from ipbackend.errors import IpbackendError, NetworkError
from ipbackend.farewell import Farewell
from ipbackend.finding import Finding
from ipbackend.model import AttachMode, EndpointKey, Gateway, Protocol
from ipbackend.network import Interface, Network
from ipbackend.plan import gateway_of, serving
from ipbackend.reconcile import Each, Reconciler
from ipbackend.trial import Trial, prepared
from ipbackend.view import View

log = logging.getLogger(__name__)

KILL_TRIES = 4
REST_MARGIN = 5.0  # seconds beyond the rest of a slot until an endpoint without connections is left in peace
RESOLVE = 3.0  # seconds that the start waits for next hops: the kernel gives up on one after that time


class Look(NamedTuple):
    """What others changed, a line each; what of it could not be put back, or was not to be; and why not."""

    drift: list[str]
    left: list[str]
    problems: list[str]


class Forwarding:
    """Program, maps and reconciler, made for a gateway's fixed settings. To be used by the thread of its Network."""

    def __init__(self, run_directory: Path, network: Network, gateway: Gateway) -> None:
        """Loaded, taken over if there is one already, and not attached yet: no packet notices."""
        self._network = network
        self._run_directory = run_directory
        _rescue(run_directory, network, gateway.interfaces)
        self._earlier = entries(run_directory)
        self._capture: Capture | None = None
        self._opened = contextlib.ExitStack()
        started = time.monotonic()
        with contextlib.ExitStack() as opened:
            program = Program(run_directory, gateway.max_connections, gateway.counts_connections)
            self._program = opened.enter_context(contextlib.closing(program))
            self.maps = opened.enter_context(Maps(run_directory))
            how = "taken over" if self._earlier else "fresh"
            log.info("data plane loaded in %.1f s, %s", time.monotonic() - started, how)
            self._pins = Pins(run_directory, self.maps, self._program)
            self._settle(gateway)
            self._program.set_clock(self.maps)
            self._tables = Tables(self.maps, self._program.sweep)
            self._tables.drop_leftovers()
            self.reconciler = Reconciler(network, self._tables)
            self.auditor = Auditor(self.maps)
            self._departures = Departures(self._tables, self.reconciler, Farewell(self.maps, network.send))
            # By endpoint: its ring's head, when it was there, and whether all has been swept that rested since.
            self._last_opened: dict[int, tuple[int, float, bool]] = {}
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Let go of it; what is pinned and attached forwards on."""
        try:
            self.end_capture()
        finally:
            self._opened.close()
            self._forget_earlier()

    def check(self, configuration: Configuration) -> None:
        """Raise, and change nothing, where this data plane or the kernel cannot be brought to `configuration`."""
        self.reconciler.check(configuration, taken_over=bool(self._earlier))

    def serving(self, configuration: Configuration) -> set[str]:
        """Ids of the members that get new connections by what is loaded."""
        return serving(configuration, self.reconciler.entries)

    def start(self, configuration: Configuration, shares: Mapping[str, int]) -> None:
        """Attach, and bring everything to `configuration`: from here on packets are forwarded by it."""
        each = _tolerant if self._earlier else contextlib.nullcontext
        self._program.pin()
        self._program.join(self.maps)
        self._attach(configuration, each)
        self._program.forget_others()
        self._forget_earlier()
        self._find_next_hops(configuration)
        self.reconciler.shares = shares
        self.reconciler.apply(configuration, each)

    def apply(self, have: Configuration, want: Configuration, shares: Mapping[str, int]) -> None:
        """Bring everything from `have` to `want`, with these shares of new connections, in tenths, by member id.

        What others have spoilt meanwhile is no reason to refuse: the next refresh tells of it.
        """
        if gateway_of(have).interfaces != gateway_of(want).interfaces:
            self._attach(want)
        self.reconciler.shares = shares
        self.reconciler.apply(want)

    def capture(self, configuration: Configuration, order: Order) -> Capture:
        """Have the programs show what is ordered, until `end_capture`; where we die, until the next start."""
        self._capture = Capture(self._program, order)
        try:
            self._program.pin_beside(self._capture)
            self._capture.join(self.maps)
            self._attach(configuration)
        except BaseException:
            self.end_capture()
            raise
        return self._capture

    def end_capture(self) -> None:
        """The programs show nothing any more. NetworkError: somewhere they do, until the next refresh."""
        capture, self._capture = self._capture, None
        if capture is None:
            return
        capture.ended = True
        self._earlier.append(capture.entry)
        number = syscall.program_id(capture.entry)
        for link in self._network.interfaces().values():
            if self._program_on(link) == number:
                self._network.attach(link, self._program.entry, AttachMode.AUTO, capture.entry)
        self._program.join(self.maps)
        self._program.unpin_beside()
        self._earlier.remove(capture.entry)
        capture.close()

    def refresh(self, configuration: Configuration, observe: bool) -> Look:
        """Compare everything with `configuration`, and put right what others changed unless `observe`."""
        drift, problems = self._drift(configuration), list[str]()

        @contextlib.contextmanager
        def each() -> Iterator[None]:
            try:
                yield
            except IpbackendError as error:
                problems.append(str(error))

        if drift and not observe:
            with each():
                self._pins.put_back()
            self._current.join(self.maps)
            with each():
                self._attach(configuration, each)
            with each():
                self.reconciler.repair(configuration, each)
        else:
            self.reconciler.follow(configuration)
        left = drift if observe else self._drift(configuration) if problems else []
        return Look(drift, left, self.reconciler.problems(configuration) + problems)

    def _drift(self, configuration: Configuration) -> list[str]:
        return self._pins.missing() + self._detached(configuration) + self.reconciler.drift(configuration)

    def weigh(self, configuration: Configuration, shares: Mapping[str, int]) -> None:
        """Give members other shares of new connections."""
        self.reconciler.weigh(configuration, shares)

    def sweep(self) -> int:
        """What has been silent for too long ends; returns how many slots were looked at."""
        looked = 0
        for number, endpoint in self.reconciler.entries.endpoints.items():
            if not self._rests(number):
                looked += endpoint.slots
                self._tables.sweep(number, SweepMode.EXPIRED)
        self._tables.set_swept()
        return looked

    def depart(self, configuration: Configuration, drains: Drains) -> set[Claim]:
        """Cut what is due, have both ends of what has ended told, let go of what nobody wants.

        Returns the drains that are over.
        """
        view = View(self.maps, configuration, self.reconciler.entries, drains=drains.running)
        return self._departures.step(view, drains.due(), self.maps["gateway"].memory()[0].rest)

    def tell(self) -> None:
        """Have some more ends told of what has ended."""
        self._departures.tell()

    @property
    def telling(self) -> bool:
        """Whether there are ends that could be told right now."""
        return self._departures.pressing

    def kill(self, chosen: Iterable[Target]) -> int:
        """End these connections, and have both ends told; returns how many there still were."""
        killed = sum(self._killed(one) for one in chosen)
        self.tell()
        return killed

    def examine(self, configuration: Configuration, key: EndpointKey) -> Iterator[Finding]:
        """Whether a member that is there, or to be added, is prepared; nothing is tried without a next hop."""
        *way, next_hop = preparation.of_way(configuration, key, self._network)
        yield from (*way, next_hop)
        if not next_hop.good:
            return
        if key.protocol is Protocol.UDP:
            yield Finding("member", None, "not asked: no datagram is answered by every service")
            return
        with self.reconciler.endpoint(configuration, key) as number:
            entries = self.reconciler.entries
            endpoint = entries.endpoints[number]
            hop = entries.next_hops[endpoint.next_hop]
            with prepared(self._tables, entries, number) as ends:
                trial = Trial(self._program.entry, self.maps, self._network.send, number, endpoint, hop, ends)
                try:
                    yield from preparation.of_member(configuration, key, hop.mtu, trial, self._network)
                finally:
                    trial.close()

    def examine_network(self, configuration: Configuration, number: str) -> Iterator[Finding]:
        """Whether the way to a network is prepared."""
        return preparation.of_network(configuration, find(configuration, "networks", number), self._network)

    def _killed(self, target: Target) -> bool:
        """A packet may be in the way at one attempt, and at another."""
        return any(self._tables.kill(*target) for _ in range(KILL_TRIES))

    def _rests(self, number: int) -> bool:
        """Whether an endpoint has no connections, and opened none for so long that every slot has rested."""
        load, now = self.maps["load"].memory()[number], time.monotonic()
        opened, since, swept = self._last_opened.get(number, (-1, 0.0, False))
        if load.active or load.head != opened:
            self._last_opened[number] = (load.head, now, False)
            return False
        if not swept:  # one sweep comes after the rest, however late it is
            rest: int = self.maps["gateway"].memory()[0].rest
            self._last_opened[number] = (opened, since, now - since > rest + REST_MARGIN)
        return swept

    def _settle(self, gateway: Gateway) -> None:
        """The settings of a fresh data plane; one that is taken over keeps its secret, its connections hang on it."""
        settings = self.maps["gateway"].memory()[0]
        if not any(settings.hash_key):
            settings.hash_key = tuple(secrets.randbits(64) | 1 for _ in settings.hash_key)
        settings.fingerprint = self.maps.fingerprint
        settings.snat_shift = len(gateway.snat_addresses).bit_length() - 1

    def _find_next_hops(self, configuration: Configuration) -> None:
        """Before the first packet: give the kernel the time it takes to find them, or to give up."""
        end = time.monotonic() + RESOLVE
        while (missing := self.reconciler.unresolved(configuration)) and time.monotonic() < end:
            select.select([self._network.fileno()], [], [], end - time.monotonic())
            self._network.changed()
        for address in missing:
            log.warning("next hop %s does not answer: its members get no connections until it does", address)

    def _detached(self, configuration: Configuration) -> list[str]:
        """Where our programs are wanted, and are not."""
        links, ours = self.reconciler.links(configuration), syscall.program_id(self._current.entry)
        wanted = [links[name] for name in gateway_of(configuration).interfaces if links[name].there]
        guard = syscall.program_id(self._program.guard)
        return [
            *(f"XDP detached from {link.name}" for link in wanted if self._program_on(link) != ours),
            *(f"guard missing from {link.name}" for link in wanted if self._network.guarded(link.index) != guard),
            *(f"program {road.name} missing" for road in self._current.lost(self.maps)),
        ]

    def _program_on(self, link: Interface) -> int | None:
        present = self._network.attached(link.index)
        return present.program_id if present else None

    def _attach(self, configuration: Configuration, each: Each = contextlib.nullcontext) -> None:
        """Have our program on the gateway's interfaces and no other; what is right stays as it is."""
        gateway, links = gateway_of(configuration), self.reconciler.links(configuration)
        wanted = {links[name].index for name in gateway.interfaces}
        current = syscall.program_id(self._current.entry)
        known = {syscall.program_id(fd): fd for fd in (self._program.entry, self._current.entry, *self._earlier)}
        for link in {link.index: link for link in links.values() if link.there}.values():
            there = self._program_on(link)
            with each():
                self._guard(link, link.index in wanted)
            if link.index in wanted and there != current:
                replaced = known.get(there or 0)
                with each():
                    mode = self._network.attach(link, self._current.entry, gateway.attach_mode, replaced)
                    log.info("%s: XDP %s, %s mode", link.name, "attached" if replaced is None else "replaced", mode)
            elif link.index not in wanted and there in known:
                self._network.detach(link, known[there])
                log.info("%s: XDP detached", link.name)

    def _guard(self, link: Interface, wanted: bool) -> None:
        """First, and away last: in between the kernel would answer whoever it does not know by RST."""
        there, guard = self._network.guarded(link.index), syscall.program_id(self._program.guard)
        if wanted and there != guard:
            self._network.guard(link, self._program.guard, guard)
        elif there == guard and not wanted:
            self._network.unguard(link)

    @property
    def _current(self) -> Loaded:
        """The programs that packets are to go through."""
        return self._capture or self._program

    def _forget_earlier(self) -> None:
        while self._earlier:
            os.close(self._earlier.pop())


@contextlib.contextmanager
def _tolerant() -> Iterator[None]:
    """For what forwards already: what somebody else's hand keeps from being as wanted is left to the next refresh."""
    try:
        yield
    except NetworkError as error:
        log.error("%s", error)


def _rescue(run_directory: Path, network: Network, names: Iterable[str]) -> None:
    """What runs on these interfaces and has lost its pins is pinned again."""
    links = network.interfaces()
    found = (network.attached(links[name].index) for name in names if name in links)
    attached = [present.program_id for present in found if present]
    if rescue(run_directory, attached):
        log.warning("%s: the pins were gone: made again from what is attached", run_directory)


def unload(run_directory: Path, network: Network) -> list[str]:
    """Take program, addresses, routes and maps away; returns what was done, a line each."""
    done = []
    if (run_directory / FILE).exists():
        _rescue(run_directory, network, network.interfaces())
    links = {link.index: link for link in network.interfaces().values()}
    for program in entries(run_directory):
        for link in links.values():
            present = network.attached(link.index)
            if present and present.program_id == syscall.program_id(program):
                network.detach(link, program)
                done.append(f"{link.name}: XDP detached")
        os.close(program)
    for link in links.values():
        if network.guarded(link.index):
            network.unguard(link)
            done.append(f"{link.name}: guard removed")
    done += [
        f"{links[one.interface].name}: address {one.address} removed"
        for one in network.addresses()
        if one.ours and network.remove_address(one.address, links[one.interface])
    ]
    done += [f"route {route.cidr} removed" for route in network.routes() if network.remove_route(route)]
    done += [f"map {name} removed" for name in unpin(run_directory)]
    return done
