"""What the doctor makes of facts: each finding, from facts that are made up, and its remedy."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ipbackend import doctor, host
from ipbackend.datapath import features
from ipbackend.doctor import Hop
from ipbackend.finding import Finding
from ipbackend.host import Host
from ipbackend.links import Link, Route, Xdp
from ipbackend.model import AttachMode
from ipbackend.network import ROUTE_PROTOCOL, Attachment
from tests.unit.commands import ipbackend

MIB = 1 << 20
HOST = Host("6.18.44", 2, {}, 13, "0.26.0", memory=1000 * MIB, jit=True, clock="tsc", neighbours=1024)
ALL = Xdp.BASIC | Xdp.REDIRECT | Xdp.NDO_XMIT | Xdp.RX_SG
ETH0 = Link(2, "eth0", 1500, True, True, driver="ice", rx_queues=2, tx_queues=2, most_queues=2, xdp=ALL)
OURS = 77


def of_host(tables: int | None = 100 * MIB, **facts: Any) -> list[Finding]:
    return list(doctor.of_host(replace(HOST, **facts), tables))


def of_link(mode: AttachMode = AttachMode.AUTO, ours: int | None = None, **facts: Any) -> list[Finding]:
    link = replace(ETH0, **facts)
    others = {"far": replace(ETH0, name="far", tx_checksum=True), link.name: link}
    return list(doctor.of_link(link, others, mode, ours, HOST.cpus))


def odd(found: Iterable[Finding]) -> list[Finding]:
    return [one for one in found if not one.good]


def only(found: Iterable[Finding]) -> Finding:
    """The one that is not good."""
    (finding,) = odd(found)
    return finding


def test_a_good_machine() -> None:
    assert [(one.step, one.good) for one in of_host()] == [
        (step, True) for step in ("kernel", "BPF", "JIT", "BCC", "memory", "clock")
    ]
    assert [one.good for one in of_link()] == [True]
    assert [one.good for one in of_link(ours=OURS, program=Attachment(OURS, "native"))] == [True, True]


@pytest.mark.parametrize(
    ("facts", "good", "step", "what", "remedy"),
    [
        ({"lacking": {"ring buffers": "Invalid argument"}}, False, "BPF", "no ring buffers: Invalid argument", "5.19"),
        ({"lacking": {"XDP programs": "Operation not permitted"}}, None, "BPF", "could not be tried", "as root"),
        ({"jit": False}, False, "JIT", "off: the program is interpreted", "net.core.bpf_jit_enable=1"),
        ({"bcc": "", "without_bcc": "No module named 'bcc'"}, False, "BCC", "No module named 'bcc'", "python3-bpfcc"),
        ({"without_headers": "/usr/include/linux: none"}, False, "BCC", "/usr/include/linux", "linux-libc-dev"),
        ({"memory": 99 * MIB}, False, "memory", "100 MiB for the tables", "a lower gateway.max_connections"),
        ({"memory": 150 * MIB}, None, "memory", "150 MiB are free", "little to spare"),
        ({"release": "5.10.0-30-amd64", "memlock": 65536}, False, "memory", "that is 64 kiB", "LimitMEMLOCK=infinity"),
        ({"bpffs": False}, False, "bpffs", "no such file system", "CONFIG_BPF_SYSCALL"),
        ({"clock": "acpi_pm"}, None, "clock", "acpi_pm is slow to read", "clocksource=tsc"),
    ],
)
def test_what_a_machine_may_lack(facts: dict[str, Any], good: bool | None, step: str, what: str, remedy: str) -> None:
    finding = only(of_host(**facts))

    assert (finding.step, finding.good) == (step, good)
    assert what in finding.what
    assert remedy in finding.remedy


@pytest.mark.parametrize("release", ["5.11.0", "6.1.0-9-amd64", "6.18.44-fc-v669"])
def test_locked_memory_does_not_matter_to_newer_kernels(release: str) -> None:
    assert odd(of_host(release=release, memlock=65536)) == []


def test_an_old_kernel_with_enough_locked_memory() -> None:
    assert odd(of_host(release="5.10.0", memlock=101 * MIB)) == []


def test_tables_that_are_there_need_no_memory_more() -> None:
    assert "memory" not in {one.step for one in of_host(tables=None)}


@pytest.mark.parametrize(
    ("facts", "good", "what", "remedy"),
    [
        ({"ethernet": False, "kind": "wireguard"}, False, "no Ethernet (wireguard)", "end the tunnel on a router"),
        ({"up": False}, False, "down, or has no carrier", "ip link set eth0 up"),
        ({"xdp": Xdp(0), "driver": "e1000"}, None, "e1000 has no native XDP", ""),
        ({"xdp": None, "driver": "e1000"}, None, "this kernel does not tell", ""),
        ({"program": Attachment(5, "native")}, False, "somebody else's XDP program 5 is on it", "xdp off"),
        ({"mtu": 9000, "xdp": ALL & ~Xdp.RX_SG}, False, "MTU 9,000 is more than one buffer (3,506)", "mtu 3506"),
        ({"mtu": 9000, "xdp": None}, None, "whether its driver does more is not known", "attaching shows"),
        ({"rx_queues": 1, "most_queues": 8}, None, "1 receive and 2 send queues for 2 CPUs", "-L eth0 combined 2"),
        ({"rx_queues": 1, "most_queues": 8, "kind": "veth"}, None, "1 receive and 2 send", "-L eth0 rx 2 tx 2"),
        ({"tx_queues": 1, "most_queues": 1}, None, "2 receive and 1 send queues", "it has no more"),
        (
            {"driver": "ena", "mtu": 9001, "xdp": Xdp.BASIC, "most_queues": 4},
            False,
            "more than one buffer (3,498)",
            "mtu 3498",
        ),
        ({"driver": "gve", "mtu": 2033, "xdp": None, "most_queues": 4}, False, "one buffer (2,032)", "mtu 2032"),
        ({"driver": "vmxnet3", "mtu": 3500, "xdp": Xdp.BASIC}, False, "one buffer (3,494)", "mtu 3494"),
        ({"driver": "ena", "most_queues": 3}, False, "2 of 3 queues are in use", "-L eth0 combined 1"),
        ({"driver": "gve", "most_queues": 3}, False, "refused with more than half", "-L eth0 rx 1 tx 1"),
        ({"driver": "ena", "rx_queues": 1, "most_queues": 1}, False, "1 of 1 queues", "a larger machine"),
        ({"driver": "ena", "rx_queues": 1, "tx_queues": 1}, None, "for 2 CPUs", "it has no more"),
        (
            {"driver": "virtio_net", "most_queues": 3},
            None,
            "no queues are left over",
            "4 queues from outside, and use 2",
        ),
        ({"lro": True}, False, "LRO is on", "ethtool -K eth0 lro off"),
        ({"hardware_gro": True}, False, "the card's own GRO is on", "ethtool -K eth0 rx-gro-hw off"),
        ({"peer": "far"}, False, "far leaves checksums to hardware that is not there", "ethtool -K far tx off"),
        ({"peer_far": True}, None, "its other end is in another namespace", "tx off gro on"),
        ({"arp_ignore": 3}, False, "arp_ignore is 3", "arp_ignore=1"),
        ({"arp_ignore": 8}, False, "arp_ignore is 8", "arp_ignore=1"),
        ({"arp_ignore": 2}, None, "arp_ignore is 2", "arp_ignore=1"),
        ({"rp_filter": 1}, None, "rp_filter is strict", "rp_filter=2"),
        ({"master": "br0"}, None, "a port of br0", ""),
    ],
)
def test_what_may_be_the_matter_with_an_interface(
    facts: dict[str, Any], good: bool | None, what: str, remedy: str
) -> None:
    finding = only(of_link(**facts))

    assert (finding.step, finding.good) == ("eth0", good)
    assert what in finding.what
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    ("facts", "mode"),
    [
        ({"xdp": None, "driver": "virtio_net"}, AttachMode.NATIVE),
        ({"mtu": 9000}, AttachMode.NATIVE),
        ({"mtu": 9000, "xdp": Xdp(0)}, AttachMode.GENERIC),
        ({"arp_ignore": 1, "rp_filter": 2}, AttachMode.AUTO),
        ({"rx_queues": 0, "tx_queues": 1}, AttachMode.AUTO),
        ({"driver": "ena", "most_queues": 2}, AttachMode.GENERIC),
        ({"driver": "ena", "most_queues": 4, "mtu": 3498}, AttachMode.NATIVE),
        ({"driver": "virtio_net", "most_queues": 4, "mtu": 3506}, AttachMode.NATIVE),
    ],
)
def test_what_is_no_trap(facts: dict[str, Any], mode: AttachMode) -> None:
    assert [one for one in of_link(mode, **facts) if one.good is False] == []


def test_native_mode_where_the_driver_has_none() -> None:
    finding = only(of_link(AttachMode.NATIVE, xdp=Xdp(0)))

    assert finding.good is False
    assert "attach_mode" in finding.remedy


def test_generic_mode_where_checksums_come_late() -> None:
    found = odd(of_link(AttachMode.GENERIC, driver="virtio_net", rx_checksum=True))

    assert [one.remedy for one in found] == ["`ethtool -K eth0 rx off`"]
    assert odd(of_link(AttachMode.NATIVE, driver="virtio_net", rx_checksum=True, most_queues=4)) == []


@pytest.mark.parametrize(
    ("facts", "good", "what"),
    [
        ({}, False, "our program is loaded, and not on it"),
        ({"program": Attachment(5, "native")}, False, "somebody else's XDP program"),
        ({"program": Attachment(OURS, "generic")}, None, "runs in generic mode, and its driver has native"),
        ({"program": Attachment(OURS, "native"), "xdp": ALL & ~Xdp.NDO_XMIT}, False, "they would be lost"),
    ],
)
def test_what_may_be_the_matter_once_it_is_loaded(facts: dict[str, Any], good: bool | None, what: str) -> None:
    finding = only(of_link(ours=OURS, **facts))

    assert finding.good is good
    assert what in finding.what


def test_a_program_that_loads_or_does_not() -> None:
    assert doctor.of_rehearsal({"entry": 23_000, "open": 401_000}, 4.21, "").what == (
        "compiled, and all 2 parts taken by the kernel, in 4.2 s "
        "(its verifier went through 401,000 instructions of open, and gives up at 1,000,000)"
    )
    assert doctor.of_rehearsal({}, 0, "open: too large")[:3] == ("program", False, "open: too large")


def test_interfaces_that_are_not_there_or_differ() -> None:
    found = {"eth0": ETH0, "eth1": replace(ETH0, name="eth1", mtu=9000)}
    missing = only(doctor.of_links(found, ["eth0", "eth7"], AttachMode.AUTO, None, 2))
    differing = only(doctor.of_links(found, ["eth0", "eth1"], AttachMode.AUTO, None, 2))

    assert (missing.step, missing.good) == ("eth7", False)
    assert missing.remedy.endswith("Ethernet here: eth0, eth1")
    assert (differing.step, differing.good) == ("MTU", None)
    assert "eth0 1,500, eth1 9,000" in differing.what


def of_routes(*routes: Route, loaded: bool = False) -> list[Finding]:
    found = {"eth0": ETH0, "wg0": replace(ETH0, name="wg0", ethernet=False)}
    networks = {"on-premises": (IPv4Network("192.168.50.0/24"),)}
    return list(doctor.of_routes(routes, found, networks, loaded))


@pytest.mark.parametrize(
    ("cidr", "interface", "good"),
    [
        ("192.168.0.0/16", "wg0", [False]),
        ("172.16.0.0/12", "wg0", [None]),
        ("0.0.0.0/0", "wg0", [None]),
        ("8.8.8.0/24", "wg0", []),
        ("192.168.50.0/24", "eth0", []),
    ],
)
def test_routes_to_what_is_no_ethernet(cidr: str, interface: str, good: list[bool | None]) -> None:
    assert [one.good for one in of_routes(Route(IPv4Network(cidr), interface, 3))] == good


def test_routes_under_our_protocol_that_are_not_ours() -> None:
    route = Route(IPv4Network("10.9.0.0/16"), "eth0", ROUTE_PROTOCOL)

    assert "will be removed" in only(of_routes(route)).what
    assert of_routes(route, loaded=True) == []


def hops(count: int, silent: int = 0) -> dict[Hop, str | None]:
    addresses = [IPv4Address("10.0.0.0") + number for number in range(1, count + 1)]
    return {Hop("eth1", one, number == 0): None if number < silent else "02::1" for number, one in enumerate(addresses)}


def test_next_hops() -> None:
    assert [one.what for one in doctor.of_next_hops(hops(2), HOST)] == [
        "10.0.0.1 is 02::1 on eth1",
        "10.0.0.2 is 02::1 on eth1",
    ]
    assert [one.what for one in doctor.of_next_hops(hops(100), HOST)] == ["100 answer ARP"]
    router, member = odd(doctor.of_next_hops(hops(3, silent=2), HOST))
    assert router.what == "10.0.0.1 does not answer ARP on eth1"
    assert router.remedy.startswith("start the router")
    assert member.remedy.startswith("start the member")


def test_more_neighbours_than_the_kernel_keeps() -> None:
    assert odd(doctor.of_next_hops(hops(768), HOST)) == []
    assert "gc_thresh3=1538" in only(doctor.of_next_hops(hops(769), HOST)).remedy
    assert odd(doctor.of_next_hops(hops(769), replace(HOST, neighbours=0))) == []


@pytest.mark.parametrize(("good", "status"), [(True, 0), (None, 0), (False, 1)])
def test_the_command_fails_with_what_stands_against_it(
    good: bool | None, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def checkup(*arguments: Any) -> list[Finding]:
        asked.append(arguments)
        return [Finding("kernel", True, "Linux"), Finding("enp101s0f0np0", good, "what", "remedy")]

    monkeypatch.setattr("ipbackend.checkup.checkup", checkup)
    line = f"--run-dir {tmp_path} doctor --interface a --interface b"
    shown, as_data = ipbackend(line), ipbackend(f"{line} --output json")

    assert asked[0] == (tmp_path, ("a", "b"), None, False)
    assert (shown.exit_code, as_data.exit_code) == (status, status)
    kernel, second, remedy = shown.stdout.splitlines()
    assert kernel.index("Linux") == second.index("what") == remedy.index("→")
    assert json.loads(as_data.stdout)[1] == {"step": "enp101s0f0np0", "good": good, "what": "what", "remedy": "remedy"}


def test_a_feature_that_the_kernel_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(features, "FEATURES", {"what no kernel has": refused})

    assert features.missing() == {"what no kernel has": "Invalid argument"}


@pytest.mark.root
def test_a_helper_that_is_not_there_is_found_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"good": features.FEATURES["the timer's count"], "bad": lambda: features._loaded(6, features._call(9999))}
    monkeypatch.setattr(features, "FEATURES", asked)

    assert features.missing() == {"bad": "Invalid argument"}


def test_another_project_of_the_same_name_is_no_bcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc", SimpleNamespace(__file__="/somewhere/bcc.py"))
    assert host._compiler() == ("", "/somewhere/bcc.py is another project of that name")

    monkeypatch.setitem(sys.modules, "bcc", None)
    assert host._compiler()[0] == ""


@pytest.mark.parametrize(("version", "why"), [("0.18.0", "BCC 0.18.0 is too old"), ("0.26.0", ""), ("0.31.0+ds", "")])
def test_a_bcc_that_would_abort_is_refused(version: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its compiler ends the whole process at what it cannot do: it must not be asked."""
    monkeypatch.setitem(sys.modules, "bcc", SimpleNamespace(BPF=object, __version__=version, __file__="bcc.py"))

    found, refusal = host._compiler()

    assert found == ("" if why else version)
    assert refusal.startswith(why)
