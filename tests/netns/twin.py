"""Twin gateways between a client's wire and a member's: the same frames in, what comes out as plain fields.

It knows nftables' NAT and the gateway program only as two things that stand on the same links; what the
frames are, and which differences are right, is the test's.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import struct
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from tests.netns.clients import RawPort
from tests.netns.gateway import Gateway
from tests.netns.lab import (
    CLIENT,
    GATEWAY_CLIENT_SIDE,
    GATEWAY_MEMBER_SIDE,
    MEMBER_TCP_PORT,
    MEMBER_UDP_PORT,
    MEMBERS,
    SHOP_VIP,
    SNATS,
    VPC,
    XDP_PASS,
    load_program,
    set_sysctls,
    switch_tx_checksum_off,
    wait_until_forwarding,
)
from tests.netns.namespace import Namespace

VIP, SNAT, MEMBER = SHOP_VIP, SNATS[0], MEMBERS["member-1"]
WEB_PORT, RESOLVER_PORT = 80, 53
OTHER_SIDE = {"client": "member", "member": "client"}
MACS = {
    ("client", "eth0"): "02:00:00:00:00:07",
    ("gateway", "eth0"): "02:00:00:00:01:00",
    ("gateway", "eth1"): "02:00:00:00:01:01",
    ("member", "eth0"): "02:00:00:00:00:11",
}
NEVER = 3600  # seconds: what ends by silence would send its frames into another scenario
GATEWAY_INTERFACES = {"client": "eth0", "member": "eth1"}

CONFIGURATION = f"""
[gateway]
interfaces = ["eth0", "eth1"]
snat_addresses = ["{SNAT}"]
syn_sent_timeout = {NEVER}
syn_received_timeout = {NEVER}
closing_timeout = {NEVER}

[networks.vpc]
kind = "local"
cidrs = ["{VPC}"]

[load_balancers.shop]
vip = "{VIP}"
ip_target_enable = true

[listeners.web]
load_balancer = "shop"
protocol = "TCP"
port = {WEB_PORT}
pool = "web"
idle_timeout = {NEVER}

[listeners.resolver]
load_balancer = "shop"
protocol = "UDP"
port = {RESOLVER_PORT}
pool = "resolver"
idle_timeout = {NEVER}

[pools.web]
protocol = "TCP"
members = [{{ address = "{MEMBER}", port = {MEMBER_TCP_PORT}, max_connections = 1000 }}]

[pools.resolver]
protocol = "UDP"
members = [{{ address = "{MEMBER}", port = {MEMBER_UDP_PORT}, max_connections = 1000 }}]
"""

RULES = f"""
table ip twin {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        ip daddr {VIP} tcp dport {WEB_PORT} dnat to {MEMBER}:{MEMBER_TCP_PORT}
        ip daddr {VIP} udp dport {RESOLVER_PORT} dnat to {MEMBER}:{MEMBER_UDP_PORT}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat
        oifname "eth1" ip protocol {{ tcp, udp }} snat to {SNAT}:32768-65535
    }}
}}
"""
KERNEL_SETTINGS = {
    "netfilter/nf_conntrack_checksum": 1,  # what is corrupt belongs to no connection
    "netfilter/nf_conntrack_tcp_be_liberal": 0,  # nor what is outside of the window
    "netfilter/nf_conntrack_tcp_ignore_invalid_rst": 0,
    "netfilter/nf_conntrack_tcp_loose": 0,  # a connection begins with its SYN
    "ipv4/icmp_ratelimit": 0,  # an error for each packet that deserves one
    "ipv4/icmp_msgs_per_sec": 100_000,
    "ipv4/icmp_msgs_burst": 100_000,
}

ETHTOOL_SGRO = 0x2C
SIOCETHTOOL = 0x8946
ICMP_QUOTING = (3, 11, 12)
# Whatever the twins are asked between the frames of a scenario is told from them by these.
MARKER_PORT = 9
MARKER = b"marker"
MARKER_IDS = range(0xF000, 0x10000)


class Links:
    """client ── gateway ── member: the ends hold no address and answer nothing, the gateway knows their MACs.

    It can stand in for a lab where only its namespaces are asked for.
    """

    def __init__(self, client_mtu: int, member_mtu: int, *, forward: bool) -> None:
        self.namespaces = {role: Namespace(role) for role in ("client", "gateway", "member")}
        netlink = {role: namespace.netlink() for role, namespace in self.namespaces.items()}
        try:
            for role, namespace in self.namespaces.items():
                set_sysctls(namespace, forward=forward and role == "gateway")
            self._cable(netlink, "client", client_mtu, GATEWAY_CLIENT_SIDE, CLIENT)
            self._cable(netlink, "member", member_mtu, GATEWAY_MEMBER_SIDE, MEMBER)
            wait_until_forwarding(netlink)
        except BaseException:
            self.close()
            raise
        finally:
            for control in netlink.values():
                control.close()

    def __enter__(self) -> Links:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, role: str) -> Namespace:
        return self.namespaces[role]

    def close(self) -> None:
        while self.namespaces:
            self.namespaces.popitem()[1].close()

    def _cable(self, netlink: dict[str, Any], side: str, mtu: int, gateway: str, end: str) -> None:
        near = GATEWAY_INTERFACES[side]
        netlink[side].link(
            "add",
            ifname="eth0",
            index=100,  # not the other end's: see Lab
            kind="veth",
            peer={"ifname": near, "net_ns_fd": self["gateway"].fd},
        )
        program = load_program(XDP_PASS)
        try:
            for role, name in (("gateway", near), (side, "eth0")):
                control = netlink[role]
                index = control.link_lookup(ifname=name)[0]
                control.link("set", index=index, address=MACS[role, name], mtu=mtu)
                # In both twins, for one queue per interface that keeps frames in order; the gateway program
                # takes the place of those on the gateway.
                control.link("set", index=index, xdp_fd=program)
                switch_tx_checksum_off(self[role], name)
                switch_gro_off(self[role], name)
                control.link("set", index=index, state="up")
        finally:
            os.close(program)
        index = netlink["gateway"].link_lookup(ifname=near)[0]
        netlink["gateway"].addr("add", index=index, address=gateway, prefixlen=24)
        netlink["gateway"].neigh("add", dst=end, lladdr=MACS[side, "eth0"], ifindex=index, state="permanent")


def switch_gro_off(namespace: Namespace, interface: str) -> None:
    """Have the kernel hand frames up one by one: a held-back TCP segment would be overtaken."""
    value = array("I", [ETHTOOL_SGRO, 0])
    request = struct.pack("16sP16x", interface.encode(), value.buffer_info()[0])
    with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCETHTOOL, request)


@contextmanager
def nftables(client_mtu: int, member_mtu: int) -> Iterator[Twin]:
    """The kernel's own full NAT, its settings spelled out; it holds VIP and SNAT address itself."""
    with Links(client_mtu, member_mtu, forward=True) as links:
        gateway = links["gateway"]
        with gateway.netlink() as control:
            index = control.link_lookup(ifname="eth1")[0]
            for address in (VIP, SNAT):
                control.addr("add", index=index, address=address, prefixlen=32)
        gateway.run(["nft", "-f", "-"], input=RULES.encode())
        with gateway:  # /proc/sys/net shows the namespace of the calling thread
            for name, value in KERNEL_SETTINGS.items():
                Path("/proc/sys/net", name).write_text(str(value))
        with Twin(links) as twin:
            yield twin


@contextmanager
def ipbackend(client_mtu: int, member_mtu: int) -> Iterator[Twin]:
    """The gateway program, run as in the lab; afterwards its books must balance."""
    with Links(client_mtu, member_mtu, forward=False) as links:
        for name in GATEWAY_INTERFACES.values():
            links["gateway"].run(["ip", "link", "set", "dev", name, "xdp", "off"])
        with Gateway(links, CONFIGURATION, f"oracle-{client_mtu}-{member_mtu}") as gateway:  # type: ignore[arg-type]
            with Twin(links) as twin:
                yield twin
            assert gateway.command("audit") == "clean\n"


@dataclass(frozen=True)
class Send:
    """A datagram that one side puts on its wire; the ports and addresses that NAT chose are filled in.

    `fragment` cuts it into fragments of so many bytes of payload, the last one first if `backwards`.
    """

    side: str
    datagram: Packet
    fragment: int = 0
    backwards: bool = False


@dataclass(frozen=True)
class Error:
    """An ICMP error that `source`, on this side, sends about the last datagram that came out there.

    `rest` is the last half of its header; `quoted`, how many bytes after the IP header it quotes (None: all);
    `damage` is added to its checksum.
    """

    side: str
    source: str
    type: int
    code: int
    rest: int = 0
    quoted: int | None = 8
    ttl: int = 64
    damage: int = 0


Step = Send | Error
Fields = dict[str, object]
"""A frame that came out: where, and each field of it; what differs by nature has a word in its place."""


class Twin:
    """One gateway and the two wires beside it."""

    def __init__(self, links: Links) -> None:
        self.ports = {side: RawPort(links[side], "eth0") for side in OTHER_SIDE}
        self._ids = itertools.cycle(MARKER_IDS)
        self._marker_snat = (SNAT, 0)

    def __enter__(self) -> Twin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for port in self.ports.values():
            port.close()

    def play(self, steps: Sequence[Step], client_port: int) -> list[list[Fields]]:
        """For each step the frames that came out of the gateway, on either side."""
        self._settle("client")  # opens the markers' own connection, if it is not open
        self._settle("member")
        exchange = Exchange(client_port)
        answers = []
        for step in steps:
            for datagram in exchange.datagrams(step):
                self.send(step.side, datagram)
            self._settle(step.side)
            answers.append(
                [fields for side in OTHER_SIDE for fields in exchange.describe(step, side, self._taken(side))]
            )
        return answers

    def send(self, side: str, datagram: bytes) -> None:
        macs = Ether(src=MACS[side, "eth0"], dst=MACS["gateway", GATEWAY_INTERFACES[side]], type=0x0800)
        self.ports[side].send(bytes(macs) + datagram)

    def _settle(self, side: str) -> None:
        """Return when all that was sent on `side` has had its effect: three markers follow it on its roads.

        One goes through to the other side, one comes back as the gateway's own answer, and one as its kernel's.
        """
        number = next(self._ids)
        there = self._marker_snat if side == "member" else (VIP, RESOLVER_PORT)
        here = (CLIENT, MARKER_PORT) if side == "client" else (MEMBER, MEMBER_UDP_PORT)
        for ttl in (64, 1):
            datagram = IP(src=here[0], dst=there[0], id=number, ttl=ttl) / UDP(sport=here[1], dport=there[1])
            self.send(side, bytes(datagram / Raw(MARKER)))
        interface = {"client": GATEWAY_CLIENT_SIDE, "member": GATEWAY_MEMBER_SIDE}[side]
        self.send(side, bytes(IP(src=here[0], dst=interface) / ICMP(id=number)))

        through = self.ports[OTHER_SIDE[side]].expect(lambda frame: number == marker_of(frame))
        if side == "client":
            self._marker_snat = (through[IP].src, through[UDP].sport)
        for kind in (11, 0):
            self.ports[side].expect(lambda frame, kind=kind: number == marker_of(frame) and frame[ICMP].type == kind)

    def _taken(self, side: str) -> list[Packet]:
        port = self.ports[side]
        return [port.expect(lambda _: True) for frame in port.arrived()]


def marker_of(frame: Packet) -> int | None:
    """The number of the marker that a frame is, or that it answers."""
    if IP not in frame:
        return None
    if ICMP not in frame:
        return frame[IP].id if bytes(frame).endswith(MARKER) else None
    inner = frame[ICMP]
    number = inner.payload.id if inner.type in ICMP_QUOTING else inner.id
    return number if number in MARKER_IDS else None


class Exchange:
    """What one scenario has seen so far: the ports in use, what was sent, and what came out last."""

    def __init__(self, client_port: int) -> None:
        self._client_port = client_port
        self._snat: tuple[str, int] | None = None
        self._sent: dict[str, list[bytes]] = {side: [] for side in OTHER_SIDE}
        self._last: dict[str, bytes] = {}

    def datagrams(self, step: Step) -> list[bytes]:
        """The step as it goes on the wire."""
        whole = self._filled(step) if isinstance(step, Send) else self._error(step)
        pieces = [bytes(whole)]
        self._sent[step.side] += pieces
        if isinstance(step, Send) and step.fragment:
            pieces = [bytes(piece) for piece in fragment(IP(pieces[0]), step.fragment)]
            return pieces[::-1] if step.backwards else pieces
        return pieces

    def _filled(self, step: Send) -> Packet:
        datagram = step.datagram.copy()
        for kind in (TCP, UDP):
            if kind in datagram and step.side == "client":
                datagram[kind].sport = self._client_port
            elif kind in datagram and self._snat:
                datagram[IP].dst, datagram[kind].dport = self._snat
        return datagram

    def _error(self, step: Error) -> Packet:
        about = self._last[step.side]
        header = (about[0] & 15) * 4
        quoted = about if step.quoted is None else about[: header + step.quoted]
        start, end = bytes((step.type, step.code)), struct.pack("!I", step.rest) + quoted
        check = (checksum(start + bytes(2) + end) + step.damage) & 0xFFFF
        outside = IP(src=step.source, dst=IP(about).src, proto=1, id=77, ttl=step.ttl)
        return outside / Raw(start + struct.pack("!H", check) + end)

    def describe(self, step: Step, side: str, frames: list[Packet]) -> list[Fields]:
        """The frames as fields, fragments of a datagram as that datagram."""
        described = []
        for link, pieces in datagrams_of(frames):
            datagram = joined(pieces)
            if datagram is None:
                described.append({"side": side, "what": "part of a datagram"})
                continue
            self._last[side] = datagram
            ip = IP(datagram)
            if side == "member" and ip.proto in (6, 17) and ip.src == SNAT:
                self._snat = (ip.src, ip.payload.sport)
            fields: Fields = {"side": side, **link, **self._fields(side, datagram)}
            if ip.proto == 1 and isinstance(step, Send):
                fields["IP.id"] = "another"  # made by the gateway, whatever it chose
            if not all(IP(piece).chksum == recomputed(piece) for piece in pieces):
                fields["IP.chksum"] = "wrong"
            described.append(fields)
        return described

    def _fields(self, side: str, datagram: bytes) -> Fields:
        ip = IP(datagram)
        body = datagram[ip.ihl * 4 :]
        fields = self._header(ip)
        if ip.proto == 1:
            fields |= self._icmp(side, body)
        else:
            fields |= self._transport(ip)
            fields["payload"] = bytes(ip.payload.payload).hex()
        return fields

    def _header(self, ip: Packet) -> Fields:
        fields: Fields = {f"IP.{name}": getattr(ip, name) for name in ("ihl", "tos", "len", "ttl", "proto")}
        fields["IP.flags"] = str(ip.flags) or "none"
        sent = {IP(datagram).id for datagrams in self._sent.values() for datagram in datagrams}
        fields["IP.id"] = ip.id if ip.id in sent else "another"
        fields["IP.chksum"] = "right" if ip.chksum == recomputed(bytes(ip)) else "wrong"
        fields["IP.options"] = bytes(ip)[20 : ip.ihl * 4].hex()
        fields["IP.src"], fields["IP.dst"] = ip.src, ip.dst
        return fields

    def _transport(self, ip: Packet) -> Fields:
        layer = ip.payload
        kind = layer.name
        fields: Fields = {"what": f"TCP {layer.flags or 'without flags'}" if kind == "TCP" else kind}
        names = ("seq", "ack", "dataofs", "reserved", "window", "urgptr") if kind == "TCP" else ("len",)
        fields |= {f"{kind}.{name}": getattr(layer, name) for name in names}
        if kind == "TCP":
            fields["TCP.options"] = bytes(layer)[20 : layer.dataofs * 4].hex()
        fields[f"{kind}.chksum"] = checksum_of(ip)
        fields[f"{kind}.sport"], fields[f"{kind}.dport"] = self._name(layer.sport), self._name(layer.dport)
        return fields

    def _icmp(self, side: str, body: bytes) -> Fields:
        kind, code, rest = struct.unpack_from("!BB2xI", body)
        fields: Fields = {"what": f"ICMP {kind}/{code}", "ICMP.rest": f"{rest:08x}"}
        fields["ICMP.chksum"] = "wrong" if checksum(body) else "right"
        if kind not in ICMP_QUOTING:
            return fields | {"payload": body[8:].hex()}
        header = (body[8] & 15) * 4
        inner, quoted = IP(body[8 : 8 + header]), body[8 + header :]
        fields |= {f"quoted {name}": value for name, value in self._header(inner).items()}
        fields["quoted bytes"] = len(quoted)
        # Its ports and checksum must be again those that the receiver of the error had sent.
        bodies = [sent[(sent[0] & 15) * 4 :] for sent in self._sent[side]]
        as_sent = any(sent.startswith(quoted) for sent in bodies)
        fields["quoted transport"] = "as sent" if as_sent else changed(quoted, bodies)
        return fields

    def _name(self, port: int) -> str | int:
        names = {self._client_port: "client port"}
        if self._snat:
            names[self._snat[1]] = "SNAT port"
        return names.get(port, port)


def datagrams_of(frames: list[Packet]) -> list[tuple[Fields, list[bytes]]]:
    """IP datagrams, each with its link's addresses and all its pieces, in the order of their first ones."""
    found: dict[object, tuple[Fields, list[bytes]]] = {}
    for number, frame in enumerate(frames):
        if IP not in frame or marker_of(frame) is not None:
            continue
        ip = frame[IP]
        datagram = bytes(frame)[14 : 14 + ip.len]
        key = (ip.src, ip.dst, ip.id, ip.proto) if ip.frag or ip.flags.MF else number
        found.setdefault(key, ({"Ether.src": frame.src, "Ether.dst": frame.dst}, []))[1].append(datagram)
    return list(found.values())


def joined(pieces: list[bytes]) -> bytes | None:
    """The datagram that fragments are of; None if some are missing."""
    if len(pieces) == 1 and not IP(pieces[0]).frag and not IP(pieces[0]).flags.MF:
        return pieces[0]
    body = b""
    ordered = sorted((IP(piece) for piece in pieces), key=lambda piece: piece.frag)
    for piece in ordered:
        if piece.frag * 8 != len(body):
            return None
        body += bytes(piece)[piece.ihl * 4 :]
    if ordered[-1].flags.MF:
        return None
    header = IP(bytes(ordered[0])[: ordered[0].ihl * 4])
    header.flags.MF = 0
    header.len = header.ihl * 4 + len(body)
    del header.chksum
    return bytes(header) + body


def recomputed(datagram: bytes) -> int:
    """The header checksum that an IP datagram should have."""
    header = IP(datagram[: (datagram[0] & 15) * 4])
    del header.chksum
    return int(IP(bytes(header)).chksum)


def checksum_of(ip: Packet) -> str:
    """Whether the checksum of TCP or UDP is right, wrong or, for UDP, none."""
    fresh = ip.copy()
    have = fresh.payload.chksum
    if ip.proto == 17 and not have:
        return "none"
    del fresh.payload.chksum
    return "right" if IP(bytes(fresh)).payload.chksum == have else "wrong"


def changed(quoted: bytes, sent: list[bytes]) -> str:
    """What is not as sent in the transport header and payload that an error quotes."""
    for body in sent:
        places = [place for place, pair in enumerate(zip(quoted, body, strict=False)) if pair[0] != pair[1]]
        if len(quoted) <= len(body) and {16, 17}.issuperset(places):
            return "TCP.chksum not as sent"
    return quoted.hex()


def summary(fields: Fields) -> str:
    wrong = [f", {name} wrong" for name, value in fields.items() if value == "wrong"]
    return f"{fields['what']} to the {fields['side']}{''.join(wrong)}"


def differences(kernel: list[list[Fields]], ours: list[list[Fields]]) -> list[str]:
    """What came out of one twin otherwise than of the other, one line each, the kernel's first."""
    lines = []
    for number, (of_kernel, of_ours) in enumerate(zip(kernel, ours, strict=True), 1):
        only_kernel = [fields for fields in of_kernel if summary(fields) not in map(summary, of_ours)]
        only_ours = [fields for fields in of_ours if summary(fields) not in map(summary, of_kernel)]
        lines += [f"{number}: kernel only: {summary(fields)}" for fields in only_kernel]
        lines += [f"{number}: ipbackend only: {summary(fields)}" for fields in only_ours]
        both_kernel = [fields for fields in of_kernel if fields not in only_kernel]
        both_ours = [fields for fields in of_ours if fields not in only_ours]
        if len(both_kernel) != len(both_ours):
            lines.append(f"{number}: {len(both_kernel)} frames | {len(both_ours)} frames")
        for theirs, mine in zip(both_kernel, both_ours, strict=False):
            lines += [
                f"{number}: {name} {theirs.get(name)} | {mine.get(name)}"
                for name in dict.fromkeys((*theirs, *mine))
                if theirs.get(name) != mine.get(name)
            ]
    return lines
