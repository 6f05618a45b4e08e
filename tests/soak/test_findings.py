"""Each finding of a soak turns red by a fault of its own, and by no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from .books import Kernel, Process, Remembered
from .clients import KINDS, Journey
from .exchange import JOURNEY_SHIFT, Request, answer, back, request_of, said, stream
from .judge import Disturbance, Flow, growth
from .operator import Met, Sample
from .report import FLAT_FROM, Finding, findings, page, shown
from .run import Books
from .wanted import VIPS

MEMBER, PEER, AT = "10.0.0.12:8080", "10.0.0.101:40000", 1000.0
MB = 1 << 20


def process(memory: int = 100 * MB, threads: int = 10, **kinds: int) -> Process:
    return Process(2 * memory, memory, threads, Counter({"socket:[N]": 5, "anon_inode:bpf-map": 30}) + Counter(kinds))


def kernel(**other: int) -> Kernel:
    return Kernel(("conntrack",), {"conntrack": 1 << 20}, {"10.0.0.12:8080/6": 8192}, 6, 6, 6, **{"access": 1, **other})


def good() -> Books:
    """One journey of each kind to each pool, and all that belongs to it."""
    books = Books(FLAT_FROM, 1)
    for number, (pool, kind) in enumerate(((pool, kind) for pool in VIPS for kind in KINDS), 1):
        vip, tcp, udp = VIPS[pool]
        where = f"{vip}:{tcp if kind.protocol == 'TCP' else udp}"
        member, name = (MEMBER, "member-2") if kind.protocol == "TCP" else ("10.0.0.12:5353", "member-2")
        journey = Journey(number, kind.name, kind.protocol, pool, "203.0.113.7", where, AT, 40_000 + number)
        journey.good = journey.ended = AT + 2
        journey.answered, journey.told, journey.took = 2, [(name, PEER)], [0.1, 0.2]
        books.journeys.append(journey)
        books.served.setdefault(name, []).extend((number << JOURNEY_SHIFT | place, PEER) for place in range(2))
        ends = (f"203.0.113.7:{journey.port}", where, PEER, member)
        books.flows.append(Flow(kind.protocol, *ends, AT, AT + 2, "CLIENT_FIN"))
    samples = [Sample(AT + second, 7, process()) for second in range(100)]
    books.met = Met(looks=Counter(status=9), changes=Counter(weights=100), samples=samples)
    books.processes = {"before": process(), "after": process()}
    books.kernels = {"before": kernel(), "after": kernel()}
    books.remembered = Remembered({"fragments": 3}, {"fragments": 0})
    books.flow_log, books.events, books.flow_bytes = {"lost": 0, "withheld": 0}, 24, 24 * 200
    books.revisions, books.store, books.log = (1, 101), (0, 100_000), "INFO a line\n" * 500
    return books


def rough(books: Books) -> Journey:
    return next(one for one in books.journeys if one.pool == "rough" and one.protocol == "TCP")


def fails(books: Books, pool: str) -> None:
    one = next(one for one in books.journeys if one.pool == pool)
    one.error = "ConnectionResetError"


def fails_explained(books: Books) -> None:
    fails(books, "rough")
    books.met.disturbances.append(Disturbance("member down", "member-2", AT + 2, AT + 3))


def fails_later(books: Books) -> None:
    """The member was well again long before all was still good."""
    fails(books, "rough")
    books.met.disturbances.append(Disturbance("member down", "member-2", AT - 60, AT - 50))


def fails_elsewhere(books: Books) -> None:
    fails(books, "rough")
    books.met.disturbances.append(Disturbance("member down", "member-onprem", AT, AT + 3))


def fails_in_silence(books: Books) -> None:
    fails_explained(books)
    journey_of(books, error="TimeoutError: ")


def set_of(books: Books, **fields: object) -> None:
    for name, value in fields.items():
        setattr(books, name, value)


def journey_of(books: Books, **fields: object) -> None:
    for name, value in fields.items():
        setattr(rough(books), name, value)


def flow_of(books: Books, **fields: object) -> None:
    place = books.journeys.index(rough(books))
    books.flows[place] = books.flows[place]._replace(**fields)


def grow(books: Books) -> None:
    """A leak of 100 kB a second."""
    books.met.samples = [
        replace(one, process=process(100 * MB + 100_000 * place)) for place, one in enumerate(books.met.samples)
    ]


FAULTS: dict[str, tuple[Callable[[Books], object], str]] = {
    "a member that stays fails": (lambda b: fails(b, "steady"), "no connection to members that stay failed"),
    "a failure for no reason": (lambda b: fails(b, "rough"), "whatever else failed"),
    "a failure after the reason": (fails_later, "whatever else failed"),
    "a failure at another member": (fails_elsewhere, "whatever else failed"),
    "silence": (fails_in_silence, "whatever else failed"),
    "a kind that is not answered": (lambda b: journey_of(b, kind="other"), "every kind of client"),
    "a request that no member saw": (lambda b: b.served["member-2"].pop(), "clients, members and the flow log"),
    "a request seen twice": (lambda b: b.served["member-2"].append(b.served["member-2"][-1]), "clients, members"),
    "wrong bytes at a member": (lambda b: b.served["member-2"].append((0, PEER)), "clients, members"),
    "another member's answer": (lambda b: journey_of(b, told=[("member-onprem", PEER)]), "clients, members"),
    "another SNAT address logged": (lambda b: flow_of(b, snat="10.0.0.102:1"), "clients, members"),
    "a connection not logged": (lambda b: b.flows.pop(), "clients, members"),
    "a connection without an end": (lambda b: flow_of(b, reason="", ended=0.0), "clients, members"),
    "a connection logged twice": (lambda b: b.flows.append(b.flows[0]), "clients, members"),
    "a change refused": (lambda b: b.met.refused.append("change: no"), "every change and question"),
    "books out of balance": (lambda b: b.met.complaints.append("unbalanced"), "the books balanced"),
    "an event lost": (lambda b: set_of(b, flow_log={"lost": 1, "withheld": 0}), "no event was lost"),
    "a slot left": (lambda b: set_of(b, left=["a slot"]), "every count is 0"),
    "a fragment of later": (lambda b: set_of(b, remembered=Remembered({}, {"fragments": 1})), "fragments, stays"),
    "an access list left": (lambda b: b.kernels.update(after=kernel(access=2)), "pins, maps' memory"),
    "a descriptor more": (lambda b: b.processes.update(after=process(pipe=1)), "the daemon has the same descr"),
    "a descriptor fewer": (lambda b: b.processes.update(before=process(pipe=1)), "the daemon has the same descr"),
    "threads": (lambda b: b.processes.update(after=process(threads=16)), "the daemon has no more threads"),
    "memory": (grow, "its own memory is flat"),
    "a store that grows": (lambda b: set_of(b, store=(0, 10_000_000)), "the store grows"),
    "a flow log that grows": (lambda b: set_of(b, flow_bytes=10_000_000), "the flow log takes"),
    "a log that grows": (lambda b: set_of(b, log="INFO a line\n" * 5_000), "the daemon's log is bounded"),
    "a traceback": (lambda b: set_of(b, log="Traceback\n"), "no traceback"),
}


def red(books: Books) -> list[Finding]:
    return [one for one in findings(books) if not one.good]


def test_a_good_soak_has_no_red_finding_and_can_be_shown() -> None:
    books = good()
    assert red(books) == []
    assert "| rough | TCP, long | 1 | 2 |" in page(books, findings(books))
    assert "FAIL" not in shown(findings(books))


def test_what_was_done_to_its_member_explains_a_failure() -> None:
    books = good()
    fails_explained(books)
    assert red(books) == []
    assert "1 member down" in page(books, findings(books))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_turns_its_finding_red_and_no_other(fault: str) -> None:
    plant, what = FAULTS[fault]
    books = good()
    plant(books)
    (found,) = red(books)
    assert found.what.startswith(what)
    assert f"FAIL  {found.what}" in shown([found])


def test_a_port_that_is_used_again_at_once_is_told_apart() -> None:
    """By one client, for two connections, the second a moment after the end of the first."""
    books = good()
    first = rough(books)
    again = replace(first, number=100, began=first.ended + 0.05, ended=first.ended + 1, told=[("member-2", "other:1")])
    books.journeys.append(again)
    books.served["member-2"].extend((100 << JOURNEY_SHIFT | place, "other:1") for place in range(2))
    its = books.flows[books.journeys.index(first)]
    logged = its._replace(snat="other:1", opened=again.began + 0.01, ended=again.ended)
    books.flows.append(logged)
    assert red(books) == []
    books.flows.remove(logged)
    (found,) = red(books)
    assert found.what.startswith("clients, members")


def test_memory_is_flat_though_it_warms_up_and_wavers() -> None:
    grown = growth([50, *range(50, 100), *[100 + place % 3 for place in range(450)]])
    assert grown.is_flat
    with pytest.raises(ValueError, match="too few"):
        growth([1, 2])


def test_one_wrong_byte_either_way_is_seen() -> None:
    request = Request(5 << JOURNEY_SHIFT, 100, 1000)
    assert request_of(request.packed()[:20]) == request
    assert request.packed()[20:] == stream(request.number, 100)
    whole = answer(request, "member-1", PEER)
    assert said(request, whole) == ("member-1", PEER)
    assert back(request.number, 8) != stream(request.number, 8)
    others = answer(request._replace(number=6), "member-1", PEER)
    for wrong in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), others):
        with pytest.raises(ValueError, match="wrong bytes"):
            said(request, wrong)
