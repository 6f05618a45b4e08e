"""What the daemon is built on fails under it: each failure is one of our errors, and then all is as wanted again."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ipbackend.errors import ServiceError
from tests.netns.clients import http_get
from tests.netns.faults import FILE
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import SHOP_VIP, Lab
from tests.netns.members import running
from tests.netns.test_daemon import ask, status, wait_until

pytestmark = pytest.mark.root

FAULTY = (
    sys.executable,
    "-c",
    "from tests.netns import faults; faults.begin(); from ipbackend.cli import main; main()",
)
FAULTS: dict[str, tuple[str, Any]] = {
    **{
        f"bpf-{errno.errorcode[code]}": ("bpf", code)
        for code in (errno.EPERM, errno.ENOMEM, errno.ENOENT, errno.EINVAL)
    },
    **{f"netlink-{errno.errorcode[code]}": ("netlink", code) for code in (errno.EPERM, errno.ENOBUFS, errno.ENODEV)},
    "netlink-timeout": ("netlink", "timeout"),
    "sqlite-locked": ("sqlite", ("OperationalError", "SQLITE_BUSY", "database is locked")),
    "sqlite-full": ("sqlite", ("OperationalError", "SQLITE_FULL", "database or disk is full")),
    "sqlite-readonly": ("sqlite", ("OperationalError", "SQLITE_READONLY", "attempt to write a readonly database")),
    "sqlite-corrupt": ("sqlite", ("DatabaseError", "SQLITE_CORRUPT", "database disk image is malformed")),
    "sqlite-nomem": ("sqlite", ("OperationalError", "SQLITE_NOMEM", "out of memory")),
}
SHORT = ("bpf-EPERM", "bpf-ENOMEM", "netlink-EPERM", "netlink-timeout", "sqlite-full", "sqlite-corrupt")
CHANGED = CONFIGURATION.replace("weight = 3", "weight = 4")
LOOKS = (
    "/ipbackend/status", "/elb/pools", "/ipbackend/members", "/ipbackend/connections", "/ipbackend/counters",
    "/ipbackend/audit", "/ipbackend/live", "/ipbackend/revisions", "/ipbackend/snat-addresses", "/ipbackend/drains",
    "/ipbackend/flows", "/ipbackend/export",
)  # fmt: skip
REMEDY = re.compile(r"\([^()]*(\([^()]*\)[^()]*)*\)$", re.MULTILINE)


@pytest.fixture(scope="module")
def place(own_run: None) -> Iterator[Lab]:
    """A lab of its own, with its members."""
    with Lab() as lab, running(lab.members()):
        yield lab


@pytest.fixture(scope="module")
def faulty(place: Lab) -> Iterator[Gateway]:
    """The gateway as lab.toml says, on what fails on order."""
    patch = pytest.MonkeyPatch()
    patch.setattr("tests.netns.gateway.COMMAND", FAULTY)
    try:
        with Gateway(place, name="faulty") as gateway:
            yield gateway
    finally:
        patch.undo()


def serves(lab: Lab) -> bool:
    """Whether new connections are answered."""
    return all(http_get(lab["client"], None, (SHOP_VIP, 80)).status == 200 for _ in range(10))


def refused(gateway: Gateway, method: str, path: str, body: Any = None) -> str:
    """Why, or nothing: it was answered."""
    try:
        ask(gateway, method, path, body)
    except ServiceError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", FAULTS if os.environ.get("FAULTS") == "all" else SHORT)
def test_whatever_it_is_built_on_fails(place: Lab, faulty: Gateway, name: str) -> None:
    """Who looks or changes is answered, or told where, what and the remedy; clients are served; then all is well."""
    what, how = FAULTS[name]
    order = faulty.run_directory / FILE
    assert CHANGED != CONFIGURATION
    pid, said = faulty.pid, len(faulty.log())
    order.write_text(json.dumps({"what": what, "how": how}))
    try:
        told = [refused(faulty, "GET", path) for path in LOOKS]
        told.append(refused(faulty, "POST", "/ipbackend/apply", {"apply": {"toml": CHANGED, "source": "lab.toml"}}))
        assert told[-1], "a change that could not be made was said to be made"
        assert serves(place)
        by_command = faulty.ask("status")
        wait_until(lambda: what != "netlink" or bool(status(faulty)["problem"]), 20)
    finally:
        order.unlink()
    for one in filter(None, told):
        assert "Internal server error" not in one, one
        assert "Traceback" not in one
        assert all(REMEDY.search(line) for line in one.splitlines()), one
    assert by_command.returncode in (0, 1)
    assert "Traceback" not in by_command.stderr
    assert faulty.process is not None
    assert faulty.process.poll() is None
    assert faulty.pid == pid

    wait_until(lambda: not status(faulty)["problem"], 60)
    faulty.apply(CHANGED)
    faulty.apply(CONFIGURATION)
    assert faulty.audit() == []
    assert "Traceback" not in faulty.log()[said:]


@pytest.mark.parametrize("name", ["bpf-EPERM", "netlink-EPERM", "sqlite-corrupt"])
def test_a_daemon_that_starts_on_it_says_why_in_a_line(place: Lab, faulty: Gateway, name: str) -> None:
    """Without its store or netlink it does not start, status 1; without bpf it starts, says so, and tries again."""
    what, how = FAULTS[name]
    faulty.stop()
    said = len(faulty.log())
    order = faulty.run_directory / FILE
    order.write_text(json.dumps({"what": what, "how": how}))
    try:
        if what != "sqlite":
            faulty.start(deadline=120)
            assert status(faulty)["problem"]
        else:
            with pytest.raises(RuntimeError):
                faulty.start()
            assert faulty.process is not None
            assert faulty.process.wait(10) == 1
            faulty.process = None
        assert serves(place)
    finally:
        order.unlink()
    lines = [line for line in faulty.log()[said:].splitlines() if line.startswith(("Error", "ERROR"))]
    assert lines
    assert all(REMEDY.search(line) for line in lines), lines
    assert "Traceback" not in faulty.log()[said:]
    if faulty.process is None:
        faulty.start(deadline=120)
    wait_until(lambda: not status(faulty)["problem"], 60)
