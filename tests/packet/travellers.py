"""A gateway in random states, and random frames that reach it: of every kind, sound or not, of connections or none.

It draws; it judges nothing. Everything comes from the one generator that it is given.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from ipbackend.abi import RATE_SECOND
from ipbackend.config import parse
from ipbackend.configuration import Configuration
from ipbackend.datapath import syscall
from ipbackend.datapath.lookup import Lookup
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.tables import ip_to_map
from ipbackend.model import BY_SOURCE, Access, Algorithm, Entry, IpGroup
from tests.packet import cast
from tests.packet.cast import Flow, built, from_client, from_member, icmp
from tests.packet.conftest import Dataplane
from tests.packet.test_fuzz import mutated

CLIENTS = (cast.CLIENT, cast.OTHER_CLIENT, "198.51.100.9")
FALSE = ("127.0.0.1", "224.0.0.1", "0.1.2.3", cast.VIP, cast.SNAT)
FLAGS = (*"SSSSSSSSS", "A", "PA", "FA", "F", "R", "RA", "SA", "SF", "SR", "")
LONG = 24  # members of the pool whose turns are more than the program draws
OPTIONS = (
    b"\x01\x01\x01\x00",
    b"\x94\x04\x00\x00",
    b"\x83\x07\x04\x0a\x00\x00\x01\x00",
    b"\x07\x03\x04\x00",
    b"\x44\x01\x00\x00",
)
PEERED = IPv4Network("172.16.0.0/16")  # where they live
MOST_FLOWS = 40
RATE = 1_000_000  # a second: never used up here, unless that is written down


def configuration(random: Random, number: int) -> Configuration:
    """Listeners and pools with all that they may demand, and choose by; most pools by the algorithm of this number."""
    algorithms = list(Algorithm)
    wanted = parse(written(random), "test")
    groups = {"some": ("203.0.113.7/32", "198.51.100.0/24"), "more": ("203.0.113.0/29",), "none": ()}
    made = {
        name: IpGroup(name, tuple(Entry(IPv4Network(one)) for one in some), id=name) for name, some in groups.items()
    }
    pools = {
        one.id: replace(one, **chosen(random, algorithms[number % len(algorithms)])) for one in wanted.pools.values()
    }
    listeners = {one.id: replace(one, **demanded(random)) for one in wanted.listeners.values()}
    return replace(wanted, pools=pools, listeners=listeners, ip_groups=made)


def chosen(random: Random, usual: Algorithm) -> dict[str, Any]:
    """How a pool chooses."""
    algorithm = random.choice((usual, usual, *Algorithm))
    return {"algorithm": algorithm, "persistence": None if algorithm in BY_SOURCE else random.choice((None, 1))}


def demanded(random: Random) -> dict[str, Any]:
    """What a listener demands; most demand nothing."""
    groups = random.choice(((),) * 6 + (("some",), ("more", "some"), ("none",)))
    return {
        "max_connections": random.choice((0,) * 6 + (2, 5)),
        "cps": random.choice((0, 0, 0, RATE)),
        "source_cps": random.choice((0, 0, 0, RATE)),
        "ip_groups": groups,
        "access": random.choice(list(Access)) if groups else Access.ALLOW,
    }


def written(random: Random) -> str:
    """Listeners with few members, with many, with one, with none, and with no pool at all."""
    near = [member("10.0.0.11", 8080, random), member("10.0.0.12", 8080, random), member("192.168.50.10", 8080, random)]
    pools = {
        "web": ("TCP", near[: random.randint(1, 3)]),
        "long": ("TCP", [member(f"172.16.0.{n}", 8080, random) for n in range(1, LONG + 1)]),
        "dns": ("UDP", [member("10.0.0.11", 5353, random), member("192.168.50.10", 5353, random)]),
        "empty": ("TCP", []),
    }
    listeners = (
        ("shop", "TCP", 80, "web"), ("second", "TCP", 80, "web"), ("shop", "TCP", 8443, "long"),
        ("shop", "UDP", 53, "dns"), ("shop", "TCP", 81, "empty"), ("shop", "TCP", 82, ""),
    )  # fmt: skip
    text = cast.NETWORKS
    for balancer, protocol, port, pool in listeners:
        text += (
            f'\n[listeners.{balancer}-{port}]\nload_balancer = "{balancer}"\nprotocol = "{protocol}"\nport = {port}\n'
        )
        text += f'pool = "{pool}"\n' if pool else ""
    for name, (protocol, members) in pools.items():
        text += f'\n[pools.{name}]\nprotocol = "{protocol}"\nmembers = [{", ".join(members)}]\n'
    return text


def member(address: str, port: int, random: Random) -> str:
    weight, ceiling = random.choice((0, 1, 1, 2, 3)), random.choice((1, 2, 3, 4))
    return f'{{ address = "{address}", port = {port}, weight = {weight}, max_connections = {ceiling} }}'


def unsettle(dataplane: Dataplane, random: Random) -> None:
    """Links and next hops as they may be, for the next `configure`."""
    hops = ("10.0.0.11", "10.0.0.12", "10.0.0.2", "10.0.0.3")
    dataplane.unresolved = {IPv4Address(hop) for hop in hops if random.random() < 0.15}
    dataplane.mtu = random.choice((1500, 1500, 600))
    dataplane.links = {cast.CLIENT_INTERFACE: random.choice((1500, 1500, 600, 0)), cast.MEMBER_INTERFACE: 1500}
    dataplane.links = {index: mtu for index, mtu in dataplane.links.items() if mtu}
    dataplane.member_interface = random.choice((cast.CLIENT_INTERFACE, cast.MEMBER_INTERFACE))
    dataplane.member_vlan = random.choice((0, 0, 0, 7))


def limit(dataplane: Dataplane, random: Random, number: int) -> None:
    """Budgets of handshakes below some ceilings, most of many members lost; rates used up for long, or not at all."""
    limits, lost = random.choice(((1,), (1, 2, 4), (4,))), (0.9 if number % 8 < 6 else 0.0)
    for number, endpoint in dataplane.entries.endpoints.items():
        load = dataplane.maps["load"].memory()[number]
        load.half_open_limit = random.choice(limits)
        if endpoint.key.address in PEERED and random.random() < lost:
            load.ceiling = 0
    later = Lookup(dataplane.maps).rate_now()[1] + 100 * RATE_SECOND
    dues = dataplane.maps["source_dues"]
    for listener in dataplane.entries.listeners.values():
        dataplane.maps["listener_load"].memory()[listener.id].due = random.choice((0,) * 6 + (later,))
        for client in CLIENTS:
            key = dues.key(number=listener.id, client=ip_to_map(IPv4Address(client)))
            syscall.update(dues.fd, bytes(key), struct.pack("Q", random.choice((0,) * 6 + (later,))))


def age(dataplane: Dataplane, random: Random) -> None:
    """Some connections were silent for long, which the next sweep sees; some clients were not heard of."""
    clock = dataplane.maps.clock
    for number in dataplane.entries.endpoints:
        connections = dataplane.maps.of_endpoint("conntrack", number)
        for slot, phase in enumerate(bytes(connections.column("state"))):
            if phase and random.random() < 0.4:
                connections[slot].last_seen = (clock.now() - clock.ticks(1000)) % 2**32
    stays = dataplane.maps["stays"]
    for key, row in list(stays.items()):
        if random.random() < 0.2:
            row.seen = (clock.now() - clock.ticks(70)) % 2**32
            syscall.update(stays.fd, bytes(key), bytes(row))


class Travellers:
    """Whoever sends to the gateway; `flows` are connections that were opened, the latest first."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.flows: list[Flow] = []
        self._waiting: list[bytes] = []  # fragments that come later
        self._planned: list[bytes] = []  # what comes in this order

    def opened(self, sent: bytes, left: bytes) -> None:
        """A connection that its ends go on to use."""
        came, went = Ether(sent), Ether(left)
        if (TCP in went or UDP in went) and (TCP in came or UDP in came):
            flow = Flow.of(came, went)
            self.flows = [flow, *self.flows][:MOST_FLOWS]
            if flow.kind is TCP:
                self._shake_hands(flow, came[TCP].seq)

    def _shake_hands(self, flow: Flow, number: int) -> None:
        """Both ends go on as ends do, some to the beginning of the end."""
        mine = (number + 1) % 2**32
        says = [flow.reply(flags="SA", seq=7, ack=mine), flow.request(flags="A", seq=mine, ack=8)]
        says.append(self._random.choice((flow.request(flags="FA", seq=mine, ack=8), flow.reply(flags="FA", seq=8))))
        self._planned += [bytes(packet) for packet in says[: self._random.randrange(4)]]

    def frame(self) -> bytes:
        """The next one."""
        random = self._random
        if self._waiting and random.random() < 0.3:
            return self._waiting.pop(random.randrange(len(self._waiting)))
        if self._planned and random.random() < 0.5:
            return self._planned.pop(0)
        kinds = (*[self._knock] * 5, self._ask, self._ask, *[self._talk] * 3, self._intrude, self._complain)
        packet = random.choice(kinds)()
        packet = self._unusual(packet) if random.random() < 0.3 else packet
        data = bytes(packet)
        return bytes(mutated(data, random)) if random.random() < 0.1 else data

    def _ip(self) -> dict[str, Any]:
        random = self._random
        fields: dict[str, Any] = {"ttl": random.choice((64,) * 17 + (2, 1, 0)), "id": random.randrange(65536)}
        fields["flags"] = random.choice(("", "", "DF"))
        if random.random() < 0.05:
            fields["options"] = random.choice(OPTIONS)
        return fields

    def _size(self) -> Raw:
        return Raw(bytes(self._random.choice((0, 0, 0, 1, 5, 540, 560, 561, 572, 573, 1448, 1460, 1461, 1472, 1473))))

    def _sender(self) -> str:
        random = self._random
        return random.choice(FALSE) if random.random() < 0.05 else random.choice(CLIENTS)

    def _knock(self) -> Packet:
        random = self._random
        vip = random.choice((*[cast.VIP] * 10, *[cast.SECOND_VIP] * 4, "10.9.9.9"))
        port = random.choice((*[80] * 6, *[8443] * 8, 81, 82, 83))
        segment = TCP(sport=random.randint(40000, 40030), dport=port, flags=random.choice(FLAGS))
        segment.seq = random.choice((0, 0, random.getrandbits(32)))
        return from_client(self._sender(), vip, **self._ip()) / segment / self._size()

    def _ask(self) -> Packet:
        random = self._random
        datagram = UDP(sport=random.randint(40000, 40010), dport=random.choice((53, 53, 53, 54)))
        return from_client(self._sender(), **self._ip()) / datagram / self._size()

    def _talk(self) -> Packet:
        """An end of a connection, which may be over."""
        random = self._random
        if not self.flows:
            return self._knock()
        flow = random.choice(self.flows)
        says = random.choice((flow.request, flow.reply))
        if flow.kind is UDP:
            return says(self._ip()) / self._size()
        near = {
            "seq": random.choice((0, 1, random.getrandbits(32))),
            "ack": random.choice((0, 1, random.getrandbits(32))),
        }
        return says(self._ip(), flags=random.choice((*FLAGS, "SA", "SA", "A", "A")), **near) / self._size()

    def _intrude(self) -> Packet:
        """A member's packet to any slot."""
        random = self._random
        port = random.choice((*range(32_768, 32_776), 80, 65_535))
        member = random.choice(("10.0.0.11", "192.168.50.10", "172.16.0.3", "10.0.0.77"))
        outer = from_member(member, random.choice(cast.SNATS), **self._ip())
        if random.random() < 0.3:
            return outer / UDP(sport=5353, dport=port)
        return outer / TCP(sport=random.choice((8080, 8081)), dport=port, flags=random.choice(FLAGS))

    def _complain(self) -> Packet:
        """ICMP of any kind, most of it about a connection."""
        random = self._random
        if not self.flows or random.random() < 0.2:
            outer = from_client(self._sender(), random.choice((cast.VIP, cast.SNAT)), **self._ip())
            return outer / ICMP(type=random.choice((0, 3, 8, 8, 11, 13))) / Raw(bytes(random.choice((0, 8, 28, 60))))
        flow, ip = random.choice(self.flows), self._ip()
        router = random.choice(("192.0.2.1",) * 9 + FALSE[:1])
        if random.random() < 0.5:
            quoted, outer = flow.replied(), from_client(router, flow.vip, **{**ip, "proto": 1})
        else:
            quoted, outer = flow.requested(), from_member(flow.member, flow.snat, **{**ip, "proto": 1})
            outer[IP].src = router
        data = bytearray(bytes(built(quoted / self._size())[IP])[: random.choice((20, 27, 28, 40, 548, 700))])
        if random.random() < 0.1:
            data[random.randrange(min(len(data), 28))] ^= 1
        message = icmp(random.choice((3, 11, 12)), random.randrange(5), bytes(data))
        if random.random() < 0.1:
            message = Raw(bytes(message)[:-1] + b"\xff")
        return outer / message

    def _unusual(self, packet: Packet) -> Packet:
        """Tagged, in pieces, or to all."""
        random = self._random
        kind = random.random()
        if kind < 0.4:
            ether, rest = packet.copy(), packet.payload
            ether.remove_payload()
            return ether / Dot1Q(vlan=random.choice((1, 7, 99)), prio=random.randrange(8)) / rest
        if kind < 0.5:
            packet.dst = "ff:ff:ff:ff:ff:ff"
            return packet
        if not 64 < len(packet[IP].payload) < 1000 or "DF" in packet[IP].flags:
            return packet
        first, *others = fragment(packet, fragsize=random.choice((8, 48, 496)))
        self._waiting += [bytes(one) for one in others[:3]]
        return first


def exhaust_errors(maps: Maps, cpus: list[bool]) -> None:
    """Have CPUs, in their order, have sent all the ICMP errors that they may, or none."""
    rows = maps["answers"].get(0)
    for row, exhausted in zip(rows, cpus, strict=False):
        row.next_error = 2**62 if exhausted else 0
    syscall.update(maps["answers"].fd, struct.pack("I", 0), b"".join(map(bytes, rows)))
