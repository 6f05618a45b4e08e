"""What `ipbackend explain` prints of the real maps, and that it leaves them as they were."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import TCP

from ipbackend.abi import Phase
from ipbackend.store import LINK
from tests.packet.cast import CLIENT, CONFIGURATION, MEMBER, SNATS, VIP, from_client, mac_of, pool_of
from tests.packet.conftest import RUN, Dataplane
from tests.packet.test_cli import Shell, keep
from tests.packet.test_explain import memory

ASKED = f"explain {CLIENT}:40000 {VIP}:80"


@pytest.fixture
def shell(dataplane: Dataplane, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """Interfaces are called by the lab's names, though packets come in by `lo` here."""
    names = {"eth0": 1, "eth1": 2}
    monkeypatch.setattr("socket.if_nametoindex", names.__getitem__)
    monkeypatch.setattr("socket.if_indextoname", {index: name for name, index in names.items()}.__getitem__)
    keep(CONFIGURATION)
    yield Shell()
    (RUN / LINK).unlink(missing_ok=True)


def test_a_syn_step_by_step(shell: Shell, dataplane: Dataplane) -> None:
    lines = shell.call(ASKED).stdout.splitlines()

    steps = [line.split("  ")[0] for line in lines]
    assert steps == [
        *("packet", "address", "connection", "listener", "pool", "member 1", "slot", "SNAT", "next hop", "size", "out"),
        "verdict",
    ]
    text = "\n".join(lines)
    assert f"TCP {CLIENT}:40000 → {VIP}:80, flags S, 40 bytes of IP, TTL 64, in by eth0" in text
    assert f"web ({VIP}:80/TCP), idle timeout 300 s" in text
    assert f"{MEMBER}:8080 has room: 0 of 50 connections" in text
    assert f"{MEMBER}, {mac_of(IPv4Address(MEMBER)).hex(':')} on eth1, MTU 1500" in text
    assert lines[-1].split("  ", 1)[1].strip() == "FORWARD_OPENED: opened a connection, on to the member"


def test_as_data(shell: Shell, dataplane: Dataplane) -> None:
    flow = dataplane.establish()
    (outcome,) = shell.shown(f"explain {MEMBER}:8080 {flow.snat}:{flow.snat_port} --flags A")["outcomes"]

    assert outcome == {
        "verdict": "FORWARD_REPLY",
        "meaning": "of a connection, back to the client",
        "member": f"{MEMBER}:8080",
        "snat": f"{flow.snat}:{flow.snat_port}",
        "slot": dataplane.slot(flow),
        "source": f"{VIP}:80",
        "destination": f"{CLIENT}:40000",
        "interface": "eth0",
        "mac": "02:00:00:00:00:07",
        "vlan": 0,
        "mtu": 1500,
    }


def test_members_are_passed_over_by_name(shell: Shell, dataplane: Dataplane) -> None:
    text = pool_of(
        *(f'address = "10.0.0.{host}", port = 8080, max_connections = {most}' for host, most in ((11, 1), (12, 50)))
    )
    keep(text)
    dataplane.configure(text)
    dataplane.start_anew()
    told = []
    for port in (40001, 40002, 40003, 40004):
        told.append(shell.shown(f"explain {CLIENT}:{port} {VIP}:80")["candidates"])
        dataplane.open(from_client() / TCP(sport=port, dport=80, flags="S"))

    full = {"member": "10.0.0.11:8080", "takes": False, "why": "passed over: full, 1 of 1 connections"}
    passed_over = [some for some in told if some[0] == full]
    assert passed_over
    assert all(some[1]["member"] == "10.0.0.12:8080" and some[1]["takes"] for some in passed_over)


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ("--flags A", "REJECT_NO_CONNECTION"),
        ("--flags R", "DROP_NO_CONNECTION"),
        ("--size 1501", "DROP_TOO_BIG"),
        ("--size 1501 --df", "REJECT_TOO_BIG"),
        ("--ttl 1", "REJECT_TTL"),
        ("--protocol udp", "REJECT_NO_LISTENER"),
        ("--interface eth1", "FORWARD_OPENED"),
        ("--icmp-error", "PASS_NOT_OURS"),
    ],
)
def test_options(shell: Shell, dataplane: Dataplane, options: str, verdict: str) -> None:
    assert [one["verdict"] for one in shell.shown(f"{ASKED} {options}")["outcomes"]] == [verdict]


def test_a_router_s_error_about_what_went_to_the_member(shell: Shell, dataplane: Dataplane) -> None:
    flow = dataplane.establish()

    (outcome,) = shell.shown(f"explain {flow.snat}:{flow.snat_port} {MEMBER}:8080 --icmp-error")["outcomes"]

    assert (outcome["verdict"], outcome["destination"]) == ("FORWARD_ICMP_ERROR", f"{CLIENT}:40000")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (f"explain {CLIENT} {VIP}:80", f"source: '{CLIENT}' has no port (write ADDRESS:PORT)"),
        (f"explain {CLIENT}:1 vip:80", "destination: 'vip:80' is not an IPv4 address"),
        (f"{ASKED} --size 39", "size: 39 is out of range (write 40 to 65535 for TCP)"),
        (f"{ASKED} --flags SX", "flags: X are none that matter here (write letters of FSRA)"),
        (f"{ASKED} --ttl 256", "ttl: 256 is out of range (write 0 to 255)"),
        (f"{ASKED} --interface eth7", "interface: 'eth7' is not one of gateway.interfaces, no program of ours sees"),
    ],
)
def test_what_is_no_packet_is_refused(shell: Shell, dataplane: Dataplane, line: str, error: str) -> None:
    result = shell.call(line)

    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {error}")


def test_asking_leaves_no_trace(shell: Shell, dataplane: Dataplane) -> None:
    flow = dataplane.establish()
    before = memory(dataplane)

    for asked in (ASKED, f"explain {CLIENT}:40001 {VIP}:80", f"explain {MEMBER}:8080 {flow.snat}:{flow.snat_port}"):
        shell.call(asked)

    assert memory(dataplane) == before
    assert dataplane.phase(flow) is Phase.ESTABLISHED
    assert flow.snat in SNATS
