"""Who gets which connection, from the command line: what options mean, and how it is shown."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from ipbackend.model import Access
from tests.unit.commands import data, ipbackend, refused, said
from tests.unit.serving import Kept
from tests.unit.wanted import GATEWAY


def shown(line: str) -> dict[str, str]:
    """The fields of a table, without ids and times."""
    lines = (row.split("  ", 1) for row in said(line).splitlines())
    return {name: rest[0].strip() for name, *rest in lines if rest}


def of_pool(answering: Kept, name: str) -> list[Any]:
    (pool,) = (one for one in answering.configuration.pools.values() if one.name == name)
    return [pool.algorithm, pool.persistence, pool.slow_start, pool.connection_drain, pool.minimum_healthy]


def test_a_pool(answering: Kept) -> None:
    said("pool create plain")
    assert of_pool(answering, "plain") == ["ROUND_ROBIN", None, None, None, 0]
    said("pool create off --persistence 0 --slow-start 0 --drain 0 --no-fail-open")
    assert of_pool(answering, "off") == ["ROUND_ROBIN", None, None, None, 0]
    said("pool create busy --algorithm LEAST_CONNECTIONS --persistence 20 --slow-start 60 --drain 300 --fail-open")
    assert of_pool(answering, "busy") == ["LEAST_CONNECTIONS", 20, 60, 300, 1]
    words = ("lb algorithm", "persistence", "slow start", "drain", "fail open")
    assert [shown("pool show busy")[word] for word in words] == ["LEAST_CONNECTIONS", "20 min", "60 s", "300 s", "yes"]
    assert [shown("pool show plain")[word] for word in words] == ["ROUND_ROBIN", "-", "-", "-", "no"]

    said("pool set busy --drain 10")
    assert of_pool(answering, "busy") == ["LEAST_CONNECTIONS", 20, 60, 10, 1]
    said("pool set busy --persistence 0 --slow-start 0 --drain 0 --no-fail-open --algorithm SOURCE_IP_PORT")
    assert of_pool(answering, "busy") == ["SOURCE_IP_PORT", None, None, None, 0]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--persistence 61", "persistence: 61 is out of range (write 1 to 60)"),
        ("--persistence -1", "persistence: -1 is out of range (write 1 to 60)"),
        ("--slow-start 29", "slow_start: 29 is out of range (write 30 to 1200)"),
        ("--drain 4001", "connection_drain: 4001 is out of range (write 10 to 4000)"),
        (
            "--algorithm SOURCE_IP --persistence 1",
            "persistence: SOURCE_IP chooses by the client's address anyway (leave",
        ),
    ],
)
def test_what_a_pool_cannot_be_is_refused(answering: Kept, options: str, problem: str) -> None:
    for line in ("pool create other", "pool set web"):
        assert f"Error: {problem}" in refused(f"{line} {options}")


def test_the_algorithms_are_explained(answering: Kept) -> None:
    assert ipbackend("pool create other --algorithm RANDOM").exit_code == 2
    for line in ("pool create --help", "pool set --help"):
        text = " ".join(said(line).split())
        for name, what in (
            ("ROUND_ROBIN", "in turn"),
            ("LEAST_CONNECTIONS", "fewest connections"),
            ("SOURCE_IP", "client's address"),
            ("SOURCE_IP_PORT", "the same on every gateway"),
        ):
            assert what in text.rpartition(f"{name} ")[2]


def test_a_listener(answering: Kept) -> None:
    said("ipgroup create homes --ip 203.0.113.7")
    said("listener create api --lb shop --port 8000 --cps 500 --max-connections 70 --source-cps 9 --ip-group offices")

    def api() -> list[Any]:
        (one,) = (one for one in answering.configuration.listeners.values() if one.name == "api")
        names = [answering.configuration.ip_groups[number].name for number in one.ip_groups]
        return [one.max_connections, one.cps, one.source_cps, names, one.access, one.access_enabled]

    assert api() == [70, 500, 9, ["offices"], Access.ALLOW, True]
    words = ("max connections", "cps", "source cps", "ip groups", "access")
    assert [shown("listener show api")[word] for word in words] == ["70", "500", "9", "offices", "allow"]
    said("listener set api --access deny --ip-group homes --ip-group offices --cps 0")
    assert api() == [70, 0, 9, ["homes", "offices"], Access.DENY, True]
    assert [shown("listener show api")[word] for word in words] == ["70", "-", "9", "homes,offices", "deny"]
    said("listener set api --access off")
    assert api()[3:] == [["homes", "offices"], Access.DENY, False]
    assert shown("listener show api")["access"] == "off"
    said("listener set api --access allow")
    assert api()[3:] == [["homes", "offices"], Access.ALLOW, True]
    assert "ip_groups.homes: listeners.api.ip_groups refers to it (take it" in refused("ipgroup delete homes")
    said("listener set api --no-ip-groups")
    assert api()[3:] == [[], Access.ALLOW, True]
    said("ipgroup delete homes")

    assert "ip group nobody: there is none (known: offices)" in refused("listener set api --ip-group nobody")
    assert "access: there are no ip_groups" in refused("listener set api --access deny")
    assert "cps: 1000001 is out of range" in refused("listener set api --cps 1000001")
    assert "ipgroup_id: is missing" in refused("listener create more --lb shop --port 1 --access deny")


def test_an_ip_group_grows_and_shrinks(answering: Kept, tmp_path: Path) -> None:
    file = tmp_path / "attackers.txt"
    file.write_text("# since Monday\n203.0.113.0/24  scanners of  port 22\n\n198.51.100.9 # one\n")

    def ips() -> dict[str, str]:
        (one,) = (one for one in answering.configuration.ip_groups.values() if one.name == "attackers")
        return {str(entry.cidr): entry.description for entry in one.entries}

    said(f"ipgroup create attackers --ip 192.0.2.1 --from {file}")
    assert ips() == {"192.0.2.1/32": "", "203.0.113.0/24": "scanners of  port 22", "198.51.100.9/32": ""}
    said("ipgroup add attackers --from - --ip 192.0.2.3", input="192.0.2.1 the first\n192.0.2.2\n")
    assert ips()["192.0.2.1/32"] == "the first"
    assert len(ips()) == 5
    said("listener set http --ip-group attackers --access deny")
    line = "attackers  203.0.113.0/24,198.51.100.9,192.0.2.3,… 5 in all  http"
    assert said("ipgroup list").splitlines()[-1].rstrip(" -") == line
    (row,) = (row for row in data("ipgroup list") if row["name"] == "attackers")
    assert (len(row["entries"]), row["listeners"]) == (5, ["http"])
    said(f"ipgroup remove attackers --from {file} --ip 192.0.2.3")
    assert list(ips()) == ["192.0.2.1/32", "192.0.2.2/32"]
    said("ipgroup set attackers --from -", input="")
    assert ips() == {}

    assert "192.0.2.9 is not in it" in refused("ipgroup remove attackers --ip 192.0.2.9")
    assert "ip: " in refused("ipgroup add attackers --ip nobody")
    assert "No such file or directory (name a file" in refused("ipgroup add attackers --from /nowhere")
    assert ipbackend("ipgroup add attackers").exit_code == 2


def test_a_health_monitor(answering: Kept) -> None:
    said("pool create later")
    said("healthmonitor create probe --pool later --type HTTP --path /up --host example.com --codes 200-204")
    assert said("healthmonitor list").splitlines()[-1].split() == [
        *("probe", "later", "HTTP", "5", "3", "3", "3", "-"),
        *("GET", "example.com", "/up", "200-204", "yes"),
    ]
    said("healthmonitor set probe --method HEAD --codes 200,302 --off --port 81")
    one = next(one for one in answering.configuration.health_monitors.values() if one.name == "probe")
    assert (one.http_method, one.url_path, one.expected_codes, one.enabled) == ("HEAD", "/up", "200,302", False)
    told = shown("healthmonitor show probe")
    assert [told[word] for word in ("check", "on", "rise", "fall", "monitor port")] == ["HTTP", "no", "3", "3", "81"]
    said("healthmonitor set probe --on --type TCP --no-port")
    one = answering.configuration.health_monitors[one.id]
    assert (one.enabled, one.type, one.monitor_port) == (True, "TCP", None)
    assert "url_path: 'up' cannot be asked for (" in refused("healthmonitor set probe --path up")
    assert "expected_codes: 'abc' are not HTTP status codes (" in refused("healthmonitor set probe --codes abc")
    assert "pools.later.health_monitor: there is one already" in refused("healthmonitor create two --pool later")


def test_the_address_of_health_checks(answering: Kept) -> None:
    said("gateway set --health-address 10.0.0.105")
    assert answering.configuration.gateway == replace(GATEWAY, health_address=IPv4Address("10.0.0.105"))
    assert shown("gateway show")["health address"] == "10.0.0.105"
    assert "health_address: 10.0.0.104 is one of snat_addresses" in refused("gateway set --health-address 10.0.0.104")
    said("gateway set --no-health-address --icmp-error-rate 5")
    assert answering.configuration.gateway == replace(GATEWAY, icmp_error_rate=5)


@pytest.mark.parametrize(
    "line",
    [
        "listener set http --pool web --no-pool",
        "listener set http --access deny --no-ip-groups",
        "healthmonitor set check --port 81 --no-port",
        "gateway set --health-address 10.0.0.105 --no-health-address",
        "network set vpc --next-hop 10.0.0.2 --no-next-hop",
    ],
)
def test_what_is_given_is_not_taken_away_at_once(answering: Kept, line: str) -> None:
    result = ipbackend(line)
    assert (result.exit_code, answering.revision) == (2, 1)
    assert "it is both given and taken away (leave one of the options out)" in result.stderr


def test_a_plan_says_what_of_a_long_group_changes(answering: Kept) -> None:
    plan = said("apply -f - --dry-run", input=said("export").replace("198.51.100.0/24", "192.0.2.0/24"))
    assert plan.splitlines()[0] == "~ ip group offices: entries 198.51.100.0/24 north → 192.0.2.0/24 north"
    entries = "\n".join(f"192.0.2.{number}" for number in range(100))
    said("ipgroup set offices --from -", input=entries)
    text = said("export").replace('    "192.0.2.7/32",\n', "").replace("192.0.2.8/32", "192.0.2.200/32")

    plan = said("apply -f - --dry-run", input=text)

    assert plan.splitlines()[0] == "~ ip group offices: entries 100 → 99 (+1, -2)"
