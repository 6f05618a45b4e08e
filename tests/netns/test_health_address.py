"""The address that health checks come from: the gateway's own sockets use it, and answers to it reach them."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest
from scapy.layers.l2 import ARP

from ipbackend.errors import ServiceError
from tests.netns.clients import RawPort, UdpClient, connect, http_get
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import MEMBER_TCP_PORT, MEMBER_UDP_PORT, MEMBERS, SHOP_VIP, SNATS, Lab
from tests.netns.test_daemon import wait_until

pytestmark = pytest.mark.root

HEALTH, OTHER = "10.0.0.105", "10.0.0.106"
NOBODY = 9  # a port that no member listens on


def configured(address: str) -> str:
    return CONFIGURATION.replace("[gateway]", f'[gateway]\nhealth_address = "{address}"', 1)


def held(lab: Lab) -> dict[str, str]:
    """The gateway's addresses that are for health checks, and their interfaces."""
    with lab["gateway"].netlink() as netlink:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
        found = {one.get_attr("IFA_ADDRESS"): names[one["index"]] for one in netlink.get_addr()}
    return {address: name for address, name in found.items() if address in (HEALTH, OTHER)}


@pytest.fixture
def checking(gateway: Gateway) -> Iterator[Gateway]:
    gateway.apply(configured(HEALTH))
    yield gateway
    gateway.apply(CONFIGURATION)


@pytest.mark.parametrize("member", list(MEMBERS))
def test_a_socket_that_is_bound_to_it_speaks_with_members(lab: Lab, checking: Gateway, member: str) -> None:
    answer = http_get(lab["gateway"], HEALTH, (MEMBERS[member], MEMBER_TCP_PORT))
    assert (answer.identity.member, answer.identity.peer_address) == (member, HEALTH)
    with UdpClient(lab["gateway"], HEALTH, (MEMBERS[member], MEMBER_UDP_PORT)) as client:
        assert client.ask(b"?").peer_address == HEALTH


def test_refusals_and_icmp_errors_reach_it_too(lab: Lab, checking: Gateway) -> None:
    with pytest.raises(ConnectionRefusedError):
        connect(lab["gateway"], HEALTH, (MEMBERS["member-onprem"], NOBODY))
    with lab["gateway"].socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((HEALTH, 0))
        probe.connect((MEMBERS["member-onprem"], NOBODY))
        probe.send(b"?")
        assert select.select([probe], [], [], 5)[0]
        with pytest.raises(ConnectionRefusedError):
            probe.recv(1)


def test_a_snat_address_would_not_do(lab: Lab, checking: Gateway) -> None:
    """What reaches a SNAT address is the data plane's: a socket on the gateway hears nothing of it."""
    with pytest.raises(TimeoutError):
        connect(lab["gateway"], SNATS[0], (MEMBERS["member-1"], MEMBER_TCP_PORT), timeout=1.0)


def test_it_is_announced_and_clients_are_served_as_before(lab: Lab, gateway: Gateway) -> None:
    with RawPort(lab["member-1"], "eth0") as wire:
        gateway.apply(configured(HEALTH))
        heard = wire.expect(lambda packet: ARP in packet and packet[ARP].psrc == HEALTH)
    with lab["gateway"].netlink() as netlink:
        (link,) = netlink.get_links(ifname="eth1")
    assert (heard[ARP].op, heard[ARP].pdst, heard[ARP].hwsrc) == (1, HEALTH, link.get_attr("IFLA_ADDRESS"))
    assert http_get(lab["client"], None, (SHOP_VIP, 80)).identity.peer_address in SNATS
    gateway.apply(CONFIGURATION)


def test_it_moves_while_there_are_members_and_goes(lab: Lab, checking: Gateway) -> None:
    assert held(lab) == {HEALTH: "eth1"}
    with connect(lab["client"], None, (SHOP_VIP, 80)) as connection:
        checking.apply(configured(OTHER))
        assert held(lab) == {OTHER: "eth1"}
        checking.apply(CONFIGURATION)
        assert held(lab) == {}
        assert connection.get().identity.peer_address in SNATS
    with pytest.raises(ServiceError, match=r"health_address: 10\.0\.0\.101 is one of snat_addresses"):
        checking.apply(configured(SNATS[0]))


def test_it_is_put_back_and_survives_the_daemon(lab: Lab, checking: Gateway) -> None:
    lab["gateway"].run(("ip", "address", "del", f"{HEALTH}/32", "dev", "eth1"), check=True)
    wait_until(lambda: held(lab) == {HEALTH: "eth1"})
    wait_until(lambda: f"drift: address {HEALTH} missing from eth1, put back" in checking.log())  # told when it is done
    checking.kill()
    assert held(lab) == {HEALTH: "eth1"}
    checking.start()
    assert http_get(lab["gateway"], HEALTH, (MEMBERS["member-1"], MEMBER_TCP_PORT)).identity.peer_address == HEALTH
