"""The lab keeps its promises, by itself: no gateway program runs here."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from .clients import RawPort, UdpClient, connect, http_get, open_many
from .lab import (
    CLIENT,
    CLIENTS,
    GATEWAY_CLIENT_SIDE,
    GATEWAY_MEMBER_SIDE,
    MEMBER_TCP_PORT,
    MEMBER_UDP_PORT,
    MEMBERS,
    ONPREM,
    PEERED_VPC,
    ROUTER_ONPREM,
    ROUTER_PEERING,
    XDP_PEERS,
    End,
    Lab,
    bpf,
    index_of,
    load_program,
)
from .members import REPOSITORY, Member, payload, running
from .namespace import die_with_parent

pytestmark = pytest.mark.root

XDP_TX = 3
XDP_ATTACHED_NATIVE = "xdp"
BPF_PROG_GET_FD_BY_ID = 13
MEMBER = (MEMBERS["member-1"], MEMBER_TCP_PORT)
SOMEBODY = "02:00:00:00:00:77"
BROADCAST = "ff:ff:ff:ff:ff:ff"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab whose gateway has by hand the routes that its program would add."""
    with Lab() as lab:
        with lab["gateway"].netlink() as netlink:
            netlink.route("add", dst=PEERED_VPC, gateway=ROUTER_PEERING)
            netlink.route("add", dst=ONPREM, gateway=ROUTER_ONPREM)
        yield lab


@pytest.fixture(scope="module")
def members(lab: Lab) -> Iterator[dict[str, Member]]:
    with running(lab.members()) as members:
        yield members


def wait_until(condition: Callable[[], bool], deadline: float = 10.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"not within {deadline} s"
        time.sleep(0.005)


# The networks


@pytest.mark.parametrize("name", MEMBERS)
def test_the_gateway_reaches_every_member(lab, members, name):
    answer = http_get(lab["gateway"], None, (MEMBERS[name], MEMBER_TCP_PORT)).identity

    assert answer.member == name
    assert answer.peer_address == GATEWAY_MEMBER_SIDE
    assert answer.local == f"{MEMBERS[name]}:{MEMBER_TCP_PORT}"


@pytest.mark.parametrize("source", [CLIENTS[0], CLIENTS[-1]])
def test_a_client_reaches_the_gateway(lab, source):
    with lab["gateway"].socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((GATEWAY_CLIENT_SIDE, 0))
        listener.listen()
        listener.settimeout(2)
        with connect(lab["client"], source, listener.getsockname()) as connection:
            accepted, peer = listener.accept()
            accepted.close()

            assert peer == connection.local
            assert peer[0] == source


def test_the_gateway_itself_does_not_forward(lab, members):
    with (
        RawPort(lab["client"], "eth0") as client,
        RawPort(lab["gateway"], "eth0") as gateway,
        RawPort(lab["member-1"], "eth0") as member,
    ):
        client.send(bytes(Ether(dst=gateway.mac, src=client.mac) / IP(src=CLIENT, dst=MEMBER[0]) / UDP()))
        gateway.expect(lambda frame: IP in frame and frame[IP].dst == MEMBER[0])
        http_get(lab["gateway"], None, MEMBER)  # arrives after anything the gateway would have forwarded

        sources = {frame[IP].src for frame in member.arrived() if IP in frame}
        assert sources == {GATEWAY_MEMBER_SIDE}


def test_a_shell_can_enter_a_namespace(lab):
    command = [*lab.enter_command("client").split(), "cat", "/proc/net/fib_trie"]
    seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert CLIENT in seen
    assert GATEWAY_MEMBER_SIDE not in seen


# The wire


def rebuilt(frame: Packet) -> bytes:
    """The same frame with checksums made anew."""
    fresh = frame.copy()
    for layer in (IP, TCP, UDP):
        if layer in fresh:
            del fresh[layer].chksum
    return bytes(fresh)


@pytest.mark.parametrize("name", ["member-1", "member-peered", "member-onprem"])
def test_checksums_are_complete_and_frames_are_single_on_the_wire(lab, members, name):
    with RawPort(lab["gateway"], "eth1") as gateway, RawPort(lab[name], "eth0") as member:
        with connect(lab["gateway"], None, (MEMBERS[name], MEMBER_TCP_PORT)) as connection:
            connection.download(100_000)
            connection.upload(100_000)
        with UdpClient(lab["gateway"], None, (MEMBERS[name], MEMBER_UDP_PORT)) as udp:
            udp.ask(b"one")

        assert_true_to_the_wire(gateway, at_least=70)
        assert_true_to_the_wire(member, at_least=70)


def test_checksums_are_complete_between_client_and_gateway(lab):
    with (
        RawPort(lab["gateway"], "eth0") as gateway,
        RawPort(lab["client"], "eth0") as client,
        lab["gateway"].socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
    ):
        listener.bind((GATEWAY_CLIENT_SIDE, 0))
        listener.listen()
        listener.settimeout(2)
        with connect(lab["client"], CLIENT, listener.getsockname()) as connection:
            accepted, _ = listener.accept()
            with accepted:
                for sender, receiver in ((connection.socket, accepted), (accepted, connection.socket)):
                    sender.sendall(payload(20_000))
                    received = b""
                    while len(received) < 20_000:
                        received += receiver.recv(1 << 16)
                    assert received == payload(20_000)

        assert_true_to_the_wire(gateway, at_least=14)
        assert_true_to_the_wire(client, at_least=14)


def assert_true_to_the_wire(port: RawPort, at_least: int) -> None:
    frames = [frame for frame in port.arrived() if IP in frame]
    assert len(frames) >= at_least
    for frame in frames:
        assert len(frame) <= 1514, frame.summary()
        assert rebuilt(frame).hex() == bytes(frame).hex(), frame.summary()


@pytest.mark.parametrize("end", XDP_PEERS, ids=lambda end: f"{end.role}-{end.interface}")
def test_the_gateways_peers_run_a_native_xdp_program(lab, end):
    with lab[end.role].netlink() as netlink:
        xdp = netlink.link("get", ifname=end.interface)[0].get_attr("IFLA_XDP")

    assert xdp.get_attr("IFLA_XDP_ATTACHED") == XDP_ATTACHED_NATIVE


@pytest.mark.parametrize(("near", "far"), [("client", "eth0"), ("member-1", "eth1")])
def test_frames_sent_by_xdp_tx_arrive(lab, near, far):
    """More than the 256 frames after which a peer without a program of its own gets no more."""
    with RawPort(lab[near], "eth0") as port, reflecting(lab, far):
        for number in range(600):
            message = b"reflected %06d" % number
            port.send(bytes(Ether(dst=BROADCAST, src=SOMEBODY, type=0x88B5) / Raw(message)))
            port.expect(lambda frame, message=message: message in bytes(frame))


class reflecting:  # noqa: N801 - reads as a verb where it is used
    """The gateway's interface sends back, by XDP_TX, whatever it receives."""

    def __init__(self, lab: Lab, interface: str) -> None:
        self.netlink = lab["gateway"].netlink()
        self.index = index_of(self.netlink, End("gateway", interface))

    def __enter__(self) -> None:
        program = load_program(XDP_TX)
        self.netlink.link("set", index=self.index, xdp_fd=program)
        os.close(program)

    def __exit__(self, *_: object) -> None:
        self.netlink.link("set", index=self.index, xdp_fd=-1)
        self.netlink.close()


# The members


def test_a_connection_carries_many_requests(lab, members):
    with connect(lab["gateway"], None, MEMBER) as connection:
        answers = [connection.get() for _ in range(3)]

        assert {answer.identity.peer for answer in answers} == {"{}:{}".format(*connection.local)}
        assert connection.get("/no/such").status == 404
        assert connection.get().status == 200


def test_ten_megabytes_both_ways(lab, members):
    with connect(lab["gateway"], None, MEMBER) as connection:
        connection.download(10_000_000)
        connection.upload(10_000_000)


def test_a_wrong_byte_is_noticed(lab, members, monkeypatch):
    monkeypatch.setattr("tests.netns.clients.payload", lambda length: bytes(length))
    with connect(lab["gateway"], None, MEMBER) as connection, pytest.raises(AssertionError, match="sha256"):
        connection.download(1000)


def test_hold_stays_open_until_the_client_closes(lab, members):
    with connect(lab["gateway"], None, MEMBER) as connection:
        connection.socket.sendall(b"GET /hold HTTP/1.1\r\n\r\n")
        received = b""
        while not received.endswith(b"}\n"):
            received += connection.socket.recv(4096)
        assert b'"member": "member-1"' in received

        connection.socket.shutdown(socket.SHUT_WR)
        assert connection.socket.recv(4096) == b""


def test_sixteen_hundred_connections_at_once(lab, members):
    with open_many(lab["gateway"], None, MEMBER, 1600) as crowd:
        assert (len(crowd.connected), crowd.refused, crowd.timed_out) == (1600, 0, 0)

        peers = {connection.get().identity.peer for connection in crowd.connected}
        assert len(peers) == 1600


def test_a_crowd_counts_the_refused_and_the_unanswered(lab, members):
    with open_many(lab["gateway"], None, (MEMBER[0], 81), 300) as crowd:
        assert (len(crowd.connected), crowd.refused, crowd.timed_out) == (0, 300, 0)
    with open_many(lab["client"], CLIENT, MEMBER, 300, timeout=0.1) as crowd:
        assert (len(crowd.connected), crowd.refused, crowd.timed_out) == (0, 0, 300)


def test_a_reset_connection_ends_by_rst(lab, members):
    with RawPort(lab["member-1"], "eth0") as member:
        connect(lab["gateway"], None, MEMBER).reset()

        member.expect(lambda frame: TCP in frame and frame[TCP].flags.R)


def test_datagrams_are_answered_and_echoed(lab, members):
    destination = (MEMBER[0], MEMBER_UDP_PORT)
    with UdpClient(lab["gateway"], GATEWAY_MEMBER_SIDE, destination) as udp:
        answer = udp.ask(b"payload \xff\n of any bytes")

    assert answer.member == "member-1"
    assert answer.peer_address == GATEWAY_MEMBER_SIDE


def test_a_datagram_to_a_closed_port_is_refused_and_one_to_nobody_times_out(lab, members):
    with UdpClient(lab["gateway"], None, (MEMBER[0], 81)) as udp, pytest.raises(ConnectionRefusedError):
        udp.ask(b"anybody?")
    with UdpClient(lab["client"], CLIENT, MEMBER, timeout=0.1) as udp, pytest.raises(TimeoutError):
        udp.ask(b"anybody?")


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_member_ends_and_starts_again(lab, members, end):
    member = members["member-2"]
    address = (member.address, member.tcp_port)
    with connect(lab["gateway"], None, address) as connection:
        assert connection.get().status == 200
        getattr(member, end)()

        with pytest.raises(ConnectionRefusedError):
            connect(lab["gateway"], None, address)
        member.start()
        member.wait_ready()
        assert http_get(lab["gateway"], None, address).identity.member == "member-2"
        assert connection.socket.recv(1) == b""  # the connection to the first process ended with it


def test_a_member_that_cannot_start_says_so(lab, members, capfd):
    twin = Member(lab["member-1"], "twin", *MEMBER, MEMBER_UDP_PORT)
    with pytest.raises(RuntimeError, match="twin: ended before it was ready"), running([twin]):
        pass
    assert "Address already in use" in capfd.readouterr().err


# The raw port


def test_a_raw_port_keeps_what_was_not_asked_for_and_ignores_its_own(lab):
    with RawPort(lab["client"], "eth0") as client, RawPort(lab["gateway"], "eth0") as gateway:
        for message in (b"first", b"second"):
            client.send(bytes(Ether(dst=gateway.mac, src=client.mac, type=0x88B5) / Raw(message)))

        assert b"second" in bytes(gateway.expect(lambda frame: b"second" in bytes(frame)))
        assert b"first" in bytes(gateway.expect(lambda frame: b"first" in bytes(frame)))
        with pytest.raises(TimeoutError, match="no such frame"):
            gateway.expect(lambda frame: b"first" in bytes(frame), deadline=0.01)
        assert not [frame for frame in client.arrived() if frame.type == 0x88B5]


# Nothing is left

HOLDER = """
import json, os, sys
from tests.netns.lab import XDP_PEERS, Lab, private_mounts
from tests.netns.members import running
private_mounts()
with Lab() as lab, running(lab.members()) as members:
    programs = set()
    for end in XDP_PEERS:
        with lab[end.role].netlink() as netlink:
            xdp = netlink.link("get", ifname=end.interface)[0].get_attr("IFLA_XDP")
            programs.add(xdp.get_attr("IFLA_XDP_PROG_ID"))
    namespaces = [os.readlink(f"/proc/self/fd/{namespace.fd}") for namespace in lab.namespaces.values()]
    namespaces.append(os.readlink("/proc/self/ns/mnt"))
    print(json.dumps({"programs": sorted(programs), "namespaces": namespaces}), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["close", "kill"])
def test_nothing_is_left(end):
    mounts = Path("/proc/self/mounts").read_text()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )
    with holder:
        made = json.loads(holder.stdout.readline())
        namespaces = set(made["namespaces"])
        assert holders_of(namespaces) == namespaces
        assert len(children_of(holder.pid)) == len(MEMBERS)
        assert all(map(program_is_loaded, made["programs"]))
        assert "bpf /run/ipbackend/bpf bpf " in Path(f"/proc/{holder.pid}/mounts").read_text()
        assert Path("/proc/self/mounts").read_text() == mounts
        servers = children_of(holder.pid)

        if end == "kill":
            holder.kill()
        else:
            holder.stdin.close()

    wait_until(lambda: not any(map(is_alive, servers)))
    wait_until(lambda: not holders_of(namespaces))
    wait_until(lambda: not any(map(program_is_loaded, made["programs"])))  # interfaces and all
    assert Path("/proc/self/mounts").read_text() == mounts


def test_a_closed_lab_leaves_no_file_open():
    before = open_files()
    with Lab() as lab, running(lab.members()[:1]):
        assert len(open_files()) > len(before)

    assert open_files() == before


def open_files() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


def holders_of(namespaces: set[str]) -> set[str]:
    """Those of the namespaces that some process is in or holds open."""
    held = set()
    for process in processes():
        for link in [*process.glob("ns/*"), *process.glob("fd/*")]:
            try:
                held.add(str(link.readlink()))
            except OSError:  # it ended, or closed it, since
                continue
    return held & namespaces


def children_of(pid: int) -> list[int]:
    return [int(process.name) for process in processes() if status_of(process).get("PPid") == str(pid)]


def is_alive(pid: int) -> bool:
    return status_of(Path("/proc", str(pid))).get("State", "Z")[0] != "Z"


def processes() -> list[Path]:
    return [path for path in Path("/proc").iterdir() if path.name.isdecimal()]


def status_of(process: Path) -> dict[str, str]:
    try:
        lines = (process / "status").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def program_is_loaded(number: int) -> bool:
    try:
        os.close(bpf(BPF_PROG_GET_FD_BY_ID, struct.pack("=I", number)))
    except FileNotFoundError:
        return False
    return True
