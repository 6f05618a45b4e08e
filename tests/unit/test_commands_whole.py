"""Commands about everything at once: files, plans, history, status, checks; and how commands behave in a shell."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tomllib
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from click.testing import CliRunner  # noqa: TID251 - the command line is what is tested

from ipbackend import client, config
from ipbackend.cli import main
from ipbackend.cli.plan import show_changes, summary
from ipbackend.errors import ConfigurationError
from ipbackend.export import to_toml
from ipbackend.model import EndpointKey, Protocol
from ipbackend.preparation import Finding
from tests.unit.commands import NAMED, data, ipbackend, refused, said
from tests.unit.serving import Kept
from tests.unit.wanted import FULL, VPC, WEB


def test_export_is_taken_back_without_a_change(answering: Kept, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(said("export"))

    for prune in ("", "--prune"):
        assert said(f"apply -f {file} --dry-run {prune}") == "nothing to change\nnothing was changed\n"
    assert "[pools.web.health_monitor]" in file.read_text()
    assert "idle_timeout" not in file.read_text()  # what has its default is not written
    again = config.parse(to_toml(NAMED), "again", config.EMPTY)
    assert again.load_balancers.keys() != NAMED.load_balancers.keys()
    assert to_toml(again) == to_toml(NAMED)


def test_export_writes_whatever_text_there_may_be() -> None:
    odd = 'quote " backslash \\ é 日本 #'
    have = replace(NAMED, networks={"vpc": replace(VPC, name=odd, description=odd)})

    assert tomllib.loads(to_toml(have))["networks"][odd]["description"] == odd
    assert config.parse(to_toml(have), "it", have, prune=True) == have


def test_names_that_a_file_cannot_hold_are_refused_together(answering: Kept) -> None:
    with pytest.raises(ConfigurationError) as caught:
        to_toml(replace(FULL, pools={**FULL.pools, "x": replace(WEB, id="x"), "y": replace(WEB, name="", id="y")}))

    assert [problem.split("(")[0] for problem in caught.value.problems] == [
        "pools.web: 2 are called so ",
        "pools: 1 have no name ",
    ]


def test_apply_shows_its_plan_and_then_applies(answering: Kept) -> None:
    text = said("export").replace("weight = 3", "weight = 0").replace('address = "10.0.0.12"', 'address = "10.0.0.22"')

    out = said("apply -f -", input=text)

    assert out.splitlines() == [
        "~ member 10.0.0.11:8080 of web: weight 3 → 0",
        "+ member 10.0.0.22:8080 of web",
        "- member 10.0.0.12:8080 of web",
        "1 added, 1 changed, 1 removed; no open connection ends",
        "applied: revision 2",
    ]
    assert answering.configuration.pools["web"].members[0].weight == 0


def test_apply_says_so_when_somebody_was_faster(answering: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_bad_file_is_refused_line_by_line(answering: Kept) -> None:
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


def test_history_and_the_way_back(answering: Kept) -> None:
    assert said("history").splitlines()[1].split() == ["1", "2026-01-01T00:00:00Z", "root", "all"]
    assert "+ load balancer shop" in said("history 1").splitlines()
    said("pool set web --description d")
    out = said("rollback 1").splitlines()
    assert out[-1] == "rolled back to revision 1: now revision 3"
    assert answering.configuration == FULL


def test_status_where_nothing_forwards(answering: Kept) -> None:
    assert said("status").splitlines() == ["gateway      forwards nothing: there is none yet", "revision     1"]


def test_status_fails_where_something_is_not_as_wanted(answering: Kept) -> None:
    answering.problem, answering.drift = "eth1: there is no such interface", ["route to 192.168.50.0/24 missing"]

    result = ipbackend("status")

    assert result.exit_code == 1
    assert [line for line in result.stdout.splitlines() if line.startswith("not as wanted: ")] == [
        "not as wanted: eth1: there is no such interface",
        "not as wanted: route to 192.168.50.0/24 missing",
    ]
    assert json.loads(ipbackend("status --output json").stdout)["drift"] == answering.drift


def test_yaml_is_the_same_data(answering: Kept) -> None:
    assert yaml.safe_load(said("lb list --output yaml")) == data("lb list")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed(shell: str) -> None:
    assert "_IPBACKEND_COMPLETE" in said(f"completion {shell}")


def test_names_are_completed(answering: Kept) -> None:
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


@pytest.mark.parametrize(
    ("without", "unwanted"),
    [
        ((), {"fastapi", "uvicorn", "pydantic", "pyroute2", "yaml"}),  # the help of all commands imports them all
        (("audit", "connection", "map"), {"bcc"}),  # whoever does not read maps
    ],
)
def test_commands_import_neither_server_nor_kernel_libraries(without: tuple[str, ...], unwanted: set[str]) -> None:
    program = (
        "import sys, importlib\nfrom ipbackend.cli import COMMANDS\n"
        f"for name in COMMANDS.keys() - set({without}): importlib.import_module(COMMANDS[name].split(':')[0])\n"
        f"found = {unwanted} & set(sys.modules)\n"
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
def examined(answering: Kept, monkeypatch: pytest.MonkeyPatch) -> Examined:
    monkeypatch.setattr(Examined, "asked", [])
    for name in ("examine", "examine_network"):
        monkeypatch.setattr(answering, name, getattr(Examined(NAMED), name), raising=False)
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


def test_progress_is_for_terminals_only(answering: Kept) -> None:
    text = "\n".join(["member", *(f"10.0.0.{host}:9000" for host in range(20, 40))])

    result = ipbackend("member add --from - --pool web --max-connections 9", input=text)

    assert result.stderr == ""
    assert "\x1b" not in result.stdout
