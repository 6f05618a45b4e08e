"""The doctor on real links: each trap made on purpose is found with its remedy, and a healthy lab has none."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ipbackend.datapath.loader import KINDS
from ipbackend.sizing import tables_memory
from tests.netns.gateway import COMMAND, CONFIGURATION, Gateway
from tests.netns.lab import (
    SIOCETHTOOL,
    XDP_PASS,
    Lab,
    load_program,
    set_sysctls,
    switch_tx_checksum_off,
)
from tests.netns.namespace import Namespace

pytestmark = pytest.mark.root
FILE = Path(__file__).parent / "lab.toml"
ETHTOOL_SGRO = 0x2C
Found = list[dict[str, Any]]


def doctor(namespace: Namespace, *options: str, **environment: str) -> tuple[int, Found]:
    """The exit status and the findings of a machine on which no daemon ever ran."""
    done = namespace.run(
        (*COMMAND, "doctor", *options, "--output", "json"),
        env={**os.environ, "IPBACKEND_RUN_DIR": "/run/nowhere", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.returncode, json.loads(done.stdout)


def bad(found: Found) -> Found:
    return [one for one in found if one["good"] is False]


def only_bad(namespace: Namespace, *options: str) -> dict[str, Any]:
    status, found = doctor(namespace, *options)
    assert status == 1
    (one,) = bad(found)
    return one


@pytest.fixture(scope="module")
def fresh(own_run: None) -> Iterator[Namespace]:
    """The gateway of a lab that no daemon has touched."""
    with Lab() as lab:
        yield lab["gateway"]


@pytest.fixture
def pair() -> Iterator[Namespace]:
    """A namespace with both ends of a veth, `near` and `far`, up and as the kernel makes them."""
    namespace = Namespace("pair")
    set_sysctls(namespace, forward=False)
    for command in ("link add near type veth peer name far", "link set near up", "link set far up"):
        namespace.run(["ip", *command.split()])
    yield namespace
    namespace.close()


@contextmanager
def attached(namespace: Namespace, interface: str) -> Iterator[None]:
    """A program that passes everything, on an interface for a while."""
    program = load_program(XDP_PASS)
    with namespace.netlink() as netlink:
        index = netlink.link_lookup(ifname=interface)[0]
        netlink.link("set", index=index, xdp_fd=program)
        os.close(program)
        yield
        netlink.link("set", index=index, xdp_fd=-1)


def set_gro(namespace: Namespace, interface: str, on: bool) -> None:
    value = array("I", [ETHTOOL_SGRO, int(on)])
    request = struct.pack("16sP16x", interface.encode(), value.buffer_info()[0])
    with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCETHTOOL, request)


def test_a_healthy_lab_before_attaching(fresh: Namespace) -> None:
    status, found = doctor(fresh, "--file", str(FILE))

    assert (status, bad(found)) == (0, [])
    assert {"kernel", "BPF", "JIT", "BCC", "memory", "eth0", "eth1", "next hop"} <= {one["step"] for one in found}
    assert sum(one["step"] == "next hop" for one in found) == 4


def test_a_healthy_lab_after_attaching(gateway: Gateway) -> None:
    done = gateway.ask("doctor")

    assert done.returncode == 0, done.stdout
    assert done.stdout.count("our program is on it, native mode") == 2
    assert "memory" not in done.stdout  # its tables are there


def test_nothing_stays_of_an_examination(fresh: Namespace) -> None:
    with fresh.netlink() as netlink:

        def seen() -> Any:
            links = [
                (one.get_attr("IFLA_IFNAME"), one["flags"], str(one.get_attr("IFLA_XDP")))
                for one in netlink.get_links()
            ]
            return (
                links,
                [str(one["attrs"]) for one in netlink.get_routes()],
                [str(one["attrs"]) for one in netlink.get_addr()],
            )

        before = seen()
        doctor(fresh, "--file", str(FILE))
        assert seen() == before
    assert not Path("/run/nowhere").exists()


def test_the_whole_program_is_loaded_on_trial(fresh: Namespace, tmp_path: Path) -> None:
    mounts = Path("/proc/self/mounts").read_text()

    status, found = doctor(fresh, "--load", "--interface", "eth0", TMPDIR=str(tmp_path))

    (program,) = (one for one in found if one["step"] == "program")
    assert (status, program["good"]) == (0, True)
    assert program["what"].startswith(f"compiled, and all {len(KINDS)} parts taken by the kernel")
    assert Path("/proc/self/mounts").read_text() == mounts
    assert not list(tmp_path.iterdir())


def test_an_interface_that_is_missing(fresh: Namespace) -> None:
    one = only_bad(fresh, "--interface", "eth0", "--interface", "eth7")

    assert (one["step"], one["what"]) == ("eth7", "there is no such interface")
    assert one["remedy"].endswith("Ethernet here: eth0, eth1")


def test_somebody_else_s_program(fresh: Namespace) -> None:
    with attached(fresh, "eth0"):
        one = only_bad(fresh, "--interface", "eth0", "--interface", "eth1")

    assert one["step"] == "eth0"
    assert "somebody else's XDP program" in one["what"]
    assert "`ip link set dev eth0 xdp off`" in one["remedy"]


def test_an_other_end_that_leaves_checksums_to_hardware(pair: Namespace) -> None:
    one = only_bad(pair, "--interface", "near")
    assert one["what"].startswith("its other end far leaves checksums to hardware")
    assert one["remedy"] == "`ethtool -K far tx off`"

    switch_tx_checksum_off(pair, "far")

    assert doctor(pair, "--interface", "near")[0] == 0


def test_an_interface_that_is_down(pair: Namespace) -> None:
    switch_tx_checksum_off(pair, "far")
    pair.run(["ip", "link", "set", "far", "down"])

    one = only_bad(pair, "--interface", "near")

    assert one["what"] == "it is down, or has no carrier"


def test_mtus_that_differ_and_long_frames(pair: Namespace) -> None:
    for interface in ("near", "far"):
        switch_tx_checksum_off(pair, interface)
    pair.run(["ip", "link", "set", "near", "mtu", "9000"])

    status, found = doctor(pair, "--interface", "near", "--interface", "far")

    assert status == 0
    what = [one["what"] for one in found]
    assert "MTU 9,000: its driver has XDP for frames in several buffers" in what
    assert any(line.startswith("they differ: near 9,000, far 1,500") for line in what)


@pytest.mark.parametrize("value", ["3", "8"])
def test_addresses_that_would_not_be_answered_for(pair: Namespace, value: str) -> None:
    switch_tx_checksum_off(pair, "far")
    with pair:
        Path("/proc/sys/net/ipv4/conf/near/arp_ignore").write_text(value)

    one = only_bad(pair, "--interface", "near")

    assert f"arp_ignore is {value}" in one["what"]
    assert "arp_ignore=1" in one["remedy"]


def test_a_network_behind_a_tunnel(fresh: Namespace) -> None:
    fresh.run(["ip", "tuntap", "add", "dev", "vpn", "mode", "tun"])
    fresh.run(["ip", "link", "set", "vpn", "up"])
    fresh.run(["ip", "route", "add", "192.168.50.0/24", "dev", "vpn"])
    try:
        one = only_bad(fresh, "--file", str(FILE))
        tunnel = only_bad(fresh, "--interface", "vpn")
    finally:
        fresh.run(["ip", "link", "del", "vpn"])

    assert (one["step"], one["what"][:22]) == ("route", "192.168.50.0/24 leads ")
    assert "name that as next hop" in one["remedy"]
    assert tunnel["what"].startswith("no Ethernet (tun)")


def test_routes_that_would_be_taken_for_ours(fresh: Namespace) -> None:
    fresh.run(["ip", "route", "add", "10.77.0.0/16", "via", "10.0.0.2", "proto", "173"])
    try:
        one = only_bad(fresh, "--interface", "eth1")
    finally:
        fresh.run(["ip", "route", "del", "10.77.0.0/16"])

    assert one["what"].startswith("10.77.0.0/16 by eth1 has protocol 173")


def test_a_next_hop_that_is_not_there(fresh: Namespace, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(CONFIGURATION.replace('next_hop = "10.0.0.3"', 'next_hop = "10.0.0.9"'))

    one = only_bad(fresh, "--file", str(file))

    assert (one["step"], one["what"]) == ("next hop", "10.0.0.9 does not answer ARP on eth1")
    assert one["remedy"].startswith("start the router")


def test_memory_is_counted_for_what_the_file_asks(fresh: Namespace, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(CONFIGURATION.replace("[gateway]", "[gateway]\nmax_connections = 16000000"))

    _, found = doctor(fresh, "--file", str(file))

    (memory,) = (one for one in found if one["step"] == "memory")
    assert memory["what"].startswith(f"{tables_memory(16_000_000) / 2**20:,.0f} MiB for the tables")


def test_a_program_that_somebody_took_away(gateway: Gateway, lab: Lab) -> None:
    gateway.kill()  # or it would be put back
    lab["gateway"].run(["ip", "link", "set", "eth0", "xdp", "off"])
    try:
        done = gateway.ask("doctor")
    finally:
        gateway.start()

    assert done.returncode == 1
    assert "FAIL  eth0      our program is loaded, and not on it" in done.stdout


def test_an_other_end_that_takes_no_frames_from_xdp(gateway: Gateway, lab: Lab) -> None:
    """Whatever the gateway sent there would be gone: a veth takes them with GRO, or with a program of its own."""
    client = lab["client"]
    client.run(["ip", "link", "set", "eth0", "xdp", "off"])
    set_gro(client, "eth0", on=False)
    try:
        broken = gateway.ask("doctor")
        set_gro(client, "eth0", on=True)
        mended = gateway.ask("doctor")
    finally:
        set_gro(client, "eth0", on=False)
        program = load_program(XDP_PASS)
        with client.netlink() as netlink:
            netlink.link("set", index=netlink.link_lookup(ifname="eth0")[0], xdp_fd=program)
        os.close(program)

    assert broken.returncode == 1
    assert "they would be lost" in broken.stdout
    assert "`ethtool -K DEV gro on` on its other end" in broken.stdout
    assert mended.returncode == 0
