"""The gateway benchmark measures what it says: everything arrives rewritten or is counted as lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from tests.bench import gateway_systems as systems
from tests.bench.gateway_cases import Scale, counting, exchange, flooded, open_flows, run
from tests.bench.gateway_core import Core
from tests.bench.gateway_figures import Result
from tests.bench.gateway_flood import Flood, Flooder
from tests.bench.gateway_links import Links
from tests.bench.gateway_systems import EXCHANGES, FLOOD_PORT, FLOODS, Setting, System

# Fewer datagrams than a veth's ring holds: none can be lost, whoever else wants the core.
TINY = Scale(
    rounds=2, packets=200, flows=(1, 20), fresh_rounds=2, fresh_flows=100, connections=40, requests=20, bulk=1 << 20
)
PACKETS = 100
ELSEWHERE = ("192.168.0.1",)


@pytest.fixture(scope="module")
def results(own_run: None) -> list[Result]:
    return list(run(FLOODS | EXCHANGES, TINY))


@pytest.fixture(scope="module")
def flooder(own_run: None) -> Iterator[Flooder]:
    with Core() as core, closing(Flooder(core)) as flooder:
        yield flooder


@pytest.fixture
def redirect(flooder: Flooder) -> Iterator[System]:
    """The simplest system that brings everything to the member, its ends counting."""
    with systems.xdp_redirect(Setting(flooder.core, flooder.patch, 1, 1)) as system, counting(flooder, system):
        yield system


def flood_to(system: System) -> Flood:
    return Flood(PACKETS, 10, system.destination, FLOOD_PORT)


@pytest.mark.root
def test_every_case_goes_through_every_system(results):
    made = {(result.name, result.flows): result.samples for result in results}
    both = {"xdp-redirect", "ipbackend", "kernel-forward", "nftables", "nftables-ct-count"}
    udp, tcp = both | {"drop"}, both | {"direct", "haproxy", "nginx"}

    assert {case: set(samples) for case, samples in made.items()} == {
        ("udp-64", 1): udp,
        ("udp-64", 20): udp,
        ("new-flow", TINY.fresh_flows): udp,
        ("tcp-connections", 1): tcp,
        ("http-keepalive", 1): tcp,
        ("bulk-tcp", 1): tcp | {"nftables-segments"},
    }
    assert {len(rounds) for samples in made.values() for rounds in samples.values()} == {TINY.rounds}
    assert all(sample.ns > 0 for samples in made.values() for rounds in samples.values() for sample in rounds)


@pytest.mark.root
def test_nothing_is_lost_where_the_rings_hold_everything(results):
    lost = {
        (result.name, system): [sample.lost for sample in samples]
        for result in results
        for system, samples in result.samples.items()
    }

    assert {key: value for key, value in lost.items() if any(value)} == {}


@pytest.mark.root
def test_every_request_has_a_latency(results):
    latencies = [
        sample.latencies
        for result in results
        if result.name == "http-keepalive"
        for samples in result.samples.values()
        for sample in samples
    ]

    assert {len(each) for each in latencies} == {TINY.requests}


@pytest.mark.root
def test_what_does_not_arrive_is_counted_as_lost(flooder):
    with Links(routed=True) as links:  # a gateway that does not forward
        system = System("nothing", links, systems.MEMBER, ELSEWHERE)
        with counting(flooder, system):
            assert flooded(flooder, system, flood_to(system)).lost == PACKETS
            with pytest.raises(RuntimeError, match="of 5 flows arrived"):
                open_flows(flooder, system, 5)


@pytest.mark.root
def test_what_arrives_otherwise_than_rewritten_is_refused(flooder, redirect):
    assert flooded(flooder, redirect, flood_to(redirect)).lost == 0
    with pytest.raises(RuntimeError, match=f"{PACKETS} of {PACKETS} datagrams arrived, but not as they should"):
        flooded(flooder, replace(redirect, sources=ELSEWHERE), flood_to(redirect))


@pytest.mark.root
def test_a_connection_that_came_another_way_is_refused(flooder):
    with systems.xdp_redirect(Setting(flooder.core, flooder.patch, 1, 1)) as system:
        with exchange(system) as ends:
            ends.connections(3)
        with exchange(replace(system, sources=ELSEWHERE)) as ends, pytest.raises(RuntimeError, match="came from"):
            ends.connections(3)
