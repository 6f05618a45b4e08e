"""Captures as operators make them: by the command, read by Wireshark, and what is left when either side goes away."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgReader

from ipbackend import pcapng
from tests.netns.clients import UdpClient, connect, http_get, open_many
from tests.netns.gateway import COMMAND, Gateway
from tests.netns.lab import CLIENT, CLIENTS, MEMBERS, SHOP_VIP, Lab
from tests.netns.test_daemon import ask, status, wait_until
from tests.netns.tshark import checked, fields, wrong_checksums

pytestmark = pytest.mark.root

WEB, RESOLVER = (SHOP_VIP, 80), (SHOP_VIP, 53)
COMMENT = "frame.comment"
XDP_REDIRECT = "4"


@contextmanager
def capturing(gateway: Gateway, file: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`ipbackend capture` as it runs, from its beginning to Ctrl-C; it must end well."""
    process = gateway.begin("capture", "-w", str(file), *options)
    try:
        wait_until(lambda: file.exists() and file.stat().st_size > 0 and status(gateway)["capture"] is not None)
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()


def programs(gateway: Gateway, lab: Lab) -> set[int]:
    """The ids of the programs that are attached to the gateway."""
    with lab["gateway"].netlink() as netlink:
        links = (link.get_attr("IFLA_XDP") for link in netlink.get_links())
        return {xdp.get_attr("IFLA_XDP_PROG_ID") for xdp in links if xdp and xdp.get_attr("IFLA_XDP_PROG_ID")}


def test_wireshark_finds_no_wrong_checksum(gateway: Gateway, lab: Lab, tmp_path: Path) -> None:
    """TCP and UDP, whole transfers, refusals and errors; in the file of the same packets, one made wrong is found."""
    file = tmp_path / "all.pcapng"
    with capturing(gateway, file, "--rate", "100000", "--snaplen", "9216"):
        http_get(lab["client"], None, WEB, "/bytes/200000")
        with UdpClient(lab["client"], None, RESOLVER) as asking:
            asking.ask(bytes(range(256)) * 4)
        with pytest.raises(ConnectionRefusedError):
            connect(lab["client"], None, (SHOP_VIP, 99))
        with UdpClient(lab["client"], None, (SHOP_VIP, 99)) as asking, pytest.raises(ConnectionRefusedError):
            asking.ask(b"anybody?")

    comments = [str(one) for one in fields(file, COMMENT)]
    assert wrong_checksums(file) == []
    assert checked(file) == len(comments) > 100
    for verdict in ("FORWARD_OPENED", "FORWARD_REQUEST", "FORWARD_REPLY", "REJECT_NO_LISTENER"):
        assert any(f"{verdict}: " in one for one in comments)

    broken = bytearray(file.read_bytes())
    at = broken.index(b"HTTP/1.1 200")
    broken[at] ^= 0xFF
    (tmp_path / "broken.pcapng").write_bytes(broken)
    assert len(wrong_checksums(tmp_path / "broken.pcapng")) == 1


def test_packets_are_told_apart_and_named(gateway: Gateway, lab: Lab, tmp_path: Path) -> None:
    """Of one client only: what came and what left have one number, and name interface, direction and verdict."""
    file = tmp_path / "one.pcapng"
    with capturing(gateway, file, "--client", f"{CLIENTS[3]}/32", "--port", "80"):
        with UdpClient(lab["client"], CLIENTS[3], RESOLVER) as asking:
            asking.ask(b"another port")
        http_get(lab["client"], CLIENTS[4], WEB)
        member = MEMBERS[http_get(lab["client"], CLIENTS[3], WEB).identity.member]

    shown = (COMMENT, "frame.packet_flags_direction", "frame.interface_name", "frame.packet_id")
    frames = fields(file, *shown, "frame.verdict.ebpf_xdp", "ip.src", "ip.dst")
    first, second, third, fourth = frames[:4]
    assert first[COMMENT] == ["FORWARD_OPENED: opened a connection, on to the member; packet 1 as it came"]
    assert second[COMMENT] == ["FORWARD_OPENED: opened a connection, on to the member; packet 1 as it left"]
    assert third[COMMENT] == ["FORWARD_REPLY: of a connection, back to the client; packet 2 as it came"]
    assert [one["frame.interface_name"] for one in frames[:4]] == [["eth0"], ["eth1"], ["eth1"], ["eth0"]]
    assert [one["frame.packet_id"] for one in frames[:4]] == [["1"], ["1"], ["2"], ["2"]]
    assert {one["frame.verdict.ebpf_xdp"][0] for one in frames} == {XDP_REDIRECT}
    directions = [int(one["frame.packet_flags_direction"][0], 0) for one in frames[:4]]
    assert directions == [1, 2, 1, 2]
    assert (first["ip.src"], first["ip.dst"]) == ([CLIENTS[3]], [SHOP_VIP])
    assert (fourth["ip.src"], fourth["ip.dst"]) == ([SHOP_VIP], [CLIENTS[3]])
    assert second["ip.dst"] == [member] == third["ip.src"]
    assert second["ip.src"] == third["ip.dst"]
    assert {CLIENTS[4]}.isdisjoint(one[end][0] for one in frames for end in ("ip.src", "ip.dst"))


def test_a_pipe_gets_so_many_packets_and_the_end(gateway: Gateway, lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "piped.pcapng"
    with file.open("wb") as pipe:
        environment = {**os.environ, "IPBACKEND_RUN_DIR": str(gateway.run_directory)}
        command = (*COMMAND, "capture", "-w", "-", "--count", "3")
        process = lab["gateway"].popen(command, env=environment, stdout=pipe, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: file.stat().st_size > 0)
        http_get(lab["client"], None, WEB)
        _, told = process.communicate(timeout=20)
    assert (process.returncode, told) == (0, "3 packets; left out: 0 over 1,000 a second, 0 not read in time\n")
    with PcapNgReader(str(file)) as reader:
        frames = [Ether(bytes(packet)) for packet in reader]
    assert len(frames) == 6
    assert [frames[0][IP].dst, frames[3][IP].dst] == [SHOP_VIP, CLIENT]
    wait_until(lambda: status(gateway)["capture"] is None)


def test_what_comes_too_fast_is_left_out_and_counted(gateway: Gateway, lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "slow.pcapng"
    gateway_side = (*COMMAND, "capture", "-w", str(file), "--rate", "10")
    environment = {**os.environ, "IPBACKEND_RUN_DIR": str(gateway.run_directory)}
    process = lab["gateway"].popen(gateway_side, env=environment, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: file.exists() and file.stat().st_size > 0)
    before = sum(ask(gateway, "GET", "/ipbackend/counters")["totals"][name] for name in ("forwarded", "rejected"))
    http_get(lab["client"], None, WEB, "/bytes/300000")
    received = sum(ask(gateway, "GET", "/ipbackend/counters")["totals"][name] for name in ("forwarded", "rejected"))
    shown = status(gateway)["capture"]
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=20)

    assert process.returncode == 0
    packets = int(told.split()[0])
    left_out = int(told.split("left out: ")[1].split()[0])
    assert shown["over_rate"] > 0
    assert packets < 60
    assert packets + left_out >= received - before
    assert pcapng.closing(file.read_bytes()) == told.strip()


def test_one_capture_at_a_time_until_the_daemon_stops(gateway: Gateway, lab: Lab, tmp_path: Path) -> None:
    before, file, none = programs(gateway, lab), tmp_path / "first.pcapng", tmp_path / "second.pcapng"
    process = gateway.begin("capture", "-w", str(file))
    wait_until(lambda: status(gateway)["capture"] is not None, 90)
    refused = gateway.ask("capture", "-w", str(none))
    assert (refused.returncode, refused.stderr.startswith("Error: capture: another one runs (by ")) == (1, True)
    wrong = gateway.ask("capture", "-w", str(none), "--client", "nowhere")
    assert (wrong.returncode, wrong.stderr.startswith("Error: 'nowhere' is not an IPv4 address")) == (1, True)
    assert not none.exists()
    assert "capture      0 packets since " in gateway.command("status")

    gateway.stop()
    assert process.wait(timeout=20) == 0
    assert programs(gateway, lab) == before
    assert (pcapng.closing(file.read_bytes()) or "").startswith("0 packets; left out: ")
    gateway.start()
    assert "capture " not in gateway.command("status")


# --- What goes away.


def test_a_client_that_goes_away_ends_it(gateway: Gateway, lab: Lab, tmp_path: Path) -> None:
    before = programs(gateway, lab)
    process = gateway.begin("capture", "-w", str(tmp_path / "killed.pcapng"))
    wait_until(lambda: status(gateway)["capture"] is not None, 90)
    assert programs(gateway, lab).isdisjoint(before)
    with open_many(lab["client"], None, WEB, 5) as crowd:
        process.kill()
        process.wait()
        wait_until(lambda: status(gateway)["capture"] is None)
        wait_until(lambda: programs(gateway, lab) == before)
        assert status(gateway)["drift"] == []
        for one in crowd.connected:
            one.get()


def test_a_daemon_that_is_killed_meanwhile_comes_back_without_or_unloads_all(
    gateway: Gateway, lab: Lab, tmp_path: Path
) -> None:
    """Packets go on through the programs that show them to nobody, until those of before are back."""
    before = programs(gateway, lab)
    process = gateway.begin("capture", "-w", str(tmp_path / "orphan.pcapng"))
    with open_many(lab["client"], None, WEB, 5) as crowd:
        wait_until(lambda: status(gateway)["capture"] is not None, 90)
        gateway.kill()
        process.wait(timeout=20)
        assert programs(gateway, lab).isdisjoint(before)
        for one in crowd.connected:
            one.get()
        http_get(lab["client"], None, WEB)
        gateway.start()
        assert programs(gateway, lab) == before
        assert (status(gateway)["capture"], status(gateway)["drift"]) == (None, [])
        for one in crowd.connected:
            one.get()
    pins = {path.name for path in (gateway.run_directory / "bpf" / "programs").iterdir()}
    assert not {name for name in pins if "beside" in name}

    again = gateway.begin("capture", "-w", str(tmp_path / "orphan.pcapng"))
    wait_until(lambda: status(gateway)["capture"] is not None, 90)
    gateway.kill()
    again.wait(timeout=20)
    assert "eth0: XDP detached" in gateway.command("unload")
    assert programs(gateway, lab) == set()
    gateway.start()
