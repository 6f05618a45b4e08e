"""Two CPUs at full speed, and the largest table there is: the ceiling is exact and every slot comes back."""

import itertools
import os
import threading
import time
from typing import Any

import pytest
from scapy.layers.inet import TCP

from ipbackend.abi import RATE_SECOND, TICK_SHIFT, Phase, SweepMode, Verdict
from ipbackend.datapath import syscall
from ipbackend.datapath.audit import audit
from ipbackend.sizing import FIRST_SNAT_PORT
from tests.packet.cast import SNATS, all_half_open, from_member, pool_of
from tests.packet.choices import chosen_by, demanding, member
from tests.packet.conftest import Dataplane
from tests.packet.driver import ACK, FIN, RST, SYN, Burst, Driver

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU runs no races")
MEMBER = "10.0.0.21"


def start(dataplane: Dataplane, ceiling: int) -> Any:
    """A pool of one member, which is another for each ceiling: a table that is there does not grow."""
    port = 8000 + ceiling % 5557
    dataplane.configure(all_half_open(pool_of(f'address = "{MEMBER}", port = {port}, max_connections = {ceiling}')))
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
        assert load.active == load.half_open == ceiling
        closed = sent(unconfigured, driver, Burst(2 * each, RST), Burst(2 * each, RST))
        assert closed[Verdict.FORWARD_REQUEST] >= ceiling
        assert load.active == load.half_open == 0
        assert audit(unconfigured.maps) == []


def test_exactly_the_budget_of_handshakes_is_admitted(unconfigured, driver):
    """A tenth of the ceiling, from both CPUs at once; then all are closed, by both CPUs at once."""
    load = start(unconfigured, 1000)
    load.half_open_limit = 100
    for _ in range(20):
        opened = sent(unconfigured, driver, Burst(2000, SYN), Burst(2000, SYN, first=2000))
        assert opened == {Verdict.FORWARD_OPENED: 100, Verdict.DROP_HALF_OPEN: 3900}
        assert load.active == load.half_open == 100
        sent(unconfigured, driver, Burst(4000, RST), Burst(4000, RST))
        assert load.active == load.half_open == 0
        assert audit(unconfigured.maps) == []


def limited(dataplane: Dataplane, **settings: Any) -> Any:
    """A pool with room for all, and a listener that demands this; its own load."""
    dataplane.configure(demanding(chosen_by("ROUND_ROBIN", member(4000, ceiling=20_000), member(4001)), **settings))
    (listener,) = dataplane.entries.listeners.values()
    dataplane.maps["listener_load"].memory()[listener.id].due = 0
    return dataplane.maps["listener_load"].memory()[listener.id]


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_exactly_the_listeners_limit_is_admitted(unconfigured, driver, limit):
    """From both CPUs at once, never one more, and none refused before; then all are closed, by both at once."""
    load = limited(unconfigured, max_connections=limit)
    each = 4 * limit + 200
    for _ in range(20):
        opened = sent(unconfigured, driver, Burst(each, SYN), Burst(each, SYN, first=each))
        assert opened == {Verdict.FORWARD_OPENED: limit, Verdict.REJECT_LISTENER_FULL: 2 * each - limit}
        assert load.active == limit
        sent(unconfigured, driver, Burst(2 * each, RST), Burst(2 * each, RST))
        assert load.active == 0
        assert audit(unconfigured.maps) == []


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_the_listeners_limit_while_connections_end(unconfigured, driver, limit):
    """One CPU opens, the other closes the same ones: never above the limit, and what was opened is given back."""
    load, highest, done = limited(unconfigured, max_connections=limit), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, load.active)

    thread = threading.Thread(target=watch)
    thread.start()
    opened = 0
    try:
        for _ in range(20):  # many starts: two CPUs overlap only when the machine gives both
            verdicts = sent(unconfigured, driver, Burst(15_000, SYN, span=500), Burst(15_000, RST, span=500))
            opened += verdicts[Verdict.FORWARD_OPENED]
    finally:
        done.set()
        thread.join()
    assert opened > limit
    assert highest <= limit
    sent(unconfigured, driver, Burst(500, RST))

    assert load.active == 0
    assert audit(unconfigured.maps) == []


@pytest.mark.parametrize("rate", ["cps", "source_cps"])
def test_no_more_than_the_rate_by_both_cpus(unconfigured, driver, rate):
    """Both draw from one bucket, of the listener or of the one client that sends all: each token is taken once."""
    refusal = {"cps": Verdict.DROP_LISTENER_RATE, "source_cps": Verdict.DROP_SOURCE_RATE}[rate]
    limited(unconfigured, **{rate: 300})
    began = time.monotonic()
    verdicts = sent(unconfigured, driver, Burst(5_000, SYN), Burst(5_000, SYN, first=5_000))
    spent = time.monotonic() - began

    assert set(verdicts) == {Verdict.FORWARD_OPENED, refusal}
    assert 300 <= verdicts[Verdict.FORWARD_OPENED] <= 300 + 300 * (spent + 0.01)


def test_tokens_are_given_back_by_both_cpus(unconfigured, driver):
    """What the members refuse leaves the bucket as it was, to the token."""
    load = limited(unconfigured, cps=1_000_000)
    for number in unconfigured.entries.endpoints:
        unconfigured.maps["load"].memory()[number].ceiling = 10
    now = unconfigured.maps.clock.now() * (1 << TICK_SHIFT) * RATE_SECOND // unconfigured.settings.hz
    load.due = now + RATE_SECOND * 8 // 10  # so that time does not come to it meanwhile
    before, interval = load.due, RATE_SECOND // 1_000_000
    verdicts = sent(unconfigured, driver, Burst(5_000, SYN), Burst(5_000, SYN, first=5_000))
    for number, endpoint in unconfigured.entries.endpoints.items():
        unconfigured.maps["load"].memory()[number].ceiling = endpoint.ceiling

    assert verdicts[Verdict.FORWARD_OPENED] == 20
    assert load.due == before + 20 * interval
    assert load.active == 20


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

    assert load.active == load.half_open == 0


@pytest.mark.parametrize("others", [(), (ACK,), (FIN | ACK,), (RST,)], ids=["alone", "acked", "finished", "reset"])
@pytest.mark.parametrize("seconds", [0, 5])
def test_handshakes_that_end_while_they_begin(unconfigured, driver, others, seconds):
    """The member answers every slot over and over, and sweeps go on: each handshake leaves its budget once."""
    load = start(unconfigured, 60)
    unconfigured.settings.syn_sent_timeout = unconfigured.settings.syn_received_timeout = seconds
    unconfigured.settings.closing_timeout = unconfigured.settings.rest = seconds
    ((endpoint, entry),) = unconfigured.entries.endpoints.items()
    answers = [
        bytes(from_member(MEMBER, snat) / TCP(sport=entry.key.port, dport=FIRST_SNAT_PORT + port, flags=flags))
        for port in range(entry.slots // len(SNATS))
        for snat in SNATS
        for flags in ("SA", "SA", "SA", "R")
    ]
    begun, done = threading.Event(), threading.Event()

    def answer() -> None:
        os.sched_setaffinity(0, {driver.cpus[1]})
        for number in itertools.count():
            syscall.run(unconfigured.program.entry, answers[number * 7 % len(answers)])
            if number % 50 == 0:
                unconfigured.tables.sweep(endpoint, SweepMode.EXPIRED)
            begun.set()
            if done.is_set():
                break

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        assert begun.wait(10)
        before = unconfigured.verdicts()
        while thread.is_alive() and (unconfigured.verdicts() - before)[Verdict.FORWARD_REPLY] < 2000:
            driver.send(*(Burst(50_000, flags, span=100) for flags in (SYN, *others)))
            driver.send(Burst(100, ACK), Burst(100, RST, first=50))
    finally:
        done.set()
        thread.join()
    assert audit(unconfigured.maps) == []
    unconfigured.sweep(SweepMode.ENDPOINT)

    assert load.active == load.half_open == 0


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
    assert load.active == load.half_open == 0
    assert audit(unconfigured.maps) == []
    assert unconfigured.sweep() == (0, 100_000)
    assert audit(unconfigured.maps) == []
    ring = unconfigured.maps.of_endpoint("free_slots", number).values("slot")
    first = unconfigured.entries.endpoints[number].first
    assert sorted(ring) == list(range(first, first + slots))
