"""The lab: client, gateway, two routers and four members, each in a namespace; it knows no gateway program.

    client ── gateway ── vpc (a bridge) ─┬─ member-1, member-2
                                         ├─ router-peering ── member-peered
                                         └─ router-onprem ─── member-onprem

The gateway's own kernel does not forward: what passes it, XDP has passed.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import socket
import struct
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .members import Member
from .namespace import Namespace, check

# The cast. Nothing else in the lab or its tests spells an address.
CLIENTS = tuple(f"203.0.113.{host}" for host in range(7, 21))
CLIENT = CLIENTS[0]
GATEWAY_CLIENT_SIDE = "203.0.113.1"
GATEWAY_MEMBER_SIDE = "10.0.0.1"
ROUTER_PEERING = "10.0.0.2"
ROUTER_ONPREM = "10.0.0.3"
MEMBERS = {
    "member-1": "10.0.0.11",
    "member-2": "10.0.0.12",
    "member-peered": "172.16.10.10",
    "member-onprem": "192.168.50.10",
}
MEMBER_TCP_PORT = 8080
MEMBER_UDP_PORT = 5353
VPC = "10.0.0.0/24"
PEERED_VPC = "172.16.10.0/24"
ONPREM = "192.168.50.0/24"
# The gateway program adds these; the lab only knows them.
SHOP_VIP = "10.0.0.100"
SECOND_VIP = "10.0.0.110"
THIRD_VIP = "10.0.0.120"
SNATS = ("10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104")


@dataclass(frozen=True)
class End:
    """One end of a cable: an interface of a namespace; its addresses with their prefix length."""

    role: str
    interface: str
    addresses: tuple[str, ...] = ()


BRIDGE = End("vpc", "bridge")
CABLES = (
    (
        End("client", "eth0", tuple(f"{address}/24" for address in CLIENTS)),
        End("gateway", "eth0", (f"{GATEWAY_CLIENT_SIDE}/24",)),
    ),
    (End("vpc", "gateway"), End("gateway", "eth1", (f"{GATEWAY_MEMBER_SIDE}/24",))),
    (End("vpc", "router-peering"), End("router-peering", "eth0", (f"{ROUTER_PEERING}/24",))),
    (End("vpc", "router-onprem"), End("router-onprem", "eth0", (f"{ROUTER_ONPREM}/24",))),
    (End("vpc", "member-1"), End("member-1", "eth0", (f"{MEMBERS['member-1']}/24",))),
    (End("vpc", "member-2"), End("member-2", "eth0", (f"{MEMBERS['member-2']}/24",))),
    (
        End("router-peering", "eth1", ("172.16.10.1/24",)),
        End("member-peered", "eth0", (f"{MEMBERS['member-peered']}/24",)),
    ),
    (
        End("router-onprem", "eth1", ("192.168.50.1/24",)),
        End("member-onprem", "eth0", (f"{MEMBERS['member-onprem']}/24",)),
    ),
)
ENDS = tuple(end for cable in CABLES for end in cable)
ROLES = tuple(dict.fromkeys(end.role for end in ENDS))
ROUTERS = ("router-peering", "router-onprem")
# Role, destination, next hop. No member has a way to the clients: it answers only to the gateway's addresses.
ROUTES = (
    ("client", VPC, GATEWAY_CLIENT_SIDE),
    ("member-peered", VPC, "172.16.10.1"),
    ("member-onprem", VPC, "192.168.50.1"),
)
# The far ends of the gateway's interfaces. A veth hands on frames that its peer sent by XDP_TX or
# XDP_REDIRECT only when it runs an XDP program itself.
XDP_PEERS = (CABLES[0][0], CABLES[1][0])

SIOCETHTOOL = 0x8946
ETHTOOL_STXCSUM = 0x17
CLONE_NEWNS = 0x00020000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
BPF_PROG_LOAD = 5
BPF_PROG_TYPE_XDP = 6
XDP_PASS = 2
SYS_BPF = {"x86_64": 321, "aarch64": 280}
_libc = ctypes.CDLL(None, use_errno=True)


class Lab:
    """All namespaces, cabled and ready for the first frame; gone when closed or when its process ends."""

    def __init__(self) -> None:
        self.namespaces: dict[str, Namespace] = {}
        try:
            for role in ROLES:
                self.namespaces[role] = Namespace(role)
            with ExitStack() as stack:
                self._build({role: stack.enter_context(n.netlink()) for role, n in self.namespaces.items()})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, role: str) -> Namespace:
        return self.namespaces[role]

    def close(self) -> None:
        """Let go of all namespaces; their interfaces, addresses and programs go with them."""
        while self.namespaces:
            self.namespaces.popitem()[1].close()

    def members(self) -> list[Member]:
        """The servers of all members, not started; see `members.running`."""
        return [
            Member(self.namespaces[name], name, address, MEMBER_TCP_PORT, MEMBER_UDP_PORT)
            for name, address in MEMBERS.items()
        ]

    def enter_command(self, role: str) -> str:
        """What to put before a shell command so that it runs in the namespace of `role`."""
        return f"nsenter --net=/proc/{os.getpid()}/fd/{self.namespaces[role].fd}"

    def _build(self, netlink: dict[str, Any]) -> None:
        for role, namespace in self.namespaces.items():
            set_sysctls(namespace, forward=role in ROUTERS)
        netlink[BRIDGE.role].link("add", ifname=BRIDGE.interface, kind="bridge", br_mcast_snooping=0)
        for number in range(len(CABLES)):
            self._plug(number, netlink)
        for end in ENDS:
            self._set_up(end, netlink[end.role])
        self._set_up(BRIDGE, netlink[BRIDGE.role])
        for role, destination, next_hop in ROUTES:
            netlink[role].route("add", dst=destination, gateway=next_hop)
        for end in XDP_PEERS:
            _pass_all(end, netlink[end.role])
        wait_until_forwarding(netlink)

    def replug(self, number: int) -> None:
        """Another cable in place of one of CABLES: other interfaces of the same names, the near one's MAC as it was."""
        near, far = CABLES[number]
        with ExitStack() as stack:
            netlink = {end.role: stack.enter_context(self.namespaces[end.role].netlink()) for end in (near, far)}
            netlink[BRIDGE.role] = stack.enter_context(self.namespaces[BRIDGE.role].netlink())
            index = index_of(netlink[near.role], near)
            address = netlink[near.role].get_links(index)[0].get_attr("IFLA_ADDRESS")
            netlink[near.role].link("del", index=index)
            self._plug(number, netlink)
            netlink[near.role].link("set", index=index_of(netlink[near.role], near), address=address)
            for end in (near, far):
                self._set_up(end, netlink[end.role])
            for role, destination, next_hop in ROUTES:
                if role == near.role:
                    netlink[role].route("add", dst=destination, gateway=next_hop)
            _pass_all(near, netlink[near.role])

    def _plug(self, number: int, netlink: dict[str, Any]) -> None:
        # Where both ends happen to have one index, the kernel takes the pair for one interface and
        # is in no hurry (a second) to notice the carrier: so the near ends count from 100.
        near, far = CABLES[number]
        peer = {"ifname": far.interface, "net_ns_fd": self.namespaces[far.role].fd}
        netlink[near.role].link("add", ifname=near.interface, index=100 + number, kind="veth", peer=peer)

    def _set_up(self, end: End, netlink: Any) -> None:
        index = index_of(netlink, end)
        for address in end.addresses:
            netlink.addr("add", index=index, address=address.split("/")[0], prefixlen=24)
        if end.role == BRIDGE.role and end is not BRIDGE:
            netlink.link("set", index=index, master=index_of(netlink, BRIDGE))
        if end is not BRIDGE:
            switch_tx_checksum_off(self.namespaces[end.role], end.interface)
        netlink.link("set", index=index, state="up")


def _pass_all(end: End, netlink: Any) -> None:
    program = load_program(XDP_PASS)
    try:
        netlink.link("set", index=index_of(netlink, end), xdp_fd=program)
    finally:
        os.close(program)


def index_of(netlink: Any, end: End) -> int:
    return int(netlink.link_lookup(ifname=end.interface)[0])


def set_sysctls(namespace: Namespace, *, forward: bool) -> None:
    """What a new namespace takes over from the machine, set to what the lab needs."""
    with namespace:  # /proc/sys/net shows the namespace of the calling thread
        settings = {
            "ipv4/ip_forward": str(int(forward)),
            "ipv4/conf/all/rp_filter": "0",
            "ipv4/conf/default/rp_filter": "0",
            "ipv6/conf/all/disable_ipv6": "1",
        }
        for name, value in settings.items():
            path = Path("/proc/sys/net", name)
            if path.exists():  # a kernel may lack IPv6
                path.write_text(value)


def switch_tx_checksum_off(namespace: Namespace, interface: str) -> None:
    """Have the kernel complete checksums, and with them segments, before a frame is on the wire.

    veth leaves both to hardware that is not there, and a NAT that corrects a checksum by its difference
    would correct garbage. By ioctl, since ethtool(8) may be missing and its netlink family is more work.
    """
    value = array("I", [ETHTOOL_STXCSUM, 0])
    request = struct.pack("16sP16x", interface.encode(), value.buffer_info()[0])
    with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCETHTOOL, request)


def load_program(action: int) -> int:
    """The file descriptor of an XDP program that says `action` to every frame, made without a compiler."""
    instructions = struct.pack("=BBhiBBhi", 0xB7, 0, 0, action, 0x95, 0, 0, 0)  # r0 = action; exit
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    return bpf(
        BPF_PROG_LOAD,
        struct.pack("=IIQQ", BPF_PROG_TYPE_XDP, 2, ctypes.addressof(code), ctypes.addressof(licence)),
    )


def bpf(command: int, attributes: bytes) -> int:
    """bpf(2): what the command returns, a file descriptor for those in use here. Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes, 128)
    result = int(_libc.syscall(SYS_BPF[platform.machine()], command, buffer, ctypes.c_uint(128)))
    check(result, f"bpf(command {command})")
    return result


def wait_until_forwarding(netlink: dict[str, Any], deadline: float = 5.0) -> None:
    """The kernel brings carriers and bridge ports up in its own time; a frame sent before that is lost."""
    end = time.monotonic() + deadline
    while down := list(interfaces_down(netlink)):
        if time.monotonic() > end:
            raise TimeoutError(f"lab: still down after {deadline} s: {', '.join(down)}")
        time.sleep(0.001)


def interfaces_down(netlink: dict[str, Any]) -> Iterator[str]:
    for role, control in netlink.items():
        for link in control.get_links():
            name, state = link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_OPERSTATE")
            if name not in ("lo", BRIDGE.interface) and state != "UP":  # the bridge's ports are what counts
                yield f"{role} {name} ({state})"


def private_mounts() -> None:
    """Give this process, and what it starts, a /run of its own with a bpffs at /run/ipbackend/bpf.

    For the first lines of a program: threads started earlier would stay in the machine's mounts.
    The mounts end with the last process that sees them.
    """
    if threading.active_count() > 1:
        raise RuntimeError("private_mounts: other threads run already; call it before they start")
    check(_libc.unshare(CLONE_NEWNS), "unshare(CLONE_NEWNS)")
    mount(b"none", "/", None, MS_REC | MS_PRIVATE)
    mount(b"tmpfs", "/run", b"tmpfs", 0)
    Path("/run/ipbackend/bpf").mkdir(parents=True)
    mount(b"bpf", "/run/ipbackend/bpf", b"bpf", 0)


def mount(source: bytes, target: str, kind: bytes | None, flags: int) -> None:
    check(_libc.mount(source, target.encode(), kind, ctypes.c_ulong(flags), None), f"mount({target})")
