"""Brings maps, addresses and routes to what a configuration says, from whatever is there. It knows no store or signals.

The configuration says what is wanted, the kernel says what is. Maps come before addresses, so that no packet
to a VIP ever reaches the gateway's own services; addresses leave before maps for the same reason.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address

from ipbackend.configuration import Configuration
from ipbackend.datapath.tables import Tables
from ipbackend.errors import DatapathError, NetworkError
from ipbackend.model import EndpointKey, Member, Pool
from ipbackend.network import Interface, Neighbour, Network, Route
from ipbackend.plan import Entries, HopKey, NextHop, Step, diff, gateway_of, hop_of, hops, plan

log = logging.getLogger(__name__)

_SHOWN = 20  # changes that are logged one by one; more are counted
_TRIED = 8  # connections that an endpoint takes which is no member's


class Reconciler:
    """Applies configurations to one gateway's kernel. `entries` are what it last put into the maps."""

    def __init__(self, network: Network, tables: Tables) -> None:
        self._network = network
        self._tables = tables
        self.entries = tables.read()
        self._found = self.entries  # what the maps really held when `drift` looked

    def check(self, configuration: Configuration) -> None:
        """Raise, and change nothing, where what is loaded, or the kernel, stands against this configuration."""
        have = {address: entry.index for address, entry in self.entries.addresses.items() if entry.role.name == "SNAT"}
        want = {address: index for index, address in enumerate(gateway_of(configuration).snat_addresses)}
        if have and have != want:
            raise DatapathError(
                f"gateway.snat_addresses: {', '.join(map(str, have))} are loaded and carry connections "
                "(keep them, or `ipbackend unload` and run again: its connections end)"
            )
        links = self._links(configuration)
        self._plan(configuration, links)
        for route in _routes(configuration, links) - self._network.routes():
            self._network.lacks(route)

    def unresolved(self, configuration: Configuration) -> list[IPv4Address]:
        """Next hops that are not known at the moment; the kernel is asked to look for them."""
        ways = self._ways(configuration, self._links(configuration))
        return [hop.address for hop, way in ways.items() if not way.resolved]

    def apply(self, configuration: Configuration) -> None:
        """Bring everything up to date. What is refused is refused before anything changes."""
        links = self._links(configuration)
        want = self._plan(configuration, links)
        self._remove_addresses(configuration, links)
        self._tables.set_timing(gateway_of(configuration))
        routes, wanted = self._network.routes(), _routes(configuration, links)
        added = [str(route.cidr) for route in wanted - routes if self._network.add_route(route)]
        _report("route", "added", added)
        if added:
            want = self._plan(configuration, links)  # the way to a member may have changed with its route
        self._carry_out(diff(self.entries, want), want)
        _report("route", "removed", [str(route.cidr) for route in routes - wanted if self._network.remove_route(route)])
        self._add_addresses(configuration, links)

    def drift(self, configuration: Configuration) -> list[str]:
        """What others changed of what is ours, a line each."""
        links = self._links(configuration)
        names = {link.index: link.name for link in links.values()}
        wanted = _addresses(configuration, links)
        there = {(one.address, one.interface): one.ours for one in self._network.addresses()}
        routes, wanted_routes = self._network.routes(), _routes(configuration, links)
        self._found = self._tables.read(self.entries.pools)
        steps = diff(self._found, self.entries)
        return [
            *(f"address {at[0]} missing from {link.name}" for at, link in wanted.items() if at not in there),
            *(f"address {at[0]} found on {names[at[1]]}" for at, ours in there.items() if ours and at not in wanted),
            *(f"route to {route.cidr} missing" for route in wanted_routes - routes if self._network.lacks(route)),
            *(f"route to {route.cidr} found" for route in routes - wanted_routes),
            *(
                f"map {step.table}: to {step.action} {_name(step)}"
                for step in steps
                if step.action in ("set", "delete")
            ),
        ]

    def follow(self, configuration: Configuration) -> None:
        """Keep next hops and interfaces in the maps as the kernel has them."""
        want = self._plan(configuration, self._links(configuration))
        self._carry_out(diff(self.entries, want), want)

    def repair(self, configuration: Configuration) -> None:
        """Put right whatever others changed, as `drift` found it."""
        self._carry_out(diff(self._found, self.entries), self.entries)
        self.apply(configuration)

    @contextmanager
    def endpoint(self, configuration: Configuration, key: EndpointKey) -> Iterator[int]:
        """The id of an endpoint for a while: of one that is no member's, it is made and goes again.

        ConfigurationError: it could be no member.
        """
        links = self._links(configuration)
        member = Member(key.address, key.port, max_connections=_TRIED)
        extra = Pool("(a check)", key.protocol, members=(member,))
        pools = {**configuration.pools, **({} if key in configuration.endpoints else {extra.id: extra})}
        self._turn_to(self._plan(replace(configuration, pools=pools), links))
        try:
            yield self.entries.endpoint_ids[key]
        finally:
            self._turn_to(self._plan(configuration, links))

    def _turn_to(self, want: Entries) -> None:
        self._carry_out(diff(self.entries, want), want)

    def _read(self) -> Entries:
        return self._tables.read(self.entries.pools)

    def _plan(self, configuration: Configuration, links: dict[str, Interface]) -> Entries:
        """What the maps should hold as things are now; raises where that cannot be, and changes nothing."""
        mtus = {links[name].index: links[name].mtu for name in gateway_of(configuration).interfaces}
        return plan(configuration, self._ways(configuration, links), mtus, self.entries, self._tables.slots)

    def _remove_addresses(self, configuration: Configuration, links: dict[str, Interface]) -> None:
        wanted = _addresses(configuration, links)
        names = {link.index: link for link in links.values()}
        for one in self._network.addresses():
            if one.ours and (one.address, one.interface) not in wanted:
                self._network.remove_address(one.address, names[one.interface])
                _report("address", "removed", [f"{one.address} from {names[one.interface].name}"])

    def _add_addresses(self, configuration: Configuration, links: dict[str, Interface]) -> None:
        there = {(one.address, one.interface) for one in self._network.addresses()}
        for at, link in _addresses(configuration, links).items():
            if at not in there and self._network.add_address(at[0], link):
                _report("address", "added", [f"{at[0]} on {link.name}"])

    def _carry_out(self, steps: list[Step], want: Entries) -> None:
        try:
            self._tables.apply(steps)
        except BaseException as error:
            self.entries = self._tables.read()
            if isinstance(error, OSError):
                raise DatapathError(f"maps: {error.strerror} (see `dmesg`, and the memory that is left)") from error
            raise
        self.entries = want
        _report("data plane", "changed", [f"{step.action} {step.table} {_name(step)}" for step in steps])

    def _links(self, configuration: Configuration) -> dict[str, Interface]:
        links = self._network.interfaces()
        missing = [name for name in gateway_of(configuration).interfaces if name not in links]
        if missing:
            raise NetworkError(
                f"gateway.interfaces: there is no interface {', '.join(missing)} (there are {', '.join(sorted(links))})"
            )
        return links

    def _ways(self, configuration: Configuration, links: dict[str, Interface]) -> dict[HopKey, NextHop]:
        """The neighbours as the kernel knows them; it is asked to look for those it does not, or not for long."""
        neighbours = self._network.neighbours()
        before = {(hop.interface, hop.address): hop for hop in self.entries.next_hops.values()}
        mtus = self._mtus(configuration, links)
        ways = {}
        for hop in hops(configuration):
            link = links[hop.interface]
            neighbour = neighbours.get((hop.address, link.index))
            if link.up and (neighbour is None or neighbour.dormant):
                self._network.resolve(hop.address, link.index)
            way = _way(link, hop, neighbour, before.get((link.index, hop.address)), mtus[hop])
            ways[hop] = way
        return ways

    def _mtus(self, configuration: Configuration, links: dict[str, Interface]) -> dict[HopKey, int]:
        """Bytes of IP that may be sent through each neighbour: what the route to one member behind it says."""
        members = {hop_of(configuration, key.address): key.address for key in configuration.endpoints}
        return {
            hop: links[hop.interface].mtu if hop.address == member else self._path_mtu(member, links[hop.interface])
            for hop, member in members.items()
        }

    def _path_mtu(self, member: IPv4Address, link: Interface) -> int:
        try:
            return self._network.path_mtu(member)
        except NetworkError:  # no route yet: ours will go out by this interface
            return link.mtu


def _way(link: Interface, hop: HopKey, neighbour: Neighbour | None, before: NextHop | None, mtu: int) -> NextHop:
    """The next hop as it is now; one that the kernel has only forgotten, or looks for again, stays as it was."""
    if neighbour and neighbour.usable:
        return NextHop(link.index, hop.address, neighbour.mac, link.mac, mtu, link.up)
    forgotten = neighbour is None or not neighbour.dormant
    if before and before.resolved and forgotten:
        return NextHop(link.index, hop.address, before.destination, link.mac, mtu, link.up)
    return NextHop(link.index, hop.address, source=link.mac, mtu=mtu)


def _routes(configuration: Configuration, links: dict[str, Interface]) -> set[Route]:
    return {
        Route(cidr, network.next_hop, links[network.interface].index)
        for network in configuration.networks.values()
        if network.next_hop
        for cidr in network.cidrs
    }


def _addresses(configuration: Configuration, links: dict[str, Interface]) -> dict[tuple[IPv4Address, int], Interface]:
    gateway = gateway_of(configuration)
    wanted = [(balancer.vip, balancer.interface) for balancer in configuration.load_balancers.values()]
    wanted += [(address, gateway.snat_interface) for address in gateway.snat_addresses]
    if gateway.health_address:  # it is in no map: answers to it are for the kernel
        wanted.append((gateway.health_address, gateway.snat_interface))
    return {(address, links[name].index): links[name] for address, name in wanted}


def _name(step: Step) -> str:
    key = getattr(step.value, "key", step.key)
    return f"{key[0]}:{key[1]}/{key[2]}" if isinstance(key, tuple) else str(getattr(step.value, "address", key))


def _report(what: str, done: str, which: Iterable[str]) -> None:
    names = list(which)
    for name in names[:_SHOWN]:
        log.info("%s %s: %s", what, done, name)
    if len(names) > _SHOWN:
        log.info("%s %s: %d more", what, done, len(names) - _SHOWN)
