"""What Prometheus would scrape of the real daemon, held against what clients, members and the wire counted."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from ipbackend.datapath.maps import Maps
from ipbackend.verdicts import MEANINGS
from tests.netns.clients import RawPort, UdpClient, connect, http_get, open_many
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import CLIENTS, MEMBERS, SHOP_VIP, SNATS, Lab
from tests.netns.test_gateway import wait_until
from tests.unit.monitoring import families, promtool

pytestmark = pytest.mark.root

WEB, RESOLVER = (SHOP_VIP, 80), (SHOP_VIP, 53)
TCP_PORT = 9177


def scrape(gateway: Gateway) -> str:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(gateway.run_directory / "api.sock"))) as http:
        answer = http.get("http://gateway/metrics")
    assert answer.status_code == 200
    return answer.text


class Values:
    """A scrape, parsed by Prometheus' own client library."""

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for one in family.samples:
                self._samples[one.name.removeprefix("ipbackend_")].append((one.labels, one.value))

    def sum(self, name: str, **labels: str) -> float:
        """Of all series of a metric that have these labels; there must be one."""
        fitting = [value for its, value in self._samples[name] if its | labels == its]
        assert fitting, f"{name} {labels}"
        return sum(fitting)

    def by(self, name: str, label: str, **labels: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for its, value in self._samples[name]:
            if its | labels == its:
                found[its[label]] += int(value)
        return found


def values(gateway: Gateway) -> Values:
    return Values(scrape(gateway))


def status(gateway: Gateway) -> Any:
    with gateway.client() as client:
        return client.request("GET", "/ipbackend/status")["status"]


def length_of(frames: list[Packet]) -> int:
    return sum(frame[IP].len for frame in frames)


def open_connections(gateway: Gateway) -> float:
    """Of TCP: a UDP exchange lasts until it is idle."""
    return values(gateway).sum("member_connections", protocol="TCP")


def test_the_scrape_is_what_the_docs_say_and_promtool_takes_it(gateway: Gateway, lab: Lab) -> None:
    gateway.apply(CONFIGURATION.replace("weight = 3", "weight = 4"))
    gateway.apply(CONFIGURATION)  # changes to be counted, by a daemon that may be new
    http_get(lab["client"], None, WEB)
    text = scrape(gateway)
    promtool("check", "metrics", given=text)
    there = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        if name.startswith("ipbackend_"):
            there[name] = (family.type, {label for one in family.samples for label in one.labels} - {"le"})
    assert there == {name: (one.kind, set(one.labels)) for name, one in families().items()}
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len({line.rpartition(" ")[0] for line in lines}) == len(lines)  # no series twice


def test_packets_and_bytes_are_those_on_the_wire(gateway: Gateway, lab: Lab) -> None:
    """Requests as they arrive at the members, replies as they arrive at the client, by listener and by member."""
    wait_until(lambda: open_connections(gateway) == 0, deadline=30)
    before = values(gateway)
    opened: Counter[str] = Counter()
    member_of: dict[tuple[int, int], str] = {}  # by protocol and the client's port
    with ExitStack() as stack:
        ports = {name: stack.enter_context(RawPort(lab[name], "eth0")) for name in MEMBERS}
        client = stack.enter_context(RawPort(lab["client"], "eth0"))
        for _ in range(16):
            with connect(lab["client"], CLIENTS[6], WEB) as one:
                whom = f"{MEMBERS[one.get().identity.member]}:8080"
                member_of[6, one.local[1]] = whom
                opened[whom] += 1
        for size in (1, 100, 1000):
            with UdpClient(lab["client"], CLIENTS[6], RESOLVER) as asking:
                whom = f"{MEMBERS[asking.ask(bytes(size)).member]}:5353"
                member_of[17, asking.socket.getsockname()[1]] = whom
                opened[whom] += 1
        wait_until(lambda: values(gateway).sum("listener_connections", listener="web") == 0)
        arrived = {name: [one for one in port.arrived() if IP in one] for name, port in ports.items()}
        answers = [one for one in client.arrived() if IP in one and one[IP].src == SHOP_VIP]
    after = values(gateway)

    def grown(what: str, **labels: str) -> float:
        return after.sum(what, **labels) - before.sum(what, **labels)

    seen = 0
    for listener, kind, port in (("web", TCP, 8080), ("resolver", UDP, 5353)):
        requests = {
            f"{address}:{port}": [
                one for one in arrived[name] if one[IP].src in SNATS and kind in one and one[kind].dport == port
            ]
            for name, address in MEMBERS.items()
        }
        replies = [one for one in answers if kind in one]
        protocol = {TCP: "TCP", UDP: "UDP"}[kind]
        whole = [one for each in requests.values() for one in each]
        for direction, frames in (("request", whole), ("reply", replies)):
            labels = {"listener": listener, "direction": direction}
            assert grown("listener_packets_total", **labels) == len(frames) > 0
            assert grown("listener_bytes_total", **labels) == length_of(frames)
            seen += len(frames)
        for member in {one for one in member_of.values() if one.endswith(f":{port}")}:
            its = {"member": member, "protocol": protocol}
            of_it = [one for one in replies if member_of[one[IP].proto, one[kind].dport] == member]
            assert grown("member_connections_opened_total", **its) == opened[member]
            assert grown("member_packets_total", **its, direction="request") == len(requests[member])
            assert grown("member_bytes_total", **its, direction="request") == length_of(requests[member])
            assert grown("member_packets_total", **its, direction="reply") == len(of_it)
            assert grown("member_bytes_total", **its, direction="reply") == length_of(of_it)
    assert grown("listener_connections_opened_total", listener="web") == 16
    verdicts = ("FORWARD_OPENED", "FORWARD_REQUEST", "FORWARD_REPLY")
    assert sum(grown("packets_total", verdict=one) for one in verdicts) == seen
    assert grown("packets_total", verdict="FORWARD_OPENED") == 16 + 3


def test_sums_by_member_by_listener_and_by_verdict_are_the_same(gateway: Gateway, lab: Lab) -> None:
    """Also after a listener and a member have gone, with all that they had counted."""
    http_get(lab["client"], None, WEB)
    without = CONFIGURATION.replace('    { address = "10.0.0.11", port = 8080, weight = 3 },\n', "")
    gateway.apply(without)
    gateway.apply(CONFIGURATION)
    http_get(lab["client"], None, WEB)
    wait_until(lambda: open_connections(gateway) == 0, deadline=30)
    now = values(gateway)
    packets = now.by("packets_total", "verdict")
    assert set(packets) == {verdict.name for verdict in MEANINGS}
    assert now.sum("packets_received_total") == sum(packets.values())
    with Maps(gateway.run_directory) as maps:
        listeners, members = (maps[name].columns(64) for name in ("listener_counts", "endpoint_counts"))
    for direction, verdicts in (("request", ("FORWARD_OPENED", "FORWARD_REQUEST")), ("reply", ("FORWARD_REPLY",))):
        total = sum(packets[one] for one in verdicts)
        assert sum(listeners[f"{direction}_packets"]) == sum(members[f"{direction}_packets"]) == total
        gone = members[f"{direction}_packets"][0]
        assert now.sum("member_packets_total", direction=direction) + gone == total
    assert members["opened"][0] > 0  # what the member that went had counted
    assert sum(listeners["opened"]) == sum(members["opened"]) == packets["FORWARD_OPENED"]
    assert status(gateway)["unbalanced"] == []


def test_connections_are_those_that_the_client_holds(gateway: Gateway, lab: Lab) -> None:
    """The product's m1_cps to m3_inact_conn are sums of these."""
    wait_until(lambda: open_connections(gateway) == 0, deadline=30)
    before = values(gateway)
    with open_many(lab["client"], CLIENTS[7], WEB, 40) as crowd:
        held = Counter(f"{MEMBERS[one.get().identity.member]}:8080" for one in crowd.connected)
        now = values(gateway)
        assert now.sum("listener_connections", load_balancer="shop", listener="web") == 40
        assert now.sum("listener_connections_half_open", listener="web") == 0
        assert +now.by("member_connections", "member", protocol="TCP") == held
        assert now.sum("pool_connections", pool="web") == 40
        assert now.sum("snat_slots_used") - before.sum("snat_slots_used") == 40
        assert set(now.by("snat_slots_used", "snat_address")) <= set(SNATS)
        assert now.sum("flow_index_entries") == now.sum("member_slots_resting") + now.sum("member_connections")
        assert now.sum("pool_room", pool="web") == 400_000 - 40
        slots = sum(now.sum(f"member_slots_{what}") for what in ("free", "resting"))
        assert slots + 40 == sum(before.sum(f"member_slots_{what}") for what in ("free", "resting"))
    wait_until(lambda: open_connections(gateway) == 0)
    after = values(gateway)
    assert after.sum("member_connections_ended_total", how="closed") >= before.sum(
        "member_connections_ended_total", how="closed"
    ) + len(crowd.connected)
    assert after.sum("member_slots_resting") >= 40


def test_handshakes_under_way_and_refusals_are_counted(gateway: Gateway, lab: Lab) -> None:
    gateway.apply(CONFIGURATION.replace("weight = 3 }", "weight = 3, max_connections = 2 }"))
    # A SYN whose answer nobody acknowledges, and one to a pool without members.
    before = values(gateway)
    with RawPort(lab["client"], "eth0") as port, lab["client"].netlink() as netlink:
        gateway_mac = next(
            one.get_attr("NDA_LLADDR") for one in netlink.get_neighbours() if one.get_attr("NDA_DST") == "203.0.113.1"
        )
        # The address is no one's, so that no kernel answers the SYN-ACK by a RST.
        frame = Ether(src=port.mac, dst=gateway_mac) / IP(src="203.0.113.200", dst=SHOP_VIP) / TCP(dport=80, flags="S")
        port.send(bytes(frame))
        wait_until(lambda: values(gateway).sum("listener_connections_half_open", listener="web") == 1)
        now = values(gateway)
        assert now.sum("member_connections_half_open") == 1
        assert now.sum("listener_connections", listener="web") >= 1
    gateway.apply(
        re.sub(r"(\[pools.web\]\nprotocol = \"TCP\"\nmembers = )\[.*?\n\]", r"\1[]", CONFIGURATION, flags=re.DOTALL)
    )
    with pytest.raises(ConnectionRefusedError):
        connect(lab["client"], None, WEB)
    now = values(gateway)
    refused = "listener_connections_refused_total"
    assert now.sum(refused, listener="web") - before.sum(refused, listener="web") == 1
    why = {"listener": "web", "reason": "REJECT_NO_MEMBER"}
    assert now.sum(refused, **why) - before.sum(refused, **why) == 1
    reason = {"verdict": "REJECT_NO_MEMBER"}
    assert now.sum("packets_total", **reason) - before.sum("packets_total", **reason) == 1
    assert now.sum("pool_members", pool="web") == 0
    assert now.sum("listener_connections", listener="web") == 0  # it went with its member
    assert now.sum("listener_connections_half_open", listener="web") == 0


def test_members_show_their_weight_status_and_reach(gateway: Gateway, lab: Lab) -> None:
    now = values(gateway)
    weights = now.by("pool_member_weight", "member", pool="web")
    assert weights == {"10.0.0.11:8080": 3, "10.0.0.12:8080": 2, "172.16.10.10:8080": 2, "192.168.50.10:8080": 1}
    with gateway.client() as client:
        (pool,) = client.request("GET", "/elb/pools", name="web")["pools"]
        shown = client.request("GET", f"/elb/pools/{pool['id']}/members")["members"]
    for one in shown:
        its = {"member": f"{one['address']}:{one['protocol_port']}", "status": one["operating_status"]}
        assert now.sum("pool_member_status", pool="web", **its) == 1
    assert now.sum("pool_members_reachable", pool="web") == 4
    assert now.by("member_reachable", "member", protocol="TCP").total() == 4
    assert now.by("member_connections_max", "protocol") == {"TCP": 400_000, "UDP": 2_000}
    assert now.by("load_balancer_info", "vip").total() == 2
    assert now.by("listener_info", "listener", vip=SHOP_VIP) == {"web": 1, "resolver": 1}


def test_the_daemon_measures_its_own_work(gateway: Gateway, lab: Lab) -> None:
    before = values(gateway)
    with lab["gateway"].netlink() as netlink:
        index = netlink.link_lookup(ifname="eth0")[0]
        netlink.addr("delete", index=index, address=SHOP_VIP, prefixlen=32)
    wait_until(lambda: values(gateway).sum("drift_repaired_total") > before.sum("drift_repaired_total"))
    gateway.apply(CONFIGURATION.replace("weight = 3", "weight = 9"))
    changed = {"section": "members", "change": "changed"}
    asked = {"method": "POST", "route": "/v3/{project_id}/ipbackend/apply", "status": "200"}
    after = values(gateway)
    assert after.sum("changes_total", **changed) >= 1
    assert after.sum("change_duration_seconds_count", result="applied") > 0
    assert after.sum("api_request_duration_seconds_count", **asked) > 0
    assert after.sum("drift_found_total") > before.sum("drift_found_total")
    for request in ("link dump", "addr dump", "addr add", "route dump", "neigh dump"):
        assert after.sum("netlink_duration_seconds_count", request=request) > 0
    sweeps = "sweep_duration_seconds_count"
    wait_until(lambda: values(gateway).sum(sweeps) > after.sum(sweeps))
    now = values(gateway)
    for work in ("sweep", "sweep_delay", "refresh", "conservation_check", "scrape"):
        name = work if work == "sweep_delay" else f"{work}_duration"
        assert now.sum(f"{name}_seconds_count") > 0
    assert abs(time.time() - now.sum("sweep_last_timestamp_seconds")) < 60
    assert now.sum("sweep_slots_total") > 0


# --- By TCP.


@pytest.fixture
def scraped(gateway: Gateway) -> Iterator[Gateway]:
    """With metrics by TCP as well."""
    gateway.stop()
    gateway.start("--metrics", f"127.0.0.1:{TCP_PORT}")
    yield gateway
    gateway.stop()
    gateway.start()


def test_by_tcp_metrics_are_told_and_nothing_else(scraped: Gateway, lab: Lab) -> None:
    with lab["gateway"]:
        answer = httpx.get(f"http://127.0.0.1:{TCP_PORT}/metrics")
        assert (answer.status_code, answer.headers["content-type"][:29]) == (200, "text/plain; version=0.0.4; ch")
        assert Values(answer.text).sum("forwarding") == 1
        assert Values(answer.text).sum("pool_members", pool="web") == 4
        project = "0" * 32
        for path in (f"/v3/{project}/elb/pools", f"/v3/{project}/ipbackend/status", "/openapi.json", "/"):
            assert httpx.get(f"http://127.0.0.1:{TCP_PORT}{path}").status_code == 404
        assert httpx.post(f"http://127.0.0.1:{TCP_PORT}/metrics").status_code == 405


def test_by_tcp_only_if_asked_for(gateway: Gateway, lab: Lab) -> None:
    with lab["gateway"], pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{TCP_PORT}/metrics")


def test_an_address_that_is_none_or_taken_is_refused(scraped: Gateway) -> None:
    refused = scraped.ask("run", "--metrics", "localhost:9177")
    assert refused.returncode == 2
    assert "'localhost:9177' is not an IPv4 address and a port" in refused.stderr
    elsewhere = ("--run-dir", "/run/elsewhere", "run", "--store", "/run/elsewhere/store.db")
    taken = scraped.ask(*elsewhere, "--metrics", f"127.0.0.1:{TCP_PORT}")
    assert taken.returncode == 1
    assert f"--metrics 127.0.0.1:{TCP_PORT}: Address already in use" in taken.stderr


# --- Conservation.
