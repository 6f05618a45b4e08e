"""A connection that was silent for too long: both ends learn that it is over, and at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ipbackend.abi import TICK_SHIFT, Phase
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
        assert connection.get().identity.member == member
        connection.download(200_000)
        wait_until(lambda: age(maps, seconds=400) == 0)  # again and again: a late ACK may make it young once more

        connection.socket.settimeout(10)
        with pytest.raises(ConnectionResetError):
            connection.socket.recv(1)
        members_wire.expect(lambda packet: packet.haslayer("TCP") and "R" in packet["TCP"].flags)
        rows = gateway.json("member", "list", "--pool", "web")
        assert (rows[0]["active"], rows[0]["expired"]) == (0, 1)
        wait_until(lambda: established_at(lab, member) == 0)


def age(maps: Maps, seconds: int) -> int:
    """All established connections were last heard of so long ago; returns how many there are."""
    found = 0
    for endpoint in maps["endpoints_by_addr"].values():
        connections = maps["conntrack"].inner(endpoint)
        assert connections is not None
        for slot, phase in enumerate(bytes(connections.column("state"))):
            if phase == Phase.ESTABLISHED:
                found += 1
                ticks = seconds * 10**9 >> TICK_SHIFT
                connections[slot].last_seen = ((time.monotonic_ns() >> TICK_SHIFT) - ticks) & 0xFFFF_FFFF
    return found


def established_at(lab: Lab, member: str) -> int:
    """TCP connections that the member's kernel takes for established."""
    with lab[member]:
        lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[3] == "01" for line in lines)
