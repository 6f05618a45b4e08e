"""From what is wanted to what the maps hold, and the order of the steps between two states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from ipbackend.abi import Role
from ipbackend.config import parse
from ipbackend.configuration import Configuration
from ipbackend.errors import ConfigurationError
from ipbackend.model import Access, Algorithm, EndpointKey, Entry, IpGroup, Protocol
from ipbackend.plan import (
    Action,
    Address,
    Entries,
    HopKey,
    ListenerKey,
    NextHop,
    Pool,
    Step,
    diff,
    hop_of,
    hops,
    plan,
    weigh,
)
from ipbackend.sizing import gateway_slots

INTERFACES = {"eth0": 1, "eth1": 2}
VIPS = ("10.0.0.100", "10.0.0.110", "10.0.0.120")
SNATS = ("10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104")


def configuration(pools: dict[str, list[str]], listeners: dict[str, tuple[int, int, str]]) -> Configuration:
    """Pools by name: members as TOML says them; listeners by name: which VIP, its port, and the pool."""
    text = f"""
[gateway]
interfaces = ["eth0", "eth1"]
snat_addresses = {list(SNATS)}
[networks.vpc]
kind = "local"
cidrs = ["10.0.0.0/24"]
[networks.peered]
kind = "peering"
cidrs = ["172.16.0.0/16"]
next_hop = "10.0.0.2"
"""
    for vip in sorted({which for which, _, _ in listeners.values()}):
        text += f'[load_balancers.lb{vip}]\nvip = "{VIPS[vip]}"\nip_target_enable = true\n'
    for name, members in pools.items():
        text += f'[pools.{name}]\nprotocol = "TCP"\nmembers = [{", ".join(f"{{ {one} }}" for one in members)}]\n'
    for name, (vip, port, pool) in listeners.items():
        text += f'[listeners.{name}]\nload_balancer = "lb{vip}"\nprotocol = "TCP"\nport = {port}\npool = "{pool}"\n'
    return parse(text, "test")


def member(address: str, **more: int) -> str:
    return ", ".join([f'address = "{address}"', "port = 80", *(f"{key} = {value}" for key, value in more.items())])


SLOTS = gateway_slots(1_000_000)


def planned(
    wanted: Configuration,
    have: Entries | None = None,
    unresolved: tuple[str, ...] = (),
    shares: Mapping[str, int] | None = None,
) -> Entries:
    return plan(wanted, ways_to(wanted, unresolved), {1: 1500}, have or Entries(), SLOTS, shares)


def ways_to(wanted: Configuration, unresolved: tuple[str, ...] = ()) -> dict[HopKey, NextHop]:
    """Next hops as netlink would tell them."""
    return {
        hop: NextHop(
            INTERFACES[hop.interface], hop.address, bytes(6), bytes(6), 1500, str(hop.address) not in unresolved
        )
        for hop in hops(wanted)
    }


SMALL = configuration(
    {"web": [member("10.0.0.11", weight=2), member("172.16.0.5", max_connections=50)], "idle": []},
    {"web": (0, 80, "web"), "idle": (1, 80, "idle")},
)


def applied(have: Entries, steps: list[Step]) -> Iterator[tuple[Step, Entries]]:
    """The state after every step that changes one."""
    state: dict[str, dict[Any, Any]] = {field.name: dict(getattr(have, field.name)) for field in fields(Entries)}
    for step in steps:
        if step.action is Action.SET:
            state[step.table][step.key] = step.value
        elif step.action is Action.DELETE:
            del state[step.table][step.key]
        yield step, Entries(**{name: dict(table) for name, table in state.items()})


def dangling(entries: Entries) -> list[str]:
    """Everything that points at what is not there."""
    return [
        *(
            f"listener {key} → pool {one.pool}"
            for key, one in entries.listeners.items()
            if one.pool not in entries.pools
        ),
        *(
            f"pool {number} → endpoint {endpoint}"
            for number, pool in entries.pools.items()
            for endpoint in pool.members
            if endpoint not in entries.endpoints
        ),
        *(
            f"pool {number}: turn of {turn}"
            for number, pool in entries.pools.items()
            for turn in pool.schedule
            if turn >= len(pool.members)
        ),
        *(
            f"endpoint {number} → next hop {one.next_hop}"
            for number, one in entries.endpoints.items()
            if one.next_hop not in entries.next_hops
        ),
        *(
            f"listener {key} on no address of ours"
            for key in entries.listeners
            if entries.addresses.get(key.vip) != Address(Role.VIP)
        ),
    ]


def strangers(state: Entries, have: Entries, want: Entries) -> list[str]:
    """Listeners whose list, between two steps, lacks what it had and will have, or has what it neither had nor will."""
    problems = []
    for key, one in state.listeners.items():
        both = [(entries, entries.listeners.get(key)) for entries in (have, want)]
        known = [entries for entries, its in both if its and (its.access, its.list) == (one.access, one.list)]
        now = listed(state, one.list)
        if one.list and known and key in want.listeners:  # one that goes with its connections is served as may be
            must = frozenset.intersection(*(listed(entries, one.list) for entries in known))
            may = frozenset.union(*(listed(entries, one.list) for entries in (have, want) if key in entries.listeners))
            if not must <= now <= may:
                problems.append(
                    f"{key}: list {one.list} is {sorted(now)}, not between {sorted(must)} and {sorted(may)}"
                )
    return problems


def listed(entries: Entries, number: int) -> frozenset[IPv4Network]:
    return frozenset(key.cidr for key in entries.access if key.list == number)


def test_what_a_configuration_comes_to() -> None:
    entries = planned(SMALL)
    by_key = {endpoint.key: endpoint for endpoint in entries.endpoints.values()}
    near = by_key[EndpointKey(IPv4Address("10.0.0.11"), 80, Protocol.TCP)]
    far = by_key[EndpointKey(IPv4Address("172.16.0.5"), 80, Protocol.TCP)]
    pool = entries.pools[entries.listeners[ListenerKey(IPv4Address(VIPS[0]), 80, Protocol.TCP)].pool]

    assert (near.ceiling, near.slots, far.ceiling, far.slots) == (100_000, 131_072, 50, 128)
    assert near.snat == far.snat == tuple(map(IPv4Address, SNATS))
    assert entries.next_hops[near.next_hop].address == IPv4Address("10.0.0.11")
    assert entries.next_hops[far.next_hop].address == IPv4Address("10.0.0.2")
    assert [entries.endpoints[number] for number in pool.members] == [near, far]
    assert sorted(pool.schedule) == [0, 0, 1]
    assert {address: value.index for address, value in entries.addresses.items() if value.role is Role.SNAT} == {
        IPv4Address(snat): index for index, snat in enumerate(SNATS)
    }


def test_no_id_is_zero() -> None:
    """0 means none, in a flow index entry as in an endpoint's next hop."""
    entries = planned(SMALL)

    assert 0 not in {*entries.endpoints, *entries.next_hops}


def test_the_way_to_a_member() -> None:
    assert hop_of(SMALL, IPv4Address("10.0.0.11")) == HopKey("eth1", IPv4Address("10.0.0.11"))
    assert hop_of(SMALL, IPv4Address("172.16.0.5")) == HopKey("eth1", IPv4Address("10.0.0.2"))


def test_a_member_out_of_reach_admits_no_one() -> None:
    entries = planned(SMALL, unresolved=("10.0.0.2",))

    assert {str(one.key.address): one.ceiling for one in entries.endpoints.values()} == {
        "10.0.0.11": 100_000,
        "172.16.0.5": 0,
    }


def test_weight_zero_has_no_turn_but_stays_an_endpoint() -> None:
    wanted = configuration({"web": [member("10.0.0.11", weight=0)]}, {"web": (0, 80, "web")})
    entries = planned(wanted)

    assert [pool.members for pool in entries.pools.values()] == [()]
    assert len(entries.endpoints) == 1


def test_the_same_again_changes_nothing() -> None:
    entries = planned(SMALL)

    assert planned(SMALL, entries) == entries
    assert diff(entries, planned(SMALL, entries)) == []


def test_ids_are_kept_over_a_change() -> None:
    """Of what stays: others come before it in the file and by name, and some go."""
    have = planned(SMALL)
    wanted = configuration(
        {"a-first": [member("10.0.0.5")], "web": [member("10.0.0.9"), member("172.16.0.5", max_connections=50)]},
        {"a-first": (2, 80, "a-first"), "web": (0, 80, "web")},
    )
    want = planned(wanted, have)

    kept = have.endpoints.keys() & want.endpoints.keys()
    assert {have.endpoints[number].key for number in kept} == {EndpointKey(IPv4Address("172.16.0.5"), 80, Protocol.TCP)}
    assert all(have.endpoints[number].key == want.endpoints[number].key for number in kept)
    web = ListenerKey(IPv4Address(VIPS[0]), 80, Protocol.TCP)
    assert have.listeners[web] == want.listeners[web]
    for number, hop in want.next_hops.items():
        assert have.next_hops.get(number, hop).address == hop.address


def test_a_pool_that_two_listeners_share_is_one() -> None:
    shared = configuration({"web": [member("10.0.0.11")]}, {"a": (0, 80, "web"), "b": (1, 80, "web")})
    entries = planned(shared)

    assert len({one.pool for one in entries.listeners.values()}) == 1
    assert planned(shared, entries) == entries


def test_two_listeners_that_part_get_pools_of_their_own() -> None:
    """One keeps the id; the other's pool is another one from its first packet on."""
    shared = configuration({"web": [member("10.0.0.11")]}, {"a": (0, 80, "web"), "b": (1, 80, "web")})
    parted = configuration(
        {"web": [member("10.0.0.11")], "new": [member("10.0.0.12")]}, {"a": (0, 80, "web"), "b": (1, 80, "new")}
    )
    have = planned(shared)
    want = planned(parted, have)

    assert len({one.pool for one in want.listeners.values()}) == 2
    assert set(have.pools) < set(want.pools)


def test_tables_lie_side_by_side_and_what_goes_leaves_room_for_what_comes() -> None:
    def with_members(*ceilings: int, first: int = 11) -> Configuration:
        members = [member(f"10.0.0.{first + index}", max_connections=one) for index, one in enumerate(ceilings)]
        return configuration({"web": members}, {"web": (0, 80, "web")})

    def places(entries: Entries) -> list[tuple[int, int]]:
        return sorted((one.first, one.first + one.slots) for one in entries.endpoints.values())

    first = planned(with_members(50, 500, 50))
    assert places(first)[0][0] == 64
    assert all(end <= start for (_, end), (start, _) in pairwise(places(first)))
    fewer = planned(with_members(500, first=12), first)
    (kept,) = fewer.endpoints.values()
    assert (kept.first, kept.slots) == (64 + 128, 704)
    more = planned(with_members(500, 50, 50, 50, first=12), fewer)
    assert places(more) == [(64, 192), (192, 896), (896, 1024), (1024, 1152)]


def test_a_table_for_which_there_is_no_room_is_refused() -> None:
    wanted = configuration({"web": [member("10.0.0.11"), member("10.0.0.12")]}, {"web": (0, 80, "web")})

    with pytest.raises(ConfigurationError, match=r"10\.0\.0\.12:80/TCP: there is no room left .*131072 slots \(raise"):
        plan(wanted, ways_to(wanted), {1: 1500}, Entries(), 64 + 2 * 131_072 - 1)


def test_a_ceiling_beyond_its_table_is_refused() -> None:
    """Tables are made once; the message says which, why, and what to do."""
    small = configuration({"web": [member("10.0.0.11", max_connections=50)]}, {"web": (0, 80, "web")})
    have = planned(small)
    within = configuration({"web": [member("10.0.0.11", max_connections=97)]}, {"web": (0, 80, "web")})
    beyond = configuration({"web": [member("10.0.0.11", max_connections=98)]}, {"web": (0, 80, "web")})

    assert next(iter(planned(within, have).endpoints.values())).ceiling == 97
    with pytest.raises(ConfigurationError, match=r"10\.0\.0\.11:80/TCP: max_connections 98 .*128 slots.*\(lower it"):
        planned(beyond, have)


def test_a_lower_ceiling_keeps_the_table() -> None:
    have = planned(SMALL)
    lower = configuration(
        {"web": [member("10.0.0.11", max_connections=7)], "idle": []}, {"web": (0, 80, "web"), "idle": (1, 80, "idle")}
    )

    (endpoint,) = planned(lower, have).endpoints.values()
    assert (endpoint.ceiling, endpoint.slots) == (7, 131_072)


def random_configuration(random: Random) -> Configuration:
    """With listeners for whoever is in some groups, or is not."""
    wanted = random_resources(random)
    groups = {
        name: IpGroup(name, tuple(Entry(IPv4Network(f"192.0.{n}.0/24")) for n in random.sample(range(6), 2)), id=name)
        for name in "abc"
    }
    listeners = {
        one.id: replace(
            one,
            access=random.choice([*Access]) if names else Access.ALLOW,
            ip_groups=names,
            access_enabled=not names or random.random() < 0.8,
        )
        for one in wanted.listeners.values()
        for names in [tuple(random.sample("abc", random.randint(0, 2)))]
    }
    return replace(wanted, listeners=listeners, ip_groups=groups)


def random_resources(random: Random) -> Configuration:
    """Few names and many ways to combine them, so that two of them share some of everything."""
    addresses = [f"10.0.0.{n}" for n in range(11, 15)] + [f"172.16.0.{n}" for n in range(1, 4)]
    pools = {
        f"p{n}": [
            member(one, weight=random.randint(0, 5), max_connections=50)
            for one in random.sample(addresses, random.randint(0, 4))
        ]
        for n in range(random.randint(1, 4))
    }
    places = random.sample([(vip, port) for vip in range(3) for port in (80, 81)], random.randint(0, 5))
    return configuration(pools, {f"l{vip}-{port}": (vip, port, random.choice([*pools])) for vip, port in places})


@pytest.mark.parametrize("seed", range(60))
def test_nothing_points_at_what_is_not_there_after_any_step(seed: int) -> None:
    """From one configuration to another, next hops coming and going: every packet between two steps finds its way."""
    random = Random(seed)
    have = Entries()
    for _ in range(4):
        unresolved = tuple(random.sample(["10.0.0.2", "10.0.0.11", "10.0.0.12"], random.randint(0, 2)))
        want = planned(random_configuration(random), have, unresolved)
        state = have
        for step, state in applied(have, diff(have, want)):
            assert dangling(state) == [], step
            assert strangers(state, have, want) == [], step
        assert state == want
        have = want


@pytest.mark.parametrize("seed", range(20))
def test_connections_end_when_no_packet_can_open_another(seed: int) -> None:
    """Listener gone and pools swapped, ceiling 0, packets under way waited for: only then they are ended."""
    random = Random(seed)
    have = planned(random_configuration(random))
    steps = diff(have, planned(random_configuration(random), have))
    waited = False
    for step, state in applied(have, steps):
        waited |= step.action is Action.WAIT
        if step.action is not Action.END:
            continue
        assert waited
        if step.table == "endpoints":
            assert state.endpoints[step.key].ceiling == 0  # type: ignore[index]
            assert not any(step.key in pool.members for pool in state.pools.values())
        else:
            assert step.key not in state.listeners


def test_a_listeners_connections_end_with_it_but_not_with_a_change_of_its_pool() -> None:
    have = planned(configuration({"a": [member("10.0.0.11")], "b": []}, {"one": (0, 80, "a"), "two": (0, 81, "a")}))
    changed = configuration({"a": [member("10.0.0.11")], "b": []}, {"one": (0, 80, "b")})
    ended = [step.key for step in diff(have, planned(changed, have)) if step.action is Action.END]

    assert ended == [ListenerKey(IPv4Address(VIPS[0]), 81, Protocol.TCP)]


# Shares of weights


def with_weights(algorithm: Algorithm = Algorithm.ROUND_ROBIN, **weights: int) -> Configuration:
    """One pool; members by a letter and the last byte of their addresses, which is their id."""
    members = [member(f"10.0.0.{name[1:]}", weight=weight) for name, weight in weights.items()]
    wanted = configuration({"web": members}, {"web": (0, 80, "web")})
    ((number, pool),) = wanted.pools.items()
    named = tuple(replace(one, id=f"m{one.address.packed[3]}") for one in pool.members)
    return replace(wanted, pools={number: replace(pool, algorithm=algorithm, members=named)})


def turns(entries: Entries) -> dict[str, int]:
    """Of the only pool, by members' addresses."""
    (pool,) = entries.pools.values()
    counted = Counter(pool.schedule)
    return {str(entries.endpoints[number].key.address): counted[index] for index, number in enumerate(pool.members)}


def test_a_share_of_none_has_no_turn_and_is_no_member() -> None:
    wanted = with_weights(m11=3, m12=1)

    assert turns(planned(wanted, shares={"m11": 0})) == {"10.0.0.12": 1}
    assert [pool.members for pool in planned(wanted, shares={"m11": 0, "m12": 0}).pools.values()] == [()]
    assert len(planned(wanted, shares={"m11": 0}).endpoints) == 2
    assert planned(wanted, shares={"m11": 10, "m12": 10, "gone": 3}) == planned(wanted)


def test_a_part_of_its_weight() -> None:
    """In tenths, for all algorithms, and exactly."""
    shares = {"m11": 3}
    assert turns(planned(with_weights(m11=3, m12=1), shares=shares)) == {"10.0.0.11": 9, "10.0.0.12": 10}
    (pool,) = planned(with_weights(Algorithm.LEAST_CONNECTIONS, m11=3, m12=1), shares=shares).pools.values()
    assert pool.weights == (9, 10)
    entries = turns(planned(with_weights(Algorithm.SOURCE_IP, m11=3, m12=1), shares=shares))
    assert abs(entries["10.0.0.11"] - 65_537 * 9 / 19) <= 2


def test_other_shares_touch_only_their_pools() -> None:
    wanted = configuration(
        {"a": [member("10.0.0.11"), member("10.0.0.12")], "b": [member("10.0.0.12"), member("10.0.0.13")]},
        {"a": (0, 80, "a"), "b": (0, 81, "b")},
    )
    have = planned(wanted)
    first = next(pool for pool in wanted.pools.values() if pool.name == "a").members[0].id
    shares = {first: 0}
    want = weigh(wanted, have, shares, {first})
    ((step),) = diff(have, want)

    assert (step.action, step.table) == (Action.SET, "pools")
    assert want == planned(wanted, have, shares=shares)
    assert weigh(wanted, want, {}, {first}) == have
    assert weigh(wanted, have, shares, set()) == have


def test_what_a_pool_says_goes_with_its_schedule() -> None:
    wanted = with_weights(Algorithm.LEAST_CONNECTIONS, m13=2, m12=0, m11=1)
    pools = {one.id: replace(one, persistence=5) for one in wanted.pools.values()}
    (pool,) = planned(replace(wanted, pools=pools)).pools.values()
    (by_source,) = planned(with_weights(Algorithm.SOURCE_IP, m13=2, m12=0, m11=1)).pools.values()

    assert (pool.algorithm, by_source.algorithm) == (Algorithm.LEAST_CONNECTIONS, Algorithm.SOURCE_IP)
    assert pool.persistence == 300
    assert len(by_source.schedule) == 65_537
    assert list(pool.members) == sorted(pool.members)
    assert isinstance(pool, Pool)


# Access lists


def with_access(**listeners: tuple[Access, str]) -> Configuration:
    """Listeners by name, with the letters of their groups; "a" has 192.0.2.0/24 and so on."""
    ports = {name: (0, 80 + index, "web") for index, name in enumerate("xyz")}
    wanted = configuration({"web": []}, {name: ports[name] for name in listeners})
    groups = {one: IpGroup(one, (Entry(cidr_of(one)),), id=one) for one in "abcd"}
    changed = {
        one.id: replace(one, access=listeners[one.name][0], ip_groups=tuple(listeners[one.name][1]))
        for one in wanted.listeners.values()
    }
    return replace(wanted, listeners=changed, ip_groups=groups)


def cidr_of(group: str) -> IPv4Network:
    return IPv4Network(f"192.0.{ord(group)}.0/24")


def lists(entries: Entries) -> dict[int, tuple[int, str]]:
    """By listeners' ports: the list's id, and the letters of what is on it."""
    return {
        key.port: (one.list, "".join(letter for letter in "abcd" if cidr_of(letter) in listed(entries, one.list)))
        for key, one in entries.listeners.items()
    }


ALLOW, DENY = Access.ALLOW, Access.DENY


def test_a_list_is_the_union_of_groups_and_shared_by_those_who_want_the_same() -> None:
    entries = planned(with_access(x=(ALLOW, "ab"), y=(ALLOW, "ba"), z=(DENY, "ab")))
    by_port = lists(entries)

    assert by_port[80] == by_port[81]
    assert by_port[80][1] == by_port[82][1] == "ab"
    assert by_port[80][0] != by_port[82][0]
    assert len(entries.access) == 4
    assert planned(with_access(x=(ALLOW, "ab"), y=(ALLOW, "ba"), z=(DENY, "ab")), entries) == entries


def test_no_group_is_for_all_and_an_empty_list_is_a_list() -> None:
    entries = planned(with_access(x=(ALLOW, "")))
    assert next(iter(entries.listeners.values())).access is None
    wanted = with_access(x=(ALLOW, "a"))
    empty = replace(wanted, ip_groups={"a": IpGroup("a", id="a")})
    (listener,) = planned(empty).listeners.values()
    assert (listener.access, listener.list > 0, dict(planned(empty).access)) == (ALLOW, True, {})


def test_a_list_changes_in_place_and_gains_before_it_loses() -> None:
    have = planned(with_access(x=(ALLOW, "ab")))
    want = planned(with_access(x=(ALLOW, "bc")), have)
    steps = [(step.action, step.table) for step in diff(have, want) if step.table != "links"]

    assert lists(want)[80] == (lists(have)[80][0], "bc")
    assert steps == [(Action.SET, "access"), (Action.DELETE, "access")]


def test_a_list_of_the_other_kind_is_filled_before_its_listener_turns_to_it() -> None:
    have = planned(with_access(x=(ALLOW, "ab")))
    want = planned(with_access(x=(DENY, "bc")), have)
    steps = [(step.action, step.table) for step in diff(have, want)]

    assert lists(want)[80][0] != lists(have)[80][0]
    assert steps == [
        *[(Action.SET, "access")] * 2,
        (Action.SET, "listeners"),
        (Action.WAIT, "pools"),
        *[(Action.DELETE, "access")] * 2,
    ]


def test_listeners_that_part_do_not_change_each_others_list() -> None:
    have = planned(with_access(x=(ALLOW, "a"), y=(ALLOW, "a")))
    for wanted in (with_access(x=(ALLOW, "b"), y=(ALLOW, "a")), with_access(x=(ALLOW, "a"), y=(ALLOW, "b"))):
        want = planned(wanted, have)
        for _, state in applied(have, diff(have, want)):
            for key, one in state.listeners.items():
                assert listed(state, one.list) in (
                    listed(have, have.listeners[key].list),
                    listed(want, want.listeners[key].list),
                )


def test_a_listener_that_goes_leaves_its_list_to_no_one() -> None:
    have = planned(with_access(x=(ALLOW, "a"), y=(DENY, "b")))
    want = planned(with_access(y=(DENY, "b")), have)

    assert lists(want) == {81: lists(have)[81]}
    assert {key.list for key in want.access} == {lists(want)[81][0]}
