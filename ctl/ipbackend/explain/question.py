"""A packet as people ask about it, made into a frame; and names for what `explain` answers. It prints nothing."""

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import NamedTuple

from ipbackend.abi import Role
from ipbackend.datapath.lookup import Lookup
from ipbackend.errors import ConfigurationError, suggestion
from ipbackend.explain import frame
from ipbackend.explain.candidates import Candidate
from ipbackend.explain.frame import FLAGS, Tuple
from ipbackend.explain.walk import Outcome, Step, explain
from ipbackend.model import Protocol
from ipbackend.peer import Peer, peer
from ipbackend.plan import ListenerKey, gateway_of
from ipbackend.view import View

ROUTER = IPv4Address("192.0.2.1")  # RFC 5737: stands for any router that sends an ICMP error
_NUMBERS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
_SMALLEST = {Protocol.TCP: frame.IP_HEADER + frame.TCP_HEADER, Protocol.UDP: frame.IP_HEADER + frame.UDP_HEADER}
_LARGEST = 65_535


@dataclass(frozen=True)
class Question:
    """A packet: `flags` are letters of FSRA, of TCP; `size` is in bytes of IP, 0 for the bare headers.

    `interface` is the name of one of the gateway's, or "" for the first one (the SNAT addresses', if it comes from a
    member). With `icmp_error` it is the ICMP error of a router about this packet, which went out so.
    """

    source: str
    destination: str
    protocol: Protocol = Protocol.TCP
    flags: str = "S"
    size: int = 0
    interface: str = ""
    ttl: int = 64
    dont_fragment: bool = False
    icmp_error: bool = False


class End(NamedTuple):
    """How the packet ends, or may end; what it leaves as, and by which link, is only there where it goes on."""

    verdict: str
    meaning: str
    member: str | None
    snat: str | None
    slot: int | None
    source: str | None = None
    destination: str | None = None
    interface: str | None = None
    mac: str | None = None
    vlan: int | None = None
    mtu: int | None = None


class Answer(NamedTuple):
    """The program's steps, the members that it looks at in their order, and how it ends: one way, or one of several."""

    steps: list[Step]
    candidates: list[Candidate]
    outcomes: list[End]


class Names:
    """What people call the numbers in the maps: as it is wanted, and as the kernel calls its interfaces."""

    def __init__(self, view: View) -> None:
        self._listeners, self._pools = dict[int, str](), dict[int, str]()
        have = view.configuration
        for one in have.listeners.values():
            vip = have.load_balancers[one.load_balancer].vip
            entry = view.entries.listeners.get(ListenerKey(vip, one.port, one.protocol))
            if entry is None:
                continue
            self._listeners[entry.id] = f"{one.name or one.id} ({vip}:{one.port}/{one.protocol})"
            if one.pool:
                self._pools[entry.pool] = have.pools[one.pool].name or one.pool

    def listener(self, number: int) -> str:
        """Of a listener."""
        return self._listeners.get(number, f"listener {number}")

    def pool(self, number: int) -> str:
        """Of a pool."""
        return self._pools.get(number, f"pool {number}" if number else "none")

    def interface(self, index: int) -> str:
        """Of an interface."""
        try:
            return socket.if_indextoname(index)
        except OSError:
            return f"interface {index}"


def answer(view: View, question: Question) -> Answer:
    """What the data plane would do with the packet. ConfigurationError: there can be no such packet."""
    data = _frame(question)
    lookup, names = Lookup(view.maps), Names(view)
    told = explain(data, _interface(view, question, lookup, data), lookup, names)
    return Answer(told.steps, told.candidates, [_told(one, names) for one in told.outcomes])


def _told(one: Outcome, names: Names) -> End:
    end = End(one.verdict.name, one.meaning, one.member, one.snat, one.slot)
    way = one.way
    if way is None:
        return end
    interface, mac = names.interface(way.interface), way.destination_mac.hex(":")
    return end._replace(
        source=way.source, destination=way.destination, interface=interface, mac=mac, vlan=way.vlan, mtu=way.mtu
    )


def _frame(question: Question) -> bytes:
    source, destination = (
        _end(text, what) for text, what in ((question.source, "source"), (question.destination, "destination"))
    )
    least = _SMALLEST[question.protocol]
    size = question.size or least
    problems = []
    if not least <= size <= _LARGEST:
        problems.append(f"size: {size} is out of range (write {least} to {_LARGEST} for {question.protocol})")
    if not 0 <= question.ttl <= 255:
        problems.append(f"ttl: {question.ttl} is out of range (write 0 to 255)")
    unknown = set(question.flags.upper()) - set(FLAGS)
    if unknown:
        problems.append(f"flags: {''.join(sorted(unknown))} are none that matter here (write letters of FSRA)")
    if problems:
        raise ConfigurationError(*problems)
    flags = sum(FLAGS[letter] for letter in set(question.flags.upper()))
    ends = Tuple(
        source.address, source.port or 0, destination.address, destination.port or 0, _NUMBERS[question.protocol]
    )
    sent = frame.build(ends, flags, size, question.ttl, question.dont_fragment)
    return frame.build_error(ROUTER, sent, question.ttl) if question.icmp_error else sent


def _end(text: str, what: str) -> Peer:
    try:
        found = peer(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{what}: {error}") from None
    if found.port is None:
        raise ConfigurationError(f"{what}: {text!r} has no port (write ADDRESS:PORT)")
    return found


def _interface(view: View, question: Question, lookup: Lookup, data: bytes) -> int:
    gateway = gateway_of(view.configuration)
    if question.interface and question.interface not in gateway.interfaces:
        known = suggestion(question.interface, gateway.interfaces)
        what = (
            f"interface: {question.interface!r} is not one of gateway.interfaces, no program of ours sees its packets"
        )
        raise ConfigurationError(f"{what} ({known})")
    ours = lookup.address(IPv4Address(data[30:34]))
    usual = gateway.snat_interface if ours and ours.role is Role.SNAT else gateway.interfaces[0]
    try:
        return socket.if_nametoindex(question.interface or usual)
    except OSError:
        return 0
