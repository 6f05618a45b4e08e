"""Preparation checks in the lab: each failure made on purpose is named by its step, and no trace of a check stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ipbackend.abi import Phase
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.tables import ip_from_map
from ipbackend.trial import NOWHERE
from tests.netns.clients import http_get, open_many
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import MEMBER_TCP_PORT, MEMBERS, ONPREM, ROUTER_ONPREM, SECOND_VIP, SHOP_VIP, SNATS, VPC, Lab
from tests.netns.members import Member

pytestmark = pytest.mark.root
ONPREM_MEMBER = f"{MEMBERS['member-onprem']}:{MEMBER_TCP_PORT}"
LOCAL_MEMBER = f"{MEMBERS['member-1']}:{MEMBER_TCP_PORT}"
STEPS = ["network", "route", "next hop", "member", "way back", "path MTU"]


@pytest.fixture(scope="module")
def gateway(started: Gateway) -> Iterator[Gateway]:
    """As lab.toml says, for all of these; whoever changes that puts it back. Afterwards the books must balance."""
    if started.process is None:
        started.start()
    started.apply(CONFIGURATION)
    said = len(started.log())
    yield started
    assert "Traceback" not in started.log()
    assert "drift" not in started.log()[said:]  # what a check changes is never taken for somebody else's doing
    assert started.audit() == []


@contextmanager
def applied(gateway: Gateway, configuration: str) -> Iterator[None]:
    """Another configuration for a while."""
    gateway.apply(configuration)
    try:
        yield
    finally:
        gateway.apply(CONFIGURATION)


def checked(gateway: Gateway, member: str) -> dict[str, Any]:
    """The findings about a member by step."""
    address, port = member.split(":")
    with gateway.client() as client:
        body = {"member": {"address": address, "protocol_port": int(port)}}
        answer = client.request("POST", "/ipbackend/checks/members", body)
    return {one["step"]: one for one in answer["findings"]}


def bad(found: dict[str, Any]) -> list[str]:
    return [step for step, one in found.items() if one["good"] is False]


@contextmanager
def nft(lab: Lab, role: str, rule: str, hook: str = "input") -> Iterator[None]:
    """A rule in a namespace's firewall for a while."""
    table = f"table ip check {{\nchain c {{\ntype filter hook {hook} priority 0;\n{rule}\n}}\n}}\n"
    lab[role].run(["nft", table])
    try:
        yield
    finally:
        lab[role].run(["nft", "delete table ip check"])


@contextmanager
def ip(lab: Lab, role: str, do: str, undo: str) -> Iterator[None]:
    """A change by ip(8) in a namespace for a while."""
    lab[role].run(["ip", *do.split()])
    try:
        yield
    finally:
        lab[role].run(["ip", *undo.split()])


def books(gateway: Gateway) -> dict[str, Any]:
    """What must be the same after a check as before: open connections of its own, and rows of maps."""
    with Maps(gateway.run_directory) as maps:
        rows = {name: sorted(maps.directory(name).entries()) for name in ("addresses", "listeners_by_addr")}
        endpoints = sorted(number for _, number in maps.directory("endpoints_by_addr").entries())
        trials = [slot for number in endpoints for slot in open_trials(maps, number)]
        links = [index for index, mtu in enumerate(maps["links"].memory().bytes.cast("I")[::2]) if mtu]
        pools = [number for number, _ in maps["pools"].items()]
    return {**rows, "endpoints": endpoints, "trials": trials, "links": links, "pools": pools}


def open_trials(maps: Maps, endpoint: int) -> list[int]:
    """Slots of the connections that a check has open; an audit holds the counts against all slots."""
    connections = maps.of_endpoint("conntrack", endpoint)
    states = enumerate(bytes(connections.column("state")))
    found = (slot for slot, phase in states if phase and Phase(phase).is_open)
    return [slot for slot in found if ip_from_map(connections[slot].client) in NOWHERE]


def wait_for(condition: Callable[[], bool], what: str, deadline: float = 10.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"not within {deadline} s: {what}"
        time.sleep(0.002)


@pytest.mark.parametrize("member", [ONPREM_MEMBER, LOCAL_MEMBER])
def test_a_member_is_tried_from_every_snat_address(gateway: Gateway, member: str) -> None:
    before = books(gateway)

    found = checked(gateway, member)

    assert list(found) == STEPS
    assert all(one["good"] for one in found.values())
    assert all(snat in found["member"]["what"] for snat in SNATS)
    assert found["way back"]["what"].endswith("by eth1")
    assert found["path MTU"]["what"].startswith("1500: ")
    assert books(gateway) == before


def test_the_member_s_service_never_hears_of_it(gateway: Gateway, lab: Lab, members: dict[str, Member]) -> None:
    """The handshake is not completed, and no byte is delivered: what accepts connections accepts none."""
    with lab["member-2"].socket(2, 1) as listening:
        listening.bind((MEMBERS["member-2"], 9999))
        listening.listen()
        listening.setblocking(False)

        found = checked(gateway, f"{MEMBERS['member-2']}:9999")

        assert all(one["good"] for one in found.values())
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_an_address_that_is_no_member_is_tried_before_it_is_added(gateway: Gateway) -> None:
    before = books(gateway)

    found = checked(gateway, f"{MEMBERS['member-2']}:9998")

    assert bad(found) == ["member"]
    assert "refuses connections to port 9998 (RST)" in found["member"]["what"]
    assert found["way back"]["good"]
    assert books(gateway) == before


def test_an_address_in_no_network_is_refused(gateway: Gateway) -> None:
    done = gateway.ask("member", "check", "172.31.0.1:80")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: 172.31.0.1 is in no network (")


def test_no_route(gateway: Gateway, lab: Lab) -> None:
    host = f"{MEMBERS['member-onprem']}/32"
    with ip(lab, "gateway", f"route add unreachable {host}", f"route del unreachable {host}"):
        found = checked(gateway, ONPREM_MEMBER)

    assert bad(found) == ["route"]
    assert "No route to host" in found["route"]["what"]
    assert "next hop" in found  # the data plane goes by the next hop: the rest is tried even so
    assert found["member"]["good"]


def test_a_route_by_another_way(gateway: Gateway, lab: Lab) -> None:
    host = f"{MEMBERS['member-onprem']}/32"
    with ip(lab, "gateway", f"route add {host} via 10.0.0.2", f"route del {host}"):
        found = checked(gateway, ONPREM_MEMBER)

    assert found["route"]["what"] == f"to {MEMBERS['member-onprem']} via 10.0.0.2 on eth1"
    assert f"via {ROUTER_ONPREM} of eth1" in found["route"]["remedy"]


def test_a_route_into_a_tunnel_that_ends_here(gateway: Gateway, lab: Lab) -> None:
    """XDP cannot send to a device without Ethernet; who asks about the network or the member is told so."""
    host = f"{MEMBERS['member-onprem']}/32"
    with ip(lab, "gateway", "tuntap add dev vpn mode tun", "link del vpn"):
        lab["gateway"].run(["ip", "link", "set", "vpn", "up"])
        lab["gateway"].run(["ip", "route", "add", host, "dev", "vpn"])
        member = checked(gateway, ONPREM_MEMBER)
        network = gateway.ask("network", "check", "on-premises")

    assert member["route"]["good"] is False
    assert member["route"]["what"].endswith("on the link of vpn, which is no Ethernet: XDP cannot send there")
    assert "end the tunnel on a router" in member["route"]["remedy"]
    assert network.returncode == 1
    assert "vpn, which is no Ethernet" in network.stdout


def test_next_hop_down(gateway: Gateway, lab: Lab) -> None:
    with applied(gateway, CONFIGURATION.replace('next_hop = "10.0.0.3"', 'next_hop = "10.0.0.9"')):
        found = checked(gateway, ONPREM_MEMBER)

    assert list(found)[-1] == "next hop"
    assert found["next hop"]["what"] == "10.0.0.9 does not answer ARP on eth1"
    assert "start the router" in found["next hop"]["remedy"]


def test_a_silent_member(gateway: Gateway, lab: Lab) -> None:
    before = books(gateway)
    with nft(lab, "member-onprem", "tcp dport 8080 drop"):
        found = checked(gateway, ONPREM_MEMBER)

    assert bad(found) == ["member"]
    assert list(found)[-1] == "member"
    assert "nor the gateway's own 10.0.0.1 (silence)" in found["member"]["what"]
    assert books(gateway) == before


def test_a_member_that_lets_snat_addresses_not_in(gateway: Gateway, lab: Lab) -> None:
    with nft(lab, "member-onprem", f"ip saddr {{ {', '.join(SNATS)} }} drop"):
        found = checked(gateway, ONPREM_MEMBER)

    assert "but the gateway's own 10.0.0.1" in found["member"]["what"]
    assert f"allow TCP 8080 from {', '.join(SNATS)}" in found["member"]["remedy"]


def test_a_member_that_lets_one_snat_address_not_in(gateway: Gateway, lab: Lab) -> None:
    """Three in four clients would be served: what a test by one connection calls healthy."""
    with nft(lab, "member-onprem", f"ip saddr {SNATS[2]} drop"):
        found = checked(gateway, ONPREM_MEMBER)

    assert found["member"]["what"].endswith(f", and not {SNATS[2]}")
    assert found["way back"]["good"]


def test_no_route_back(gateway: Gateway, lab: Lab) -> None:
    route = f"{VPC} via 192.168.50.1"
    with ip(lab, "member-onprem", f"route del {route}", f"route add {route}"):
        found = checked(gateway, ONPREM_MEMBER)

    assert bad(found) == ["member"]
    assert f"let its network route {', '.join(SNATS)} back here" in found["member"]["remedy"]


def test_an_answer_by_an_interface_without_xdp(gateway: Gateway, lab: Lab) -> None:
    """The kernel gets it, and resets what it knows nothing of: no client would ever be served."""
    with lab["gateway"].netlink() as netlink:
        peer = {"ifname": "side", "net_ns_fd": lab["member-2"].fd}
        netlink.link("add", ifname="eth2", kind="veth", peer=peer)
    try:
        lab["gateway"].run(["ip", "link", "set", "eth2", "up"])
        lab["member-2"].run(["ip", "link", "set", "side", "up"])
        for snat in SNATS:
            lab["member-2"].run(["ip", "route", "add", f"{snat}/32", "dev", "side"])
        found = checked(gateway, f"{MEMBERS['member-2']}:8080")
    finally:
        lab["gateway"].run(["ip", "link", "del", "eth2"])

    assert bad(found) == ["way back"]
    assert found["way back"]["what"] == "answers the SNAT addresses by eth2, where no XDP takes it"


def test_addresses_of_examples_that_are_used_stay_what_they_are(gateway: Gateway, lab: Lab) -> None:
    """A trial takes two addresses that nobody has, but for whoever wrote them into a configuration."""
    with applied(gateway, CONFIGURATION.replace(SECOND_VIP, "192.0.2.1")):
        before = books(gateway)
        assert all(one["good"] for one in checked(gateway, LOCAL_MEMBER).values())
        assert books(gateway) == before


def test_a_daemon_that_dies_in_a_check_leaves_nothing(gateway: Gateway, lab: Lab) -> None:
    before = books(gateway)
    with nft(lab, "member-onprem", "tcp dport 9996 drop"):
        asking = gateway.begin("member", "check", f"{MEMBERS['member-onprem']}:9996")
        wait_for(lambda: books(gateway) != before, "a check that is under way")
        gateway.kill()
        asking.wait(timeout=10)
        gateway.start()

    wait_for(lambda: books(gateway) == before, "the end of what it left, when both sides know of it")


def test_a_host_that_is_not_there(gateway: Gateway) -> None:
    found = checked(gateway, "192.168.50.77:80")

    assert "nor the gateway's own 10.0.0.1 (" in found["member"]["what"]


@pytest.mark.parametrize("mtu", [1400, 1001])
def test_a_small_path_mtu_is_found_to_the_byte(gateway: Gateway, lab: Lab, mtu: int) -> None:
    link = "link set eth1 mtu"
    with ip(lab, "router-onprem", f"{link} {mtu}", f"{link} 1500"):
        found = checked(gateway, ONPREM_MEMBER)

    assert bad(found) == ["path MTU"]
    assert found["path MTU"]["what"] == f"{mtu}, not 1500 as the route says"


def test_a_firewall_that_takes_no_strange_segments_leaves_the_path_mtu_open(gateway: Gateway, lab: Lab) -> None:
    with nft(lab, "member-onprem", "tcp flags & (syn|rst|ack) == ack drop"):
        found = checked(gateway, ONPREM_MEMBER)

    assert found["path MTU"]["good"] is None
    assert found["path MTU"]["what"].startswith("1500 by the route")


def test_a_member_at_its_ceiling_takes_no_check(gateway: Gateway, lab: Lab) -> None:
    text = CONFIGURATION.replace("port = 8080, weight = 2 }", "port = 8080, weight = 2, max_connections = 1 }", 1)
    with applied(gateway, text), open_many(lab["client"], None, (SHOP_VIP, 80), 16):
        found = checked(gateway, f"{MEMBERS['member-2']}:8080")

    assert found["member"]["what"] == "takes no connection now: it is at its ceiling"


def test_a_member_with_little_room_is_not_tried_from_every_address(gateway: Gateway) -> None:
    text = CONFIGURATION.replace("port = 8080, weight = 2 }", "port = 8080, weight = 2, max_connections = 1 }", 1)
    with applied(gateway, text):
        found = checked(gateway, f"{MEMBERS['member-2']}:8080")["member"]

    (tried,) = (snat for snat in SNATS if snat in found["what"])
    assert found["good"] is None
    others = ", ".join(snat for snat in SNATS if snat != tried)
    assert found["remedy"] == f"try again when it has room: {others} were not tried"


def test_udp_is_not_asked(gateway: Gateway) -> None:
    done = gateway.json("member", "check", f"{MEMBERS['member-1']}:5353", "--protocol", "UDP")

    assert [one["good"] for one in done] == [True, True, True, None]


def test_traffic_goes_on_and_its_books_balance(gateway: Gateway, lab: Lab) -> None:
    """Checks beside real connections: none of those is hurt, and what is counted as open is what is open."""
    stop, served = threading.Event(), list[str]()

    def clients() -> None:
        while not stop.is_set():
            served.append(http_get(lab["client"], None, (SHOP_VIP, 80)).identity.member)

    thread = threading.Thread(target=clients)
    thread.start()
    try:
        for _ in range(5):
            assert all(one["good"] for one in checked(gateway, ONPREM_MEMBER).values())
    finally:
        stop.set()
        thread.join()

    assert "member-onprem" in served
    with Maps(gateway.run_directory) as maps:
        assert Phase.SYN_SENT not in {row["state"] for row in gateway.json("connection", "list")}
        assert maps["listeners"]


def test_a_network_and_its_members(gateway: Gateway, lab: Lab) -> None:
    done = gateway.ask("network", "check", "on-premises")

    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "network on-premises"
    assert lines[1].split()[:2] == ["ok", "route"]
    assert f"{ONPREM_MEMBER}/TCP" in lines
    assert f"{MEMBERS['member-onprem']}:5353/UDP" in lines
    assert ONPREM in done.stdout


def test_a_network_without_members(gateway: Gateway) -> None:
    gateway.command(
        "network", "create", "later", "--kind", "vpn", "--cidr", "192.168.99.0/24", "--next-hop", "10.0.0.3"
    )
    try:
        assert "none yet" in gateway.command("network", "check", "later")
    finally:
        gateway.command("network", "delete", "later")


def test_the_command_shows_each_step_and_fails_with_it(gateway: Gateway) -> None:
    good, wrong = (gateway.ask("member", "check", f"{MEMBERS['member-1']}:{port}") for port in (8080, 9997))

    assert (good.returncode, wrong.returncode) == (0, 1)
    assert [line.split()[:2] for line in good.stdout.splitlines()][3] == ["ok", "member"]
    assert "FAIL  member    refuses connections to port 9997 (RST), from 10.0.0.101" in wrong.stdout
    assert "→ start its service, or correct the port" in wrong.stdout
    assert not good.stderr + wrong.stderr


def test_overlapping_networks_are_refused_with_both_names(gateway: Gateway) -> None:
    done = gateway.ask("network", "create", "again", "--kind", "peering", "--cidr", ONPREM, "--next-hop", "10.0.0.2")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: networks.again.cidrs: {ONPREM} overlaps {ONPREM} of networks.on-premises (")
