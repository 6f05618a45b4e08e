"""Who gets which connection: every setting of it, through the store, a file and the API."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from ipbackend import config
from ipbackend.errors import ConfigurationError
from ipbackend.export import to_toml
from ipbackend.model import Access, Algorithm, Entry, HealthMonitor
from ipbackend.store import Store
from tests.unit.serving import ELB, OURS, Client, Kept, ok, refused
from tests.unit.wanted import CHOSEN, FULL

GATEWAY = '[gateway]\ninterfaces = ["eth0"]\nsnat_addresses = ["10.0.0.101"]\n'
WEB = '[pools.web]\nprotocol = "TCP"\n'
MONITOR = "[pools.web.health_monitor]\n"
OFFICE = "[ip_groups.office]\n"
SHOP = '[load_balancers.shop]\nvip = "10.0.0.100"\n'
LISTENER = '[listeners.web]\nload_balancer = "shop"\nprotocol = "TCP"\nport = 80\n'


def test_they_outlive_the_daemon(tmp_path: Path) -> None:
    with Store(tmp_path / "store.db") as kept:
        kept.write(CHOSEN, "root")
    with Store(tmp_path / "store.db") as kept:
        assert kept.configuration == CHOSEN


# --- In a file.


def test_a_file_says_them_all_and_is_written_as_it_is_read() -> None:
    text = to_toml(CHOSEN)
    for prune in (False, True):
        assert config.parse(text, "it", CHOSEN, prune) == CHOSEN
    for have in (FULL, config.EMPTY):
        assert to_toml(config.parse(text, "it", have, prune=True)) == text
    assert to_toml(FULL) == to_toml(config.parse(to_toml(FULL), "it", CHOSEN, prune=True))


def test_a_file_reads_well() -> None:
    lines = to_toml(CHOSEN).splitlines()
    for table in (
        ['health_address = "10.0.0.105"'],
        ["[ip_groups.offices]", "cidrs = [", '    { cidr = "198.51.100.0/24", description = "north" },', "]"],
        ["cidrs = [", '    "203.0.113.7/32",', '    "192.0.2.0/25",', "]"],
        ["[pools.web.health_monitor]", 'type = "HTTP"', "delay = 10", "timeout = 2", "max_retries = 4"],
        ['ip_groups = ["homes", "offices"]', 'access = "deny"'],
        ['ip_groups = ["homes"]', "access_enabled = false"],
    ):
        at = lines.index(table[0])
        assert table in [lines[start : start + len(table)] for start in range(at, len(lines))]


def test_a_health_monitor_is_a_table_of_its_pool() -> None:
    have = config.parse(GATEWAY + WEB + MONITOR + 'type = "HTTP"\nurl_path = "/up"\n', "it")
    (pool,), (monitor,) = have.pools, have.health_monitors.values()
    assert monitor == HealthMonitor(pool, monitor.type, url_path="/up", id=monitor.id)
    (other,) = config.parse(WEB + MONITOR + 'type = "TCP"\nname = "probe"', "it", have).health_monitors.values()
    assert (other.id, other.name, other.type, other.url_path) == (monitor.id, "probe", "TCP", "/")
    assert config.parse('[pools.dns]\nprotocol = "UDP"', "it", have).health_monitors == have.health_monitors
    assert config.parse(WEB, "it", have).health_monitors == {}  # a pool is as its table says, whole
    assert config.parse("", "it", have).health_monitors == have.health_monitors
    assert config.parse("", "it", have, prune=True).health_monitors == {}


def test_entries_are_cidrs_or_tables_that_describe_them() -> None:
    text = 'cidrs = ["203.0.113.7", { cidr = "198.51.100.0/24", description = "north" }]\n'
    (group,) = config.parse(GATEWAY + OFFICE + text, "it").ip_groups.values()
    assert group.entries == (
        Entry(IPv4Network("203.0.113.7/32")),
        Entry(IPv4Network("198.51.100.0/24"), "north"),
    )
    many = ", ".join(f'"10.{number // 250}.{number % 250}.0/24"' for number in range(10_000))
    (group,) = config.parse(f"{GATEWAY}{OFFICE}cidrs = [{many}]", "it").ip_groups.values()
    assert len(group.entries) == 10_000


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            MONITOR + 'type = "TCP"\ndelai = 5',
            "pools.web.health_monitor.delai: unknown key (did you mean delay? known: delay, domain_name, enabled, ",
        ),
        (MONITOR, 'pools.web.health_monitor.type: is missing (write one of "TCP", "UDP_CONNECT", "HTTP", "HTTPS")'),
        ("health_monitor = 1", "pools.web.health_monitor: got 1 (expected a table)"),
        (MONITOR + 'type = "TCP"\npool = "web"', "pools.web.health_monitor.pool: unknown key ("),
        (MONITOR + 'type = "TLS"', "pools.web.health_monitor.type: 'TLS' cannot be used ("),
        (MONITOR + 'type = "TCP"\ndelay = 0', "pools.web.health_monitor.delay: 0 is out of range (write 1 to 50)"),
        (MONITOR + 'type = "HTTP"\nurl_path = "x"', "pools.web.health_monitor.url_path: 'x' cannot be asked for ("),
        (
            MONITOR + 'type = "HTTP"\nhttp_method = "get"',
            "pools.web.health_monitor.http_method: 'get' cannot be used (did you mean GET? known: GET, HEAD, POST)",
        ),
        (
            MONITOR + 'type = "UDP_CONNECT"',
            "pools.web.health_monitor.type: UDP_CONNECT does not fit the pool, TCP (write TCP, HTTP or HTTPS)",
        ),
        ("health_monitr = 1", "pools.web.health_monitr: unknown key (did you mean health_monitor? known: algorithm, "),
        ('algorithm = "LEAST"', "pools.web.algorithm: 'LEAST' cannot be used ("),
        (
            'algorithm = "SOURCE_IP"\npersistence = 5',
            "pools.web.persistence: SOURCE_IP chooses by the client's address anyway (leave it out, or write ",
        ),
        ("slow_start = 29", "pools.web.slow_start: 29 is out of range (write 30 to 1200)"),
        ("connection_drain = true", "pools.web.connection_drain: got true (expected an integer)"),
        (OFFICE + "cidr = []", "ip_groups.office.cidr: unknown key (did you mean cidrs? known: cidrs, description)"),
        (OFFICE + "entries = []", "ip_groups.office.entries: unknown key ("),
        (
            OFFICE + "cidrs = 1",
            "ip_groups.office.cidrs: got 1 (expected an array, each an IPv4 CIDR in quotes, such as",
        ),
        (OFFICE + "cidrs = [1]", "ip_groups.office.cidrs[0]: got 1 (expected an IPv4 CIDR in quotes, such as "),
        (
            OFFICE + 'cidrs = ["203.0.113.7/24"]',
            "ip_groups.office.cidrs[0]: '203.0.113.7/24' is an address inside its CIDR (did you mean 203.0.113.0/24?)",
        ),
        (OFFICE + "cidrs = [{}]", "ip_groups.office.cidrs[0].cidr: is missing (write an IPv4 CIDR in quotes, such as "),
        (
            OFFICE + 'cidrs = ["203.0.113.7", "203.0.113.7/32"]',
            "ip_groups.office.cidrs: '203.0.113.7/32' is there more than once (write it once)",
        ),
        (
            OFFICE + SHOP + LISTENER + 'ip_groups = "office"',
            "listeners.web.ip_groups: got the string 'office' (expected ",
        ),
        (
            OFFICE + SHOP + LISTENER + 'ip_groups = ["office", "offce"]',
            "listeners.web.ip_groups[1]: 'offce' is not one of ip_groups (did you mean office? known: office)",
        ),
        (
            SHOP + LISTENER + 'ip_groups = ["offce"]\naccess = "deny"',
            "listeners.web.ip_groups[0]: 'offce' is not one of ip_groups (there are none)",
        ),
        (SHOP + LISTENER + 'access = "white"', "listeners.web.access: 'white' cannot be used (known: allow, deny)"),
        (SHOP + LISTENER + 'access = "deny"', "listeners.web.access: there are no ip_groups that it could be about ("),
        (SHOP + LISTENER + "cps = 1000001", "listeners.web.cps: 1000001 is out of range (write 0 to 1000000)"),
    ],
)
def test_every_mistake_is_named_with_place_and_remedy(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        config.parse(GATEWAY + WEB + text, "it")
    (only,) = refusal.value.problems
    assert only.startswith(problem)
    assert only.endswith(")")


def test_mistakes_of_a_monitor_are_named_beside_those_of_its_pool() -> None:
    text = GATEWAY + '[pools.web]\nprotocol = "TPC"\n' + MONITOR + 'type = "TPC"\n'
    with pytest.raises(ConfigurationError) as refusal:
        config.parse(text, "it")
    assert [problem.partition(":")[0] for problem in refusal.value.problems] == [
        "pools.web.protocol",
        "pools.web.health_monitor.type",
    ]


# --- Over the API.


def test_they_are_shown_as_published(client: Client, kept: Kept) -> None:
    kept.configuration = CHOSEN
    pool = ok(client.get(f"{ELB}/pools/web"))["pool"]
    assert {name: pool[name] for name in ("lb_algorithm", *SETTINGS)} == {
        "lb_algorithm": "LEAST_CONNECTIONS",
        "session_persistence": {"type": "SOURCE_IP", "persistence_timeout": 20, "cookie_name": None},
        "slow_start": {"enable": True, "duration": 60},
        "connection_drain": {"enable": True, "timeout": 300},
        "pool_health": {"minimum_healthy_member_count": 1},
    }
    assert {name: ok(client.get(f"{ELB}/pools/shared"))["pool"][name] for name in SETTINGS} == {
        "session_persistence": None,
        "slow_start": {"enable": False, "duration": 30},
        "connection_drain": {"enable": False, "timeout": None},
        "pool_health": {"minimum_healthy_member_count": 0},
    }
    listeners = [ok(client.get(f"{ELB}/listeners/{name}"))["listener"] for name in ("http", "api", "intranet")]
    assert [[one[name] for name in ("connection", "cps", "source_cps")] for one in listeners] == [
        [1_000, 200, 10],
        [0, 0, 0],
        [0, 0, 0],
    ]
    assert [one["ipgroup"] for one in listeners] == [
        {"ipgroup_id": "homes,offices", "enable_ipgroup": True, "type": "black"},
        {"ipgroup_id": "homes", "enable_ipgroup": False, "type": "white"},
        None,
    ]
    monitor = ok(client.get(f"{ELB}/healthmonitors/check"))["healthmonitor"]
    asked = ("type", "http_method", "url_path", "domain_name", "expected_codes", "monitor_port", "admin_state_up")
    expected = ["HTTP", "HEAD", "/health?full=1", "example.com", "200-204", 9_000, True]
    assert [monitor[name] for name in asked] == expected
    assert ok(client.get(f"{ELB}/ipgroups/homes"))["ipgroup"]["listeners"] == [{"id": "http"}, {"id": "api"}]
    assert ok(client.get(f"{ELB}/ipgroups/homes/related-listeners"))["listeners"] == [{"id": "http"}, {"id": "api"}]
    assert ok(client.get(f"{ELB}/ipgroups/offices"))["ipgroup"]["listeners"] == [{"id": "http"}]
    assert ok(client.get(f"{OURS}/gateway"))["gateway"]["health_address"] == "10.0.0.105"


SETTINGS = ("session_persistence", "slow_start", "connection_drain", "pool_health")
FIELDS = ("persistence", "slow_start", "connection_drain", "minimum_healthy")


def test_a_pool_s_settings_come_and_go(client: Client, kept: Kept) -> None:
    def now() -> list[Any]:
        return [getattr(kept.configuration.pools["web"], name) for name in FIELDS]

    def change(**fields: Any) -> list[Any]:
        ok(client.put(f"{ELB}/pools/web", json={"pool": fields}))
        return now()

    assert now() == [None, None, None, 0]
    persistence: dict[str, Any] = {"type": "SOURCE_IP"}
    assert change(session_persistence=persistence) == [1, None, None, 0]
    assert change(session_persistence={"persistence_timeout": 60}) == [60, None, None, 0]
    assert change(session_persistence=persistence) == [60, None, None, 0]  # what is not sent stays
    assert change(slow_start={"enable": True}) == [60, 30, None, 0]
    assert change(slow_start={"duration": 90}) == [60, 90, None, 0]
    assert change(slow_start={"enable": True}) == [60, 90, None, 0]
    assert change(connection_drain={"enable": True, "timeout": 10}) == [60, 90, 10, 0]
    assert change(connection_drain={"timeout": 4_000}) == [60, 90, 4_000, 0]
    assert change(pool_health={"minimum_healthy_member_count": 1}) == [60, 90, 4_000, 1]
    assert change(name="other", pool_health={}) == [60, 90, 4_000, 1]
    assert change(slow_start={"enable": False}, connection_drain={"enable": False}) == [60, None, None, 1]
    assert change(slow_start={"duration": 90}) == [60, None, None, 1]  # it is off, and nobody said on
    assert change(session_persistence=None, pool_health=None) == [None, None, None, 0]
    assert change(slow_start={"enable": True}, connection_drain={"enable": True, "timeout": 10}) == [None, 30, 10, 0]
    assert change(slow_start=None, connection_drain=None) == [None, None, None, 0]


@pytest.mark.parametrize("algorithm", [str(one) for one in Algorithm])
def test_a_pool_is_made_with_its_settings(client: Client, kept: Kept, algorithm: str) -> None:
    wanted = {
        "protocol": "TCP",
        "lb_algorithm": algorithm,
        "slow_start": {"enable": True, "duration": 1_200},
        "connection_drain": {"enable": True, "timeout": 30},
        "pool_health": {"minimum_healthy_member_count": 1},
    }
    made = ok(client.post(f"{ELB}/pools", json={"pool": wanted}), 201)["pool"]
    assert {**made, **wanted} == made
    pool = kept.configuration.pools[made["id"]]
    assert [getattr(pool, name) for name in ("algorithm", *FIELDS)] == [algorithm, None, 1_200, 30, 1]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"session_persistence": {"type": "HTTP_COOKIE"}},
            "pool.session_persistence.type: Input should be 'SOURCE_IP'",
        ),
        ({"session_persistence": {"type": "SOURCE_IP", "cookie_name": "c"}}, "only null can be kept"),
        ({"session_persistence": {"persistence_timeout": 61}}, "persistence: 61 is out of range (write 1 to 60)"),
        ({"lb_algorithm": "SOURCE_IP", "session_persistence": {}}, "persistence: SOURCE_IP chooses by the client's"),
        ({"slow_start": {"enable": True, "duration": 29}}, "slow_start: 29 is out of range (write 30 to 1200)"),
        ({"slow_start": {"enable": 1}}, "pool.slow_start.enable: Input should be a valid boolean"),
        ({"connection_drain": {"enable": True}}, "timeout: is missing (write it: there is no default)"),
        (
            {"connection_drain": {"enable": True, "timeout": 9}},
            "connection_drain: 9 is out of range (write 10 to 4000)",
        ),
        ({"pool_health": {"minimum_healthy_member_count": 2}}, "minimum_healthy: 2 is out of range (write 0 to 1)"),
        ({"slow_start": {"seconds": 30}}, "pool.slow_start.seconds: there is no such field here"),
        ({"lb_algorithm": "QUIC_CID"}, "pool.lb_algorithm: Input should be 'ROUND_ROBIN', 'LEAST_CONNECTIONS', "),
        ({"az_affinity": {"enable": True}}, "pool.az_affinity: there is no such field here"),
    ],
)
def test_what_a_pool_cannot_be_told(client: Client, kept: Kept, fields: Any, problem: str) -> None:
    assert problem in refused(client.put(f"{ELB}/pools/web", json={"pool": fields}), 400, "ELB.8902")
    new = {"pool": {"protocol": "TCP", "lb_algorithm": "ROUND_ROBIN", **fields}}
    assert problem in refused(client.post(f"{ELB}/pools", json=new), 400, "ELB.8902")
    assert kept.configuration is FULL


def test_an_algorithm_that_needs_no_persistence_ends_it_only_if_told(client: Client, kept: Kept) -> None:
    ok(client.put(f"{ELB}/pools/web", json={"pool": {"session_persistence": {}}}))
    both = {"pool": {"lb_algorithm": "SOURCE_IP"}}
    assert "persistence: SOURCE_IP chooses" in refused(client.put(f"{ELB}/pools/web", json=both), 400, "ELB.8902")
    both["pool"]["session_persistence"] = None  # type: ignore[assignment]
    assert ok(client.put(f"{ELB}/pools/web", json=both))["pool"]["lb_algorithm"] == "SOURCE_IP"


def test_a_listener_s_access_comes_and_goes(client: Client, kept: Kept) -> None:
    def change(**fields: Any) -> tuple[Any, ...]:
        ok(client.put(f"{ELB}/listeners/http", json={"listener": fields}))
        one = kept.configuration.listeners["http"]
        return (one.ip_groups, one.access, one.access_enabled)

    kept.configuration = replace(FULL, ip_groups=CHOSEN.ip_groups)
    assert change(ipgroup={"ipgroup_id": "offices"}) == (("offices",), Access.ALLOW, True)
    assert change(ipgroup={"type": "black"}) == (("offices",), Access.DENY, True)
    assert change(ipgroup={"enable_ipgroup": False}) == (("offices",), Access.DENY, False)
    assert change(ipgroup={"ipgroup_id": "homes,offices", "enable_ipgroup": True}) == (
        ("homes", "offices"),
        Access.DENY,
        True,
    )
    assert change(ipgroup={"type": "white"}) == (("homes", "offices"), Access.ALLOW, True)
    assert change(name="other", cps=5, connection=6, source_cps=7) == (("homes", "offices"), Access.ALLOW, True)
    told = kept.configuration.listeners["http"]
    assert (told.cps, told.max_connections, told.source_cps) == (5, 6, 7)

    said = refused(client.delete(f"{ELB}/ipgroups/offices"), 409, "ELB.8907")
    assert "ip_groups.offices: listeners.other.ip_groups refers to it (take it out there first)" in said
    assert change(ipgroup={"type": "black"}) == (("homes", "offices"), Access.DENY, True)
    assert change(ipgroup=None) == ((), Access.ALLOW, True)
    assert client.delete(f"{ELB}/ipgroups/offices").status_code == 204


@pytest.mark.parametrize(
    ("fields", "status", "code", "problem"),
    [
        ({"ipgroup": {"ipgroup_id": "none"}}, 404, "ELB.8904", "ip_groups: there is no 'none' among ip_groups"),
        ({"ipgroup": {"ipgroup_id": ""}}, 404, "ELB.8904", "ip_groups: there is no '' among ip_groups"),
        ({"ipgroup": {"ipgroup_id": "offices,offices"}}, 400, "ELB.8902", "ip_groups: 'offices' is there more than"),
        (
            {"ipgroup": {"ipgroup_id": "offices", "type": "allow"}},
            400,
            "ELB.8902",
            "Input should be 'white' or 'black'",
        ),
        (
            {"ipgroup": {"ipgroup_id": None}},
            400,
            "ELB.8902",
            "listener.ipgroup.ipgroup_id: Input should be a valid str",
        ),
        ({"ipgroup": {"ipgroup_id": ",".join(map(str, range(51)))}}, 409, "ELB.8905", "ip_groups: 51 are too many"),
        ({"cps": 1_000_001}, 400, "ELB.8902", "cps: 1000001 is out of range (write 0 to 1000000)"),
        ({"connection": -1}, 400, "ELB.8902", "max_connections: -1 is out of range"),
        ({"source_cps": "5"}, 400, "ELB.8902", "listener.source_cps: Input should be a valid integer"),
        ({"port_ranges": []}, 400, "ELB.8902", "listener.port_ranges: there is no such field here"),
    ],
)
def test_what_a_listener_cannot_be_told(
    client: Client, kept: Kept, fields: Any, status: int, code: str, problem: str
) -> None:
    assert problem in refused(client.put(f"{ELB}/listeners/http", json={"listener": fields}), status, code)
    new = {"listener": {"protocol": "TCP", "protocol_port": 99, "loadbalancer_id": "shop", **fields}}
    assert problem in refused(client.post(f"{ELB}/listeners", json=new), status, code)
    assert kept.configuration is FULL


def test_access_without_groups_is_nothing(client: Client) -> None:
    deny = {"listener": {"ipgroup": {"type": "black"}}}
    said = refused(client.put(f"{ELB}/listeners/http", json=deny), 400, "ELB.8902")
    assert "access: there are no ip_groups" in said
    new = {"listener": {"protocol": "TCP", "protocol_port": 99, "loadbalancer_id": "shop", "ipgroup": {}}}
    said = refused(client.post(f"{ELB}/listeners", json=new), 400, "ELB.8902")
    assert "listener.ipgroup.ipgroup_id: is missing (it must be there)" in said


def test_a_health_monitor_is_on_unless_it_is_said_to_be_off(client: Client, kept: Kept) -> None:
    new = {"pool_id": "shared", "type": "HTTPS", "delay": 5, "timeout": 3, "max_retries": 3}
    made = ok(client.post(f"{ELB}/healthmonitors", json={"healthmonitor": new}), 201)["healthmonitor"]
    asked = {"http_method": "GET", "url_path": "/", "domain_name": "", "expected_codes": "200"}
    assert {**made, **new, **asked, "pool_id": None, "admin_state_up": True} == {**made, "pool_id": None}
    changes = {"http_method": "POST", "url_path": "/a", "domain_name": "h", "expected_codes": "200,202"}
    at = f"{ELB}/healthmonitors/{made['id']}"
    changed = ok(client.put(at, json={"healthmonitor": {**changes, "admin_state_up": False}}))["healthmonitor"]
    assert {**changed, **changes, "admin_state_up": False} == changed
    have = kept.configuration.health_monitors[made["id"]]
    assert (have.http_method, have.url_path, have.enabled, have.delay) == ("POST", "/a", False, 5)
    for wrong, problem in (
        ({"http_method": "PUT"}, "Input should be 'GET', 'HEAD' or 'POST'"),
        ({"url_path": "a"}, "url_path: 'a' cannot be asked for"),
        ({"domain_name": "a b"}, "domain_name: 'a b' is not the name of a host"),
        ({"expected_codes": "2xx"}, "expected_codes: '2xx' are not HTTP status codes"),
        ({"type": "UDP_CONNECT"}, "pools.shared.health_monitor.type: UDP_CONNECT does not fit the pool, TCP"),
        ({"type": "GRPC"}, "Input should be 'TCP', 'UDP_CONNECT', 'HTTP' or 'HTTPS'"),
    ):
        assert problem in refused(client.put(at, json={"healthmonitor": wrong}), 400, "ELB.8902")


def test_ten_thousand_entries_in_one_request(client: Client, kept: Kept) -> None:
    cidrs = [str(IPv4Network((number << 8, 24))) for number in range(10_001)]
    body = {"ipgroup": {"name": "many", "ip_list": [{"ip": cidr} for cidr in cidrs[1:]]}}
    made = ok(client.post(f"{ELB}/ipgroups", json=body), 201)["ipgroup"]
    assert [one["ip"] for one in made["ip_list"]] == cidrs[1:]
    one_more = {"ipgroup": {"ip_list": [{"ip": cidrs[0]}]}}
    at = f"{ELB}/ipgroups/{made['id']}/iplist/create-or-update"
    said = refused(client.post(at, json=one_more), 409, "ELB.8905")
    assert "cidrs: 10001 are too many (at most 10000: make another group)" in said
    quota = ok(client.get(f"{ELB}/quotas"))["quota"]
    told = [quota[name] for name in ("ipgroup_max_length", "ipgroups_per_listener", "ipgroup_bindings")]
    assert told == [10_000, 50, -1]
    assert len(kept.configuration.ip_groups[made["id"]].entries) == 10_000


def test_the_gateway_s_health_address(client: Client, kept: Kept) -> None:
    def change(**fields: Any) -> Any:
        return client.put(f"{OURS}/gateway", json={"gateway": fields})

    assert ok(change(health_address="10.0.0.105"))["gateway"]["health_address"] == "10.0.0.105"
    said = refused(change(health_address="10.0.0.101"), 400, "ELB.8902")
    assert "health_address: 10.0.0.101 is one of snat_addresses" in said
    assert "load_balancers.shop.vip" in refused(change(health_address="10.0.0.100"), 409, "ELB.8907")
    assert kept.configuration.gateway == CHOSEN.gateway
    assert ok(change(health_address=None, icmp_error_rate=5))["gateway"]["health_address"] is None
    assert ok(client.get(f"{OURS}/gateway"))["gateway"]["icmp_error_rate"] == 5


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("pools?session_persistence=20", ["web"]),
        ("pools?slow_start=true", ["web"]),
        ("pools?lb_algorithm=SOURCE_IP_PORT", ["shared"]),
        ("listeners?cps=200", ["http"]),
        ("listeners?ipgroup=black", ["http"]),
        ("ipgroups?listeners=api", ["homes"]),
        ("healthmonitors?url_path=/health?full=1", ["check"]),
    ],
)
def test_they_are_filters(client: Client, kept: Kept, query: str, found: list[str]) -> None:
    kept.configuration = CHOSEN
    path, _, condition = query.partition("?")
    rows = ok(client.get(f"{ELB}/{path}", params=[tuple(condition.split("=", 1))]))[path]
    assert [row["id"] for row in rows] == found
