"""What may happen to the gateway of the random lives: who is there, what they say, and how it may be configured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from typing import Any

from hypothesis import strategies as st

from ipbackend.config import parse
from ipbackend.configuration import Configuration
from ipbackend.model import Access, Algorithm, Entry, IpGroup
from tests.packet import cast
from tests.packet.model_connection import AHEAD, BEHIND, LOST, STEP, Side

REMEMBERED = 12  # flows whose packets are still sent, dead ones among them
CLIENTS = (cast.CLIENT, cast.OTHER_CLIENT)
VIPS = (cast.VIP, cast.SECOND_VIP)
PORTS = (40_000, 40_001, 40_002)
PEERED = "172.16.10.10"
MEMBERS = {  # by name: address, port, and the pools that they may stand in
    "near": ("10.0.0.11", 8080, ("web", "second")),
    "peered": (PEERED, 8080, ("web",)),
    "resolver": (cast.UDP_MEMBER, 5353, ("dns",)),
    "near-resolver": ("10.0.0.11", 5353, ("dns",)),
}
LISTENERS = {  # by name: load balancer, protocol, port, pool
    "web": ("shop", "TCP", 80, "web"),
    "more": ("shop", "TCP", 8443, "web"),
    "web-too": ("second", "TCP", 80, "second"),
    "dns": ("shop", "UDP", 53, "dns"),
}
WORDS = ("A", "A", "A", "PA", "PA", "FA", "FA", "S", "SA", "F", "", "SF")
RESETS = ("R", "RA", "SR")
FLAGS = (*WORDS, *RESETS)
DISTANCES = (0, 1, -1, STEP - 1, STEP, AHEAD - 1, AHEAD, -BEHIND, -BEHIND - 1, LOST - 1, LOST, 2**31)
FIRST_NUMBERS = (0, 1, 2**31 - 20_000, 2**32 - 50_000, 2**32 - 1)
STRANGERS = ("127.0.0.1", "224.0.0.1", "0.1.2.3", cast.VIP, cast.SNAT)
# Seconds: never nearer than 5 to a timeout from below, so that a slow machine's own time changes nothing.
MOMENTS = (10, 10, 20, 20, 30, 60, 100, 300)

OTHER = {Side.CLIENT: Side.MEMBER, Side.MEMBER: Side.CLIENT}


@dataclass(frozen=True)
class Utterance:
    """What one end of a flow says; the numbers are distances from those that are known of it."""

    side: Side
    flags: str
    ahead: int
    acknowledged: int
    size: int
    ip: tuple[tuple[str, Any], ...]
    moved: bool  # another router's MAC than before


anyone = st.sampled_from(CLIENTS * 5 + STRANGERS)
ttl = st.sampled_from((64,) * 9 + (1,))
pick = st.sampled_from((0, 0, 0, 0, 1, 1, 1, 2, 2, *range(REMEMBERED)))  # the latest is 0
flags = st.sampled_from(FLAGS)
distance = st.sampled_from((0, 0, 0, 0, 1, 1, 1, *DISTANCES))
far_or_near = st.sampled_from(DISTANCES)
first_number = st.sampled_from(FIRST_NUMBERS)
size = st.sampled_from((0, 1, 7, 400, 1448, 1460, 1461))
ceiling = st.sampled_from((1, 2, 3, 4))
limit = st.sampled_from((1, 1, 2, 4))
mtu = st.sampled_from((1500, 1500, 600))
name = st.sampled_from(sorted(MEMBERS))
ip_fields = st.sampled_from(((),) * 5 + ((("flags", "DF"),),) * 3 + ((("ttl", 1),), (("ttl", 2),)))
side = st.sampled_from(Side)
moved = st.sampled_from((False, False, True))
word = st.builds(Utterance, side, st.sampled_from(WORDS), distance, distance, size, ip_fields, moved)
reset = st.builds(Utterance, side, st.sampled_from(RESETS), far_or_near, distance, st.just(0), ip_fields, moved)
said = st.lists(st.one_of(word, word, word, word, word, reset), max_size=4)
said_after_silence = st.lists(st.one_of(word, reset), max_size=3)


GROUPS = {"nobody": (), "one": (f"{cast.CLIENT}/32",), "both": ("203.0.113.0/28",), "others": ("198.51.100.0/24",)}
choice = st.one_of(  # of a pool
    st.fixed_dictionaries(
        {
            "algorithm": st.sampled_from((Algorithm.ROUND_ROBIN, Algorithm.LEAST_CONNECTIONS)),
            "persistence": st.sampled_from((None, None, 1, 2)),
        }
    ),
    st.fixed_dictionaries(
        {
            "algorithm": st.sampled_from((Algorithm.SOURCE_IP, Algorithm.SOURCE_IP_PORT)),
            "persistence": st.none(),
        }
    ),
)
_rates = {
    "max_connections": st.sampled_from((0, 0, 0, 1, 2)),
    "cps": st.sampled_from((0, 0, 1)),  # at that rate a slow machine matters least
    "source_cps": st.sampled_from((0, 0, 1)),
}
_served = {
    "access": st.sampled_from(Access),
    "ip_groups": st.sampled_from((("one",), ("both",), ("nobody",), ("one", "others"))),
}
_for_all = {"access": st.just(Access.ALLOW), "ip_groups": st.just(())}
demands = st.one_of(st.fixed_dictionaries(_rates | _for_all), st.fixed_dictionaries(_rates | _served))  # of a listener


def configured(
    members: dict[str, dict[str, tuple[int, int]]],
    listeners: dict[str, int],
    choices: dict[str, dict[str, Any]],
    demanded: dict[str, dict[str, Any]],
) -> Configuration:
    """What is written, with settings of pools (`choices`) and of listeners by their names."""
    wanted = parse(written(members, listeners), "test")
    pools = {one.id: replace(one, **choices.get(one.name, {})) for one in wanted.pools.values()}
    asking = {one.id: replace(one, **demanded.get(one.name, {})) for one in wanted.listeners.values()}
    groups = {
        name: IpGroup(name, tuple(Entry(IPv4Network(cidr)) for cidr in cidrs), id=name)
        for name, cidrs in GROUPS.items()
    }
    return replace(wanted, pools=pools, listeners=asking, ip_groups=groups)


def written(members: dict[str, dict[str, tuple[int, int]]], listeners: dict[str, int]) -> str:
    """A configuration file; `members` by pool and name: weight and ceiling; `listeners`: their idle timeouts."""
    text = cast.NETWORKS
    for name, seconds in listeners.items():
        load_balancer, protocol, port, pool = LISTENERS[name]
        text += f"""
[listeners.{name}]
load_balancer = "{load_balancer}"
protocol = "{protocol}"
port = {port}
pool = "{pool}"
idle_timeout = {seconds}
"""
    for pool, its_members in members.items():
        lines = [
            f'{{ address = "{address}", port = {port}, weight = {weight}, max_connections = {ceiling} }}'
            for name, (weight, ceiling) in its_members.items()
            for address, port, _ in [MEMBERS[name]]
        ]
        protocol = "UDP" if pool == "dns" else "TCP"
        text += f'\n[pools.{pool}]\nprotocol = "{protocol}"\nmembers = [{", ".join(lines)}]\n'
    return text
