"""The kernel's side of a gateway, against a real kernel; the far end of a cable is the witness."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from scapy.layers.l2 import ARP, Ether

from ipbackend.errors import NetworkError
from ipbackend.network import ROUTE_PROTOCOL, Attachment, Interface, Network, Route

from .namespace import Namespace, check

pytestmark = pytest.mark.root

GATEWAY = IPv4Address("10.0.0.1")
ROUTER = IPv4Address("10.0.0.2")
OTHER_ROUTER = IPv4Address("10.0.0.3")
NOBODY = IPv4Address("10.0.0.9")
VIP = IPv4Address("10.0.0.100")
ONPREM = IPv4Network("192.168.50.0/24")
ROUTER_MAC = "02:00:00:00:00:02"
ROUTER_MAC_LATER = "02:00:00:00:00:22"
# Ageing in milliseconds instead of minutes, and one probe of each kind.
FAST_NEIGHBOURS = {
    "base_reachable_time_ms": 100,
    "delay_first_probe_time": 0,
    "retrans_time_ms": 20,
    "ucast_solicit": 1,
    "mcast_solicit": 2,
    "locktime": 0,
}

BPF_PROG_LOAD = 5
BPF_PROG_TYPE_XDP = 6
SYS_BPF = {"x86_64": 321, "aarch64": 280}
_libc = ctypes.CDLL(None, use_errno=True)


def load_pass_program() -> int:
    """The descriptor of an XDP program that passes every frame; by bpf(2), for want of a compiler."""
    instructions = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)  # r0 = XDP_PASS; exit
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_ = ctypes.create_string_buffer(b"GPL")
    load = struct.pack("=IIQQ", BPF_PROG_TYPE_XDP, 2, ctypes.addressof(code), ctypes.addressof(license_))
    attributes = ctypes.create_string_buffer(load, 128)
    program = int(_libc.syscall(SYS_BPF[platform.machine()], BPF_PROG_LOAD, attributes, 128))
    check(program, "bpf(BPF_PROG_LOAD)")
    return program


def until(condition: Callable[[], object], deadline: float = 10.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@dataclass(frozen=True)
class Cable:
    """A gateway and a router on a cable, and what the gateway knows of its network."""

    gateway: Namespace
    router: Namespace
    network: Network

    @property
    def interface(self) -> Interface:
        return self.network.interfaces()["eth0"]

    def ip(self, command: str) -> None:
        self.gateway.run(["ip", *command.split()])

    def router_ip(self, command: str) -> None:
        self.router.run(["ip", *command.split()])

    def sysctl(self, **values: int) -> None:
        with self.gateway:
            for name, value in values.items():
                Path(f"/proc/sys/net/ipv4/neigh/eth0/{name}").write_text(str(value))

    def unplug(self) -> None:
        self.router_ip("link set dev eth0 down")
        until(lambda: not self.interface.up)


@pytest.fixture
def cable() -> Iterator[Cable]:
    gateway, router = Namespace("gateway"), Namespace("router")
    try:
        with gateway.netlink() as netlink:
            netlink.link("add", ifname="eth0", kind="veth", peer={"ifname": "eth0", "net_ns_fd": router.fd})
        for namespace, address in ((gateway, GATEWAY), (router, ROUTER)):
            namespace.run(["ip", "address", "add", f"{address}/24", "dev", "eth0"])
        router.run(["ip", "link", "set", "dev", "eth0", "address", ROUTER_MAC])
        for namespace in (gateway, router):
            namespace.run(["ip", "link", "set", "dev", "eth0", "up"])
        with gateway:
            network = Network()
        try:
            made = Cable(gateway, router, network)
            until(lambda: made.interface.up)
            network.changed()
            yield made
        finally:
            network.close()
    finally:
        gateway.close()
        router.close()


@pytest.fixture
def program() -> Iterator[int]:
    fd = load_pass_program()
    yield fd
    os.close(fd)


@pytest.fixture
def other_program() -> Iterator[int]:
    fd = load_pass_program()
    yield fd
    os.close(fd)


def held(cable: Cable) -> set[IPv4Address]:
    return {have.address for have in cable.network.addresses() if have.interface == cable.interface.index}


# Interfaces


def test_an_interface_has_its_mac_mtu_and_carrier(cable: Cable) -> None:
    cable.ip("link set dev eth0 address 02:00:00:00:00:01 mtu 1400")

    assert cable.interface == replace(cable.interface, mac=bytes.fromhex("020000000001"), mtu=1400, up=True)


def test_an_interface_without_a_carrier_is_not_up(cable: Cable) -> None:
    cable.unplug()

    assert not cable.interface.up


# Addresses


def test_an_address_is_added_once_and_removed_once(cable: Cable) -> None:
    assert cable.network.add_address(VIP, cable.interface)
    assert VIP in held(cable)
    assert not cable.network.add_address(VIP, cable.interface)

    assert cable.network.remove_address(VIP, cable.interface)
    assert VIP not in held(cable)
    assert not cable.network.remove_address(VIP, cable.interface)


@pytest.mark.parametrize("prefix", [24, 32])
def test_an_address_of_somebody_else_is_left_alone(cable: Cable, prefix: int) -> None:
    cable.ip(f"address add {VIP}/{prefix} dev eth0")

    assert not cable.network.add_address(VIP, cable.interface)
    assert not cable.network.remove_address(VIP, cable.interface)
    assert VIP in held(cable)


def test_our_addresses_are_told_from_others_by_a_later_life_too(cable: Cable) -> None:
    cable.network.add_address(VIP, cable.interface)
    with cable.gateway:
        later = Network()

    ours = {have.address for have in later.addresses() if have.ours}
    later.close()
    assert ours == {VIP}


def test_the_kernel_does_not_speak_from_an_address_of_ours(cable: Cable) -> None:
    """Its own connections must not come from a VIP, whose replies XDP refuses, even if the VIP is first."""
    cable.ip(f"address del {GATEWAY}/24 dev eth0")
    cable.network.add_address(VIP, cable.interface)
    cable.ip(f"address add {GATEWAY}/24 dev eth0")
    cable.ip(f"route add {ONPREM} dev eth0")

    with cable.gateway.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((str(ONPREM[10]), 53))
        assert probe.getsockname()[0] == str(GATEWAY)


def test_the_far_side_finds_an_address_of_ours_by_arp(cable: Cable) -> None:
    cable.network.add_address(VIP, cable.interface)
    with cable.router:
        router = Network()

    router.resolve(VIP, router.interfaces()["eth0"].index)
    until(lambda: any(found.mac == cable.interface.mac for found in router.neighbours().values()))
    router.close()


def test_an_added_address_is_announced_on_the_wire(cable: Cable) -> None:
    with cable.router.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as wire:
        wire.bind(("eth0", 0x0806))
        wire.settimeout(5)
        cable.network.add_address(VIP, cable.interface)
        announcement = Ether(wire.recv(2048))

    mac = ":".join(f"{byte:02x}" for byte in cable.interface.mac)
    assert (announcement.dst, announcement.src) == ("ff:ff:ff:ff:ff:ff", mac)
    arp = announcement[ARP]
    assert (arp.op, arp.hwsrc, arp.psrc, arp.pdst) == (1, mac, str(VIP), str(VIP))


def test_nothing_is_announced_on_an_interface_that_is_down(cable: Cable) -> None:
    cable.ip("link set dev eth0 down")

    assert cable.network.add_address(VIP, cable.interface)
    assert VIP in held(cable)


def test_an_address_on_no_interface_names_the_remedy(cable: Cable) -> None:
    gone = replace(cable.interface, index=999, name="gone")

    with pytest.raises(NetworkError, match=rf"address {VIP} on gone: .*no such interface"):
        cable.network.add_address(VIP, gone)


# Routes


def test_a_route_is_set_moved_and_removed(cable: Cable) -> None:
    route = Route(ONPREM, ROUTER, cable.interface.index)
    moved = replace(route, next_hop=OTHER_ROUTER)

    assert cable.network.add_route(route)
    assert not cable.network.add_route(route)
    assert cable.network.add_route(moved)
    assert cable.network.routes() == {moved}
    assert not cable.network.remove_route(route)
    assert cable.network.remove_route(moved)
    assert not cable.network.remove_route(moved)
    assert cable.network.routes() == set()


def test_a_machine_that_never_had_a_route_has_none() -> None:
    """The kernel makes the table with the first one, and says before that there is no table."""
    ask = "from ipbackend.network import Network; print(Network().routes())"
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr


def test_only_our_routes_are_told(cable: Cable) -> None:
    cable.ip(f"route add 192.168.60.0/24 via {ROUTER}")
    cable.ip(f"route add 192.168.70.0/24 via {ROUTER} table 100 proto {ROUTE_PROTOCOL}")
    route = Route(ONPREM, ROUTER, cable.interface.index)
    cable.network.add_route(route)

    assert cable.network.routes() == {route}


@pytest.mark.parametrize("metric", [0, 100])
def test_a_route_of_somebody_else_is_neither_replaced_nor_overruled(cable: Cable, metric: int) -> None:
    cable.ip(f"route add {ONPREM} via {OTHER_ROUTER} proto static metric {metric}")
    route = Route(ONPREM, ROUTER, cable.interface.index)

    with pytest.raises(NetworkError, match=rf"route to {ONPREM} .* via {OTHER_ROUTER} .*protocol 4 .*ip route"):
        cable.network.add_route(route)
    assert not cable.network.remove_route(replace(route, next_hop=OTHER_ROUTER))
    assert cable.network.routes() == set()


def test_a_route_of_somebody_else_with_our_next_hop_serves(cable: Cable) -> None:
    cable.ip(f"route add {ONPREM} via {ROUTER}")

    assert not cable.network.add_route(Route(ONPREM, ROUTER, cable.interface.index))


def test_a_next_hop_out_of_reach_is_refused(cable: Cable) -> None:
    with pytest.raises(NetworkError, match=r"invalid gateway.*must be a neighbour"):
        cable.network.add_route(Route(ONPREM, IPv4Address("10.9.9.9"), cable.interface.index))


def test_the_mtu_of_a_path_is_the_routes_or_the_interfaces(cable: Cable) -> None:
    cable.ip("link set dev eth0 mtu 1450")
    cable.ip(f"route add {ONPREM} via {ROUTER} mtu 1380")

    assert cable.network.path_mtu(ONPREM[10]) == 1380
    assert cable.network.path_mtu(ROUTER) == 1450
    with pytest.raises(NetworkError, match=r"route to 8.8.8.8: .*ip route"):
        cable.network.path_mtu(IPv4Address("8.8.8.8"))


# Neighbours


def mac_of(cable: Cable, address: IPv4Address) -> str:
    """What the gateway has for a neighbour, after asking again if nobody does: what a daemon does."""
    key = (address, cable.interface.index)
    neighbour = cable.network.neighbours().get(key)
    if neighbour is None or neighbour.dormant:
        cable.network.resolve(*key)
    return neighbour.mac.hex(":") if neighbour else ""


def test_a_neighbour_is_resolved_and_its_change_of_mac_followed(cable: Cable) -> None:
    cable.sysctl(**FAST_NEIGHBOURS)
    until(lambda: mac_of(cable, ROUTER) == ROUTER_MAC)
    cable.network.changed()

    cable.router_ip(f"link set dev eth0 address {ROUTER_MAC_LATER}")

    until(lambda: mac_of(cable, ROUTER) == ROUTER_MAC_LATER)
    assert cable.network.changed()


def test_an_announcement_changes_a_neighbour_at_once(cable: Cable) -> None:
    """Without a call of resolve: a router that fails over says so itself."""
    cable.sysctl(locktime=0)
    until(lambda: mac_of(cable, ROUTER) == ROUTER_MAC)
    cable.network.changed()
    cable.router_ip(f"link set dev eth0 address {ROUTER_MAC_LATER}")
    with cable.router:
        router = Network()

    router.announce(ROUTER, router.interfaces()["eth0"])

    until(cable.network.changed)
    router.close()
    assert cable.network.neighbours()[ROUTER, cable.interface.index].mac.hex(":") == ROUTER_MAC_LATER


def test_a_neighbour_that_does_not_answer_is_not_usable(cable: Cable) -> None:
    cable.sysctl(**FAST_NEIGHBOURS)
    key = (NOBODY, cable.interface.index)

    cable.network.resolve(*key)
    assert not cable.network.neighbours()[key].usable

    until(lambda: cable.network.neighbours()[key].dormant)
    assert not cable.network.neighbours()[key].usable


def test_a_stale_neighbour_is_usable_and_woken_by_resolve(cable: Cable) -> None:
    key = (ROUTER, cable.interface.index)
    cable.ip(f"neighbour add {ROUTER} lladdr {ROUTER_MAC} dev eth0 nud stale")
    assert (cable.network.neighbours()[key].usable, cable.network.neighbours()[key].dormant) == (True, True)

    cable.network.resolve(*key)

    assert (cable.network.neighbours()[key].usable, cable.network.neighbours()[key].dormant) == (True, False)


@pytest.mark.parametrize("state", ["permanent", "noarp"])
def test_a_neighbour_set_by_hand_survives_resolve(cable: Cable, state: str) -> None:
    cable.ip(f"neighbour add {NOBODY} lladdr {ROUTER_MAC} dev eth0 nud {state}")

    cable.network.resolve(NOBODY, cable.interface.index)

    found = cable.network.neighbours()[NOBODY, cable.interface.index]
    assert (found.usable, found.dormant) == (True, False)


def test_a_neighbour_on_no_interface_is_refused(cable: Cable) -> None:
    with pytest.raises(NetworkError, match=rf"neighbour {ROUTER} on interface 999: "):
        cable.network.resolve(ROUTER, 999)


# The sockets


def test_another_thread_is_refused(cable: Cable) -> None:
    """It is in another namespace, perhaps in the machine's own."""
    with ThreadPoolExecutor(1) as thread, pytest.raises(RuntimeError, match="another thread"):
        thread.submit(cable.network.interfaces).result()


def test_nothing_of_what_the_kernel_answers_is_kept(cable: Cable) -> None:
    """An acknowledgement that nobody reads is 69 bytes, for each request, for as long as the daemon lives."""
    key = (ROUTER, cable.interface.index)
    cable.ip(f"neighbour add {ROUTER} lladdr {ROUTER_MAC} dev eth0")

    def everything() -> None:
        cable.network.resolve(*key)
        cable.network.path_mtu(ROUTER)
        cable.network.way_to(ROUTER)
        cable.network.interfaces()
        cable.network.neighbours()
        cable.network.add_address(VIP, cable.interface)
        cable.network.remove_address(VIP, cable.interface)
        with pytest.raises(NetworkError):
            cable.network.resolve(NOBODY, 999)

    def held() -> int:
        for _ in range(100):
            everything()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        held()
        before = held()
        assert held() < before + 2_000
    finally:
        tracemalloc.stop()


# Changes


@pytest.mark.parametrize(
    "command",
    [
        "link set dev eth0 mtu 1400",
        "address add 10.0.0.50/32 dev eth0",
        "route add 192.168.60.0/24 via 10.0.0.2",
        "neighbour add 10.0.0.60 lladdr 02:00:00:00:00:60 dev eth0",
    ],
)
def test_a_change_wakes_once(cable: Cable, command: str) -> None:
    assert not cable.network.changed()

    cable.ip(command)

    assert cable.network.changed()
    assert not cable.network.changed()


def test_ipv6_does_not_wake(cable: Cable) -> None:
    cable.ip("neighbour add fe80::60 lladdr 02:00:00:00:00:60 dev eth0")

    assert not cable.network.changed()


def test_lost_reports_are_a_change_and_no_failure(cable: Cable) -> None:
    """What is still there to read would not wake anybody."""
    for _ in range(20):
        if lost(cable):
            break
        flood = "".join(f"neighbour replace fe80::60 lladdr 02:00:00:00:00:{mac:02x} dev eth0\n" for mac in range(200))
        cable.gateway.run(["ip", "-batch", "-"], input=flood.encode())
    assert lost(cable), "the socket never overflowed"

    assert cable.network.changed()
    assert not cable.network.changed()
    cable.ip("address add 10.0.0.50/32 dev eth0")
    assert cable.network.changed()


def lost(cable: Cable) -> int:
    """Reports that the kernel dropped, over all netlink sockets of the gateway."""
    with cable.gateway:
        table = Path("/proc/thread-self/net/netlink").read_text()
    header, *rows = (line.split() for line in table.splitlines())
    return sum(int(row[header.index("Drops")]) for row in rows)


# The XDP hook


def test_auto_takes_native_where_the_driver_can(cable: Cable, program: int) -> None:
    assert cable.network.attach(cable.interface, program, "auto", None) == "native"

    attachment = cable.network.attached(cable.interface.index)
    assert attachment is not None
    assert attachment.mode == "native"


def bridge(cable: Cable) -> Interface:
    cable.ip("link add bridge type bridge")
    return cable.network.interfaces()["bridge"]


def test_auto_takes_generic_where_the_driver_cannot(cable: Cable, program: int) -> None:
    interface = bridge(cable)

    assert cable.network.attach(interface, program, "auto", None) == "generic"

    attachment = cable.network.attached(interface.index)
    assert attachment is not None
    assert attachment.mode == "generic"


def test_native_is_refused_where_the_driver_cannot(cable: Cable, program: int) -> None:
    with pytest.raises(NetworkError, match=r"XDP on bridge: .*native mode.*generic may do"):
        cable.network.attach(bridge(cable), program, "native", None)


def attach(cable: Cable, program: int, mode: str = "auto", expected: int | None = None) -> Attachment:
    cable.network.attach(cable.interface, program, mode, expected)
    attachment = cable.network.attached(cable.interface.index)
    assert attachment is not None
    return attachment


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_the_expected_program_is_replaced_in_its_mode(
    cable: Cable, program: int, other_program: int, mode: str
) -> None:
    before = attach(cable, program, mode)

    after = attach(cable, other_program, "auto", expected=program)

    assert after.mode == before.mode == mode
    assert after.program_id != before.program_id


def test_a_running_program_keeps_its_mode(cable: Cable, program: int, other_program: int) -> None:
    before = attach(cable, program, "generic")

    with pytest.raises(NetworkError, match=r"interface eth0: our program runs in generic mode.*keep the mode"):
        cable.network.attach(cable.interface, other_program, "native", expected=program)
    assert cable.network.attached(cable.interface.index) == before


@pytest.mark.parametrize("theirs", ["native", "generic"])
@pytest.mark.parametrize("ours", ["native", "generic", "auto"])
def test_a_program_of_somebody_else_stays(
    cable: Cable, program: int, other_program: int, theirs: str, ours: str
) -> None:
    foreign = attach(cable, program, theirs)

    with pytest.raises(NetworkError, match=rf"eth0: .*program {foreign.program_id} .*ip link set dev eth0 xdp off"):
        cable.network.attach(cable.interface, other_program, ours, None)
    with pytest.raises(NetworkError, match=rf"program {foreign.program_id} "):
        cable.network.attach(cable.interface, other_program, "auto", expected=other_program)
    with pytest.raises(NetworkError, match=rf"program {foreign.program_id} "):
        cable.network.detach(cable.interface, expected=other_program)
    assert cable.network.attached(cable.interface.index) == foreign


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_program_is_detached_once(cable: Cable, program: int, mode: str) -> None:
    attach(cable, program, mode)

    assert cable.network.detach(cable.interface, expected=program)
    assert cable.network.attached(cable.interface.index) is None
    assert not cable.network.detach(cable.interface, expected=program)
