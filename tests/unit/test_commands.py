"""The commands that ask the daemon, on the real API without a kernel: what they send, say and refuse."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tomllib
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from click.testing import CliRunner, Result  # noqa: TID251 - the command line is what is tested

from ipbackend import client, config
from ipbackend.cli import batch, main
from ipbackend.cli.plan import show_changes, summary
from ipbackend.errors import ConfigurationError, ServiceError
from ipbackend.export import to_toml
from ipbackend.model import EndpointKey, Protocol
from ipbackend.preparation import Finding
from tests.unit.serving import Client as Asgi
from tests.unit.serving import Kept
from tests.unit.wanted import CHECK, FULL, GATEWAY, GROUP, HTTP, SHOP, VPC, WEB, member, wanted

NAMED = wanted(
    *(VPC, SHOP, replace(WEB, members=(member(11, weight=3), member(12), member(13, name="third"))), HTTP, GROUP, CHECK)
)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """What the daemon keeps: every request of the client is answered by the real application on it."""
    service = Kept(NAMED)
    application = Asgi(service)

    def request(_: client.Client, method: str, path: str, body: Any = None, **query: Any) -> Any:
        sent = {"json": body} if body is not None else {}
        answer = application.request(method, f"/v3/{client.PROJECT}{path}", params=query, **sent)
        if answer.status_code >= 400:
            raise ServiceError(client._refusal(answer.status_code, answer.content))
        return answer.json() if answer.content else None

    monkeypatch.setattr(client.Client, "request", request)
    return service


def ipbackend(line: str, **more: Any) -> Result:
    return CliRunner().invoke(main, line.split(), catch_exceptions=False, **more)


def said(line: str, **more: Any) -> str:
    result = ipbackend(line, **more)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(line: str, **more: Any) -> str:
    result = ipbackend(line, **more)
    assert (result.exit_code, result.stdout) == (1, "")
    return result.stderr


def data(line: str) -> Any:
    return json.loads(said(f"{line} --output json"))


def test_a_load_balancer_from_create_to_delete(kept: Kept) -> None:
    made = data("lb create front --vip 10.0.0.120 --ip-target --description d")
    assert (made["vip_address"], made["interface"], made["ip_target_enable"]) == ("10.0.0.120", "eth0", True)
    assert said("lb set front --name face --deletion-protection") == f"load balancer face changed: {made['id']}\n"
    assert said("lb list").splitlines()[-1].split() == ["face", "10.0.0.120", "eth0", "yes", "yes", "0"]
    assert "deletion_protection_enable is true" in refused("lb delete face")
    said(f"lb set {made['id']} --no-deletion-protection")
    assert said("lb delete face") == "load balancer face deleted\n"
    assert made["id"] not in kept.configuration.load_balancers


def test_a_listener_a_pool_and_a_network(kept: Kept) -> None:
    said("network create far --kind vpn --cidr 192.168.50.0/24 --cidr 192.168.60.0/24 --next-hop 10.0.0.3")
    said("pool create next --lb shop")
    said("listener create plain --lb shop --port 8000 --pool next --idle-timeout 60")
    said("member add 192.168.50.10:8080 192.168.60.10:8080 --pool next --weight 2 --max-connections 70")

    have = kept.configuration
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
    assert kept.configuration.listeners[listener.id].pool is None
    said("network set far --cidr 192.168.0.0/16")
    (far,) = (one for one in kept.configuration.networks.values() if one.name == "far")
    assert far.cidrs == (IPv4Network("192.168.0.0/16"),)
    assert "members" in refused("pool delete next")
    said("pool delete next --cascade")
    said("listener delete plain")
    said("network delete far")
    assert set(kept.configuration.networks) == {"vpc"}


def test_overlapping_networks_are_refused_with_both_names(kept: Kept) -> None:
    error = refused("network create again --kind vpn --cidr 10.0.0.128/25 --next-hop 10.0.0.3")

    assert error.startswith("Error: networks.again.cidrs: 10.0.0.128/25 overlaps 10.0.0.0/24 of networks.vpc (")


def test_an_ambiguous_name_is_refused_with_the_ids(kept: Kept) -> None:
    one, other = data("pool create web"), data("pool create double")
    said(f"pool set {other['id']} --name web")

    error = refused("pool set web --description d")

    assert error == f"Error: pool web: 3 are called so (write the id of one: web, {one['id']}, {other['id']})\n"
    assert said(f"pool set {one['id']} --description d")


def test_an_unknown_name_is_refused_with_the_one_that_was_meant(kept: Kept) -> None:
    assert refused("lb show shpo") == "Error: load balancer shpo: there is none (did you mean shop? known: shop)\n"
    expected = "Error: member 10.0.0.19:8080: there is none (did you mean 10.0.0.13:8080?"
    assert refused("member show 10.0.0.19:8080 --pool web").startswith(expected)


def test_a_member_is_found_by_address_name_or_id(kept: Kept) -> None:
    for given in ("10.0.0.13:8080", "third"):
        assert data(f"member show {given} --pool web")["id"] == "m13"
    said("member set third --pool web --weight 0")
    assert kept.configuration.pools["web"].members[2].weight == 0
    said("member delete 10.0.0.13:8080 --pool web")
    assert [one.id for one in kept.configuration.pools["web"].members] == ["m11", "m12"]


def test_members_from_a_file_are_one_request_a_batch(kept: Kept, tmp_path: Path) -> None:
    file = tmp_path / "members.csv"
    lines = [f"10.0.0.{host}:{port},{host % 5}" for port in (9000, 9001) for host in range(120, 240)]
    file.write_text("\n".join(["member, weight", *lines, "10.0.0.11:8080,7"]) + "\n")
    before = kept.revision

    out = said(f"member add --from {file} --pool web --max-connections 1000")

    assert out == "240 members added to web, 1 were there already\n"
    assert kept.revision - before == 2  # 241 members, 200 in a request
    members = {str(one): one for one in kept.configuration.pools["web"].members}
    assert len(members) == 243
    assert (members["10.0.0.124:9000"].weight, members["10.0.0.124:9000"].max_connections) == (4, 1000)
    assert members["10.0.0.11:8080"].weight == 3


def test_members_from_stdin(kept: Kept) -> None:
    text = "address,port,weight,name\n10.0.0.130,81,,left\n\n10.0.0.131,81,0,\n"

    assert said("member add --from - --pool web", input=text) == "2 members added to web\n"
    left, right = kept.configuration.pools["web"].members[3:]
    assert (left.weight, left.name, right.weight, right.name) == (1, "left", 0, "")


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
def test_a_bad_line_is_refused_with_its_number(kept: Kept, text: str, error: str) -> None:
    assert error in refused("member add --from - --pool web", input=text)


def test_a_refusal_in_the_middle_says_what_is_done(kept: Kept, tmp_path: Path) -> None:
    file = tmp_path / "members.csv"
    lines = [f"10.0.0.{120 + host % 100}:{9000 + host // 100}" for host in range(250)]
    file.write_text("\n".join(["member", *lines, "8.8.8.8:53"]) + "\n")

    error = refused(f"member add --from {file} --pool web --max-connections 100")

    assert "8.8.8.8 is not a private IPv4 address" in error
    assert "Error: the first 200 of 251 are done" in error


def test_batches_are_of_the_published_size() -> None:
    sizes = list(batch.in_batches([{}] * 401, len))

    assert sizes == [200, 200, 1]


def test_the_gateway_is_set_up_and_shown(kept: Kept) -> None:
    said("gateway set --closing-timeout 20")
    assert kept.configuration.gateway == replace(GATEWAY, closing_timeout=20)
    assert data("gateway show")["interfaces"] == ["eth0", "eth1"]
    assert "networks" in refused("gateway delete")


def test_what_is_set_must_be_given(kept: Kept) -> None:
    for line in ("lb set shop", "member set third --pool web", "member set --pool web", "member add --pool web"):
        assert ipbackend(line).exit_code == 2


def test_export_is_taken_back_without_a_change(kept: Kept, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(said("export"))

    for prune in ("", "--prune"):
        assert said(f"apply -f {file} --dry-run {prune}") == "nothing to change\nnothing was changed\n"
    assert "# health monitors, which no file holds: 1" in file.read_text()
    emptied = to_toml(replace(NAMED, health_monitors={}, ip_groups={}))
    assert config.parse(emptied, "again", config.EMPTY).load_balancers.keys() != NAMED.load_balancers.keys()
    assert to_toml(config.parse(emptied, "again", config.EMPTY)) == emptied


def test_export_writes_whatever_text_there_may_be() -> None:
    odd = 'quote " backslash \\ é 日本 #'
    have = replace(NAMED, networks={"vpc": replace(VPC, name=odd, description=odd)})

    assert tomllib.loads(to_toml(have))["networks"][odd]["description"] == odd
    assert config.parse(to_toml(have), "it", have, prune=True) == have


def test_names_that_a_file_cannot_hold_are_refused_together(kept: Kept) -> None:
    with pytest.raises(ConfigurationError) as caught:
        to_toml(replace(FULL, pools={**FULL.pools, "x": replace(WEB, id="x"), "y": replace(WEB, name="", id="y")}))

    assert [problem.split("(")[0] for problem in caught.value.problems] == [
        "pools.web: 2 are called so ",
        "pools: 1 have no name ",
    ]


def test_apply_shows_its_plan_and_then_applies(kept: Kept) -> None:
    text = said("export").replace("weight = 3", "weight = 0").replace('address = "10.0.0.12"', 'address = "10.0.0.22"')

    out = said("apply -f -", input=text)

    assert out.splitlines() == [
        "~ member 10.0.0.11:8080 of web: weight 3 → 0",
        "+ member 10.0.0.22:8080 of web",
        "- member 10.0.0.12:8080 of web",
        "1 added, 1 changed, 1 removed; no open connection ends",
        "applied: revision 2",
    ]
    assert kept.configuration.pools["web"].members[0].weight == 0


def test_apply_says_so_when_somebody_was_faster(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    text = said("export").replace("weight = 3", "weight = 9")
    asked = client.Client.request

    def request(self: client.Client, method: str, path: str, body: Any = None, **query: Any) -> Any:
        answer = asked(self, method, path, body, **query)
        if path == "/ipbackend/plan":
            asked(self, "PUT", "/elb/pools/web/members/m11", {"member": {"weight": 5}})
        return answer

    monkeypatch.setattr(client.Client, "request", request)

    out = said("apply -f -", input=text).splitlines()

    assert out[0] == "~ member 10.0.0.11:8080 of web: weight 3 → 9"
    assert out[2:4] == [
        "somebody changed something meanwhile; this is what was applied:",
        "~ member 10.0.0.11:8080 of web: weight 5 → 9",
    ]


def test_a_bad_file_is_refused_line_by_line(kept: Kept) -> None:
    error = refused("apply -f -", input=said("export").replace("10.0.0.11", "8.8.8.8").replace("10.0.0.12", "9.9.9.9"))

    assert error.count("Error: ") == 2
    assert "8.8.8.8 is not a private IPv4 address" in error


def test_many_alike_are_one_line_and_say_what_ends(capsys: pytest.CaptureFixture[str]) -> None:
    def change(number: int, **after: Any) -> dict[str, Any]:
        before = {"id": str(number), "weight": 1, "name": ""}
        both = {"before": before, "after": {**before, **after} if after else None}
        named = {"section": "members", "parent": "web", "label": f"10.0.0.{number}:80 of web", "id": str(number)}
        return {**named, **both, "change": "changed" if after else "removed"}

    changes = [*(change(number, weight=0) for number in range(10, 18)), change(20), change(21)]

    show_changes(changes, {"20": 1200})

    assert capsys.readouterr().out.splitlines() == [
        "~ 8 members of web (10.0.0.10:80, 10.0.0.11:80, 10.0.0.12:80, … 10.0.0.17:80): weight 1 → 0",
        "- member 10.0.0.20:80 of web (1,200 open connections end)",
        "- member 10.0.0.21:80 of web",
    ]
    assert summary(changes, {"20": 1200}) == "0 added, 8 changed, 2 removed; 1,200 open connections end"


def test_history_and_the_way_back(kept: Kept) -> None:
    assert said("history").splitlines()[1].split() == ["1", "2026-01-01T00:00:00Z", "root", "all"]
    assert "+ load balancer shop" in said("history 1").splitlines()
    said("pool set web --description d")
    out = said("rollback 1").splitlines()
    assert out[-1] == "rolled back to revision 1: now revision 3"
    assert kept.configuration == FULL


def test_status_where_nothing_forwards(kept: Kept) -> None:
    assert said("status").splitlines() == ["gateway      forwards nothing: there is none yet", "revision     1"]


def test_status_fails_where_something_is_not_as_wanted(kept: Kept) -> None:
    kept.problem, kept.drift = "eth1: there is no such interface", ["route to 192.168.50.0/24 missing"]

    result = ipbackend("status")

    assert result.exit_code == 1
    assert [line for line in result.stdout.splitlines() if line.startswith("not as wanted: ")] == [
        "not as wanted: eth1: there is no such interface",
        "not as wanted: route to 192.168.50.0/24 missing",
    ]
    assert json.loads(ipbackend("status --output json").stdout)["drift"] == kept.drift


def test_yaml_is_the_same_data(kept: Kept) -> None:
    assert yaml.safe_load(said("lb list --output yaml")) == data("lb list")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed(shell: str) -> None:
    assert "_IPBACKEND_COMPLETE" in said(f"completion {shell}")


def test_names_are_completed(kept: Kept) -> None:
    line = {"COMP_WORDS": "ipbackend lb show sh", "COMP_CWORD": "3", "_IPBACKEND_COMPLETE": "bash_complete"}

    done = CliRunner().invoke(main, [], env=line, prog_name="ipbackend")

    assert done.stdout == "plain,shop\n"


def test_without_a_daemon_names_are_not_completed_and_commands_say_so(tmp_path: Path) -> None:
    env = {"IPBACKEND_RUN_DIR": str(tmp_path)}
    line = {"COMP_WORDS": "ipbackend lb show sh", "COMP_CWORD": "3", "_IPBACKEND_COMPLETE": "bash_complete"}
    assert CliRunner().invoke(main, [], env={**env, **line}, prog_name="ipbackend").stdout.strip() == ""

    result = CliRunner().invoke(main, ["lb", "list"], env=env)

    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path}/api.sock: no daemon answers there")


def test_commands_import_neither_server_nor_kernel_libraries() -> None:
    program = (
        "import sys, importlib\nfrom ipbackend.cli import COMMANDS\n"
        "local = {'audit', 'connection', 'map', 'run', 'unload'}  # these read the maps themselves, or are the daemon\n"
        "for name, place in COMMANDS.items():\n"
        "    if name not in local: importlib.import_module(place.split(':')[0])\n"
        "found = {'bcc', 'pyroute2', 'fastapi', 'uvicorn', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "assert not found, found"
    )

    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_reader_that_stops_is_no_error() -> None:
    """`ipbackend … | head -1`: the pipe breaks under the second write, and nothing is said about it."""
    program = "from ipbackend.cli import main\nimport click\n"
    program += "main.add_command(click.Command('yes', callback=lambda: [click.echo('y') for _ in iter(int, 1)]))\n"
    program += (
        "from ipbackend import cli\ncli.COMMANDS['yes'] = '__main__:yes'\nyes = main.commands['yes']\nmain(['yes'])"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


class Examined(Kept):
    """One that was told what every check finds."""

    asked: ClassVar[list[Any]] = []

    async def examine(self, key: EndpointKey) -> list[Finding]:
        self.asked.append(key)
        refused = Finding("member", False, "refuses", "start it") if key.port == 8080 else Finding("member", None, "?")
        return [Finding("network", True, "vpc"), refused]

    async def examine_network(self, number: str) -> list[Finding]:
        self.asked.append(number)
        return [Finding("route", True, "there")]


@pytest.fixture
def examined(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> Examined:
    monkeypatch.setattr(Examined, "asked", [])
    for name in ("examine", "examine_network"):
        monkeypatch.setattr(kept, name, getattr(Examined(NAMED), name), raising=False)
    return Examined(NAMED)


def test_a_check_shows_its_steps_and_fails_with_them(examined: Examined) -> None:
    result = ipbackend("member check 10.0.0.11:8080")

    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "ok    network   vpc",
        "FAIL  member    refuses",
        "                → start it",
    ]
    assert ipbackend("member check 10.0.0.11:53 --protocol UDP").exit_code == 0
    assert examined.asked[1] == EndpointKey(IPv4Address("10.0.0.11"), 53, Protocol.UDP)
    assert "out of range (write 1 to 65535)" in refused("member check 10.0.0.11:0")


def test_a_network_is_checked_with_so_many_of_its_members(examined: Examined) -> None:
    result = ipbackend("network check vpc --limit 2")

    assert result.exit_code == 1
    assert [line for line in result.stdout.splitlines() if not line.startswith(" ")] == [
        "network vpc",
        "10.0.0.11:8080/TCP",
        "10.0.0.12:8080/TCP",
        "1 more members were not tried (--limit)",
    ]
    assert json.loads(ipbackend("network check vpc --limit 0 --output json").stdout) == [
        {"member": None, "findings": [{"step": "route", "good": True, "what": "there", "remedy": ""}]}
    ]


def test_a_terminal_sees_how_far_long_work_has_come() -> None:
    program = "from ipbackend.cli import output\nwith output.progress(3, 'adding') as step: step(3)"
    terminal, child = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=child) as process:
        os.close(child)
        assert process.communicate()[0] == b""
    shown = os.read(terminal, 4096).decode()
    os.close(terminal)

    assert "adding" in shown
    assert "100%" in shown


def test_progress_is_for_terminals_only(kept: Kept) -> None:
    text = "\n".join(["member", *(f"10.0.0.{host}:9000" for host in range(20, 40))])

    result = ipbackend("member add --from - --pool web --max-connections 9", input=text)

    assert result.stderr == ""
    assert "\x1b" not in result.stdout
