"""What a soak has met, held against what must be: findings, and a page with both. It measures nothing."""

from __future__ import annotations

import os
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from .clients import KINDS
from .judge import Failure, by_ends, disagreements, failures, growth
from .run import RATES, RATES_OF_A_MEMBER, Books
from .wanted import PLACES

SHOWN = 12  # lines of what is wrong
MB = 1 << 20
LINES = 12  # that the daemon may log for a change or an act, on average
REVISION = 4_000  # bytes of the store for each, on average; a WAL is beside it
WAL = 4_500_000
EVENT = 400  # bytes of the flow log for each
LOOKERS = 5  # beside the first: asyncio keeps as many threads for looks as were ever at work at once, up to six
READERS = (
    LOOKERS  # SQLite keeps as many descriptors of a file as readers were ever at work at once: a writer has it open
)
FLAT_FROM = 300  # seconds of load, below which memory is told and not judged: a process is still warming up
NAMES = {
    f"{protocol} {place.address}:{port}": place.name
    for place in PLACES
    for protocol, port in (("TCP", place.tcp), ("UDP", place.udp))
}


class Finding(NamedTuple):
    """What must be, whether it is, and how it is."""

    what: str
    good: bool
    how: str
    lines: Sequence[str] = ()


def findings(books: Books) -> list[Finding]:
    """All that is held against each other."""
    return [*_of_clients(books), *_of_operators(books), *_of_rest(books), *_of_process(books), *_of_files(books)]


def _of_clients(books: Books) -> Iterator[Finding]:
    flows = by_ends(books.flows)
    failed = list(failures(books.journeys, flows, books.met.disturbances, NAMES))
    steady = [one for one in failed if one.journey.pool == "steady"]
    rough = [one for one in failed if one.journey.pool == "rough"]
    unexplained = [one for one in rough if not one.explained]
    count = Counter(one.pool for one in books.journeys)
    yield Finding("no connection to members that stay failed", not steady,
                  f"{len(steady)} of {count['steady']:,}", _told(steady))  # fmt: skip
    yield Finding("whatever else failed had a member, or a client, to which something was done at that moment",
                  not unexplained, f"{len(rough)} of {count['rough']:,} failed, {len(unexplained)} unexplained",
                  _told(unexplained))  # fmt: skip
    met = {(one.pool, one.kind) for one in books.journeys if one.answered}
    missing = [f"{pool}: {kind.name}" for pool in ("steady", "rough") for kind in KINDS if (pool, kind.name) not in met]
    yield Finding("every kind of client was answered", not missing, f"{len(met)} kinds of client and pool", missing)
    wrong = list(disagreements(books.journeys, flows, books.served, NAMES))
    yield Finding("clients, members and the flow log tell of the same connections, requests and SNAT addresses",
                  not wrong, f"{sum(map(len, books.served.values())):,} requests seen by members, "
                  f"{len(books.flows):,} connections logged, {len(wrong)} differences", wrong)  # fmt: skip


def _told(failed: Iterable[Failure]) -> list[str]:
    return [
        f"{one.journey.kind} {one.journey.client}:{one.journey.port} → {one.journey.vip} "
        f"{one.journey.good or one.journey.began:.2f} to {one.journey.ended:.2f}: {one.journey.error}; "
        f"told {one.journey.told}; its connections: {', '.join(one.reasons) or 'none'}"
        for one in failed
    ]


def _of_operators(books: Books) -> Iterator[Finding]:
    met = books.met
    yield Finding("every change and question was answered", not met.refused,
                  f"{met.changes.total():,} changes, {met.looks.total():,} questions, {len(met.refused)} refused",
                  met.refused)  # fmt: skip
    yield Finding("the books balanced, nothing was amiss and nothing had drifted, all along", not met.complaints,
                  f"{met.looks['status']:,} looks at the status", met.complaints)  # fmt: skip
    lost = books.flow_log["lost"]
    yield Finding("no event was lost", lost == 0, f"{books.events:,} kept, {lost} lost, "
                  f"{books.flow_log['withheld']:,} rejections withheld")  # fmt: skip


def _of_rest(books: Books) -> Iterator[Finding]:
    before, after = books.kernels["before"], books.kernels["after"]
    slots = sum(after.endpoints.values())
    yield Finding("every count is 0, every slot free and queued once, the flow index empty, the audit clean",
                  not books.left, f"{slots:,} slots, after {books.settled:.0f} s", books.left)  # fmt: skip
    remembered = books.remembered
    assert remembered
    yield Finding("fragments, stays and clients' rates: nothing was written after the load, no rate is in debt",
                  not any(remembered.late.values()),
                  ", ".join(f"{count:,} {name}" for name, count in remembered.entries.items()),
                  [f"{name}: {count}" for name, count in remembered.late.items() if count])  # fmt: skip
    changed = [
        f"{name}: {getattr(before, name)} before, {getattr(after, name)} after"
        for name in before.__dataclass_fields__
        if getattr(before, name) != getattr(after, name)
    ]
    yield Finding("pins, maps' memory, endpoints, listeners, addresses, pools and access lists are the same",
                  not changed, f"{len(after.pins)} pins, {sum(after.memory.values()) / MB:.1f} MiB of the kernel's",
                  changed)  # fmt: skip


def _of_process(books: Books) -> Iterator[Finding]:
    before, after = books.processes["before"], books.processes["after"]
    more, fewer = after.descriptors - before.descriptors, before.descriptors - after.descriptors
    for changed in (more, fewer):
        for kind in [kind for kind, count in changed.items() if kind.endswith("flows-N.db") and count <= READERS]:
            del changed[kind]
    yield Finding("the daemon has the same descriptors", not more and not fewer,
                  f"{before.descriptors.total()} before, {after.descriptors.total()} after",
                  [*(f"{count} more: {kind}" for kind, count in more.items()),
                   *(f"{count} fewer: {kind}" for kind, count in fewer.items())])  # fmt: skip
    yield Finding(f"the daemon has no more threads, but for up to {LOOKERS} that look",
                  after.threads <= before.threads + LOOKERS,
                  f"{before.threads} before, {after.threads} after")  # fmt: skip
    grown, judged = growth(living(books)), books.seconds >= FLAT_FROM
    yield Finding(
        "its own memory is flat" if judged else "its own memory (not judged: too short)",
        grown.is_flat or not judged,
        f"median of the second quarter {grown.second / MB:.2f} MiB, of the last {grown.last / MB:.2f} MiB "
        f"(allowed: {grown.allowed / MB:.2f} more)",
    )


def living(books: Books) -> list[float]:
    """Its own memory over the life of the daemon that lived longest."""
    pids = Counter(one.pid for one in books.met.samples)
    longest = pids.most_common(1)[0][0]
    return [one.process.anonymous for one in books.met.samples if one.pid == longest]


def _of_files(books: Books) -> Iterator[Finding]:
    made = books.revisions[1] - books.revisions[0]
    grown = books.store[1] - books.store[0]
    yield Finding(f"the store grows by less than {REVISION:,} bytes a change, and a WAL",
                  grown <= made * REVISION + WAL,
                  f"{grown / 1000:,.0f} kB for {made:,} revisions")  # fmt: skip
    yield Finding(f"the flow log takes less than {EVENT} bytes an event",
                  books.flow_bytes <= EVENT * books.events + WAL,
                  f"{books.flow_bytes / max(1, books.events):.0f} bytes")  # fmt: skip
    lines = books.log.splitlines()
    allowed = LINES * (made + books.met.acts.total()) + 200
    yield Finding("the daemon's log is bounded by what was done", len(lines) <= allowed,
                  f"{len(lines):,} lines, {len(books.log) / max(1, made):.0f} bytes a change")  # fmt: skip
    bad = [line for line in lines if "Traceback" in line or " ERROR" in line or "bug" in line]
    yield Finding("no traceback and no error in it", not bad, f"{len(bad)}", bad)


def shown(found: Sequence[Finding]) -> str:
    """As a list for a terminal; of what is wrong some lines."""
    rows = []
    for one in found:
        rows.append(f"{'ok  ' if one.good else 'FAIL'}  {one.what}: {one.how}")
        rows += [f"        {line}" for line in one.lines[:SHOWN]] if not one.good else []
        if not one.good and len(one.lines) > SHOWN:
            rows.append(f"        and {len(one.lines) - SHOWN} more")
    return "\n".join(rows)


def page(books: Books, found: Sequence[Finding]) -> str:
    """Markdown: what ran, what came of it, and what was held against each other."""
    rows = [
        f"Load for {books.seconds / 60:.1f} minutes, seed {books.seed}, on {datetime.now(UTC):%Y-%m-%d}: Linux "
        f"{platform.release()}, {os.cpu_count()} CPUs of a shared machine, clients, gateway and members on the same.",
        "",
        *_clients_table(books),
        "",
        *_table(("done", "how often"), [
            *sorted(books.met.changes.items()), *sorted(books.met.acts.items()), *sorted(books.met.looks.items()),
        ]),
        "",
        *_table(("sent by floods", "frames", "a second"), [
            (kind, count, {**RATES, **RATES_OF_A_MEMBER}[kind]) for kind, count in books.floods.items()
        ]),
        "",
        *_table(("verdict", "packets"), sorted(books.verdicts.items())),
        "",
        *_memory_table(books),
        "",
        *_table(("held against each other", "", "how it is"), [
            (one.what, "yes" if one.good else "**no**", one.how) for one in found
        ]),
    ]  # fmt: skip
    return "\n".join(rows) + "\n"


def _clients_table(books: Books) -> list[str]:
    failed = list(failures(books.journeys, by_ends(books.flows), books.met.disturbances, NAMES))
    rows: list[tuple[object, ...]] = []
    for pool in ("steady", "rough"):
        for kind in KINDS:
            its = [one for one in books.journeys if (one.pool, one.kind) == (pool, kind.name)]
            took = [seconds for one in its for seconds in one.took]
            ends = Counter(one.explained or "unexplained" for one in failed if one.journey in its)
            p50, p99 = _percentiles(took)
            again = sum(one.again for one in its)
            lost = ", ".join(f"{count} {what}" for what, count in ends.items()) or 0
            rows.append((pool, kind.name, len(its), len(took), f"{1000 * p50:.1f}", f"{1000 * p99:.0f}", again, lost))
    head = (
        "pool",
        "clients",
        "connections",
        "requests answered",
        "p50, ms",
        "p99, ms",
        "datagrams sent again",
        "failed",
    )
    return _table(head, rows)


def _percentiles(took: list[float]) -> tuple[float, float]:
    if len(took) < 2:
        return (0.0, 0.0)
    cuts = statistics.quantiles(took, n=100)
    return cuts[49], cuts[98]


def _memory_table(books: Books) -> list[str]:
    samples = books.met.samples
    rows: list[tuple[object, ...]] = [_process("before", books.processes["before"])]
    for quarter in (1, 2, 3, 4):
        one = samples[len(samples) * quarter // 4 - 1]
        rows.append(_process(f"after {quarter} of 4 quarters", one.process))
    rows.append(_process("after the rest", books.processes["after"]))
    return _table(("the daemon", "resident, MiB", "its own, MiB", "threads", "descriptors"), rows)


def _process(when: str, one: object) -> tuple[object, ...]:
    resident, anonymous = one.resident / MB, one.anonymous / MB  # type: ignore[attr-defined]
    return when, f"{resident:.1f}", f"{anonymous:.1f}", one.threads, one.descriptors.total()  # type: ignore[attr-defined]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *lines)]
