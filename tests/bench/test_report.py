"""The report holds figures against targets and hides nothing."""

from tests.bench.report import markdown_table, targets


def line(name: str, flows: int, ns: float, **more: float) -> dict[str, object]:
    return {"name": name, "flows": flows, "ns_median": ns, "ns_min": ns, "ns_max": ns, "rounds": 5} | more


def row(figures: list[dict[str, object]], what: str) -> tuple[str, ...]:
    return next(cells for cells in targets(figures) if cells[0] == what)


def test_a_target_is_met_up_to_its_limit():
    assert row([line("request", 1, 50.0)], "request, 1 flow")[2:] == ("50 ns", "yes")
    assert row([line("request", 1, 50.1)], "request, 1 flow")[2:] == ("50.1 ns", "no")


def test_two_cpus_must_reach_theirs():
    assert row([line("request-two-cpus", 100_000, 1.0, ratio_to_one_cpu=1.95)], "two CPUs, requests")[3] == "yes"
    assert row([line("request-two-cpus", 100_000, 1.0, ratio_to_one_cpu=1.85)], "two CPUs, requests")[3] == "no"


def test_what_was_not_measured_is_said_to_be_so():
    assert {cells[3] for cells in targets([])} == {"met", "not measured"}


def test_a_figure_of_other_flows_is_no_figure():
    assert row([line("request", 1_000, 1.0)], "request, 1 flow")[3] == "not measured"


def test_markdown_has_a_rule_below_its_heading():
    assert markdown_table(iter([("a", "b"), ("1", "2")])).splitlines() == ["| a | b |", "|---|---|", "| 1 | 2 |"]
