"""What a listener demands of a connection: whom it is for, how many there may be, and how often one may come."""

from __future__ import annotations

import ctypes
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Any

import pytest
from scapy.layers.inet import TCP
from scapy.packet import Packet

from ipbackend.abi import RATE_SECOND, Phase, SweepMode, Verdict
from ipbackend.config import parse
from ipbackend.model import Access
from tests.packet import cast
from tests.packet.cast import CLIENT, OTHER_CLIENT, QUERY, from_client
from tests.packet.choices import chosen_by, demanding, for_those_in, member
from tests.packet.driver import SYN, Burst

POOL = chosen_by("ROUND_ROBIN", member(1), member(2))
JIFFY = 0.01  # seconds: no kernel's timer is slower


def syn(port: int, client: str = CLIENT) -> Packet:
    return from_client(client) / TCP(sport=port, dport=80, flags="S")


def listener_load(dataplane: Any) -> Any:
    """Live: of the only listener."""
    (listener,) = dataplane.entries.listeners.values()
    return dataplane.maps["listener_load"].memory()[listener.id]


def refused(dataplane: Any, why: str = "refused") -> int:
    (listener,) = dataplane.entries.listeners.values()
    return dataplane.count("listener_counts", listener.id, why)


# Connections at the same time


def test_no_more_than_the_listeners_limit_at_the_same_time(unconfigured):
    """Its members would take more; one that has ended makes room for one."""
    unconfigured.configure(demanding(POOL, max_connections=3))
    flows = [unconfigured.open(syn(port)) for port in range(1, 4)]
    before = refused(unconfigured), refused(unconfigured, "reject_listener_full")
    result = unconfigured.run(syn(4))

    assert (result.verdict, result.action) == (Verdict.REJECT_LISTENER_FULL, "TX")
    assert result.packet[TCP].flags == "RA"
    assert (refused(unconfigured), refused(unconfigured, "reject_listener_full")) == (before[0] + 1, before[1] + 1)
    assert unconfigured.run(syn(1)).verdict is Verdict.FORWARD_REQUEST  # its connection is there
    unconfigured.run(flows[1].request(flags="R"))
    unconfigured.open(syn(5))
    assert unconfigured.run(syn(6)).verdict is Verdict.REJECT_LISTENER_FULL


def test_a_limit_set_later_counts_what_is_there(unconfigured):
    unconfigured.configure(POOL)
    flows = [unconfigured.open(syn(port)) for port in range(1, 6)]
    unconfigured.configure(demanding(POOL, max_connections=4))

    assert listener_load(unconfigured).active == 5
    assert unconfigured.run(syn(9)).verdict is Verdict.REJECT_LISTENER_FULL
    for flow in flows[:2]:
        unconfigured.run(flow.request(flags="R"))
    unconfigured.open(syn(10))
    assert unconfigured.run(syn(11)).verdict is Verdict.REJECT_LISTENER_FULL


@pytest.mark.parametrize("how", ["reset", "finished", "expired", "removed"])
def test_every_end_gives_the_place_back(unconfigured, how):
    unconfigured.configure(demanding(POOL, max_connections=1))
    flow = unconfigured.establish(syn(1))
    if how == "reset":
        unconfigured.run(flow.reply(flags="RA", ack=1))
    elif how == "finished":
        unconfigured.run(flow.request(flags="FA", seq=1, ack=1))
        unconfigured.run(flow.reply(flags="FA", seq=1, ack=2))
    elif how == "expired":
        unconfigured.connection(flow).last_seen -= unconfigured.maps.clock.ticks(301)
        assert unconfigured.sweep() == (1, 0)
    else:
        assert unconfigured.sweep(SweepMode.ENDPOINT)[0] == 1

    assert listener_load(unconfigured).active == 0
    unconfigured.open(syn(2))


def test_what_members_refuse_is_given_back(unconfigured):
    """A place, and the tokens: refused by its members, a connection has not been one of the listener's."""
    settings: dict[str, Any] = {"max_connections": 4, "cps": 1000, "source_cps": 1000}
    unconfigured.configure(demanding(chosen_by("ROUND_ROBIN", member(1, ceiling=1)), **settings))
    unconfigured.open(syn(1))
    load = listener_load(unconfigured)
    ((key, _),) = unconfigured.maps["source_dues"].items()
    for port in range(2, 20):
        load.due = 0
        assert unconfigured.run(syn(port)).verdict is Verdict.REJECT_ALL_FULL
        load.due = ahead = load.due + RATE_SECOND // 2  # from now on: time does not come to it meanwhile
        unconfigured.maps["source_dues"].set(key, ctypes.c_uint64(ahead))
        assert unconfigured.run(syn(port)).verdict is Verdict.REJECT_ALL_FULL
        assert load.due == source_due(unconfigured) == ahead

    assert load.active == 1


def test_listeners_have_limits_of_their_own(unconfigured):
    """One that is full does not concern another, though they share their members."""
    wanted = parse(cast.CONFIGURATION, "test")
    limited = {
        one.id: replace(one, max_connections=1) if one.name == "web" else one for one in wanted.listeners.values()
    }
    unconfigured.configure(replace(wanted, listeners=limited))
    unconfigured.open(syn(1))
    other = from_client(vip=cast.SECOND_VIP) / TCP(sport=1, dport=80, flags="S")

    assert unconfigured.run(syn(2)).verdict is Verdict.REJECT_LISTENER_FULL
    unconfigured.open(other)
    unconfigured.open(QUERY)


# Rates


def source_due(dataplane: Any, client: str = CLIENT) -> int:
    """When this client's next connection would come if all came evenly."""
    return _due_of(dataplane, client)[1]


def put_off(dataplane: Any, client: str) -> None:
    """By an hour: however slow the machine, time puts no token into this client's bucket."""
    key, due = _due_of(dataplane, client)
    dataplane.maps["source_dues"].set(key, ctypes.c_uint64(due + 3600 * RATE_SECOND))


def _due_of(dataplane: Any, client: str) -> tuple[Any, int]:
    wanted = int.from_bytes(IPv4Address(client).packed, "little")
    (found,) = ((key, due) for key, due in dataplane.maps["source_dues"].items() if key.client == wanted)
    return found


def test_a_second_is_worth_as_many_as_the_rate(unconfigured):
    """A burst takes what the bucket holds, and then what time puts into it."""
    unconfigured.configure(demanding(POOL, cps=20))
    began = time.monotonic()
    verdicts = [unconfigured.run(syn(port)).verdict for port in range(1, 61)]
    spent = time.monotonic() - began
    opened = verdicts.count(Verdict.FORWARD_OPENED)

    assert set(verdicts) == {Verdict.FORWARD_OPENED, Verdict.DROP_LISTENER_RATE}
    assert verdicts[:20] == [Verdict.FORWARD_OPENED] * 20
    assert opened <= 20 + (spent + JIFFY) * 20
    assert listener_load(unconfigured).active == opened
    assert unconfigured.run(syn(1)).verdict is Verdict.FORWARD_REQUEST


def kernel_time(dataplane: Any, port: int = 65_535) -> int:
    """What rates are measured by: an idle bucket is due at once. A client's port is taken for it."""
    load = listener_load(dataplane)
    load.due = 0
    dataplane.open(syn(port))
    return load.due - interval_at(dataplane)


def interval_at(dataplane: Any) -> int:
    (listener,) = dataplane.entries.listeners.values()
    return -(-RATE_SECOND // listener.rate)


@pytest.mark.parametrize("rate", [1, 3, 4, 7, 333, 999_983, 1_000_000])
def test_the_bucket_is_as_the_algorithm_says(unconfigured, rate):
    """Whatever is due: up to the last token, and none behind it, where a second is no whole number of intervals too."""
    unconfigured.configure(demanding(chosen_by("ROUND_ROBIN", member(999, ceiling=10_000)), cps=rate))
    load, random = listener_load(unconfigured), Random(rate)
    interval, depth, checked = interval_at(unconfigured), (rate - 1) * interval_at(unconfigured), 0
    for number in range(100):
        at = kernel_time(unconfigured, 1000 + number)
        ahead = random.choice([-3 * RATE_SECOND, 0, depth // 3, depth, depth + RATE_SECOND // 2, 2 * RATE_SECOND])
        load.due = due = at + ahead
        verdict, then = unconfigured.run(syn(1 + number)).verdict, load.due
        later = kernel_time(unconfigured, 2000 + number)
        if ahead <= depth:
            assert verdict is Verdict.FORWARD_OPENED
            assert then == due + interval or (due <= later and at <= then - interval <= later)
        elif due > later + depth:
            assert verdict is Verdict.DROP_LISTENER_RATE
            assert then == due
            checked += 1
    assert checked > 5


def test_a_burst_takes_exactly_a_seconds_worth(unconfigured, driver):
    """Faster than time goes on: the last places of a full bucket, and then what time has put into it."""
    unconfigured.configure(demanding(chosen_by("ROUND_ROBIN", member(999, ceiling=10_000)), cps=500))
    before, began = unconfigured.verdicts(), time.monotonic()
    driver.send(Burst(4000, SYN))
    spent, seen = time.monotonic() - began, unconfigured.verdicts() - before

    assert set(seen) == {Verdict.FORWARD_OPENED, Verdict.DROP_LISTENER_RATE}
    assert 500 <= seen[Verdict.FORWARD_OPENED] <= 500 + (spent + JIFFY) * 500


def test_one_client_does_not_use_up_anothers_rate(unconfigured):
    unconfigured.configure(demanding(POOL, source_cps=2))
    for client in (CLIENT, OTHER_CLIENT):
        before, began = refused(unconfigured), time.monotonic()
        verdicts = [unconfigured.run(syn(port, client)).verdict for port in range(1, 12)]
        spent = time.monotonic() - began

        assert verdicts[:2] == [Verdict.FORWARD_OPENED] * 2
        assert set(verdicts[2:]) <= {Verdict.DROP_SOURCE_RATE, Verdict.FORWARD_OPENED}
        assert verdicts.count(Verdict.FORWARD_OPENED) <= 2 + (spent + JIFFY) * 2
        assert refused(unconfigured) - before == verdicts.count(Verdict.DROP_SOURCE_RATE)


def test_a_client_that_is_too_fast_costs_the_listener_nothing(unconfigured):
    unconfigured.configure(demanding(POOL, source_cps=1, cps=1000, max_connections=2))
    unconfigured.open(syn(1))
    put_off(unconfigured, CLIENT)
    due = listener_load(unconfigured).due
    for port in range(2, 50):
        assert unconfigured.run(syn(port)).verdict is Verdict.DROP_SOURCE_RATE

    assert listener_load(unconfigured).due == due
    assert listener_load(unconfigured).active == 1
    unconfigured.open(syn(1, OTHER_CLIENT))
    assert unconfigured.run(syn(1, "203.0.113.9")).verdict is Verdict.REJECT_LISTENER_FULL
    own, other = (source_due(unconfigured, client) for client in ("203.0.113.9", OTHER_CLIENT))
    assert own < other - RATE_SECOND // 2  # it has its token still


# Access


@pytest.mark.parametrize("access", Access)
def test_who_is_on_the_list(unconfigured, access):
    """By the longest and the shortest prefix, of one group or another."""
    unconfigured.configure(for_those_in(POOL, access, ["203.0.113.7/32", "198.51.100.0/25"], ["192.0.2.0/24"]))
    listed = ("203.0.113.7", "198.51.100.0", "198.51.100.127", "192.0.2.255")
    others = ("203.0.113.6", "203.0.113.8", "198.51.100.128", "192.0.3.0", "8.8.8.8")
    served, kept_out = (listed, others) if access is Access.ALLOW else (others, listed)

    for client in served:
        assert unconfigured.run(syn(1, client)).verdict is Verdict.FORWARD_OPENED
    for client in kept_out:
        result = unconfigured.run(syn(1, client))
        assert (result.verdict, result.action) == (Verdict.DROP_ACCESS, "DROP")
    assert refused(unconfigured) >= len(kept_out)


@pytest.mark.parametrize(("access", "verdict"), [("allow", Verdict.DROP_ACCESS), ("deny", Verdict.FORWARD_OPENED)])
@pytest.mark.parametrize("groups", [[[]], [[], []]], ids=["one group", "two groups"])
def test_an_empty_list(unconfigured, access, verdict, groups):
    """Nobody is on it: it lets in no one, or keeps out no one."""
    unconfigured.configure(for_those_in(POOL, Access(access), *groups))

    assert unconfigured.run(syn(1)).verdict is verdict


def test_everyone_is_on_a_list_of_all(unconfigured):
    unconfigured.configure(for_those_in(POOL, Access.DENY, ["0.0.0.0/0"]))
    assert unconfigured.run(syn(1)).verdict is Verdict.DROP_ACCESS
    unconfigured.configure(for_those_in(POOL, Access.ALLOW, ["0.0.0.0/0"]))
    assert unconfigured.run(syn(1)).verdict is Verdict.FORWARD_OPENED


def test_connections_stay_whatever_the_list_becomes(unconfigured):
    """It is asked when a connection opens."""
    unconfigured.configure(POOL)
    flow = unconfigured.establish(syn(1))
    unconfigured.configure(for_those_in(POOL, Access.DENY, [f"{CLIENT}/32"]))

    assert unconfigured.run(flow.request(flags="A")).verdict is Verdict.FORWARD_REQUEST
    assert unconfigured.run(flow.reply(flags="A")).verdict is Verdict.FORWARD_REPLY
    assert unconfigured.phase(flow) is Phase.ESTABLISHED
    assert unconfigured.run(syn(2)).verdict is Verdict.DROP_ACCESS


def test_access_that_is_switched_off_lets_all_in(unconfigured):
    wanted = for_those_in(POOL, Access.ALLOW, ["192.0.2.0/24"])
    unconfigured.configure(demanding(wanted, access_enabled=False))
    assert unconfigured.run(syn(1)).verdict is Verdict.FORWARD_OPENED
    unconfigured.configure(wanted)
    assert unconfigured.run(syn(2)).verdict is Verdict.DROP_ACCESS


def test_lists_change_under_their_listener(unconfigured):
    """From list to list, mode to mode: always as the last one says, and nothing of the others stays."""
    random = Random(3)
    cidrs = [f"203.0.{n}.0/24" for n in range(8)]
    for _ in range(30):
        access = random.choice([*Access])
        groups = [random.sample(cidrs, random.randint(0, 6)) for _ in range(random.randint(1, 3))]
        unconfigured.configure(for_those_in(POOL, access, *groups))
        listed = {cidr for group in groups for cidr in group}
        assert unconfigured.tables.read().access == unconfigured.entries.access
        assert {key.cidr for key in unconfigured.entries.access} == {IPv4Network(cidr) for cidr in listed}
        for number, cidr in enumerate(cidrs):
            verdict = unconfigured.run(syn(1, f"203.0.{number}.9")).verdict
            served = verdict in (Verdict.FORWARD_OPENED, Verdict.FORWARD_REQUEST)
            assert served is ((cidr in listed) is (access is Access.ALLOW))
        unconfigured.sweep(SweepMode.ENDPOINT)


def test_ten_thousand_cidrs(unconfigured):
    """On one list, each of them found and the gaps between them not; read back as they are."""
    blocks = [f"{11 + n // 2500}.{n // 10 % 250}.{n % 10 * 16}.0/{21 + n % 8}" for n in range(10_000)]
    groups = [blocks[start : start + 300] for start in range(0, len(blocks), 300)]
    wanted = for_those_in(POOL, Access.ALLOW, *groups)
    unconfigured.configure(wanted)

    assert len(unconfigured.entries.access) == 10_000
    began = time.process_time()
    assert unconfigured.tables.read().access == unconfigured.entries.access
    print(f"10,000 CIDRs read back in {time.process_time() - began:.3f} s")
    for number in Random(1).sample(range(10_000), 300):
        network = IPv4Network(blocks[number])
        for address, served in ((network[0], True), (network[-1], True), (network[-1] + 1, False)):
            verdict = unconfigured.run(syn(1, str(address))).verdict
            assert (verdict is not Verdict.DROP_ACCESS) is served, (network, address)
