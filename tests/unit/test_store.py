"""The store on real files: what it keeps, what it gives back, and what it does with files it cannot use."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from ipbackend import edits, store
from ipbackend.codec import from_plain, to_plain
from ipbackend.configuration import SECTIONS, Configuration
from ipbackend.errors import ConfigurationError, StoreError
from ipbackend.model import Member
from ipbackend.store import Store
from tests.unit.wanted import FULL, GATEWAY, GROUP, SHOP, member, wanted

V1 = Path(__file__).parent / "store-v1.sql"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lib" / "store.db"


def in_order(configuration: Configuration) -> list[tuple[str, list[str]]]:
    order = [(section, list(resources)) for section, resources in configuration.sections()]
    return order + [(pool.id, [one.id for one in pool.members]) for pool in configuration.pools.values()]


def test_every_kind_of_resource_comes_back_as_it_was() -> None:
    for section, resources in FULL.sections():
        for one in resources.values():
            assert from_plain(SECTIONS[section], to_plain(one)) == one
    assert from_plain(type(GATEWAY), to_plain(GATEWAY)) == GATEWAY
    assert GROUP.entries[0].description


def test_what_is_written_is_there_for_the_next_to_open_it(path: Path) -> None:
    with Store(path) as kept:
        assert (kept.configuration, kept.revision, kept.history()) == (wanted(gateway=None), 0, [])
        assert kept.write(FULL, "root") == 1
        assert kept.write(FULL, "root") == 1
    with Store(path) as kept:
        assert kept.configuration == FULL
        assert in_order(kept.configuration) == in_order(FULL)
        assert kept.write(edits.delete(FULL, "ip_groups", "offices"), "ops") == 2
        latest, first = kept.history()
    assert (latest.number, latest.author, latest.summary) == (2, "ops", "ip group offices removed")
    assert (first.number, first.author) == (1, "root")
    assert first.time.endswith("Z")


def test_the_file_is_private(path: Path) -> None:
    with Store(path) as kept:
        kept.write(FULL, "root")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_revision_says_what_it_changed(path: Path) -> None:
    with Store(path) as kept:
        kept.write(FULL, "root")
        number = kept.write(edits.change_members(FULL, "web", {"m12": {"weight": 9}}), "root")
        (change,) = kept.changes(number)
        assert str(change) == "member 10.0.0.12:8080 of web changed: weight 1 → 9"
        assert (change.parent, change.before, change.after) == ("web", member(12), member(12, weight=9))
        with pytest.raises(ConfigurationError, match=r"revision 3 is not known \(there are 1 to 2\)"):
            kept.changes(3)


def test_resources_know_when_they_were_made_and_changed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(store.datetime):  # type: ignore[misc]
        now_is = store.datetime(2026, 1, 1, tzinfo=store.UTC)

        @classmethod
        def now(cls, tz: object = None) -> store.datetime:
            return cls.now_is

    monkeypatch.setattr(store, "datetime", Clock)
    with Store(path) as kept:
        kept.write(FULL, "root")
        Clock.now_is = store.datetime(2026, 2, 2, tzinfo=store.UTC)
        kept.write(edits.change(FULL, "load_balancers", "shop", {"description": "x"}), "root")
        made, later = "2026-01-01T00:00:00Z", "2026-02-02T00:00:00Z"
        expected = {"shop": store.Stamp(made, later), "office": store.Stamp(made, made)}
        assert {number: kept.stamps[number] for number in expected} == expected
    with Store(path) as kept:
        assert {number: kept.stamps[number] for number in expected} == expected


@pytest.mark.parametrize("seed", range(5))
def test_any_earlier_state_can_be_had_back(path: Path, seed: int) -> None:
    """Random changes; every revision's state is as it was, order and all, also after going back to one."""
    chance = random.Random(seed)
    states, have = {0: wanted(gateway=None)}, FULL
    with Store(path) as kept:
        for _ in range(40):
            match chance.randrange(4):
                case 0:
                    number = chance.randrange(20, 90)
                    if all(one.id != f"m{number}" for one in have.pools["web"].members):
                        have = edits.add_members(have, "web", [member(number, max_connections=5)])
                case 1 if len(have.pools["web"].members) > 1:
                    doomed = chance.choice(have.pools["web"].members).id
                    have = edits.remove_members(have, "web", {doomed})
                case 2:
                    have = edits.change(have, "load_balancers", "shop", {"description": str(chance.random())})
                case _:
                    shuffled = chance.sample(have.pools["web"].members, len(have.pools["web"].members))
                    have = edits.change(have, "pools", "web", {"members": tuple(shuffled)})
            number = kept.write(have, "root")
            states[number] = have
            if chance.random() < 0.2:
                back = chance.choice(list(states))
                if back and "web" in states[back].pools:
                    have = kept.at(back)
                    states[kept.write(have, "root", f"rolled back to {back}")] = have
        for number, state in states.items():
            assert kept.at(number) == state
    with Store(path) as kept:
        assert kept.configuration == have
        assert in_order(kept.configuration) == in_order(have)


def test_what_the_kernel_refused_was_never_there(path: Path) -> None:
    with Store(path) as kept:
        kept.write(FULL, "root")
        number = kept.write(edits.delete(FULL, "load_balancers", "shop", cascade=True), "root")
        kept.undo(number, FULL)
        assert [one.number for one in kept.history()] == [1]
    with Store(path) as kept:
        assert kept.configuration == FULL
        assert in_order(kept.configuration) == in_order(FULL)
        assert kept.write(replace(FULL, ip_groups={}), "root") == 3
        assert kept.at(1) == FULL


def test_old_revisions_are_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "REVISIONS_KEPT", 3)
    with Store(path) as kept:
        for number in range(6):
            kept.write(edits.change(FULL, "load_balancers", "shop", {"description": str(number)}), "root")
        assert [one.number for one in kept.history()] == [6, 5, 4]
        assert kept.at(4).load_balancers["shop"].description == "3"
        with pytest.raises(ConfigurationError, match=r"revision 3 is not known \(there are 4 to 6\)"):
            kept.at(3)
    assert sqlite3.connect(path).execute("SELECT count(*) FROM changes").fetchone() == (3,)


def test_revisions_that_changed_much_are_forgotten_sooner(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHANGES_KEPT", 20)
    with Store(path) as kept:
        kept.write(FULL, "root")
        assert len(kept.changes(1)) == 16
        for number in range(6):
            assert kept.history()[-1].number == (1 if number < 5 else 2)
            kept.write(edits.change(FULL, "load_balancers", "shop", {"description": str(number)}), "root")
        assert kept.at(2).load_balancers["shop"].description == "0"


def test_a_writer_that_is_killed_leaves_all_or_nothing(path: Path) -> None:
    """Killed between the change and its end, over and over: what was answered is there, and the file is whole."""
    script = """
import os, signal, sys
from pathlib import Path
from ipbackend import edits
from ipbackend.store import Store
with Store(Path(sys.argv[1])) as kept:
    have = kept.configuration
    for number in range(int(sys.argv[2])):
        have = edits.change(have, "load_balancers", "shop", {"description": f"{number}"})
        print(kept.write(have, "root"), number, flush=True)
    kept._change = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    kept.write(edits.change(have, "load_balancers", "shop", {"description": "never"}), "root")
"""
    with Store(path) as kept:
        kept.write(FULL, "root")
    for changes in (0, 1, 3):
        done = subprocess.run([sys.executable, "-c", script, path, str(changes)], capture_output=True, text=True)
        assert done.returncode == -9, done.stderr
        with Store(path) as kept:
            if done.stdout:
                number, description = done.stdout.splitlines()[-1].split()
                assert (kept.revision, kept.configuration.load_balancers["shop"].description) == (
                    int(number),
                    description,
                )
            assert kept.configuration.load_balancers["shop"].description != "never"


def damaged(path: Path, change: str) -> None:
    with Store(path) as kept:
        kept.write(FULL, "root")
    whole = bytearray(path.read_bytes())
    match change:
        case "text":
            path.write_text("this is no database, but a text of some length, well over a hundred bytes " * 3)
        case "zeros":
            whole[4096 : 4096 * 3] = bytes(4096 * 2)
            path.write_bytes(whole)
        case "log":  # what nothing reads until a revision is asked for
            whole[-4096:] = bytes(4096)
            path.write_bytes(whole)
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize("change", ["text", "zeros", "log", "cut"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_damaged_file_is_refused_and_left_alone(path: Path, change: str, read_only: bool) -> None:
    damaged(path, change)
    before = path.read_bytes()

    with pytest.raises(StoreError, match=r"store\.db: .*\(put a copy of it back; the data plane goes on as it is, "):
        Store(path, read_only)
    assert path.read_bytes() == before


def test_a_resource_that_cannot_be_is_damage(path: Path) -> None:
    with Store(path) as kept:
        kept.write(FULL, "root")
    with sqlite3.connect(path) as file:
        file.execute("""UPDATE resources SET body = replace(body, '"port":80,', '"port":0,') WHERE id = 'http'""")
    file.close()
    with pytest.raises(StoreError, match=r"what it holds cannot be used: port: 0 is out of range"):
        Store(path)


def test_a_newer_file_is_refused_and_left_alone(path: Path) -> None:
    with Store(path) as kept:
        kept.write(FULL, "root")
    with sqlite3.connect(path) as file:
        file.execute(f"PRAGMA user_version = {store.SCHEMA + 1}")
    file.close()
    before = path.read_bytes()

    with pytest.raises(StoreError, match=rf"written by a newer ipbackend, schema {store.SCHEMA + 1}; this one knows"):
        Store(path)
    assert path.read_bytes() == before


def test_another_program_s_database_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE bookmarks (url)")
    file.close()
    before = path.read_bytes()

    with pytest.raises(StoreError, match=r"it is not a store of ipbackend's \(name another file\)"):
        Store(path)
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/store\.db: cannot open it: .* \(name a place that can be used\)"):
        Store(tmp_path / "file" / "store.db")
    with pytest.raises(StoreError, match=r"none\.db: cannot open it: unable to open"):
        Store(tmp_path / "none.db", read_only=True)


def test_the_first_schema_s_file_is_brought_up_to_date(path: Path) -> None:
    """store-v1.sql is what version 1 wrote; whatever comes later must be able to read it."""
    path.parent.mkdir()
    with sqlite3.connect(path) as file:
        file.executescript(V1.read_text())
    file.close()
    with Store(path) as kept:
        assert kept.configuration == FULL
        assert [(one.number, one.author) for one in kept.history()] == [(2, "ops"), (1, "root")]
        assert kept.at(1) == edits.change(FULL, "load_balancers", "shop", {"description": "first"})
        kept.write(replace(FULL, ip_groups={}), "root")
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (store.SCHEMA,)
    before = path.with_name("store.db.schema-1")  # for whoever goes back to the program that wrote it
    assert before.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(before) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (1,)
        assert file.execute("SELECT max(number) FROM revisions").fetchone() == (2,)
    file.close()
    with Store(before) as kept:
        assert kept.configuration == FULL


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(path) as kept:
        kept.write(FULL, "root")
    halfway = "ALTER TABLE resources ADD COLUMN colour TEXT; UPDATE resources SET none = 1"
    monkeypatch.setattr(store, "MIGRATIONS", (*store.MIGRATIONS, halfway))
    monkeypatch.setattr(store, "SCHEMA", store.SCHEMA + 1)
    with pytest.raises(StoreError, match="no such column: none"):
        Store(path)

    monkeypatch.undo()
    with Store(path) as kept:
        assert kept.configuration == FULL
        assert kept.write(edits.add_members(FULL, "web", [member(20)]), "root") == 2


def test_a_write_that_fails_halfway_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(path) as kept:
        kept.write(FULL, "root")

        def fail(*_: object) -> None:
            raise sqlite3.OperationalError("halfway")

        monkeypatch.setattr(kept, "_change", fail)
        with pytest.raises(StoreError, match=r"cannot write to it: halfway \(see `dmesg`; nothing was changed\)"):
            kept.write(replace(FULL, ip_groups={}), "root")
        monkeypatch.undo()
        assert (kept.configuration, kept.revision) == (FULL, 1)
        assert kept.write(replace(FULL, ip_groups={}), "root") == 2


def test_a_migration_brings_what_is_there_along(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(path) as kept:
        kept.write(FULL, "root")
    later = """UPDATE resources SET body = json_set(body, '$.description', 'migrated') WHERE section = 'pools'"""
    monkeypatch.setattr(store, "MIGRATIONS", (*store.MIGRATIONS, later))
    monkeypatch.setattr(store, "SCHEMA", store.SCHEMA + 1)
    there = store.SCHEMA - 1
    with pytest.raises(StoreError, match=rf"schema {there} is to be brought up to {there + 1} \(`ipbackend run`\)"):
        Store(path, read_only=True)
    with Store(path) as kept:
        assert {pool.description for pool in kept.configuration.pools.values()} == {"migrated"}


def test_a_second_writer_is_refused(path: Path) -> None:
    with Store(path) as kept:
        kept.write(FULL, "root")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        kept._file.execute("PRAGMA busy_timeout = 0")
        with pytest.raises(StoreError, match=r"locked \(another process writes to it; nothing was changed\)"):
            kept.write(replace(FULL, ip_groups={}), "root")
        other.close()
        assert kept.configuration == FULL
        assert kept.write(replace(FULL, ip_groups={}), "root") == 2


@pytest.mark.root
def test_a_full_disk_refuses_a_change_and_loses_nothing(own_run: None) -> None:
    """On a file system of 400 kB: changes are taken until it is full, then refused, and taken again with room."""
    small = Path("/run/small")
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", small], check=True)
    try:
        with Store(small / "store.db") as kept:
            kept.write(FULL, "root")
            have, last = FULL, 1
            refusal = ""
            while not refusal:
                names = ["n" * 200 + str(last)] * 100
                members = [Member(IPv4Address("10.0.0.20"), 1000 + i, 1, 1, name) for i, name in enumerate(names)]
                want = edits.put(have, "pools", replace(have.pools["web"], members=tuple(members)))
                try:
                    last, have = kept.write(want, "root"), want
                except StoreError as error:
                    refusal = str(error)
            assert refusal.endswith("(make room on that file system; nothing was changed)")
            assert (kept.configuration, kept.revision) == (have, last)
            assert kept.at(1) == FULL
        subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
        with Store(small / "store.db") as kept:
            assert kept.configuration == have
            assert kept.write(FULL, "root") > last
    finally:
        subprocess.run(["umount", small], check=True)


def test_an_unknown_state_before_the_first_revision_is_nothing(path: Path) -> None:
    with Store(path) as kept:
        kept.write(wanted(SHOP), "root")
        assert kept.at(0) == wanted(gateway=None)
