"""A gateway's interfaces by the names that its settings have for them: also while they are down, renamed or gone.

It remembers how they were, and tells what has become of them; it changes nothing.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ipbackend.errors import NetworkError
from ipbackend.network import Interface, Network

log = logging.getLogger(__name__)


class Interfaces:
    """Those of one network namespace. An interface that has been there is known by its number as long as it lives."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._known: dict[str, Interface] = {}
        self._unheard: set[str] = set()
        self._replaced: list[tuple[int, int]] = []

    def look(self, names: Iterable[str]) -> dict[str, Interface]:
        """All interfaces by name; one of `names` that is gone is as it was, and down.

        NetworkError: one of them has not been there yet.
        """
        links = self._network.interfaces()
        by_index = {link.index: link for link in links.values()}
        missing = [name for name in names if name not in links]
        if strange := [name for name in missing if name not in self._known]:
            there = ", ".join(sorted(links))
            raise NetworkError(f"gateway.interfaces: there is no interface {', '.join(strange)} (there are {there})")
        for name in missing:
            last = self._known[name]
            links[name] = by_index.get(last.index) or replace(last, up=False, there=False)
        for name in names:
            before = self._known.get(name)
            if before and before != links[name]:
                self._follow(name, before, links[name])
            self._known[name] = links[name]
        return links

    def problems(self, names: Iterable[str]) -> list[str]:
        """What keeps those that were looked at from carrying packets, or would keep a daemon from starting."""
        return [problem for name in names for problem in _problems(name, self._known[name])]

    def unheard(self) -> set[str]:
        """Those whose neighbours have to be told anew where they are: told once."""
        names, self._unheard = self._unheard, set()
        return names

    def replaced(self) -> list[tuple[int, int]]:
        """Numbers of interfaces that are gone, and of those that bear their names now: told once."""
        pairs, self._replaced = self._replaced, []
        return pairs

    def _follow(self, name: str, before: Interface, now: Interface) -> None:
        for change in _changes(before, now):
            log.log(logging.INFO if now.up else logging.WARNING, "interface %s: %s", name, change)
        if now.index != before.index:
            self._replaced.append((before.index, now.index))
        if now.up and (not before.up or now.mac != before.mac):
            self._unheard.add(name)


def _changes(before: Interface, now: Interface) -> list[str]:
    if now.there != before.there:
        return [f"is there again, as number {now.index}" if now.there else f"is gone (it was number {before.index})"]
    changes: Mapping[str, bool] = {
        f"is another one, number {now.index} instead of {before.index}": now.index != before.index,
        f"is called {now.name} now": now.name != before.name,
        "is up" if now.up else "is down": now.up != before.up,
        f"MAC {before.mac.hex(':')} → {now.mac.hex(':')}": now.mac != before.mac,
        f"MTU {before.mtu} → {now.mtu}": now.mtu != before.mtu,
    }
    return [text for text, changed in changes.items() if changed]


def _problems(name: str, link: Interface) -> list[str]:
    if not link.there:
        return [f"interface {name} is gone: nothing passes by it (make it anew, or change gateway.interfaces)"]
    problems = []
    if link.name != name:
        remedy = f"`ip link set {link.name} name {name}`, or change gateway.interfaces"
        problems.append(f"interface {name} is called {link.name} now: it forwards, but not after a restart ({remedy})")
    if not link.up:
        remedy = f"`ip link set {link.name} up`, and look at its cable or port"
        problems.append(f"interface {link.name} is down: nothing passes by it ({remedy})")
    return problems
