"""How the API and the command line tell what members' checks have found."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from ipbackend.health.states import Code, Health, Reason, Status
from tests.unit.commands import data, said
from tests.unit.serving import ELB, Client, Kept, ok

MISMATCH = Reason(Code.RESPONSE_MISMATCH, "200-204", "503")
REASON = {"reason_code": "RESPONSE_MISMATCH", "expected_response": "200-204", "healthcheck_response": "503"}


def offline(since: float = 0.0, reason: Reason = MISMATCH) -> Health:
    return Health(Status.OFFLINE, False, since, reason=reason)


ONLINE = Health(Status.ONLINE, True, 0.0)
WAITING = Health(Status.INITIAL, False, 0.0)


def row(client: Client, pool: str, number: str) -> dict[str, Any]:
    one: dict[str, Any] = ok(client.get(f"{ELB}/pools/{pool}/members/{number}"))["member"]
    return one


def test_a_member_that_nobody_asks_has_no_monitor(client: Client) -> None:
    one = row(client, "shared", "m14")
    assert (one["operating_status"], one["reason"]) == ("NO_MONITOR", None)
    assert {entry["operating_status"] for entry in one["status"]} == {"NO_MONITOR"}


def test_an_offline_member_says_why_to_each_listener_of_its_pool(client: Client, kept: Kept) -> None:
    kept.health = {"m14": offline(time.monotonic() - 3600), "s11": ONLINE}
    one = row(client, "shared", "m14")
    assert (one["operating_status"], one["reason"]) == ("OFFLINE", REASON)
    assert [entry["listener_id"] for entry in one["status"]] == ["api", "intranet"]
    for entry in one["status"]:
        assert (entry["operating_status"], entry["reason"]) == ("OFFLINE", REASON)
        since = datetime.strptime(entry["updated_at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        assert 3590 < datetime.now(UTC).timestamp() - since.timestamp() < 3610
    other = row(client, "shared", "s11")
    assert (other["operating_status"], other["reason"]) == ("ONLINE", None)


def test_before_its_first_check_a_member_is_initial(client: Client, kept: Kept) -> None:
    kept.health = {"m14": WAITING}
    assert row(client, "shared", "m14")["operating_status"] == "INITIAL"


def test_members_are_found_by_their_state(client: Client, kept: Kept) -> None:
    kept.health = {"m14": offline(), "s11": ONLINE, "m11": ONLINE, "m12": offline()}
    at = f"{ELB}/members?operating_status=OFFLINE"
    assert [one["id"] for one in ok(client.get(at))["members"]] == ["m12", "m14"]
    assert len(ok(client.get(f"{at}&operating_status=ONLINE"))["members"]) == 4


@pytest.mark.parametrize("number", ["shop", "office"])
def test_whatever_is_above_an_offline_member_is_degraded(client: Client, kept: Kept, number: str) -> None:
    def tree() -> dict[str, Any]:
        whole: dict[str, Any] = ok(client.get(f"{ELB}/loadbalancers/{number}/statuses"))
        return whole["statuses"]["loadbalancer"]  # type: ignore[no-any-return]

    def states(whole: dict[str, Any]) -> dict[str, str]:
        things = [whole, *whole["listeners"], *whole["pools"]]
        return {one["id"]: one["operating_status"] for one in things}

    kept.health = {"m14": WAITING}
    assert set(states(tree()).values()) == {"ONLINE"}
    kept.health = {"m14": offline()}
    whole = tree()
    degraded = {"shop": {"shop", "api", "shared"}, "office": {"office", "intranet", "shared"}}[number]
    assert {one for one, status in states(whole).items() if status == "DEGRADED"} == degraded
    (pool,) = [one for one in whole["pools"] if one["id"] == "shared"]
    assert [one["operating_status"] for one in pool["members"]] == ["NO_MONITOR", "OFFLINE"]


def test_the_command_line_shows_health_and_reason(answering: Kept) -> None:
    answering.health = {"m12": offline()}
    one = data("member show 10.0.0.12:8080 --pool web")
    assert (one["operating_status"], one["reason"]) == ("OFFLINE", REASON)
    lines = said("member show 10.0.0.12:8080 --pool web").splitlines()
    assert [line.split(None, 2)[-1] for line in lines if line.startswith("operating status")] == ["OFFLINE"]
    assert "RESPONSE_MISMATCH 200-204 503" in next(line for line in lines if line.startswith("reason"))
