"""New connections by how their member is chosen, at pools of more and more members, and by what a listener demands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from itertools import count

from ipbackend.model import GROUP_MAX, Access, Algorithm, Entry, IpGroup
from ipbackend.sizing import slots_for
from tests.bench import bed
from tests.bench.bed import changed, clients, configured, listening
from tests.bench.driver import Driver
from tests.bench.frames import SYN, TCP
from tests.bench.openings import LAP, VERDICTS, above_empty, worn
from tests.bench.rounds import Case, Line, Series
from tests.packet import cast
from tests.packet.conftest import Dataplane

POOLS = {1: 25_000, 10: 2_500, 100: 250, 500: 98}  # members, and the ceiling of each: about as many slots in all
MOST = 500  # members of a pool
FULL, ONE = 1001, 1002  # ports
ALGORITHMS = {
    Algorithm.ROUND_ROBIN: "new-by-members",
    Algorithm.LEAST_CONNECTIONS: "new-least-connections",
    Algorithm.SOURCE_IP: "new-source-ip",
    Algorithm.SOURCE_IP_PORT: "new-source-ip-port",
}
LAPS = 150  # of each: so many cases are sent in one series
LIST = "an access list"
DEMANDS = {  # what more there is to say of a listener, and of its pool
    "nothing": ("", ""),
    "connections": ("max_connections = 1_000_000", ""),
    "a rate": ("cps = 1_000_000", ""),
    "a rate of each client": ("source_cps = 1_000_000", ""),
    LIST: ("", ""),
    "persistence": ("", "persistence = 60"),
}
CIDRS = 10_000  # of the access list, and the first one, which are no clients' of these
LISTED = 0xC6000000
SNATS = len(cast.SNATS)


def member(number: int, ceiling: int) -> str:
    """The number-th of many members behind one next hop."""
    return f'address = "172.16.{number >> 8}.{number & 0xFF}", port = 80, max_connections = {ceiling}'


def pools(dataplane: Dataplane, driver: Driver, rounds: int) -> Iterator[Line]:
    """By each algorithm, at as many members; at last by turns at 500, all of which but one are full."""
    made = count(1)
    members = {size: [member(next(made), ceiling) for _ in range(size)] for size, ceiling in POOLS.items()}
    full = [member(next(made), 1) for _ in range(MOST - 1)]
    ports = {(one, size): port for port, (one, size) in enumerate(((a, s) for s in POOLS for a in ALGORITHMS), 2000)}
    text = [
        listening(f"{one}-{size}".lower(), port, members[size], pool=f'algorithm = "{one}"')
        for (one, size), port in ports.items()
    ]
    one = listening("one", ONE, [*full, member(next(made), 25_000)])
    configured(dataplane, *text, listening("full", FULL, full), one)
    bed.fill(dataplane, driver, changed(clients(len(full), TCP, FULL), dport=FULL, flags=SYN))
    with bed.yardsticks(driver) as programs:
        cases = [
            _case(dataplane, driver, ALGORITHMS[one], size * slots_for(POOLS[size], SNATS), port, {"members": size})
            for (one, size), port in ports.items()
        ]
        cases.append(_case(dataplane, driver, "new-one-has-room", slots_for(25_000, SNATS), ONE, {"members": MOST}))
        series = above_empty(dataplane, driver, programs, cases, rounds)
    by_turns = {one.more["members"]: one for one in series if one.name == ALGORITHMS[Algorithm.ROUND_ROBIN]}
    for one in series:
        yield one.line(**one.ratio_to(by_turns[1], "one_member"), **_beside(one, by_turns))


def _beside(one: Series, by_turns: dict[object, Series]) -> Line:
    """The same number of members by turns."""
    return one.ratio_to(by_turns[one.more["members"]], "round_robin")


def demands(dataplane: Dataplane, driver: Driver, rounds: int) -> Iterator[Line]:
    """What each thing that a listener may demand adds to an opening; by turns, at ten members."""
    made = count(1)
    members = [member(next(made), POOLS[10]) for _ in range(10)]
    ports = {name: 3000 + number for number, name in enumerate(DEMANDS)}
    text = [
        listening(f"l{port}", port, members, listener=DEMANDS[name][0], pool=DEMANDS[name][1])
        for name, port in ports.items()
    ]
    wanted = bed.wanted(*text)
    groups = {
        one.id: one
        for start in range(0, CIDRS, GROUP_MAX)
        for entries in [tuple(Entry(IPv4Network((LISTED + 256 * n, 24))) for n in range(start, start + GROUP_MAX))]
        for one in [IpGroup(f"from {start}", entries)]
    }
    asking = {
        one.id: replace(one, access=Access.DENY, ip_groups=tuple(groups)) if one.port == ports[LIST] else one
        for one in wanted.listeners.values()
    }
    bed.configure(dataplane, replace(wanted, listeners=asking, ip_groups=groups))
    with bed.yardsticks(driver) as programs:
        cases = [
            _case(dataplane, driver, "new-with", 10 * slots_for(POOLS[10], SNATS), port, {"demand": name})
            for name, port in ports.items()
        ]
        series = above_empty(dataplane, driver, programs, cases, rounds)
    for one in series:
        yield one.line(**one.ratio_to(series[0], "nothing"))


def _case(dataplane: Dataplane, driver: Driver, name: str, slots: int, port: int, more: Line) -> Case:
    return Case(name, LAP, replace(worn(dataplane, driver, slots, port), laps=LAPS), VERDICTS, more)
