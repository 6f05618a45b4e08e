"""A gateway that is a machine: installed from the package, upgraded under traffic, rebooted, removed.

A second machine is everything around it: the client, the members and the routers, as namespaces made what they
are by the same script as in Vagrant, the on-premises site behind a real VPN.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import SOURCE
from .images import REPOSITORY, Image, payload
from .machine import Machine, Wire

VIP = "10.0.0.100"
SNATS = {"10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104"}
CLIENT_SIDE, VPC_SIDE = "52:54:00:00:00:01", "52:54:00:00:00:02"
WORLD_CLIENT_SIDE, WORLD_VPC_SIDE = "52:54:00:01:00:01", "52:54:00:01:00:02"
DEMO = {"member-1": 30, "member-2": 20, "member-peered": 20, "member-onprem": 10}  # of 80, by weight
NETWORKD = """\
[Match]
MACAddress={mac}
[Network]
Address={address}/24
LinkLocalAddressing=no
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two versions: the second one's program is another."""
    made = []
    for version, change in (("0.1.0", None), ("0.1.1", ("#define DRAWS 16", "#define DRAWS 17"))):
        source = tmp_path_factory.mktemp("source") / "ipbackend"
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
        for name in filter(None, listed.decode().split("\0")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, source / name)
        if change:
            header = source / "bpf/schedule.h"
            assert change[0] in header.read_text()
            header.write_text(header.read_text().replace(*change))
        environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
        subprocess.run(["make", "deb", f"VERSION={version}"], cwd=source, env=environment, check=True)
        made += (source / "build/deb").glob("*.deb")
    return made


@pytest.fixture
def wires(folder: Path) -> list[Wire]:
    """The gateway's ends: the client side and the member side."""
    sides = (("clients", CLIENT_SIDE), ("vpc", VPC_SIDE))
    return [Wire(folder / f"{name}.wire", False, mac) for name, mac in sides]


@pytest.fixture
def world(system: Image, files: Path, folder: Path, wires: list[Wire]) -> Iterator[Machine]:
    """Everything around the gateway. It listens on the wires, so it is the first to start."""
    ends = tuple(Wire(wire.path, True, wire.mac.replace("52:54:00:00", "52:54:00:01")) for wire in wires)
    with Machine("world", folder, system.kernel, system.initrd, system.disk, (files,), ends, memory=1536) as machine:
        machine.wait()
        yield machine


@pytest.fixture
def gateway(system: Image, folder: Path, packages: list[Path], wires: list[Wire], world: Machine) -> Iterator[Machine]:
    """The machine that becomes a gateway; its disk is its own, since it is rebooted."""
    staged = folder / "packages"
    staged.mkdir()
    for one in packages:
        shutil.copy(one, staged)
    shutil.copy(REPOSITORY / "tests/netns/lab.toml", staged)
    disk = folder / "gateway.qcow2"
    base = ("-F", "qcow2", "-b", str(system.disk))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(disk)], check=True)
    given = (payload("packages", staged),)
    with Machine("gateway", folder, system.kernel, system.initrd, disk, given, tuple(wires), keep=True) as machine:
        machine.wait()
        for name, mac, address in (("client", CLIENT_SIDE, "203.0.113.1"), ("vpc", VPC_SIDE, "10.0.0.1")):
            text = NETWORKD.format(mac=mac, address=address)
            machine.run(f"printf %s '{text}' > /etc/systemd/network/10-{name}.network")
        machine.run("systemctl enable --now systemd-networkd")
        yield machine


def test_a_package_makes_a_gateway_that_is_upgraded_rebooted_and_removed(world: Machine, gateway: Machine) -> None:
    world.run(f"mkdir -p /mnt/files {SOURCE} && mount -o ro /dev/vdb /mnt/files")
    world.run(f"cp -r /mnt/files/ipbackend/. {SOURCE}")
    world.run(f"sh {SOURCE}/tests/vm/world.sh {SOURCE} {WORLD_CLIENT_SIDE} {WORLD_VPC_SIDE}", timeout=300)
    gateway.run("mkdir -p /mnt/packages && mount -o ro /dev/vdb /mnt/packages")
    print(gateway.run("uname -r"))

    # Installed, told what is wanted, and it serves: by native XDP.
    gateway.run("dpkg -i /mnt/packages/*0.1.0~*.deb", timeout=300)
    client, member = (interface(gateway, mac) for mac in (CLIENT_SIDE, VPC_SIDE))
    wanted = f'sed \'s/"eth0", "eth1"/"{client}", "{member}"/\' /mnt/packages/lab.toml > /etc/ipbackend/gateway.toml'
    gateway.run(wanted)
    print(gateway.run("ipbackend apply -f /etc/ipbackend/gateway.toml", timeout=300))
    print(gateway.run("ipbackend status; systemd-analyze security ipbackend | tail -1; ipbackend audit"))
    for name in (client, member):
        assert re.search(r"prog/xdp ", gateway.run(f"ip -d link show {name}"))
        assert "xdpgeneric" not in gateway.run(f"ip -d link show {name}")
    assert demo(world) == DEMO
    assert gateway.run("man -w ipbackend 2>/dev/null; ls /usr/share/man/man1/ipbackend-apply.1.gz")

    # Upgraded while connections are held and others are opened: none of them notices.
    start_traffic(world)
    before = program_of(gateway, client)
    gateway.run("dpkg -i /mnt/packages/*0.1.1~*.deb", timeout=400)
    assert program_of(gateway, client) != before, "the program of the next version was not put in place"
    seen = end_traffic(world)
    print("upgrade under traffic:", seen)
    assert not seen["failures"]
    assert seen["requests"] > 100

    # Hung or killed, it comes back by itself, and traffic goes on meanwhile.
    gateway.run("mkdir -p /run/systemd/system/ipbackend.service.d")
    gateway.run("printf '[Service]\\nWatchdogSec=20\\n' > /run/systemd/system/ipbackend.service.d/soon.conf")
    gateway.run("systemctl daemon-reload && systemctl restart ipbackend", 200)
    for end in ("STOP", "KILL"):
        ended = gateway.run("systemctl show -p MainPID --value ipbackend").strip()
        gateway.run(f"systemctl kill -s {end} ipbackend")
        assert demo(world) == DEMO
        gateway.run(f"timeout 200 sh -c 'while [ -e /proc/{ended} ]; do sleep 1; done'", 250)
        gateway.run("timeout 200 sh -c 'until ipbackend status; do sleep 1; done'", 250)
    assert demo(world) == DEMO

    # Rebooted, it serves again without being told.
    gateway.reboot()
    gateway.run("timeout 280 sh -c 'until systemctl is-active ipbackend; do sleep 1; done'", 300)
    assert demo(world) == DEMO

    # Removed, nothing of it is left, but what is wanted is; purged, that goes as well.
    gateway.run("dpkg -r ipbackend", timeout=300)
    assert "xdp" not in gateway.run("ip -d link show")
    assert VIP not in gateway.run("ip address show")
    assert "172.16.10" not in gateway.run("ip route show")
    assert gateway.attempt("grep ipbackend /proc/mounts")[0] == 1
    assert gateway.attempt("command -v ipbackend; ls /opt/ipbackend /usr/lib/systemd/system/ipbackend.service")[0] != 0
    gateway.run("test -s /var/lib/ipbackend/store.db")
    gateway.run("dpkg -P ipbackend; test ! -e /var/lib/ipbackend && test ! -e /run/ipbackend")


def interface(machine: Machine, mac: str) -> str:
    """The name of the interface with this MAC."""
    return machine.run(f'ip -o link | awk \'/{mac}/ {{ sub(":", "", $2); print $2 }}\'').strip()


def program_of(machine: Machine, name: str) -> str:
    """The number of the XDP program on an interface."""
    found = re.search(r"prog/xdp id (\d+)", machine.run(f"ip -d link show {name}"))
    assert found
    return found[1]


def demo(world: Machine) -> dict[str, int]:
    """What Vagrant's demo counts: requests by member."""
    output = world.run("ip netns exec client demo 80", timeout=300)
    assert set(re.findall(r"\d+ (10\.\d+\.\d+\.\d+)$", output, re.MULTILINE)) == SNATS, output
    return {name: int(count) for count, name in re.findall(r"(\d+) (member-\S+)", output)}


def start_traffic(world: Machine) -> None:
    """In the client's namespace, until `end_traffic`."""
    command = f"systemd-run -q --unit traffic -p NetworkNamespacePath=/run/netns/client --working-directory {SOURCE}"
    world.run(f"{command} python3 -m tests.vm.traffic {VIP} /tmp/report")
    world.run("sleep 5")


def end_traffic(world: Machine) -> dict[str, Any]:
    """What it saw."""
    seen: dict[str, Any] = json.loads(world.run("systemctl stop traffic && cat /tmp/report"))
    return seen
