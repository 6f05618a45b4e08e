"""What the command line shows of the real maps, after real packets. No daemon runs here, and none is needed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result  # noqa: TID251 - the command line is what is tested
from scapy.layers.inet import TCP, UDP
from scapy.packet import Packet

from ipbackend.abi import Phase
from ipbackend.cli import main
from ipbackend.config import parse
from ipbackend.datapath.tables import ip_to_map
from ipbackend.sizing import BYTES_PER_BUCKET, BYTES_PER_SLOT, BYTES_PER_SOURCE
from ipbackend.store import LINK, Store
from tests.packet.cast import (
    CLIENT,
    CLIENT_MAC,
    CONFIGURATION,
    MEMBER,
    OTHER_CLIENT,
    QUERY,
    SECOND_VIP,
    SNATS,
    SYN,
    UDP_MEMBER,
    VIP,
    from_client,
    mac_of,
)
from tests.packet.conftest import RUN, Dataplane


class Shell:
    """Calls `ipbackend` as a user would."""

    def call(self, line: str) -> Result:
        return CliRunner().invoke(main, ["--run-dir", str(RUN), *line.split()], catch_exceptions=False)

    def shown(self, line: str) -> Any:
        """What the command says to programs."""
        result = self.call(f"{line} --output json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    def by_name(self, line: str, key: str = "name") -> dict[str, Any]:
        return {row[key]: row for row in self.shown(line)}


@pytest.fixture
def shell(dataplane: Dataplane) -> Iterator[Shell]:
    """A data plane with the configuration that the daemon would have left beside it."""
    keep(CONFIGURATION)
    yield Shell()
    (RUN / LINK).unlink(missing_ok=True)


def keep(text: str) -> None:
    """In the store, as it would be after it was applied."""
    with Store(RUN / LINK) as store:
        store.write(parse(text, "test", store.configuration, prune=True), "test")


def syn(sport: int, dport: int = 80, **addresses: str) -> Packet:
    return from_client(**addresses) / TCP(sport=sport, dport=dport, flags="S")


def grown(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """The numbers that are other ones now: what lies between two looks."""
    numbers = {name: value - before[name] for name, value in after.items() if isinstance(value, int)}
    return {name: change for name, change in numbers.items() if change}


def test_before_anything_is_applied_there_are_no_names(shell, dataplane):
    (RUN / LINK).unlink()

    result = shell.call("pool list")

    assert result.exit_code == 1
    assert result.stderr == f"Error: {RUN}/{LINK}: nothing is applied yet (start the daemon: `ipbackend run`)\n"
    assert shell.shown("map list")


def test_listeners_show_connections_packets_and_bytes_each_way(shell, dataplane):
    before = shell.by_name("listener list")
    dataplane.establish()
    dataplane.run(syn(40001, dport=81))
    after = shell.by_name("listener list")

    assert list(after) == [one.name for one in parse(CONFIGURATION, "test").listeners.values()]
    web = after["web"]
    assert UUID(web.pop("id"))
    assert [web[key] for key in list(web)[:7]] == ["web", "shop", VIP, "TCP", 80, "web", 300]
    assert [web.pop(key) for key in ("max_connections", "cps", "source_cps", "access")] == [None] * 4
    assert list(web)[7:] == ["opened", "refused", "request_packets", "request_bytes", "reply_packets", "reply_bytes"]
    assert {name: change for name in after if (change := grown(before[name], after[name]))} == {
        "web": {"opened": 1, "request_packets": 2, "request_bytes": 80, "reply_packets": 1, "reply_bytes": 40},
        "nobody": {"refused": 1},
    }


def test_pools_show_what_their_members_carry_and_the_room_left(shell, dataplane):
    dataplane.open()

    pools = shell.by_name("pool list")

    assert UUID(pools["web"].pop("id"))
    assert pools["web"] == {
        "name": "web",
        "protocol": "TCP",
        "algorithm": "ROUND_ROBIN",
        "persistence": None,
        "members": 1,
        "up": 1,
        "active": 1,
        "room": 49,
    }
    assert (pools["empty"]["members"], pools["empty"]["active"], pools["empty"]["room"]) == (0, 0, 0)


def test_members_without_weight_or_next_hop_give_a_pool_no_room(shell, dataplane):
    assert shell.by_name("pool list")["web"]["room"] == shell.by_name("pool list")["dns"]["room"] == 50

    drained = CONFIGURATION.replace("port = 8080,", "port = 8080, weight = 0,")
    keep(drained)
    dataplane.unresolved = {IPv4Address("10.0.0.3")}
    dataplane.configure(drained)

    assert shell.by_name("pool list")["web"]["room"] == shell.by_name("pool list")["dns"]["room"] == 0


def test_members_show_how_full_they_are_and_whether_they_can_be_reached(shell, dataplane):
    before = shell.by_name("member list", "pool")
    dataplane.open()
    dataplane.run(dataplane.open(syn(40001)).request(flags="R", seq=1))
    dataplane.unresolved = {IPv4Address("10.0.0.3")}
    dataplane.configure()

    members = shell.by_name("member list", "pool")

    web = members["web"]
    assert UUID(web.pop("id"))
    assert list(web)[-6:] == ["opened", "closed", "expired", "removed", "drained", "killed"]
    assert {key: web[key] for key in list(web)[:-6]} == {
        "pool": "web",
        "member": f"{MEMBER}:8080",
        "protocol": "TCP",
        "network": "vpc",
        "weight": 1,
        "active": 1,
        "ceiling": 50,
        "used_percent": 2.0,
        "state": "reachable",
        "health": None,
        "reason": None,
    }
    assert grown(before["web"], web) == {"active": 1, "opened": 2, "closed": 1}
    assert [members["dns"][key] for key in ("network", "ceiling", "state")] == ["onprem", 50, "no next hop"]


def test_members_of_one_pool_and_a_pool_that_is_none(shell):
    assert [row["pool"] for row in shell.shown("member list --pool dns")] == ["dns"]

    refused = shell.call("member list --pool wep")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: --pool: 'wep' is not one of pools (did you mean web? known: ")


def test_what_is_wanted_but_not_in_the_maps_yet_is_shown_as_such(shell, dataplane):
    """The daemon may be between two steps."""
    keep(CONFIGURATION.replace("port = 8080,", "port = 8081,").replace("port = 81\n", "port = 82\n"))

    member = shell.by_name("member list", "pool")["web"]
    assert (member["state"], member["active"], member["used_percent"]) == ("not applied", None, None)
    assert shell.by_name("listener list")["nobody"]["opened"] is None
    assert shell.by_name("pool list")["web"]["room"] == 0
    assert shell.by_name("network list")["vpc"]["resolved"] is None


def test_networks_show_their_next_hops(shell, dataplane):
    dataplane.mtu = 1400
    dataplane.unresolved = {IPv4Address(MEMBER)}
    dataplane.configure(CONFIGURATION)

    networks = shell.by_name("network list")

    assert UUID(networks["onprem"].pop("id"))
    assert networks["onprem"] == {
        "name": "onprem",
        "kind": "vpn",
        "cidrs": ["192.168.50.0/24"],
        "interface": "eth1",
        "next_hop": "10.0.0.3",
        "mac": mac_of(IPv4Address("10.0.0.3")).hex(":"),
        "resolved": True,
        "mtu": 1400,
        "members": 1,
    }
    vpc, peered = networks["vpc"], networks["peered"]
    assert (vpc["next_hop"], vpc["mac"], vpc["resolved"], vpc["members"]) == (None, None, False, 1)
    assert (peered["next_hop"], peered["resolved"], peered["mtu"], peered["members"]) == ("10.0.0.2", None, None, 0)


def test_a_connection_shows_both_of_its_sides(shell, dataplane):
    flow = dataplane.establish()

    (row,) = shell.shown("connection list")

    assert 0 <= row.pop("age") < 10
    assert 0 <= row.pop("idle") < 10
    assert row == {
        "client": f"{CLIENT}:40000",
        "vip": f"{VIP}:80",
        "member": f"{MEMBER}:8080",
        "snat": f"{flow.snat}:{flow.snat_port}",
        "protocol": "TCP",
        "state": "ESTABLISHED",
        "listener": "web",
    }


def test_the_snat_address_and_port_are_those_the_member_sees(shell, dataplane):
    """Slots go round the four SNAT addresses: each row must say what was on the wire."""
    flows = [dataplane.open(syn(sport)) for sport in range(40000, 40007)]

    assert {row["client"]: row["snat"] for row in shell.shown("connection list")} == {
        f"{flow.client}:{flow.client_port}": f"{flow.snat}:{flow.snat_port}" for flow in flows
    }
    assert len({flow.snat for flow in flows}) == 4


def test_connections_of_one_member_or_one_client(shell, dataplane):
    for packet in (SYN, syn(40001), QUERY, syn(40000, client=OTHER_CLIENT, vip=SECOND_VIP)):
        dataplane.open(packet)

    def found(options: str) -> set[tuple[str, str]]:
        return {(row["client"], row["listener"]) for row in shell.shown(f"connection list {options}")}

    first, second = (f"{CLIENT}:40000", "web"), (f"{CLIENT}:40001", "web")
    dns, elsewhere = (f"{CLIENT}:40000", "dns"), (f"{OTHER_CLIENT}:40000", "web-too")
    assert found("") == {first, second, dns, elsewhere}
    assert found(f"--member {MEMBER}") == {first, second, elsewhere}
    assert found(f"--member {UDP_MEMBER}:5353") == {dns}
    assert found(f"--member {UDP_MEMBER}:53") == set()
    assert found(f"--client {CLIENT}") == {first, second, dns}
    assert found(f"--client {CLIENT}:40000") == {first, dns}
    assert found(f"--client {CLIENT}:40000 --member {MEMBER}") == {first}


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ("--client 203.0.113.0/24", {"first", "second", "dns", "elsewhere", "established"}),
        ("--client 203.0.113.8/31", {"elsewhere", "established"}),
        ("--client 203.0.113.0/29:40001", {"second"}),
        (f"--vip {SECOND_VIP}", {"elsewhere"}),
        ("--port 53", {"dns"}),
        (f"--port 80 --vip {VIP}", {"first", "second", "established"}),
        ("--listener web-too", {"elsewhere"}),
        ("--state ESTABLISHED", {"dns", "established"}),
        ("--state established --state syn_sent --listener dns", {"dns"}),
        ("--older-than 100", {"first"}),
        ("--older-than 1000", set()),
        (f"--older-than 100 --client {CLIENT}:40001", set()),
        ("--state EXPIRED", {"reset"}),
    ],
)
def test_connections_are_found_by_every_filter(shell, dataplane, options, shown):
    packets = {
        "first": SYN,
        "second": syn(40001),
        "dns": QUERY,
        "elsewhere": syn(40000, client=OTHER_CLIENT, vip=SECOND_VIP),
    }
    flows = {name: dataplane.open(packet) for name, packet in packets.items()}
    flows["established"] = dataplane.establish(syn(40009, client="203.0.113.9"))
    flows["reset"] = dataplane.open(syn(40010, client="203.0.114.9"))
    dataplane.run(flows["reset"].request(flags="R", seq=1))
    dataplane.connection(flows["first"]).opened -= dataplane.maps.clock.ticks(500)

    rows = shell.shown(f"connection list {options}")

    found = {(row["client"], row["vip"]) for row in rows}
    ends = {name: (f"{flow.client}:{flow.client_port}", f"{flow.vip}:{flow.vip_port}") for name, flow in flows.items()}
    assert {name for name, both in ends.items() if both in found} == shown
    assert len(rows) == len(shown)


def test_a_listener_is_found_by_name_or_id_or_refused(shell, dataplane):
    dataplane.open()
    (web,) = (row["id"] for row in shell.shown("listener list") if row["name"] == "web")

    assert len(shell.shown(f"connection list --listener {web}")) == 1
    refused = shell.call("connection list --listener wep")
    assert (refused.exit_code, refused.stderr.startswith("Error: listener wep: did you mean web?")) == (1, True)


def test_resting_slots_are_shown_only_on_demand(shell, dataplane):
    flow = dataplane.establish()
    for packet in (flow.request(flags="FA"), flow.reply(flags="FA")):
        dataplane.run(packet)

    assert shell.shown("connection list") == []
    assert [row["state"] for row in shell.shown("connection list --all")] == ["CLOSED"]


@pytest.mark.parametrize(("limit", "rows", "cut"), [(2, 2, True), (3, 3, False), (0, 3, False)])
def test_a_list_that_was_cut_says_so(shell, dataplane, limit, rows, cut):
    for sport in range(40000, 40003):
        dataplane.open(syn(sport))

    result = shell.call(f"connection list --limit {limit} --output json")

    assert len(json.loads(result.stdout)) == rows
    assert result.stderr == (f"There are more than these {limit} (--limit 0 shows all).\n" if cut else "")


def test_a_few_connections_among_a_million_slots_are_found_at_once(shell, dataplane):
    """CPU time: tables of 131,072 slots are scanned by column, and only matches become rows."""
    members = ", ".join(f'{{ address = "10.0.0.{host}", port = 8080 }}' for host in range(21, 29))
    large = CONFIGURATION.replace('{ address = "10.0.0.11", port = 8080, max_connections = 50 }', members)
    keep(large)
    dataplane.configure(large)
    for sport in range(40000, 40016):
        dataplane.open(syn(sport))

    began = time.process_time()
    rows = shell.shown(f"connection list --client {CLIENT}:40003")
    took = time.process_time() - began

    assert [row["client"] for row in rows] == [f"{CLIENT}:40003"]
    assert took < 0.5
    assert len(shell.shown("connection list")) == 16


def test_counters_add_up(shell, dataplane):
    before = shell.shown("counters --all")
    dataplane.establish()
    dataplane.run(syn(40001, dport=82))
    dataplane.run(bytes(SYN)[:-4])
    dataplane.run(from_client(vip="10.9.9.9") / UDP())
    after = shell.shown("counters --all")

    def counts(shown: dict[str, Any]) -> dict[str, int]:
        return {row["verdict"]: row["packets"] for row in shown["verdicts"]} | shown["totals"]

    assert grown(counts(before), counts(after)) == {
        "PASS_NOT_OURS": 1,
        "FORWARD_OPENED": 1,
        "FORWARD_REQUEST": 1,
        "FORWARD_REPLY": 1,
        "REJECT_NO_LISTENER": 1,
        "DROP_MALFORMED": 1,
        "received": 6,
        "passed": 1,
        "forwarded": 3,
        "rejected": 1,
        "dropped": 1,
    }


def test_counters_leave_out_what_never_happened_and_show_the_sum(shell, dataplane):
    dataplane.establish()
    totals = shell.shown("counters")["totals"]

    assert all(row["packets"] for row in shell.shown("counters")["verdicts"])
    assert any(not row["packets"] for row in shell.shown("counters --all")["verdicts"])
    assert shell.call("counters").stdout.splitlines()[-1] == (
        "received {received} = passed {passed} + forwarded {forwarded} + rejected {rejected} + dropped {dropped}"
    ).format(**totals)


def test_maps_are_listed_with_what_they_hold(shell, dataplane):
    dataplane.establish()

    maps = shell.by_name("map list")

    assert set(maps) == {one.name for one in dataplane.maps}
    assert maps["addresses"]["entries_used"] == 6
    assert maps["listeners"]["entries_used"] == len(dataplane.entries.listeners)
    assert maps["endpoints"]["entries_used"] == 2
    assert maps["flow_index"]["entries_used"] == 1
    assert maps["verdicts"]["entries_used"] is None
    assert maps["conntrack"]["type"] == "array"
    assert maps["conntrack"]["memory_bytes"] >= maps["conntrack"]["entries_max"] * 64
    assert (maps["endpoints_by_addr"]["key_bytes"], maps["endpoints_by_addr"]["value_bytes"]) == (4, 64)


def test_every_map_can_be_dumped_both_ways(shell, dataplane):
    dataplane.establish()
    assert "events is a ring buffer, and the daemon reads it" in shell.call("map dump events").stderr
    for one in dataplane.maps:
        if one.name == "events":
            continue
        inner = [f" --id {row['id']}" for row in shell.shown(f"map dump {one.name}")] if one.holds_maps else []
        for which in ["", *inner]:
            rows = shell.shown(f"map dump {one.name}{which}")
            table = shell.call(f"map dump {one.name}{which}")
            assert table.exit_code == 0
            assert len(table.stdout.splitlines()) == len(rows) + 1, one.name


def test_dumped_fields_are_readable_and_raw(shell, dataplane):
    def entries(name: str) -> dict[str, str]:
        named = [entry.split(" ", 1) for row in shell.shown(f"map dump {name}") for entry in row["entry"]]
        return dict(named)

    number = int(entries("listeners_by_addr")[f"{VIP}:80/TCP"])
    (row,) = (row for row in shell.shown("map dump listeners") if row["id"] == number)
    assert row["key_raw"] == number.to_bytes(4, "little").hex()
    fields = ("pool", "idle_timeout", "limit", "access", "rate", "source_rate")
    assert row["value_raw"] == b"".join(row[name].to_bytes(4, "little") for name in fields).hex() + 16 * "0"
    assert entries("addresses")[SECOND_VIP] == "VIP 0"
    assert entries("addresses")[SNATS[3]] == "SNAT 3"
    assert entries("endpoints_by_addr")[f"{MEMBER}:8080/TCP"] == str(dataplane.endpoint())
    (hop,) = (row for row in shell.shown("map dump next_hops") if row["address"] == MEMBER)
    assert hop["destination"] == mac_of(IPv4Address(MEMBER)).hex(":")


def test_slots_of_one_endpoint_are_dumped_by_its_id(shell, dataplane):
    flow = dataplane.establish()
    number = dataplane.endpoint()

    (slot,) = (row for row in shell.shown(f"map dump conntrack --id {number}") if "ESTABLISHED" in row["state"])
    assert slot["slot"] == dataplane.slot(flow)
    assert (slot["client"], slot["client_port"], slot["client_mac"]) == (CLIENT, 40000, CLIENT_MAC)
    assert len(slot["value_raw"]) == 2 * 64
    (bucket,) = shell.shown("map dump flow_index")
    first = dataplane.entries.endpoints[number].first
    assert bucket["entry"][0].endswith(f"/{first + slot['slot']}")
    (whole,) = (row for row in shell.shown("map dump conntrack") if "ESTABLISHED" in row["state"])
    assert whole["slot"] == first + slot["slot"]


def test_the_secret_of_the_flow_index_is_not_shown(shell, dataplane):
    secret = dataplane.maps["gateway"].memory()[0].hash_key[0]

    text = shell.call("map dump gateway --output json").stdout

    assert json.loads(text)[0]["hash_key"] == [0] * 5
    assert secret.to_bytes(8, "little").hex() not in text
    assert dataplane.maps["gateway"].memory()[0].hash_key[0] == secret


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("map dump contrack", "'contrack' is not one of the maps (did you mean conntrack?"),
        ("map dump conntrack --id 999", "--id: there is no endpoint 999 (`ipbackend map dump endpoints` lists them)"),
        ("map dump conntrack --id -1", "--id: there is no endpoint -1 "),
        ("map dump pools --id 999", "--id: pools holds no map 999 (`ipbackend map dump pools` lists them)"),
        ("map dump load --id 1", "--id: load holds no maps (leave it out)"),
    ],
)
def test_a_map_that_is_not_there_is_refused(shell, line, error):
    result = shell.call(line)

    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {error}")


def test_audit_is_clean_or_names_what_is_not(shell, dataplane):
    dataplane.establish()
    assert (shell.call("audit").exit_code, shell.call("audit").stdout) == (0, "clean\n")

    load = dataplane.maps["load"].memory()[dataplane.endpoint()]
    load.active += 1
    result = shell.call("audit")
    as_json = shell.call("audit --output json")
    load.active -= 1

    assert result.exit_code == as_json.exit_code == 1
    problem = f"endpoint {dataplane.endpoint()}: active, and such connections in its slots: they differ by 1"
    assert result.stdout == f"{problem}\n"
    assert json.loads(as_json.stdout) == [problem]


def test_looking_changes_nothing(shell, dataplane):
    dataplane.establish()
    watched = ("addresses", "listeners", "endpoints_by_addr", "load", "conntrack", "free_slots", "flow_index")

    def contents() -> list[bytes]:
        arrays = [bytes(one.memory().bytes) for one in dataplane.maps if one.name in ("load", "flow_index", "gateway")]
        parts = [dataplane.maps.of_endpoint(name, dataplane.endpoint()) for name in ("conntrack", "free_slots")]
        return [*arrays, *(bytes(memory.bytes) for memory in parts)]

    before = contents()
    for line in ("listener list", "pool list", "member list", "network list", "connection list --all", "counters"):
        shell.call(line)
    for name in watched:
        shell.call(f"map dump {name}")
    shell.call("map list")
    shell.call("audit")

    assert contents() == before
    assert dataplane.tables.read() == dataplane.entries


def test_a_slot_that_changes_hands_while_it_is_read_is_no_row(shell, dataplane):
    """Half of one connection and half of another would be a connection that never was."""
    from ipbackend.connections import _copy

    dataplane.establish()
    leaf = dataplane.maps["conntrack"].leaf
    memory = dataplane.maps.of_endpoint("conntrack", dataplane.endpoint())
    slot = bytes(memory.column("state")).index(Phase.ESTABLISHED)
    assert _copy(leaf, memory, slot).client == ip_to_map(IPv4Address(CLIENT))

    class Reused:
        """Memory whose slot is the next generation's by the time it is looked at again."""

        bytes, step = memory.bytes, memory.step

        def __getitem__(self, index: int) -> Any:
            return leaf(state=memory[index].state + (1 << 16))

    assert _copy(leaf, Reused(), slot) is None


def test_what_check_says_of_memory_is_what_the_maps_take(dataplane):
    maps = dataplane.maps
    sizes = [maps[name].memory().step for name in ("conntrack", "free_slots")]

    assert sum(sizes) == BYTES_PER_SLOT
    assert maps["flow_index"].memory().step == BYTES_PER_BUCKET


def test_what_check_says_of_clients_is_what_the_kernel_counts(shell, dataplane):
    rows = [row for row in shell.shown("map list") if row["name"] in ("stays", "source_dues")]

    told = sum(row["memory_bytes"] / row["entries_max"] for row in rows)
    assert len(rows) == 2
    assert told == pytest.approx(BYTES_PER_SOURCE, rel=0.1)


def test_without_the_right_to_read_there_is_one_line_why(tmp_path, monkeypatch):
    def refuse(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ipbackend.cli.view.Maps", refuse)

    result = CliRunner().invoke(main, ["--run-dir", str(tmp_path), "map", "list"])

    assert result.exit_code == 1
    assert result.stderr == f"Error: {tmp_path}: Permission denied (maps are read as root: use sudo)\n"
