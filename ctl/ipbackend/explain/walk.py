"""What the data plane would do with a packet, step by step and why, told from its own maps. Nothing moves by it.

It takes the roads of bpf/: parse.h, forward.h, uncommon.h, open.h, limits.h, icmp.h, reject.h. What hangs on the CPU
or on a moment (an ICMP error when some CPUs have sent many, a rate just used up) is told as several outcomes. No I/O.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from socket import IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP
from typing import NamedTuple, Protocol

from ipbackend.abi import Phase, Role, Verdict
from ipbackend.explain import frame as frames
from ipbackend.explain.candidates import Candidate, choose
from ipbackend.explain.demands import demands
from ipbackend.explain.flows import Flow, by_slot, find, find_quickly, next_slot, snat_of, without
from ipbackend.explain.frame import RST, Ending, Packet, Tuple
from ipbackend.explain.reader import NOWHERE, Bucket, Reader
from ipbackend.plan import Address, Listener
from ipbackend.verdicts import MEANINGS

_NAMED = 12  # members that are told one by one
_OPEN_TO_ALL = (0, 127)  # first bytes of addresses that no single host has, beside those from 224 on


class Names(Protocol):
    """What people call the numbers in the maps."""

    def listener(self, number: int) -> str:
        """Of a listener."""

    def pool(self, number: int) -> str:
        """Of a pool."""

    def interface(self, index: int) -> str:
        """Of an interface."""


class Step(NamedTuple):
    """One thing that the program looks at, and what it finds."""

    step: str
    what: str


@dataclass(frozen=True)
class Way:
    """What a packet leaves as, and by which link; `interface` is an index, MACs are 6 bytes, `mtu` bytes of IP."""

    source: str
    destination: str
    interface: int
    destination_mac: bytes
    source_mac: bytes
    vlan: int
    mtu: int


@dataclass(frozen=True)
class Outcome:
    """How the journey ends. `slot` is the endpoint's; `way` is only there where the packet goes on."""

    verdict: Verdict
    member: str | None = None
    snat: str | None = None
    slot: int | None = None
    way: Way | None = None

    @property
    def meaning(self) -> str:
        """Of the verdict."""
        return MEANINGS[self.verdict]


@dataclass
class Explanation:
    """The steps, the members that were looked at, and how it ends: one outcome, or one of several."""

    steps: list[Step] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


def explain(data: bytes, interface: int, reader: Reader, names: Names) -> Explanation:
    """What would become of a frame that came in by an interface (its index)."""
    walk = _Walk(interface, reader, names)
    walk.told.outcomes = list(dict.fromkeys(walk.receive(data)))
    return walk.told


class _Walk:
    """One packet's way; a function that ends it returns its outcomes."""

    def __init__(self, interface: int, reader: Reader, names: Names) -> None:
        self._interface = interface
        self._reader = reader
        self._names = names
        self.told = Explanation()

    # From the frame to its road

    def receive(self, data: bytes) -> list[Outcome]:
        packet = frames.parse_ip(data)
        if isinstance(packet, Ending):
            return self._ends("packet", packet)
        ours = self._reader.address(packet.destination)
        ending = self._parse(packet) if ours else None
        self._say("packet", f"{packet}, in by {self._names.interface(self._interface)}")
        if ours is None:
            return self._ends("address", Ending(Verdict.PASS_NOT_OURS, f"{packet.destination} is none of ours"))
        self._say("address", _called(packet.destination, ours))
        if ending:
            return self._ends("packet", ending, packet)
        if packet.protocol == IPPROTO_ICMP:
            return self._error(packet, ours)
        if packet.offset and not self._joined(packet):
            why = "the first fragment of its datagram did not come before it"
            return self._ends("fragment", Ending(Verdict.DROP_FRAGMENT, why))
        ending = self._misplaced(packet)
        if ending:
            return self._ends("fragment", ending)
        if ours.role is Role.SNAT:
            return self._from_member(packet, ours.index)
        return self._from_client(packet)

    def _parse(self, packet: Packet) -> Ending | None:
        """Whether it is sound and may live on; ICMP is judged further on its own road."""
        ending = frames.parse_lengths(packet)
        if ending is None and packet.protocol != IPPROTO_ICMP:
            ending = self._parse_transport(packet)
        ending = ending or frames.parse_options(packet)
        if ending is None and packet.protocol == IPPROTO_ICMP:
            ending = frames.parse_icmp(packet) or self._icmp_lives_on(packet)
        return ending

    def _parse_transport(self, packet: Packet) -> Ending | None:
        if packet.protocol not in (IPPROTO_TCP, IPPROTO_UDP):
            return Ending(Verdict.DROP_PROTOCOL, f"protocol {packet.protocol} is neither TCP, UDP nor ICMP")
        over = packet.ttl <= 1
        if packet.offset:
            return Ending(Verdict.DROP_TTL, "its time to live ends here") if over else None
        ending = frames.parse_transport(packet)
        if ending or not over:
            return ending
        if self._is_false(packet.source):
            return Ending(Verdict.DROP_TTL, f"its time to live ends here, and {packet.source} can be no one's address")
        return Ending(Verdict.REJECT_TTL, "its time to live ends here: its sender is told")

    def _icmp_lives_on(self, packet: Packet) -> Ending | None:
        if packet.ttl <= 1:
            return Ending(Verdict.DROP_TTL, "its time to live ends here")
        return self._false_sender(packet) if self._is_false(packet.source) else None

    def _is_false(self, sender: IPv4Address) -> bool:
        first = sender.packed[0]
        return first in _OPEN_TO_ALL or first >= 224 or self._reader.address(sender) is not None

    @staticmethod
    def _false_sender(packet: Packet) -> Ending:
        return Ending(Verdict.DROP_MALFORMED, f"{packet.source} can be no sender: it is ours, or no single host's")

    def _joined(self, packet: Packet) -> bool:
        """Whether a later fragment's datagram is known; then it has its ports."""
        known = self._reader.fragments_of(packet)
        if known:
            packet.sport, packet.dport, packet.header = known
            self._say("fragment", f"of the datagram from port {known.sport} to port {known.dport}")
        return known is not None

    @staticmethod
    def _misplaced(packet: Packet) -> Ending | None:
        if packet.offset and packet.offset < packet.header:
            return Ending(Verdict.DROP_MALFORMED, "it would write over the header that was judged")
        if packet.offset + packet.length > 65535 and packet.offset:
            return Ending(Verdict.DROP_MALFORMED, "no datagram is as long as that")
        return None

    # From the client

    def _from_client(self, packet: Packet) -> list[Outcome]:
        flow = find_quickly(self._reader, packet.tuple)
        if flow and (flow.connection.phase < Phase.CLOSED or not packet.opens):
            self._found(packet, flow)
            return self._on(packet, flow, self._to_member, Verdict.FORWARD_REQUEST)
        if packet.offset:
            return self._ends("connection", Ending(Verdict.DROP_FRAGMENT, "none: a later fragment opens none"))
        return self._find_or_open(packet)

    def _find_or_open(self, packet: Packet) -> list[Outcome]:
        buckets = self._reader.buckets(packet.tuple)
        flow = find(self._reader, packet.tuple, Phase.EXPIRED)
        if flow and flow.connection.phase < Phase.CLOSED:
            self._found(packet, flow)
            return self._on(packet, flow, self._to_member, Verdict.FORWARD_REQUEST)
        if flow and not packet.opens:
            return self._ends("connection", Ending(Verdict.DROP_NO_CONNECTION, f"one that has ended ({flow})"))
        if flow:
            self._say("connection", f"one that has ended ({flow}): it makes room")
            buckets = without(buckets, buckets, flow.place)
        else:
            first, second = (bucket.number for bucket in buckets)
            self._say("connection", f"none: buckets {first:,} and {second:,} of the flow index do not have it")
        if packet.flags & RST:
            return self._ends("packet", Ending(Verdict.DROP_NO_CONNECTION, "a RST of no connection is not answered"))
        if self._is_false(packet.source):
            return self._ends("packet", self._false_sender(packet))
        listener = self._reader.listener(packet.destination, packet.dport, packet.protocol)
        if listener is None:
            why = f"none on {packet.destination}:{packet.dport}/{frames.PROTOCOLS[packet.protocol]}"
            return self._ends("listener", Ending(Verdict.REJECT_NO_LISTENER, why), packet)
        self._say("listener", f"{self._names.listener(listener.id)}, idle timeout {listener.idle_timeout} s")
        if not packet.opens:
            why = "only a SYN alone opens a connection"
            return self._ends("packet", Ending(Verdict.REJECT_NO_CONNECTION, why), packet)
        return self._open(packet, listener, buckets)

    def _open(self, packet: Packet, listener: Listener, buckets: tuple[Bucket, Bucket]) -> list[Outcome]:
        maybe: list[Outcome] = []
        for demand in demands(self._reader, listener, packet.source):
            if demand.ending and demand.sure:
                return maybe + self._ends(demand.step, demand.ending, packet)
            self._say(demand.step, demand.what)
            if demand.ending:
                maybe.append(self._outcome(demand.ending.verdict))
        choice = choose(self._reader, listener.pool, packet.tuple)
        self.told.candidates = choice.candidates
        name = self._names.pool(listener.pool)
        for step, what in choice.how:
            self._say(step, f"{name}: {what}" if step == "pool" else what)
        for number, one in enumerate(choice.candidates[:_NAMED], 1):
            self._say(f"member {number}", f"{one.member} {one.why}")
        if len(choice.candidates) > _NAMED:
            self._say("members", f"{len(choice.candidates) - _NAMED:,} more, less preferred")
        if choice.ending:
            return maybe + self._ends("member", choice.ending, packet)
        return maybe + self._take(packet, choice.endpoint, buckets)

    def _take(self, packet: Packet, number: int, buckets: tuple[Bucket, Bucket]) -> list[Outcome]:
        """The slot that would be taken of this endpoint, and on from there."""
        endpoint = self._reader.endpoint(number)
        place = next_slot(self._reader, number)
        if place == NOWHERE:
            return self._ends("slot", Ending(Verdict.DROP_NOT_OPENED, f"{endpoint} has no free slot"))
        held = self._reader.connection(place)
        if held.phase >= Phase.CLOSED:  # it has rested until now, and leaves the index
            buckets = without(buckets, self._reader.buckets(held.tuple), place)
        slot = place - endpoint.first
        snat, port = snat_of(endpoint, slot)
        self._say("slot", f"{slot:,} of {endpoint.slots:,} of {endpoint}, the next in its queue")
        if not any(bucket.free for bucket in buckets):
            why = f"both buckets of the flow index, {buckets[0].number:,} and {buckets[1].number:,}, are full"
            return self._ends("flow index", Ending(Verdict.DROP_INDEX_FULL, why))
        self._say("SNAT", f"{snat}:{port}, what this slot stands for")
        fresh = held._replace(tuple=packet.tuple, endpoint=number, phase=Phase.PENDING)
        flow = Flow(place, slot, fresh, endpoint)
        return self._on(packet, flow, self._to_member, Verdict.FORWARD_OPENED)

    def _to_member(self, flow: Flow) -> Way | Ending:
        hop = self._reader.next_hop(flow.endpoint.next_hop)
        if not hop.resolved:
            return Ending(Verdict.DROP_NO_NEXT_HOP, f"{hop.address} does not answer ARP: the way is not known")
        snat, port = snat_of(flow.endpoint, flow.slot)
        self._say("next hop", f"{hop.address}, {self._link(hop.interface, hop.destination, hop.vlan, hop.mtu)}")
        return Way(f"{snat}:{port}", str(flow.endpoint), hop.interface, hop.destination, hop.source, hop.vlan, hop.mtu)

    # From the member

    def _from_member(self, packet: Packet, index: int) -> list[Outcome]:
        flow = by_slot(self._reader, packet.source, packet.sport, packet.protocol, index, packet.dport)
        if flow is None:
            why = f"none of a member {packet.source}:{packet.sport} has {packet.destination}:{packet.dport}"
            return self._ends("connection", Ending(Verdict.DROP_NO_CONNECTION, why))
        self._found(packet, flow)
        return self._on(packet, flow, self._to_client, Verdict.FORWARD_REPLY)

    def _to_client(self, flow: Flow) -> Way | Ending:
        one, ends = flow.connection, flow.connection.tuple
        mtu = self._reader.link(one.client_interface)
        if not mtu:
            name = self._names.interface(one.client_interface)
            return Ending(Verdict.DROP_NO_NEXT_HOP, f"the client came by {name}, which is not the gateway's any more")
        way = self._link(one.client_interface, one.client_mac, one.client_vlan, mtu)
        self._say("way back", f"to client {ends.client}, {way}")
        return Way(
            f"{ends.vip}:{ends.vip_port}",
            f"{ends.client}:{ends.client_port}",
            one.client_interface,
            one.client_mac,
            one.gateway_mac,
            one.client_vlan,
            mtu,
        )

    # ICMP errors

    def _error(self, packet: Packet, ours: Address) -> list[Outcome]:
        inner = frames.quoted(packet)
        if inner is None:
            return self._ends("quote", Ending(Verdict.DROP_ICMP_UNRELATED, "it quotes nothing that could be ours"))
        self._say("quote", str(inner))
        flow = self._quoted_flow(packet, inner, ours)
        if flow is None:
            why = "none of ours, or one that expired, sent what it quotes"
            return self._ends("connection", Ending(Verdict.DROP_ICMP_UNRELATED, why))
        self._say("connection", str(flow))
        way = self._to_client(flow) if ours.role is Role.SNAT else self._to_member(flow)
        if isinstance(way, Ending):
            return self._ends("next hop", way)
        if packet.length > way.mtu:
            return self._ends("size", Ending(Verdict.DROP_TOO_BIG, f"{packet.length} bytes, MTU {way.mtu}"))
        if not frames.is_intact(packet, inner):
            return self._ends(
                "packet", Ending(Verdict.DROP_MALFORMED, "its checksum, or the quoted header's, is wrong")
            )
        self._leave(way)
        return [self._outcome(Verdict.FORWARD_ICMP_ERROR, flow, way)]

    def _quoted_flow(self, packet: Packet, inner: Packet, ours: Address) -> Flow | None:
        if inner.source != packet.destination:
            return None
        if ours.role is Role.SNAT:
            flow = by_slot(self._reader, inner.destination, inner.dport, inner.protocol, ours.index, inner.sport)
        else:
            client = Tuple(inner.destination, inner.dport, inner.source, inner.sport, inner.protocol)
            flow = find_quickly(self._reader, client)
        return flow if flow and flow.connection.phase is not Phase.EXPIRED else None

    # The end

    def _on(self, packet: Packet, flow: Flow, lead: Callable[[Flow], Way | Ending], verdict: Verdict) -> list[Outcome]:
        """A packet of a connection: out, if there is a way that it fits through."""
        if flow.connection.phase is Phase.EXPIRED:
            if packet.flags & RST or packet.offset:
                why = "its other end has been forgotten, and none answers a RST or half a segment"
                return self._ends("connection", Ending(Verdict.DROP_NO_CONNECTION, why))
            why = "its other end has been forgotten, and this one is told"
            return self._ends("connection", Ending(Verdict.REJECT_EXPIRED, why), packet)
        way = lead(flow)
        opened = " (the connection is opened even so)" if verdict is Verdict.FORWARD_OPENED else ""
        if isinstance(way, Ending):
            return self._ends("next hop", way._replace(why=way.why + opened), packet, flow)
        if packet.length > way.mtu:
            return self._ends("size", self._too_big(packet, way.mtu, opened), packet, flow)
        self._say("size", f"{packet.length} bytes fit the MTU of {way.mtu}")
        self._leave(way)
        return [self._outcome(verdict, flow, way)]

    def _too_big(self, packet: Packet, mtu: int, opened: str) -> Ending:
        what = f"{packet.length} bytes do not fit the MTU of {mtu}"
        if not packet.dont_fragment or packet.offset:
            return Ending(Verdict.DROP_TOO_BIG, f"{what}, and we do not fragment{opened}")
        if self._is_false(packet.source):
            return Ending(Verdict.DROP_TOO_BIG, f"{what}, and there is no one to tell{opened}")
        return Ending(Verdict.REJECT_TOO_BIG, f"{what}: its sender is told{opened}")

    def _ends(self, step: str, ending: Ending, packet: Packet | None = None, flow: Flow | None = None) -> list[Outcome]:
        """Here; a packet that is answered by an ICMP error only if its CPU has not sent too many."""
        self._say(step, ending.why)
        outcomes = [self._outcome(ending.verdict, flow)]
        if packet is None or not ending.verdict.name.startswith("REJECT"):
            return outcomes
        if packet.is_tcp and ending.verdict not in (Verdict.REJECT_TTL, Verdict.REJECT_TOO_BIG):
            self._say("answer", "a RST")
            return outcomes
        due = self._reader.errors_due()
        silent = [self._outcome(Verdict.DROP_ERROR_RATE, flow)]
        if due == {True}:
            self._say("answer", "an ICMP error")
            return outcomes
        if due == {False}:
            self._say("answer", "none: every CPU has sent as many ICMP errors as it may")
            return silent
        self._say("answer", "an ICMP error, or none: some CPUs have sent as many as they may")
        return outcomes + silent

    def _outcome(self, verdict: Verdict, flow: Flow | None = None, way: Way | None = None) -> Outcome:
        if flow is None:
            return Outcome(verdict)
        snat, port = snat_of(flow.endpoint, flow.slot)
        return Outcome(verdict, str(flow.endpoint), f"{snat}:{port}", flow.slot, way)

    def _found(self, packet: Packet, flow: Flow) -> None:
        if packet.destination != flow.connection.tuple.vip:
            self._say("connection", str(flow))
            return
        buckets = self._reader.buckets(packet.tuple)
        at = next(bucket.number for bucket in buckets if flow.place in bucket.places)
        self._say("connection", f"{flow} (bucket {at:,} of the flow index)")

    def _leave(self, way: Way) -> None:
        how = "where it came in" if way.interface == self._interface else "another interface"
        self._say("out", f"{way.source} → {way.destination} by {self._names.interface(way.interface)}, {how}")

    def _link(self, interface: int, mac: bytes, vlan: int, mtu: int) -> str:
        tag = f", VLAN {vlan}" if vlan else ""
        return f"{mac.hex(':')} on {self._names.interface(interface)}{tag}, MTU {mtu}"

    def _say(self, step: str, what: str) -> None:
        self.told.steps.append(Step(step, what))


def _called(address: IPv4Address, ours: Address) -> str:
    return f"{address} is a VIP" if ours.role is Role.VIP else f"{address} is SNAT address {ours.index + 1}"
