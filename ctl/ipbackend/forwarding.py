"""The data plane of one gateway as it is loaded: compiled, pinned, attached, kept as wanted, swept, taken away.

It outlives its controller: what an earlier one left pinned is taken over. It knows no store and no requests.
"""

import contextlib
import logging
import os
import secrets
import select
import time
from collections.abc import Iterator
from pathlib import Path

from ipbackend import preparation
from ipbackend.abi import SweepMode
from ipbackend.configuration import Configuration
from ipbackend.datapath import syscall
from ipbackend.datapath.loader import ENTRY, Program, pinned_program, unpin
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.tables import Tables
from ipbackend.edits import find
from ipbackend.model import AttachMode, EndpointKey, Gateway, Protocol
from ipbackend.network import Interface, Network
from ipbackend.plan import gateway_of
from ipbackend.preparation import Finding
from ipbackend.probe import expired, probes
from ipbackend.reconcile import Reconciler
from ipbackend.trial import Trial, prepared
from ipbackend.view import View

log = logging.getLogger(__name__)

PROBES = 1000  # expired connections of an endpoint whose ends are told at once; others learn it when they speak
REST_MARGIN = 5.0  # seconds beyond the rest of a slot until an endpoint without connections is left in peace
RESOLVE = 3.0  # seconds that the start waits for next hops: the kernel gives up on one after that time


class Forwarding:
    """Program, maps and reconciler, made for a gateway's fixed settings. To be used by the thread of its Network."""

    def __init__(self, run_directory: Path, network: Network, gateway: Gateway) -> None:
        """Loaded, taken over if there is one already, and not attached yet: no packet notices."""
        self._network = network
        self._run_directory = run_directory
        self._earlier = pinned_program(run_directory, ENTRY)
        self._opened = contextlib.ExitStack()
        started = time.monotonic()
        with contextlib.ExitStack() as opened:
            self._program = opened.enter_context(contextlib.closing(Program(run_directory, gateway.max_connections)))
            self.maps = opened.enter_context(Maps(run_directory))
            how = "taken over" if self._earlier is not None else "fresh"
            log.info("data plane loaded in %.1f s, %s", time.monotonic() - started, how)
            self._settle(gateway)
            self._program.set_clock(self.maps)
            self._tables = Tables(self.maps, self._program.sweep)
            self._tables.drop_leftovers()
            self.reconciler = Reconciler(network, self._tables)
            self._last_opened: dict[int, tuple[int, float]] = {}  # by endpoint: its ring's head, and when it was there
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Let go of it; what is pinned and attached forwards on."""
        self._opened.close()
        self._forget_earlier()

    def check(self, configuration: Configuration) -> None:
        """Raise, and change nothing, where this data plane or the kernel cannot be brought to `configuration`."""
        self.reconciler.check(configuration)

    def start(self, configuration: Configuration) -> None:
        """Attach, and bring everything to `configuration`: from here on packets are forwarded by it."""
        self._program.join(self.maps)
        self._attach(gateway_of(configuration))
        self._program.pin()
        self._forget_earlier()
        self._find_next_hops(configuration)
        self.reconciler.apply(configuration)

    def apply(self, configuration: Configuration) -> None:
        """Bring everything to `configuration`."""
        self._attach(gateway_of(configuration))
        self.reconciler.apply(configuration)

    def refresh(self, configuration: Configuration, observe: bool) -> list[str]:
        """Compare everything with `configuration`, and put right what others changed unless `observe`.

        Returns what others changed, a line each.
        """
        drift = self._detached(gateway_of(configuration)) + self.reconciler.drift(configuration)
        if drift and not observe:
            self._program.join(self.maps)
            self._attach(gateway_of(configuration))
            self.reconciler.repair(configuration)
        else:
            self.reconciler.follow(configuration)
        return drift

    def sweep(self) -> int:
        """What has been silent for too long ends; both ends of it are made to speak, and so learn it.

        Returns how many slots were looked at.
        """
        entries, looked = self.reconciler.entries, 0
        for number, endpoint in entries.endpoints.items():
            if self._rests(number):
                continue
            looked += endpoint.slots
            started = self.maps.clock.now()
            ended, _ = self._tables.sweep(number, SweepMode.EXPIRED)
            if not ended:
                continue
            connections = self.maps.of_endpoint("conntrack", number)
            for slot in expired(connections, started - 1)[:PROBES]:
                for probe in probes(connections[slot], slot, endpoint, entries.next_hops[endpoint.next_hop]):
                    self._network.send(probe.interface, probe.frame)
        return looked

    def look(self, configuration: Configuration) -> View:
        """All that is carried, for the thread that changes it."""
        return View(self.maps, configuration, self.reconciler.entries)

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

    def _rests(self, number: int) -> bool:
        """Whether an endpoint has no connections, and opened none for so long that every slot has rested."""
        load = self.maps["load"].memory()[number]
        opened, since = self._last_opened.get(number, (-1, 0.0))
        if load.active or load.head != opened:
            self._last_opened[number] = (load.head, time.monotonic())
            return False
        rest: int = self.maps["gateway"].memory()[0].rest
        return time.monotonic() - since > rest + REST_MARGIN

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

    def _detached(self, gateway: Gateway) -> list[str]:
        """Where our programs are wanted, and are not."""
        links, ours = self._network.interfaces(), syscall.program_id(self._program.entry)
        wanted = [links[name] for name in gateway.interfaces if name in links]
        return [f"XDP detached from {link.name}" for link in wanted if self._program_on(link) != ours] + [
            f"program {road.name} missing" for road in self._program.lost(self.maps)
        ]

    def _program_on(self, link: Interface) -> int | None:
        present = self._network.attached(link.index)
        return present.program_id if present else None

    def _attach(self, gateway: Gateway) -> None:
        """Have our program on the gateway's interfaces and no other; what is right stays as it is."""
        current = syscall.program_id(self._program.entry)
        known = {current: self._program.entry}
        if self._earlier is not None:
            known[syscall.program_id(self._earlier)] = self._earlier
        for link in self._network.interfaces().values():
            there = self._program_on(link)
            if link.name in gateway.interfaces and there != current:
                replaced = known.get(there or 0)
                mode = self._attached(link, gateway.attach_mode, replaced)
                log.info("%s: XDP %s, %s mode", link.name, "attached" if replaced is None else "replaced", mode)
            elif link.name not in gateway.interfaces and there in known:
                self._network.detach(link, known[there])
                log.info("%s: XDP detached", link.name)

    def _attached(self, link: Interface, mode: AttachMode, replaced: int | None) -> str:
        return self._network.attach(link, self._program.entry, mode, replaced)

    def _forget_earlier(self) -> None:
        if self._earlier is not None:
            os.close(self._earlier)
            self._earlier = None


def unload(run_directory: Path, network: Network) -> list[str]:
    """Take program, addresses, routes and maps away; returns what was done, a line each."""
    done = []
    links = {link.index: link for link in network.interfaces().values()}
    program = pinned_program(run_directory, ENTRY)
    if program is not None:
        for link in links.values():
            present = network.attached(link.index)
            if present and present.program_id == syscall.program_id(program):
                network.detach(link, program)
                done.append(f"{link.name}: XDP detached")
        os.close(program)
    done += [
        f"{links[one.interface].name}: address {one.address} removed"
        for one in network.addresses()
        if one.ours and network.remove_address(one.address, links[one.interface])
    ]
    done += [f"route {route.cidr} removed" for route in network.routes() if network.remove_route(route)]
    done += [f"map {name} removed" for name in unpin(run_directory)]
    return done
