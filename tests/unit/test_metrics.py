"""What Prometheus reads: names, labels and text; the docs, the alerts and the dashboard that go with them."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ipbackend import instruments
from ipbackend.exposition import FAMILIES, PREFIX, labels, text
from ipbackend.metrics import Names, State, of_state
from tests.unit.monitoring import DOCS, MONITORING, expressions, families, named, promtool, table
from tests.unit.serving import Client, Kept
from tests.unit.wanted import API, HTTP, SHARED, SHOP, WEB, wanted

RULES = [str(path) for path in sorted(MONITORING.glob("*.yml"))]
PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}  # of the client library's own


def test_names_follow_the_conventions() -> None:
    """prometheus.io/docs/practices/naming: a prefix, base units, and _total for what only grows."""
    for name, one in families().items():
        assert re.fullmatch(r"ipbackend_[a-z]+(_[a-z]+)*", name)
        assert name.endswith("_total") == (one.kind == "counter")
        assert not re.search(r"_(ms|us|ns|minutes|kb|mb|percent)(_|$)", name)
        if one.kind == "histogram":
            assert name.endswith("_seconds")
        assert one.help.endswith(".")
        assert not set(one.labels) & {"instance", "job", "le", "quantile"}


def test_label_values_may_hold_anything() -> None:
    strange = 'a "quoted" C:\\new\nline, {braces} ü'
    written = text(
        [("listener_connections", [(labels(FAMILIES["listener_connections"].labels, ("lb", strange, "TCP")), 7)])]
    )
    (family,) = text_string_to_metric_families(written)
    assert family.samples[0].labels == {"load_balancer": "lb", "listener": strange, "protocol": "TCP"}
    assert family.samples[0].value == 7


def test_large_numbers_stay_exact() -> None:
    assert f"{PREFIX}packets_received_total 18446744073709551615\n" in text(
        [("packets_received_total", [("", 2**64 - 1)])]
    )


def test_a_resource_is_called_by_its_name_unless_that_is_missing_or_shared() -> None:
    unnamed, other = replace(HTTP, id="x", name="", port=9), replace(API, name="http")
    assert Names(wanted(SHOP, WEB, SHARED, HTTP, API, unnamed)).listeners == {"http": "http", "api": "api", "x": "x"}
    assert Names(wanted(SHOP, WEB, SHARED, HTTP, other, unnamed)).listeners == {"http": "http", "api": "api", "x": "x"}
    renamed = wanted(SHOP, WEB, SHARED, replace(HTTP, id="a1", name="web"), replace(API, id="a2", name="web"))
    assert Names(renamed).listeners == {"a1": "a1", "a2": "a2"}
    assert Names(renamed).pools == {"web": "web", "shared": "shared"}


def test_a_daemon_without_a_data_plane_is_scraped_as_well(client: Client, kept: Kept) -> None:
    kept.problem, kept.drift, kept.unbalanced = "it cannot be", ["one", "two"], ["a", "b", "c"]
    kept.audited = ["a", "b", "c", "d"]
    answer = client.get("/metrics")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    values = {
        family.name: family.samples[0].value for family in text_string_to_metric_families(answer.text) if family.samples
    }
    told = {"forwarding": 0, "problem": 1, "drift": 2, "unbalanced_books": 3, "audit_differences": 4, "revision": 1}
    for name, value in told.items():
        assert values[PREFIX + name] == value
    promtool("check", "metrics", given=answer.text)


def test_requests_are_timed_by_what_they_ask(client: Client) -> None:
    def counted() -> dict[tuple[str, ...], float]:
        (family,) = (
            one for one in instruments.REGISTRY.collect() if one.name == "ipbackend_api_request_duration_seconds"
        )
        return {
            (one.labels["method"], one.labels["route"], one.labels["status"]): one.value
            for one in family.samples
            if one.name.endswith("_count")
        }

    before = counted()
    for path in ("elb/pools/web", "elb/pools/shared", "elb/pools/none-such", "nowhere/at/all", "nor/here"):
        client.get(f"/v3/{'f' * 32}/{path}")
    client.request("BREW", "/metrics")
    grown = {key: value - before.get(key, 0) for key, value in counted().items() if value != before.get(key, 0)}
    assert grown == {
        ("GET", "/v3/{project_id}/elb/pools/{number}", "200"): 2,
        ("GET", "/v3/{project_id}/elb/pools/{number}", "404"): 1,
        ("other", "none", "404"): 2,
        ("other", "/metrics", "405"): 1,
    }


def test_the_status_tells_of_books_that_do_not_balance(client: Client, kept: Kept) -> None:
    kept.unbalanced = ["packets: they differ by 1"]
    kept.audited = [f"slot {number}: they differ by 1" for number in range(1000)]
    status = client.get(f"/v3/{'f' * 32}/ipbackend/status").json()["status"]
    assert status["unbalanced"] == kept.unbalanced
    assert status["audit"] == kept.audited[:100]


def test_state_is_all_numbers() -> None:
    assert f"{PREFIX}problem 1\n" in of_state(State(True, True, 0, 0, 0, 5))
    assert f"{PREFIX}forwarding 1\n" in of_state(State(True, True, 0, 0, 0, 5))


# --- Docs, alerts and dashboard.


def test_the_docs_list_every_metric() -> None:
    assert table() in DOCS.read_text(), "put what `python -m tests.unit.monitoring` prints into docs/metrics.md"


def test_promtool_takes_the_rules() -> None:
    promtool("check", "rules", *RULES)


@pytest.mark.parametrize("tests", ["alerts_test.yml", "product_test.yml"])
def test_rules_say_what_they_should(tests: str) -> None:
    promtool("test", "rules", f"tests/unit/{tests}")


def test_every_alert_is_seen_firing_and_not_and_is_in_the_docs() -> None:
    tried = (DOCS.parents[1] / "tests/unit/alerts_test.yml").read_text()
    alerts = re.findall(r"alert: (\w+)", (MONITORING / "alerts.yml").read_text())
    assert len(alerts) == len(set(alerts)) > 5
    for alert in alerts:
        assert re.search(rf"alertname: {alert}\n\s+eval_time: \w+\n\s+exp_alerts:\n\s+- exp_labels", tried), alert
        assert re.search(rf"alertname: {alert}, eval_time: \w+, exp_alerts: \[\]", tried), alert
        assert f"| {alert} |" in DOCS.read_text(), alert


def test_every_metric_of_the_product_is_in_the_docs_and_tried() -> None:
    rules, page = (MONITORING / "product.yml").read_text(), DOCS.read_text()
    ids = re.findall(r"record: elb:(\w+)", rules)
    tried = (DOCS.parents[1] / "tests/unit/product_test.yml").read_text()
    for number in ids:
        assert f"expr: 'elb:{number}" in tried
        assert f"`{number}`" in page


def test_rules_and_dashboard_read_what_there_is() -> None:
    there = families().keys() | PROCESS
    rules = [
        line for path in MONITORING.glob("*.yml") for line in path.read_text().splitlines() if "ipbackend_" in line
    ]
    assert len(expressions()) > 30
    assert {name for one in [*expressions(), *rules] for name in named(one)} - there == set()


def test_the_dashboards_expressions_are_valid(tmp_path) -> None:
    rules = [{"record": f"panel:{number}", "expr": one} for number, one in enumerate(expressions())]
    file = tmp_path / "panels.yml"  # YAML takes JSON
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))


def test_every_label_that_is_asked_for_is_there() -> None:
    """`sum by (nothing)` is valid, and always empty."""
    known = {label for one in families().values() for label in one.labels} | {"le", "instance", "job"}
    rules = [path.read_text() for path in MONITORING.glob("*.yml")]
    for expression in [*expressions(), *rules]:
        for listed in re.findall(r"\b(?:by|on|without|group_left) ?\(([\w, ]*)\)", expression):
            assert set(filter(None, listed.replace(" ", "").split(","))) <= known, expression
        for label in re.findall(r'[{,](\w+)=~?"', expression):
            assert label in known, expression
