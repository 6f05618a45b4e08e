"""Brings maps, addresses and routes to what a configuration says, from whatever is there. It knows no store or signals.

The configuration says what is wanted, the kernel says what is. Maps come before addresses, so that no packet
to a VIP ever reaches the gateway's own services; addresses leave before maps for the same reason.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from ipaddress import IPv4Address

from ipbackend.abi import Role
from ipbackend.configuration import Configuration
from ipbackend.datapath.tables import Tables
from ipbackend.errors import DatapathError, NetworkError
from ipbackend.interfaces import Interfaces
from ipbackend.model import EndpointKey, Member, Pool
from ipbackend.network import Interface, Neighbour, Network, Route
from ipbackend.plan import (
    NOTHING,
    WHOLE,
    AccessKey,
    Entries,
    HopKey,
    Leaving,
    NextHop,
    Step,
    diff,
    gateway_of,
    hop_of,
    hops,
    plan,
    weigh,
)
from ipbackend.schedule import moved

log = logging.getLogger(__name__)

_SHOWN = 20  # changes that are logged one by one; more are counted
_TRIED = 8  # connections that an endpoint takes which is no member's
Each = Callable[[], AbstractContextManager[None]]  # around each thing that is tried: may go on where one fails


class Reconciler:
    """Applies configurations to one gateway's kernel. `entries` are what it last put into the maps.

    `shares` are the tenths of their weights that members get new connections by, where those are not all of them.
    """

    def __init__(self, network: Network, tables: Tables) -> None:
        self._network = network
        self._interfaces = Interfaces(network)
        self._tables = tables
        self.entries = tables.read()
        self.shares: Mapping[str, int] = {}
        self._routes: set[Route] = set()  # that were had, or should be there from an earlier run
        self._found = self.entries  # what the maps really held when `drift` looked

    def check(self, configuration: Configuration, taken_over: bool = False) -> None:
        """Raise, and change nothing, where what is loaded, or the kernel, stands against this configuration.

        The routes of one that is `taken_over`, or was applied, were had before: what became of them is for `drift`.
        """
        have = {address: entry.index for address, entry in self.entries.addresses.items() if entry.role is Role.SNAT}
        want = {address: index for index, address in enumerate(gateway_of(configuration).snat_addresses)}
        unfinished = have.items() <= want.items() and not self._tables.were_used  # a first start that was killed
        if have and have != want and not unfinished:
            raise DatapathError(
                f"gateway.snat_addresses: {', '.join(map(str, have))} are loaded and carry connections "
                "(keep them, or `ipbackend unload` and run again: its connections end)"
            )
        links = self.links(configuration)
        self._plan(configuration, links)
        if taken_over:
            self._routes = _routes(configuration, links)
        for route in _routes(configuration, links, possible=True) - self._network.routes() - self._routes:
            self._network.lacks(route)

    def links(self, configuration: Configuration) -> dict[str, Interface]:
        """The interfaces as `Interfaces.look` has them, those of the gateway by its names for them."""
        return self._interfaces.look(gateway_of(configuration).interfaces)

    def problems(self, configuration: Configuration) -> list[str]:
        """What is wrong with the gateway's interfaces, as of the last look at them."""
        return self._interfaces.problems(gateway_of(configuration).interfaces)

    def leaving(self, configuration: Configuration) -> Leaving:
        """What is there and is not wanted any more: it stays until it is released."""
        balancers = {one.vip for one in configuration.load_balancers.values()}
        return Leaving(
            frozenset(one.key for one in self.entries.endpoints.values()) - configuration.endpoints.keys(),
            frozenset(vip for vip, one in self.entries.addresses.items() if one.role is Role.VIP) - balancers,
        )

    def release(self, configuration: Configuration, gone: Leaving) -> None:
        """Let go of some of what is leaving; connections that it still has end, and nobody is told."""
        self._turn_to(self._plan(configuration, self.links(configuration), gone))

    def unresolved(self, configuration: Configuration) -> list[IPv4Address]:
        """Next hops that are not known at the moment; the kernel is asked to look for them."""
        ways = self._ways(configuration, self.links(configuration), self.leaving(configuration).endpoints)
        return [hop.address for hop, way in ways.items() if not way.resolved]

    def apply(self, configuration: Configuration, each: Each = nullcontext) -> None:
        """Bring everything up to date. What is refused is refused before anything changes."""
        links = self.links(configuration)
        want = self._plan(configuration, links)
        self._remove_addresses(configuration, links, each)
        self._tables.set_timing(gateway_of(configuration))
        routes, wanted = self._network.routes(), _routes(configuration, links)
        missing = _routes(configuration, links, possible=True) - routes
        added = self._add_routes(missing - self._routes, each)
        if each is not nullcontext:
            added += self._add_routes(missing & self._routes, each)
        _report("route", "added", added)
        if added:
            want = self._plan(configuration, links)  # the way to a member may have changed with its route
        self._carry_out(diff(self.entries, want), want)
        _report("route", "removed", [str(route.cidr) for route in routes - wanted if self._network.remove_route(route)])
        self._add_addresses(configuration, links, each)
        self._routes = wanted

    def drift(self, configuration: Configuration) -> list[str]:
        """What others changed of what is ours, a line each."""
        links = self.links(configuration)
        names = {link.index: name for name, link in links.items()}
        wanted = _addresses(configuration, links)
        there = {(one.address, one.interface): one.ours for one in self._network.addresses()}
        routes, wanted_routes = self._network.routes(), _routes(configuration, links)
        possible = _routes(configuration, links, possible=True)
        self._found = self._tables.read(self.entries.pools)
        steps = diff(self._found, self.entries)
        return [
            *(f"address {at[0]} missing from {names[link.index]}" for at, link in wanted.items() if at not in there),
            *(f"address {at[0]} found on {names[at[1]]}" for at, ours in there.items() if ours and at not in wanted),
            *(f"route to {route.cidr} missing" for route in sorted(possible - routes, key=str) if self._lacks(route)),
            *(f"route to {route.cidr} found" for route in routes - wanted_routes),
            *(
                f"map {step.table}: to {step.action} {_name(step)}"
                for step in steps
                if step.action in ("set", "delete")
            ),
        ]

    def follow(self, configuration: Configuration) -> None:
        """Keep next hops and interfaces in the maps as the kernel has them, and neighbours informed of where we are."""
        links = self.links(configuration)
        for gone, instead in self._interfaces.replaced():
            self._tables.move_clients(gone, instead)
        want = self._plan(configuration, links)
        self._carry_out(diff(self.entries, want), want)
        unheard = [links[name].index for name in self._interfaces.unheard()]
        for (address, index), link in _addresses(configuration, links).items():
            if index in unheard:
                self._network.announce(address, link)

    def weigh(self, configuration: Configuration, shares: Mapping[str, int]) -> None:
        """Have members get new connections by these shares: the pools of those whose share changes are made anew."""
        either = {*shares, *self.shares}
        changed = {one for one in either if shares.get(one, WHOLE) != self.shares.get(one, WHOLE)}
        self.shares = dict(shares)
        self._turn_to(weigh(configuration, self.entries, self.shares, changed))

    def repair(self, configuration: Configuration, each: Each) -> None:
        """Put right whatever others changed, as `drift` found it; what can be, whatever cannot."""
        self._carry_out(diff(self._found, self.entries), self.entries)
        self.follow(configuration)
        self.apply(configuration, each)

    @contextmanager
    def endpoint(self, configuration: Configuration, key: EndpointKey) -> Iterator[int]:
        """The id of an endpoint for a while: of one that is no member's, it is made and goes again.

        ConfigurationError: it could be no member.
        """
        links = self.links(configuration)
        there = frozenset(one.key for one in self.entries.endpoints.values())
        member = Member(key.address, key.port, max_connections=_TRIED)
        extra = Pool("(a check)", key.protocol, members=(member,))
        pools = {**configuration.pools, **({} if key in configuration.endpoints else {extra.id: extra})}
        self._turn_to(self._plan(replace(configuration, pools=pools), links))
        try:
            yield self.entries.endpoint_ids[key]
        finally:
            self._turn_to(self._plan(configuration, links, Leaving(frozenset([key]) - there)))

    def _turn_to(self, want: Entries) -> None:
        self._carry_out(diff(self.entries, want), want)

    def _read(self) -> Entries:
        return self._tables.read(self.entries.pools)

    def _plan(self, configuration: Configuration, links: dict[str, Interface], gone: Leaving = NOTHING) -> Entries:
        """What the maps should hold as things are now; raises where that cannot be, and changes nothing."""
        mtus = {links[name].index: links[name].mtu for name in gateway_of(configuration).interfaces}
        leaving = self.leaving(configuration).without(gone)
        ways = self._ways(configuration, links, leaving.endpoints)
        return plan(configuration, ways, mtus, self.entries, self._tables.slots, self.shares, leaving)

    def _remove_addresses(self, configuration: Configuration, links: dict[str, Interface], each: Each) -> None:
        wanted = _addresses(configuration, links)
        by_index = {link.index: link for link in links.values()}
        for one in self._network.addresses():
            if one.ours and (one.address, one.interface) not in wanted:
                with each():
                    self._network.remove_address(one.address, by_index[one.interface])
                    _report("address", "removed", [f"{one.address} from {by_index[one.interface].name}"])

    def _add_routes(self, routes: Iterable[Route], each: Each) -> list[str]:
        added = []
        for route in sorted(routes, key=str):
            with each():
                if self._network.add_route(route):
                    added.append(str(route.cidr))
        return added

    def _lacks(self, route: Route) -> bool:
        """Whether it is missing; where somebody else's is in its place as well."""
        try:
            return self._network.lacks(route)
        except NetworkError:
            return True

    def _add_addresses(self, configuration: Configuration, links: dict[str, Interface], each: Each) -> None:
        there = {(one.address, one.interface) for one in self._network.addresses()}
        for at, link in _addresses(configuration, links).items():
            with each():
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
        have, self.entries = self.entries, want
        _report_moved(have, want)
        _report_hops(have, want)
        _report("data plane", "changed", [f"{step.action} {step.table} {_name(step)}" for step in steps])

    def _ways(
        self, configuration: Configuration, links: dict[str, Interface], leaving: frozenset[EndpointKey]
    ) -> dict[HopKey, NextHop]:
        """The neighbours as the kernel knows them; it is asked to look for those it does not, or not for long."""
        neighbours = self._network.neighbours()
        before = {(hop.interface, hop.address): hop for hop in self.entries.next_hops.values()}
        mtus = self._mtus(configuration, links, leaving)
        ways = {}
        for hop in hops(configuration, leaving):
            link = links[hop.interface]
            neighbour = neighbours.get((hop.address, link.index))
            if link.up and (neighbour is None or neighbour.dormant):
                self._network.resolve(hop.address, link.index)
            way = _way(link, hop, neighbour, before.get((link.index, hop.address)), mtus[hop])
            ways[hop] = way
        return ways

    def _mtus(
        self, configuration: Configuration, links: dict[str, Interface], leaving: frozenset[EndpointKey]
    ) -> dict[HopKey, int]:
        """Bytes of IP that may be sent through each neighbour: what the route to one member behind it says."""
        members = {
            hop_of(configuration, key.address): key.address
            for keys in (leaving, configuration.endpoints)
            for key in keys
            if configuration.find_network(key.address)
        }
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


def _routes(configuration: Configuration, links: dict[str, Interface], possible: bool = False) -> set[Route]:
    """Those that are wanted, or only those that are `possible`: the kernel has none by an interface that is down."""
    return {
        Route(cidr, network.next_hop, links[network.interface].index)
        for network in configuration.networks.values()
        if network.next_hop and (links[network.interface].up or not possible)
        for cidr in network.cidrs
    }


def _addresses(configuration: Configuration, links: dict[str, Interface]) -> dict[tuple[IPv4Address, int], Interface]:
    """Those that are wanted on interfaces which are there."""
    gateway = gateway_of(configuration)
    wanted = [(balancer.vip, balancer.interface) for balancer in configuration.load_balancers.values()]
    wanted += [(address, gateway.snat_interface) for address in gateway.snat_addresses]
    if gateway.health_address:  # it is in no map: answers to it are for the kernel
        wanted.append((gateway.health_address, gateway.snat_interface))
    return {(address, links[name].index): links[name] for address, name in wanted if links[name].there}


def _name(step: Step) -> str:
    key = getattr(step.value, "key", step.key)
    if isinstance(key, AccessKey):
        return f"{key.cidr} on list {key.list}"
    return f"{key[0]}:{key[1]}/{key[2]}" if isinstance(key, tuple) else str(getattr(step.value, "address", key))


def _report_moved(have: Entries, want: Entries) -> None:
    """How many clients get another member, where it goes by their addresses."""
    for number, after in want.pools.items():
        before = have.pools.get(number)
        if before is None or before == after or not (before.by_source and after.by_source):
            continue
        if not before.members or not after.members:
            continue
        share = moved(
            [before.members[turn] for turn in before.schedule], [after.members[turn] for turn in after.schedule]
        )
        log.info("pool %d: %.2f %% of the entries of its table are another member's now", number, 100 * share)


def _report_hops(have: Entries, want: Entries) -> None:
    """Next hops that are lost or found while they are needed."""
    before = {(hop.interface, hop.address): hop.resolved for hop in have.next_hops.values()}
    for number, hop in want.next_hops.items():
        if before.get((hop.interface, hop.address), hop.resolved) == hop.resolved:
            continue
        behind = sum(endpoint.next_hop == number for endpoint in want.endpoints.values())
        if hop.resolved:
            log.info("next hop %s answers again: %d members get connections", hop.address, behind)
        else:
            log.warning("next hop %s is not reached any more: %d members get no connections", hop.address, behind)


def _report(what: str, done: str, which: Iterable[str]) -> None:
    names = list(which)
    for name in names[:_SHOWN]:
        log.info("%s %s: %s", what, done, name)
    if len(names) > _SHOWN:
        log.info("%s %s: %d more", what, done, len(names) - _SHOWN)
