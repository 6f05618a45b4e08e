"""Who may read, write and ask on the gateway's machine: what the daemon leaves there, started without any umask."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ipbackend.client import PROJECT
from ipbackend.datapath.maps import Maps
from tests.netns.clients import http_get
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import SHOP_VIP, Lab
from tests.netns.test_daemon import ask, wait_until
from tests.netns.test_faults import LOOKS

pytestmark = pytest.mark.root

NOBODY = 65534
PATIENCE = 120.0  # seconds for a start, on a busy machine


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def careless(lab: Lab, gateway: Gateway) -> Gateway:
    """Started anew with a umask of 0, with a lock that is open to all, to make a flow log."""
    gateway.stop()
    (gateway.run_directory / "lock").chmod(0o666)
    before = os.umask(0)
    try:
        gateway.start(deadline=PATIENCE)
    finally:
        os.umask(before)
    gateway.apply(CONFIGURATION.replace("[gateway]", '[gateway]\nflow_log = "store"'))
    assert http_get(lab["client"], None, (SHOP_VIP, 80)).status == 200  # a connection for the flow log
    wait_until(lambda: any(gateway.store.parent.rglob("flows-*")), PATIENCE)
    return gateway


def test_nothing_is_open_to_others(careless: Gateway) -> None:
    """Files 0600, folders 0700, the socket 0660; what holds the pins is closed by its mount."""
    run = careless.run_directory
    assert {name: mode(run / name) & 0o777 for name in ("lock", "api.sock", "bpf")} == {
        "lock": 0o600,
        "api.sock": 0o660,
        "bpf": 0o700,
    }
    for path in careless.store.parent.rglob("*"):
        assert mode(path) & 0o077 == 0, path


REACH = """
import fcntl, os, socket, sys
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
run, store = sys.argv[1:]
def tried(what):
    try:
        what()
    except PermissionError:
        return
    print("reached", what)
for flags in (os.O_RDONLY, os.O_WRONLY):
    for path in (run + "/lock", store, run + "/bpf/gateway", run + "/bpf/programs/ipbackend"):
        tried(lambda: os.open(path, flags))
tried(lambda: os.listdir(run + "/bpf"))
tried(lambda: socket.socket(socket.AF_UNIX).connect(run + "/api.sock"))
tried(lambda: os.symlink("/etc/passwd", run + "/layout.json.tmp"))
tried(lambda: os.unlink(run + "/api.sock"))
"""


def test_another_user_reaches_nothing(careless: Gateway) -> None:
    """Not even the lock, by which a daemon could be kept from starting."""
    arguments = (str(careless.run_directory), str(careless.store))
    done = subprocess.run(
        [sys.executable, "-c", REACH.format(nobody=NOBODY), *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


def test_a_link_in_place_of_the_lock_is_not_followed(gateway: Gateway) -> None:
    gateway.stop()
    lock, elsewhere = gateway.run_directory / "lock", gateway.run_directory / "elsewhere"
    lock.unlink()
    elsewhere.write_text("precious")
    lock.symlink_to(elsewhere)
    try:
        with pytest.raises(RuntimeError, match=r"Error: .*lock: Too many levels of symbolic links \("):
            gateway.start()
        assert elsewhere.read_text() == "precious"
    finally:
        lock.unlink()
        elsewhere.unlink()
        gateway.process = None
    gateway.start(deadline=PATIENCE)


def test_the_secret_is_told_nowhere(gateway: Gateway) -> None:
    """The key of the flow index, by which a client could aim at a bucket: in no answer, metric, log line or dump."""
    gateway.apply(CONFIGURATION.replace("[gateway]", '[gateway]\nflow_log = "store"'))
    with Maps(gateway.run_directory) as maps:
        words = list(maps["gateway"].memory()[0].hash_key)
    assert all(words)
    told = [str(ask(gateway, "GET", path)) for path in (*LOOKS, "/ipbackend/gateway")]
    told += [gateway.command("map", "dump", "gateway", "--output", output) for output in ("json", "table")]
    told += [gateway.command("export"), gateway.command("history"), gateway.log()]
    curl = ("curl", "-s", "--unix-socket", str(gateway.run_directory / "api.sock"), "http://gateway")
    for path in ("/metrics", "/openapi.json", f"/v3/{PROJECT}/ipbackend/export"):
        told.append(subprocess.run((*curl[:-1], curl[-1] + path), capture_output=True, text=True, check=True).stdout)
    told.append(gateway.store.read_bytes().decode("latin-1"))
    for text in told:
        for word in words:
            assert str(word) not in text
            assert f"{word:x}" not in text.lower()
