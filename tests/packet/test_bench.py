"""The benchmark measures what it says: right frames in, right frames out, and a wrong one is noticed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from ipbackend.abi import Verdict
from tests.bench import bed, established, frames, openings
from tests.bench.driver import Driver, Visit
from tests.bench.rounds import Case, measured
from tests.packet.compare import assert_same

FLOWS = 20
MEMBER = 'address = "10.0.0.11", port = 8080, max_connections = 50'


@pytest.fixture(scope="session")
def built(loaded) -> Iterator[Driver]:
    driver = Driver(20_000, 1_000)
    yield driver
    driver.close()


@pytest.fixture
def bench(built) -> Iterator[Driver]:
    """A driver with no rows; the test stays on one CPU, as it wants."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    with built.borrowed():
        yield built
    os.sched_setaffinity(0, before)


@pytest.fixture
def flows(unconfigured, bench) -> bed.Flows:
    bed.configured(unconfigured, bed.listening("web", 80, [MEMBER]))
    return bed.opened(unconfigured, bench, bed.clients(FLOWS, frames.TCP, 1))


@pytest.mark.parametrize("protocol", [frames.TCP, frames.UDP])
def test_the_driver_makes_the_frames_that_its_rows_say(unconfigured, bench, protocol):
    """Scapy builds the same frame, checksums and all; and all of the row come as they are."""
    shots = bed.clients(FLOWS, protocol, 3)
    row = bench.place(shots)
    shot = shots[0]
    ports = {"sport": int(shot["sport"]), "dport": int(shot["dport"])}
    number = int(shot["sequence"])
    transport = TCP(**ports, flags="A", seq=number, ack=number) if protocol == frames.TCP else UDP(**ports) / bytes(12)
    ip = IP(src=str(IPv4Address(int(shot["saddr"]))), dst=str(IPv4Address(int(shot["daddr"]))), id=0)
    with bed.yardsticks(bench) as programs:
        frame = bench.one(programs["empty"], row)
        seen = bench.observe(programs["empty"], row)

    assert_same(Ether(frame), Ether(src="02:00:00:00:00:07", dst="02:00:00:00:01:00") / ip / transport)
    assert (seen == shots).all()


def test_every_case_is_measured_at_every_level(unconfigured, bench):
    """All frames of all cases leave as they should and end as they should, or there would be no figures."""
    wanted = set(established.CASES)
    lines = list(established.lines(unconfigured, bench, wanted, [1, FLOWS], 1))

    assert {(line["name"], line["flows"]) for line in lines} == {
        (name, number) for name in wanted | {"empty"} for number in (1, FLOWS)
    }
    assert all(line["rounds"] == 15 for line in lines)
    assert all("ratio_to_reference" in line for line in lines if line["name"] != "empty")


def test_openings_are_told_from_what_undoes_them(unconfigured, bench):
    bed.configured(unconfigured, bed.listening("hot", 1000, [MEMBER.replace("50", "500")]))
    with bed.yardsticks(bench) as programs:
        visit = openings.worn(unconfigured, bench, 1024, 1000)
        endpoint = unconfigured.endpoint()
        before = unconfigured.count("endpoint_counts", endpoint, "opened")
        case = Case("new", 1, replace(visit, laps=3), openings.VERDICTS)
        (new,) = openings.above_empty(unconfigured, bench, programs, [case], 2)

    assert len(new.ns) == 2
    assert unconfigured.count("endpoint_counts", endpoint, "opened") - before == 3 * 3 * openings.LAP


@pytest.mark.parametrize("name", ["array_nat", "reference_nat", "ipbackend"])
def test_three_programs_leave_the_same_frames(unconfigured, bench, flows, name):
    with bed.yardsticks(bench, flows) as programs:
        program = {**programs, "ipbackend": unconfigured.program.entry}[name]
        row = bench.place(flows.requests)
        bed.check_rewritten(bench, program, row, frames.turned(flows.replies))
        frame = Ether(bench.one(program, row))

    rebuilt = frame.copy()
    del rebuilt[IP].chksum, rebuilt[TCP].chksum
    assert_same(frame, rebuilt)


def test_a_program_that_does_not_rewrite_is_noticed(unconfigured, bench, flows):
    with bed.yardsticks(bench, flows) as programs, pytest.raises(AssertionError, match=f"{FLOWS} of {FLOWS} frames"):
        bed.check_rewritten(bench, programs["empty"], bench.place(flows.requests), frames.turned(flows.replies))


def test_one_wrong_frame_of_many_is_noticed(unconfigured, bench, flows):
    row = bench.place(flows.requests)
    expected = frames.turned(flows.replies)
    expected["sport"][7] ^= 1
    with pytest.raises(AssertionError, match=f"1 of {FLOWS} frames"):
        bed.check_rewritten(bench, unconfigured.program.entry, row, expected)


def test_packets_that_end_otherwise_are_noticed(unconfigured, bench, flows):
    """One frame of the row belongs to no connection: no figure is made of it."""
    shots = flows.requests.copy()
    shots["sport"][5] ^= 1
    row = bench.place(bed.changed(shots))
    with bed.yardsticks(bench, flows) as programs:
        empty = Case("empty", FLOWS, Visit(programs["empty"], row, FLOWS, 2))
        case = Case(
            "request", FLOWS, replace(empty.visit, program=unconfigured.program.entry), (Verdict.FORWARD_REQUEST,)
        )
        with pytest.raises(AssertionError, match="REJECT_NO_CONNECTION"):
            measured(unconfigured, bench, [empty, case], 1)


def test_what_takes_longer_measures_longer(unconfigured, bench, flows):
    """An orderly packet costs more than none, in every round, and a lap twice as long takes no longer for each."""
    row = bench.place(flows.requests)
    with bed.yardsticks(bench, flows) as programs:
        visits = [Visit(programs["empty"], row, lap, 40) for lap in (1_000, 2_000)]
        visits.append(replace(visits[0], program=unconfigured.program.entry))
        short, long, request = np.median([bench.send(visits).each for _ in range(9)], axis=0)

    assert request > 1.2 * short
    assert 0.7 < short / long < 1.4
