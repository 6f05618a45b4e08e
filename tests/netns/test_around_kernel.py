"""What others do to the pins, programs and memory of a gateway under traffic: no connection is lost."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ipbackend.errors import ServiceError
from tests.netns.around import WEB, damage, status, wait_until
from tests.netns.clients import connect, http_get
from tests.netns.gateway import COMMAND, CONFIGURATION, Gateway
from tests.netns.lab import XDP_PASS, Lab, load_program

pytestmark = pytest.mark.root

FLAGS = {"native": 4, "generic": 2}  # XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE
HERE = Path(__file__).parent


# --- The socket and the pins.


def test_a_socket_that_is_taken_away(lab: Lab, gateway: Gateway) -> None:
    """Deleted, or something else in its place: made again; the commands find the daemon without a restart."""
    path = gateway.run_directory / "api.sock"
    with damage(lab, gateway) as seen:
        path.unlink()
        wait_until(lambda: f"{path}: the socket was gone: made again" in seen.log())
        assert path.is_socket()
        gateway.apply(CONFIGURATION)
        path.unlink()
        path.write_text("something else")
        wait_until(path.is_socket)
        path.unlink()
        path.mkdir()
        wait_until(lambda: f"{path}: the socket is gone, and cannot be made again: Is a directory" in seen.log())
        path.rmdir()
        wait_until(path.is_socket)
        assert path.stat().st_mode & 0o777 == 0o660
        seen.well()
        gateway.apply(CONFIGURATION)


def test_pins_that_are_deleted(lab: Lab, gateway: Gateway) -> None:
    """One; all with the layouts beside them; the whole file system: each is made again from what the daemon holds."""
    bpffs, layout = gateway.run_directory / "bpf", gateway.run_directory / "layout.json"
    with damage(lab, gateway) as seen:
        (bpffs / "conntrack").unlink()
        seen.drift(f"pins missing from {bpffs}: conntrack")
        kept = layout.read_text()
        for path in bpffs.rglob("*"):
            if path.is_file() and "." not in path.name:
                path.unlink()
        layout.unlink()
        seen.drift(f"{layout} missing")
        assert layout.read_text() == kept
        assert f"pins missing from {bpffs}: access, addresses, answers and " in seen.log()  # one line for all
        subprocess.run(["umount", "--lazy", bpffs], check=True)
        seen.drift(f"bpffs missing from {bpffs}")
        seen.well()
        gateway.stop()  # the next one takes over what was pinned anew
        gateway.start()
        assert "taken over" in seen.log()
        assert gateway.json("connection", "list") != []


def test_pins_that_cannot_be_made_again(lab: Lab, gateway: Gateway) -> None:
    """Something stands in the way: told, and traffic goes on; put right by itself when it is gone."""
    bpffs = gateway.run_directory / "bpf"
    with damage(lab, gateway) as seen:
        subprocess.run(["umount", "--lazy", bpffs], check=True)
        bpffs.rmdir()
        bpffs.touch()
        try:
            seen.told(f"{bpffs}: cannot be made: File exists (move away what is there)")
            shown = gateway.ask("status")
            assert "gateway      forwarding on eth0, eth1" in shown.stdout
            assert f"not as wanted: bpffs missing from {bpffs}" in shown.stdout
            seen.clients.wait_for(8)
            assert seen.log().count("cannot be made") == 1
        finally:
            bpffs.unlink()
        seen.drift(f"bpffs missing from {bpffs}")


def test_pins_that_are_gone_with_the_daemon(lab: Lab, gateway: Gateway) -> None:
    """Both at once, so that nobody can pin anything again: the next daemon finds all maps by the program attached."""
    with damage(lab, gateway) as seen:
        gateway.kill()
        subprocess.run(["umount", "--lazy", gateway.run_directory / "bpf"], check=True)
        (gateway.run_directory / "layout.json").unlink()
        seen.talk.wait()
        gateway.start()
        assert "the pins were gone: made again from what is attached" in seen.log()
        seen.well()
        assert gateway.audit() == []
    gateway.stop()
    subprocess.run(["umount", "--lazy", gateway.run_directory / "bpf"], check=True)
    assert "map conntrack removed" in gateway.command("unload")  # so does this
    gateway.start()


def test_what_another_daemon_holds_is_not_taken(lab: Lab, gateway: Gateway, tmp_path: Path) -> None:
    """The same interfaces under another run directory: refused, with whose they are."""
    store = tmp_path / "store.db"
    with closing(sqlite3.connect(gateway.store)) as kept, closing(sqlite3.connect(store)) as copy:
        kept.backup(copy)
    with damage(lab, gateway):
        environment = {**os.environ, "IPBACKEND_RUN_DIR": str(tmp_path / "run")}
        command = [*COMMAND, "run", "--store", str(store)]
        second = lab["gateway"].popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            for line in second.stderr:
                if "not everything is as wanted" in line:
                    assert f"process {gateway.pid} holds it (stop that one, or use its run directory)" in line
                    break
            else:
                pytest.fail("it said nothing")
        finally:
            second.kill()
            second.wait()
            second.stderr.close()
        assert http_get(lab["client"], None, WEB).status == 200
    subprocess.run(["umount", "--lazy", tmp_path / "run" / "bpf"], check=False)


# --- Programs.


@contextmanager
def foreign(lab: Lab, interface: str, mode: str) -> Iterator[None]:
    """Somebody else's program in place of whatever is there."""
    program = load_program(XDP_PASS)
    try:
        with lab["gateway"].netlink() as netlink:
            index = netlink.link_lookup(ifname=interface)[0]
            netlink.link("set", index=index, xdp_fd=-1)
            attributes = [("IFLA_XDP_FD", program), ("IFLA_XDP_FLAGS", FLAGS[mode])]
            netlink.link("set", index=index, xdp={"attrs": attributes})
            try:
                yield
            finally:
                off = [("IFLA_XDP_FD", -1), ("IFLA_XDP_FLAGS", FLAGS[mode])]
                netlink.link("set", index=index, xdp={"attrs": off})
    finally:
        os.close(program)


def test_xdp_and_its_guard_that_are_taken_away(lab: Lab, gateway: Gateway) -> None:
    """The kernel, which knows none of these connections, is not given the chance to reset them."""
    with damage(lab, gateway) as seen:
        for interface in ("eth0", "eth1"):
            lab["gateway"].run(["ip", "link", "set", interface, "xdp", "off"])
            seen.drift(f"XDP detached from {interface}")
        lab["gateway"].run(["tc", "qdisc", "del", "dev", "eth0", "clsact"])
        seen.drift("guard missing from eth0")


@pytest.mark.parametrize(("interface", "mode"), [("eth0", "native"), ("eth1", "generic")])
def test_another_program_in_place_of_ours(lab: Lab, gateway: Gateway, interface: str, mode: str) -> None:
    """It is told and left alone as long as it stays; connections wait, and new ones get no answer from the kernel."""
    with damage(lab, gateway) as seen:
        with foreign(lab, interface, mode):
            seen.told(f"XDP on {interface}: somebody else's program", f"mode {mode} (stop what put it there")
            before = seen.log().count("somebody else's")
            with pytest.raises(TimeoutError):
                connect(lab["client"], None, WEB, timeout=2)
            assert seen.log().count("somebody else's") == before  # said once
            with lab["gateway"].netlink() as netlink:
                (link,) = netlink.get_links(ifname=interface)
                number = link.get_attr("IFLA_XDP").get_attr("IFLA_XDP_PROG_ID")
            assert f"somebody else's program {number} is" in status(gateway)["problem"]
            gateway.apply(CONFIGURATION.replace("weight = 3", "weight = 4"))  # what has nothing to do with it goes on
        seen.drift(f"XDP detached from {interface}")


def test_another_program_that_is_there_first(lab: Lab, gateway: Gateway) -> None:
    gateway.stop()
    gateway.command("unload")
    with foreign(lab, "eth1", "native"):
        gateway.start()
        problem = status(gateway)["problem"]
        assert "XDP on eth1: somebody else's program" in problem
        assert "or leave this interface alone" in problem
    wait_until(lambda: status(gateway)["forwarding"] and not status(gateway)["problem"], 120)
    assert http_get(lab["client"], None, WEB).status == 200


# --- Memory.


@pytest.fixture
def refused(lab: Lab, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The gateway started anew with nothing loaded; the file says which map the kernel refuses it."""
    file = Path("/run/refused")
    file.write_text("0")
    gateway.stop()
    gateway.command("unload")
    gateway.store.unlink()
    launcher = (sys.executable, str(HERE / "refusing.py"), str(file))
    monkeypatch.setattr("tests.netns.gateway.COMMAND", (*launcher, *COMMAND))
    gateway.start()
    monkeypatch.undo()
    yield file
    gateway.stop()
    gateway.start()


def pinned(gateway: Gateway) -> list[str]:
    """What is pinned of ours."""
    return [path.name for path in (gateway.run_directory / "bpf").rglob("*") if path.is_file() and "." not in path.name]


def test_memory_that_is_refused(lab: Lab, gateway: Gateway, refused: Path) -> None:
    """At the first map, in the middle, at the last: nothing half made remains. Under traffic: the change is refused."""
    for number in (1, 14, 29):
        refused.write_text(str(number))
        with pytest.raises(ServiceError, match=r"map \w+: the kernel does not make it: Cannot allocate memory \(lower"):
            gateway.apply(CONFIGURATION)
        assert refused.read_text() == "0"
        assert pinned(gateway) == []
        assert status(gateway)["forwarding"] is False
    gateway.apply(CONFIGURATION)
    with damage(lab, gateway) as seen:
        before = status(gateway)["revision"]
        refused.write_text("1")
        with pytest.raises(ServiceError, match="map pools: the kernel does not make it: Cannot allocate memory"):
            gateway.apply(CONFIGURATION.replace("weight = 3", "weight = 9"))
        assert "could not be applied and is taken back: map pools" in seen.log()
        assert status(gateway)["revision"] == before
        assert gateway.json("member", "list", "--pool", "web")[0]["weight"] == 3
        gateway.apply(CONFIGURATION.replace("weight = 3", "weight = 9"))
