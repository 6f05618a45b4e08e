"""What is compared: each a gateway of its own on links of its own, set up once. It knows no load and no figures."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench.gateway_core import Core
from tests.bench.gateway_links import MEMBER, VIP, End, Links
from tests.netns.gateway import Gateway
from tests.netns.lab import CLIENT, GATEWAY_MEMBER_SIDE, SNATS, VPC
from tests.netns.members import REPOSITORY, raise_file_limit

WEB_PORT = 8080
FLOOD_PORT = 5353
FIRST_FRESH_PORT = 7000  # one listener and member for each round, so that its connections are fresh ones
CEILING = 100_000
NEVER = 4000  # seconds: what was opened stays to the end
TOOLS = REPOSITORY / "build" / "bench" / "tools"  # packages unpacked, not installed: see Makefile
FLOODS = frozenset({"udp-64", "new-flow"})
EXCHANGES = frozenset({"tcp-connections", "http-keepalive", "bulk-tcp"})


@dataclass(frozen=True)
class System:
    """A gateway that runs: what clients connect to, whom members see, and which processes its work is done in.

    `cases`: what can be sent through it.
    """

    name: str
    links: Links
    destination: str
    sources: tuple[str, ...]
    tasks: tuple[int, ...] = ()
    cases: frozenset[str] = FLOODS | EXCHANGES
    arrival: End = ("member", "eth0")
    """Where a flood ends."""


@dataclass(frozen=True)
class Setting:
    """What a system is set up for."""

    core: Core
    patch: int
    """The program that hands frames from one interface to the other, untouched."""
    fresh_flows: int
    rounds: int

    @property
    def fresh_ports(self) -> range:
        return range(FIRST_FRESH_PORT, FIRST_FRESH_PORT + self.rounds)


Factory = Callable[[Setting], AbstractContextManager[System]]


@contextmanager
def drop(setting: Setting) -> Iterator[System]:
    """Nothing but the links: what arrives at the gateway ends there."""
    with Links(routed=False) as links:
        yield System("drop", links, MEMBER, (CLIENT,), cases=FLOODS, arrival=("gateway", "eth0"))


@contextmanager
def direct(setting: Setting) -> Iterator[System]:
    """Client and member on one cable."""
    with Links(routed=False, gateway=False) as links:
        yield System("direct", links, MEMBER, (CLIENT,), cases=EXCHANGES)


@contextmanager
def xdp_redirect(setting: Setting) -> Iterator[System]:
    with Links(routed=False) as links:
        for interface in ("eth0", "eth1"):
            links.attach(("gateway", interface), setting.patch)
        yield System("xdp-redirect", links, MEMBER, (CLIENT,))


@contextmanager
def ipbackend(setting: Setting) -> Iterator[System]:
    """The real daemon, elsewhere; what it has attached works on the core."""
    with (
        Links(routed=True) as links,
        Gateway(links, ipbackend_configuration(setting), "bench") as gateway,  # type: ignore[arg-type]
    ):
        setting.core.keep_away(gateway.pid)
        yield System("ipbackend", links, VIP, SNATS)


def ipbackend_configuration(setting: Setting) -> str:
    pools = [("TCP", WEB_PORT, CEILING), ("UDP", FLOOD_PORT, CEILING)]
    pools += [("UDP", port, setting.fresh_flows) for port in setting.fresh_ports]
    sections = [
        f"""
[gateway]
interfaces = ["eth0", "eth1"]
snat_addresses = {list(SNATS)}

[networks.vpc]
kind = "local"
cidrs = ["{VPC}"]

[load_balancers.bench]
vip = "{VIP}"
ip_target_enable = true
"""
    ]
    sections += [
        f"""
[listeners.{protocol}-{port}]
load_balancer = "bench"
protocol = "{protocol}"
port = {port}
pool = "{protocol}-{port}"
idle_timeout = {NEVER}

[pools.{protocol}-{port}]
protocol = "{protocol}"
members = [{{ address = "{MEMBER}", port = {port}, max_connections = {ceiling} }}]
"""
        for protocol, port, ceiling in pools
    ]
    return "".join(sections)


@contextmanager
def kernel_forward(setting: Setting) -> Iterator[System]:
    """Routing alone, no NAT."""
    with Links(routed=True, forward=True) as links:
        yield System("kernel-forward", links, MEMBER, (CLIENT,))


def nftables(setting: Setting) -> AbstractContextManager[System]:
    """DNAT and masquerade."""
    return _nftables("nftables", "")


def nftables_ct_count(setting: Setting) -> AbstractContextManager[System]:
    """The same, and a member's ceiling of connections."""
    return _nftables(
        "nftables-ct-count",
        f"""
    set ceilings {{ type ipv4_addr . inet_service; flags dynamic; }}
    chain forward {{
        type filter hook forward priority filter
        ct state new ip daddr {MEMBER} add @ceilings {{ ip daddr . th dport ct count over {CEILING} }} drop
    }}""",
    )


@contextmanager
def nftables_segments(setting: Setting) -> Iterator[System]:
    """The same as nftables on links that carry segments of up to 64 kB whole, as no wire does."""
    with _nftables("nftables-segments", "", segments=True) as system:
        yield replace(system, cases=frozenset({"bulk-tcp"}))


@contextmanager
def _nftables(name: str, more: str, *, segments: bool = False) -> Iterator[System]:
    rules = f"""
table ip bench {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        ip daddr {VIP} meta l4proto {{ tcp, udp }} dnat to {MEMBER}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat
        oifname "eth1" masquerade
    }}{more}
}}
"""
    with Links(routed=True, forward=True, segments=segments) as links:
        links["gateway"].run(["nft", "-f", "-"], input=rules.encode())
        for timeout in ("udp_timeout", "udp_timeout_stream"):
            links.set("gateway", f"netfilter/nf_conntrack_{timeout}", str(NEVER))
        links.set("gateway", "netfilter/nf_conntrack_checksum", "0")  # a network card would have checked it
        yield System(name, links, VIP, (GATEWAY_MEMBER_SIDE,))


@contextmanager
def haproxy(setting: Setting) -> Iterator[System]:
    configuration = f"""
global
    nbthread 1
    maxconn 4000
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen web
    bind {VIP}:{WEB_PORT}
    server member {MEMBER}:{WEB_PORT}
"""
    command = (tool("usr/sbin/haproxy"), "-db", "-f")
    with _proxy("haproxy", configuration, command) as system:
        yield system


@contextmanager
def nginx(setting: Setting) -> Iterator[System]:
    configuration = f"""
load_module {tool("usr/lib/nginx/modules/ngx_stream_module.so")};
daemon off;
master_process off;
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {{ worker_connections 4000; }}
stream {{
    server {{
        listen {VIP}:{WEB_PORT} backlog=4096;
        proxy_pass {MEMBER}:{WEB_PORT};
    }}
}}
"""
    command = (tool("usr/sbin/nginx"), "-p", ".", "-e", "stderr", "-c")
    with _proxy("nginx", configuration, command) as system:
        yield system


@contextmanager
def _proxy(name: str, configuration: str, command: tuple[str, ...]) -> Iterator[System]:
    """A proxy of one thread on the core, listening at the VIP."""
    raise_file_limit()
    with Links(routed=True) as links, tempfile.TemporaryDirectory(dir="/run") as folder:
        with links["gateway"].netlink() as control:
            control.addr("add", index=links.indices["gateway", "eth0"], address=VIP, prefixlen=32)
        path = Path(folder, "configuration")
        path.write_text(configuration)
        libraries = {"LD_LIBRARY_PATH": str(next((TOOLS / "usr/lib").glob("*-linux-gnu")))}
        with (Path(folder) / "log").open("w+") as log:
            process = links["gateway"].popen(
                [*command, str(path)], cwd=folder, env={**os.environ, **libraries}, stdout=log, stderr=log
            )
            try:
                wait_for_listener(process, Path(folder, "log"))
                yield System(name, links, VIP, (GATEWAY_MEMBER_SIDE,), (process.pid,), cases=EXCHANGES)
            finally:
                process.kill()
                process.wait()


def tool(path: str) -> str:
    """Where an unpacked program is; FileNotFoundError with the remedy."""
    found = TOOLS / path
    if not found.exists():
        raise FileNotFoundError(f"{found}: not there (make bench-gateway fetches it)")
    return str(found)


def wait_for_listener(process: subprocess.Popen[bytes], log: Path, deadline: float = 10.0) -> None:
    """Return when the process, or one in its namespace, listens at the port."""
    listening = f":{WEB_PORT:04X} 00000000:0000 0A"
    end = time.monotonic() + deadline
    while process.poll() is None and time.monotonic() < end:
        if listening in Path(f"/proc/{process.pid}/net/tcp").read_text():
            return
        time.sleep(0.002)
    raise RuntimeError(f"{process.args} does not listen:\n{log.read_text()}")
