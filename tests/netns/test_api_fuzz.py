"""What the OpenAPI document allows and forbids, sent to the real daemon: it never fails, and answers as it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import positive_data_acceptance

from ipbackend.api.app import create_app
from ipbackend.client import SOCKET
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import Lab
from tests.netns.sdk import PROJECT, bridged
from tests.unit.serving import Kept

pytestmark = pytest.mark.root

EXAMPLES = 10  # of each operation, beside those that its parameters and fields ask for one by one
FILTERED = "/v3/{project_id}/elb/pools"
PAGING = ("limit", "marker", "page_reverse")


def document() -> dict[str, Any]:
    """The OpenAPI document, but with the filters of one list only: all lists share the code that filters."""
    whole = create_app(Kept()).openapi()
    for path, methods in whole["paths"].items():
        asked = methods.get("get", {}).get("parameters", [])
        if path != FILTERED and "marker" in {one["name"] for one in asked}:
            methods["get"]["parameters"] = [one for one in asked if one["in"] == "path" or one["name"] in PAGING]
    return whole


# An audit takes a second whatever is asked, and there is nothing to ask: other tests have it.
schema = schemathesis.openapi.from_dict(document()).exclude(path_regex="/audit$")


@pytest.fixture(scope="module")
def url(started: Gateway, lab: Lab) -> Iterator[str]:
    if started.process is None:
        started.start()
    started.apply(CONFIGURATION)
    with bridged(lab["client"], started.run_directory / SOCKET) as endpoint:
        yield endpoint
    assert "Traceback" not in started.log()


@pytest.fixture
def there(url: str, started: Gateway) -> dict[str, list[str]]:
    """Everything as lab.toml says, and the ids of what there is, by the path that leads to it."""
    started.apply(CONFIGURATION)
    with started.client() as client:
        ids = {
            path: [row["id"] for row in client.request("GET", path)[path.rpartition("/")[2]]]
            for path in ("/elb/loadbalancers", "/elb/listeners", "/elb/pools", "/ipbackend/networks")
        }
        pool = ids["/elb/pools"][0]
        members = client.request("GET", f"/elb/pools/{pool}/members")["members"]
    return {**ids, "/elb/pools/{pool}/members": [row["id"] for row in members]}


def aimed(case: Any, there: dict[str, list[str]]) -> None:
    """Have a case that the document allows hit what is there, every other time: guessed ids hit nothing."""
    given = case.path_parameters
    if case.meta is None or not case.meta.generation.mode.is_positive or len(given.get("project_id", "")) % 2:
        return
    given["project_id"] = PROJECT
    section = case.path.removeprefix("/v3/{project_id}").partition("/{number}")[0]
    if "pool" in given:
        given["pool"] = there["/elb/pools"][0]
    if "number" in given and section in there:
        given["number"] = there[section][0]


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_the_document_holds(case: Any, url: str, lab: Lab, there: dict[str, list[str]]) -> None:
    aimed(case, there)
    with lab["client"]:
        case.call_and_validate(base_url=url, excluded_checks=[positive_data_acceptance])
