"""Real connections through the real gateway, seen from the client, from the member, and on the wire."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from ipbackend.errors import ServiceError
from tests.netns.clients import RawPort, UdpClient, connect, http_get, open_many
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import (
    CLIENT,
    CLIENTS,
    GATEWAY_CLIENT_SIDE,
    MEMBERS,
    SECOND_VIP,
    SHOP_VIP,
    SNATS,
    Lab,
)

pytestmark = pytest.mark.root

WEB, INTRANET, RESOLVER = (SHOP_VIP, 80), (SECOND_VIP, 80), (SHOP_VIP, 53)
MEGABYTE = 1_000_000


def wait_until(condition: Callable[[], bool], deadline: float = 10.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)


def only(member: str, **settings: int) -> str:
    """The lab's configuration with one member alone in the web pool."""
    start = CONFIGURATION.index("[pools.web]")
    end = CONFIGURATION.index("[pools.resolver]")
    more = "".join(f", {name} = {value}" for name, value in settings.items())
    pool = f'[pools.web]\nprotocol = "TCP"\nmembers = [{{ address = "{MEMBERS[member]}", port = 8080{more} }}]\n\n'
    return CONFIGURATION[:start] + pool + CONFIGURATION[end:]


def ceiling(member: str, connections: int) -> str:
    """The lab's configuration with a ceiling on one member, wherever it stands."""
    text = CONFIGURATION
    for ending in (", weight", " }]"):
        where = f'"{MEMBERS[member]}", port = 8080'
        text = text.replace(where + ending, f"{where}, max_connections = {connections}{ending}")
    return text


def verdicts(gateway: Gateway) -> Counter[str]:
    return Counter({row["verdict"]: row["packets"] for row in gateway.json("counters", "--all")["verdicts"]})


def test_connections_follow_the_weights(gateway: Gateway, lab: Lab) -> None:
    seen = Counter(http_get(lab["client"], None, WEB).identity.member for _ in range(80))

    assert seen == {"member-1": 30, "member-2": 20, "member-peered": 20, "member-onprem": 10}


def test_members_see_snat_addresses_and_clients_see_the_vip(gateway: Gateway, lab: Lab) -> None:
    with open_many(lab["client"], CLIENTS[3], WEB, 64) as crowd:
        peers = {connection.get().identity.peer_address for connection in crowd.connected}
        vips = {connection.socket.getpeername() for connection in crowd.connected}

    assert peers <= set(SNATS)
    assert len(peers) == len(SNATS)
    assert vips == {WEB}


@pytest.mark.parametrize("member", MEMBERS)
def test_ten_megabytes_arrive_whole_in_both_directions(gateway: Gateway, lab: Lab, member: str) -> None:
    gateway.apply(only(member))
    with connect(lab["client"], None, WEB, timeout=60) as connection:
        assert connection.get().identity.member == member
        connection.download(10 * MEGABYTE)
        connection.upload(10 * MEGABYTE)


def test_a_thousand_connections_at_once(gateway: Gateway, lab: Lab) -> None:
    with open_many(lab["client"], None, WEB, 1000) as crowd:
        assert (len(crowd.connected), crowd.refused, crowd.timed_out) == (1000, 0, 0)
        seen = Counter(connection.get().identity.member for connection in crowd.connected)
        peers = {connection.get().identity.peer for connection in crowd.connected}
        active = sum(row["active"] for row in gateway.json("member", "list", "--pool", "web"))

    assert seen == {"member-1": 375, "member-2": 250, "member-peered": 250, "member-onprem": 125}
    assert len(peers) <= 1000
    assert active == 1000
    wait_until(lambda: sum(row["active"] for row in gateway.json("member", "list", "--pool", "web")) == 0)


def test_udp_requests_are_answered_from_the_vip(gateway: Gateway, lab: Lab) -> None:
    seen: Counter[str] = Counter()
    for number in range(20):
        with UdpClient(lab["client"], CLIENTS[number % len(CLIENTS)], RESOLVER) as client:
            identities = [client.ask(f"question {number}.{part}".encode()) for part in range(3)]
        assert len({identity.member for identity in identities}) == 1
        assert identities[0].peer_address in SNATS
        seen[identities[0].member] += 1

    assert seen == {"member-1": 10, "member-onprem": 10}


def test_two_vips_share_a_member_without_collision(gateway: Gateway, lab: Lab) -> None:
    gateway.apply(only("member-peered"))
    with (
        open_many(lab["client"], CLIENT, WEB, 200) as shop,
        open_many(lab["client"], CLIENT, INTRANET, 200) as office,
    ):
        peers = [connection.get().identity.peer for connection in shop.connected + office.connected]
        row = next(row for row in gateway.json("member", "list") if row["member"] == "172.16.10.10:8080")

    assert len(peers) == len(set(peers)) == 400
    assert row["active"] == 400


def test_a_full_member_is_passed_over_and_a_full_pool_refuses(gateway: Gateway, lab: Lab) -> None:
    gateway.apply(ceiling("member-1", 50))
    with open_many(lab["client"], None, WEB, 300) as crowd:
        assert len(crowd.connected) == 300
        seen = Counter(connection.get().identity.member for connection in crowd.connected)
        assert seen["member-1"] == 50

    gateway.apply(only("member-2", max_connections=50))
    before = verdicts(gateway)
    with open_many(lab["client"], None, WEB, 60) as crowd:
        assert (len(crowd.connected), crowd.refused) == (50, 10)
        assert (verdicts(gateway) - before)["REJECT_ALL_FULL"] == 10
    wait_until(lambda: gateway.json("member", "list", "--pool", "web")[0]["active"] == 0)
    assert http_get(lab["client"], None, WEB).identity.member == "member-2"


def test_full_for_udp_is_told_by_icmp(gateway: Gateway, lab: Lab) -> None:
    nobody = "".join(line for line in CONFIGURATION.splitlines(True) if "port = 5353" not in line)
    gateway.apply(nobody)  # ends what earlier tests opened
    gateway.apply(CONFIGURATION)
    gateway.apply(CONFIGURATION.replace("max_connections = 1000 }", "max_connections = 1 }"))
    clients = [UdpClient(lab["client"], CLIENTS[number], RESOLVER) for number in range(3)]
    with ExitStack() as stack:
        for client in clients:
            stack.enter_context(client)
        assert {clients[0].ask(b"1").member, clients[1].ask(b"2").member} == {"member-1", "member-onprem"}
        with pytest.raises(ConnectionRefusedError):
            clients[2].ask(b"3")


def test_the_gateway_s_own_services_are_not_behind_its_addresses(gateway: Gateway, lab: Lab) -> None:
    with lab["gateway"].socket(socket.AF_INET, socket.SOCK_STREAM) as service:
        service.bind(("0.0.0.0", 2222))
        service.listen()
        connect(lab["client"], None, (GATEWAY_CLIENT_SIDE, 2222)).close()
        with pytest.raises(ConnectionRefusedError):
            connect(lab["client"], None, (SHOP_VIP, 2222))
        with pytest.raises(TimeoutError):
            connect(lab["member-1"], None, (SNATS[0], 2222), timeout=0.5)


def test_echo_to_a_vip_is_the_kernel_s_to_answer(gateway: Gateway, lab: Lab) -> None:
    with RawPort(lab["client"], "eth0") as port:
        port.send(bytes(frame_to_vip(lab, port) / ICMP(id=7, seq=9) / Raw(b"hello")))
        reply = port.expect(lambda packet: ICMP in packet and packet[ICMP].type == 0)
    assert (reply[IP].src, reply[ICMP].id, reply[Raw].load) == (SHOP_VIP, 7, b"hello")


def gateway_mac(lab: Lab, interface: str = "eth0") -> str:
    with lab["gateway"].netlink() as netlink:
        return str(netlink.get_links(ifname=interface)[0].get_attr("IFLA_ADDRESS"))


def frame_to_vip(lab: Lab, port: RawPort) -> Ether:
    return Ether(src=port.mac, dst=gateway_mac(lab)) / IP(src=CLIENT, dst=SHOP_VIP)


def test_bad_frames_reach_no_member(gateway: Gateway, lab: Lab) -> None:
    """Lengths that lie, fragments, unknown protocols: none comes out on the members' side, and all are counted."""
    with RawPort(lab["client"], "eth0") as port, RawPort(lab["vpc"], "gateway") as wire:
        to_vip = frame_to_vip(lab, port)
        good = bytes(to_vip / TCP(sport=4000, dport=80, flags="S"))
        bad = [
            bytes(to_vip / TCP(sport=4001, dport=80, flags="S", dataofs=3)),
            bytes(to_vip / TCP(sport=4001, dport=80, flags="S", dataofs=15)),
            good[:40],
            good[:16] + b"\xff\xff" + good[18:],
            good[:14] + b"\x44" + good[15:],
            bytes(to_vip / UDP(sport=4001, dport=53, len=7) / b"x"),
            bytes(to_vip / UDP(sport=4001, dport=53, len=900) / b"x"),
            bytes(
                Ether(src=port.mac, dst=gateway_mac(lab))
                / IP(src=CLIENT, dst=SHOP_VIP, frag=100, proto=17)
                / Raw(b"later")
            ),
            bytes(Ether(src=port.mac, dst=gateway_mac(lab)) / IP(src=CLIENT, dst=SHOP_VIP, proto=47) / b"gre"),
        ]
        before = verdicts(gateway)
        for frame in bad:
            port.send(frame)
        wait_until(lambda: drops(verdicts(gateway) - before) == len(bad))
        arrived = [packet for packet in wire.arrived() if ARP not in packet]

    assert arrived == []
    assert http_get(lab["client"], None, WEB).status == 200


def drops(counted: Counter[str]) -> int:
    return sum(count for verdict, count in counted.items() if verdict.startswith("DROP_"))


def test_a_spoofed_reply_reaches_no_client(gateway: Gateway, lab: Lab) -> None:
    """A member's neighbour that guesses SNAT address and port, but is not the member."""
    with (
        RawPort(lab["member-2"], "eth0") as port,
        RawPort(lab["client"], "eth0") as wire,
        lab["gateway"].netlink() as n,
    ):
        mac = n.get_links(ifname="eth1")[0].get_attr("IFLA_ADDRESS")
        before = verdicts(gateway)
        spoofed = [
            Ether(src=port.mac, dst=mac) / IP(src=source, dst=snat) / TCP(sport=sport, dport=dport, flags="PA")
            for source, sport in (("10.0.0.99", 8080), (MEMBERS["member-2"], 9999))
            for snat in SNATS
            for dport in (80, 32768, 40000, 65535)
        ]
        for packet in spoofed:
            port.send(bytes(packet))
        wait_until(lambda: (verdicts(gateway) - before)["DROP_NO_CONNECTION"] == len(spoofed))
        assert [packet for packet in wire.arrived() if TCP in packet] == []


def test_a_bad_file_changes_nothing(gateway: Gateway, lab: Lab) -> None:
    with connect(lab["client"], None, WEB) as connection:
        identity = connection.get().identity
        with pytest.raises(ServiceError) as refused:
            gateway.apply(CONFIGURATION.replace('"10.0.0.12"', '"8.8.8.8"').replace("weight = 3", "weight = -1"))
        assert "weight: -1 is out of range" in str(refused.value)
        assert "8.8.8.8 is not a private IPv4 address" in str(refused.value)
        assert connection.get().identity == identity
    with pytest.raises(ServiceError, match="correct the TOML there"):
        gateway.apply("= not TOML")
    rows = gateway.json("member", "list", "--pool", "web")
    assert [(row["member"], row["weight"]) for row in rows] == list(
        zip((f"{address}:8080" for address in MEMBERS.values()), (3, 2, 2, 1), strict=True)
    )


@contextmanager
def talking(lab: Lab, count: int) -> Iterator[list[str]]:
    """Connections that ask all the time; the list collects what goes wrong on any of them."""
    failures: list[str] = []
    asked = [0]
    done = threading.Event()
    with open_many(lab["client"], None, WEB, count) as crowd:
        assert len(crowd.connected) == count
        first = {connection.local: connection.get().identity for connection in crowd.connected}

        def talk() -> None:
            try:
                while not done.is_set():
                    failures.extend(
                        f"{connection.local} changed its member"
                        for connection in crowd.connected
                        if connection.get().identity != first[connection.local]
                    )
                    asked[0] += 1
            except Exception as error:
                failures.append(repr(error))

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield failures
        finally:
            done.set()
            thread.join()
        assert asked[0] > 1


def test_200_changes_of_configuration_break_no_connection(gateway: Gateway, lab: Lab) -> None:
    """Weights, ceilings, listeners, VIPs and other members come and go; what is established does not notice."""
    extra = '\n[load_balancers.extra]\nvip = "10.0.0.120"\nip_target_enable = true\n'
    listener = '\n[listeners.more]\nload_balancer = "shop"\nprotocol = "TCP"\nport = 8000\npool = "web"\n'
    newcomer = CONFIGURATION.replace(
        '    { address = "192.168.50.10", port = 8080, weight = 1 },\n',
        '    { address = "192.168.50.10", port = 8080, weight = 1 },\n    { address = "10.0.0.13", port = 8080 },\n',
    )
    changes = [
        CONFIGURATION + extra,
        newcomer,
        CONFIGURATION.replace("weight = 3", "weight = 0").replace("weight = 2", "weight = 7"),
        ceiling("member-1", 99_000),
        CONFIGURATION + listener,
        CONFIGURATION.replace("weight = 1", "weight = 100"),
        CONFIGURATION + extra + listener,
        CONFIGURATION,
    ]
    with talking(lab, 40) as failures:
        for number in range(200):
            gateway.apply(changes[number % len(changes)])
            assert failures == []
    assert failures == []


def test_a_dead_daemon_stops_no_traffic_and_a_new_one_changes_nothing(gateway: Gateway, lab: Lab) -> None:
    with talking(lab, 20) as failures:
        gateway.kill()
        assert http_get(lab["client"], None, WEB).status == 200
        said = len(gateway.log())
        gateway.start()
        assert "data plane changed" not in gateway.log()[said:]
        assert "taken over" in gateway.log()[said:]
        gateway.stop()
        assert http_get(lab["client"], None, WEB).status == 200
        gateway.start()
        assert http_get(lab["client"], None, WEB).status == 200
    assert failures == []


def test_a_removed_member_loses_its_connections_and_no_other(gateway: Gateway, lab: Lab) -> None:
    with open_many(lab["client"], None, WEB, 40) as crowd:
        members = {connection: connection.get().identity.member for connection in crowd.connected}
        gateway.apply(CONFIGURATION.replace('    { address = "10.0.0.12", port = 8080, weight = 2 },\n', ""))
        for connection, member in members.items():
            if member == "member-2":
                with pytest.raises((ConnectionResetError, ConnectionAbortedError)):
                    connection.get()
            else:
                assert connection.get().identity.member == member
    rows = gateway.json("member", "list", "--pool", "web")
    assert "10.0.0.12:8080" not in {row["member"] for row in rows}


def test_a_router_s_new_mac_is_followed(gateway: Gateway, lab: Lab) -> None:
    """A router fails over: the neighbour changes its MAC and says so, and the connections go on."""
    gateway.apply(only("member-onprem"))
    with connect(lab["client"], None, WEB) as connection, lab["router-onprem"].netlink() as netlink:
        connection.get()
        index = netlink.link_lookup(ifname="eth0")[0]
        before = netlink.get_links(index)[0].get_attr("IFLA_ADDRESS")
        fresh = "02:00:00:00:00:99"
        netlink.link("set", index=index, address=fresh)
        try:
            with RawPort(lab["router-onprem"], "eth0") as port:
                port.send(
                    bytes(
                        Ether(src=fresh, dst="ff:ff:ff:ff:ff:ff")
                        / ARP(op=1, hwsrc=fresh, psrc="10.0.0.3", pdst="10.0.0.3", hwdst="00:00:00:00:00:00")
                    )
                )
            wait_until(lambda: any(row["mac"] == fresh for row in gateway.json("network", "list")))
            assert connection.get().identity.member == "member-onprem"
        finally:
            netlink.link("set", index=index, address=before)
            with RawPort(lab["router-onprem"], "eth0") as port:
                port.send(
                    bytes(
                        Ether(src=before, dst="ff:ff:ff:ff:ff:ff")
                        / ARP(op=1, hwsrc=before, psrc="10.0.0.3", pdst="10.0.0.3", hwdst="00:00:00:00:00:00")
                    )
                )
            wait_until(lambda: any(row["mac"] == before for row in gateway.json("network", "list")))


def test_counters_add_up_to_what_the_interfaces_received(gateway: Gateway, lab: Lab) -> None:
    def received() -> int:
        with lab["gateway"].netlink() as netlink:
            links = [link for link in netlink.get_links() if link.get_attr("IFLA_IFNAME") in ("eth0", "eth1")]
            return sum(link.get_attr("IFLA_STATS64")["rx_packets"] for link in links)

    def uncounted() -> int:
        """What the interfaces received without the program, told at a moment when no packet comes between."""
        with gateway.client() as client:
            end = time.monotonic() + 10
            while time.monotonic() < end:
                start, counted = received(), client.request("GET", "/ipbackend/counters")["totals"]["received"]
                if received() == start:
                    return start - int(counted)
        raise TimeoutError("packets came all the time")

    before = uncounted()
    for _ in range(10):
        http_get(lab["client"], None, WEB)
    wait_until(lambda: uncounted() == before)
    totals = gateway.json("counters")["totals"]
    assert totals["received"] == sum(totals[name] for name in ("passed", "forwarded", "rejected", "dropped"))


def test_unload_leaves_nothing(lab: Lab, gateway: Gateway) -> None:
    gateway.stop()
    gateway.command("unload")
    with lab["gateway"].netlink() as netlink:
        for name in ("eth0", "eth1"):
            link = netlink.get_links(ifname=name)[0]
            assert not link.get_attr("IFLA_XDP").get_attr("IFLA_XDP_PROG_ID")
        addresses = {message.get_attr("IFA_ADDRESS") for message in netlink.get_addr(family=socket.AF_INET)}
        assert addresses == {"127.0.0.1", GATEWAY_CLIENT_SIDE, "10.0.0.1"}
        assert not [route for route in netlink.get_routes(family=socket.AF_INET) if route["proto"] == 173]
    assert gateway.ask("connection", "list").returncode == 1
    assert "ipbackend run" in gateway.ask("connection", "list").stderr
    gateway.start()
    assert http_get(lab["client"], None, WEB).status == 200


def test_generic_mode_carries_the_same(lab: Lab, gateway: Gateway) -> None:
    gateway.stop()
    gateway.command("unload")
    gateway.store.unlink()
    gateway.start()
    gateway.apply(CONFIGURATION.replace("[gateway]\n", '[gateway]\nattach_mode = "generic"\n'))
    assert "generic mode" in gateway.log()
    assert http_get(lab["client"], None, WEB).status == 200
    with connect(lab["client"], None, WEB, timeout=60) as connection:
        connection.download(MEGABYTE)
    gateway.apply(CONFIGURATION[: CONFIGURATION.index("[load_balancers")])
    gateway.apply(CONFIGURATION)
    assert gateway.log().rstrip().count("native mode") > 1
    assert http_get(lab["client"], None, WEB).status == 200


@pytest.mark.parametrize("role", ["member-1", "member-peered"])
def test_a_member_may_be_a_client_and_its_own_member(gateway: Gateway, lab: Lab, role: str) -> None:
    """Hairpin: full NAT makes it look to the member as anyone else's connection does."""
    seen = Counter(http_get(lab[role], None, WEB).identity.member for _ in range(8))
    assert seen == {"member-1": 3, "member-2": 2, "member-peered": 2, "member-onprem": 1}
    gateway.apply(only(role))
    with connect(lab[role], None, WEB, timeout=60) as connection:
        identity = connection.get().identity
        assert (identity.member, identity.peer_address in SNATS) == (role, True)
        connection.download(MEGABYTE)
        connection.upload(MEGABYTE)


def test_long_datagrams_come_through_in_pieces(gateway: Gateway, lab: Lab) -> None:
    """8 kB of UDP, fragmented by the sender's kernel and put together by the receiver's, both ways."""
    for client in CLIENTS[:8]:
        with UdpClient(lab["client"], client, RESOLVER) as asking:
            for size in (1473, 8000, 20000):
                assert asking.ask(random.Random(size).randbytes(size)).peer_address in SNATS
