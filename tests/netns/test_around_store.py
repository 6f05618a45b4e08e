"""What becomes of the disk, the store and the clock of a gateway under traffic: no connection is lost."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ipbackend.errors import ServiceError
from tests.netns.around import damage, wait_until
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import Lab

pytestmark = pytest.mark.root

LOGGED = CONFIGURATION.replace("[gateway]\n", '[gateway]\nflow_log = "store"\n', 1)
HOUR, YEAR = 3600, 365 * 86_400


def ask(gateway: Gateway, method: str, path: str, body: Any = None) -> Any:
    with gateway.client() as client:
        return client.request(method, path, body)


def flow_log(gateway: Gateway) -> Any:
    return ask(gateway, "GET", "/ipbackend/flow-log")["flow_log"]


@contextmanager
def store_on_a_small_disk(gateway: Gateway) -> Iterator[Path]:
    small, kept = Path("/run/full"), gateway.store
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", small], check=True)
    gateway.stop()
    gateway.store = small / "store.db"
    gateway.start()
    try:
        yield small
    finally:
        gateway.store = kept
        gateway.stop()
        subprocess.run(["umount", small], check=True)
        small.rmdir()
        gateway.start()


def test_a_full_disk(lab: Lab, gateway: Gateway) -> None:
    """Changes are refused, and the flow log says that it waits; both go on by themselves when there is room."""
    with damage(lab, gateway) as seen, store_on_a_small_disk(gateway) as disk:
        gateway.apply(LOGGED)
        wait_until(lambda: flow_log(gateway)["written"] > 0)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
        (row,) = ask(gateway, "GET", "/elb/loadbalancers?name=shop")["loadbalancers"]
        at = f"/elb/loadbalancers/{row['id']}"

        def describe() -> None:
            for number in range(1000):  # there may be room in the store's own pages
                row.update(ask(gateway, "GET", at)["loadbalancer"])
                ask(gateway, "PUT", at, {"loadbalancer": {"description": f"{number} " + "x" * 200}})

        with pytest.raises(ServiceError, match=r"\(make room on that file system; nothing was changed\)"):
            describe()
        assert ask(gateway, "GET", at)["loadbalancer"]["description"] == row["description"]
        seen.told("/run/full/flows: cannot write to it", "is the disk full")
        seen.talk.wait()
        filler.unlink()
        seen.well()
        assert "flow log: events are kept again" in seen.log()
        ask(gateway, "PUT", at, {"loadbalancer": {"description": "there is room again"}})
        wait_until(lambda: flow_log(gateway)["lost"] == 0)
        gateway.apply(CONFIGURATION)


def refused_to_start(gateway: Gateway, store: Path) -> str:
    done = gateway.ask("run", "--store", str(store))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def change_often(gateway: Gateway) -> None:
    for weight in range(5, 50):
        gateway.apply(CONFIGURATION.replace("weight = 3", f"weight = {weight}"))


def test_a_store_that_is_newer_or_damaged(lab: Lab, gateway: Gateway) -> None:
    """Found before the start, nothing is touched; found while it runs, what is in force can still be exported."""
    newer, damaged = gateway.run_directory / "newer.db", gateway.run_directory / "damaged.db"
    with damage(lab, gateway) as seen:
        gateway.stop()
        newer.write_bytes(gateway.store.read_bytes())
        with sqlite3.connect(newer) as file:
            file.execute("PRAGMA user_version = 99")
        file.close()
        damaged.write_text("nonsense " * 1000)
        assert "written by a newer ipbackend, schema 99" in refused_to_start(gateway, newer)
        assert "file is not a database (put a copy of it back" in refused_to_start(gateway, damaged)
        seen.talk.wait()
        gateway.start()

        for path in gateway.store.parent.glob("store.db*"):  # all bytes of it, while the daemon has it open
            with path.open("r+b") as file:
                file.write(b"\xa5" * path.stat().st_size)
        with pytest.raises(ServiceError, match="put a copy of it back; the data plane goes on as it is"):
            change_often(gateway)
        exported = gateway.command("export")
        seen.talk.wait()
        gateway.stop()
        assert "put a copy of it back" in refused_to_start(gateway, gateway.store)
        for path in gateway.store.parent.glob("store.db*"):
            path.unlink()
        gateway.start()  # it waits, and what is loaded forwards on
        seen.talk.wait()
        gateway.apply(exported)
        assert "taken over" in seen.log()


@pytest.fixture
def clock(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The daemon's wall clock is ahead by so many seconds as the file says."""
    file = Path("/run/clock")
    file.write_text("0")
    gateway.stop()
    launcher = (sys.executable, str(Path(__file__).parent / "skewed.py"), str(file))
    monkeypatch.setattr("tests.netns.gateway.COMMAND", launcher)
    gateway.start()
    yield file
    gateway.stop()
    monkeypatch.undo()
    gateway.start()


def test_a_clock_that_jumps(lab: Lab, gateway: Gateway, clock: Path) -> None:
    """What runs goes by clocks that no one sets; a drain keeps its time, and the flow log what it has."""
    draining = LOGGED.replace("[pools.web]\n", "[pools.web]\nconnection_drain = 600\n")
    gateway.apply(draining)
    with damage(lab, gateway) as seen:
        gateway.apply(draining.replace("weight = 3", "weight = 0"))
        for weight, jump in enumerate((HOUR, -HOUR, YEAR, -YEAR), start=20):
            before = flow_log(gateway)
            clock.write_text(str(jump))
            seen.clients.wait_for(8, 60)
            seen.talk.wait()
            (revision,) = ask(gateway, "GET", "/ipbackend/revisions?limit=1")["revisions"]
            gateway.apply(draining.replace("weight = 3", "weight = 0").replace("weight = 2", f"weight = {weight}", 1))
            (latest,) = ask(gateway, "GET", "/ipbackend/revisions?limit=1")["revisions"]
            assert latest["number"] == revision["number"] + 1
            wait_until(lambda kept=before["kept"]: flow_log(gateway)["kept"] > kept)
            assert flow_log(gateway)["lost"] == before["lost"]
        clock.write_text("0")
        seen.talk.wait()
        gateway.apply(draining)
    gateway.apply(CONFIGURATION)
