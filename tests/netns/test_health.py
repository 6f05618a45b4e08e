"""Members that die, hang, refuse, flap and return while real clients go on asking, on the whole gateway."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP

from tests.netns.clients import RawPort, UdpClient, connect, http_get
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import MEMBER_TCP_PORT, MEMBERS, SHOP_VIP, Lab
from tests.netns.load import Load, load
from tests.netns.members import Member
from tests.netns.test_daemon import ask, id_of, wait_until

pytestmark = pytest.mark.root

WEB, RESOLVER = (SHOP_VIP, 80), (SHOP_VIP, 53)
HEALTH, OTHER = "10.0.0.105", "10.0.0.107"
DELAY, TIMEOUT, FALLS = 1, 1, 2
WINDOW = TIMEOUT * FALLS + DELAY * (FALLS - 1)


@contextlib.contextmanager
def monitored(gateway: Gateway, pool: str, kind: str = "TCP", **more: Any) -> Iterator[str]:
    """A pool whose members are asked, all of them ONLINE; the monitor's id."""
    body = {"pool_id": id_of(gateway, "pools", pool), "type": kind, "delay": DELAY, "timeout": TIMEOUT}
    body |= {"max_retries": 2, "max_retries_down": FALLS, **more}
    number = str(ask(gateway, "POST", "/elb/healthmonitors", {"healthmonitor": body})["healthmonitor"]["id"])
    try:
        yield number
    finally:
        ask(gateway, "DELETE", f"/elb/healthmonitors/{number}")


def states(gateway: Gateway, pool: str) -> dict[str, str]:
    """The operating status of each member of a pool, by the name of its address in the lab."""
    names = {address: name for name, address in MEMBERS.items()}
    rows = ask(gateway, "GET", f"/elb/pools/{id_of(gateway, 'pools', pool)}/members")["members"]
    return {names[row["address"]]: row["operating_status"] for row in rows}


def all_online(gateway: Gateway, pool: str) -> None:
    wait_until(lambda: set(states(gateway, pool).values()) == {"ONLINE"})


def opened(gateway: Gateway, member: str, pool: str = "web") -> int:
    """Connections that a member has been given."""
    rows = gateway.json("member", "list", "--pool", pool)
    return int(next(row["opened"] for row in rows if row["member"].startswith(f"{MEMBERS[member]}:")))


def out_of_the_schedule(met: Load, gateway: Gateway, member: str, since: float) -> float:
    """When a member was OFFLINE; from a moment after that on nothing fails, and nothing goes there."""
    wait_until(lambda: states(gateway, "web")[member] == "OFFLINE")
    out = time.monotonic()
    # The window begins with the first check that fails, up to a delay and its jitter later. The rest is the machine's:
    # each of some ten steps, from the timer to this look, may be as late as a sleeper here was at most.
    assert out - since <= WINDOW + 1.1 * DELAY + 1 + 10 * met.late
    before = opened(gateway, member)
    moment = met.wait_for(50)
    assert [one for one in met.failed() if one.began > moment] == []
    assert opened(gateway, member) == before
    return out


def back_in_the_schedule(met: Load, gateway: Gateway, member: str) -> None:
    wait_until(lambda: states(gateway, "web")[member] == "ONLINE")
    moment = met.wait_for(50)
    wait_until(lambda: met.answered_since(moment)[member] > 0)


def test_a_member_that_dies_takes_no_one_else_along(lab: Lab, gateway: Gateway, members: dict[str, Member]) -> None:
    """Only connections that it was given before it was out of the schedule fail."""
    dead, said = members["member-2"], len(gateway.log())
    with monitored(gateway, "web"), load(lab["client"], WEB) as met:
        all_online(gateway, "web")
        met.wait_for(50)
        before, killed = opened(gateway, "member-2"), time.monotonic()
        dead.kill()
        out_of_the_schedule(met, gateway, "member-2", killed)
        given = opened(gateway, "member-2") - before
        row = next(row for row in gateway.json("member", "list", "--pool", "web") if row["member"] == "10.0.0.12:8080")
        assert (row["health"], row["reason"]) == ("OFFLINE", "CONNECT_REFUSED")
        pool = next(row for row in gateway.json("pool", "list") if row["name"] == "web")
        assert (pool["members"], pool["up"]) == (4, 3)
        (live,) = [one for one in gateway.json("status")["live"]["pools"] if one["name"] == "web"]
        assert (live["members"], live["up"]) == (4, 3)
        dead.start()
        dead.wait_ready()
        back_in_the_schedule(met, gateway, "member-2")
    assert min(one.ended for one in met.failed()) >= killed
    assert 0 < len(met.failed()) <= given + 4  # those that were under way as well: one of each client
    lines = [line for line in gateway.log()[said:].splitlines() if "member 10.0.0.12:8080 of pools.web" in line]
    assert len(lines) == 3
    assert "INITIAL → ONLINE" in lines[0]
    assert "ONLINE → OFFLINE" in lines[1]
    assert "2 checks failed, CONNECT_REFUSED (received Connection refused)" in lines[1]
    assert "OFFLINE → ONLINE" in lines[2]


def test_a_member_that_hangs(lab: Lab, gateway: Gateway, members: dict[str, Member]) -> None:
    """Its kernel goes on accepting, so that only a question by HTTP finds it out."""
    process = members["member-1"]._process
    with monitored(gateway, "web", "HTTP"), load(lab["client"], WEB, clients=8) as met:
        all_online(gateway, "web")
        met.wait_for(50)
        before, stopped = opened(gateway, "member-1"), time.monotonic()
        process.send_signal(signal.SIGSTOP)
        try:
            out_of_the_schedule(met, gateway, "member-1", stopped)
            given = opened(gateway, "member-1") - before
            rows = ask(gateway, "GET", "/elb/members", address=MEMBERS["member-1"], operating_status="OFFLINE")
            (reason,) = [row["reason"] for row in rows["members"]]
            expected = {"expected_response": "200", "healthcheck_response": f"no answer in {TIMEOUT} s"}
            assert reason == {"reason_code": "RECV_RESPONSE_TIMEOUT", **expected}
        finally:
            process.send_signal(signal.SIGCONT)
        back_in_the_schedule(met, gateway, "member-1")
    assert len(met.failed()) <= given + 8


def test_a_member_that_flaps(lab: Lab, gateway: Gateway, members: dict[str, Member]) -> None:
    flapping = members["member-onprem"]
    with monitored(gateway, "web"), load(lab["client"], WEB) as met:
        all_online(gateway, "web")
        before, given = opened(gateway, "member-onprem"), 0
        for _ in range(4):
            flapping.kill()
            met.wait_for(50)
            flapping.start()
            flapping.wait_ready()
            met.wait_for(50)
        given = opened(gateway, "member-onprem") - before
        back_in_the_schedule(met, gateway, "member-onprem")
    assert len(met.failed()) <= given + 4 * 4


def test_a_new_member_gets_nothing_before_it_has_answered(lab: Lab, gateway: Gateway) -> None:
    with monitored(gateway, "web"), load(lab["client"], WEB) as met:
        all_online(gateway, "web")
        at = f"/elb/pools/{id_of(gateway, 'pools', 'web')}/members"
        closed = {"address": MEMBERS["member-1"], "protocol_port": MEMBER_TCP_PORT + 1, "max_connections": 100}
        number = ask(gateway, "POST", at, {"member": closed})["member"]["id"]
        wait_until(lambda: ask(gateway, "GET", f"{at}/{number}")["member"]["operating_status"] == "OFFLINE")
        met.wait_for(50)
        assert met.failed() == []
        found = ask(gateway, "GET", "/ipbackend/members", pool_id=id_of(gateway, "pools", "web"))["members"]
        assert [row["opened"] for row in found if row["id"] == number] == [0]


def test_all_down_refuses_new_ones_and_leaves_the_old_ones(lab: Lab, gateway: Gateway) -> None:
    def refusals() -> int:
        rows = gateway.json("counters")["verdicts"]
        return int(next(row["packets"] for row in rows if row["verdict"] == "REJECT_NO_MEMBER"))

    with connect(lab["client"], None, WEB) as old:
        who = old.get().identity
        with monitored(gateway, "web", monitor_port=9) as monitor:
            wait_until(lambda: set(states(gateway, "web").values()) == {"OFFLINE"})
            balancer = id_of(gateway, "loadbalancers", "shop")
            tree = ask(gateway, "GET", f"/elb/loadbalancers/{balancer}/statuses")["statuses"]["loadbalancer"]
            assert tree["operating_status"] == "DEGRADED"
            wait_until(lambda: _is_refused(lab))
            before = refusals()
            with pytest.raises(ConnectionRefusedError):
                http_get(lab["client"], None, WEB)
            assert refusals() > before
            assert old.get().identity == who
            change = {"healthmonitor": {"admin_state_up": False}}
            ask(gateway, "PUT", f"/elb/healthmonitors/{monitor}", change)
            assert set(states(gateway, "web").values()) == {"NO_MONITOR"}
            assert http_get(lab["client"], None, WEB).status == 200


def test_all_down_and_all_get_connections_if_so_set(lab: Lab, gateway: Gateway, members: dict[str, Member]) -> None:
    """The check is wrong, and not the members: clients notice nothing."""
    open_ = CONFIGURATION.replace("[pools.web]\n", "[pools.web]\nminimum_healthy = 1\n")
    gateway.apply(open_)
    with monitored(gateway, "web", monitor_port=9), load(lab["client"], WEB) as met:
        wait_until(lambda: set(states(gateway, "web").values()) == {"OFFLINE"})
        moment = met.wait_for(50)
        assert set(met.answered_since(moment)) == set(MEMBERS)
        gateway.kill()
        gateway.start()
        wait_until(lambda: set(states(gateway, "web").values()) == {"OFFLINE"})
        met.wait_for(50)
    assert met.failed() == []


def test_another_answer_than_expected_and_back(lab: Lab, gateway: Gateway) -> None:
    """What is asked may change at any time, and open connections stay whatever is answered."""
    with connect(lab["client"], None, WEB) as old, monitored(gateway, "web", "HTTP", max_retries=1) as monitor:
        all_online(gateway, "web")
        who = old.get().identity
        at = f"/elb/healthmonitors/{monitor}"
        ask(gateway, "PUT", at, {"healthmonitor": {"url_path": "/nothing?at=all", "expected_codes": "200-204"}})
        wait_until(lambda: set(states(gateway, "web").values()) == {"OFFLINE"})
        rows = ask(gateway, "GET", f"/elb/pools/{id_of(gateway, 'pools', 'web')}/members")["members"]
        reason = {"reason_code": "RESPONSE_MISMATCH", "expected_response": "200-204", "healthcheck_response": "404"}
        assert [row["reason"] for row in rows] == [reason] * 4
        assert old.get().identity == who
        ask(gateway, "PUT", at, {"healthmonitor": {"expected_codes": "404"}})
        all_online(gateway, "web")
        wait_until(lambda: not _is_refused(lab))


def test_checks_come_from_the_health_address(lab: Lab, gateway: Gateway) -> None:
    gateway.apply(CONFIGURATION.replace("[gateway]", f'[gateway]\nhealth_address = "{HEALTH}"', 1))
    with (
        RawPort(lab["member-1"], "eth0") as wire,
        monitored(gateway, "web"),
        monitored(gateway, "resolver", "UDP_CONNECT"),
    ):
        wire.expect(lambda one: TCP in one and one[TCP].dport == 8080 and one[IP].src == HEALTH, 10)
        wire.expect(lambda one: ICMP in one and one[ICMP].type == 8 and one[IP].src == HEALTH, 10)
        wire.expect(lambda one: UDP in one and one[UDP].dport == 5353 and one[IP].src == HEALTH, 10)
        all_online(gateway, "web")
        all_online(gateway, "resolver")
        ask(gateway, "PUT", "/ipbackend/gateway", {"gateway": {"health_address": OTHER}})  # it may change at any time
        wire.expect(lambda one: TCP in one and one[TCP].dport == 8080 and one[IP].src == OTHER, 10)
        wire.expect(lambda one: ICMP in one and one[ICMP].type == 8 and one[IP].src == OTHER, 10)


def test_one_that_comes_back_begins_slowly(lab: Lab, gateway: Gateway, members: dict[str, Member]) -> None:
    """A tenth of its weight at first, which is 2 of 8, and more in time; nobody is slow when all begin."""
    dead = members["member-2"]
    gateway.apply(CONFIGURATION.replace("[pools.web]\n", "[pools.web]\nslow_start = 60\n"))

    def counted() -> int:
        return Counter(http_get(lab["client"], None, WEB).identity.member for _ in range(124))["member-2"]

    def turned() -> int:
        return gateway.log().count("data plane changed: set pools")

    with monitored(gateway, "web"):
        all_online(gateway, "web")
        assert counted() == 31
        dead.kill()
        wait_until(lambda: states(gateway, "web")["member-2"] == "OFFLINE")
        dead.start()
        dead.wait_ready()
        wait_until(lambda: states(gateway, "web")["member-2"] == "ONLINE")
        turns = turned()
        wait_until(lambda: http_get(lab["client"], None, WEB).identity.member == "member-2")
        assert counted() <= 12  # a tenth is 4 of 124, two tenths are 8
        wait_until(lambda: turned() > turns)  # the next step has come by itself


def _is_refused(lab: Lab) -> bool:
    try:
        return not http_get(lab["client"], None, WEB)
    except ConnectionRefusedError:
        return True


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_a_restart_keeps_out_who_is_down_and_in_who_is_up(
    lab: Lab, gateway: Gateway, members: dict[str, Member], ending: str
) -> None:
    dead = members["member-2"]
    with monitored(gateway, "web"), load(lab["client"], WEB) as met:
        all_online(gateway, "web")
        dead.kill()
        out_of_the_schedule(met, gateway, "member-2", time.monotonic())
        moment, before = time.monotonic(), opened(gateway, "member-2")
        getattr(gateway, ending)()
        met.wait_for(50)
        gateway.start()
        met.wait_for(50)
        wait_until(lambda: sorted(states(gateway, "web").values()) == ["OFFLINE", "ONLINE", "ONLINE", "ONLINE"])
        met.wait_for(50)
        assert [one for one in met.failed() if one.began > moment] == []
        assert opened(gateway, "member-2") == before
        dead.start()
        dead.wait_ready()
        back_in_the_schedule(met, gateway, "member-2")


def test_a_udp_member_whose_port_is_closed(lab: Lab, gateway: Gateway, members: dict[str, Member]) -> None:
    dead = members["member-1"]
    with monitored(gateway, "resolver", "UDP_CONNECT"):
        all_online(gateway, "resolver")
        dead.kill()
        wait_until(lambda: states(gateway, "resolver")["member-1"] == "OFFLINE")
        wait_until(lambda: set(_answers(lab)) == {"member-onprem"})
        dead.start()
        dead.wait_ready()
        wait_until(lambda: set(_answers(lab)) == {"member-1", "member-onprem"})


def _answers(lab: Lab) -> list[str]:
    """Who answers datagrams of eight clients; a port that is closed answers as well."""
    found = []
    for number in range(8):
        with UdpClient(lab["client"], None, RESOLVER) as client:
            try:
                found.append(client.ask(b"%d" % number).member)
            except ConnectionRefusedError:
                found.append("nobody")
    return found
