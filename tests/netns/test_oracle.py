"""The kernel's own NAT as an oracle: one exchange through nftables and through ipbackend, compared frame by frame.

Every difference stands in DIFFERENCES, with why it is right or accepted, and is asserted to be exactly that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.packet import Packet, Raw

from tests.netns.lab import CLIENT
from tests.netns.twin import (
    MEMBER,
    MEMBER_TCP_PORT,
    MEMBER_UDP_PORT,
    OTHER_SIDE,
    RESOLVER_PORT,
    SNAT,
    VIP,
    WEB_PORT,
    Error,
    Fields,
    Send,
    Step,
    Twin,
    differences,
    ipbackend,
    nftables,
)

pytestmark = pytest.mark.root

CLIENT_ROUTER = "198.51.100.1"
MEMBER_ROUTER = "10.0.0.2"
NOBODYS_PORT = 65000
FIRST_CLIENT_PORT = 20000  # a port for each scenario, below all SNAT ports
NARROW_MEMBERS, NARROW_CLIENTS = (1500, 1400), (1400, 1500)
"""MTUs of the client's link and of the member's."""
PORT_UNREACHABLE = (3, 3, 0)
ICMP_ERRORS = (
    (3, 0, 0),
    (3, 1, 0),
    PORT_UNREACHABLE,
    (3, 4, 1300),  # fragmentation needed: the MTU
    (3, 13, 0),
    (11, 0, 0),
    (12, 0, 20 << 24),  # parameter problem: the pointer
)
"""Type, code and rest of the header."""
Header = dict[str, object]
"""Fields of an IP header."""
Twins = dict[tuple[int, int], tuple[Twin, Twin]]
"""By MTUs: the kernel's and ours."""


def client(flags: str, seq: int, ack: int = 0, payload: bytes = b"", ip: Header | None = None, **more: object) -> Send:
    """A segment of the client's, to the VIP."""
    header = {"sport": 1, "dport": WEB_PORT, "flags": flags, "seq": seq, "ack": ack, **more}
    return Send("client", from_client(ip) / TCP(**header) / Raw(payload))


def member(flags: str, seq: int, ack: int = 0, payload: bytes = b"", ip: Header | None = None, **more: object) -> Send:
    """A segment of the member's."""
    header = {"sport": MEMBER_TCP_PORT, "dport": NOBODYS_PORT, "flags": flags, "seq": seq, "ack": ack, **more}
    return Send("member", from_member(ip) / TCP(**header) / Raw(payload))


def ask(payload: bytes = b"question", ip: Header | None = None, **more: object) -> Send:
    """A UDP datagram of the client's."""
    return Send("client", from_client(ip) / UDP(**{"sport": 1, "dport": RESOLVER_PORT, **more}) / Raw(payload))


def answer(payload: bytes = b"answer", ip: Header | None = None, **more: object) -> Send:
    """A UDP datagram of the member's."""
    return Send(
        "member", from_member(ip) / UDP(**{"sport": MEMBER_UDP_PORT, "dport": NOBODYS_PORT, **more}) / Raw(payload)
    )


def from_client(ip: Header | None) -> Packet:
    return IP(**{"src": CLIENT, "dst": VIP, "id": 7, **(ip or {})})


def from_member(ip: Header | None) -> Packet:
    """To the SNAT address, and where no connection's port takes its place, to a port that nobody has."""
    return IP(**{"src": MEMBER, "dst": SNAT, "id": 8, **(ip or {})})


def pieces(send: Send, length: int, backwards: bool = False) -> Send:
    return Send(send.side, send.datagram, length, backwards)


HANDSHAKE = (
    client("S", 1000),
    member("SA", 9000, 1001),
    client("A", 1001, 9001),
)
REQUEST = client("PA", 1001, 9001, b"GET /")
RESPONSE = member("PA", 9001, 1006, b"200 OK")
CLOSED = (
    *HANDSHAKE,
    client("FA", 1001, 9001),
    member("FA", 9001, 1002),
    client("A", 1002, 9002),
)
OPTIONS = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (11, 0)), ("NOP", None), ("WScale", 7)]
ANSWERED = [("MSS", 1400), ("SAckOK", b""), ("Timestamp", (22, 11)), ("NOP", None), ("WScale", 5)]
STAMPS = [("NOP", None), ("NOP", None), ("Timestamp", (12, 22))]
SELECTIVE = [*STAMPS, ("NOP", None), ("NOP", None), ("SAck", (9101, 9201))]
SLICES = bytes(range(256)) * 4
ROUTER_ALERT = IPOption(b"\x94\x04\x00\x00")
RECORD_ROUTE = IPOption(b"\x07\x0b\x04" + bytes(8))
SOURCE_ROUTES = [IPOption(kind + b"\x07\x04\x0a\x00\x00\x02") for kind in (b"\x83", b"\x89")]
"""Loose and strict, by way of the member's router."""
UNKNOWN_TOO_LONG = IPOption(b"\x99\x20\x00\x00")
FROM = {
    "member": ("member", MEMBER),
    "member-router": ("member", MEMBER_ROUTER),
    "client": ("client", CLIENT),
    "client-router": ("client", CLIENT_ROUTER),
}


@dataclass(frozen=True)
class Scenario:
    """Frames in order, and where each comes out of the kernel: m(ember), c(lient), - nowhere."""

    steps: tuple[Step, ...]
    kernel: str
    mtus: tuple[int, int] = NARROW_MEMBERS


def errors() -> dict[str, Scenario]:
    """ICMP errors of each end, and of a router on its side, about the last datagram that came out there."""
    found = {}
    for (who, (side, source)), quoted in itertools.product(FROM.items(), (8, None)):
        about = "8-bytes" if quoted else "all"
        told = tuple(Error(side, source, *numbers, quoted) for numbers in ICMP_ERRORS)
        out = OTHER_SIDE[side][0] * len(told)
        found[f"{who}-s-errors-about-{about}-of-udp"] = Scenario((ask(), answer(), *told, ask()), f"mc{out}m")
        found[f"{who}-s-errors-about-{about}-of-tcp"] = Scenario(
            (*HANDSHAKE, REQUEST, RESPONSE, *told, REQUEST), f"mcmmc{out}m"
        )
    return found


def unrelated(quoted: Packet) -> Send:
    """A port unreachable of the member's router's, about a datagram that nobody sent."""
    return Send("member", IP(src=MEMBER_ROUTER, dst=SNAT, id=77) / ICMP(type=3, code=3) / quoted)


SCENARIOS = {
    # Connections from beginning to end.
    "closed-by-client": Scenario(
        (
            *HANDSHAKE,
            REQUEST,
            RESPONSE,
            client("A", 1006, 9007),
            client("FA", 1006, 9007),
            member("A", 9007, 1007),
            member("FA", 9007, 1007),
            client("A", 1007, 9008),
        ),
        "mcmmcmmccm",
    ),
    "closed-by-member": Scenario(
        (*HANDSHAKE, REQUEST, RESPONSE, member("FA", 9007, 1006), client("FA", 1006, 9008), member("A", 9008, 1007)),
        "mcmmccmc",
    ),
    "closed-by-both-at-once": Scenario(
        (
            *HANDSHAKE,
            client("FA", 1001, 9001),
            member("FA", 9001, 1001),
            client("A", 1002, 9002),
            member("A", 9002, 1002),
        ),
        "mcmmcmc",
    ),
    "last-fin-again": Scenario((*CLOSED, member("FA", 9001, 1002), client("A", 1002, 9002)), "mcmmcmcm"),
    "half-closed-by-client": Scenario(
        (
            *HANDSHAKE,
            client("FA", 1001, 9001),
            member("PA", 9001, 1002, b"more"),
            client("A", 1002, 9005),
            member("PA", 9005, 1002, b"more"),
        ),
        "mcmmcmc",
    ),
    "half-closed-by-member": Scenario(
        (
            *HANDSHAKE,
            member("FA", 9001, 1001),
            client("PA", 1001, 9002, b"more"),
            member("A", 9002, 1005),
            client("PA", 1005, 9002, b"more"),
        ),
        "mcmcmcm",
    ),
    "reset-by-client": Scenario((*HANDSHAKE, REQUEST, client("R", 1006)), "mcmmm"),
    "reset-by-member": Scenario((*HANDSHAKE, REQUEST, member("RA", 9001, 1006)), "mcmmc"),
    "refused-by-member": Scenario((client("S", 1000), member("RA", 0, 1001)), "mc"),
    "given-up-by-client": Scenario((client("S", 1000), client("R", 1001)), "mm"),
    "late-data-after-reset-by-client": Scenario(
        (*HANDSHAKE, client("R", 1001), member("PA", 9001, 1001, b"late")), "mcmmc"
    ),
    "late-data-after-reset-by-member": Scenario(
        (*HANDSHAKE, member("R", 9001), client("PA", 1001, 9001, b"late")), "mcmcm"
    ),
    "reset-out-of-window": Scenario((*HANDSHAKE, client("R", 900_001_000), REQUEST, RESPONSE), "mcm-mc"),
    "data-out-of-window": Scenario((*HANDSHAKE, client("PA", 900_001_000, 9001, b"far"), REQUEST), "mcmcm"),
    "data-on-syn": Scenario(
        (client("S", 1000, payload=b"hello"), member("SA", 9000, 1006), client("A", 1006, 9001)), "mcm"
    ),
    "syn-again": Scenario(
        (
            client("S", 1000),
            client("S", 1000),
            member("SA", 9000, 1001),
            member("SA", 9000, 1001),
            client("A", 1001, 9001),
        ),
        "mmccm",
    ),
    "both-open-at-once": Scenario(
        (client("S", 1000), member("S", 9000), client("SA", 1000, 9001), member("SA", 9000, 1001), REQUEST), "mcmcm"
    ),
    "syn-within-a-connection": Scenario((*HANDSHAKE, client("S", 5000), member("A", 9001, 1001), REQUEST), "mcmmcm"),
    "new-connection-after-close": Scenario(
        (*CLOSED, client("S", 500_000), member("SA", 700_000, 500_001), client("A", 500_001, 700_001)), "mcmmcmmcm"
    ),
    "new-connection-after-reset": Scenario(
        (
            *HANDSHAKE,
            client("R", 1001),
            client("S", 500_000),
            member("SA", 700_000, 500_001),
            client("A", 500_001, 700_001),
        ),
        "mcmmmcm",
    ),
    # What a segment carries.
    "tcp-options": Scenario(
        (
            client("S", 1000, options=OPTIONS),
            member("SA", 9000, 1001, options=ANSWERED),
            client("A", 1001, 9001, options=STAMPS),
            member("PA", 9101, 1001, b"x" * 100, options=STAMPS),
            client("A", 1001, 9001, options=SELECTIVE),
        ),
        "mcmcm",
    ),
    "tcp-urgent": Scenario(
        (*HANDSHAKE, client("PAU", 1001, 9001, b"now", urgptr=2), member("PAU", 9001, 1004, b"now", urgptr=3)), "mcmmc"
    ),
    "tcp-ecn": Scenario(
        (
            client("SEC", 1000),
            member("SAE", 9000, 1001),
            client("PAC", 1001, 9001, b"data", ip={"tos": 2}),
            member("PAE", 9001, 1005, b"data", ip={"tos": 3}),
        ),
        "mcmc",
    ),
    "tcp-accurate-ecn-and-reserved-bits": Scenario(
        (client("SECN", 1000, reserved=1), member("SAN", 9000, 1001), client("PAN", 1001, 9001, b"x", reserved=3)),
        "mcm",
    ),
    "tcp-syn-fin": Scenario((client("SF", 1000),), "c"),
    "tcp-no-flags": Scenario((*HANDSHAKE, client("", 1001, 9001, b"x"), REQUEST), "mcmcm"),
    "tcp-wrong-checksum": Scenario(
        (
            *HANDSHAKE,
            client("PA", 1001, 9001, b"x", chksum=0x1234),
            member("PA", 9001, 1001, b"x", chksum=0x1234),
            REQUEST,
        ),
        "mcm--m",
    ),
    # UDP.
    "udp": Scenario((ask(), answer(), ask(b"again"), answer(b"again"), answer(b"unasked")), "mcmcc"),
    "udp-without-checksum": Scenario((ask(chksum=0), answer(chksum=0), ask(), answer()), "mcmc"),
    "udp-of-no-bytes": Scenario((ask(b""), answer(b""), ask(b"", chksum=0), answer(b"", chksum=0)), "mcmc"),
    "udp-wrong-checksum": Scenario((ask(), ask(chksum=0x1234), answer(chksum=0x1234), ask()), "m--m"),
    "udp-shorter-than-its-datagram": Scenario((ask(b"12345678", len=12), answer(b"12345678", len=12), ask()), "mcm"),
    # What an IP header carries.
    "dscp-and-ecn": Scenario((ask(ip={"tos": 0xB8}), answer(ip={"tos": 0x03}), ask(ip={"tos": 0xFF})), "mcm"),
    "dont-fragment": Scenario(
        (
            ask(ip={"flags": "DF"}),
            answer(ip={"flags": "DF"}),
            ask(ip={"flags": 0}),
            ask(ip={"flags": "evil"}),
            ask(ip={"flags": "evil+DF"}),
        ),
        "mcmmm",
    ),
    "ip-id": Scenario((ask(ip={"id": 0xBEEF}), answer(ip={"id": 0}), ask(ip={"id": 0, "flags": "DF"})), "mcm"),
    "udp-router-alert": Scenario((ask(ip={"options": [ROUTER_ALERT]}), answer(ip={"options": [ROUTER_ALERT]})), "mc"),
    "tcp-router-alert": Scenario(
        (client("S", 1000, ip={"options": [ROUTER_ALERT]}), member("SA", 9000, 1001, ip={"options": [ROUTER_ALERT]})),
        "mc",
    ),
    "no-operation-options": Scenario((ask(ip={"options": [IPOption(b"\x01")] * 4}),), "m"),
    "record-route": Scenario((ask(ip={"options": [RECORD_ROUTE]}),), "m"),
    "source-routes": Scenario(
        (ask(), *(ask(ip={"options": [route]}, chksum=0) for route in SOURCE_ROUTES), ask()), "m--m"
    ),
    "option-longer-than-its-header": Scenario((ask(), ask(ip={"options": [UNKNOWN_TOO_LONG]}), ask()), "mcm"),
    "long-lived": Scenario((ask(ip={"ttl": 255}), answer(ip={"ttl": 2})), "mc"),
    # Where a datagram ends here.
    "udp-of-last-hop": Scenario((ask(ip={"ttl": 1}), ask(), ask(ip={"ttl": 1}), answer(ip={"ttl": 1})), "cmcm"),
    "tcp-of-last-hop": Scenario(
        (
            client("S", 1000, ip={"ttl": 1}),
            *HANDSHAKE,
            client("PA", 1001, 9001, b"x" * 100, ip={"ttl": 1}),
            member("PA", 9001, 1001, b"x" * 100, ip={"ttl": 1}),
        ),
        "cmcmcm",
    ),
    "ttl-0": Scenario((ask(), ask(ip={"ttl": 0}), ask()), "mcm"),
    "udp-last-hop-with-options": Scenario((ask(b"x" * 100, ip={"ttl": 1, "options": [ROUTER_ALERT]}),), "c"),
    "tcp-too-big-for-members": Scenario(
        (
            *HANDSHAKE,
            client("PA", 1001, 9001, b"x" * 1460, ip={"flags": "DF"}),
            client("PA", 1001, 9001, b"x" * 1360, ip={"flags": "DF"}),
        ),
        "mcmcm",
    ),
    "udp-too-big-for-members": Scenario(
        (
            ask(b"x" * 1472, ip={"flags": "DF"}),
            ask(b"x" * 1373, ip={"flags": "DF"}),
            ask(b"x" * 1372, ip={"flags": "DF"}),
        ),
        "ccm",
    ),
    "tcp-too-big-for-clients": Scenario(
        (
            *HANDSHAKE,
            member("PA", 9001, 1001, b"x" * 1460, ip={"flags": "DF"}),
            member("PA", 9001, 1001, b"x" * 1360, ip={"flags": "DF"}),
        ),
        "mcmmc",
        NARROW_CLIENTS,
    ),
    "udp-too-big-for-clients": Scenario(
        (ask(), answer(b"x" * 1472, ip={"flags": "DF"}), answer(b"x" * 1372, ip={"flags": "DF"})), "mmc", NARROW_CLIENTS
    ),
    "too-big-and-may-be-cut": Scenario((ask(b"x" * 1472), ask(b"x" * 1372)), "mm"),
    "error-too-big-for-clients": Scenario(
        (ask(b"x" * 1372), Error("member", MEMBER, *PORT_UNREACHABLE, None)), "mc", NARROW_CLIENTS
    ),
    # Of no connection.
    "ack-of-no-connection": Scenario((client("A", 5, 6),), "c"),
    "data-of-no-connection": Scenario((client("PA", 5, 6, b"data"),), "c"),
    "fin-of-no-connection": Scenario((client("F", 5),), "c"),
    "syn-ack-of-no-connection": Scenario((client("SA", 5, 6),), "c"),
    "reset-of-no-connection": Scenario((client("R", 5), client("RA", 5, 6)), "--"),
    "member-s-ack-of-no-connection": Scenario((member("A", 5, 6),), "m"),
    "member-s-syn": Scenario((member("S", 5),), "m"),
    "member-s-reset-of-no-connection": Scenario((member("R", 5),), "-"),
    "member-s-udp-of-no-connection": Scenario((answer(),), "m"),
    "tcp-no-listener": Scenario(
        (client("S", 5, dport=81), client("S", 5, payload=b"hi", dport=81), client("A", 5, 6, dport=81)), "ccc"
    ),
    "udp-no-listener": Scenario((ask(dport=54), ask(b"x" * 1000, dport=54), ask(chksum=0, dport=54)), "ccc"),
    "echo": Scenario((Send("client", IP(src=CLIENT, dst=VIP, id=7) / ICMP(id=5, seq=6) / b"hello"),), "c"),
    # Fragments; compared as the datagrams that they are of.
    "udp-fragments": Scenario(
        (pieces(ask(SLICES, {"id": 101}), 256), pieces(answer(SLICES, {"id": 102}), 256), ask()), "mcm"
    ),
    "udp-fragments-without-checksum": Scenario(
        (pieces(ask(SLICES, {"id": 103}, chksum=0), 304), pieces(answer(SLICES, {"id": 104}, chksum=0), 304)), "mc"
    ),
    "udp-fragments-with-options": Scenario((pieces(ask(SLICES, {"id": 105, "options": [ROUTER_ALERT]}), 304),), "m"),
    "udp-fragments-backwards": Scenario(
        (ask(), pieces(ask(SLICES, {"id": 106}), 304, True), pieces(answer(SLICES, {"id": 107}), 304, True)), "mmc"
    ),
    "udp-fragments-bigger-than-a-link": Scenario(
        (pieces(ask(SLICES * 5, {"id": 108}), 1360), pieces(answer(SLICES * 5, {"id": 109}), 1360)), "mc"
    ),
    "tcp-fragments": Scenario(
        (
            *HANDSHAKE,
            pieces(client("PA", 1001, 9001, SLICES, {"id": 110}), 304),
            pieces(member("PA", 9001, 2025, SLICES, {"id": 111}), 304),
        ),
        "mcmmc",
    ),
    # ICMP errors.
    **errors(),
    "error-of-last-hop": Scenario(
        (
            ask(),
            answer(),
            Error("member", MEMBER, *PORT_UNREACHABLE, ttl=1),
            Error("client", CLIENT, *PORT_UNREACHABLE, ttl=1),
            ask(),
        ),
        "mc--m",
    ),
    "error-with-wrong-checksum": Scenario((ask(), Error("member", MEMBER, *PORT_UNREACHABLE, damage=1), ask()), "m-m"),
    "error-about-too-little": Scenario((ask(), Error("member", MEMBER, *PORT_UNREACHABLE, quoted=7), ask()), "m-m"),
    "error-about-nothing-of-ours": Scenario(
        (
            ask(),
            unrelated(IP(src=SNAT, dst=MEMBER) / UDP(sport=NOBODYS_PORT)),
            unrelated(IP(src=MEMBER, dst=SNAT) / UDP(dport=NOBODYS_PORT)),
            unrelated(IP(src=SNAT, dst=MEMBER) / ICMP()),
            unrelated(IP(src=CLIENT, dst=VIP) / TCP(sport=FIRST_CLIENT_PORT, dport=WEB_PORT)),
            ask(),
        ),
        "m----m",
    ),
    "source-quench-and-redirect": Scenario(
        (ask(), Error("member", MEMBER, 4, 0), Error("member", MEMBER_ROUTER, 5, 1), ask()), "mc-m"
    ),
}


@dataclass(frozen=True)
class Difference:
    """What each twin does in these scenarios, as lines of `differences`, and why ours is right or accepted."""

    kernel: str
    ipbackend: str
    why: str
    seen: dict[str, tuple[str, ...]]


def only(twin: str, side: str, *whats: str) -> tuple[str, ...]:
    """Each of `whats` is "step: frame": it came out of that twin alone."""
    return tuple(f"{what.replace(':', f': {twin} only:')} to the {side}" for what in whats)


def own_errors(*steps: int) -> tuple[str, ...]:
    """Errors that the gateway itself makes in these steps."""
    return tuple(f"{step}: IP.flags none | DF" for step in steps)


DIFFERENCES: tuple[Difference, ...] = (
    # Our own errors.
    Difference(
        kernel="allows its errors to be fragmented",
        ipbackend="sets DF in its errors",
        why="accepted: of 576 bytes at most they meet no smaller link, and with an id of 0 none may be cut (RFC 6864)",
        seen={
            "udp-of-last-hop": own_errors(1, 3, 4),
            "tcp-of-last-hop": own_errors(1, 5, 6),
            "ttl-0": own_errors(2),
            "udp-last-hop-with-options": own_errors(1),
            "tcp-too-big-for-members": own_errors(4),
            "udp-too-big-for-members": own_errors(1, 2),
            "tcp-too-big-for-clients": own_errors(4),
            "udp-too-big-for-clients": own_errors(2),
            "udp-no-listener": own_errors(1, 2, 3),
        },
    ),
    # What is too big.
    Difference(
        kernel="cuts a datagram that may be cut into fragments",
        ipbackend="drops it, counted DROP_TOO_BIG",
        why="accepted: XDP makes one frame of one; TCP sets DF, and so does whoever cares for the path's MTU",
        seen={"too-big-and-may-be-cut": only("kernel", "member", "1: UDP")},
    ),
    Difference(
        kernel="cuts an error that is too big into fragments",
        ipbackend="drops it, counted DROP_TOO_BIG",
        why="accepted for the same reason; an error should not be longer than 576 bytes (RFC 1812, 4.3.2.3)",
        seen={"error-too-big-for-clients": only("kernel", "client", "2: ICMP 3/3")},
    ),
    # Segments that are not the connection's.
    Difference(
        kernel="drops a RST outside of the window",
        ipbackend="passes it on, and keeps the connection",
        why="right: the end that it reaches can tell exactly (RFC 5961, 3), we do not follow windows",
        seen={"reset-out-of-window": only("ipbackend", "member", "4: TCP R")},
    ),
    Difference(
        kernel="passes on what comes after a RST, for 10 s",
        ipbackend="answers it with a RST of the number that its sender expects, if the RST was believed",
        why="right: the connection is counted no more, and a client whose RST its member does not heed had one more",
        seen={
            "late-data-after-reset-by-client": (
                *only("kernel", "client", "5: TCP PA"),
                *only("ipbackend", "member", "5: TCP R"),
            ),
            "late-data-after-reset-by-member": (
                *only("kernel", "member", "5: TCP PA"),
                *only("ipbackend", "client", "5: TCP R"),
            ),
        },
    ),
    Difference(
        kernel="takes data outside of the window for its own, and answers with a RST, which ends the connection",
        ipbackend="passes it on",
        why="right: the member answers with an ACK (RFC 9293, 3.10.7.4); the kernel's RST is a known trap of its NAT",
        seen={
            "data-out-of-window": (
                *only("kernel", "client", "4: TCP R"),
                *only("ipbackend", "member", "4: TCP PA"),
            )
        },
    ),
    Difference(
        kernel="takes a segment without flags for its own, and answers with a RST",
        ipbackend="passes it on",
        why="right: an end drops a segment without ACK (RFC 9293, 3.10.7.4), and no connection has to die of it",
        seen={
            "tcp-no-flags": (
                *only("kernel", "client", "4: TCP RA"),
                *only("ipbackend", "member", "4: TCP without flags"),
            )
        },
    ),
    # What is corrupt.
    Difference(
        kernel="checks checksums (nf_conntrack_checksum=1) and drops what is corrupt",
        ipbackend="forwards it as corrupt as it was",
        why="right: whoever adjusts a checksum by its difference leaves the judgement to the receiver (RFC 1624)",
        seen={
            "tcp-wrong-checksum": (
                "4: ipbackend only: TCP PA to the member, TCP.chksum wrong",
                "5: ipbackend only: TCP PA to the client, TCP.chksum wrong",
            ),
            "udp-wrong-checksum": (
                "2: ipbackend only: UDP to the member, UDP.chksum wrong",
                "3: ipbackend only: UDP to the client, UDP.chksum wrong",
            ),
        },
    ),
    # IP options.
    Difference(
        kernel="enters its own address into a recorded route",
        ipbackend="leaves the option as it is",
        why="accepted: it asks for a router's address, and what is behind a VIP is nobody's business",
        seen={"record-route": ("1: IP.options 070b080a0000010000000000 | 070b04000000000000000000",)},
    ),
    Difference(
        kernel="answers an option that is longer than the header with a parameter problem",
        ipbackend="drops it, counted DROP_MALFORMED",
        why="accepted: who sends such a thing knows, and an error more is a lever more",
        seen={"option-longer-than-its-header": only("kernel", "client", "2: ICMP 12/0")},
    ),
    # Of no connection.
    Difference(
        kernel="answers a member whose packet belongs to no connection, by RST or ICMP, as the SNAT address's owner",
        ipbackend="drops it, counted DROP_NO_CONNECTION",
        why="right: a SNAT address offers nothing, and is silent to who scans it; an expired connection gets its RST",
        seen={
            "member-s-ack-of-no-connection": only("kernel", "member", "1: TCP R"),
            "member-s-syn": only("kernel", "member", "1: TCP RA"),
            "member-s-udp-of-no-connection": only("kernel", "member", "1: ICMP 3/3"),
        },
    ),
    Difference(
        kernel="translates a source quench",
        ipbackend="drops it, counted DROP_ICMP",
        why="right: nobody may send or heed one any more (RFC 6633)",
        seen={"source-quench-and-redirect": only("kernel", "client", "2: ICMP 4/0")},
    ),
    # Fragments.
    Difference(
        kernel="keeps the id of a fragmented datagram",
        ipbackend="draws another for all its fragments",
        why="right: many clients come to a member from few addresses, and their ids would meet (RFC 6864, 5.3)",
        seen={
            "udp-fragments": ("1: IP.id 101 | another", "2: IP.id 102 | another"),
            "udp-fragments-without-checksum": ("1: IP.id 103 | another", "2: IP.id 104 | another"),
            "udp-fragments-with-options": ("1: IP.id 105 | another",),
            "udp-fragments-bigger-than-a-link": ("1: IP.id 108 | another", "2: IP.id 109 | another"),
            "tcp-fragments": ("4: IP.id 110 | another", "5: IP.id 111 | another"),
        },
    ),
    Difference(
        kernel="keeps fragments until the first has come",
        ipbackend="drops those before the first, counted DROP_FRAGMENT; the rest is no datagram",
        why="accepted: XDP keeps no packets; networks rarely turn the order of fragments round",
        seen={
            "udp-fragments-backwards": (
                *only("kernel", "member", "2: UDP"),
                *only("ipbackend", "member", "2: part of a datagram"),
                *only("kernel", "client", "3: UDP"),
                *only("ipbackend", "client", "3: part of a datagram"),
            )
        },
    ),
)


@pytest.fixture(scope="module")
def twins(own_run: None) -> Iterator[Twins]:
    """The kernel's twin and ours."""
    with ExitStack() as stack:
        yield {
            mtus: (stack.enter_context(nftables(*mtus)), stack.enter_context(ipbackend(*mtus)))
            for mtus in (NARROW_MEMBERS, NARROW_CLIENTS)
        }


@pytest.mark.parametrize("name", SCENARIOS)
def test_it_does_as_the_kernel_or_otherwise_as_listed(twins: Twins, name: str) -> None:
    scenario = SCENARIOS[name]
    listed = [difference for difference in DIFFERENCES if name in difference.seen]
    port = FIRST_CLIENT_PORT + list(SCENARIOS).index(name)

    kernel, ours = (twin.play(scenario.steps, port) for twin in twins[scenario.mtus])

    assert "".join(map(way_out, kernel)) == scenario.kernel
    assert sorted(differences(kernel, ours)) == sorted(line for difference in listed for line in difference.seen[name])


def way_out(frames: list[Fields]) -> str:
    """Where the frames of one step came out, as Scenario.kernel has it."""
    return "".join(str(fields["side"])[0] for fields in frames) or "-"


def test_every_difference_names_a_scenario() -> None:
    assert {name for difference in DIFFERENCES for name in difference.seen} <= set(SCENARIOS)
