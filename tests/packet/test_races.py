"""Two CPUs at full speed, and the largest table there is: the ceiling is exact and every slot comes back."""

import os
import threading
from typing import Any

import pytest

from ipbackend.abi import Phase, Verdict
from ipbackend.datapath.audit import audit
from tests.packet.cast import pool_of
from tests.packet.conftest import Dataplane
from tests.packet.driver import RST, SYN, Burst, Driver

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU runs no races")
MEMBER = "10.0.0.21"


def start(dataplane: Dataplane, ceiling: int) -> Any:
    """A pool of one member, which is another for each ceiling: a table that is there does not grow."""
    port = 8000 + ceiling % 5557
    dataplane.configure(pool_of(f'address = "{MEMBER}", port = {port}, max_connections = {ceiling}'))
    return dataplane.load(MEMBER, port)


def sent(dataplane: Dataplane, driver: Driver, *bursts: Burst) -> dict[Verdict, int]:
    """What became of all of their packets."""
    before = dataplane.verdicts()
    driver.send(*bursts)
    return dict(dataplane.verdicts() - before)


@pytest.mark.parametrize("ceiling", [1, 2, 50, 1000])
def test_exactly_the_ceiling_is_admitted(unconfigured, driver, ceiling):
    """Each CPU offers more than the ceiling; then all are closed, by both CPUs at once."""
    load = start(unconfigured, ceiling)
    each = 4 * ceiling + 200
    for _ in range(20):
        opened = sent(unconfigured, driver, Burst(each, SYN), Burst(each, SYN, first=each))
        assert opened == {Verdict.FORWARD_OPENED: ceiling, Verdict.REJECT_ALL_FULL: 2 * each - ceiling}
        assert load.active == ceiling
        closed = sent(unconfigured, driver, Burst(2 * each, RST), Burst(2 * each, RST))
        assert closed[Verdict.FORWARD_REQUEST] >= ceiling
        assert load.active == 0
        assert audit(unconfigured.maps) == []


def test_one_tuple_on_two_cpus_is_one_connection(unconfigured, driver):
    """Both send the same SYNs at the same time: one opens each, the other finds it or stands back."""
    load = start(unconfigured, 25_000)
    for _ in range(10):
        verdicts = sent(unconfigured, driver, Burst(20_000, SYN), Burst(20_000, SYN))
        assert verdicts[Verdict.FORWARD_OPENED] == load.active == 20_000
        assert set(verdicts) <= {Verdict.FORWARD_OPENED, Verdict.FORWARD_REQUEST, Verdict.DROP_NOT_OPENED}
        assert audit(unconfigured.maps) == []
        sent(unconfigured, driver, Burst(20_000, RST), Burst(20_000, RST))
        assert load.active == 0


@pytest.mark.parametrize("span", [1, 16, 500])
def test_opened_here_and_closed_there(unconfigured, driver, span):
    """The same few tuples: a RST meets its connection in whatever state it is."""
    load = start(unconfigured, 20_000)
    sent(unconfigured, driver, Burst(500_000, SYN, span=span), Burst(500_000, RST, span=span))
    assert audit(unconfigured.maps) == []
    sent(unconfigured, driver, Burst(span, RST))

    assert load.active == 0
    assert audit(unconfigured.maps) == []


@pytest.mark.parametrize("others", [(), (SYN,), (RST,)], ids=["alone", "opened twice", "opened and closed"])
def test_a_sweep_that_never_rests(unconfigured, driver, others):
    """Everything is due at once, while it is opened, opened again and closed."""
    load = start(unconfigured, 60)
    unconfigured.settings.syn_sent_timeout = unconfigured.settings.rest = 0
    bursts = [Burst(500_000, flags, first=100 * n, span=500) for n, flags in enumerate((SYN, *others))]
    begun, done, ended = threading.Event(), threading.Event(), 0

    def sweep() -> None:
        nonlocal ended
        os.sched_setaffinity(0, {driver.cpus[1]})
        while not done.is_set():
            ended += unconfigured.sweep()[0]
            begun.set()

    thread = threading.Thread(target=sweep)
    thread.start()
    try:
        assert begun.wait(10)
        verdicts = sent(unconfigured, driver, *bursts)
    finally:
        done.set()
        thread.join()
    assert 0 < ended <= verdicts[Verdict.FORWARD_OPENED]
    assert audit(unconfigured.maps) == []
    unconfigured.sweep()

    assert load.active == 0


def test_every_slot_of_the_largest_table(unconfigured, driver):
    """131,072 slots at a ceiling of 100,000: filled, renewed until each slot was used, and swept."""
    load = start(unconfigured, 100_000)
    number, slots = next(iter(unconfigured.entries.endpoints)), 131_072
    full = sent(unconfigured, driver, Burst(50_000, SYN), Burst(50_100, SYN, first=50_000))
    assert full == {Verdict.FORWARD_OPENED: 100_000, Verdict.REJECT_ALL_FULL: 100}

    first = 100_100
    while load.head < slots:
        batch = min(10_000, slots - load.head)
        assert sent(unconfigured, driver, Burst(batch, RST, first=first - 100_100)) == {Verdict.FORWARD_REQUEST: batch}
        assert sent(unconfigured, driver, Burst(batch, SYN, first=first)) == {Verdict.FORWARD_OPENED: batch}
        first += batch
    assert Phase.FREE not in unconfigured.phases(number)
    assert load.active == 100_000
    assert audit(unconfigured.maps) == []

    unconfigured.settings.syn_sent_timeout = unconfigured.settings.rest = 0
    assert unconfigured.sweep() == (100_000, slots - 100_000)
    assert load.active == 0
    assert audit(unconfigured.maps) == []
    ring = unconfigured.maps["free_slots"].inner(number).bytes.cast("Q")
    assert sorted(ring) == list(range(1, slots + 1))
