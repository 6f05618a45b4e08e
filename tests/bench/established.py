"""Packets of connections that are open already, and of none: the cost of each over so many flows, beside yardsticks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ipbackend.abi import Verdict
from tests.bench import bed, frames
from tests.bench.bed import Flows, changed, clients, configured, listening
from tests.bench.driver import Driver, Placed, Visit
from tests.bench.frames import SYN, TCP, UDP
from tests.bench.rounds import Case, Line, measured
from tests.packet.conftest import Dataplane

YARDSTICKS = ("array-nat", "reference-nat")
DATAGRAMS = ("request-udp", "reply-udp")
CASES = (*YARDSTICKS, "not-ours", "request", "reply", *DATAGRAMS, "reject")
MEMBERS = 10  # of 100,000 TCP connections each
DATAGRAM_FLOWS = 100_000  # at the most
FEW = 10_000  # flows that stay in the cache: many short turns, since the machine's own speed comes and goes
LAP = 1_000  # packets


def turns(flows: int, rounds: int) -> tuple[int, int]:
    """Laps in a turn of a case, and how many turns it gets."""
    return (20, rounds * 15) if flows <= FEW else (500, rounds)


@dataclass(frozen=True)
class Level:
    """All cases over these flows."""

    dataplane: Dataplane
    driver: Driver
    flows: Flows
    datagrams: Flows | None

    def lines(self, wanted: set[str], rounds: int) -> Iterator[Line]:
        """The figures of the wanted cases; ratios to the reference NAT of the same round."""
        laps, turns_each = turns(len(self.flows), rounds)
        with bed.yardsticks(self.driver, self.flows) as programs:
            cases = [case for case in self._cases(programs, laps) if case.name in wanted | {"empty", *YARDSTICKS}]
            empty, *series = measured(self.dataplane, self.driver, cases, turns_each)
        yield empty.line()
        (reference,) = (one for one in series if one.name == "reference-nat")
        for one in series:
            yield one.line(**one.ratio_to(reference, "reference"))

    def _cases(self, programs: dict[str, int], laps: int) -> Iterator[Case]:
        def case(name: str, program: int, row: Placed, *verdicts: Verdict) -> Case:
            return Case(name, len(self.flows), Visit(program, row, LAP, laps), verdicts)

        place, entry = self.driver.place, self.dataplane.program.entry
        order = np.random.default_rng(len(self.flows)).permutation(len(self.flows))
        requests, replies = self.flows.requests[order], self.flows.replies[order]
        row, answers = place(requests), place(replies)
        yield case("empty", programs["empty"], row)
        for name in YARDSTICKS:
            program = programs[name.replace("-", "_")]
            bed.check_rewritten(self.driver, program, row, frames.turned(replies))
            yield case(name, program, row)
        bed.check_rewritten(self.driver, entry, row, frames.turned(replies))
        bed.check_rewritten(self.driver, entry, answers, frames.turned(requests))
        strangers = place(changed(requests, daddr=bed.ELSEWHERE))
        refused = place(changed(requests, dport=bed.NO_LISTENER, flags=SYN))
        yield case("not-ours", entry, strangers, Verdict.PASS_NOT_OURS)
        yield case("request", entry, row, Verdict.FORWARD_REQUEST)
        yield case("reply", entry, answers, Verdict.FORWARD_REPLY)
        yield case("reject", entry, refused, Verdict.REJECT_NO_LISTENER)
        if self.datagrams:
            requests, replies = self.datagrams.requests[order], self.datagrams.replies[order]
            row, answers = place(requests), place(replies)
            bed.check_rewritten(self.driver, entry, row, frames.turned(replies))
            bed.check_rewritten(self.driver, entry, answers, frames.turned(requests))
            yield case("request-udp", entry, row, Verdict.FORWARD_REQUEST)
            yield case("reply-udp", entry, answers, Verdict.FORWARD_REPLY)


def lines(dataplane: Dataplane, driver: Driver, wanted: set[str], numbers: list[int], rounds: int) -> Iterator[Line]:
    """The cases over more and more flows, which a pool of ten members shares."""
    members = [f'address = "10.0.0.{host}", port = 8080' for host in range(11, 11 + MEMBERS)]
    few = [f"{member}, max_connections = {DATAGRAM_FLOWS // MEMBERS}" for member in members]
    configured(dataplane, listening("web", 80, members), listening("dns", 53, few, "UDP"))
    requests = clients(max(numbers), TCP, 1)
    queries = clients(min(max(numbers), DATAGRAM_FLOWS), UDP, 2)
    flows = bed.opened(dataplane, driver, requests[:0])
    datagrams = bed.opened(dataplane, driver, queries[:0])
    for number in sorted(numbers):
        flows += bed.opened(dataplane, driver, requests[len(flows) : number])
        if wanted & {*DATAGRAMS} and number <= DATAGRAM_FLOWS:
            datagrams += bed.opened(dataplane, driver, queries[len(datagrams) : number])
        else:
            bed.ended(dataplane, "UDP")
        level = Level(dataplane, driver, flows, datagrams if len(datagrams) == number else None)
        yield from level.lines(wanted, rounds)
