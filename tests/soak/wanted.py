"""What the soak's gateway is asked for, and how that changes with every second. It knows no gateway program.

`steady` is a pool whose members never go: not one request of it may fail, whatever changes around it. Those of
`rough` die, are removed, drained and cut, one at a time. `flooded` takes what nobody asked for.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.netns.gateway import CONFIGURATION
from tests.netns.lab import MEMBER_TCP_PORT, MEMBER_UDP_PORT, MEMBERS, SECOND_VIP, SHOP_VIP

FLOODED_TCP, FLOODED_UDP = 8090, 5390
PASSING = 9_000  # the first of the ports of listeners that come and go
DRAIN = 10  # seconds: the least that a pool can have
IDLE = 10  # the same, of UDP
REST = 3
HEALTH = "10.0.0.105"
VIPS = {"steady": (SHOP_VIP, 80, 53), "rough": (SECOND_VIP, 80, 53)}  # VIP, TCP port, UDP port


class Place(NamedTuple):
    """Where a member's servers are, and in which pools."""

    name: str
    namespace: str
    address: str
    tcp: int
    udp: int
    pool: str


PLACES = (
    *(
        Place(name, name, MEMBERS[name], MEMBER_TCP_PORT, MEMBER_UDP_PORT, pool)
        for name, pool in (
            *(("member-1", "steady"), ("member-peered", "steady"), ("member-2", "rough"), ("member-onprem", "rough")),
        )
    ),
    Place("member-peered-b", "member-peered", MEMBERS["member-peered"], 8081, 5354, "rough"),
    Place("member-flooded", "member-1", MEMBERS["member-1"], FLOODED_TCP, FLOODED_UDP, "flooded"),
)
SETTINGS = f"""
flow_log = "store"
health_address = "{HEALTH}"
max_connections = 200000
syn_sent_timeout = 3
syn_received_timeout = 3
closing_timeout = 5
rest = {REST}
"""
HEAD = CONFIGURATION[CONFIGURATION.index("[gateway]") : CONFIGURATION.index("[listeners.web]")]
ALGORITHMS = ("ROUND_ROBIN", "LEAST_CONNECTIONS", "SOURCE_IP", "SOURCE_IP_PORT")


@dataclass
class Wanted:
    """As it is at first; `change` makes one change of it."""

    rng: random.Random
    algorithms: dict[str, str] = field(default_factory=lambda: dict.fromkeys(("steady", "rough"), ALGORITHMS[0]))
    weights: dict[str, int] = field(default_factory=lambda: {place.name: 2 for place in PLACES})
    ceilings: dict[str, int] = field(default_factory=lambda: {place.name: 5_000 for place in PLACES})
    removed: set[str] = field(default_factory=set)
    drains: bool = True  # whether what is removed from `rough` keeps its connections for a while
    passing: list[int] = field(default_factory=list)
    denied: list[str] = field(default_factory=lambda: ["192.0.2.0/24"])
    source_cps: int = 20
    persistence: int = 1
    monitored: bool = True

    def change(self) -> str:
        """Make one change and say which. No connection of `steady` may notice any."""
        return str(self.rng.choice((self._weigh, self._weigh, self._choose, self._pass, self._deny, self._limit))())

    def _weigh(self) -> str:
        name = self.rng.choice([place.name for place in PLACES if self.weights[place.name]])
        self.weights[name] = self.rng.randint(1, 9)
        return "weight of a member"

    def _choose(self) -> str:
        pool = self.rng.choice(list(self.algorithms))
        self.algorithms[pool] = self.rng.choice(ALGORITHMS)
        return "algorithm of a pool"

    def _pass(self) -> str:
        """A pool, a member and a listener of TCP and of UDP, that come, or go."""
        if len(self.passing) < 5 and (not self.passing or self.rng.random() < 0.5):
            self.passing.append(next(n for n in range(PASSING, PASSING + 9) if n not in self.passing))
            return "listeners, pools and members added"
        self.passing.remove(self.rng.choice(self.passing))
        return "listeners, pools and members removed"

    def _deny(self) -> str:
        third = self.rng.sample(range(256), self.rng.randint(1, 60))
        self.denied = [f"198.19.{one}.0/24" for one in third] + ["192.0.2.0/24"]
        return "entries of an ip group"

    def _limit(self) -> str:
        self.source_cps = self.rng.randint(10, 30)
        self.persistence = self.rng.randint(1, 9)
        stays = [place.name for place in PLACES if place.pool != "rough"]  # the others' tables are made anew
        self.ceilings[self.rng.choice(stays)] = self.rng.choice((3_000, 4_000, 5_000))
        return "limits and persistence"

    def toml(self) -> str:
        """All of it as a file."""
        head = HEAD.replace("[gateway]\n", f"[gateway]{SETTINGS}", 1)
        parts = [head, f"[ip_groups.strangers]\ncidrs = {self.denied}\n".replace("'", '"')]
        for pool in ("steady", "rough"):
            balancer = "shop" if pool == "steady" else "office"
            for protocol in ("TCP", "UDP"):
                parts += [self._listener(pool, balancer, protocol), self._pool(pool, protocol)]
        parts += [self._flooded(protocol) for protocol in ("TCP", "UDP")]
        parts += [self._passing(port, protocol) for port in self.passing for protocol in ("TCP", "UDP")]
        return "\n".join(parts)

    def _listener(self, pool: str, balancer: str, protocol: str) -> str:
        _, tcp, udp = VIPS[pool]
        port, idle = (tcp, 60) if protocol == "TCP" else (udp, IDLE)
        return _table(f"listeners.{pool}-{protocol}", load_balancer=balancer, protocol=protocol, port=port,
                      pool=f"{pool}-{protocol}", idle_timeout=idle)  # fmt: skip

    def _pool(self, pool: str, protocol: str) -> str:
        places = [place for place in PLACES if place.pool == pool and place.name not in self.removed]
        drain = {"connection_drain": DRAIN} if pool == "steady" or self.drains else {}
        table = _table(f"pools.{pool}-{protocol}", protocol=protocol, algorithm=self.algorithms[pool], **drain)
        if not self.monitored:
            return table + self._members(places, protocol)
        check = "TCP" if protocol == "TCP" else "UDP_CONNECT"
        # Of those that die it is to be seen soon; of the others not at all, on a machine that is busy.
        patience = {"delay": 1, "timeout": 2, "max_retries": 1, "max_retries_down": 3}
        if pool == "steady":
            patience = {"delay": 3, "timeout": 10, "max_retries": 1, "max_retries_down": 5}
        return (
            f"{table}{self._members(places, protocol)}"
            f"{_table(f'pools.{pool}-{protocol}.health_monitor', type=check, **patience)}"
        )

    def _flooded(self, protocol: str) -> str:
        port, idle = (FLOODED_TCP, 60) if protocol == "TCP" else (FLOODED_UDP, IDLE)
        name = f"flooded-{protocol}"
        listener = _table(
            f"listeners.{name}", load_balancer="shop", protocol=protocol, port=port, pool=name, idle_timeout=idle,
            source_cps=self.source_cps, max_connections=1_500, ip_groups=["strangers"], access="deny",
        )  # fmt: skip
        places = [place for place in PLACES if place.pool == "flooded"]
        pool = _table(f"pools.{name}", protocol=protocol, persistence=self.persistence)
        return f"{listener}\n{pool}{self._members(places, protocol)}"

    def _passing(self, port: int, protocol: str) -> str:
        name = f"passing-{port}-{protocol}"
        listener = _table(f"listeners.{name}", load_balancer="shop", protocol=protocol, port=port, pool=name)
        member = f'members = [{{ address = "{MEMBERS["member-2"]}", port = {port}, max_connections = 100 }}]\n'
        return f"{listener}\n{_table(f'pools.{name}', protocol=protocol)}{member}"

    def _members(self, places: list[Place], protocol: str) -> str:
        rows = (
            f'    {{ address = "{place.address}", port = {place.tcp if protocol == "TCP" else place.udp}, '
            f"weight = {self.weights[place.name]}, max_connections = {self.ceilings[place.name]} }},\n"
            for place in places
        )
        return f"members = [\n{''.join(rows)}]\n\n"


def _table(name: str, **fields: str | int | list[str]) -> str:
    lines = (
        f"{key} = {value}".replace("'", '"') if not isinstance(value, str) else f'{key} = "{value}"'
        for key, value in fields.items()
    )
    return f"[{name}]\n" + "".join(f"{line}\n" for line in lines)
