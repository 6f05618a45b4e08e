"""Collects the facts about this machine, and has doctor.py judge them. Nothing that it asks for stays."""

import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path

from ipbackend import doctor
from ipbackend.configuration import Configuration
from ipbackend.datapath import syscall
from ipbackend.datapath.loader import pinned_program
from ipbackend.datapath.pins import ENTRY
from ipbackend.datapath.rehearsal import rehearse
from ipbackend.doctor import Hop
from ipbackend.errors import DatapathError, NetworkError
from ipbackend.finding import Finding
from ipbackend.host import Host, host
from ipbackend.links import Link, links, routes
from ipbackend.model import AttachMode
from ipbackend.network import Network
from ipbackend.plan import hop_of
from ipbackend.sizing import tables_memory

_RESOLVE = 2.5  # seconds for next hops to answer ARP: the kernel asks thrice, a second apart
_POLL = 0.02


def checkup(
    run_directory: Path, interfaces: Collection[str], wanted: Configuration | None, load: bool
) -> Iterator[Finding]:
    """All findings, for these interfaces, or those of the gateway that is wanted, or all Ethernet.

    With `load` the whole program is compiled and loaded on trial.
    """
    here, found = host(), links()
    gateway = wanted.gateway if wanted else None
    ours = _loaded(run_directory)
    tables = tables_memory(gateway.max_connections) if gateway and ours is None else None
    yield from doctor.of_host(here, tables)
    if load and here.bcc and not here.lacking:
        yield _rehearsal()
    chosen = interfaces or (gateway.interfaces if gateway else _ethernet(found))
    mode = gateway.attach_mode if gateway else AttachMode.AUTO
    yield from doctor.of_links(found, chosen, mode, ours, here.cpus)
    networks = {one.name: one.cidrs for one in wanted.networks.values()} if wanted else {}
    yield from doctor.of_routes(routes(), found, networks, ours is not None)
    if wanted:
        yield from _next_hops(wanted, found, here)


def _ethernet(found: Mapping[str, Link]) -> list[str]:
    return [link.name for link in found.values() if link.ethernet and link.up]


def _loaded(run_directory: Path) -> int | None:
    """The id of our program, if one is pinned that we may look at."""
    try:
        fd = pinned_program(run_directory, ENTRY)
    except OSError:
        return None
    if fd is None:
        return None
    try:
        return syscall.program_id(fd)
    finally:
        os.close(fd)


def _rehearsal() -> Finding:
    try:
        return doctor.of_rehearsal(*rehearse(), refusal="")
    except DatapathError as error:
        return doctor.of_rehearsal({}, 0.0, str(error).splitlines()[0])


def _next_hops(wanted: Configuration, found: Mapping[str, Link], here: Host) -> Iterator[Finding]:
    """All of them are looked for at the same time."""
    routers = {(one.interface, one.next_hop) for one in wanted.networks.values() if one.next_hop}
    hops = [Hop(interface, address, True) for interface, address in sorted(routers)]
    members = {hop_of(wanted, key.address) for key in wanted.endpoints} - routers
    hops += [Hop(interface, address, False) for interface, address in sorted(members)]
    asked = [hop for hop in hops if hop.interface in found and found[hop.interface].up]
    try:
        with closing(Network()) as network:
            macs = _resolved(network, {(hop.address, found[hop.interface].index) for hop in asked})
    except NetworkError as error:
        yield Finding("next hop", None, f"could not be asked: {error}", "run doctor as root")
        return
    yield from doctor.of_next_hops({hop: macs.get((hop.address, found[hop.interface].index)) for hop in asked}, here)


def _resolved(network: Network, asked: set[tuple[IPv4Address, int]]) -> dict[tuple[IPv4Address, int], str]:
    """The MACs of those who answer in time."""
    end, first = time.monotonic() + _RESOLVE, True
    while True:
        there = network.neighbours()
        macs = {at: there[at].mac.hex(":") for at in asked if at in there and there[at].usable}
        if len(macs) == len(asked) or time.monotonic() > end:
            return macs
        for at in asked - set(macs):
            if first or (at in there and there[at].dormant):
                network.resolve(*at)
        first = False
        time.sleep(_POLL)
