"""What is wanted and what the maps hold, side by side: names come from the one, facts from the other.

Everything comes from the pinned maps and the store, which a link beside them leads to; no daemon is asked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ipbackend.configuration import Configuration
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.tables import Tables
from ipbackend.errors import DatapathError, NotRunningError
from ipbackend.model import EndpointKey, Listener, Member, Pool
from ipbackend.plan import Endpoint, Entries, ListenerKey
from ipbackend.plan import Listener as ListenerEntry
from ipbackend.store import LINK, Store

_READ_ONLY = -1  # in place of the sweep program: nothing is swept here


@contextmanager
def opened(run_directory: Path) -> Iterator[Maps]:
    """The pinned maps. NotRunningError: there are none. DatapathError: they may not be read."""
    try:
        maps = Maps(run_directory)
    except PermissionError as error:
        raise DatapathError(f"{run_directory}: {error.strerror} (maps are read as root: use sudo)") from error
    with maps:
        yield maps


@dataclass(frozen=True)
class View:
    """One look at a gateway. While a change is being applied, what is wanted may not be in the maps yet."""

    maps: Maps
    configuration: Configuration
    entries: Entries

    @cached_property
    def endpoint_ids(self) -> dict[EndpointKey, int]:
        """The id of each endpoint in the maps."""
        return {endpoint.key: number for number, endpoint in self.entries.endpoints.items()}

    def endpoint(self, pool: Pool, member: Member) -> tuple[int, Endpoint] | None:
        """The endpoint that a member is, with its id."""
        number = self.endpoint_ids.get(EndpointKey(member.address, member.port, pool.protocol))
        return None if number is None else (number, self.entries.endpoints[number])

    def active(self, endpoint: int) -> int:
        """Open connections of an endpoint."""
        count: int = self.maps["load"].memory()[endpoint].active
        return count

    def listener_entry(self, listener: Listener) -> ListenerEntry | None:
        """What the maps hold for a listener."""
        vip = self.configuration.load_balancers[listener.load_balancer].vip
        return self.entries.listeners.get(ListenerKey(vip, listener.port, listener.protocol))

    def total(self, counts: str, number: int) -> dict[str, int]:
        """A row of a map of counters, by field, all CPUs together."""
        rows = [row.as_dict() for row in self.maps[counts].get(number)]
        return {name: sum(row[name] for row in rows) for name in rows[0]}


@contextmanager
def looking(run_directory: Path) -> Iterator[View]:
    """A look at the gateway. NotRunningError: nothing is loaded, or nothing applied yet."""
    with opened(run_directory) as maps:
        kept = run_directory / LINK
        if not kept.exists():
            raise NotRunningError(f"{kept}: nothing is applied yet (start the daemon: `ipbackend run`)")
        with Store(kept, read_only=True) as store:
            wanted = store.configuration
        yield View(maps, wanted, Tables(maps, _READ_ONLY).read())
