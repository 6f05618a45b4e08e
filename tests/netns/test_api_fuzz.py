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
from tests.netns.lab import MEMBERS, ROUTER_PEERING, THIRD_VIP, Lab
from tests.netns.sdk import PROJECT, bridged
from tests.unit.serving import Kept

pytestmark = pytest.mark.root

EXAMPLES = 10  # of each operation, beside those that its parameters and fields ask for one by one
PATIENCE = 60  # seconds: a roll-back may have the data plane compiled anew, and others may use the machine as well
FILTERED = "/v3/{project_id}/elb/pools"
MONITOR = {"type": "TCP", "delay": 5, "timeout": 3, "max_retries": 3}
LOAD_BALANCERS = ("shop", "office")  # of lab.toml
PAGING = ("limit", "marker", "page_reverse")


def document() -> dict[str, Any]:
    """The OpenAPI document, but with the filters of one list only: all lists share the code that filters."""
    whole = create_app(Kept()).openapi()
    for path, methods in whole["paths"].items():
        asked = methods.get("get", {}).get("parameters", [])
        if path != FILTERED and "marker" in {one["name"] for one in asked}:
            methods["get"]["parameters"] = [one for one in asked if one["in"] == "path" or one["name"] in PAGING]
    return whole


# An audit takes a second whatever is asked, and there is nothing to ask; a capture begins in seconds, and does not end
# by itself: other tests have both.
schema = schemathesis.openapi.from_dict(document()).exclude(path_regex="/(audit|capture)$")


@pytest.fixture(scope="module")
def url(started: Gateway, lab: Lab) -> Iterator[str]:
    if started.process is None:
        started.start()
    started.apply(CONFIGURATION)
    with bridged(lab["client"], started.run_directory / SOCKET) as endpoint:
        yield endpoint
    assert "Traceback" not in started.log()
    with started.client() as client:
        for path in ("/elb/healthmonitors", "/elb/ipgroups"):
            for row in client.request("GET", path)[path.rpartition("/")[2]]:
                client.request("DELETE", f"{path}/{row['id']}")


@pytest.fixture
def there(url: str, started: Gateway) -> dict[str, str]:
    """Everything as lab.toml says, and one of the rest; the id of one of each kind, by the path that leads to it."""
    with started.client() as client:
        for row in client.request("GET", "/elb/loadbalancers")["loadbalancers"]:
            if row["name"] not in LOAD_BALANCERS:  # called otherwise by a case: its listeners cannot have another
                at = f"/elb/loadbalancers/{row['id']}"
                client.request("PUT", at, {"loadbalancer": {"deletion_protection_enable": False}})
                client.request("DELETE", f"{at}/force-elb")
    started.apply(CONFIGURATION)
    with started.client() as client:

        def one(path: str, **named: str) -> str:
            number: str = client.request("GET", path, **named)[path.rpartition("/")[2]][0]["id"]
            return number

        pool = one("/elb/pools", name="web")
        for path, kind, fields in (
            ("/elb/healthmonitors", "healthmonitor", {**MONITOR, "pool_id": pool}),
            ("/elb/ipgroups", "ipgroup", {"ip_list": [{"ip": "192.0.2.1"}]}),
        ):
            if not client.request("GET", path)[f"{kind}s"]:
                client.request("POST", path, {kind: fields})
        return {
            "/elb/loadbalancers": one("/elb/loadbalancers", name="shop"),
            "/elb/listeners": one("/elb/listeners", name="web"),
            "/elb/pools": pool,
            "/elb/pools/{pool}/members": one(f"/elb/pools/{pool}/members"),
            "/ipbackend/networks": one("/ipbackend/networks", name="vpc"),
            **{path: one(path) for path in ("/elb/healthmonitors", "/elb/ipgroups", "/elb/flavors")},
        }


def aim(case: Any, there: dict[str, str]) -> None:
    """Have a case that the document allows hit what is there, every other time: what is guessed hits nothing."""
    given = case.path_parameters
    if not case.meta.generation.mode.is_positive or len(given.get("project_id", "")) % 2:
        return
    given["project_id"] = PROJECT
    section = case.path.removeprefix("/v3/{project_id}").partition("/{number}")[0]
    if "pool" in given:
        given["pool"] = there["/elb/pools"]
    if "number" in given and section in there:
        given["number"] = there[section]
    known = {
        "vip_address": THIRD_VIP,
        "address": MEMBERS["member-2"],
        "interface": "eth1",
        "cidrs": ["172.16.99.0/24"],
        "next_hop": ROUTER_PEERING,
        "loadbalancer_id": there["/elb/loadbalancers"],
        "pool_id": there["/elb/pools"],
        "default_pool_id": there["/elb/pools"],
        "ipgroup_id": there["/elb/ipgroups"],
        "id": there["/elb/pools/{pool}/members"],
    }
    case.body = aimed(case.body, known)


def aimed(value: Any, known: dict[str, Any]) -> Any:
    """The same body, with what is known in place of what was guessed."""
    if isinstance(value, dict):
        return {
            name: known[name] if one is not None and name in known else aimed(one, known) for name, one in value.items()
        }
    return [aimed(one, known) for one in value] if isinstance(value, list) else value


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_the_document_holds(case: Any, url: str, lab: Lab, there: dict[str, str]) -> None:
    aim(case, there)
    with lab["client"]:  # what the document allows need not fit what is there, so it may be refused
        case.call_and_validate(base_url=url, excluded_checks=[positive_data_acceptance], timeout=PATIENCE)
