"""The gateway benchmark's arithmetic: rounds belong together, and what links and ends cost is subtracted."""

from __future__ import annotations

import pytest

from tests.bench.gateway_figures import Result, Sample, Target, judge, percentile, records
from tests.bench.gateway_report import tables


def result(**ns: list[float]) -> Result:
    samples = {system.replace("_", "-"): [Sample(each) for each in values] for system, values in ns.items()}
    return Result("udp-64", 1, "packet", "drop", samples)


# The second round ran on a machine twice as slow.
SLOWED = result(drop=[100, 200, 100], nftables=[1100, 2200, 1100], ipbackend=[200, 400, 350])


def of(system, made):
    return next(record for record in made if record["system"] == system)


def test_the_baseline_of_the_same_round_is_subtracted():
    made = of("ipbackend", records(SLOWED))

    assert (made["ns_median"], made["ns_min"], made["ns_max"]) == (200, 100, 250)
    assert (made["whole_ns_median"], made["whole_ns_min"], made["whole_ns_max"]) == (350, 200, 400)
    assert made["rounds"] == 3


def test_a_ratio_is_the_median_of_the_ratios_of_each_round():
    made = of("ipbackend", records(SLOWED))

    assert made["ratio_to_nftables"] == pytest.approx(200 / 1100, abs=1e-4)
    assert made["ratio_to_nftables_max"] == pytest.approx(350 / 1100, abs=1e-4)
    assert made["net_ratio_to_nftables"] == 0.1
    assert made["net_ratio_to_nftables_max"] == 0.25
    assert "ratio_to_haproxy" not in made  # which did not run


@pytest.mark.parametrize(("net", "limit", "met"), [(False, 0.182, True), (False, 0.181, False), (True, 0.1, True)])
def test_a_target_is_met_up_to_its_limit(net, limit, met):
    target = Target("to nftables", "udp-64", 1, "nftables", limit, net)
    not_run = Target("of another case", "new-flow", 1, "nftables", 1)

    (judgement,) = judge((target, not_run), records(SLOWED))

    assert judgement.met is met


def test_losses_and_latencies_are_told():
    latencies = list(range(1000, 101_000, 1000))
    samples = {"drop": [Sample(1, 0, latencies)], "ipbackend": [Sample(2, 7, latencies)]}
    made = of("ipbackend", records(Result("udp-64", 1, "packet", "drop", samples)))

    assert (made["lost"], made["latency_p50_ns_median"], made["latency_p99_ns_median"]) == (7, 50_000, 99_000)
    assert "7 lost, p50 50.0 µs, p99 99.0 µs" in tables([made], [])


@pytest.mark.parametrize(("values", "percent", "expected"), [([5], 99, 5), ([4, 1, 3, 2], 50, 2), ([1, 2, 3], 50, 2)])
def test_percentile_by_nearest_rank(values, percent, expected):
    assert percentile(values, percent) == expected
