"""What the data plane carries at this moment, under the names of what is wanted. It reads maps and writes none."""

import re
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from ipbackend.abi import Phase, Verdict
from ipbackend.configuration import Configuration
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.tables import ip_to_map
from ipbackend.model import EndpointKey, Listener, Member, Pool, Protocol

_OPEN = re.compile(b"[" + re.escape(bytes(phase for phase in Phase if phase.is_open)) + b"]")
_NUMBERS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
_FULLEST = 5  # endpoints that a status names
_LOST = ("REJECT", "DROP")


def endpoint_of(maps: Maps, key: EndpointKey) -> int | None:
    """The id of an endpoint."""
    leaf = maps["endpoints_by_addr"].key
    place = leaf(address=ip_to_map(key.address), port=socket.htons(key.port), protocol=_NUMBERS[key.protocol])
    number: int | None = maps["endpoints_by_addr"].get(place)
    return number


def total(maps: Maps, counts: str, number: int) -> dict[str, int]:
    """A row of a map of counters, by field, all CPUs together."""
    rows = [row.as_dict() for row in maps[counts].get(number)]
    return {name: sum(row[name] for row in rows) for name in rows[0]}


def status(maps: Maps, have: Configuration) -> dict[str, Any]:
    """Listeners, pools, the fullest endpoints and what was lost, as plain values."""
    loads, row = maps["load"].memory(), {key: endpoint_of(maps, key) for key in have.endpoints}
    active = {key: loads[number].active for key, number in row.items() if number}
    reachable = {key for key, number in row.items() if number and loads[number].ceiling}
    fullest = sorted(active, key=lambda key: active[key] / have.endpoints[key].max_connections, reverse=True)
    verdicts = {verdict.name: sum(maps["verdicts"].get(int(verdict))) for verdict in Verdict if verdict >= 0}
    return {
        "active": sum(active.values()),
        "listeners": [_listener(maps, have, one) for one in have.listeners.values()],
        "pools": [_pool(one, active, reachable) for one in have.pools.values()],
        "fullest": [
            {"member": f"{key.address}:{key.port}", "protocol": str(key.protocol), "active": active[key]}
            | {"ceiling": have.endpoints[key].max_connections}
            for key in fullest[:_FULLEST]
        ],
        "lost": {name: count for name, count in verdicts.items() if count and name.split("_")[0] in _LOST},
        "packets": sum(verdicts.values()),
    }


def ending(maps: Maps, have: Configuration, want: Configuration) -> dict[str, int]:
    """How many open connections end when `have` becomes `want`, by the id of the listener or member that goes.

    One that loses both is counted under its member.
    """
    keys = want.endpoints.keys()
    gone: dict[str, int] = {}
    numbers = {key: number for key in have.endpoints if (number := endpoint_of(maps, key)) is not None}
    counted: set[EndpointKey] = set()
    for pool in have.pools.values():
        for member in pool.members:
            key = EndpointKey(member.address, member.port, pool.protocol)
            if key not in keys and key in numbers and key not in counted:
                counted.add(key)
                gone[member.id] = maps["load"].memory()[numbers[key]].active
    stay = {_listener_key(want, one) for one in want.listeners.values()}
    lost = {one.id: _listener_key(have, one) for one in have.listeners.values()}
    ids = {number: at for number, key in lost.items() if key not in stay and (at := _listener_id(maps, key))}
    if ids:
        counts = _by_listener(maps, (number for key, number in numbers.items() if key not in counted))
        gone |= {number: counts.get(at, 0) for number, at in ids.items()}
    return {number: count for number, count in gone.items() if count}


def _listener(maps: Maps, have: Configuration, one: Listener) -> dict[str, Any]:
    balancer, key = have.load_balancers[one.load_balancer], _listener_key(have, one)
    number = _listener_id(maps, key)
    counts = total(maps, "listener_counts", number) if number else {}
    return {
        "name": one.name or one.id,
        "at": f"{balancer.vip}:{one.port}",
        "protocol": str(one.protocol),
        "pool": have.pools[one.pool].name or one.pool if one.pool else None,
        "opened": counts.get("opened"),
        "refused": counts.get("refused"),
    }


def _pool(pool: Pool, active: Mapping[EndpointKey, int], reachable: set[EndpointKey]) -> dict[str, Any]:
    keys = {EndpointKey(member.address, member.port, pool.protocol): member for member in pool.members}
    serving = {key: member for key, member in keys.items() if key in reachable and member.weight}
    return {
        "name": pool.name or pool.id,
        "protocol": str(pool.protocol),
        "members": len(keys),
        "up": len(reachable & keys.keys()),
        "active": sum(active.get(key, 0) for key in keys),
        "room": sum(_room(member, active.get(key, 0)) for key, member in serving.items()),
    }


def _room(member: Member, active: int) -> int:
    return max(member.max_connections - active, 0)


def _listener_key(have: Configuration, one: Listener) -> tuple[Any, int, Protocol]:
    return have.load_balancers[one.load_balancer].vip, one.port, one.protocol


def _listener_id(maps: Maps, key: tuple[Any, int, Protocol]) -> int | None:
    vip, port, protocol = key
    leaf = maps["listeners"].key(vip=ip_to_map(vip), port=socket.htons(port), protocol=_NUMBERS[protocol])
    entry = maps["listeners"].get(leaf)
    return entry.id if entry else None


def _by_listener(maps: Maps, endpoints: Iterable[int]) -> dict[int, int]:
    """Open connections by the id of the listener they came by."""
    counts: dict[int, int] = {}
    for number in endpoints:
        memory = maps["conntrack"].inner(number)
        if memory is None:
            continue
        for match in _OPEN.finditer(bytes(memory.column("state"))):
            listener = memory[match.start()].listener
            counts[listener] = counts.get(listener, 0) + 1
    return counts
