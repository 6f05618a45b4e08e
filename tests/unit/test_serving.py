"""Who gets new connections by what the maps hold, as a daemon that starts reads it."""

from __future__ import annotations

from dataclasses import replace

from ipbackend.configuration import Configuration
from ipbackend.plan import Entries, NextHop, hops, plan, serving
from ipbackend.sizing import gateway_slots
from tests.unit.wanted import API, HTTP, INTRANET, OFFICE, SHARED, SHOP, VPC, WEB, member, wanted

SLOTS = gateway_slots(1_000_000)
BOTH = wanted(
    *(VPC, SHOP, OFFICE, API, INTRANET, HTTP),
    replace(SHARED, members=(member(11, id="s11"), member(12, id="s12"), member(13, id="s13", weight=0))),
    replace(WEB, members=(member(11), member(14))),
)


def loaded(configuration: Configuration, shares: dict[str, int], have: Entries | None = None) -> Entries:
    ways = {hop: NextHop(2, hop.address, mtu=1500, resolved=True) for hop in hops(configuration)}
    return plan(configuration, ways, {2: 1500}, have or Entries(), SLOTS, shares)


def test_all_with_a_weight_serve_unless_their_share_is_nothing() -> None:
    assert serving(BOTH, loaded(BOTH, {})) == {"s11", "s12", "m11", "m14"}
    assert serving(BOTH, loaded(BOTH, {"s11": 0, "m14": 1})) == {"s12", "m11", "m14"}


def test_a_member_of_two_pools_serves_each_for_itself() -> None:
    assert serving(BOTH, loaded(BOTH, {"m11": 0})) == {"s11", "s12", "m14"}


def test_nobody_serves_before_anything_is_loaded_or_through_no_listener() -> None:
    assert serving(BOTH, Entries()) == set()
    alone = replace(BOTH, listeners={HTTP.id: HTTP})
    assert serving(alone, loaded(BOTH, {})) == {"m11", "m14"}
    assert serving(BOTH, loaded(alone, {})) == {"m11", "m14"}


def test_a_member_that_came_later_does_not_serve_yet() -> None:
    more = replace(BOTH, pools={**BOTH.pools, "web": replace(WEB, members=(member(11), member(14), member(15)))})
    assert serving(more, loaded(BOTH, {})) == {"s11", "s12", "m11", "m14"}
