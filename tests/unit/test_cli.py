"""The command line where nothing is loaded: answers by arithmetic, refusals, and how both look."""

import json
import subprocess
import sys
from pathlib import Path

import click  # noqa: TID251 - the command line is what is tested
import pytest
from click.testing import CliRunner, Result  # noqa: TID251 - as above

from ipbackend.abi import Verdict
from ipbackend.cli import COMMANDS, main
from ipbackend.cli.output import table
from ipbackend.verdicts import MEANINGS, TOTALS

CONFIGURATION = """
[gateway]
interfaces = ["eth0", "eth1"]
snat_addresses = ["10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104"]

[networks.vpc]
kind = "local"
cidrs = ["10.0.0.0/24"]

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

[listeners.dns]
load_balancer = "shop"
protocol = "UDP"
port = 53
pool = "dns"

[pools.web]
protocol = "TCP"
members = [{ address = "10.0.0.11", port = 8080, max_connections = 50 }]

[pools.also-web]
protocol = "TCP"
members = [{ address = "10.0.0.11", port = 8080, max_connections = 50 }]

[pools.dns]
protocol = "UDP"
members = [{ address = "192.168.50.10", port = 5353 }]
"""

LOOKING = [
    "audit",
    "connection list",
    "counters",
    "listener list",
    "map dump conntrack",
    "map list",
    "member list",
    "network list",
    "pool list",
]


def ipbackend(line: str, *more: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, [*line.split(), *more], env=env)


def leaves(command: click.Command, path: str = "") -> list[tuple[str, click.Command]]:
    """All commands that do something, groups opened."""
    if not isinstance(command, click.Group):
        return [(path, command)]
    context = click.Context(command)
    names = command.list_commands(context)
    return [leaf for name in names for leaf in leaves(command.get_command(context, name), f"{path} {name}".strip())]


def test_every_command_explains_itself_with_an_example_that_begins_with_its_name() -> None:
    commands = leaves(main)

    assert {path.split()[0] for path, _ in commands} == set(COMMANDS)
    for path, command in commands:
        assert f"Example: ipbackend {path}" in (command.help or ""), path


def test_whatever_shows_can_show_it_to_programs() -> None:
    without = {path for path, command in leaves(main) if "output" not in {option.name for option in command.params}}

    deleting = {path for path in without if path.endswith("delete")}
    another_form = {"capture", "completion", "export", "top"}  # of their own; what `top` shows, `member list` has
    assert without == {"run", "unload", *another_form, *deleting}


@pytest.mark.parametrize("line", LOOKING)
def test_with_nothing_loaded_there_is_one_line_why(line: str, tmp_path: Path) -> None:
    result = ipbackend(line, env={"IPBACKEND_RUN_DIR": str(tmp_path)})

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (f"Error: {tmp_path}/layout.json: no data plane is loaded (start one: `ipbackend run`)\n")


def test_the_run_directory_is_an_option_as_well(tmp_path: Path) -> None:
    result = ipbackend(f"--run-dir {tmp_path} map list")

    assert result.stderr.startswith(f"Error: {tmp_path}/layout.json: ")


def test_a_valid_file_is_summed_up(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(CONFIGURATION)
    index = 2**20 * 64  # 4 entries of 8 bytes for each slot, rounded up to a power of two
    slots = (64 + 1_310_720 + 512 * 128) * 72  # the first ones, 1.31 for each connection, and for small endpoints
    clients = 250_000 * 192  # kept in mind, for persistence and rates

    assert ipbackend("check", str(file)).stdout.splitlines() == [
        f"{file}: valid",
        "load balancers 1, listeners 2, pools 3, members 3, networks 2, health monitors 0, ip groups 0",
        "addresses required: 6 (vip 1, health_check 1, snat 4)",
        f"memory of the tables: {(index + slots + clients) / 2**20:.1f} MiB",
    ]
    assert json.loads(ipbackend("check --output json", str(file)).stdout) == {
        "load_balancers": 1,
        "listeners": 2,
        "pools": 3,
        "members": 3,
        "networks": 2,
        "health_monitors": 0,
        "ip_groups": 0,
        "addresses_required": {"total": 6, "parts": {"vip": 1, "health_check": 1, "snat": 4}},
        "memory_bytes": index + slots + clients,
    }


def test_every_problem_of_a_bad_file_is_a_line_on_stderr(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(CONFIGURATION.replace("10.0.0.11", "8.8.8.8", 1).replace('pool = "dns"', 'pool = "dsn"'))

    result = ipbackend("check", str(file))

    assert result.exit_code == 1
    assert result.stdout == ""
    pool, member = sorted(result.stderr.splitlines())
    assert pool.startswith("Error: listeners.dns.pool: 'dsn' is not one of pools (did you mean dns?")
    assert member.startswith("Error: pools.web.members[0]: 8.8.8.8 is not a private IPv4 address")


def test_what_is_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipbackend.cli.ips.addresses_required", lambda *_: 1 // 0)

    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(main, ["ips", "required"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("options", "total", "parts"),
    [
        ("", 6, [1, 1, 4]),
        ("--gateways 2", 11, [1, 2, 8]),
        ("--gateways 3", 16, [1, 3, 12]),
        ("--no-ip-backend", 2, [1, 1, 0]),
        ("--no-ip-backend --gateways 2", 3, [1, 2, 0]),
        ("--no-ip-backend --gateways 3", 4, [1, 3, 0]),
        ("--load-balancers 3 --max-connections 25000", 5, [3, 1, 1]),
    ],
)
def test_addresses_required(options: str, total: int, parts: list[int]) -> None:
    named = dict(zip(("vip", "health_check", "snat"), parts, strict=True))

    assert json.loads(ipbackend(f"ips required --output json {options}").stdout) == {"total": total, "parts": named}
    rows = [line.split() for line in ipbackend(f"ips required {options}").stdout.splitlines()[1:]]
    assert {part: int(count) for part, count in rows} == {"total": total, **named}


def test_an_impossible_deployment_is_refused() -> None:
    result = ipbackend("ips required --gateways 0 --max-connections 100001")

    assert result.exit_code == 1
    assert [line.split(":")[:2] for line in result.stderr.splitlines()] == [
        ["Error", " gateways"],
        ["Error", " max_connections"],
    ]


@pytest.mark.parametrize(
    "line",
    [
        "conection list",
        "connection list --member web",
        "connection list --member 10.0.0.11:",
        "connection list --client 10.0.0.11:65536",
        "connection list --limit -1",
        "map dump",
        "pool list --output xml",
    ],
)
def test_a_wrong_call_is_a_usage_error(line: str) -> None:
    assert ipbackend(line).exit_code == 2


def test_every_verdict_has_a_meaning_and_every_action_a_total() -> None:
    assert set(MEANINGS) == set(Verdict) - {Verdict.NEXT_STEP}
    assert {verdict.name.split("_")[0] for verdict in MEANINGS} == set(TOTALS.values())


def test_meanings_are_those_of_the_data_plane() -> None:
    """A verdict renamed or given another sense in abi.h is found here: the first words must be the same."""
    abi = (Path(__file__).parents[2] / "bpf" / "abi.h").read_text()
    for verdict, meaning in MEANINGS.items():
        comment = next(line for line in abi.splitlines() if line.strip().startswith(f"{verdict.name},"))
        assert comment.split("/* ")[1].split()[:2] == meaning.split()[:2], verdict


def test_a_table_is_aligned_and_says_what_is_missing() -> None:
    shown = table(
        ("name", "room_left", "cidrs", "resolved"),
        [("web", 5, ["10.0.0.0/24", "10.1.0.0/24"], True), ("a-long-one", None, [], False), ("x", 1000, ["-"], None)],
    )

    assert shown.splitlines() == [
        "NAME        ROOM LEFT  CIDRS                    RESOLVED",
        "web                 5  10.0.0.0/24,10.1.0.0/24  yes",
        "a-long-one          -  -                        no",
        "x                1000  -                        -",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    assert table(("name", "room_left"), []) == "NAME  ROOM LEFT"


def test_what_needs_no_kernel_imports_neither_bcc_nor_netlink() -> None:
    """They cost half a second of every call, and a machine that only plans has no BCC."""
    program = (
        "import sys; from ipbackend.cli import main\n"
        "main(['ips', 'required'], standalone_mode=False)\n"
        "assert not {'bcc', 'pyroute2'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_only_the_daemon_pays_for_a_web_framework() -> None:
    """Half a second at each call would be felt."""
    modules = sorted({where.split(":")[0] for name, where in COMMANDS.items() if name not in ("run", "unload")})
    script = (
        f"import importlib, sys\nfor name in {modules}:\n    importlib.import_module(name)\nprint(sorted(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert "'ipbackend.client'" in loaded
    assert not [name for name in ("fastapi", "pydantic", "uvicorn", "httpx", "asyncio") if f"'{name}'" in loaded]
