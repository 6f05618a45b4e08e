"""`explain` on the running gateway: what it says of a client's packet is what the client then meets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ipbackend.errors import ServiceError
from tests.netns.clients import Connection
from tests.netns.gateway import Gateway
from tests.netns.lab import CLIENT, MEMBERS, SHOP_VIP, Lab

pytestmark = pytest.mark.root
PORTS = range(20_000, 20_008)  # that no other connection is given by chance


@pytest.fixture
def connected(lab: Lab) -> Iterator[list[Connection]]:
    """Connections that end with the test."""
    opened: list[Connection] = []
    yield opened
    for one in opened:
        one.reset()


def connect_from(lab: Lab, port: int) -> Connection:
    connecting = lab["client"].socket(socket.AF_INET, socket.SOCK_STREAM)
    connecting.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connecting.settimeout(5)
    connecting.bind((CLIENT, port))
    connecting.connect((SHOP_VIP, 80))
    return Connection(connecting)


def test_the_member_and_the_port_are_those_that_it_said(
    gateway: Gateway, lab: Lab, connected: list[Connection]
) -> None:
    members = set()
    for port in PORTS:
        (told,) = gateway.json("explain", f"{CLIENT}:{port}", f"{SHOP_VIP}:80")["outcomes"]
        connected.append(connect_from(lab, port))
        identity = connected[-1].get().identity

        assert (told["verdict"], told["interface"]) == ("FORWARD_OPENED", "eth1")
        assert told["snat"] == identity.peer
        assert told["member"] == identity.local
        members.add(identity.member)

    assert members == set(MEMBERS)
    done = gateway.command("explain", f"{CLIENT}:{PORTS[0]}", f"{SHOP_VIP}:80", "--flags", "A")
    assert "ESTABLISHED" in done
    assert "FORWARD_REQUEST" in done


def test_the_daemon_says_the_same(gateway: Gateway) -> None:
    asked = {"source": f"{CLIENT}:45100", "destination": f"{SHOP_VIP}:80", "flags": "S", "interface": "eth0"}
    with gateway.client() as client:
        told = client.request("GET", "/ipbackend/explain", **asked)["explanation"]

        assert told == gateway.json("explain", asked["source"], asked["destination"], "--interface", "eth0")
        with pytest.raises(ServiceError, match=r"'10\.0\.0\.1' has no port"):
            client.request("GET", "/ipbackend/explain", source="10.0.0.1", destination=asked["destination"])
