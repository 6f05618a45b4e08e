"""The kernel's side of a gateway, by netlink: interfaces, addresses, routes, neighbours, the XDP hook.

It does what it is told and reports what is there; it does not know load balancers, maps or what is wanted.
Whatever it puts into the kernel bears a mark, so that it never touches what somebody else put there: routes
carry our protocol number, addresses are a /32 of scope host, a program is only replaced by who holds it.
"""

import errno
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_DUMP_INTR, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import (
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_LINK,
    RTMGRP_NEIGH,
    ndmsg,
    rt_scope,
)
from pyroute2.netlink.rtnl.ifinfmsg import (
    IFF_RUNNING,
    IFF_UP,
    XDP_FLAGS_DRV_MODE,
    XDP_FLAGS_REPLACE,
    XDP_FLAGS_SKB_MODE,
    XDP_FLAGS_UPDATE_IF_NOEXIST,
)

from ipbackend import instruments
from ipbackend.errors import NetworkError

ROUTE_PROTOCOL = 173  # in no rt_protos and no linux/rtnetlink.h
ADDRESS_SCOPE: int = rt_scope["host"]  # so the kernel never chooses one as the source of its own packets
MAIN_TABLE = 254
DUMP_ATTEMPTS = 10
ETHERTYPE_ARP = 0x0806
ETHERTYPE_ALL = 0x0003
INGRESS, EGRESS = 0xFFFF_FFF2, 0xFFFF_FFF3  # of clsact
GUARD = "ipbackend_guard"  # what a filter of ours is called, followed by its program's id
GUARD_PRIORITY = 173
NO_PROGRAM = -1

MODE_FLAGS = {"native": XDP_FLAGS_DRV_MODE, "generic": XDP_FLAGS_SKB_MODE}
MODE_PROGRAM_ID = {"native": "IFLA_XDP_DRV_PROG_ID", "generic": "IFLA_XDP_SKB_PROG_ID"}
MODES = tuple(MODE_FLAGS)  # the better one first

REMEDIES = {
    errno.EPERM: "needs root, or CAP_NET_ADMIN and CAP_NET_RAW",
    errno.EACCES: "needs root, or CAP_NET_ADMIN and CAP_NET_RAW",
    errno.ENODEV: "there is no such interface, see `ip link`",
    errno.ENETDOWN: "the interface is down, see `ip link`",
}

GETS = {"link": RTM_GETLINK, "neigh": RTM_GETNEIGH, "route": RTM_GETROUTE}
GROUPS = RTMGRP_LINK | RTMGRP_NEIGH | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE
MESSAGE = 4096  # bytes read of one notification; only its first 17 matter
FAMILY_OFFSET = 16  # every rtnetlink message begins with its family, after 16 bytes of header
IPV4_OR_LINK = (socket.AF_UNSPEC, socket.AF_INET)


@dataclass(frozen=True)
class Interface:
    """A network interface; `mac` is 6 bytes, or empty where there is no Ethernet; up means with a carrier.

    One that is not `there` any more is as it was last.
    """

    index: int
    name: str
    mac: bytes
    mtu: int
    up: bool
    there: bool = True


@dataclass(frozen=True)
class Address:
    """An address on an interface (its index); `ours` if add_address put it there, in this life or before."""

    address: IPv4Address
    interface: int
    ours: bool


@dataclass(frozen=True)
class Route:
    """A route in the main table through a router on an interface (its index)."""

    cidr: IPv4Network
    next_hop: IPv4Address
    interface: int


@dataclass(frozen=True)
class Neighbour:
    """What the kernel knows of a neighbour on an interface (its index).

    `mac` is empty until one answered, and again when none does any more. Dormant means that the kernel does
    nothing about it (STALE, FAILED) until somebody asks it to: `Network.resolve`.
    """

    address: IPv4Address
    interface: int
    mac: bytes
    dormant: bool

    @property
    def usable(self) -> bool:
        """Whether frames can be sent to it."""
        return len(self.mac) == 6


@dataclass(frozen=True)
class Way:
    """How the kernel would send to an address: through a router or on the link, by an interface (its index)."""

    next_hop: IPv4Address | None
    interface: int
    source: IPv4Address | None


@dataclass(frozen=True)
class Attachment:
    """The XDP program on an interface and the mode it runs in."""

    program_id: int
    mode: str  # "native" or "generic"


class Network:
    """The network namespace of the thread that makes it; to be used by that thread only.

    Every method raises NetworkError where the kernel refuses. Not being needed is no refusal: adding what is
    there and removing what is not return False.
    """

    def __init__(self) -> None:
        with ExitStack() as opened, asking("netlink and packet sockets"):
            # strict_check: the kernel filters dumps, which counts where a routing daemon fills the table.
            self._requests = opened.enter_context(IPRoute(ext_ack=True, strict_check=True))
            self._thread = threading.get_ident()
            self._events = opened.enter_context(
                socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
            )
            self._events.bind((0, GROUPS))
            # Protocol 0: it sends, and nothing is ever queued to it.
            self._frames = opened.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close the sockets; everything put into the kernel stays."""
        self._opened.close()

    def fileno(self) -> int:
        """The descriptor to wait on: readable when `changed` has something to read."""
        return self._events.fileno()

    def changed(self) -> bool:
        """Take in all that was reported since the last call; True if any of it may matter.

        Interfaces, IPv4 addresses, routes and neighbours matter, changes of our own included; so does a
        report that was lost because nobody read for too long, or that cannot be read.
        """
        changed = False
        while True:
            try:
                message = self._events.recv(MESSAGE)
            except BlockingIOError:
                return changed
            except OSError as error:
                changed = True  # what was not told: whoever asks looks at everything
                if error.errno != errno.ENOBUFS:
                    return changed
            else:
                changed = changed or message[FAMILY_OFFSET] in IPV4_OR_LINK

    def interfaces(self) -> dict[str, Interface]:
        """All interfaces by name."""
        found = (_interface(message) for message in self._dump("link"))
        return {interface.name: interface for interface in found}

    def addresses(self) -> set[Address]:
        """All IPv4 addresses."""
        return {
            Address(IPv4Address(message.get_attr("IFA_LOCAL")), message["index"], _is_our_address(message))
            for message in self._dump("addr", family=socket.AF_INET)
        }

    def add_address(self, address: IPv4Address, interface: Interface) -> bool:
        """Take up a /32 and announce it; False if the interface has the address, whoever gave it.

        The kernel answers ARP for it unless sysctl arp_ignore of the interface is 3 or 8.
        """
        if any((have.address, have.interface) == (address, interface.index) for have in self.addresses()):
            return False
        with asking(f"address {address} on {interface.name}"):
            self._ask("addr", "add", index=interface.index, address=str(address), prefixlen=32, scope=ADDRESS_SCOPE)
        self.announce(address, interface)
        return True

    def remove_address(self, address: IPv4Address, interface: Interface) -> bool:
        """Give up an address that add_address took; False if there is none."""
        if Address(address, interface.index, ours=True) not in self.addresses():
            return False
        with asking(f"address {address} on {interface.name}"):
            self._ask("addr", "delete", index=interface.index, address=str(address), prefixlen=32)
        return True

    def announce(self, address: IPv4Address, interface: Interface) -> None:
        """Tell the link once who has the address (an ARP announcement in request form, RFC 5227 section 3).

        Best effort: one that is lost, or sent while the interface is down, is not missed by the kernel.
        """
        if len(interface.mac) != 6:
            return
        ethernet = struct.pack("!6s6sH", b"\xff" * 6, interface.mac, ETHERTYPE_ARP)
        arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, interface.mac, address.packed, bytes(6), address.packed)
        with suppress(OSError):
            self._frames.sendto(ethernet + arp, (interface.name, ETHERTYPE_ARP))

    def send(self, interface: int, frame: bytes) -> None:
        """Put a frame on the link of an interface (its index), past the kernel's routing. Best effort."""
        with suppress(OSError):
            self._frames.sendto(frame, (socket.if_indextoname(interface), 0))

    def routes(self) -> set[Route]:
        """Our routes."""
        ours = self._dump("route", family=socket.AF_INET, table=MAIN_TABLE, proto=ROUTE_PROTOCOL)
        return {route for message in ours if (route := _route(message)) is not None}

    def add_route(self, route: Route) -> bool:
        """Set the way to a CIDR, in place of another of ours; False if there is the very same one.

        A route of somebody else for the CIDR stays what it is: with the same next hop it serves, with another
        NetworkError says so.
        """
        there = self._routes_to(route.cidr)
        if not self._lacks(route, there):
            return False
        verb = "change" if there else "add"
        name = _name(route.interface)
        with asking(
            f"route to {route.cidr} via {route.next_hop} on {name}",
            f"the next hop must be a neighbour on {name}, which must be up and have an address of that network",
        ):
            self._ask("route", verb, **_route_request(route))
        return True

    def lacks(self, route: Route) -> bool:
        """Whether add_route would do anything; NetworkError where it would refuse."""
        return self._lacks(route, self._routes_to(route.cidr))

    def _routes_to(self, cidr: IPv4Network) -> list[Any]:
        messages = self._dump("route", family=socket.AF_INET, table=MAIN_TABLE)
        return [message for message in messages if _cidr(message) == cidr]

    @staticmethod
    def _lacks(route: Route, there: list[Any]) -> bool:
        for message in there:
            if _route(message) == route:
                return False
            if message["proto"] != ROUTE_PROTOCOL:
                raise NetworkError(_foreign_route(route, message))
        return True

    def remove_route(self, route: Route) -> bool:
        """Remove a route of ours; False if there is none."""
        with asking(f"route to {route.cidr} via {route.next_hop}"):
            try:
                self._ask("route", "delete", **_route_request(route))
            except NetlinkError as error:
                if error.code != errno.ESRCH:
                    raise
                return False
        return True

    def neighbours(self) -> dict[tuple[IPv4Address, int], Neighbour]:
        """All IPv4 neighbours by address and interface index."""
        found = (_neighbour(message) for message in self._dump("neigh", family=socket.AF_INET))
        return {(neighbour.address, neighbour.interface): neighbour for neighbour in found}

    def resolve(self, address: IPv4Address, interface: int) -> None:
        """Make the kernel find out, or confirm, the MAC of a neighbour; `changed` tells of the outcome.

        A program that forwards past the kernel leaves its neighbours unused: they go stale and are collected
        at last. Call it every few seconds for whatever is missing or dormant among the next hops. A stale
        entry stays usable meanwhile: it is asked directly after 5 s (sysctl delay_first_probe_time) and given
        up 3 s later; then the next call asks everybody. An entry set by hand is left alone.
        """
        with asking(f"neighbour {address} on interface {interface}", "the interface must exist and be up"):
            if self._is_fixed(address, interface):
                return
            self._ask(
                "neigh", "replace", dst=str(address), ifindex=interface, state=ndmsg.NUD_NONE, flags=ndmsg.NTF_USE
            )

    def _is_fixed(self, address: IPv4Address, interface: int) -> bool:
        """Linux 5.16 and later take a permanent entry for an ordinary one, and lose it, on NTF_USE."""
        try:
            message = self._get("neigh", dst=str(address), ifindex=interface, state=ndmsg.NUD_NONE)
        except NetlinkError as error:
            if error.code != errno.ENOENT:
                raise
            return False
        return bool(message["state"] & (ndmsg.NUD_PERMANENT | ndmsg.NUD_NOARP))

    def path_mtu(self, address: IPv4Address) -> int:
        """Bytes of the largest IP packet on the way to an address: of the route, else of the interface."""
        with asking(f"route to {address}", "there must be one, see `ip route`"):
            message = self._get("route", dst=str(address))
            metrics = message.get_attr("RTA_METRICS")
            mtu = metrics.get_attr("RTAX_MTU") if metrics is not None else None
            return int(mtu) if mtu else _interface(self._link(message.get_attr("RTA_OIF"))).mtu

    def way_to(self, address: IPv4Address) -> Way:
        """The kernel's own way to an address; the data plane goes by the next hop that it is told."""
        with asking(f"route to {address}", "there must be one, see `ip route`"):
            message = self._get("route", dst=str(address))
        next_hop, source = message.get_attr("RTA_GATEWAY"), message.get_attr("RTA_PREFSRC")
        return Way(
            IPv4Address(next_hop) if next_hop else None,
            message.get_attr("RTA_OIF"),
            IPv4Address(source) if source else None,
        )

    def received(self) -> dict[str, int]:
        """How many packets each interface has taken in."""
        links = self._dump("link")
        return {link.get_attr("IFLA_IFNAME"): link.get_attr("IFLA_STATS64")["rx_packets"] for link in links}

    def attached(self, interface: int) -> Attachment | None:
        """The XDP program on an interface (its index)."""
        with asking(f"interface {interface}"):
            xdp = self._link(interface).get_attr("IFLA_XDP")
        for mode, attribute in MODE_PROGRAM_ID.items():
            program_id = xdp.get_attr(attribute) if xdp is not None else None
            if program_id is not None:
                return Attachment(program_id, mode)
        return None

    def attach(self, interface: Interface, program_fd: int, mode: str, expected: int | None) -> str:
        """Attach a program in one step in place of the `expected` one (its descriptor), or of none.

        `mode` is native, generic or auto: the mode of the expected program, else native where the driver can
        and generic elsewhere. Returns the mode taken. A program in another mode cannot be replaced in one
        step, and in between the kernel itself would reset every connection: NetworkError.
        """
        present = self.attached(interface.index) if expected is not None else None
        if present and mode not in ("auto", present.mode):
            raise NetworkError(
                f"interface {interface.name}: our program runs in {present.mode} mode, {mode} is asked for "
                f"(keep the mode, or cut all connections by `ip link set dev {interface.name} xdp off` first)"
            )
        candidates = (present.mode,) if present else MODES if mode == "auto" else (mode,)
        with self._hooking(interface):
            for candidate in candidates:
                try:
                    self._set_program(interface, program_fd, candidate, expected)
                    break
                except NetlinkError as error:
                    if error.code != errno.EOPNOTSUPP or candidate == candidates[-1]:
                        raise
        return candidate

    def detach(self, interface: Interface, expected: int) -> bool:
        """Take the expected program (its descriptor) off an interface; False if there is no program."""
        present = self.attached(interface.index)
        if present is None:
            return False
        with self._hooking(interface):
            self._set_program(interface, NO_PROGRAM, present.mode, expected)
        return True

    def _set_program(self, interface: Interface, program_fd: int, mode: str, expected: int | None) -> None:
        flags = MODE_FLAGS[mode] | (XDP_FLAGS_UPDATE_IF_NOEXIST if expected is None else XDP_FLAGS_REPLACE)
        attributes = [("IFLA_XDP_FD", program_fd), ("IFLA_XDP_FLAGS", flags)]
        if expected is not None:
            attributes.append(("IFLA_XDP_EXPECTED_FD", expected))
        self._ask("link", "set", index=interface.index, xdp={"attrs": attributes})

    @contextmanager
    def _hooking(self, interface: Interface) -> Iterator[None]:
        """Errors of the XDP hook, with the program that is in the way."""
        where = f"XDP on {interface.name}"
        with asking(where, "attach mode generic may do, see also `dmesg`"):
            try:
                yield
            except NetlinkError as error:
                present = self.attached(interface.index)
                if error.code not in (errno.EBUSY, errno.EEXIST) or present is None:
                    raise
                raise NetworkError(
                    f"{where}: somebody else's program {present.program_id} is attached, mode {present.mode} "
                    f"(stop what put it there or `ip link set dev {interface.name} xdp off`, or leave this "
                    f"interface alone)"
                ) from error

    def guarded(self, interface: int) -> int | None:
        """The id of the program that `guard` put behind XDP there."""
        with asking(f"filters of interface {interface}"):
            for message in self._filters(interface, INGRESS):
                options = message.get_attr("TCA_OPTIONS")
                name = options.get_attr("TCA_BPF_NAME") if options else None
                if name and name.startswith(f"{GUARD} "):
                    return int(name.split()[1])
        return None

    def guard(self, interface: Interface, program_fd: int, program_id: int) -> None:
        """Have a program see what enters the kernel past XDP, in place of an earlier one of ours."""
        with asking(f"filter on {interface.name}", "the kernel must have clsact and cls_bpf"):
            try:
                self._ask("tc", "add", kind="clsact", index=interface.index)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
            name = f"{GUARD} {program_id}"
            self._ask("tc", "replace-filter", kind="bpf", fd=program_fd, name=name, **_filter(interface))

    def unguard(self, interface: Interface) -> None:
        """Take our program away, and the hook if nobody else has anything there."""
        with asking(f"filter on {interface.name}"):
            self._ask("tc", "del-filter", kind="bpf", **_filter(interface))
            if not self._filters(interface.index, INGRESS) and not self._filters(interface.index, EGRESS):
                self._ask("tc", "del", kind="clsact", index=interface.index)

    def _filters(self, interface: int, parent: int) -> list[Any]:
        self._refuse_other_threads()
        with instruments.timed(instruments.netlink.labels("filter dump")):
            return list(self._requests.get_filters(interface, 0, parent))

    def _refuse_other_threads(self) -> None:
        # In another thread, pyroute2 would open another socket, in whatever namespace that thread is in.
        if threading.get_ident() != self._thread:
            raise RuntimeError("a Network is used by another thread than the one that made it")

    def _ask(self, kind: str, verb: str, /, **wanted: Any) -> list[Any]:
        """What the kernel answers."""
        return self._request(f"{kind} {verb}", kind, verb, wanted)

    def _get(self, kind: str, /, **wanted: Any) -> Any:
        """One entry of a kernel's table; NetlinkError if it is not there.

        Without NLM_F_ACK, which pyroute2's own "get" asks for: it takes the entry, and the acknowledgement after it
        stays in a queue that nobody reads, for as long as the socket is open.
        """
        (message,) = self._request(f"{kind} get", kind, (GETS[kind], NLM_F_REQUEST), wanted)
        return message

    def _request(self, name: str, kind: str, command: str | tuple[int, int], wanted: dict[str, Any]) -> list[Any]:
        self._refuse_other_threads()
        with instruments.timed(instruments.netlink.labels(name)):
            return list(getattr(self._requests, kind)(command, **wanted))

    def _link(self, interface: int) -> Any:
        return self._get("link", index=interface)

    def _dump(self, kind: str, **wanted: int) -> list[Any]:
        """One of the kernel's tables, read again if it changed while it was read."""
        with asking(f"the kernel's table of {kind}s", "it changes all the time; try again"):
            for _ in range(DUMP_ATTEMPTS):
                # dump_filter: without it pyroute2 has the kernel send everything, and filters that.
                try:
                    messages = self._ask(kind, "dump", dump_filter=None, **wanted)
                except NetlinkError as error:
                    if error.code == errno.ENOENT:  # no such table: it is made with its first entry
                        return []
                    raise
                if not any(message["header"]["flags"] & NLM_F_DUMP_INTR for message in messages):
                    return messages
            raise OSError(errno.EAGAIN, "could not be read in one piece")


@contextmanager
def asking(what: str, remedy: str = "see `dmesg`") -> Iterator[None]:
    """Whatever the kernel refuses becomes a NetworkError: where, what and the remedy."""
    try:
        yield
    except (NetlinkError, OSError) as error:
        code = error.errno if isinstance(error, OSError) else error.code
        raise NetworkError(f"{what}: {error.args[-1]} ({REMEDIES.get(code or 0, remedy)})") from error


def _mac(link_address: str | None) -> bytes:
    """6 bytes, or none: tunnels have IP addresses here."""
    mac = bytes.fromhex(link_address.replace(":", "")) if link_address and "." not in link_address else b""
    return mac if len(mac) == 6 else b""


def _interface(message: Any) -> Interface:
    return Interface(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mac=_mac(message.get_attr("IFLA_ADDRESS")),
        mtu=message.get_attr("IFLA_MTU"),
        up=bool(message["flags"] & IFF_UP and message["flags"] & IFF_RUNNING),
    )


def _is_our_address(message: Any) -> bool:
    return bool(message["prefixlen"] == 32 and message["scope"] == ADDRESS_SCOPE)


def _neighbour(message: Any) -> Neighbour:
    return Neighbour(
        address=IPv4Address(message.get_attr("NDA_DST")),
        interface=message["ifindex"],
        mac=_mac(message.get_attr("NDA_LLADDR")),  # the kernel tells it in the states that can be used
        dormant=message["state"] in (ndmsg.NUD_NONE, ndmsg.NUD_STALE, ndmsg.NUD_FAILED),
    )


def _cidr(message: Any) -> IPv4Network:
    return IPv4Network((message.get_attr("RTA_DST") or "0.0.0.0", message["dst_len"]))


def _route(message: Any) -> Route | None:
    """A route through one router; of another kind, None."""
    next_hop, interface = message.get_attr("RTA_GATEWAY"), message.get_attr("RTA_OIF")
    if next_hop is None or interface is None:
        return None
    return Route(_cidr(message), IPv4Address(next_hop), interface)


def _route_request(route: Route) -> dict[str, Any]:
    return {
        "dst": str(route.cidr),
        "gateway": str(route.next_hop),
        "oif": route.interface,
        "table": MAIN_TABLE,
        "proto": ROUTE_PROTOCOL,
    }


def _filter(interface: Interface) -> dict[str, Any]:
    """Where ours is among the filters of an interface."""
    return {
        "index": interface.index,
        "parent": INGRESS,
        "prio": GUARD_PRIORITY,
        "handle": 1,
        "protocol": ETHERTYPE_ALL,
        "classid": 1,
        "direct_action": True,
    }


def _name(interface: int) -> str:
    """What an interface is called now, as messages have it."""
    try:
        return socket.if_indextoname(interface)
    except OSError:
        return f"interface {interface}"


def _foreign_route(route: Route, message: Any) -> str:
    theirs = _route(message)
    way = f"via {theirs.next_hop} on {_name(theirs.interface)}" if theirs else "without a next hop"
    return (
        f"route to {route.cidr} via {route.next_hop} on {_name(route.interface)}: "
        f"somebody else's is there, {way}, protocol {message['proto']} "
        f"(remove it, see `ip route show {route.cidr}`, or name its next hop)"
    )
