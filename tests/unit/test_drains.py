"""Who drains and until when: what begins a drain, what ends it, and what clocks may do to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from ipbackend.codec import from_plain, to_plain
from ipbackend.configuration import Configuration
from ipbackend.drains import Claim, Drain, Drains, Reason, Stage, following
from ipbackend.model import EndpointKey, Listener, Pool, Protocol
from ipbackend.plan import ListenerKey
from ipbackend.store import Store
from tests.unit.wanted import API, HTTP, INTRANET, OFFICE, SHARED, SHOP, VPC, WEB, member, wanted

NOW = 1_000_000.25
DELAY = 300
HTTP_DOOR = ListenerKey(IPv4Address("10.0.0.100"), 80, Protocol.TCP)
API_DOOR = ListenerKey(IPv4Address("10.0.0.100"), 81, Protocol.TCP)
INTRANET_DOOR = ListenerKey(IPv4Address("10.0.0.110"), 80, Protocol.TCP)


def end(host: int) -> EndpointKey:
    return EndpointKey(IPv4Address(f"10.0.0.{host}"), 8080, Protocol.TCP)


def with_pools(
    web: Mapping[int, int] | None,
    shared: Mapping[int, int] | None = None,
    delay: int | None = DELAY,
    *,
    shared_delay: int | None = None,
    listeners: tuple[Listener, ...] = (HTTP, API, INTRANET),
) -> Configuration:
    """Pools of members by host and weight: web behind one listener, shared behind two; None where there is no pool."""
    pools = []
    for pool, hosts, its in ((WEB, web, delay), (SHARED, shared, shared_delay)):
        if hosts is not None:
            members = tuple(member(host, id=f"{pool.id}{host}", weight=weight) for host, weight in hosts.items())
            pools.append(replace(pool, members=members, connection_drain=its))
    there = {pool.id for pool in pools}
    kept = (one if one.pool in there else replace(one, pool=None) for one in listeners)
    return wanted(VPC, SHOP, OFFICE, *pools, *kept)


def after(have: Any, want: Any, drains: tuple[Drain, ...] = (), **more: Any) -> tuple[Drain, ...]:
    have, want = (one if isinstance(one, Stage) else Stage(one) for one in (have, want))
    return following(drains, have, want, more.pop("now", NOW), more.pop("delays", {}))


def single(drains: tuple[Drain, ...]) -> Drain:
    (one,) = drains
    return one


# --- What begins one.


def test_a_member_that_is_removed_keeps_its_connections_for_the_delay() -> None:
    one = single(after(with_pools({11: 1, 12: 1}), with_pools({12: 1})))

    assert one == Drain("web", "web11", *end(11), Reason.REMOVED, DELAY, 1_000_301, None)


def test_weight_0_begins_one_and_a_smaller_weight_does_not() -> None:
    one = single(after(with_pools({11: 5, 12: 1}), with_pools({11: 0, 12: 1})))

    assert one == Drain("web", "web11", *end(11), Reason.WEIGHT, DELAY, 1_000_301, (HTTP_DOOR,))
    assert after(with_pools({11: 5}), with_pools({11: 1})) == ()


def test_a_member_that_goes_down_drains_and_one_that_comes_up_does_not() -> None:
    here = with_pools({11: 1, 12: 1})
    begun = after(Stage(here), Stage(here, frozenset({"web11"})))

    assert (single(begun).reason, single(begun).doors) == (Reason.DOWN, (HTTP_DOOR,))
    assert after(Stage(here, frozenset({"web11"})), Stage(here), begun) == ()
    down = Stage(with_pools({11: 0, 12: 1}), frozenset({"web11"}))
    assert after(Stage(here, frozenset({"web11"})), down, begun) == begun  # its delay runs already


def test_without_a_delay_weight_0_is_for_good_and_removal_needs_no_drain() -> None:
    have = with_pools({11: 1, 12: 1}, delay=None)

    assert after(have, with_pools({11: 0, 12: 1}, delay=None)) == ()
    assert after(have, with_pools({12: 1}, delay=None)) == ()


def test_what_another_pool_still_has_ends_by_listener_and_at_once() -> None:
    have = with_pools({11: 1}, {11: 1, 12: 1}, delay=None)
    one = single(after(have, with_pools({}, {11: 1, 12: 1}, delay=None)))
    assert (one.pool, one.reason, one.delay, one.doors) == ("web", Reason.REMOVED, 0, (HTTP_DOOR,))

    one = single(after(have, with_pools({11: 1}, {12: 1}, delay=None)))
    assert (one.pool, one.delay, one.doors) == ("shared", 0, (API_DOOR, INTRANET_DOOR))


def test_a_delay_that_is_asked_for_wins() -> None:
    have, claim = with_pools({11: 1}, delay=None), Claim("web", end(11))
    begun = after(have, with_pools({11: 0}, delay=None), delays={claim: 20})
    assert (single(begun).delay, single(begun).until) == (20, 1_000_021)

    here = with_pools({11: 0}, delay=None)
    again = after(here, here, begun, delays={claim: 0}, now=NOW + 5)
    assert (single(again).delay, single(again).until) == (0, 1_000_006)
    assert after(with_pools({11: 0}, delay=DELAY), with_pools({11: 0}, delay=DELAY), begun) == begun


def test_a_pool_that_is_given_a_delay_gives_it_to_who_drains_already() -> None:
    assert single(after(with_pools({11: 0}, delay=None), with_pools({11: 0}))).until == 1_000_301


def test_pools_and_files_that_go_whole_follow_the_same_rules() -> None:
    """The pool's own delay is the last that is known of it."""
    have = with_pools({11: 1, 12: 3}, {12: 1})
    begun = after(have, with_pools(None, {12: 1}))

    assert [(one.endpoint, one.delay, one.doors) for one in begun] == [
        (end(11), DELAY, None),
        (end(12), DELAY, (HTTP_DOOR,)),
    ]


# --- What becomes of one.


def test_what_is_under_way_keeps_its_deadline() -> None:
    have, zero = with_pools({11: 1, 12: 1}), with_pools({11: 0, 12: 1})
    begun = after(have, zero)
    assert after(zero, zero, begun, now=NOW + 100) == begun
    other = with_pools({11: 0, 12: 1}, delay=DELAY + 60)
    assert after(zero, other, begun, now=NOW + 100) == begun
    removed = single(after(zero, with_pools({12: 1}), begun, now=NOW + 100))
    assert removed == replace(single(begun), reason=Reason.REMOVED)


@pytest.mark.parametrize("weight", [1, 100])
def test_who_gets_connections_again_drains_no_more(weight: int) -> None:
    have, zero, gone = (with_pools(one) for one in ({11: 1, 12: 1}, {11: 0, 12: 1}, {12: 1}))
    back = with_pools({11: weight, 12: 1})

    assert after(zero, back, after(have, zero)) == ()
    assert after(gone, back, after(have, gone)) == ()


def test_who_comes_back_with_weight_0_drains_on() -> None:
    have, zero, gone = (with_pools(one) for one in ({11: 1, 12: 1}, {11: 0, 12: 1}, {12: 1}))
    begun = after(have, gone)

    assert after(gone, zero, begun, now=NOW + 9) == begun


def test_a_delay_that_is_taken_away_leaves_what_is_still_a_members() -> None:
    have, zero = with_pools({11: 1, 12: 1}), with_pools({11: 0, 12: 1})
    assert after(zero, with_pools({11: 0, 12: 1}, delay=None), after(have, zero)) == ()
    gone = with_pools({12: 1})
    begun = after(have, gone)
    assert after(gone, with_pools({12: 1}, delay=None), begun) == begun


def test_a_listener_that_leads_to_the_member_by_another_pool_keeps_it() -> None:
    """The same listener, the same member, another pool between them: nothing ends."""
    other = Pool("other", Protocol.TCP, id="other", members=(member(11, id="o11"),))
    have = with_pools({11: 1}, listeners=(HTTP,))
    want = wanted(VPC, SHOP, OFFICE, replace(WEB, connection_drain=DELAY), other, replace(HTTP, pool="other"))

    assert after(have, want) == ()


def test_a_listener_that_goes_takes_its_part_along() -> None:
    have = with_pools({11: 1}, {11: 1}, shared_delay=DELAY)
    begun = after(have, with_pools({11: 1}, {}, shared_delay=DELAY))
    assert single(begun).doors == (API_DOOR, INTRANET_DOOR)
    fewer = with_pools({11: 1}, {}, shared_delay=DELAY, listeners=(HTTP, INTRANET))

    assert single(after(have, fewer, begun)).doors == (INTRANET_DOOR,)
    assert after(have, with_pools({11: 1}, {}, listeners=(HTTP,)), begun) == ()


def test_the_last_pool_takes_what_no_other_drain_is_about() -> None:
    first, second, third = (with_pools(*one, shared_delay=60) for one in (({11: 1}, {11: 1}), ({}, {11: 1}), ({}, {})))
    begun = after(first, second)
    both = after(second, third, begun, now=NOW + 10)

    assert [(one.pool, one.doors, one.until) for one in both] == [
        ("web", (HTTP_DOOR,), 1_000_301),
        ("shared", None, 1_000_071),
    ]
    assert [one.doors for one in after(first, third)] == [None, (API_DOOR, INTRANET_DOOR)]


def test_without_a_network_there_is_no_way_to_drain() -> None:
    have = with_pools({11: 1})
    begun = after(have, with_pools({}))
    elsewhere = replace(VPC, cidrs=(type(VPC.cidrs[0])("172.16.0.0/16"),))

    assert (
        after(with_pools({}), wanted(elsewhere, SHOP, OFFICE, replace(WEB, connection_drain=DELAY), HTTP), begun) == ()
    )


def test_a_start_drops_what_a_change_that_never_came_began() -> None:
    """Drains are kept before the change is: between the two the daemon may die."""
    have = with_pools({11: 1, 12: 1})
    assert after(have, have, after(have, with_pools({11: 0, 12: 1}))) == ()
    assert after(have, have, after(have, with_pools({12: 1}))) == ()


# --- Clocks.


class Clocks:
    def __init__(self) -> None:
        self.wall, self.steady = NOW, 50.0

    def drains(self, kept: tuple[Drain, ...] = ()) -> Drains:
        return Drains(kept, lambda: self.wall, lambda: self.steady)

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def begun(drains: Drains) -> Drain:
    drains.set(drains.after(Stage(with_pools({11: 1, 12: 1})), Stage(with_pools({12: 1}))))
    return single(drains.running)


def test_it_is_due_when_its_delay_has_run_out(clocks: Clocks) -> None:
    drains = clocks.drains()
    one = begun(drains)
    assert (drains.left(one), drains.due()) == (DELAY, [])
    clocks.pass_(DELAY - 0.1)
    assert drains.due() == []
    clocks.pass_(0.2)
    assert drains.due() == [one]
    assert drains.without({one.claim}) == ()
    drains.set(())
    assert drains.left(one) == 0  # asked by somebody who has seen it a moment ago


@pytest.mark.parametrize("jump", [-86_400, -1, 1, 86_400])
def test_setting_the_clock_moves_no_deadline(clocks: Clocks, jump: float) -> None:
    drains = clocks.drains()
    one = begun(drains)
    clocks.pass_(100)
    clocks.wall += jump
    drains.set(drains.after(Stage(with_pools({12: 1})), Stage(with_pools({12: 2}))))
    assert drains.left(one) == DELAY - 100


def test_a_restart_goes_on_with_what_is_left(clocks: Clocks) -> None:
    one = begun(clocks.drains())
    clocks.pass_(100)
    clocks.steady = 3.0  # another boot's, or the same: it means nothing by itself
    again = clocks.drains((one,))

    assert 0 <= again.left(one) - (DELAY - 100) < 1
    clocks.pass_(500)
    assert again.due() == [one]


@pytest.mark.parametrize(("jump", "left"), [(-86_400, DELAY), (86_400, 0)])
def test_a_clock_that_was_set_while_no_daemon_ran(clocks: Clocks, jump: float, left: float) -> None:
    """Back: the whole delay at most. Forward: at once at worst."""
    one = begun(clocks.drains())
    clocks.wall += jump
    assert clocks.drains((one,)).left(one) == left


# --- Kept.


def test_drains_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    some = after(with_pools({11: 1, 12: 1}, {12: 1}), with_pools({}, {12: 1}))
    with Store(path) as store:
        assert store.drains == ()
        store.keep_drains(some)
    with Store(path, read_only=True) as store:
        assert store.drains == some
    with Store(path) as store:
        store.keep_drains(some[1:])
        assert store.drains == some[1:]
    assert [from_plain(Drain, json.loads(json.dumps(to_plain(one)))) for one in some] == list(some)
