"""client ── gateway ── member, as many times as systems are compared, all alike; it knows no gateway program."""

from __future__ import annotations

import fcntl
import socket
import struct
from array import array
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.netns.lab import (
    CLIENT,
    GATEWAY_CLIENT_SIDE,
    GATEWAY_MEMBER_SIDE,
    MEMBERS,
    SHOP_VIP,
    SIOCETHTOOL,
    SNATS,
    VPC,
    set_sysctls,
    switch_tx_checksum_off,
    wait_until_forwarding,
)
from tests.netns.namespace import Namespace

VIP, MEMBER = SHOP_VIP, MEMBERS["member-1"]
MACS = {
    ("client", "eth0"): "02:00:00:00:00:07",
    ("gateway", "eth0"): "02:00:00:00:01:00",
    ("gateway", "eth1"): "02:00:00:00:01:01",
    ("member", "eth0"): "02:00:00:00:00:11",
}
ADDRESSES = {
    ("client", "eth0"): CLIENT,
    ("gateway", "eth0"): GATEWAY_CLIENT_SIDE,
    ("gateway", "eth1"): GATEWAY_MEMBER_SIDE,
    ("member", "eth0"): MEMBER,
}
# Two ends and the first one's index, which programs may know; it differs from the other's: see Lab.
CLIENT_SIDE_INDEX, MEMBER_SIDE_INDEX = 100, 101
THROUGH_GATEWAY = (
    (("gateway", "eth0"), ("client", "eth0"), CLIENT_SIDE_INDEX),
    (("gateway", "eth1"), ("member", "eth0"), MEMBER_SIDE_INDEX),
)
WITHOUT_GATEWAY = ((("member", "eth0"), ("client", "eth0"), MEMBER_SIDE_INDEX),)
ETHTOOL_SGRO = 0x2C
End = tuple[str, str]
"""A role and the name of an interface there."""


class Links:
    """One copy. It can stand in for a lab where only its namespaces are asked for.

    `routed`: client and member reach each other by the gateway's addresses; otherwise as on one wire.
    `segments`: TCP may leave to the links what hardware would do, checksums and cutting into frames; they do neither.
    """

    def __init__(self, *, routed: bool, gateway: bool = True, forward: bool = False, segments: bool = False) -> None:
        cables = THROUGH_GATEWAY if gateway else WITHOUT_GATEWAY
        roles = dict.fromkeys(end[0] for near, far, _ in cables for end in (near, far))
        self.indices: dict[End, int] = {}
        self.namespaces = {role: Namespace(role) for role in roles}
        netlink = {role: namespace.netlink() for role, namespace in self.namespaces.items()}
        try:
            for role, namespace in self.namespaces.items():
                set_sysctls(namespace, forward=forward and role == "gateway")
                # Clients and proxies take a fresh port for each connection as long as they can.
                self.set(role, "ipv4/ip_local_port_range", "1024 65535")
            for near, far, index in cables:
                self._cable(netlink, near, far, index, segments=segments)
                self._neighbours(netlink, near, far)
            if routed:
                self._routes(netlink)
            else:
                self._one_wire(netlink)
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

    def set(self, role: str, name: str, value: str) -> None:
        """A setting below /proc/sys/net."""
        with self[role]:  # /proc/sys/net shows the namespace of the calling thread
            Path("/proc/sys/net", name).write_text(value)

    def attach(self, end: End, program: int) -> None:
        """Put an XDP program there; -1: take it away."""
        with self[end[0]].netlink() as control:
            control.link("set", index=self.indices[end], xdp_fd=program)

    def _cable(self, netlink: dict[str, Any], near: End, far: End, index: int, *, segments: bool) -> None:
        peer = {"ifname": far[1], "net_ns_fd": self[far[0]].fd}
        netlink[near[0]].link("add", ifname=near[1], index=index, kind="veth", peer=peer)
        for end in (near, far):
            role, name = end
            self.indices[end] = index = netlink[role].link_lookup(ifname=name)[0]
            netlink[role].link("set", index=index, address=MACS[end])
            netlink[role].addr("add", index=index, address=ADDRESSES[end], prefixlen=24)
            if not segments:
                switch_tx_checksum_off(self[role], name)
            switch_gro_on(self[role], name)
        for end in (near, far):  # not before both have GRO: what XDP may redirect to is settled when it comes up
            netlink[end[0]].link("set", index=self.indices[end], state="up")

    def _neighbours(self, netlink: dict[str, Any], near: End, far: End) -> None:
        """No ARP while something is measured."""
        for here, there in ((near, far), (far, near)):
            addresses = [ADDRESSES[there], *(SNATS if there == ("gateway", "eth1") else ())]
            for address in addresses:
                netlink[here[0]].neigh(
                    "add", dst=address, lladdr=MACS[there], ifindex=self.indices[here], state="permanent"
                )

    @staticmethod
    def _routes(netlink: dict[str, Any]) -> None:
        netlink["client"].route("add", dst=VPC, gateway=GATEWAY_CLIENT_SIDE)
        netlink["member"].route("add", dst=f"{CLIENT}/32", gateway=GATEWAY_MEMBER_SIDE)

    def _one_wire(self, netlink: dict[str, Any]) -> None:
        for here, there in (("client", "member"), ("member", "client")):
            index, address = self.indices[here, "eth0"], ADDRESSES[there, "eth0"]
            netlink[here].route("add", dst=f"{address}/32", oif=index)
            netlink[here].neigh("replace", dst=address, lladdr=MACS[there, "eth0"], ifindex=index, state="permanent")


def switch_gro_on(namespace: Namespace, interface: str) -> None:
    """Have a veth receive by NAPI, as a network card does: only so does it take frames that XDP redirects to it."""
    value = array("I", [ETHTOOL_SGRO, 1])
    request = struct.pack("16sP16x", interface.encode(), value.buffer_info()[0])
    with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCETHTOOL, request)
