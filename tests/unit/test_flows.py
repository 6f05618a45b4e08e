"""What is kept of connections, found again: by SNAT address and port, by filters, and up to what is dropped."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from random import Random

import pytest

from ipbackend.abi import Ending, EventKind, Phase, Verdict
from ipbackend.errors import ConfigurationError, StoreError
from ipbackend.flows.archive import SUFFIX, Archive, Reader
from ipbackend.flows.calendar import Calendar
from ipbackend.flows.event import GENERATION_SHIFT, NANO, STRUCT, Event, counted, ip_raw, port_raw, shown
from ipbackend.flows.files import DAY, Files
from ipbackend.flows.lines import Journal, Lines, line
from ipbackend.flows.mark import Mark
from ipbackend.flows.times import interval, with_zone
from ipbackend.flows.who import End, who
from tests.unit.serving import OURS, Client, Kept, ok, refused

SNAT, PORT = ip_raw(IPv4Address("10.0.0.101")), port_raw(40123)
MEMBERS = [ip_raw(IPv4Address(f"10.0.0.{host}")) for host in (11, 12)]
NOON = 1_800_000_000 * NANO
MARK = Mark("ring", 0, 0, 0)


def event(kind: EventKind, at: float, opened: float, **fields: int) -> Event:
    """Of the first member's slot; times in seconds after noon."""
    times = (NOON + int(at * NANO), NOON + int(opened * NANO))
    ends = (ip_raw(IPv4Address("203.0.113.7")), ip_raw(IPv4Address("10.0.0.100")), SNAT, MEMBERS[0])
    ports = (port_raw(50000), port_raw(80), PORT, port_raw(8080))
    state = Phase.ESTABLISHED | fields.pop("generation", 1) << GENERATION_SHIFT
    return Event(*times, 5, 500, 6, 6000, state, *ends, *ports, 29420, 1, 1, kind, 0, 6)._replace(**fields)


def opened(at: float, **fields: int) -> Event:
    return event(EventKind.OPENED, at, at, **fields)


def closed(at: float, since: float, **fields: int) -> Event:
    return event(EventKind.CLOSED, at, since, **fields)


def records(*events: Event, offset: int = 0) -> bytes:
    """As they lie in the ring, `offset` before their times."""
    moved = (one._replace(at=one.at - offset, opened=one.opened - offset) for one in events)
    return b"".join(STRUCT.size.to_bytes(8, "little") + STRUCT.pack(*one) for one in moved)


def at(seconds: float) -> int:
    return NOON + int(seconds * NANO)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    archive = Archive(tmp_path, segment=1000)
    yield archive
    archive.close()


# --- One event.


def test_an_event_as_it_is_shown() -> None:
    one = shown(closed(61.5, 60, reason=Ending.MEMBER_RST))

    assert (one.time, one.event, one.reason) == ("2027-01-15T08:01:01.500000Z", "closed", "MEMBER_RST")
    assert (one.client, one.vip, one.snat) == ("203.0.113.7:50000", "10.0.0.100:80", "10.0.0.101:40123")
    assert (one.member, one.protocol, one.phase) == ("10.0.0.11:8080", "TCP", "ESTABLISHED")
    assert (one.opened, one.seconds) == ("2027-01-15T08:01:00.000000Z", 1.5)
    assert one[11:] == (5, 500, 6, 6000, 1, 1, 29420, None)


def test_what_was_not_counted_is_not_zero() -> None:
    assert shown(closed(1, 0, request_packets=0, request_bytes=0))[11:15] == (None, None, None, None)


def test_a_rejection_has_no_member() -> None:
    one = shown(event(EventKind.REJECTED, 1, 1, reason=Verdict.REJECT_ALL_FULL, snat=0, member=0))

    assert (one.event, one.reason, one.client) == ("rejected", "REJECT_ALL_FULL", "203.0.113.7:50000")
    assert (one.snat, one.member, one.seconds, one.listener) == (None, None, None, None)


def test_what_is_missing_is_an_event() -> None:
    one = shown(counted(EventKind.LOST, at(1), 7))

    assert (one.event, one.events, one.client, one.protocol) == ("lost", 7, None, None)
    assert json.loads(line(one)) == {"time": "2027-01-15T08:00:01.000000Z", "event": "lost", "events": 7}


# --- The store.


def test_what_is_kept_is_found_with_the_walls_times(archive: Archive, tmp_path: Path) -> None:
    mine = [opened(0), closed(5, 0, reason=Ending.CLIENT_FIN)]
    others = [closed(5, 0, snat_port=port_raw(40124)), closed(5, 0, snat=ip_raw(IPv4Address("10.0.0.102")))]
    archive.write(records(*mine, *others, offset=123), 123, [counted(EventKind.LOST, at(9), 3)], MARK)

    assert Reader(tmp_path).behind(SNAT, PORT, at(100)) == mine
    assert Reader(tmp_path).behind(SNAT, PORT, at(0)) == []
    assert Reader(tmp_path).newest({}, 0, at(100), 9) == [counted(EventKind.LOST, at(9), 3), *others[::-1], *mine[::-1]]


def test_a_transaction_is_whole_or_not_at_all(archive: Archive, tmp_path: Path) -> None:
    """Up to where the ring was read is a part of it."""
    archive.write(records(opened(0)), 0, [], MARK._replace(position=104))
    (path,) = tmp_path.glob(f"*{SUFFIX}")
    with sqlite3.connect(path) as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON mark BEGIN SELECT raise(ABORT, 'full'); END")
    other.close()
    with pytest.raises(StoreError, match=r"cannot write to it: full"):
        archive.write(records(closed(5, 0)), 0, [], MARK._replace(position=208))

    assert Reader(tmp_path).newest({}, 0, at(100), 9) == [opened(0)]
    archive.close()
    again = Archive(tmp_path)
    assert again.mark == MARK._replace(position=104)
    again.close()


def test_files_follow_each_other_and_each_is_searched(archive: Archive, tmp_path: Path) -> None:
    for number in range(5000):
        where = {"snat_port": port_raw(40000 + number % 500), "generation": number}
        archive.write(records(closed(number, number - 1, **where)), 0, [], MARK)
    paths = Files(tmp_path, SUFFIX).paths()
    found = Reader(tmp_path).behind(SNAT, port_raw(40123), at(10_000))

    assert len(paths) == 5
    assert [one.state >> GENERATION_SHIFT for one in found] == list(range(123, 5000, 500))
    assert Reader(tmp_path).size()[0] == 5000
    assert [one.at for one in Reader(tmp_path).newest({}, at(2000), at(2003), 10)] == [at(2002), at(2001), at(2000)]
    assert Reader(tmp_path).newest({"snat_port": port_raw(40123)}, 0, at(10_000), 2) == found[:-3:-1]
    assert Reader(tmp_path).begins() == at(0)


def test_a_full_file_gets_its_index(archive: Archive, tmp_path: Path) -> None:
    for number in range(1500):
        archive.write(records(opened(number)), 0, [], MARK)
    archive.close()  # waits for it
    plans = []
    for path in Files(tmp_path, SUFFIX).paths():
        with sqlite3.connect(path) as file:
            plans.append(
                file.execute("EXPLAIN QUERY PLAN SELECT * FROM events WHERE snat=1 AND snat_port=1").fetchone()
            )
        file.close()

    assert ["INDEX" in plan[3] for plan in plans] == [True, False]


def test_a_writer_goes_on_where_the_last_one_was_killed(tmp_path: Path) -> None:
    """Into the same file, which fills up like any other; one that was never begun is no hindrance."""
    first = Archive(tmp_path, segment=3)
    first.write(records(opened(0), opened(1)), 0, [], MARK)
    second = Archive(tmp_path, segment=3)
    second.write(records(opened(2)), 0, [], MARK)
    second.write(records(opened(3)), 0, [], MARK)
    (tmp_path / f"flows-000009{SUFFIX}").touch()
    third = Archive(tmp_path, segment=3)
    third.write(records(opened(4)), 0, [], MARK)

    assert [one.at for one in Reader(tmp_path).newest({}, 0, at(9), 9)] == [at(4), at(3), at(2), at(1), at(0)]
    assert [path.name[6:12] for path in Files(tmp_path, SUFFIX).paths()] == ["000001", "000002", "000009"]
    for archive in (first, second, third):
        archive.close()


def test_a_folder_that_cannot_be_used_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file: cannot open it: "):
        Archive(tmp_path / "file")
    assert Reader(tmp_path / "none").size() == (0, 0)


# --- What is dropped.


def make_files(folder: Path, *ages: float) -> Files:
    """Of 1000 bytes each, last written so many days ago."""
    files = Files(folder, SUFFIX)
    for age in ages:
        path = files.next()
        path.write_bytes(bytes(1000))
        os.utime(path, (time.time() - age * DAY,) * 2)
    return files


@pytest.mark.parametrize(
    ("days", "limit", "left"),
    [(30, 10_000, 4), (3, 10_000, 2), (1, 10_000, 1), (30, 2_500, 2), (30, 0, 1), (9, 4_000, 4)],
)
def test_the_oldest_are_dropped_by_age_and_by_size(tmp_path: Path, days: int, limit: int, left: int) -> None:
    """But never the newest, which is being written."""
    files = make_files(tmp_path, 8, 5, 2.5, 2)
    (tmp_path / f"flows-000001{SUFFIX}-wal").touch()
    before = files.paths()
    gone = files.expire(time.time() - days * DAY, limit)

    assert (gone, files.paths()) == (before[: 4 - left], before[4 - left :])
    assert (tmp_path / f"flows-000001{SUFFIX}-wal").exists() == (left == 4)


@pytest.mark.parametrize("jump", [3 * 3600, 365 * DAY])
def test_a_clock_that_jumps_ahead_makes_nothing_old(jump: float) -> None:
    """It is followed again when it is back, and by the next daemon."""
    wall, steady = 1e9, 500.0
    calendar = Calendar(lambda: wall, lambda: steady)
    wall, steady = wall + 60, steady + 60
    assert calendar.now() == wall
    wall += jump
    assert calendar.now() == wall - jump
    wall, steady = wall + 7 * DAY, steady + 7 * DAY  # time goes on meanwhile, also asleep
    assert calendar.now() == wall - jump
    assert Calendar(lambda: wall, lambda: steady).now() == wall
    wall -= jump
    assert calendar.now() == wall


@pytest.mark.parametrize("jump", [-365 * DAY, -3600, 1800])
def test_a_clock_that_is_set_back_or_corrected_is_followed(jump: float) -> None:
    wall = 1e9
    calendar = Calendar(lambda: wall, lambda: 500.0)
    wall += jump
    assert calendar.now() == wall


def test_numbers_are_not_used_again(tmp_path: Path) -> None:
    files = make_files(tmp_path, 9, 9, 9)
    files.expire(time.time() - DAY, 0)

    assert files.next().name == f"flows-000004{SUFFIX}"


# --- Lines.


def test_lines_are_rotated_and_go_on(tmp_path: Path) -> None:
    lines = Lines(tmp_path, file_size=500)
    for number in range(6):
        lines.write(records(opened(number, generation=number)), 0, [], MARK._replace(position=number))
    lines.close()
    again = Lines(tmp_path, file_size=500)
    assert again.mark == MARK._replace(position=5)
    again.write(records(closed(9, 0)), 0, [counted(EventKind.WITHHELD, at(9), 2)], MARK)
    again.close()
    paths = Files(tmp_path, ".jsonl").paths()
    told = [json.loads(text) for path in paths for text in path.read_text().splitlines()]

    assert [one["event"] for one in told] == ["opened"] * 6 + ["closed", "withheld"]
    assert len(paths) == 4
    assert told[6]["seconds"] == 9.0


def test_the_journal_is_sent_an_entry_for_each(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as played:
        played.bind(str(tmp_path / "journal"))
        journal = Journal(tmp_path / "flows", tmp_path / "journal")
        journal.write(records(closed(2, 1, reason=Ending.EXPIRED)), 0, [], MARK)
        entry = dict(field.split("=", 1) for field in played.recv(1 << 16).decode().splitlines())
        journal.close()

    way = "203.0.113.7:50000 → 10.0.0.100:80 → 10.0.0.101:40123 → 10.0.0.11:8080"
    assert entry["MESSAGE"] == f"closed TCP {way} EXPIRED"
    assert (entry["PRIORITY"], entry["FLOW_REPLY_BYTES"], entry["FLOW_SECONDS"]) == ("6", "6000", "1.0")
    with pytest.raises(StoreError, match=r"nowhere: cannot write to it: No such file"):
        Journal(tmp_path / "flows", tmp_path / "nowhere")


# --- Who.


def ends(log: list[Event], live: list[Event], since: float, until: float) -> list[tuple[float, End]]:
    """When each that stood there was opened, and how it ended."""
    return [((one.event.opened - NOON) / NANO, one.end) for one in who(log, live, at(since), at(until))]


LOG = [
    opened(0),
    closed(10, 0),
    opened(20, generation=2),
    closed(30, 20, generation=2),
    opened(25, member=MEMBERS[1], generation=7),
    closed(50, 25, member=MEMBERS[1], generation=7),
]


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (5, 5.001, [0]),
        (15, 15.001, []),
        (22, 22.001, [20]),
        (26, 26.001, [25, 20]),
        (40, 40.001, [25]),
        (0, 60, [25, 20, 0]),
        (10, 20, [0]),
        (60, 61, []),
        (-9, -1, []),
    ],
)
def test_who_it_was_at_that_time(since: float, until: float, expected: list[int]) -> None:
    """Each member's own: a port is used towards many at a time. The order of events does not matter."""
    wanted = [(opened, End.CLOSED) for opened in expected]

    assert ends(LOG, [], since, until) == wanted
    assert ends(LOG[::-1], [], since, until) == wanted


def test_who_it_is_now() -> None:
    """The slot's word and the log's are about the same connection."""
    live = [opened(100, generation=3)]

    assert ends([*LOG, opened(100, generation=3)], live, 110, 111) == [(100, End.OPEN)]
    assert ends(LOG, live, 110, 111) == [(100, End.OPEN)]
    assert ends(LOG, live, 60, 61) == []


def test_who_it_was_where_the_end_was_lost() -> None:
    """Until the slot was another's at the latest; a table that was made anew numbers from 1 again."""
    lost = [opened(100, generation=3)]

    assert ends([*LOG, *lost], [], 110, 111) == [(100, End.UNKNOWN)]
    assert ends([*LOG, *lost, opened(120, generation=4)], [], 110, 111) == [(100, End.UNKNOWN)]
    assert ends([*LOG, *lost, opened(120, generation=4)], [], 130, 131) == [(120, End.UNKNOWN)]
    assert ends([*LOG, opened(100, generation=1)], [], 110, 111) == [(100, End.UNKNOWN)]


def test_who_it_was_where_the_beginning_was_lost() -> None:
    assert ends([closed(30, 20)], [], 25, 26) == [(20, End.CLOSED)]


def test_who_against_all_that_there_were(tmp_path: Path) -> None:
    """50,000 connections on few ports, some seconds each: each answer is what looking at all of them gives."""
    random = Random(7)
    archive, truth = Archive(tmp_path, segment=20_000), []
    free: dict[tuple[int, int], float] = {}
    batch = []
    for generation in range(50_000):
        key = (random.randrange(64), random.randrange(2))
        begin = max(free.get(key, 0.0), generation / 100) + random.random()
        end = begin + random.random() * 20
        free[key] = end
        where = {"snat_port": port_raw(40000 + key[0]), "member": MEMBERS[key[1]], "generation": generation}
        truth.append((key[0], begin, end, generation))
        batch += [opened(begin, **where), closed(end, begin, **where)]
    batch.sort(key=lambda one: one.at)
    for start in range(0, len(batch), 4096):
        archive.write(records(*batch[start : start + 4096]), 0, [], MARK)
    reader = Reader(tmp_path)
    for _ in range(50):
        port, when = random.randrange(64), random.random() * 500
        found = who(reader.behind(SNAT, port_raw(40000 + port), at(when + 1)), [], at(when), at(when + 1))
        wanted = {g for p, begin, end, g in truth if p == port and at(end) >= at(when) and at(begin) < at(when + 1)}
        assert {one.event.state >> GENERATION_SHIFT for one in found} == wanted
        assert {one.end for one in found} <= {End.CLOSED}
    archive.close()


# --- Times.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2027-01-15T08:01:00Z", 1),
        ("2027-01-15 08:01Z", 60),
        ("2027-01-15 09:01+01:00", 60),
        ("2027-01-15 08:01:00.000000+0000", 1e-6),
    ],
)
def test_a_time_is_as_long_as_it_is_exact(text: str, seconds: float) -> None:
    begin, end = interval(text)

    assert begin == at(60)
    assert end - begin == round(seconds * NANO)


def test_a_time_without_zone_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Etc/GMT-5")  # east of Greenwich
    time.tzset()
    try:
        assert interval("2027-01-15 13:01")[0] == at(60)
        assert with_zone("2027-01-15 13:01") == "2027-01-15 13:01+0500"
        begin, end = interval("2027-01-15")
        assert (begin, end - begin) == (at(-13 * 3600), DAY * NANO)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert with_zone("10 min") == "10 min"
    assert with_zone("2027-01-15 13:01Z") == "2027-01-15 13:01Z"


def test_a_time_ago() -> None:
    begin, _ = interval("10 min")
    assert time.time_ns() - begin == pytest.approx(600 * NANO, abs=5 * NANO)


@pytest.mark.parametrize("text", ["0001-01-02 00:00Z", "9999-12-30 00:00Z", "300000 d"])
def test_times_beyond_all_events_are_as_far_as_can_be_asked_for(text: str) -> None:
    assert set(interval(text)) <= {0, 1000, 1 << 62}


@pytest.mark.parametrize("text", ["yesterday", "14:03", "2026-13-01", "10 months", "", "9" * 30 + " d", "0001-01-01"])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is no time \(write \"2026-11-22 14:03\""):
        interval(text)


# --- As it is asked.


def test_the_api_shows_filters_and_answers(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.write(records(*LOG), 0, [], MARK)
    kept = Kept()
    kept.flows = tmp_path
    client = Client(kept)

    def flows(**query: str) -> list[str]:
        return [one["time"][17:19] for one in ok(client.get(f"{OURS}/flows", params=query))["flows"]]

    assert flows() == ["50", "25", "30", "20", "10", "00"]
    assert flows(event="opened", member="10.0.0.11:8080") == ["20", "00"]
    assert flows(client="203.0.113.8") == []
    assert flows(since="2027-01-15 08:00:20Z", until="2027-01-15 08:00:30Z") == ["25", "20"]
    assert flows(limit="1") == ["50"]
    answer = ok(client.get(f"{OURS}/flows/who", params={"snat": "10.0.0.101:40123", "at": "2027-01-15 08:00:26Z"}))
    assert [(one["member"], one["end"]) for one in answer["tenants"]] == [
        ("10.0.0.12:8080", "closed"),
        ("10.0.0.11:8080", "closed"),
    ]
    assert answer["log_begins"] == "2027-01-15T08:00:00.000000Z"
    one_member = {"snat": "10.0.0.101:40123", "at": "2027-01-15 08:00:26Z", "member": "10.0.0.12"}
    assert len(ok(client.get(f"{OURS}/flows/who", params=one_member))["tenants"]) == 1
    assert ok(client.get(f"{OURS}/flow-log"))["flow_log"]["kept"] == 6
    archive.close()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("flows?event=none", "event: 'none' is none of opened, closed, rejected, lost, withheld"),
        ("flows?client=here", "'here' is not an IPv4 address"),
        ("flows?since=once", "'once' is no time"),
        ("flows/who?snat=10.0.0.101", "snat: '10.0.0.101' has no port"),
        ("flows", "gateway.flow_log: it is off, so nothing was kept to be listed (set it to store)"),
    ],
)
def test_the_api_says_what_is_wrong(path: str, said: str) -> None:
    assert said in refused(Client(Kept()).get(f"{OURS}/{path}"), 400, "ELB.8902")
