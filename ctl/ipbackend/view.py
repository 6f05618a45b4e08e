"""What is wanted and what the maps hold, side by side: names come from the one, facts from the other.

It changes nothing, neither prints nor serves, and knows not where either comes from.
"""

from dataclasses import dataclass
from functools import cached_property

from ipbackend.abi import Verdict
from ipbackend.configuration import Configuration
from ipbackend.conservation import Books, Difference, Look, differences
from ipbackend.datapath.maps import Maps
from ipbackend.model import EndpointKey, Listener, Member, Pool
from ipbackend.plan import Endpoint, Entries, ListenerKey
from ipbackend.plan import Listener as ListenerEntry


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

    def half_open(self, endpoint: int) -> int:
        """Those of them whose handshake is under way."""
        count: int = self.maps["load"].memory()[endpoint].half_open
        return count

    def listener_entry(self, listener: Listener) -> ListenerEntry | None:
        """What the maps hold for a listener."""
        vip = self.configuration.load_balancers[listener.load_balancer].vip
        return self.entries.listeners.get(ListenerKey(vip, listener.port, listener.protocol))

    def total(self, counts: str, number: int) -> dict[str, int]:
        """A row of a map of counters, by field, all CPUs together."""
        rows = [row.as_dict() for row in self.maps[counts].get(number)]
        return {name: sum(row[name] for row in rows) for name in rows[0]}

    def loads(self, field: str) -> dict[int, int]:
        """A 32-bit field of all endpoints' loads, by id: without a call for each."""
        memory = self.maps["load"].memory()
        column = memory.bytes.cast("I")[getattr(self.maps["load"].leaf, field).offset // 4 :: memory.step // 4]
        return {number: column[number] for number in self.entries.endpoints}

    def books(self) -> Books:
        """All counters, by three calls."""
        (verdicts,) = self.maps["verdicts"].columns(len(Verdict)).values()
        listeners = max((one.id for one in self.entries.listeners.values()), default=0)
        endpoints = max(self.entries.endpoints, default=0)
        return Books(
            verdicts,
            self.maps["listener_counts"].columns(listeners + 1),
            self.maps["endpoint_counts"].columns(endpoints + 1),
        )

    def differences(self) -> dict[str, Difference]:
        """What does not add up at this moment. Nothing may be changed meanwhile, but packets may pass."""
        look = Look(self.books(), self.loads("active"), self.books())
        return differences(look, lambda number: "{}:{}/{}".format(*self.entries.endpoints[number].key))
