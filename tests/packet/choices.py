"""Configurations for tests of who gets a connection: members, how one is chosen, and what a listener demands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

from ipbackend.config import parse
from ipbackend.configuration import Configuration
from ipbackend.model import Access, Algorithm, Entry, IpGroup
from tests.packet.cast import all_half_open, pool_of


def member(number: int, weight: int = 1, ceiling: int = 98) -> str:
    """In the peered network; all behind one next hop."""
    address = f"172.16.{number >> 8}.{number & 255}"
    return f'address = "{address}", port = 8080, weight = {weight}, max_connections = {ceiling}'


def chosen_by(algorithm: str, *members: str, **settings: Any) -> Configuration:
    """The listener at port 80 of the VIP with a pool of these members; `settings` are the pool's."""
    wanted = parse(all_half_open(pool_of(*members)), "test")
    pools = {one.id: replace(one, algorithm=Algorithm(algorithm), **settings) for one in wanted.pools.values()}
    return replace(wanted, pools=pools)


def demanding(wanted: Configuration, **settings: Any) -> Configuration:
    """The same with these settings of all listeners."""
    listeners = {one.id: replace(one, **settings) for one in wanted.listeners.values()}
    return replace(wanted, listeners=listeners)


def for_those_in(wanted: Configuration, access: Access, *groups: Iterable[str]) -> Configuration:
    """The same with all listeners only for those in these groups of CIDRs, or for all others."""
    made = {
        f"g{number}": IpGroup(f"g{number}", tuple(Entry(IPv4Network(cidr)) for cidr in cidrs), id=f"g{number}")
        for number, cidrs in enumerate(groups)
    }
    return demanding(replace(wanted, ip_groups=made), access=access, ip_groups=tuple(made))
