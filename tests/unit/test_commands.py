"""Nouns and verbs on the real API without a kernel: what commands send, say and refuse."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from ipbackend import client
from ipbackend.cli import batch, resource
from tests.unit.commands import data, ipbackend, refused, said
from tests.unit.serving import Kept
from tests.unit.wanted import GATEWAY


def test_a_load_balancer_from_create_to_delete(answering: Kept) -> None:
    made = data("lb create front --vip 10.0.0.120 --ip-target --description d")
    assert (made["vip_address"], made["interface"], made["ip_target_enable"]) == ("10.0.0.120", "eth0", True)
    assert said("lb set front --name face --deletion-protection") == f"load balancer face changed: {made['id']}\n"
    assert said("lb list").splitlines()[-1].split() == ["face", "10.0.0.120", "eth0", "yes", "yes", "0"]
    assert "deletion_protection_enable is true" in refused("lb delete face")
    said(f"lb set {made['id']} --no-deletion-protection")
    assert said("lb delete face") == "load balancer face deleted\n"
    assert made["id"] not in answering.configuration.load_balancers


def test_a_listener_a_pool_and_a_network(answering: Kept) -> None:
    said("network create far --kind vpn --cidr 192.168.50.0/24 --cidr 192.168.60.0/24 --next-hop 10.0.0.3")
    said("pool create next --lb shop")
    said("listener create plain --lb shop --port 8000 --pool next --idle-timeout 60")
    said("member add 192.168.50.10:8080 192.168.60.10:8080 --pool next --weight 2 --max-connections 70")

    have = answering.configuration
    (listener,) = (one for one in have.listeners.values() if one.name == "plain")
    pool = have.pools[listener.pool or ""]
    assert (listener.load_balancer, listener.port, listener.idle_timeout) == ("shop", 8000, 60)
    assert [(str(one), one.weight, one.max_connections) for one in pool.members] == [
        ("192.168.50.10:8080", 2, 70),
        ("192.168.60.10:8080", 2, 70),
    ]
    assert "default pool id" in said("listener show plain")
    assert said("listener show plain").split("default pool id")[1].split()[0] == "next"
    assert "loadbalancers" in said("pool show next")

    said("listener set plain --no-pool")
    assert answering.configuration.listeners[listener.id].pool is None
    said("network set far --cidr 192.168.0.0/16")
    (far,) = (one for one in answering.configuration.networks.values() if one.name == "far")
    assert far.cidrs == (IPv4Network("192.168.0.0/16"),)
    assert "members" in refused("pool delete next")
    said("pool delete next --cascade")
    said("listener delete plain")
    said("network delete far")
    assert set(answering.configuration.networks) == {"vpc"}


def test_a_health_monitor_and_an_ip_group(answering: Kept) -> None:
    said("pool create later")
    made = data("healthmonitor create probe --pool later --delay 7 --fall 2 --port 9000")
    assert (made["type"], made["delay"], made["max_retries_down"], made["monitor_port"]) == ("TCP", 7, 2, 9000)
    assert said("healthmonitor set probe --timeout 4") == f"health monitor probe changed: {made['id']}\n"
    assert said("healthmonitor list").splitlines()[-1].split()[:5] == ["probe", "later", "TCP", "7", "4"]
    assert said("healthmonitor show probe").split("pools")[1].split()[0] == "later"
    said("healthmonitor delete probe")

    said("ipgroup create homes --ip 198.51.100.7 --ip 203.0.113.0/24")
    said("ipgroup set homes --ip 198.51.100.0/25")
    assert said("ipgroup list").splitlines()[-1].split() == ["homes", "198.51.100.0/25", "-"]
    said("ipgroup delete homes")
    assert set(answering.configuration.ip_groups) == {"offices"}


def test_many_members_are_changed_and_deleted_by_their_addresses(answering: Kept) -> None:
    assert said("member set --all --pool web --weight 0") == "3 members of web changed\n"
    assert {one.weight for one in answering.configuration.pools["web"].members} == {0}
    text = "member,weight\n10.0.0.12:8080,5\n10.0.0.11:8080,\n"
    assert said("member set --from - --pool web --max-connections 60", input=text) == "2 members of web changed\n"
    eleven, twelve, third = answering.configuration.pools["web"].members
    assert (eleven.weight, twelve.weight, third.weight) == (0, 5, 0)
    assert (eleven.max_connections, twelve.max_connections, third.max_connections) == (60, 60, 100_000)
    assert "member 10.0.0.19:1: it is not in the pool" in refused(
        "member delete --from - --pool web", input="member\n10.0.0.19:1\n10.0.0.12:8080\n"
    )
    assert said("member delete third 10.0.0.11:8080 --pool web") == "2 members of web deleted\n"
    assert [one.id for one in answering.configuration.pools["web"].members] == ["m12"]


def test_overlapping_networks_are_refused_with_both_names(answering: Kept) -> None:
    error = refused("network create again --kind vpn --cidr 10.0.0.128/25 --next-hop 10.0.0.3")

    assert error.startswith("Error: networks.again.cidrs: 10.0.0.128/25 overlaps 10.0.0.0/24 of networks.vpc (")


def test_an_ambiguous_name_is_refused_with_the_ids(answering: Kept) -> None:
    one, other = data("pool create web"), data("pool create double")
    said(f"pool set {other['id']} --name web")

    error = refused("pool set web --description d")

    assert error == f"Error: pool web: 3 are called so (write the id of one: web, {one['id']}, {other['id']})\n"
    assert said(f"pool set {one['id']} --description d")


def test_an_unknown_name_is_refused_with_the_one_that_was_meant(answering: Kept) -> None:
    assert refused("lb show shpo") == "Error: load balancer shpo: there is none (did you mean shop? known: shop)\n"
    expected = "Error: member 10.0.0.19:8080: there is none (did you mean 10.0.0.13:8080?"
    assert refused("member show 10.0.0.19:8080 --pool web").startswith(expected)


def test_a_member_is_found_by_address_name_or_id(answering: Kept) -> None:
    for given in ("10.0.0.13:8080", "third"):
        assert data(f"member show {given} --pool web")["id"] == "m13"
    said("member set third --pool web --weight 0")
    assert answering.configuration.pools["web"].members[2].weight == 0
    said("member delete 10.0.0.13:8080 --pool web")
    assert [one.id for one in answering.configuration.pools["web"].members] == ["m11", "m12"]


def test_members_from_a_file_are_one_request_a_batch(answering: Kept, tmp_path: Path) -> None:
    file = tmp_path / "members.csv"
    lines = [f"10.0.0.{host}:{port},{host % 5}" for port in (9000, 9001) for host in range(120, 240)]
    file.write_text("\n".join(["member, weight", *lines, "10.0.0.11:8080,7"]) + "\n")
    before = answering.revision

    out = said(f"member add --from {file} --pool web --max-connections 1000")

    assert out == "240 members added to web, 1 were there already\n"
    assert answering.revision - before == 2  # 241 members, 200 in a request
    members = {str(one): one for one in answering.configuration.pools["web"].members}
    assert len(members) == 243
    assert (members["10.0.0.124:9000"].weight, members["10.0.0.124:9000"].max_connections) == (4, 1000)
    assert members["10.0.0.11:8080"].weight == 3


def test_members_from_stdin(answering: Kept) -> None:
    text = "address,port,weight,name\n10.0.0.130,81,,left\n\n10.0.0.131,81,0,\n"

    assert said("member add --from - --pool web --weight 9", input=text) == "2 members added to web\n"
    left, right = answering.configuration.pools["web"].members[3:]
    assert (left.weight, left.name, right.weight, right.name) == (9, "left", 0, "")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "stdin:1: the first line names no column `member`, or `address` and `port`"),
        ("member,wieght\n", "stdin:1: 'wieght' is no column (did you mean weight?"),
        ("member\n10.0.0.11\n", "stdin:2: member: '10.0.0.11' has no port"),
        ("member,weight\n10.0.0.11:80,\n10.0.0.12:80,much\n", "stdin:3: weight: 'much' is not a number"),
        ("member,weight\n10.0.0.11:80\n", "stdin:2: 1 cells under 2 columns"),
        ("member\n10.0.0.120:0\n", "port: 0 is out of range (write 1 to 65535)"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(answering: Kept, text: str, error: str) -> None:
    assert error in refused("member add --from - --pool web", input=text)


def test_a_refusal_in_the_middle_says_what_is_done(answering: Kept, tmp_path: Path) -> None:
    file = tmp_path / "members.csv"
    lines = [f"10.0.0.{120 + host % 100}:{9000 + host // 100}" for host in range(250)]
    file.write_text("\n".join(["member", *lines, "8.8.8.8:53"]) + "\n")

    error = refused(f"member add --from {file} --pool web --max-connections 100")

    assert "8.8.8.8 is not a private IPv4 address" in error
    assert "Error: the first 200 of 251 are done" in error


def test_batches_are_of_the_published_size() -> None:
    sizes = list(batch.in_batches([{}] * 401, len))

    assert sizes == [200, 200, 1]


def test_the_gateway_is_set_up_and_shown(answering: Kept) -> None:
    said("gateway set --closing-timeout 20")
    assert answering.configuration.gateway == replace(GATEWAY, closing_timeout=20)
    assert data("gateway show")["interfaces"] == ["eth0", "eth1"]
    assert "networks" in refused("gateway delete")


def test_what_is_set_must_be_given(answering: Kept) -> None:
    for line in ("lb set shop", "member set third --pool web", "member set --pool web", "member add --pool web"):
        assert ipbackend(line).exit_code == 2


def test_lists_are_read_page_by_page(answering: Kept) -> None:
    with client.Client(Path("/nowhere")) as asking:
        for number in range(5):
            asking.request(
                "POST", "/elb/pools", {"pool": {"name": f"p{number}", "protocol": "TCP", "lb_algorithm": "ROUND_ROBIN"}}
            )

        found = resource.rows(asking, resource.POOL, limit=2)

    assert [one["name"] for one in found] == ["web", *(f"p{number}" for number in range(5))]
