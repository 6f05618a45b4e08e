"""The cases: each load through each system, in rounds, on one core. It knows no figures and prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from tests.bench import gateway_systems as systems
from tests.bench.gateway_core import Core, at_most
from tests.bench.gateway_figures import Result, Sample
from tests.bench.gateway_flood import Expectation, Flood, Flooder, Mode, Side
from tests.bench.gateway_links import MEMBER
from tests.bench.gateway_systems import (
    EXCHANGES,
    FIRST_FRESH_PORT,
    FLOOD_PORT,
    FLOODS,
    WEB_PORT,
    Factory,
    Setting,
    System,
)
from tests.bench.gateway_tcp import Exchange
from tests.netns.lab import CLIENT

AT_MOST = 120  # seconds for one turn: what hangs is a bug
KIB = 1024
CLOCK_TRIES, CLOCK_REQUESTS, CLOCK_SHARE = 500, 100, 0.8
DROP, DIRECT = "drop", "direct"  # the baselines
Turn = Callable[[System, int], Sample]
"""One system's share of a round, which has a number."""

SYSTEMS: tuple[Factory, ...] = (
    systems.drop,
    systems.direct,
    systems.xdp_redirect,
    systems.ipbackend,
    systems.kernel_forward,
    systems.nftables,
    systems.nftables_ct_count,
    systems.nftables_segments,
    systems.haproxy,
    systems.nginx,
)


@dataclass(frozen=True)
class Scale:
    """How many rounds, and how much of everything in each: rather many short rounds than few long ones.

    All flows together must stay below the kernel's nf_conntrack_max, 262,144 as a rule.
    """

    rounds: int = 101
    packets: int = 50_000
    flows: tuple[int, ...] = (1, 50_000)
    fresh_rounds: int = 21
    fresh_flows: int = 9000
    connections: int = 250
    requests: int = 500
    bulk: int = 8 << 20


def run(names: Collection[str], scale: Scale) -> Iterator[Result]:
    """The cases of these names, one after the other."""
    with Core() as core, closing(Flooder(core)) as flooder:
        setting = Setting(core, flooder.patch, scale.fresh_flows, scale.fresh_rounds + 1)
        with ExitStack() as stack:
            started = [stack.enter_context(factory(setting)) for factory in SYSTEMS]
            check_clock(core, next(system for system in started if system.name == DIRECT))
            if not FLOODS.isdisjoint(names):
                yield from floods(names, scale, started, flooder)
            if not EXCHANGES.isdisjoint(names):
                yield from exchanges(names, scale, started, core)


def check_clock(core: Core, direct: System) -> None:
    """RuntimeError if this kernel keeps softirqs, where gateways work, out of the clocks that we read.

    Half of what a request takes is theirs; some of many bursts is short enough to be disturbed by nobody.
    """
    with exchange(direct) as ends:
        for _ in range(CLOCK_TRIES):
            with core.measured() as spent:
                elapsed = sum(ends.requests(CLOCK_REQUESTS))
            if spent.ns > elapsed * CLOCK_SHARE:
                return
    raise RuntimeError("threads' clocks leave softirqs out (CONFIG_IRQ_TIME_ACCOUNTING; boot with tsc=noirqtime)")


def interleaved(name: str, started: Sequence[System], rounds: int, turn: Turn) -> dict[str, list[Sample]]:
    """The samples of each system that takes this case; another is first in each round. Turn 0 is not counted."""
    those = [system for system in started if name in system.cases]
    samples: dict[str, list[Sample]] = {system.name: [] for system in those}
    for number in range(rounds + 1):
        first = number % len(those)
        for system in (*those[first:], *those[:first]):
            with at_most(AT_MOST, f"{system.name}, round {number}"):
                sample = turn(system, number)
            if number:
                samples[system.name].append(sample)
    return samples


def floods(names: Collection[str], scale: Scale, started: Sequence[System], flooder: Flooder) -> Iterator[Result]:
    those = [system for system in started if not FLOODS.isdisjoint(system.cases)]
    with ExitStack() as stack:
        for system in those:
            stack.enter_context(counting(flooder, system))
        for flows in scale.flows:
            for system in those:
                with at_most(AT_MOST, f"{system.name}, {flows} flows"):
                    open_flows(flooder, system, flows)

            def established(system: System, _number: int, flows: int = flows) -> Sample:
                flood = Flood(scale.packets, flows, system.destination, FLOOD_PORT, random=True)
                return flooded(flooder, system, flood)

            if "udp-64" in names:
                samples = interleaved("udp-64", those, scale.rounds, established)
                yield Result("udp-64", flows, "packet", DROP, samples)

        def fresh(system: System, number: int) -> Sample:
            flood = Flood(scale.fresh_flows, scale.fresh_flows, system.destination, FIRST_FRESH_PORT + number)
            return flooded(flooder, system, flood)

        if "new-flow" in names:
            samples = interleaved("new-flow", those, scale.fresh_rounds, fresh)
            yield Result("new-flow", scale.fresh_flows, "packet", DROP, samples)


@contextmanager
def counting(flooder: Flooder, system: System) -> Iterator[None]:
    """The ends count what arrives, in XDP, while this is open."""
    ends = {Side.MEMBER: system.arrival, Side.CLIENT: ("client", "eth0")}
    if system.name == DROP:
        del ends[Side.CLIENT]  # nothing comes back
    for side, end in ends.items():
        system.links.attach(end, flooder.ends[side])
    yield
    for end in ends.values():
        system.links.attach(end, -1)


def open_flows(flooder: Flooder, system: System, flows: int) -> None:
    """One datagram and one answer of each flow, checksums verified at both ends; RuntimeError if one is missing."""
    there = Expectation(MEMBER, system.sources, destination_port=FLOOD_PORT)
    back = Expectation(CLIENT, (system.destination,), source_port=FLOOD_PORT)
    flooder.expect(Side.MEMBER, there, Mode.VERIFY if system.name == DROP else Mode.ANSWER)
    flooder.expect(Side.CLIENT, back, Mode.VERIFY)
    flooder.send(system.links, Flood(flows, flows, system.destination, FLOOD_PORT))
    arrived = {side: flooder.arrived(side) for side in Side}
    complete = {Side.MEMBER: (flows, 0), Side.CLIENT: (0, 0) if system.name == DROP else (flows, 0)}
    if arrived != complete:
        raise RuntimeError(f"{system.name}: of {flows} flows arrived, right and wrong: {arrived}")


def flooded(flooder: Flooder, system: System, flood: Flood) -> Sample:
    """Send; every datagram must arrive rewritten, or it was lost. RuntimeError if one arrives otherwise."""
    flooder.expect(Side.MEMBER, Expectation(MEMBER, system.sources, destination_port=flood.port))
    spent = flooder.send(system.links, flood)
    right, wrong = flooder.arrived(Side.MEMBER)
    if wrong:
        raise RuntimeError(f"{system.name}: {wrong} of {flood.packets} datagrams arrived, but not as they should")
    return Sample(spent / flood.packets, lost=flood.packets - right)


def exchanges(names: Collection[str], scale: Scale, started: Sequence[System], core: Core) -> Iterator[Result]:
    with ExitStack() as stack:
        those = [system for system in started if not EXCHANGES.isdisjoint(system.cases)]
        ends = {system.name: stack.enter_context(exchange(system)) for system in those}

        def connections(system: System, _number: int) -> Sample:
            with core.measured(system.tasks) as spent:
                ends[system.name].connections(scale.connections)
            return Sample(spent.ns / scale.connections)

        def requests(system: System, _number: int) -> Sample:
            with core.measured(system.tasks) as spent:
                latencies = ends[system.name].requests(scale.requests)
            return Sample(spent.ns / scale.requests, latencies=latencies)

        def bulk(system: System, _number: int) -> Sample:
            with core.measured(system.tasks) as spent:
                ends[system.name].bulk(scale.bulk)
            return Sample(spent.ns * KIB / scale.bulk)

        loads = {"tcp-connections": connections, "http-keepalive": requests, "bulk-tcp": bulk}
        units = {"tcp-connections": "connection", "http-keepalive": "request", "bulk-tcp": "KiB"}
        for name, load in loads.items():
            if name in names:
                yield Result(name, 1, units[name], DIRECT, interleaved(name, those, scale.rounds, load))


def exchange(system: System) -> Exchange:
    ends = system.links["client"], system.links["member"]
    return Exchange(*ends, (MEMBER, WEB_PORT), system.destination, system.sources)
