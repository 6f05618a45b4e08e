"""What the gateway carries, as a Prometheus scrape tells it: the numbers of every metric, read from a view."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import add
from platform import python_version, release
from typing import Any

from ipbackend import __version__
from ipbackend.abi import BUCKET_ENTRIES, Phase, Verdict
from ipbackend.configuration import Configuration
from ipbackend.connections import by_snat, slot_phases
from ipbackend.conservation import ENDED, REFUSALS
from ipbackend.exposition import FAMILIES, LISTENER, POOL, Series, escaped, labels, text
from ipbackend.model import EndpointKey, Listener, Member, Protocol
from ipbackend.view import View

RESTING = bytes([Phase.CLOSED, Phase.EXPIRED])
_SIDES = ("request", "reply")


@dataclass(frozen=True)
class State:
    """What the daemon knows beside its data plane."""

    forwarding: bool
    problem: bool
    drift: int
    unbalanced: int
    audited: int
    revision: int


def of_state(state: State) -> str:
    """What is there without a data plane as well."""
    build = labels(FAMILIES["build_info"].labels, (__version__, python_version(), release()))
    numbers = {
        "forwarding": state.forwarding,
        "problem": state.problem,
        "drift": state.drift,
        "unbalanced_books": state.unbalanced,
        "audit_differences": state.audited,
        "revision": state.revision,
    }
    families = [("build_info", [(build, 1)]), *((name, [("", int(one))]) for name, one in numbers.items())]
    return text(families)


def of_view(view: View) -> str:
    """All that the data plane carries."""
    return text(_families(view, Names(view.configuration)))


class Names:
    """What resources are called in labels: by their names, or by their ids where a name is missing or shared."""

    def __init__(self, have: Configuration) -> None:
        self.load_balancers = _unambiguous(have.load_balancers)
        self.listeners = _unambiguous(have.listeners)
        self.pools = _unambiguous(have.pools)


def _unambiguous(resources: Mapping[str, Any]) -> dict[str, str]:
    names = Counter(one.name for one in resources.values())
    return {number: one.name if one.name and names[one.name] == 1 else number for number, one in resources.items()}


def _families(view: View, names: Names) -> Iterator[tuple[str, Iterable[Series]]]:
    slots = _Slots(view)
    yield from _of_gateway(view, slots)
    yield from _of_listeners(view, names)
    yield from _of_pools(view, names)
    yield from _of_members(view, slots)


class _Slots:
    """One pass over the slots: how many rest, by endpoint; how many are in use, by SNAT address in their order."""

    def __init__(self, view: View) -> None:
        gateway = view.configuration.gateway
        self.snat = gateway.snat_addresses if gateway else ()  # of every endpoint: they change only without members
        self.all = sum(endpoint.slots for endpoint in view.entries.endpoints.values())
        self.resting: dict[int, int] = {}
        self.used = [0] * len(self.snat)
        for number, endpoint, its in slot_phases(view):
            self.resting[number] = sum(map(its.count, RESTING))
            self.used = list(map(add, self.used, by_snat(endpoint, its)))


def _of_gateway(view: View, slots: _Slots) -> Iterator[tuple[str, Iterable[Series]]]:
    (packets,) = view.maps["verdicts"].columns(len(Verdict)).values()
    gateway = view.configuration.gateway
    entered, *ended = Verdict
    yield "packets_received_total", [("", packets[entered])]
    yield "packets_total", [(labels(("verdict",), (verdict.name,)), packets[verdict]) for verdict in ended]
    events = view.maps["event_counts"].columns(1)
    yield "events_lost_total", [("", events["lost"][0])]
    yield "events_withheld_total", [("", events["withheld"][0])]
    yield "connections_max", [("", gateway.max_connections if gateway else 0)]
    yield "flow_index_entries", [("", sum(view.loads("active").values()) + sum(slots.resting.values()))]
    yield "flow_index_size", [("", view.maps["flow_index"].info.max_entries * BUCKET_ENTRIES)]
    snat = [labels(("snat_address",), (one,)) for one in slots.snat]
    yield "snat_slots_used", list(zip(snat, slots.used, strict=False))
    yield "snat_slots", [(one, slots.all // len(snat)) for one in snat]


def _of_listeners(view: View, names: Names) -> Iterator[tuple[str, Iterable[Series]]]:
    have = view.configuration
    balancers = have.load_balancers.values()
    yield (
        "load_balancer_info",
        [
            (labels(FAMILIES["load_balancer_info"].labels, (names.load_balancers[one.id], one.id, one.vip)), 1)
            for one in balancers
        ],
    )

    def of(one: Listener) -> tuple[object, ...]:
        return names.load_balancers[one.load_balancer], names.listeners[one.id], one.protocol

    def info(one: Listener) -> str:
        vip, pool = have.load_balancers[one.load_balancer].vip, names.pools[one.pool] if one.pool else ""
        return labels(FAMILIES["listener_info"].labels, (*of(one), one.id, vip, one.port, pool))

    yield "listener_info", [(info(one), 1) for one in have.listeners.values()]
    there = {
        labels(LISTENER, of(one)): entry.id for one in have.listeners.values() if (entry := view.listener_entry(one))
    }
    tcp = {entry.id for key, entry in view.entries.listeners.items() if key.protocol is Protocol.TCP}
    counts = view.maps["listener_counts"].columns(max(there.values(), default=0) + 1)
    opened, settled = counts["opened"], counts["settled"]
    active = view.maps["listener_load"].memory()
    yield "listener_connections", [(its, active[row].active) for its, row in there.items()]
    half_open = [(its, _more(opened, settled, row) if row in tcp else 0) for its, row in there.items()]
    yield "listener_connections_half_open", half_open
    yield "listener_connections_opened_total", _column(there, opened)
    reasons = {f'reason="{one.name}"': counts[one.name.lower()] for one in REFUSALS}
    refused = [(f"{its},{why}", column[row]) for why, column in reasons.items() for its, row in there.items()]
    yield "listener_connections_refused_total", refused
    yield from _each_way("listener", there, counts)


def _more(more: Sequence[int], less: Sequence[int], row: int) -> int:
    """What is left of one; a handshake may have ended on another CPU before its opening was read."""
    return max(more[row] - less[row], 0)


def _of_pools(view: View, names: Names) -> Iterator[tuple[str, Iterable[Series]]]:
    active, endpoints = view.loads("active"), view.entries.endpoints
    info, rows, weights, status = [], {}, [], []
    for pool in view.configuration.pools.values():
        its = labels(POOL, (names.pools[pool.id], pool.protocol))
        info.append((f"{its},{labels(('id', 'algorithm'), (pool.id, pool.algorithm))}", 1))
        before, behind = f'pool="{escaped(names.pools[pool.id])}",', f',protocol="{pool.protocol}"'
        reachable = carried = room = 0
        for member in pool.members:
            number = view.endpoint_ids.get(EndpointKey(member.address, member.port, pool.protocol))
            its_own = f'{before}member="{member.address}:{member.port}"{behind}'
            weights.append((its_own, member.weight))
            status.append((f'{its_own},status="{operating_status(view, member)}"', 1))
            if number is None:
                continue
            carried += active[number]
            if endpoints[number].ceiling:
                reachable += 1
                room += max(member.max_connections - active[number], 0) if member.weight else 0
        rows[its] = (len(pool.members), reachable, carried, room)
    yield "pool_info", info
    for at, name in enumerate(("pool_members", "pool_members_reachable", "pool_connections", "pool_room")):
        yield name, [(its, row[at]) for its, row in rows.items()]
    yield "pool_member_weight", weights
    yield "pool_member_status", status


def operating_status(view: View, member: Member) -> str:
    """As the API shows it."""
    health = view.health.get(member.id)
    return health.status.value if health else "NO_MONITOR"


def _of_members(view: View, slots: _Slots) -> Iterator[tuple[str, Iterable[Series]]]:
    endpoints = view.entries.endpoints
    wanted = view.configuration.endpoints
    there = {
        f'member="{one.key.address}:{one.key.port}",protocol="{one.key.protocol}"': number
        for number, one in endpoints.items()
        if one.key in wanted
    }
    ceilings = {number: wanted[endpoints[number].key].max_connections for number in there.values()}
    active, half_open = view.loads("active"), view.loads("half_open")
    counts = view.maps["endpoint_counts"].columns(max(endpoints, default=0) + 1)
    resting = {number: slots.resting.get(number, 0) for number in there.values()}
    free = {number: max(endpoints[number].slots - active[number] - resting[number], 0) for number in there.values()}
    yield "member_reachable", [(its, int(endpoints[number].ceiling > 0)) for its, number in there.items()]
    yield "member_connections", _column(there, active)
    yield "member_connections_half_open", _column(there, half_open)
    yield "member_connections_max", _column(there, ceilings)
    yield "member_connections_opened_total", _column(there, counts["opened"])
    yield (
        "member_connections_ended_total",
        [(f'{its},how="{how}"', counts[how][row]) for how in ENDED for its, row in there.items()],
    )
    yield from _each_way("member", there, counts)
    yield "member_slots_free", _column(there, free)
    yield "member_slots_resting", _column(there, resting)


def _column(there: Mapping[str, int], column: Sequence[int] | Mapping[int, int]) -> list[Series]:
    return [(its, column[row]) for its, row in there.items()]


def _each_way(
    what: str, there: Mapping[str, int], counts: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, list[Series]]]:
    """Packets and bytes in both directions."""
    for unit in ("packets", "bytes"):
        columns = {f'direction="{side}"': counts[f"{side}_{unit}"] for side in _SIDES}
        series = [(f"{its},{way}", column[row]) for way, column in columns.items() for its, row in there.items()]
        yield f"{what}_{unit}_total", series
