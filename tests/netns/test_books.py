"""The daemon's own books: under traffic they balance, and what is planted in them is found, told, and over again."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from ipbackend.abi import Verdict
from ipbackend.datapath.maps import Maps
from tests.netns.clients import UdpClient, http_get
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import CLIENTS, Lab
from tests.netns.members import running
from tests.netns.test_gateway import wait_until
from tests.netns.test_metrics import RESOLVER, WEB, status, values

pytestmark = pytest.mark.root

SMALL = CONFIGURATION.replace("[gateway]\n", "[gateway]\nmax_connections = 10000\n", 1).replace(
    "port = 8080", "port = 8080, max_connections = 1000"
)


@pytest.fixture(scope="module")
def lab(own_run: None) -> Iterator[Lab]:
    """A lab of its own, with its members."""
    with Lab() as lab, running(lab.members()):
        yield lab


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    """With tables that an audit is soon through with: those of a gateway that others use as well cannot grow again."""
    with Gateway(lab, SMALL, "books") as gateway:
        yield gateway


@contextmanager
def churning(lab: Lab) -> Iterator[list[int]]:
    """Connections that come and go, in two threads; how many there were."""
    stop, done = threading.Event(), [0, 0]

    def churn(number: int) -> None:
        with UdpClient(lab["client"], CLIENTS[8 + number], RESOLVER) as asking:
            while not stop.is_set():
                http_get(lab["client"], CLIENTS[8 + number], WEB)
                asking.ask(b"?")
                done[number] += 1

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(2)]
    for one in threads:
        one.start()
    try:
        yield done
    finally:
        stop.set()
        for one in threads:
            one.join()


def checks(gateway: Gateway) -> float:
    return values(gateway).sum("conservation_check_duration_seconds_count")


def moved(row: Mapping[str, list[int]], number: int, field: str | None = None) -> list[int]:
    """A row of counters with one too many."""
    return [column[number] + (name == field or field is None) for name, column in row.items()]


def test_under_traffic_the_books_balance_and_what_is_planted_is_found(gateway: Gateway, lab: Lab) -> None:
    wait_until(lambda: status(gateway)["unbalanced"] == [])
    with churning(lab) as done:
        start = checks(gateway)
        wait_until(lambda: checks(gateway) >= start + 3, deadline=60)
        audited = values(gateway).sum("audit_last_timestamp_seconds")
        wait_until(lambda: values(gateway).sum("audit_last_timestamp_seconds") > audited, deadline=300)
    assert min(done) > 10
    assert status(gateway)["unbalanced"] == status(gateway)["audit"] == []
    assert "the books do not balance" not in gateway.log()
    assert "audit" not in gateway.log()

    with Maps(gateway.run_directory) as maps:
        rows = {name: maps[name].columns(2) for name in ("listener_counts", "endpoint_counts")}
        (packets,) = maps["verdicts"].columns(len(Verdict)).values()
        maps["listener_counts"].put_row(0, moved(rows["listener_counts"], 0, "reply_packets"))
        maps["endpoint_counts"].put_row(0, moved(rows["endpoint_counts"], 0, "opened"))
        maps["verdicts"].put_row(Verdict.DROP_TTL, [packets[Verdict.DROP_TTL] + 1])
        number = min(number for _, number in maps.directory("endpoints_by_addr").entries())
        entry = next(one for one in maps.of_endpoint("free_slots", number) if one.slot)
        slot, entry.slot = entry.slot, 0
        try:
            wait_until(lambda: len(status(gateway)["unbalanced"]) == 4, deadline=60)
            wait_until(lambda: status(gateway)["audit"], deadline=300)
            shown = gateway.ask("status")
            assert shown.returncode == 1
            assert shown.stdout.count("books do not balance: ") == 5
            (line,) = status(gateway)["audit"]
            assert re.fullmatch(
                rf"endpoint {number}: slot \d+, (FREE|CLOSED|EXPIRED), how often it is in the queue, and should be: "
                "they differ by -1",
                line,
            )
            assert line in gateway.ask("audit").stdout
            assert values(gateway).sum("audit_differences") == 1
            assert gateway.log().count(f"audit: {line}") == 1
            told = status(gateway)["unbalanced"]
            assert {one.partition(": they")[0] for one in told} == {
                "packets: received, passed + forwarded + rejected + dropped",
                "replies: by verdict, by listener",
                "replies: by listener, by member",
                "connections opened: by listener, by member",
            }
            assert values(gateway).sum("unbalanced_books") == 4
            assert gateway.log().count("the books do not balance: ") == 4
        finally:
            for name, row in rows.items():
                maps[name].put_row(0, [column[0] for column in row.values()])
            maps["verdicts"].put_row(Verdict.DROP_TTL, [packets[Verdict.DROP_TTL]])
            entry.slot = slot
    wait_until(lambda: status(gateway)["unbalanced"] == [], deadline=30)
    assert "the books balance again" in gateway.log()
    wait_until(lambda: status(gateway)["audit"] == [], deadline=300)
    assert "audit: all agrees with the slots again" in gateway.log()
