"""What others do to interfaces, neighbours, routes and addresses of a gateway under traffic: no connection is lost."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest
from scapy.layers.l2 import ARP, Ether

from tests.netns.around import WEB, damage, metric, status, wait_until
from tests.netns.clients import RawPort, connect
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import MEMBERS, ROUTER_ONPREM, SHOP_VIP, SNATS, Lab

pytestmark = pytest.mark.root

ONPREM_ONLY = CONFIGURATION.replace(
    CONFIGURATION[CONFIGURATION.index("[pools.web]") : CONFIGURATION.index("[pools.resolver]")],
    '[pools.web]\nprotocol = "TCP"\nmembers = [{ address = "192.168.50.10", port = 8080 }]\n\n',
)


def ip(lab: Lab, command: str, role: str = "gateway") -> None:
    lab[role].run(["ip", *command.split()])


@pytest.mark.parametrize("interface", ["eth0", "eth1"])
def test_an_interface_that_goes_down_and_comes_up(lab: Lab, gateway: Gateway, interface: str) -> None:
    with damage(lab, gateway) as seen:
        ip(lab, f"link set {interface} down")
        seen.told(f"interface {interface} is down", f"`ip link set {interface} up`")
        if interface == "eth1":  # who could only wait is refused at once
            with pytest.raises(ConnectionRefusedError):
                connect(lab["client"], None, WEB)
        ip(lab, f"link set {interface} up")
        seen.well()
        assert f"interface {interface}: is up" in seen.log()


def test_an_interface_that_is_renamed(lab: Lab, gateway: Gateway) -> None:
    """It forwards on under its number, also when it is down meanwhile, as older kernels demand."""
    with damage(lab, gateway) as seen:
        for have, want in (("eth1", "lan0"), ("lan0", "eth1")):
            ip(lab, f"link set {have} down")
            ip(lab, f"link set {have} name {want}")
            ip(lab, f"link set {want} up")
            if want == "lan0":
                seen.told("interface eth1 is called lan0 now", "`ip link set lan0 name eth1`")
                wait_until(lambda: not status(gateway)["drift"])
                seen.clients.wait_for(8)
                gateway.apply(CONFIGURATION.replace("weight = 3", "weight = 4"))


@pytest.mark.parametrize("cable", [0, 1])
def test_an_interface_that_is_made_anew(lab: Lab, gateway: Gateway, cable: int) -> None:
    """Deleted, and another one of its name: also a client that only listens hears the rest of its answer."""
    with damage(lab, gateway) as seen, connect(lab["client"], None, WEB, timeout=60) as listening:
        download = threading.Thread(target=lambda: (listening.download(30_000_000), heard.append(True)))
        heard: list[bool] = []
        with lab["gateway"].netlink() as netlink:
            (before,) = netlink.link_lookup(ifname=f"eth{cable}")
        download.start()
        lab.replug(cable)
        wait_until(lambda: f"interface eth{cable}: is" in seen.log())
        seen.drift(f"XDP detached from eth{cable}")
        download.join(60)
        assert heard == [True]
        seen.talk.wait()
        with lab["gateway"].netlink() as netlink:
            assert netlink.link_lookup(ifname=f"eth{cable}") != (before,)


def test_an_mtu_that_changes(lab: Lab, gateway: Gateway) -> None:
    with damage(lab, gateway) as seen:
        for role in ("client", "gateway"):
            ip(lab, "link set eth0 mtu 1400", role)
        wait_until(lambda: "interface eth0: MTU 1500 → 1400" in seen.log())
        seen.talk.wait()  # members are told by ICMP, and send less
        for role in ("client", "gateway"):
            ip(lab, "link set eth0 mtu 1500", role)
        ip(lab, "link set eth1 mtu 3506")  # as much as native XDP takes here
        wait_until(lambda: "interface eth1: MTU 1500 → 3506" in seen.log())
        seen.talk.wait()
        too_much = lab["gateway"].run(["ip", "link", "set", "eth1", "mtu", "9000"], check=False, capture_output=True)
        assert too_much.returncode != 0  # while XDP is there the kernel sees to that
        ip(lab, "link set eth1 mtu 1400")  # at one end only: longer frames die on that link, before us
        wait_until(lambda: "interface eth1: MTU 3506 → 1400" in seen.log())
        time.sleep(1)
        ip(lab, "link set eth1 mtu 1500")
        seen.talk.wait()


def test_another_mac_of_the_gateway_s_own(lab: Lab, gateway: Gateway) -> None:
    """Neighbours are told at once, for every address."""
    fresh, addresses = "02:00:00:00:00:77", set(SNATS)

    def known(mac: str) -> set[str]:
        with lab["member-1"].netlink() as netlink:
            found = {one.get_attr("NDA_DST"): one.get_attr("NDA_LLADDR") for one in netlink.get_neighbours()}
        return {address for address in addresses if found.get(address) == mac}

    with damage(lab, gateway) as seen, lab["gateway"].netlink() as netlink:
        index = netlink.link_lookup(ifname="eth1")[0]
        before = netlink.get_links(index)[0].get_attr("IFLA_ADDRESS")
        wait_until(lambda: known(before) == addresses)
        for mac in (fresh, before):
            ip(lab, f"link set eth1 address {mac}")
            wait_until(lambda mac=mac: known(mac) == addresses, 10)
            assert f"→ {mac}" in seen.log()
            seen.talk.wait()


@pytest.mark.parametrize("announced", [True, False])
def test_a_router_that_fails_over(lab: Lab, gateway: Gateway, announced: bool) -> None:
    """Another one takes its address: at once where it says so, else as soon as the kernel finds that out."""
    gateway.apply(ONPREM_ONLY)
    with damage(lab, gateway), lab["router-onprem"].netlink() as netlink:
        index = netlink.link_lookup(ifname="eth0")[0]
        before = netlink.get_links(index)[0].get_attr("IFLA_ADDRESS")
        for mac in ("02:00:00:00:00:99", before):
            netlink.link("set", index=index, address=mac)
            if announced:
                with RawPort(lab["router-onprem"], "eth0") as port:
                    arp = ARP(op=1, hwsrc=mac, psrc=ROUTER_ONPREM, pdst=ROUTER_ONPREM, hwdst="00:00:00:00:00:00")
                    port.send(bytes(Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / arp))
            wait_until(lambda mac=mac: any(row["mac"] == mac for row in gateway.json("network", "list")), 120)


def test_a_next_hop_that_does_not_answer_arp_for_a_while(lab: Lab, gateway: Gateway) -> None:
    with lab["gateway"]:
        its = Path("/proc/sys/net/ipv4/neigh/eth1")
        times = {"base_reachable_time_ms": "1000", "delay_first_probe_time": "1", "retrans_time_ms": "100"}
        kept = {name: (its / name).read_text() for name in times}
        for name, value in times.items():
            (its / name).write_text(value)
    try:
        with damage(lab, gateway) as seen:
            ip(lab, "link set eth0 arp off", "router-onprem")
            wait_until(lambda: f"next hop {ROUTER_ONPREM} is not reached any more: 2 members" in seen.log(), 90)
            states = {row["member"]: row["state"] for row in gateway.json("member", "list", "--pool", "web")}
            assert {address for address, state in states.items() if state == "no next hop"} == {"192.168.50.10:8080"}
            ip(lab, "link set eth0 arp on", "router-onprem")
            wait_until(lambda: f"next hop {ROUTER_ONPREM} answers again: 2 members" in seen.log(), 90)
    finally:
        with lab["gateway"]:
            for name, value in kept.items():
                (its / name).write_text(value)


def test_routes_that_are_withdrawn_or_taken_over(lab: Lab, gateway: Gateway) -> None:
    with damage(lab, gateway) as seen:
        ip(lab, "route del 192.168.50.0/24 proto 173")
        seen.drift("route to 192.168.50.0/24 missing")
        ip(lab, "route replace 192.168.50.0/24 via 10.0.0.2 proto static")
        seen.told("route to 192.168.50.0/24 via 10.0.0.3 on eth1: somebody else's is there, via 10.0.0.2 on eth1")
        ip(lab, "route del 172.16.10.0/24 proto 173")  # the others are looked after meanwhile
        seen.drift("route to 172.16.10.0/24 missing")
        seen.talk.wait()  # XDP goes by the next hop that it was told
        gateway.apply(CONFIGURATION.replace("weight = 3", "weight = 4"))  # what has nothing to do with it goes on
        gateway.kill()
        gateway.start()  # so does a restart
        seen.told("route to 192.168.50.0/24 via 10.0.0.3 on eth1: somebody else's is there, via 10.0.0.2 on eth1")
        ip(lab, "route del 192.168.50.0/24 proto static")


def test_addresses_that_others_remove(lab: Lab, gateway: Gateway) -> None:
    """One by one; then all of an interface, with the gateway's own, and hence the routes: which it cannot know."""
    with damage(lab, gateway) as seen:
        for interface, address in (("eth0", SHOP_VIP), ("eth1", SNATS[0])):
            ip(lab, f"address del {address}/32 dev {interface}")
            seen.drift(f"address {address} missing from {interface}")
        ip(lab, "address flush dev eth1")
        seen.told("route to 172.16.10.0/24 via 10.0.0.2 on eth1", "must be up and have an address of that network")
        gateway.apply(CONFIGURATION.replace("weight = 3", "weight = 4"))  # what has nothing to do with it goes on
        for address in SNATS:
            seen.drift(f"address {address} missing from eth1")
        seen.talk.wait()
        ip(lab, "address add 10.0.0.1/24 dev eth1")


def lost_reports(lab: Lab) -> int:
    """What the kernel could not tell the daemon by netlink."""
    with lab["gateway"]:
        header, *rows = (row.split() for row in Path("/proc/thread-self/net/netlink").read_text().splitlines())
    return sum(int(row[header.index("Drops")]) for row in rows)


def test_ten_seconds_of_sigstop_and_a_netlink_overrun(lab: Lab, gateway: Gateway) -> None:
    """Nothing is forwarded later for it; the sweep comes late, once, and what went by unseen is found all the same."""
    monitor = '\n[pools.web.health_monitor]\ntype = "TCP"\ndelay = 1\ntimeout = 1\nmax_retries_down = 1\n'
    before = len(gateway.log())
    gateway.apply(CONFIGURATION.replace("[pools.resolver]", f"{monitor}\n[pools.resolver]"))
    wait_until(lambda: gateway.log()[before:].count("→ ONLINE") == len(MEMBERS))
    with damage(lab, gateway) as seen:
        process = gateway.process
        assert process
        process.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            change = "neighbour replace 10.99.0.{0} lladdr 02:00:00:00:{1:02x}:{0:02x} dev eth1\n"
            flood = "".join(change.format(number % 250, number // 250) for number in range(6000))
            lab["gateway"].run(["ip", "-batch", "-"], input=flood.encode())
            ip(lab, "route del 192.168.50.0/24 proto 173")
            assert lost_reports(lab) > 0
            while time.monotonic() < stopped + 10:
                seen.talk.wait(10)
                seen.clients.wait_for(8, 10)
        finally:
            process.send_signal(signal.SIGCONT)
        seen.drift("route to 192.168.50.0/24 missing")
        wait_until(lambda: time.time() - metric(gateway, "sweep_last_timestamp_seconds") < 3)
        assert metric(gateway, "sweep_delay_seconds_sum") > 8
    assert "OFFLINE" not in seen.log()  # a member does not pay for our absence
    assert not seen.clients.failed()
