"""What the daemon measures of its own work, for Prometheus. It knows no work: whoever does it says so here."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each counter, which says when it began
REGISTRY = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)
_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SLOW = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(f"ipbackend_{name}", text, labels, registry=REGISTRY, buckets=buckets)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"ipbackend_{name}", text, labels, registry=REGISTRY)


sweeps = _histogram("sweep_duration_seconds", "How long a sweep of all slots took.", _FAST)
sweep_delays = _histogram("sweep_delay_seconds", "How much later than due a sweep began.", _FAST)
swept = _counter("sweep_slots_total", "Slots that sweeps looked at.")
last_sweep = Gauge("ipbackend_sweep_last_timestamp_seconds", "When a sweep ended last.", registry=REGISTRY)
refreshes = _histogram("refresh_duration_seconds", "How long a look at the kernel took, with what it put right.", _SLOW)
checks = _histogram("conservation_check_duration_seconds", "How long it took to compare the books.", _FAST)
audits = _histogram("audit_step_duration_seconds", "How long a step of an audit of the slots took.", _FAST)
last_audit = Gauge("ipbackend_audit_last_timestamp_seconds", "When all was audited last.", registry=REGISTRY)
drift_found = _counter("drift_found_total", "Differences that others made to what is ours.")
drift_repaired = _counter("drift_repaired_total", "Those of them that were put back.")
changes = _counter("changes_total", "Resources changed, by kind and by what was done.", "section", "change")
applied = _histogram("change_duration_seconds", "How long a change took, by how it ended.", _SLOW, "result")
health = _counter("member_status_changes_total", "Members whose operating status changed, by what it became.", "status")
for _status in ("ONLINE", "OFFLINE"):
    health.labels(_status)  # there from the start, at 0
netlink = _histogram("netlink_duration_seconds", "How long the kernel took to answer by netlink.", _FAST, "request")
api = _histogram("api_request_duration_seconds", "How long a request took.", _SLOW, "method", "route", "status")
scrapes = _histogram("scrape_duration_seconds", "How long it took to write what the gateway carries.", _SLOW)


@contextmanager
def timed(histogram: Histogram) -> Iterator[None]:
    """Observe what this takes, whether it succeeds or not."""
    began = time.monotonic()
    try:
        yield
    finally:
        histogram.observe(time.monotonic() - began)


def text() -> str:
    """The exposition of all these."""
    return generate_latest(REGISTRY).decode()
