"""From the ring to the log: what finds room is kept once, the rest is told of, whatever sink or daemon do."""

import sqlite3
import time
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import TCP

from ipbackend.abi import EVENTS_SIZE, EventKind
from ipbackend.flows.archive import Archive
from ipbackend.flows.event import RECORD
from ipbackend.flows.keeper import Keeper
from ipbackend.model import FlowLog, Gateway
from tests.packet.cast import OTHER_CLIENT, from_client
from tests.packet.conftest import RUN
from tests.packet.test_events import REJECTIONS, Verdict, filled, watched  # noqa: F401 - a fixture

GATEWAY = Gateway(("eth0",), (IPv4Address("10.0.0.101"),), flow_log=FlowLog.STORE)
ROOM = EVENTS_SIZE // RECORD.size


@contextmanager
def keeping(folder, gateway=GATEWAY):
    keeper = Keeper(RUN, folder, lambda: gateway)
    keeper.start()
    try:
        yield keeper
    finally:
        keeper.stop()


def one_more(dataplane, port: int) -> None:
    dataplane.open(from_client(OTHER_CLIENT) / TCP(sport=port, dport=80, flags="S"))


def wait_until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)


def kept(keeper, **where: int):
    return keeper.reader.newest(where, 0, 1 << 62, 10**6)


def test_what_comes_while_nobody_reads_is_kept_once(dataplane, watched, driver, tmp_path):  # noqa: F811
    filled(dataplane, driver, watched, ROOM)
    one_more(dataplane, 1)
    there, lost = watched.ring.waiting, watched.missing("lost")
    assert lost > 0
    with keeping(tmp_path) as keeper:
        wait_until(lambda: keeper.standing.written == there and not keeper.standing.waiting)
        wait_until(lambda: kept(keeper, kind=EventKind.LOST))
        assert [one.request_packets for one in kept(keeper, kind=EventKind.LOST)] == [lost]
        assert keeper.reader.size()[0] == there + 1
        assert (keeper.standing.lost, keeper.standing.problem) == (lost, "")
    with keeping(tmp_path) as keeper:
        one_more(dataplane, 2)
        wait_until(lambda: keeper.standing.written == 1)
    assert keeper.reader.size()[0] == there + 2
    assert len(kept(keeper, kind=EventKind.LOST)) == 1


def test_what_was_kept_before_the_daemon_could_say_so_is_not_kept_again(dataplane, watched, tmp_path):  # noqa: F811
    dataplane.establish()
    before = watched.ring.position
    with keeping(tmp_path) as keeper:
        wait_until(lambda: keeper.standing.written == 1)
    watched.ring.advance(before)  # as if it had been killed between the two
    one_more(dataplane, 1)
    with keeping(tmp_path) as keeper:
        wait_until(lambda: keeper.standing.written == 1)

    assert keeper.reader.size()[0] == 2


def test_what_cannot_be_kept_waits(dataplane, watched, tmp_path):  # noqa: F811
    archive = Archive(tmp_path)
    archive.write(b"", 0, [], ("none", 0, 0, 0))
    archive.close()
    (path,) = tmp_path.glob("*.db")
    with sqlite3.connect(path) as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON mark BEGIN SELECT raise(ABORT, 'the disk is full'); END")
        other.commit()
        dataplane.open()
        with keeping(tmp_path) as keeper:
            wait_until(lambda: "the disk is full" in keeper.standing.problem)
            assert (watched.ring.waiting, keeper.standing.written) == (1, 0)
            other.execute("DROP TRIGGER full")
            other.commit()
            wait_until(lambda: keeper.standing.written == 1)
            wait_until(lambda: not keeper.standing.problem)
    other.close()
    assert [one.kind for one in kept(keeper)] == [EventKind.OPENED]


def test_what_is_withheld_is_told(dataplane, watched, tmp_path):  # noqa: F811
    dataplane.run_on_one_cpu(bytes(REJECTIONS[Verdict.REJECT_NO_LISTENER]), 3000)
    with keeping(tmp_path) as keeper:
        wait_until(lambda: kept(keeper, kind=EventKind.WITHHELD))
    (one,) = kept(keeper, kind=EventKind.WITHHELD)

    assert one.request_packets + len(kept(keeper, kind=EventKind.REJECTED)) == 3000


def test_times_are_the_walls(dataplane, watched, tmp_path):  # noqa: F811
    began = time.time_ns()
    dataplane.open()
    ended = time.time_ns()
    with keeping(tmp_path) as keeper:
        wait_until(lambda: keeper.standing.written == 1)
    (one,) = kept(keeper)

    assert began - 10**7 < one.opened <= one.at < ended + 10**7  # the two clocks drift


@pytest.mark.parametrize("gateway", [None, Gateway(("eth0",), (IPv4Address("10.0.0.101"),))], ids=["none", "off"])
def test_nothing_is_read_where_nothing_is_to_be_kept(dataplane, watched, tmp_path, gateway):  # noqa: F811
    dataplane.open()
    with keeping(tmp_path, gateway) as keeper:
        time.sleep(0.2)

    assert (watched.ring.waiting, keeper.standing.written) == (1, 0)
