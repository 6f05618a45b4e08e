"""The flow log of real connections: each one once, with what its client has counted, whatever the daemon does."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ipbackend.errors import ServiceError
from tests.netns.clients import ETH_P_ALL, SO_RCVBUFFORCE, UdpClient, connect
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import CLIENT, MEMBERS, SHOP_VIP, SIOCETHTOOL, SNATS, Lab
from tests.netns.namespace import Namespace
from tests.netns.test_gateway import WEB, only, wait_until

pytestmark = pytest.mark.root

ETHTOOL_SGRO = 0x2C
FIN, RST = 1, 4
HEADERS = ("request_packets", "request_bytes", "reply_packets", "reply_bytes")


def logging(configuration: str, kind: str = "store", **settings: int | str) -> str:
    lines = "".join(f"flow_log_{name} = {value}\n" for name, value in settings.items())
    return configuration.replace("[gateway]\n", f'[gateway]\nflow_log = "{kind}"\n{lines}', 1)


def flows(gateway: Gateway, **query: Any) -> list[dict[str, Any]]:
    with gateway.client() as client:
        found: list[dict[str, Any]] = client.request("GET", "/ipbackend/flows", **query)["flows"]
    return found


def flow_log(gateway: Gateway) -> dict[str, Any]:
    return dict(gateway.json("flow", "status"))


def closed(gateway: Gateway, count: int, **query: Any) -> list[dict[str, Any]]:
    """The last connections that ended, once there are so many, the first to end first."""
    wait_until(lambda: len(flows(gateway, event="closed", **query)) >= count)
    return flows(gateway, event="closed", **query)[::-1]


def visit(lab: Lab) -> str:
    """A request over a connection of its own; the client's address and port."""
    with connect(lab["client"], CLIENT, WEB) as connection:
        connection.get()
        return f"{CLIENT}:{connection.local[1]}"


class Packet(NamedTuple):
    """As much of one as is counted."""

    port: int  # the client's
    is_reply: bool
    length: int
    flags: int


class Counter:
    """What passes the client's own interface, frame by frame as on the wire."""

    def __init__(self, client: Namespace) -> None:
        self._socket = client.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind(("eth0", ETH_P_ALL))
        self._packets: list[Packet] = []

    def close(self) -> None:
        self._socket.close()

    def of(self, port: int) -> tuple[int, int, int, int]:
        """Packets and bytes each way of the client's connection, up to its end: the second FIN, or a RST."""
        self._receive()
        counts, fins = [0, 0, 0, 0], set()
        for packet in self._packets:
            if packet.port != port:
                continue
            counts[2 * packet.is_reply] += 1
            counts[2 * packet.is_reply + 1] += packet.length
            if packet.flags & FIN:
                fins.add(packet.is_reply)
            if packet.flags & RST or len(fins) == 2:
                break
        return counts[0], counts[1], counts[2], counts[3]

    def _receive(self) -> None:
        self._socket.setblocking(False)
        while True:
            try:
                frame = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            if frame[12:14] != b"\x08\x00" or frame[23] not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
                continue
            (length,) = struct.unpack_from("!H", frame, 16)
            ports = struct.unpack_from("!HH", frame, 34)
            is_reply = frame[30:34] == socket.inet_aton(CLIENT)
            flags = frame[47] if frame[23] == socket.IPPROTO_TCP else 0
            self._packets.append(Packet(ports[is_reply], is_reply, length, flags))


@contextmanager
def counting(lab: Lab) -> Iterator[Counter]:
    """Without GRO meanwhile, which would hand several segments to the counter as one."""
    set_gro(lab["client"], on=False)
    counter = Counter(lab["client"])
    try:
        yield counter
    finally:
        counter.close()
        set_gro(lab["client"], on=True)


def set_gro(namespace: Namespace, *, on: bool) -> None:
    value = array("I", [ETHTOOL_SGRO, on])
    request = struct.pack("16sP16x", b"eth0", value.buffer_info()[0])
    with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCETHTOOL, request)


def test_each_connection_is_there_once_with_its_clients_own_counts(gateway: Gateway, lab: Lab) -> None:
    gateway.apply(logging(CONFIGURATION))
    endings = ["CLIENT_FIN", "MEMBER_FIN", "CLIENT_RST"] * 4
    with counting(lab) as counter:
        began, since, ports = time.time(), now(), []
        for number, ending in enumerate(endings):
            with connect(lab["client"], CLIENT, WEB) as connection:
                ports.append(connection.local[1])
                connection.download(20_000 * number)
                connection.upload(10_000)
                if ending == "CLIENT_RST":
                    connection.reset()
                if ending == "MEMBER_FIN":
                    connection.socket.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
                    while connection.socket.recv(1 << 16):
                        pass
        found = closed(gateway, len(endings), client=CLIENT, since=since)
        assert sorted(one["client"] for one in found) == sorted(f"{CLIENT}:{port}" for port in ports)
        by_port = {int(one["client"].split(":")[1]): one for one in found}
        for port, ending in zip(ports, endings, strict=True):
            one = by_port[port]
            assert (one["reason"], one["protocol"], one["vip"]) == (ending, "TCP", f"{SHOP_VIP}:80")
            assert tuple(one[name] for name in HEADERS) == counter.of(port)
            assert 0 < one["seconds"] < time.time() - began
    opened = flows(gateway, event="opened", client=CLIENT, since=since)
    assert sorted(one["client"] for one in opened) == sorted(one["client"] for one in found)
    assert flow_log(gateway)["lost"] == 0


def test_what_never_came_up_and_what_was_turned_away(gateway: Gateway, lab: Lab) -> None:
    gateway.apply(logging(only("member-1").replace("port = 8080", "port = 8999")))
    began = now()
    with pytest.raises(ConnectionRefusedError):
        connect(lab["client"], CLIENT, WEB)
    (one,) = closed(gateway, 1, client=CLIENT, member=f"{MEMBERS['member-1']}:8999", since=began)
    assert (one["reason"], one["phase"], one["request_packets"], one["reply_packets"]) == (
        "MEMBER_RST",
        "SYN_SENT",
        1,
        1,
    )

    with pytest.raises(ConnectionRefusedError):
        connect(lab["client"], CLIENT, (SHOP_VIP, 9))
    wait_until(lambda: flows(gateway, event="rejected", vip=f"{SHOP_VIP}:9", since=began) != [])
    (one, *_) = flows(gateway, event="rejected", vip=f"{SHOP_VIP}:9", since=began)
    assert (one["reason"], one["snat"], one["member"]) == ("REJECT_NO_LISTENER", None, None)


def now() -> str:
    """To ask for what ends from here on: a client's port may have been an earlier connection's.

    A member that comes back is given its ports from the first on. Where it still knows an earlier connection on one, it
    answers a SYN with what the client resets, and the next SYN may go to another member: two connections in the log.
    """
    return datetime.now(UTC).isoformat()


def test_members_and_listeners_that_go_take_their_connections_along(gateway: Gateway, lab: Lab) -> None:
    gateway.apply(logging(CONFIGURATION))
    began = now()
    with connect(lab["client"], CLIENT, WEB) as connection, UdpClient(lab["client"], CLIENT, (SHOP_VIP, 53)) as asking:
        member = connection.get().identity.member
        asking.ask(b"who?")
        port = asking.socket.getsockname()[1]
        gateway.apply(logging(only(next(name for name in MEMBERS if name != member))))
        found = closed(gateway, 1, client=f"{CLIENT}:{connection.local[1]}", since=began)
        (one,) = (one for one in found if one["phase"] != "SYN_SENT")
        assert (one["reason"], one["member"]) == ("MEMBER_REMOVED", f"{MEMBERS[member]}:8080")
        start = CONFIGURATION.index("[listeners.resolver]")
        end = CONFIGURATION.index("\n\n", start)
        gateway.apply(logging(CONFIGURATION[:start] + CONFIGURATION[end:]))
        (one,) = closed(gateway, 1, client=f"{CLIENT}:{port}", since=began)
        assert (one["reason"], one["protocol"]) == ("LISTENER_REMOVED", "UDP")
        assert (one["request_packets"], one["reply_packets"]) == (1, 1)


def test_who_stood_behind_a_snat_address(gateway: Gateway, lab: Lab) -> None:
    """One that is over, and one that is still open, at the minute, to the second, and towards its member only."""
    gateway.apply(logging(CONFIGURATION))
    began = now()
    with connect(lab["client"], CLIENT, WEB) as connection:
        seen, port = connection.get().identity, connection.local[1]
        mine = {"client": f"{CLIENT}:{port}", "vip": f"{SHOP_VIP}:80", "snat": seen.peer, "end": "open", "closed": None}

        def tenants(*more: str) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = gateway.json("who", seen.peer, *more)["tenants"]
            return [one for one in found if one["member"] == f"{MEMBERS[seen.member]}:8080"]

        (one,) = tenants()
        assert mine.items() <= one.items()
        assert one["reply_bytes"] > 100
    opened = closed(gateway, 1, client=f"{CLIENT}:{port}", since=began)[-1]["opened"]
    assert [one for one in tenants() if one["client"] == f"{CLIENT}:{port}"] == []
    for when in (opened, f"{opened[:19]}Z", f"{opened[:16]}Z"):
        (one,) = (one for one in tenants("--at", when) if one["client"] == f"{CLIENT}:{port}")
        assert (one["end"], one["reason"], one["opened"]) == ("closed", "CLIENT_FIN", opened)
    assert tenants("--at", "2020-01-01 00:00") == []
    assert tenants("--at", opened, "--protocol", "UDP") == []
    assert f"{CLIENT}:{port}" in gateway.command("who", seen.peer, "--at", opened)
    assert "The flow log begins only at" in gateway.ask("who", seen.peer, "--at", "2020-01-01 00:00").stderr
    refused = gateway.ask("who", SNATS[0])
    assert (refused.returncode, refused.stderr.split(" (")[0]) == (1, f"Error: snat: '{SNATS[0]}' has no port")


def test_a_daemon_that_is_killed_loses_nothing_and_says_nothing_twice(gateway: Gateway, lab: Lab) -> None:
    gateway.apply(logging(CONFIGURATION))
    began = now()
    visits = [visit(lab) for _ in range(20)]
    gateway.kill()
    visits += [visit(lab) for _ in range(20)]
    gateway.start()
    visits += [visit(lab) for _ in range(20)]

    def found() -> list[str]:
        """Of those; a connection of an earlier test may end only now."""
        ended = flows(gateway, event="closed", client=CLIENT, since=began)
        return [one["client"] for one in ended if one["client"] in visits and one["reason"] == "CLIENT_FIN"]

    wait_until(lambda: len(found()) >= len(visits))
    assert sorted(found()) == sorted(visits)
    assert flow_log(gateway)["lost"] == 0


def test_it_is_switched_while_connections_go_on(gateway: Gateway, lab: Lab) -> None:
    """With other programs in the place of those that forward: no connection notices. What was not counted is null."""
    with connect(lab["client"], CLIENT, WEB) as connection:
        identity = connection.get().identity
        gateway.apply(logging(CONFIGURATION, counts="false"))
        assert connection.get().identity == identity
        began = now()
        (one,) = closed(gateway, 1, client=visit(lab), since=began)
        assert (one["reason"], one["request_bytes"], one["reply_bytes"]) == ("CLIENT_FIN", None, None)
        gateway.apply(logging(CONFIGURATION))
        assert connection.get().identity == identity
        known = len(flows(gateway))
        gateway.apply(CONFIGURATION)
        assert connection.get().identity == identity
    visit(lab)
    wait_until(lambda: flow_log(gateway)["flow_log"] == "off")
    assert len(flows(gateway)) == known


@pytest.mark.parametrize("kind", ["json", "journald"])
def test_lines(gateway: Gateway, lab: Lab, kind: str, tmp_path: Path) -> None:
    """One for each event, in a file, or for the journal, which is played by a socket here."""
    journal = Path("/run/systemd/journal/socket")
    journal.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as played:
        played.setblocking(False)
        played.bind(str(journal))
        try:
            gateway.apply(logging(CONFIGURATION, kind))
            with connect(lab["client"], CLIENT, WEB) as connection:
                seen, port = connection.get().identity, connection.local[1]
            wait_until(lambda: flow_log(gateway)["written"] >= 2 and flow_log(gateway)["waiting"] == 0)
            gateway.apply(CONFIGURATION)
            lines = played_lines(played) if kind == "journald" else written_lines(gateway)
        finally:
            journal.unlink()
    mine = [line for line in lines if line.get("client") == f"{CLIENT}:{port}"]
    assert [line["event"] for line in mine] == ["opened", "closed"]
    assert {line["snat"] for line in mine} == {seen.peer}
    assert mine[1]["reason"] == "CLIENT_FIN"
    assert int(mine[1]["reply_bytes"]) > 100


def written_lines(gateway: Gateway) -> list[dict[str, Any]]:
    files = sorted((gateway.store.parent / "flows").glob("flows-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def played_lines(played: socket.socket) -> list[dict[str, Any]]:
    lines = []
    while True:
        try:
            entry = dict(field.split("=", 1) for field in played.recv(1 << 16).decode().splitlines())
        except BlockingIOError:
            return lines
        assert entry["SYSLOG_IDENTIFIER"] == "ipbackend-flow"
        lines.append({name.removeprefix("FLOW_").lower(): value for name, value in entry.items()})


def test_where_nothing_is_kept_nothing_is_listed(gateway: Gateway, lab: Lab) -> None:
    for path in (gateway.store.parent / "flows").glob("*"):
        path.unlink()
    with pytest.raises(ServiceError, match=r"gateway\.flow_log: it is off, so nothing was kept"):
        flows(gateway)
    with connect(lab["client"], CLIENT, WEB) as connection:
        seen = connection.get().identity.peer
        answer = gateway.ask("who", seen, check=True)
        assert f"{CLIENT}:{connection.local[1]}" in answer.stdout
        assert "There is no flow log" in answer.stderr


def test_who_was_there_a_moment_ago_needs_no_flow_log(gateway: Gateway, lab: Lab) -> None:
    """A slot knows its opening by a tick, which must not be later than the question."""
    for _ in range(10):
        with connect(lab["client"], CLIENT, WEB) as connection, gateway.client() as client:
            snat = connection.get().identity.peer
            tenants = client.request("GET", "/ipbackend/flows/who", snat=snat)["tenants"]
            assert (f"{CLIENT}:{connection.local[1]}", "open") in [(one["client"], one["end"]) for one in tenants]
