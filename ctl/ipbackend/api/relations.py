"""Which resource belongs to which, looked up from either side. It knows no requests."""

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from typing import TypeVar

from ipbackend.configuration import Configuration
from ipbackend.model import HealthMonitor, Listener, Pool

Thing = TypeVar("Thing")


class Relations:
    """Of one configuration; each look-up is made once, and only if it is asked for."""

    def __init__(self, configuration: Configuration) -> None:
        self._have = configuration

    @cached_property
    def listeners_of_balancer(self) -> dict[str, list[Listener]]:
        """By the load balancer's id."""
        return _grouped((one.load_balancer, one) for one in self._have.listeners.values())

    @cached_property
    def listeners_of_pool(self) -> dict[str, list[Listener]]:
        """By the pool's id."""
        return _grouped((one.pool, one) for one in self._have.listeners.values() if one.pool)

    @cached_property
    def listeners_of_group(self) -> dict[str, list[Listener]]:
        """By the ip group's id."""
        return _grouped((number, one) for one in self._have.listeners.values() for number in one.ip_groups)

    @cached_property
    def balancers_of_pool(self) -> dict[str, list[str]]:
        """Ids of load balancers, its listeners' and its own, by the pool's id."""
        pairs = [(one.pool, one.load_balancer) for one in self._have.listeners.values() if one.pool]
        pairs += [(one.id, one.load_balancer) for one in self._have.pools.values() if one.load_balancer]
        return {pool: list(dict.fromkeys(numbers)) for pool, numbers in _grouped(pairs).items()}

    @cached_property
    def pools_of_balancer(self) -> dict[str, list[Pool]]:
        """By the load balancer's id."""
        pairs = ((number, pool) for pool in self._have.pools for number in self.balancers_of_pool.get(pool, ()))
        return _grouped((number, self._have.pools[pool]) for number, pool in pairs)

    @cached_property
    def monitor_of_pool(self) -> dict[str, HealthMonitor]:
        """By the pool's id."""
        return {one.pool: one for one in self._have.health_monitors.values()}

    def addresses(self, pools: Iterable[Pool | None]) -> list[str]:
        """Of the members of these pools."""
        return [str(member.address) for pool in pools if pool for member in pool.members]


def _grouped(pairs: Iterable[tuple[str, Thing]]) -> dict[str, list[Thing]]:
    found: defaultdict[str, list[Thing]] = defaultdict(list)
    for number, thing in pairs:
        found[number].append(thing)
    return found
