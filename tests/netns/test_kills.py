"""`kill -9` before every step of what the daemon does: no connection lost, and a restart brings what the store says.

`make test` takes some steps of each; with KILLS=all every one is taken.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ipbackend.datapath.loader import KINDS, ROADS
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.pins import ENTRY
from ipbackend.datapath.source import bpf_directory
from ipbackend.errors import NotRunningError, ServiceError
from ipbackend.store import SCHEMA, Store
from tests.netns.carried import carried, problems, program_id, program_tag, wanted
from tests.netns.clients import Connection, Crowd, open_many
from tests.netns.failing import Failing
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import CLIENT, SHOP_VIP, Lab
from tests.netns.load import Load, datagrams, load
from tests.netns.members import Member
from tests.netns.streams import Streams, counts, streaming

pytestmark = pytest.mark.root

WEB, RESOLVER, EXTRA = (SHOP_VIP, 80), (SHOP_VIP, 53), (SHOP_VIP, 8001)
ALL = os.environ.get("KILLS") == "all"
DELAY = 3600  # seconds: no drain of it ends while a test runs
AUDITED = 8  # every so many steps the books are looked at; what does not balance stays so
SAMPLE = 3  # steps of each kind of change, where not all are taken

BEFORE = (
    CONFIGURATION
    + """
[listeners.extra]
load_balancer = "shop"
protocol = "TCP"
port = 8001
pool = "extra"

[pools.extra]
protocol = "TCP"
members = [{ address = "10.0.0.12", port = 8080 }, { address = "10.0.0.12", port = 9001 }]
"""
)
AFTER = (
    CONFIGURATION.replace("weight = 3 },\n", 'weight = 5 },\n    { address = "10.0.0.11", port = 9002, weight = 0 },\n')
    + """
[networks.more]
kind = "vpn"
cidrs = ["172.30.0.0/16"]
next_hop = "10.0.0.3"

[load_balancers.more]
vip = "10.0.0.120"
ip_target_enable = true

[listeners.more]
load_balancer = "more"
protocol = "TCP"
port = 8000
pool = "web"

[pools.extra]
protocol = "TCP"
members = [{ address = "10.0.0.12", port = 9003 }]
"""
)


def wait_until(condition: Callable[[], bool], deadline: float = 30.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)


def chosen(steps: list[str]) -> list[int]:
    """Which steps to be killed before; one more than there are is when all are taken."""
    last = len(steps) + 1
    return list(range(1, last + 1)) if ALL else sorted({1 + last * at // SAMPLE for at in range(SAMPLE)} | {last})


class Daemon:
    """A gateway whose daemon is killed all the time."""

    def __init__(self, lab: Lab, gateway: Gateway, failing: Failing) -> None:
        self.lab, self.gateway, self.failing = lab, gateway, failing
        self.source: Path | None = None

    def run(self, limit: int = 0) -> dict[str, Any]:
        return self.failing.start("run", "--store", str(self.gateway.store), limit=limit, source=self.source)

    def come_up(self) -> None:
        assert self.run()["status"] is None, self.gateway.log()[-2000:]
        with self.gateway.client() as client:
            assert client.request("GET", "/ipbackend/status")["status"]["problem"] is None

    def apply(self, configuration: str) -> None:
        self.gateway.apply(configuration)

    def state(self) -> tuple[Any, Any]:
        return wanted(self.gateway), carried(self.lab, self.gateway)

    def comes_to(self, state: tuple[Any, Any], what: str) -> None:
        """A VIP that goes may stay until the ends of its connections are told."""
        end = time.monotonic() + 30
        while (now := self.state()) != state:
            assert time.monotonic() < end, (what, now, state)
            time.sleep(0.1)


@pytest.fixture
def daemon(lab: Lab, gateway: Gateway) -> Iterator[Daemon]:
    gateway.kill()
    failing = Failing(lab["gateway"], gateway.run_directory, gateway.run_directory / "log")
    daemon = Daemon(lab, gateway, failing)
    try:
        yield daemon
    finally:
        failing.stop()
        if daemon.source:
            failing.start("unload")
        failing.close()
        gateway.start(deadline=120)


class Traffic:
    """Streams, requests and datagrams."""

    def __init__(self, streams: Streams, loads: list[Load]) -> None:
        self.streams, self.loads = streams, loads

    def check(self) -> None:
        """Nothing is lost."""
        assert [one for met in self.loads for one in met.failed()] == []
        assert self.streams.broken() == []

    def audit(self, gateway: Gateway) -> None:
        """The books balance, while no connection comes or goes."""
        with ExitStack() as stack:
            for met in self.loads:
                stack.enter_context(met.resting())
            wait_until(lambda: problems(gateway) == [], 10)


@contextmanager
def traffic(lab: Lab, members: dict[str, Member]) -> Iterator[Traffic]:
    """Traffic all the while; afterwards clients and members must have counted the same, and nothing lost."""
    before = {name: counts(member) for name, member in members.items()}
    with ExitStack() as stack:
        streams = stack.enter_context(streaming(lab["client"], WEB, 12))
        loads = [
            stack.enter_context(load(lab["client"], WEB, clients=1)),
            stack.enter_context(datagrams(lab["client"], RESOLVER)),
        ]

        traffic = Traffic(streams, loads)
        yield traffic
        traffic.check()
        for met in loads:
            met.wait_for(3)
    wait_until(lambda: streams.differences(members.values()) == [])
    assert {one.end for one in streams.tallies.values()} == {"done"}
    after = {name: counts(member) for name, member in members.items()}
    for met, what in zip(loads, ("requests", "datagrams"), strict=True):
        answered = met.answered_since(0)
        assert met.failed() == []
        assert {name: after[name][what] - before[name][what] for name in members} == {n: answered[n] for n in members}


def kill_everywhere(
    daemon: Daemon,
    traffic: Traffic,
    back: Callable[[], None],
    act: Callable[[], None],
    check: Callable[[], None] = lambda: None,
) -> None:
    """`act`, killed before each of its steps, and each time `back` again: all or nothing of it must be there then."""
    back()
    undone = daemon.state()
    daemon.failing.arm()
    act()
    steps, whole = daemon.failing.steps(), daemon.state()
    for step in chosen(steps):
        back()
        daemon.failing.arm(step)
        answered = False
        with suppress(ServiceError, NotRunningError):
            act()
            answered = True
        daemon.failing.kill()
        daemon.come_up()
        traffic.check()
        check()
        what = f"killed before step {step} of {len(steps)}: {[*steps, 'end'][step - 1]}"
        kept = wanted(daemon.gateway)
        assert kept in ([whole[0]] if answered else [whole[0], undone[0]]), what
        daemon.comes_to(whole if kept == whole[0] else undone, what)
        if step % AUDITED == 0:
            traffic.audit(daemon.gateway)
    act()
    traffic.audit(daemon.gateway)


def test_a_change_is_whole_or_undone(daemon: Daemon, lab: Lab, members: dict[str, Member]) -> None:
    """Members, listeners, a network and a VIP come and go."""
    daemon.come_up()
    with traffic(lab, members) as met:
        kill_everywhere(daemon, met, lambda: daemon.apply(BEFORE), lambda: daemon.apply(AFTER))
        kill_everywhere(daemon, met, lambda: daemon.apply(AFTER), lambda: daemon.apply(BEFORE))


def test_a_rollback_is_whole_or_undone(daemon: Daemon, lab: Lab, members: dict[str, Member]) -> None:
    daemon.come_up()
    daemon.apply(BEFORE)
    with daemon.gateway.client() as client:
        before = client.request("GET", "/ipbackend/status")["status"]["revision"]

    def roll_back() -> None:
        with daemon.gateway.client() as client:
            client.request("POST", f"/ipbackend/revisions/{before}/rollback")

    with traffic(lab, members) as met:
        kill_everywhere(daemon, met, lambda: daemon.apply(AFTER), roll_back)


def test_new_programs_by_a_setting_are_whole_or_undone(daemon: Daemon, lab: Lab, members: dict[str, Member]) -> None:
    """The flow log has other programs compiled, loaded and put in place."""
    daemon.come_up()
    logged = BEFORE.replace("[gateway]\n", '[gateway]\nflow_log = "store"\n')
    with traffic(lab, members) as met:
        kill_everywhere(daemon, met, lambda: daemon.apply(BEFORE), lambda: daemon.apply(logged))


def test_a_member_that_leaves_takes_its_own_connections_and_no_other(
    daemon: Daemon, lab: Lab, members: dict[str, Member]
) -> None:
    """They end with the change, or live on where it is undone."""
    daemon.come_up()
    leaving = '{ address = "10.0.0.12", port = 8080 }, { address = "10.0.0.12", port = 9001 }'
    have = BEFORE.replace(leaving, '{ address = "10.0.0.12", port = 8080 }')
    want = BEFORE.replace(leaving, '{ address = "10.0.0.12", port = 9001 }')
    with ExitStack() as stack:
        met = stack.enter_context(traffic(lab, members))
        crowds: list[Crowd] = []

        def back() -> None:
            daemon.apply(have)
            crowds.append(stack.enter_context(open_many(lab["client"], CLIENT, EXTRA, 4)))

        def as_the_store_says() -> None:
            if "10.0.0.12:9001" in str(wanted(daemon.gateway)):
                wait_until(lambda: all(has_ended(one) for one in crowds[-1].connected))
            else:
                assert {one.get("/bytes/1").status for one in crowds[-1].connected} == {200}

        kill_everywhere(daemon, met, back, lambda: daemon.apply(want), as_the_store_says)


def test_a_drain_keeps_its_deadline_or_is_undone(daemon: Daemon, lab: Lab, members: dict[str, Member]) -> None:
    """Its connections go on either way; what a later start takes for the deadline is what it was."""
    daemon.come_up()
    want = BEFORE.replace("[pools.extra]\n", f"[pools.extra]\nconnection_drain = {DELAY}\n")
    want = want.replace(', { address = "10.0.0.12", port = 9001 }', "")
    have = want.replace("port = 8080 }]", 'port = 8080 }, { address = "10.0.0.11", port = 8080 }]')
    began: list[float] = []
    with ExitStack() as stack:
        daemon.apply(have)
        held = stack.enter_context(open_many(lab["client"], CLIENT, EXTRA, 8)).connected
        assert {one.get().identity.member for one in held} == {"member-1", "member-2"}
        met = stack.enter_context(traffic(lab, members))

        def drain() -> None:
            began.append(time.time())
            daemon.apply(want)

        def deadline() -> None:
            assert {one.get("/bytes/1").status for one in held} == {200}
            with Store(daemon.gateway.store, read_only=True) as kept:
                drains = kept.drains
            if "10.0.0.11:8080" in str(dict(wanted(daemon.gateway)["pools"])["extra"]):
                assert drains == ()
            else:
                (one,) = drains
                assert began[-1] + DELAY - 1 <= one.until <= began[-1] + DELAY + 3

        kill_everywhere(daemon, met, lambda: daemon.apply(have), drain, deadline)


def test_a_store_that_is_brought_up_is_whole(daemon: Daemon, lab: Lab, members: dict[str, Member]) -> None:
    """Of an earlier schema: a start that is killed in the middle is completed by the next, and the copy stays good."""
    daemon.come_up()
    daemon.apply(BEFORE)
    daemon.failing.stop()
    store, state = daemon.gateway.store, daemon.state()
    copy, earlier = store.with_name(f"{store.name}.schema-{SCHEMA - 1}"), store.with_name("earlier.db")
    with contextlib.closing(sqlite3.connect(store)) as file:
        file.executescript(f"DROP TABLE drains; PRAGMA user_version = {SCHEMA - 1}; PRAGMA journal_mode = DELETE")
    shutil.copy(store, earlier)

    def restore() -> None:
        for path in (store.with_name(f"{store.name}-wal"), store.with_name(f"{store.name}-shm"), copy):
            path.unlink(missing_ok=True)
        shutil.copy(earlier, store)

    with traffic(lab, members) as met:
        restore()
        daemon.come_up()
        steps = daemon.failing.steps()
        assert daemon.state() == state
        for step in chosen(steps):
            what = f"killed before step {step} of {len(steps)}: {[*steps, 'end'][step - 1]}"
            daemon.failing.kill()
            restore()
            daemon.run(limit=step)
            daemon.failing.kill()
            met.check()
            daemon.come_up()
            daemon.comes_to(state, what)
            for path, schema in ((store, SCHEMA), (copy, SCHEMA - 1)):
                with contextlib.closing(sqlite3.connect(path)) as file:
                    assert file.execute("PRAGMA user_version").fetchone() == (schema,), what
                    assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",), what
        met.audit(daemon.gateway)


def has_ended(connection: Connection) -> bool:
    """Whether its RST has come."""
    with suppress(TimeoutError):
        connection.socket.settimeout(0.01)
        try:
            return connection.socket.recv(1) == b""
        except ConnectionResetError:
            return True
    return False


# --- Programs that come, are replaced, and go.


def tags(gateway: Gateway) -> dict[str, str]:
    """What the pinned programs are made of, by the kernel's own hash of their instructions."""
    return {name: program_tag(gateway.run_directory, name) for name in KINDS}


def changed_source(directory: Path, file: str, have: str, want: str) -> Path:
    """A copy of the data plane's C files with one line in one of them made another."""
    shutil.copytree(bpf_directory(), directory)
    text = (directory / file).read_text()
    assert have in text
    (directory / file).write_text(text.replace(have, want))
    return directory


def test_an_upgrade_replaces_the_programs_and_loses_nothing(
    daemon: Daemon, lab: Lab, members: dict[str, Member], tmp_path: Path
) -> None:
    """To a build whose programs differ, and back, killed at any step of it: a restart completes it."""
    daemon.come_up()
    daemon.apply(BEFORE)
    one = tmp_path / "one"
    shutil.copytree(bpf_directory(), one)
    other = changed_source(tmp_path / "other", "conntrack.h", "#define TRACK_TRIES 4", "#define TRACK_TRIES 5")
    made, state = {one: tags(daemon.gateway)}, daemon.state()
    with traffic(lab, members) as met:
        daemon.failing.stop()
        daemon.source = other
        daemon.come_up()
        steps = daemon.failing.steps()
        made[other] = tags(daemon.gateway)
        assert made[one].keys() - {name for name in made[one] if made[one][name] == made[other][name]}
        for step in chosen(steps):
            daemon.failing.kill()
            daemon.source = one if daemon.source is other else other
            daemon.run(limit=step)
            daemon.failing.kill()
            met.check()
            daemon.come_up()
            met.check()
            what = f"killed before step {step} of {len(steps)}: {[*steps, 'end'][step - 1]}"
            assert tags(daemon.gateway) == made[daemon.source], what
            daemon.comes_to(state, what)
        met.audit(daemon.gateway)
    daemon.source = None


def test_maps_of_another_layout_are_refused_before_anything_is_touched(
    daemon: Daemon, lab: Lab, members: dict[str, Member], tmp_path: Path
) -> None:
    """The build that made them goes on from there."""
    daemon.come_up()
    daemon.apply(BEFORE)
    daemon.failing.stop()
    other = changed_source(tmp_path / "other", "abi.h", "#define MAX_FRAGMENTS 65536", "#define MAX_FRAGMENTS 32768")
    with traffic(lab, members) as met:
        before = everything(daemon, lab)
        daemon.source = other
        assert daemon.run()["status"] is None
        with daemon.gateway.client() as client:
            status = client.request("GET", "/ipbackend/status")["status"]
        assert "maps of another version are loaded (`ipbackend unload`" in status["problem"]
        assert status["forwarding"] is False
        with pytest.raises(ServiceError, match="maps of another version are loaded"):
            daemon.apply(AFTER)
        daemon.failing.kill()
        after = everything(daemon, lab)
        assert {name: (before[name], after[name]) for name in before if before[name] != after[name]} == {}
        daemon.source = None
        said = len(daemon.gateway.log())
        daemon.come_up()
        assert "taken over" in daemon.gateway.log()[said:]
        assert "data plane changed" not in daemon.gateway.log()[said:]
        met.audit(daemon.gateway)


def everything(daemon: Daemon, lab: Lab) -> dict[str, Any]:
    """What an upgrade that is refused must leave alone, to the last id."""
    return {
        "wanted": wanted(daemon.gateway),
        "carried": carried(lab, daemon.gateway),
        "programs": {name: program_id(daemon.gateway.run_directory, name) for name in KINDS},
        "layout": (daemon.gateway.run_directory / "layout.json").read_bytes(),
    }


def test_restarts_in_a_row(daemon: Daemon, lab: Lab, members: dict[str, Member]) -> None:
    """By SIGKILL and SIGTERM in turn. The programs are taken over, not loaded anew."""
    daemon.come_up()
    daemon.apply(BEFORE)
    run_directory = daemon.gateway.run_directory
    state, said, program = daemon.state(), len(daemon.gateway.log()), program_id(run_directory, ENTRY)
    with traffic(lab, members) as met:
        for number in range(100 if ALL else 6):
            (daemon.failing.kill if number % 2 else daemon.failing.stop)()
            daemon.come_up()
            met.check()
        daemon.comes_to(state, "after the last")
        assert program_id(run_directory, ENTRY) == program
        assert "data plane changed" not in daemon.gateway.log()[said:]
        met.audit(daemon.gateway)


STUB = """
#include <uapi/linux/bpf.h>
#include "abi.h"
#include "maps.h"
%s
int ipbackend_guard(struct __sk_buff *skb)
{
	return -1;
}
int ipbackend_sweep(struct __sk_buff *skb)
{
	struct sweep *sweep = (void *)(long)skb->data;

	if ((void *)(sweep + 1) <= (void *)(long)skb->data_end)
		sweep->at = bpf_jiffies64() >> TICK_SHIFT;
	return 0;
}
"""


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """The maps with programs that do nothing: they compile in a moment, and come and go as the others do."""
    source = tmp_path / "stub"
    shutil.copytree(bpf_directory(), source)
    programs = [f"int {name}(struct xdp_md *ctx) {{ return XDP_PASS; }}" for name in (ENTRY, *ROADS.values())]
    (source / "ipbackend.c").write_text(STUB % "\n".join(programs))
    return source


def test_a_first_start_is_completed_by_the_next(daemon: Daemon, lab: Lab, stub: Path) -> None:
    nothing = clean(daemon, lab)
    daemon.source = stub
    daemon.come_up()
    steps, state = daemon.failing.steps(), daemon.state()
    for step in chosen(steps):
        daemon.failing.stop()
        daemon.failing.start("unload")
        assert carried(lab, daemon.gateway) == nothing
        daemon.run(limit=step)
        daemon.failing.kill()
        daemon.come_up()
        what = f"killed before step {step} of {len(steps)}: {[*steps, 'end'][step - 1]}"
        daemon.comes_to(state, what)
        assert problems(daemon.gateway) == [], what
    daemon.failing.stop()
    daemon.failing.start("unload")


def test_a_first_start_that_came_to_its_first_snat_address(daemon: Daemon, lab: Lab, stub: Path) -> None:
    """What is loaded by then and what is wanted differ, as they must not where there are connections."""
    clean(daemon, lab)
    daemon.source = stub
    daemon.come_up()
    state = daemon.state()
    daemon.failing.kill()
    with Maps(daemon.gateway.run_directory) as maps:
        (_, *later) = ((key, number) for key, number in maps.directory("addresses").entries())
        assert len(later) == 5
        for key, _ in later:
            maps.directory("addresses").delete(key)
    daemon.come_up()
    daemon.comes_to(state, "after the first SNAT address")
    daemon.failing.stop()
    daemon.failing.start("unload")


def test_an_unload_is_completed_by_the_next_and_a_start_begins_anew(daemon: Daemon, lab: Lab, stub: Path) -> None:
    nothing = clean(daemon, lab)
    daemon.source = stub
    daemon.come_up()
    state = daemon.state()
    daemon.failing.stop()
    daemon.failing.start("unload")
    steps = daemon.failing.steps()
    assert carried(lab, daemon.gateway) == nothing
    for step in chosen(steps):
        what = f"killed before step {step} of {len(steps)}: {[*steps, 'end'][step - 1]}"
        daemon.come_up()
        daemon.failing.stop()
        daemon.failing.start("unload", limit=step)
        daemon.come_up()
        daemon.comes_to(state, what)
        assert problems(daemon.gateway) == [], what
        daemon.failing.stop()
        daemon.failing.start("unload", limit=step)
        assert daemon.failing.start("unload")["status"] == 0
        assert carried(lab, daemon.gateway) == nothing, what


def clean(daemon: Daemon, lab: Lab) -> Any:
    """Nothing loaded, and BEFORE in the store; returns what that looks like."""
    daemon.come_up()
    daemon.apply(BEFORE)
    daemon.failing.stop()
    daemon.failing.start("unload")
    return carried(lab, daemon.gateway)
