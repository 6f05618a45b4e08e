import random
import re
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from ipbackend.config import load, parse
from ipbackend.configuration import Configuration
from ipbackend.errors import ConfigurationError
from ipbackend.model import (
    Algorithm,
    AttachMode,
    Listener,
    LoadBalancer,
    Member,
    Network,
    NetworkKind,
    Protocol,
)

EXAMPLE = """\
[gateway]
interfaces = ["eth0", "eth1"]
snat_addresses = ["10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104"]

[networks.vpc]
kind = "local"
cidrs = ["10.0.0.0/24"]

[networks.peered]
kind = "peering"
cidrs = ["172.16.10.0/24"]
next_hop = "10.0.0.2"

[networks.onprem]
kind = "vpn"
cidrs = ["192.168.50.0/24"]
next_hop = "10.0.0.3"

[load_balancers.shop]
vip = "10.0.0.100"
ip_target_enable = true

[listeners.web]
load_balancer = "shop"
protocol = "TCP"
port = 80
pool = "web"

[pools.web]
protocol = "TCP"
members = [
    { address = "10.0.0.11", port = 8080, weight = 3, max_connections = 50 },
    { address = "172.16.10.10", port = 8080 },
    { address = "192.168.50.10", port = 8080 },
]
"""
ADDRESS = 'write an IPv4 address in quotes, such as "10.0.0.11"'
CIDR = 'write an IPv4 CIDR in quotes, such as "10.0.0.0/24"'


def changed(*replacements: tuple[str, str]) -> str:
    """The example with each text replaced by its partner; each must be there."""
    text = EXAMPLE
    for have, want in replacements:
        assert have in text
        text = text.replace(have, want, 1)
    return text


def by_name(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Without the ids, which were drawn."""
    return {one.name: replace(one, id="") for one in resources.values()}


def problems_of(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as refused:
        parse(text, "lb.toml")
    return refused.value.problems


def test_the_example_is_read() -> None:
    wanted = parse(EXAMPLE, "lb.toml")

    assert wanted.gateway.interfaces == ("eth0", "eth1")
    assert wanted.gateway.snat_addresses[3] == IPv4Address("10.0.0.104")
    assert list(by_name(wanted.networks)) == ["vpc", "peered", "onprem"]
    assert by_name(wanted.networks)["onprem"] == Network(
        "onprem", NetworkKind.VPN, (IPv4Network("192.168.50.0/24"),), "eth1", IPv4Address("10.0.0.3"), id=""
    )
    (shop,), (web,), (listener,) = (
        wanted.load_balancers.values(),
        wanted.pools.values(),
        wanted.listeners.values(),
    )
    assert shop == LoadBalancer("shop", IPv4Address("10.0.0.100"), "eth0", True, id=shop.id)
    assert listener == Listener("web", shop.id, Protocol.TCP, 80, web.id, id=listener.id)
    assert web.algorithm is Algorithm.ROUND_ROBIN
    assert [replace(member, id="") for member in web.members] == [
        Member(IPv4Address("10.0.0.11"), 8080, weight=3, max_connections=50, id=""),
        Member(IPv4Address("172.16.10.10"), 8080, id=""),
        Member(IPv4Address("192.168.50.10"), 8080, id=""),
    ]


def test_every_optional_setting_is_read() -> None:
    wanted = parse(
        changed(
            (
                "[gateway]",
                '[gateway]\nsnat_interface = "eth0"\nmax_connections = 300_000\nattach_mode = "generic"\n'
                'private_ranges = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"]',
            ),
            ('kind = "local"', 'kind = "local"\ninterface = "eth1"'),
            ('vip = "10', 'interface = "eth1"\nvip = "10'),
            ("port = 80\n", "port = 80\nidle_timeout = 4000\n"),
            ("members = [", 'algorithm = "ROUND_ROBIN"\nmembers = ['),
        ),
        "lb.toml",
    )

    assert wanted.gateway.attach_mode is AttachMode.GENERIC
    assert wanted.gateway.max_connections == 300_000
    assert len(wanted.gateway.private_ranges) == 4
    assert [network.interface for network in wanted.networks.values()] == ["eth1", "eth0", "eth0"]
    assert by_name(wanted.load_balancers)["shop"].interface == "eth1"
    assert by_name(wanted.listeners)["web"].idle_timeout == 4_000


def test_a_gateway_alone_and_a_pool_without_members_will_do() -> None:
    gateway = EXAMPLE[: EXAMPLE.index("[networks")]

    assert parse(gateway, "lb.toml").pools == {}
    assert parse(gateway + '[pools.web]\nprotocol = "UDP"', "lb.toml").pools != {}


@pytest.mark.parametrize(
    ("have", "want", "problem"),
    [
        # addresses and CIDRs
        (
            '"10.0.0.11"',
            '"fd00::11"',
            f"pools.web.members[0].address: 'fd00::11' is IPv6 (members and their networks are IPv4: {ADDRESS})",
        ),
        (
            '"172.16.10.10"',
            '"web.example.com"',
            "pools.web.members[1].address: 'web.example.com' is not an IPv4 address "
            f"(names are not looked up: {ADDRESS})",
        ),
        (
            '"172.16.10.10"',
            '"172.16.10.256"',
            "pools.web.members[1].address: '172.16.10.256' is not an IPv4 address "
            f"(names are not looked up: {ADDRESS})",
        ),
        (
            '"10.0.0.103"',
            "3",
            'gateway.snat_addresses[2]: got 3 (expected an IPv4 address in quotes, such as "10.0.0.11")',
        ),
        (
            '"10.0.0.0/24"',
            '"10.0.0.5/24"',
            "networks.vpc.cidrs[0]: '10.0.0.5/24' is an address inside its CIDR (did you mean 10.0.0.0/24?)",
        ),
        ('"10.0.0.0/24"', '"vpc"', f"networks.vpc.cidrs[0]: 'vpc' is not an IPv4 CIDR ({CIDR})"),
        (
            '"10.0.0.0/24"',
            '"fd00::/64"',
            f"networks.vpc.cidrs[0]: 'fd00::/64' is IPv6 (members and their networks are IPv4: {CIDR})",
        ),
        # enums
        (
            'protocol = "TCP"\nport',
            'protocol = "tcp"\nport',
            "listeners.web.protocol: 'tcp' cannot be used (did you mean TCP? known: TCP, UDP)",
        ),
        (
            '"vpn"',
            '"tunnel"',
            "networks.onprem.kind: 'tunnel' cannot be used (known: direct-connect, local, peering, vpn)",
        ),
        # types
        ("port = 80\n", 'port = "80"\n', "listeners.web.port: got the string '80' (expected an integer)"),
        ("port = 80\n", "port = 80.0\n", "listeners.web.port: got 80.0 (expected an integer)"),
        ("port = 80\n", "port = true\n", "listeners.web.port: got true (expected an integer)"),
        ("port = 80\n", "port = []\n", "listeners.web.port: got an array (expected an integer)"),
        ("port = 80\n", "port = 2026-01-02\n", "listeners.web.port: got 2026-01-02 (expected an integer)"),
        (
            "port = 80\n",
            f"port = 0x{'f' * 5_000}\n",
            "listeners.web.port: got an integer of more than 64 bits (expected an integer)",
        ),
        (
            "ip_target_enable = true",
            "ip_target_enable = 1",
            "load_balancers.shop.ip_target_enable: got 1 (expected true or false)",
        ),
        (
            'protocol = "TCP"\nport',
            "protocol = 6\nport",
            'listeners.web.protocol: got 6 (expected one of "TCP", "UDP")',
        ),
        (
            'interfaces = ["eth0", "eth1"]',
            'interfaces = "eth0"',
            "gateway.interfaces: got the string 'eth0' (expected an array, each a string)",
        ),
        ('"eth1"', "1", "gateway.interfaces[1]: got 1 (expected a string)"),
        (
            EXAMPLE[EXAMPLE.index("members = [") :],
            "members = 3",
            "pools.web.members: got 3 (expected an array of tables)",
        ),
        (
            '{ address = "172.16.10.10", port = 8080 }',
            '"172.16.10.10:8080"',
            "pools.web.members[1]: got the string '172.16.10.10:8080' (expected a table)",
        ),
        (
            EXAMPLE[: EXAMPLE.index("[networks.vpc]")],
            "gateway = 3\n",
            "gateway: got 3 (expected a table)",
        ),
        (EXAMPLE[: EXAMPLE.index("[networks.vpc]")], "", "gateway: is missing (write a table [gateway])"),
        (
            EXAMPLE[EXAMPLE.index("[listeners.web]") : EXAMPLE.index("[pools")],
            "[listeners]\nweb = 80\n",
            "listeners.web: got 80 (expected a table)",
        ),
        (
            EXAMPLE[EXAMPLE.index("[listeners.web]") : EXAMPLE.index("[pools")],
            "[[listeners]]\n",
            "listeners: got an array (expected a table of tables)",
        ),
        # keys
        (
            "port = 80\n",
            "port = 80\nprt = 81\n",
            "listeners.web.prt: unknown key "
            "(did you mean port? known: access, access_enabled, cps, description, idle_timeout, ip_groups, "
            "load_balancer, max_connections, pool, port, protocol, source_cps)",
        ),
        (
            "weight = 3",
            "wieght = 3",
            "pools.web.members[0].wieght: unknown key "
            "(did you mean weight? known: address, max_connections, name, port, weight)",
        ),
        (
            "[gateway]",
            '[gateway]\n"x\\ny" = 1',
            r"gateway.'x\ny': unknown key (known: attach_mode, closing_timeout, flow_log, "
            "flow_log_counts, flow_log_days, flow_log_megabytes, half_open_percent, health_address, "
            "icmp_error_rate, interfaces, max_connections, private_ranges, rest, snat_addresses, snat_interface, "
            "syn_received_timeout, syn_sent_timeout)",
        ),
        (
            "[networks.vpc]",
            "[network.vpc]",
            "network: unknown key (did you mean networks? known: gateway, ip_groups, listeners, "
            "load_balancers, networks, pools)",
        ),
        ("port = 80\n", "", "listeners.web.port: is missing (write an integer)"),
        (
            'kind = "vpn"',
            "",
            'networks.onprem.kind: is missing (write one of "local", "peering", "direct-connect"',
        ),
        (
            'cidrs = ["192.168.50.0/24"]',
            "",
            "networks.onprem.cidrs: is missing (write an array, each an IPv4 CIDR",
        ),
        ('vip = "10.0.0.100"', "", f"load_balancers.shop.vip: is missing ({ADDRESS})"),
        # the model's own refusals, with the place in the file in front
        ("port = 80\n", "port = 0\n", "listeners.web.port: 0 is out of range (write 1 to 65535)"),
        ("weight = 3", "weight = 101", "pools.web.members[0].weight: 101 is out of range (write 0 to 100)"),
        (
            "[pools.web]",
            '[pools."my\\tpool"]\nprotocol = "TCP"\n[pools.web]',
            r"pools.'my\tpool'.name: 'my\tpool' holds characters that cannot be shown (write printable text on",
        ),
        ("[pools.web]", '[pools.""]\nprotocol = "TCP"\n[pools.web]', "pools: a name is empty (write one)"),
        (
            'pool = "web"',
            'pool = "wep"',
            "listeners.web.pool: 'wep' is not one of pools (did you mean web? known: web)",
        ),
        (
            'load_balancer = "shop"',
            'load_balancer = "xyz"',
            "listeners.web.load_balancer: 'xyz' is not one of load_balancers (known: shop)",
        ),
        (
            '"10.0.0.11"',
            '"8.8.8.8"',
            "pools.web.members[0]: 8.8.8.8 is not a private IPv4 address (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16)",
        ),
    ],
)
def test_what_is_refused_is_named_with_place_value_and_remedy(have: str, want: str, problem: str) -> None:
    first, *_ = problems_of(changed((have, want)))

    assert first.startswith(problem)
    assert first.endswith(")")
    assert "\n" not in first


def test_problems_of_shape_range_and_meaning_are_named_together() -> None:
    problems = problems_of(
        changed(
            ('"10.0.0.2"', '"router"'),
            ("port = 80\n", "port = 0\nprotcol = 1\n"),
            ("max_connections = 50", 'max_connections = "50"'),
            ('"172.16.10.10", port = 8080', '"::1", port = 99999'),
            ('"192.168.50.10"', '"8.8.8.8"'),
        )
    )

    assert [problem.split(":")[0] for problem in problems] == [
        "networks.peered.next_hop",
        "pools.web.members[0].max_connections",
        "pools.web.members[1].address",
        "pools.web.members[1].port",
        "listeners.web.protcol",
        "listeners.web.port",
        "pools.web.members[2]",
    ]


def test_nothing_is_said_that_follows_only_from_what_could_not_be_read() -> None:
    """No unknown pool where the pool is only broken, no member in no network where a network is."""
    assert len(problems_of(changed(('[pools.web]\nprotocol = "TCP"', "[pools.web]\nprotocol = 6")))) == 1
    assert len(problems_of(changed(('"172.16.10.0/24"', '"172.16.10.0/33"')))) == 1
    assert len(problems_of(changed(('vip = "10.0.0.100"', "vip = 1")))) == 1
    balancers = EXAMPLE[EXAMPLE.index("[load_balancers") : EXAMPLE.index("[listeners")]
    assert len(problems_of("load_balancers = 1\n" + changed((balancers, "")))) == 1


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[gateway]\ninterfaces = [eth0]\n", "line 2, column 15"),
        ("a = 1\na = 2\n", "line 2"),
        ('a = "', "end of document"),
        (f"a = {'1' * 5_000}", "4300"),
        (f"a = {'[' * 5_000}", "recursion"),
    ],
)
def test_broken_toml_is_refused_with_source_and_line(text: str, where: str) -> None:
    (problem,) = problems_of(text)

    assert problem.startswith("lb.toml: ")
    assert where in problem
    assert problem.endswith("(correct the TOML there)")


def test_a_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "lb.toml"
    path.write_text(EXAMPLE, encoding="utf-8")

    have = load(path)

    assert parse(EXAMPLE, "elsewhere", have) == have


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    missing, binary = tmp_path / "none.toml", tmp_path / "binary.toml"
    binary.write_bytes(b"a = '\xff'")

    with pytest.raises(ConfigurationError) as refused:
        load(missing)
    assert str(refused.value) == f"{missing}: No such file or directory (name a file that can be read)"
    with pytest.raises(ConfigurationError) as refused:
        load(binary)
    assert str(refused.value) == f"{binary}: byte 5 is not UTF-8 (save it as UTF-8)"
    with pytest.raises(ConfigurationError, match=r"Is a directory \(name a file"):
        load(tmp_path)


# --- Onto what is there.


def test_what_is_named_keeps_its_id_and_what_is_not_named_stays() -> None:
    have = parse(EXAMPLE, "lb.toml")
    want = parse(
        '[pools.web]\nprotocol = "TCP"\nmembers = [\n'
        '{ address = "172.16.10.10", port = 8080, weight = 7 }, { address = "10.0.0.12", port = 80 }]\n'
        '[pools.more]\nprotocol = "TCP"\n'
        '[listeners.more]\nload_balancer = "shop"\nprotocol = "TCP"\nport = 81\npool = "more"\n',
        "more.toml",
        have,
    )

    assert (want.gateway, want.networks, want.load_balancers) == (have.gateway, have.networks, have.load_balancers)
    assert [one.name for one in want.listeners.values()] == ["web", "more"]
    (before,), (web, more) = have.pools.values(), want.pools.values()
    assert (web.id, more.name) == (before.id, "more")
    assert [(str(one), one.weight) for one in web.members] == [("172.16.10.10:8080", 7), ("10.0.0.12:80", 1)]
    assert web.members[0].id == before.members[1].id
    assert want.listeners[list(want.listeners)[1]].pool == more.id


def test_members_that_are_not_written_stay_unless_pruned() -> None:
    have, text = parse(EXAMPLE, "lb.toml"), '[pools.web]\nprotocol = "TCP"\ndescription = "the shop\'s"\n'

    (web,) = parse(text, "lb.toml", have).pools.values()
    assert (web.description, web.members) == ("the shop's", next(iter(have.pools.values())).members)
    pruned = parse(text, "lb.toml", have, prune=True)
    assert next(iter(pruned.pools.values())).members == ()
    assert (pruned.listeners, pruned.load_balancers, pruned.networks) == ({}, {}, {})
    assert pruned.gateway == have.gateway


def test_pruned_names_cannot_be_referred_to() -> None:
    text = '[listeners.web]\nload_balancer = "shop"\nprotocol = "TCP"\nport = 80\npool = "web"\n'
    have = parse(EXAMPLE, "lb.toml")

    assert parse(text, "lb.toml", have) == have
    with pytest.raises(ConfigurationError, match=r"'shop' is not one of load_balancers"):
        parse(text, "lb.toml", have, prune=True)


def test_a_name_that_two_resources_have_stands_for_neither() -> None:
    have = parse(EXAMPLE, "lb.toml")
    (web,) = have.pools.values()
    twice = replace(have, pools={**have.pools, "other": replace(web, id="other", members=())})

    with pytest.raises(ConfigurationError, match=r"pools\.web: 2 of pools are called so \(rename all but one\)"):
        parse(EXAMPLE, "lb.toml", twice)


NASTY = (
    *(
        "0",
        "-1",
        "65536",
        "1e3",
        "nan",
        "inf",
        "true",
        "0x" + "f" * 5_000,
        "9" * 5_000,
        "1979-05-27",
        "07:32:00",
    ),
    *(
        '""',
        '"\\n"',
        '"\\u0000"',
        '"eth0"',
        '"::1"',
        '"0.0.0.0/0"',
        '"10.0.0.101"',
        '"TCP"',
        '"local"',
        '"web"',
    ),
    *("[]", "[[]]", "[1]", '[""]', "[{}]", "{}", "{ name = 1 }", '{ "" = 1 }', "[" * 300 + "]" * 300),
)
VALUE = re.compile(r'"[^"]*"|\b\d+\b|true|\[(?=["{])[^\[\]]*\]')


def mutate(text: str, chance: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    match chance.randrange(6):
        case 0:
            lines.pop(chance.randrange(len(lines)))
        case 1:
            lines.insert(chance.randrange(len(lines)), chance.choice(lines))
        case 2:
            i, j = chance.randrange(len(lines)), chance.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[i]
        case 3:
            at = chance.randrange(len(text))
            return text[:at] + chr(chance.choice([0, 10, 34, 46, 61, 91, 93, 233, 8232])) + text[at + 1 :]
        case _:
            if values := list(VALUE.finditer(text)):
                value = chance.choice(values)
                return text[: value.start()] + chance.choice(NASTY) + text[value.end() :]
    return "".join(lines) or "\n"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_written_is_read_or_refused(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(150):
        text = EXAMPLE
        for _ in range(chance.randint(1, 4)):
            text = mutate(text, chance)
        try:
            wanted = parse(text, "fuzz.toml")
        except ConfigurationError as error:
            problems = error.problems
        else:
            assert isinstance(wanted, Configuration)
            continue
        assert problems
        assert all(len(problem.splitlines()) == 1 for problem in problems), problems
        assert all(problem.endswith(")") for problem in problems), problems
