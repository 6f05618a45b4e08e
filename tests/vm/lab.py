"""The gateway as a machine, and a second one that is everything around it: client, members, routers, a real VPN."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from .conftest import SOURCE
from .images import Image
from .machine import Machine, Wire

CLIENT_SIDE, VPC_SIDE = "52:54:00:00:00:01", "52:54:00:00:00:02"
WORLD_CLIENT_SIDE, WORLD_VPC_SIDE = "52:54:00:01:00:01", "52:54:00:01:00:02"
VIP = "10.0.0.100"
SNATS = {"10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104"}
DEMO = {"member-1": 30, "member-2": 20, "member-peered": 20, "member-onprem": 10}  # of 80, by weight
FILES = "/mnt/files"
PROVISION = f"sh {SOURCE}/vagrant/provision.sh gateway {SOURCE}"
NETWORKD = """\
[Match]
MACAddress={mac}
[Network]
Address={address}/24
LinkLocalAddressing=no
"""


class World:
    """The machine that has the roles of Vagrant's lab but the gateway, as namespaces; its wires lead to a gateway."""

    def __init__(self, system: Image, folder: Path, files: Path) -> None:
        self._system, self._folder, self._files = system, folder, files
        ends = [self._wire(name, True, mac) for name, mac in (("clients", WORLD_CLIENT_SIDE), ("vpc", WORLD_VPC_SIDE))]
        self.machine = Machine(
            "world", folder, system.kernel, system.initrd, system.disk, (files,), tuple(ends), memory=1536
        )

    def __enter__(self) -> "World":
        self.machine.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.machine.end()

    def set_up(self) -> None:
        """Wait for it, and make each role what it is."""
        self.machine.wait()
        mount(self.machine)
        self.machine.run(f"sh {SOURCE}/tests/vm/world.sh {SOURCE} {WORLD_CLIENT_SIDE} {WORLD_VPC_SIDE}", 300)

    def gateway(self, name: str, driver: str = "virtio-net-pci") -> Machine:
        """A machine between clients and members, not started; its disk is its own, since it may be rebooted."""
        disk = self._folder / f"{name}.qcow2"
        base = ("-F", "qcow2", "-b", str(self._system.disk))
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(disk)], check=True)
        sides = (("clients", CLIENT_SIDE), ("vpc", VPC_SIDE))
        wires = tuple(self._wire(side, False, mac, driver) for side, mac in sides)
        system = self._system
        return Machine(name, self._folder, system.kernel, system.initrd, disk, (self._files,), wires, keep=True)

    def demo(self) -> dict[str, int]:
        """What Vagrant's demo counts: requests by member, 80 in all, from all SNAT addresses and no other."""
        output = self.machine.run("ip netns exec client demo 80", 300)
        assert set(re.findall(r"\d+ (\d+\.\d+\.\d+\.\d+)$", output, re.MULTILINE)) == SNATS, output
        return {name: int(count) for count, name in re.findall(r"(\d+) (member-\S+)", output)}

    @contextmanager
    def traffic(self) -> Iterator[dict[str, Any]]:
        """Connections that are held and others that are opened, from the client; afterwards, what it saw."""
        seen: dict[str, Any] = {}
        unit = f"--unit traffic -p NetworkNamespacePath=/run/netns/client --working-directory {SOURCE}"
        self.machine.run(f"rm -f /tmp/report; systemd-run -q {unit} python3 -m tests.vm.traffic {VIP} /tmp/report")
        try:
            self.machine.run("timeout 100 sh -c 'until test -e /tmp/report.begun; do sleep 0.2; done'")
            yield seen
        finally:
            seen.update(json.loads(self.machine.run("systemctl stop traffic && cat /tmp/report")))

    def _wire(self, name: str, listens: bool, mac: str, driver: str = "virtio-net-pci") -> Wire:
        return Wire(self._folder / f"{name}.wire", listens, mac, driver)


def mount(machine: Machine) -> None:
    """The disk with what a test brings, and the checkout on it at SOURCE."""
    machine.run(f"mkdir -p {FILES} {SOURCE} && mount -o ro /dev/vdb {FILES} && cp -r {FILES}/ipbackend/. {SOURCE}")


def address(machine: Machine) -> tuple[str, str]:
    """Give the gateway's interfaces their addresses, at this boot and each one after it; returns their names."""
    for name, mac, own in (("client", CLIENT_SIDE, "203.0.113.1"), ("vpc", VPC_SIDE, "10.0.0.1")):
        text = NETWORKD.format(mac=mac, address=own)
        machine.run(f"printf %s '{text}' > /etc/systemd/network/10-{name}.network")
    machine.run("systemctl enable --now systemd-networkd")
    client, member = (interface(machine, mac) for mac in (CLIENT_SIDE, VPC_SIDE))
    machine.run("timeout 60 sh -c 'until ip address | grep -q 10.0.0.1/24; do sleep 0.2; done'")
    return client, member


def interface(machine: Machine, mac: str) -> str:
    """The name of the interface with this MAC."""
    return machine.run(f'ip -o link | awk \'/{mac}/ {{ sub(":", "", $2); print $2 }}\'').strip()


def program(machine: Machine, name: str, kind: str = "xdp") -> str:
    """The number of the XDP program on an interface; `kind` is how the kernel calls the mode: xdp, or xdpgeneric."""
    shown = machine.run(f"ip -d link show {name}")
    found = re.search(r"prog/xdp id (\d+)", shown)
    assert found, shown
    assert re.search(rf" {kind} ", shown), shown
    return found[1]


class Steps:
    """Says what is done, and how long it took."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def done(self, what: str, shown: str = "") -> None:
        """One step, and what it printed."""
        now = time.monotonic()
        print(f"\n== {what} ({now - self._begun:.0f} s)")
        if shown.strip():
            print(shown.strip())
        self._begun = now
