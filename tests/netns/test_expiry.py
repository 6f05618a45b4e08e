"""A connection that was silent for too long: both ends learn that it is over, and at once."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from ipbackend.abi import Phase
from ipbackend.datapath.maps import Maps
from tests.netns.clients import RawPort, connect
from tests.netns.gateway import Gateway
from tests.netns.lab import Lab
from tests.netns.test_gateway import WEB, only, wait_until

pytestmark = pytest.mark.root


@pytest.mark.parametrize("member", ["member-1", "member-onprem"])
def test_both_ends_of_an_expired_connection_learn_it(gateway: Gateway, lab: Lab, member: str) -> None:
    gateway.apply(only(member))
    with (
        RawPort(lab[member], "eth0") as members_wire,
        connect(lab["client"], None, WEB) as connection,
        Maps(gateway.run_directory) as maps,
    ):
        answered = connection.get().identity
        assert answered.member == member
        connection.download(200_000)
        make_impatient(maps)

        connection.socket.settimeout(10)
        with pytest.raises(ConnectionResetError):
            connection.socket.recv(1)
        members_wire.expect(lambda packet: packet.haslayer("TCP") and "R" in packet["TCP"].flags)
        rows = gateway.json("member", "list", "--pool", "web")
        assert (rows[0]["active"], rows[0]["expired"]) == (0, 1)
        wait_until(lambda: answered.peer not in established_at(lab, member))


def make_impatient(maps: Maps) -> None:
    """All established connections end after a second of silence.

    Their last packet cannot be dated back instead: that is the sweep's to write as well, and a date that comes
    just behind it has the end itself forgotten, before the daemon has told anyone.
    """
    for _, endpoint in maps.directory("endpoints_by_addr").entries():
        connections = maps.of_endpoint("conntrack", endpoint)
        for slot, phase in enumerate(bytes(connections.column("state"))):
            if phase == Phase.ESTABLISHED:
                connections[slot].idle_timeout = 1


def established_at(lab: Lab, member: str) -> set[str]:
    """Whom the member's kernel takes for connected to it by TCP, as "address:port" each."""
    with lab[member]:
        lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    ends = [line.split()[2].split(":") for line in lines if line.split()[3] == "01"]
    return {f"{IPv4Address(int(address, 16).to_bytes(4, sys.byteorder))}:{int(port, 16)}" for address, port in ends}
