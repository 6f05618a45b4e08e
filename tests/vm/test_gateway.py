"""A gateway that is a machine: installed, upgraded under traffic, hung, killed, rebooted, restored, removed."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import SOURCE
from .images import BUILD, Image, payload
from .lab import DEMO, FILES, PROVISION, VIP, Steps, World, address, mount, program
from .machine import Machine
from .packages import checkout, packages, wheels

OFFLINE = f"PIP_NO_INDEX=1 PIP_FIND_LINKS={FILES}/wheels"
STORE = "/var/lib/ipbackend/store.db"
INSTALLED = (
    "/opt/ipbackend",
    "/usr/bin/ipbackend",
    "/usr/lib/systemd/system/ipbackend.service",
    "/usr/lib/systemd/system/run-ipbackend-bpf.mount",
    "/usr/lib/sysusers.d/ipbackend.conf",
    "/usr/share/man/man1/ipbackend.1.gz",
    "/usr/share/bash-completion/completions/ipbackend",
)
FOREIGN_USER, OUR_USER = "stranger", "colleague"


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    """Disks, sockets and console logs."""
    with tempfile.TemporaryDirectory(prefix="ipbackend-vm-", dir=BUILD) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def brought(kernel: str, work: Path) -> Path:
    """A disk with the checkout, our packages, and the wheels that an installation without a way to PyPI takes."""
    staged = work / "files"
    checkout(staged / "ipbackend")
    (staged / "wheels").mkdir()
    (staged / "packages").mkdir()
    for place, files in (("wheels", wheels(kernel).iterdir()), ("packages", packages(kernel, work / "source"))):
        for one in files:
            (staged / place / one.name).hardlink_to(one)
    return payload(f"gateway-{kernel}", staged)


@pytest.fixture(scope="module")
def world(system: Image, brought: Path, work: Path) -> Iterator[World]:
    with World(system, work, brought) as world:
        world.set_up()
        yield world


def test_a_gateway_lives_from_its_installation_to_its_removal(world: World) -> None:
    steps = Steps()
    with world.gateway("gateway") as gateway:
        gateway.wait()
        mount(gateway)
        sides = address(gateway)
        steps.done("a machine", gateway.run("grep PRETTY /etc/os-release; uname -r; dpkg-query -W python3-bpfcc"))

        from_a_checkout(gateway, world, steps)
        by_the_package(gateway, world, sides, steps)
        what_comes_with_it(gateway, steps)
        a_device_without_ethernet(gateway, steps)
        upgraded_under_traffic(gateway, world, sides, steps)
        hung_and_killed(gateway, world, steps)
        rebooted(gateway, world, sides, steps)
        destroyed_and_restored(gateway, world, steps)
        removed(gateway, steps)


def from_a_checkout(gateway: Machine, world: World, steps: Steps) -> None:
    """`make install` without a way to PyPI, by the script of the Vagrant lab; then `make uninstall`."""
    shown = gateway.run(f"{OFFLINE} {PROVISION} 2>&1", 600)
    steps.done("make install, and the lab's file applied", shown)
    assert world.demo() == DEMO
    gateway.run(f"make -C {SOURCE} uninstall", 120)
    nothing_left(gateway)
    gateway.run(f"test -s {STORE} && rm -r /var/lib/ipbackend")
    steps.done("it served; make uninstall left nothing but the store")


def by_the_package(gateway: Machine, world: World, sides: tuple[str, str], steps: Steps) -> None:
    """Installed, told what is wanted, and it serves: by native XDP."""
    steps.done("dpkg -i", gateway.run(f"dpkg -i {FILES}/packages/*0.1.0~*.deb", 700))
    scripts = gateway.run("cat /var/lib/dpkg/info/ipbackend.p*")
    assert "deb-systemd" not in scripts  # debhelper's own would restart the mount that the pins are in
    gateway.run("test -d /etc/ipbackend && ipbackend check /etc/ipbackend/gateway.toml.example")
    steps.done("applied", gateway.run(PROVISION, 700))
    for side in sides:
        program(gateway, side)
    assert world.demo() == DEMO
    steps.done("it serves", gateway.run("ipbackend status && ipbackend audit && ipbackend doctor"))


def what_comes_with_it(gateway: Machine, steps: Steps) -> None:
    """The group, the journal, man pages, completion, and how confined it is."""
    gateway.run(f"useradd {FOREIGN_USER} && useradd -G ipbackend {OUR_USER}")
    asked = "curl -sS --unix-socket /run/ipbackend/api.sock http://gateway/v3/0/elb/loadbalancers"
    assert VIP in gateway.run(f"runuser -u {OUR_USER} -- {asked}")
    status, said = gateway.attempt(f"runuser -u {FOREIGN_USER} -- {asked}")
    assert status != 0
    assert VIP not in said
    assert gateway.attempt(f"runuser -u {FOREIGN_USER} -- cat {STORE}")[0] != 0

    assert gateway.run("journalctl -q -o cat -u ipbackend | grep -c .") != "0\n"
    assert re.search(r"INFO .*attached|INFO", gateway.run("journalctl -q -o cat -u ipbackend"))
    assert "ipbackend-member-drain" in gateway.run("man -w ipbackend-member-drain")
    assert "DESCRIPTION" in gateway.run("man ipbackend-apply | col -b")
    completed = "COMP_WORDS=(ipbackend li) COMP_CWORD=1; _ipbackend_completion ipbackend; echo ${COMPREPLY[@]}"
    load = ". /usr/share/bash-completion/bash_completion; _completion_loader ipbackend"
    assert gateway.run(f"bash -c '{load}; {completed}'").split() == ["listener"]
    exposure = gateway.run("systemd-analyze security --no-pager ipbackend | tail -1")
    steps.done("group, journal, man pages, completion", exposure)
    assert float(re.findall(r"(\d+\.\d+) ", exposure)[0]) < 3.0


def a_device_without_ethernet(gateway: Machine, steps: Steps) -> None:
    """A VPN that ends on the gateway itself is no way for XDP: both who look say so, before a packet is lost."""
    gateway.run("ip link add wg0 type wireguard && ip link set wg0 up && ip route replace 192.168.50.8/29 dev wg0")
    status, doctor = gateway.attempt("ipbackend doctor")
    assert status == 1
    assert re.search(r"FAIL +route +192\.168\.50\.8/29 leads to wg0, which is no Ethernet", doctor), doctor
    status, checked = gateway.attempt("ipbackend network check on-premises")
    assert status == 1
    assert re.search(r"FAIL +route +.*wg0.*no Ethernet", checked), checked
    gateway.run("ip link del wg0")
    steps.done("a route to a VPN's own device is told", checked)
    checked = gateway.attempt("ipbackend network check on-premises")[1]
    assert re.search(r"ok +route +to 192\.168\.50\.10 via 10\.0\.0\.3", checked), checked
    assert "1420, not 1500" in checked  # the tunnel behind the router, to the byte
    gateway.run("ipbackend doctor")


def upgraded_under_traffic(gateway: Machine, world: World, sides: tuple[str, str], steps: Steps) -> None:
    """While connections are held and others are opened: none of them notices."""
    with world.traffic() as seen:
        before = program(gateway, sides[0])
        gateway.run(f"dpkg -i {FILES}/packages/*0.1.1~*.deb", 700)
        gateway.run("timeout 200 sh -c 'until ipbackend status; do sleep 1; done'", 250)
        assert program(gateway, sides[0]) != before, "the program of the next version was not put in place"
    steps.done("upgraded under traffic", str(seen))
    assert not seen["failures"]
    assert seen["requests"] > 100
    assert "0.1.1" in gateway.run("dpkg-query -W ipbackend")


def hung_and_killed(gateway: Machine, world: World, steps: Steps) -> None:
    """It comes back by itself, and traffic goes on meanwhile."""
    gateway.run("mkdir -p /run/systemd/system/ipbackend.service.d")
    gateway.run("printf '[Service]\\nWatchdogSec=20\\n' > /run/systemd/system/ipbackend.service.d/soon.conf")
    gateway.run("systemctl daemon-reload && systemctl restart ipbackend", 200)
    with world.traffic() as seen:
        for end in ("STOP", "KILL"):
            ended = gateway.run("systemctl show -p MainPID --value ipbackend").strip()
            gateway.run(f"systemctl kill -s {end} ipbackend")
            gateway.run(f"timeout 200 sh -c 'while [ -e /proc/{ended} ]; do sleep 1; done'", 250)
            gateway.run("timeout 200 sh -c 'until ipbackend status; do sleep 1; done'", 250)
    steps.done("hung until the watchdog ended it, and killed, under traffic", str(seen))
    assert not seen["failures"]
    assert "Watchdog timeout" in gateway.run("journalctl -q -o cat -u ipbackend")
    assert world.demo() == DEMO


def rebooted(gateway: Machine, world: World, sides: tuple[str, str], steps: Steps) -> None:
    """It serves again without being told."""
    gateway.reboot()
    gateway.run("timeout 580 sh -c 'until systemctl is-active ipbackend; do sleep 1; done'", 600)
    for side in sides:
        program(gateway, side)
    assert world.demo() == DEMO
    steps.done("rebooted, and it serves", gateway.run("systemd-analyze; ipbackend status"))


def destroyed_and_restored(gateway: Machine, world: World, steps: Steps) -> None:
    """As docs/operations.md says: a copy of the store, or an exported file, brings the gateway back."""
    gateway.run(f"sqlite3 {STORE} '.backup /root/gateway.db' && ipbackend export > /root/gateway.toml")
    wanted = gateway.run("ipbackend export")
    for restore in (
        f"systemctl stop ipbackend && cp /root/gateway.db {STORE} && systemctl start ipbackend",
        "ipbackend apply -f /root/gateway.toml",
    ):
        gateway.run("systemctl stop ipbackend && ipbackend unload && rm -r /var/lib/ipbackend/*", 200)
        gateway.run("systemctl start ipbackend", 200)
        assert VIP not in gateway.run("ipbackend export; ip address")
        gateway.run(restore, 200)
        assert gateway.run("ipbackend export") == wanted
        assert world.demo() == DEMO
    steps.done("destroyed, and restored from a copy of the store and from an exported file")


def removed(gateway: Machine, steps: Steps) -> None:
    """Nothing of it is left but what is wanted; purged, that goes as well."""
    gateway.run("dpkg -r ipbackend", 300)
    nothing_left(gateway)
    gateway.run(f"test -s {STORE}")
    gateway.run("dpkg -P ipbackend && test ! -e /var/lib/ipbackend")
    steps.done("removed and purged", gateway.run("systemctl --failed --no-legend"))


def nothing_left(gateway: Machine) -> None:
    """Of the program, the data plane and what is installed."""
    assert "xdp" not in gateway.run("ip -d link show")
    assert VIP not in gateway.run("ip address show")
    assert "172.16.10" not in gateway.run("ip route show")
    assert gateway.attempt("grep ipbackend /proc/mounts")[0] == 1
    left = gateway.run(f"ls -d {' '.join(INSTALLED)} /run/ipbackend 2>/dev/null || true")
    assert left == ""
    assert gateway.attempt("systemctl is-active ipbackend")[0] != 0


def test_a_card_without_native_xdp_is_served_in_generic_mode(world: World) -> None:
    """QEMU's e1000: the doctor tells, and clients are served all the same."""
    steps = Steps()
    with world.gateway("generic", "e1000") as gateway:
        gateway.wait()
        mount(gateway)
        sides = address(gateway)
        gateway.run(f"dpkg -i {FILES}/packages/*0.1.0~*.deb", 700)
        gateway.run(PROVISION, 700)
        for side in sides:
            program(gateway, side, "xdpgeneric")
        doctor = gateway.run("ipbackend doctor")
        assert "e1000 has no native XDP" in doctor
        assert world.demo() == DEMO
        steps.done("e1000", doctor)
