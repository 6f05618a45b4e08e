"""Every L4 operation of the cloud's API, called by the cloud's own SDK, and what each does to traffic."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huaweicloudsdkelb.v3 as elb
import pytest

from ipbackend.api.app import create_app
from ipbackend.client import SOCKET
from tests.netns.clients import connect, http_get
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import MEMBER_TCP_PORT, MEMBERS, SHOP_VIP, SNATS, THIRD_VIP, Lab
from tests.netns.sdk import PORT, PROJECT, Sdk, balancer, ids, listener, member, pool
from tests.netns.sdk import sdk as made_sdk
from tests.unit.serving import Kept

pytestmark = pytest.mark.root

AT = (THIRD_VIP, PORT)
CONFLICT = (409, "ELB.8907", "Data conflict.")


@pytest.fixture(scope="module")
def asked(started: Gateway, lab: Lab) -> Iterator[Sdk]:
    with made_sdk(lab["client"], started.run_directory / SOCKET) as client:
        yield client
    assert started.audit() == []


@pytest.fixture
def sdk(asked: Sdk, started: Gateway) -> Iterator[Sdk]:
    """On a gateway that is as lab.toml says."""
    if started.process is None:
        started.start()
    started.apply(CONFIGURATION)
    yield asked
    assert "Traceback" not in started.log()


def serves(lab: Lab, times: int = 1, at: tuple[str, int] = AT) -> dict[str, int]:
    """Which members answer, and how often."""
    return dict(Counter(http_get(lab["client"], None, at).identity.member for _ in range(times)))


def refuses(lab: Lab, at: tuple[str, int] = AT) -> bool:
    try:
        connect(lab["client"], None, at).close()
    except ConnectionRefusedError:
        return True
    return False


def on_gateway(lab: Lab, address: str) -> bool:
    with lab["gateway"].netlink() as netlink:
        return address in {message.get_attr("IFA_ADDRESS") for message in netlink.get_addr()}


def test_every_operation_is_called_here() -> None:
    document = create_app(Kept()).openapi()["paths"]
    operations = {
        one["operationId"] for path, methods in document.items() if "/elb/" in path for one in methods.values()
    }
    trees = [ast.parse(Path(__file__).with_name(name).read_text()) for name in ("test_sdk.py", "sdk.py")]
    called = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert len(operations) >= 50
    assert operations - called == set()


def test_a_load_balancer(sdk: Sdk, lab: Lab) -> None:
    made = balancer(sdk, ip_target_enable=False, description="d")
    assert (made.vip_address, made.project_id, made.provisioning_status) == (THIRD_VIP, PROJECT, "ACTIVE")
    assert made.created_at.endswith("Z")
    assert (made.guaranteed, made.ip_target_enable, made.availability_zone_list) == (True, False, ["gateway"])
    assert on_gateway(lab, THIRD_VIP)
    assert refuses(lab)  # it is ours, and nothing listens

    option = elb.UpdateLoadBalancerOption(name="renamed", ip_target_enable=True, deletion_protection_enable=True)
    body = elb.UpdateLoadBalancerRequestBody(option)
    changed = sdk.update_load_balancer(loadbalancer_id=made.id, body=body).loadbalancer
    assert (changed.name, changed.ip_target_enable, changed.description) == ("renamed", True, "d")
    assert sdk.show_load_balancer(loadbalancer_id=made.id).loadbalancer == changed
    assert ids(sdk.list_load_balancers(name=["renamed", "nobody"]).loadbalancers) == [made.id]

    status, code, text = sdk.refused("delete_load_balancer", loadbalancer_id=made.id)
    assert (status, code, text.splitlines()[0]) == CONFLICT
    assert "deletion_protection_enable" in text
    option = elb.UpdateLoadBalancerOption(deletion_protection_enable=False)
    sdk.update_load_balancer(loadbalancer_id=made.id, body=elb.UpdateLoadBalancerRequestBody(option))
    sdk.delete_load_balancer(loadbalancer_id=made.id)
    assert not on_gateway(lab, THIRD_VIP)
    status, code, text = sdk.refused("show_load_balancer", loadbalancer_id=made.id)
    assert (status, code) == (404, "ELB.8904")
    assert text.startswith(f"load balancer {made.id} could not be found")


def test_the_tree_below_a_load_balancer(sdk: Sdk, lab: Lab) -> None:
    owner = balancer(sdk)
    first = listener(sdk, owner)
    its_pool = pool(sdk, "member-1", listener_id=first.id)
    beside = pool(sdk, loadbalancer_id=owner.id)

    tree = sdk.show_load_balancer_status(loadbalancer_id=owner.id).statuses.loadbalancer
    assert (tree.id, tree.operating_status, ids(tree.pools)) == (owner.id, "ONLINE", [its_pool.id, beside.id])
    assert [(one.id, ids(one.pools)) for one in tree.listeners] == [(first.id, [its_pool.id])]
    (leaf,) = tree.listeners[0].pools[0].members
    assert (leaf.address, leaf.protocol_port, leaf.operating_status) == (MEMBERS["member-1"], 8080, "NO_MONITOR")

    ports = sdk.show_load_balancer_ports(loadbalancer_id=owner.id).ports
    assert ([port.ip_address for port in ports], {port.type for port in ports}) == (list(SNATS), {"l4"})
    peer = http_get(lab["client"], None, AT).identity.peer_address
    assert ids(sdk.list_load_balancers(member_address=[MEMBERS["member-1"]], name=["third"]).loadbalancers) == [
        owner.id
    ]
    ports = sdk.show_load_balancer_ports(loadbalancer_id=owner.id, ip_address=[peer]).ports
    assert [port.ip_address for port in ports] == [peer]

    status, code, text = sdk.refused("delete_load_balancer", loadbalancer_id=owner.id)
    assert (status, code) == CONFLICT[:2]
    assert "refers to it" in text
    sdk.delete_load_balancer_force(loadbalancer_id=owner.id)
    assert not on_gateway(lab, THIRD_VIP)
    assert not {its_pool.id, beside.id} & set(ids(sdk.list_pools().pools))


@pytest.mark.parametrize("pools_too", [True, False])
def test_a_cascade_takes_pools_along_or_leaves_them(sdk: Sdk, lab: Lab, pools_too: bool) -> None:
    owner = balancer(sdk)
    its_pool = pool(sdk, "member-1", listener_id=listener(sdk, owner).id)
    option = elb.DeleteLoadBalancerCascadeOption(unbounded_pool=pools_too)
    sdk.delete_load_balancer_cascade(loadbalancer_id=owner.id, body=elb.DeleteLoadBalancerCascadeRequestBody(option))
    left = [one for one in sdk.list_pools().pools if one.id == its_pool.id]
    assert [len(one.members) for one in left] == ([] if pools_too else [1])
    assert not on_gateway(lab, THIRD_VIP)


def test_a_listener(sdk: Sdk, lab: Lab) -> None:
    owner = balancer(sdk)
    one, other = pool(sdk, "member-1"), pool(sdk, "member-2")
    made = listener(sdk, owner, default_pool_id=one.id, keepalive_timeout=60, name="n")
    assert (made.keepalive_timeout, made.default_pool_id, ids(made.loadbalancers)) == (60, one.id, [owner.id])
    assert serves(lab, 3) == {"member-1": 3}

    with connect(lab["client"], None, AT) as connection:
        assert connection.get().identity.member == "member-1"
        body = elb.UpdateListenerRequestBody(elb.UpdateListenerOption(default_pool_id=other.id))
        changed = sdk.update_listener(listener_id=made.id, body=body).listener
        assert (changed.default_pool_id, changed.name) == (other.id, "n")
        assert serves(lab, 3) == {"member-2": 3}
        assert connection.get().identity.member == "member-1"  # what is open goes on
        assert sdk.show_listener(listener_id=made.id).listener == changed
        assert ids(sdk.list_listeners(loadbalancer_id=[owner.id]).listeners) == [made.id]
        assert ids(sdk.list_listeners(member_address=[MEMBERS["member-2"]], name=["n"]).listeners) == [made.id]

        sdk.delete_listener(listener_id=made.id)
        assert refuses(lab)
        with pytest.raises(ConnectionResetError):
            connection.get()

    again = listener(sdk, owner, default_pool_id=one.id)
    assert serves(lab) == {"member-1": 1}
    sdk.delete_listener_force(listener_id=again.id)
    assert refuses(lab)
    assert not {one.id} & set(ids(sdk.list_pools().pools))


def test_a_pool(sdk: Sdk, lab: Lab) -> None:
    owner = balancer(sdk)
    made = pool(sdk, "member-1", listener_id=listener(sdk, owner).id, name="p")
    assert (made.lb_algorithm, made.type, ids(made.loadbalancers)) == ("ROUND_ROBIN", "ip", [owner.id])
    option = elb.UpdatePoolOption(name="q", member_deletion_protection_enable=True)
    changed = sdk.update_pool(pool_id=made.id, body=elb.UpdatePoolRequestBody(option)).pool
    assert (changed.name, changed.member_deletion_protection_enable, len(changed.members)) == ("q", True, 1)
    assert sdk.show_pool(pool_id=made.id).pool == changed
    assert ids(sdk.list_pools(loadbalancer_id=[owner.id]).pools) == [made.id]
    assert ids(sdk.list_pools(listener_id=ids(changed.listeners), name=["q"]).pools) == [made.id]

    status, code, text = sdk.refused("delete_pool", pool_id=made.id)
    assert (status, code, text.splitlines()[0]) == CONFLICT
    body = elb.UpdateListenerRequestBody(elb.UpdateListenerOption(default_pool_id=""))
    status, code, text = sdk.refused("update_listener", listener_id=changed.listeners[0].id, body=body)
    assert (status, code) == (404, "ELB.8904")
    sdk.delete_listener(listener_id=changed.listeners[0].id)
    assert "protection" in sdk.refused("delete_pool_cascade", pool_id=made.id)[2]
    option = elb.UpdatePoolOption(member_deletion_protection_enable=False)
    sdk.update_pool(pool_id=made.id, body=elb.UpdatePoolRequestBody(option))
    sdk.delete_pool_cascade(pool_id=made.id)
    empty = pool(sdk)
    sdk.delete_pool(pool_id=empty.id)
    more, used = pool(sdk), pool(sdk, "member-1")
    body = elb.BatchDeletePoolsRequestBody([more.id, empty.id, used.id])
    results = [(one.id, one.ret_status, one.ret_code) for one in sdk.batch_delete_pools(body=body).pools]
    assert results == [
        (more.id, "successful", None),
        (empty.id, "not found", None),
        (used.id, "failed", "ELB.8907"),
    ]
    assert not {made.id, empty.id, more.id} & set(ids(sdk.list_pools().pools))


def test_a_member(sdk: Sdk, lab: Lab) -> None:
    owner = pool(sdk, listener_id=listener(sdk, balancer(sdk)).id)
    assert refuses(lab)
    made = member(sdk, owner, "member-onprem", name="far", weight=1)
    assert (made.member_type, made.operating_status, made.ip_version) == ("ip", "NO_MONITOR", "v4")
    assert serves(lab, 2) == {"member-onprem": 2}
    near = member(sdk, owner, "member-1", weight=3)
    assert serves(lab, 8) == {"member-1": 6, "member-onprem": 2}

    body = elb.UpdateMemberRequestBody(elb.UpdateMemberOption(weight=0))
    changed = sdk.update_member(pool_id=owner.id, member_id=near.id, body=body).member
    assert (changed.weight, changed.address) == (0, near.address)
    assert serves(lab, 4) == {"member-onprem": 4}
    assert sdk.show_member(pool_id=owner.id, member_id=near.id).member == changed
    assert ids(sdk.list_members(pool_id=owner.id, weight=[0, 7]).members) == [near.id]
    everywhere = sdk.list_all_members(pool_id=[owner.id]).members
    assert [(one.id, one.pool_id) for one in everywhere] == [(made.id, owner.id), (near.id, owner.id)]

    sdk.delete_member(pool_id=owner.id, member_id=made.id)
    assert refuses(lab)
    assert sdk.refused("show_member", pool_id=owner.id, member_id=made.id)[:2] == (404, "ELB.8904")


def test_many_members_at_once(sdk: Sdk, lab: Lab) -> None:
    owner = pool(sdk, "member-1", listener_id=listener(sdk, balancer(sdk)).id)
    wanted = [
        elb.BatchCreateMembersOption(address=address, protocol_port=MEMBER_TCP_PORT, weight=2)
        for address in MEMBERS.values()
    ]
    body = elb.BatchCreateMembersRequestBody(wanted)
    added = sdk.batch_create_members(pool_id=owner.id, body=body).members
    assert [one.ret_status for one in added] == ["existed", "successful", "successful", "successful"]
    assert [one.weight for one in added] == [1, 2, 2, 2]
    assert serves(lab, 7) == {"member-1": 1, "member-2": 2, "member-peered": 2, "member-onprem": 2}

    weights = [
        elb.BatchUpdateMembersOption(id=one.id, weight=weight) for one, weight in zip(added, (1, 0, 0, 3), strict=True)
    ]
    changed = sdk.batch_update_members(pool_id=owner.id, body=elb.BatchUpdateMembersRequestBody(weights)).members
    assert [one.weight for one in changed] == [1, 0, 0, 3]
    assert serves(lab, 8) == {"member-1": 2, "member-onprem": 6}

    doomed = [
        elb.BatchDeleteMembersOption(id=added[0].id),
        elb.BatchDeleteMembersOption(id="nobody"),
        elb.BatchDeleteMembersOption(address=added[1].address, protocol_port=MEMBER_TCP_PORT),
        elb.BatchDeleteMembersOption(address=added[1].address, protocol_port=1),
    ]
    gone = sdk.batch_delete_members(pool_id=owner.id, body=elb.BatchDeleteMembersRequestBody(doomed)).members
    assert [(one.id, one.ret_status) for one in gone] == [
        (added[0].id, "successful"),
        ("nobody", "not found"),
        (added[1].id, "successful"),
        (None, "not found"),
    ]
    assert serves(lab, 3) == {"member-onprem": 3}
    assert ids(sdk.list_members(pool_id=owner.id).members) == [added[2].id, added[3].id]


def test_a_pool_s_settings(sdk: Sdk, lab: Lab) -> None:
    owner = pool(
        sdk,
        "member-1",
        listener_id=listener(sdk, balancer(sdk)).id,
        lb_algorithm="LEAST_CONNECTIONS",
        session_persistence=elb.CreatePoolSessionPersistenceOption(type="SOURCE_IP", persistence_timeout=20),
        slow_start=elb.CreatePoolSlowStartOption(enable=True, duration=60),
        connection_drain=elb.ConnectionDrain(enable=True, timeout=300),
        pool_health=elb.PoolHealth(minimum_healthy_member_count=1),
    )
    assert owner.lb_algorithm == "LEAST_CONNECTIONS"
    assert owner.session_persistence == elb.SessionPersistence(type="SOURCE_IP", persistence_timeout=20)
    assert owner.slow_start == elb.SlowStart(enable=True, duration=60)
    assert owner.connection_drain == elb.ConnectionDrain(enable=True, timeout=300)
    assert owner.pool_health == elb.PoolHealth(minimum_healthy_member_count=1)
    assert ids(sdk.list_pools(lb_algorithm=["LEAST_CONNECTIONS"]).pools) == [owner.id]
    assert serves(lab, 2) == {"member-1": 2}

    def change(**fields: Any) -> Any:
        option = elb.UpdatePoolOption(**fields)
        return sdk.update_pool(pool_id=owner.id, body=elb.UpdatePoolRequestBody(option)).pool

    changed = change(
        lb_algorithm="ROUND_ROBIN",
        session_persistence=elb.UpdatePoolSessionPersistenceOption(persistence_timeout=1),
        slow_start=elb.UpdatePoolSlowStartOption(enable=False),
        connection_drain=elb.ConnectionDrain(timeout=10),
    )
    assert (changed.session_persistence.persistence_timeout, changed.lb_algorithm) == (1, "ROUND_ROBIN")
    assert (changed.slow_start.enable, changed.connection_drain.timeout) == (False, 10)
    assert sdk.show_pool(pool_id=owner.id).pool.connection_drain.enable is True
    option = elb.UpdatePoolOption(lb_algorithm="SOURCE_IP")
    body = elb.UpdatePoolRequestBody(option)
    status, code, text = sdk.refused("update_pool", pool_id=owner.id, body=body)
    assert (status, code, text.splitlines()[0]) == (400, "ELB.8902", "Invalid input for 'persistence'.")
    for algorithm in ("SOURCE_IP", "SOURCE_IP_PORT"):
        made = pool(sdk, lb_algorithm=algorithm)
        assert (made.lb_algorithm, made.session_persistence) == (algorithm, None)


def test_a_listener_s_limits_and_access(sdk: Sdk, lab: Lab) -> None:
    def group(name: str) -> Any:
        option = elb.CreateIpGroupOption(name=name, ip_list=[elb.CreateIpGroupIpOption(ip="0.0.0.0/0")])
        return sdk.create_ip_group(body=elb.CreateIpGroupRequestBody(option)).ipgroup

    one, other = group("one"), group("other")
    made = listener(
        sdk,
        balancer(sdk),
        default_pool_id=pool(sdk, "member-1").id,
        cps=1_000_000,
        connection=1_000_000,
        ipgroup=elb.CreateListenerIpGroupOption(ipgroup_id=f"{one.id},{other.id}"),
    )
    assert (made.cps, made.connection) == (1_000_000, 1_000_000)
    assert made.ipgroup == elb.ListenerIpGroup(ipgroup_id=f"{one.id},{other.id}", enable_ipgroup=True, type="white")
    assert serves(lab) == {"member-1": 1}
    assert ids(sdk.show_ip_group_related_listeners(ipgroup_id=other.id).listeners) == [made.id]
    assert ids(sdk.show_ip_group(ipgroup_id=one.id).ipgroup.listeners) == [made.id]

    def change(**fields: Any) -> Any:
        option = elb.UpdateListenerOption(**fields)
        return sdk.update_listener(listener_id=made.id, body=elb.UpdateListenerRequestBody(option)).listener

    off = change(cps=0, ipgroup=elb.UpdateListenerIpGroupOption(ipgroup_id=one.id, enable_ipgroup=False, type="black"))
    assert off.ipgroup == elb.ListenerIpGroup(ipgroup_id=one.id, enable_ipgroup=False, type="black")
    assert (off.cps, off.connection) == (0, 1_000_000)
    assert serves(lab) == {"member-1": 1}
    assert sdk.show_ip_group_related_listeners(ipgroup_id=other.id).listeners == []
    status, code, text = sdk.refused("delete_ip_group", ipgroup_id=one.id)
    assert (status, code, text.splitlines()[0]) == CONFLICT
    assert "refers to it (take it out there first)" in text
    sdk.delete_ip_group(ipgroup_id=other.id)
    option = elb.UpdateListenerOption(ipgroup=elb.UpdateListenerIpGroupOption(ipgroup_id=other.id))
    body = elb.UpdateListenerRequestBody(option)
    assert sdk.refused("update_listener", listener_id=made.id, body=body)[:2] == (404, "ELB.8904")
    sdk.delete_listener(listener_id=made.id)  # with access control on or off, as published
    sdk.delete_ip_group(ipgroup_id=one.id)


def test_a_health_monitor(sdk: Sdk, lab: Lab) -> None:
    owner = pool(sdk, "member-1")

    def option(**fields: Any) -> Any:
        given = {"pool_id": owner.id, "type": "HTTP", "delay": 5, "timeout": 3, "max_retries": 3, **fields}
        return elb.CreateHealthMonitorRequestBody(elb.CreateHealthMonitorOption(**given))

    asked = {"url_path": "/identity", "domain_name": "example.com", "http_method": "HEAD", "expected_codes": "200-204"}
    made = sdk.create_health_monitor(body=option(**asked, max_retries_down=5, monitor_port=8080)).healthmonitor
    assert {name: getattr(made, name) for name in asked} == asked
    assert (made.admin_state_up, made.type, made.max_retries_down, made.monitor_port) == (True, "HTTP", 5, 8080)
    assert sdk.refused("create_health_monitor", body=option())[:2] == CONFLICT[:2]
    body = elb.UpdateHealthMonitorRequestBody(elb.UpdateHealthMonitorOption(delay=9, type="TCP", admin_state_up=False))
    changed = sdk.update_health_monitor(healthmonitor_id=made.id, body=body).healthmonitor
    assert (changed.delay, changed.type, changed.timeout, changed.admin_state_up) == (9, "TCP", 3, False)
    assert sdk.show_health_monitor(healthmonitor_id=made.id).healthmonitor == changed
    assert ids(sdk.list_health_monitors(delay=[9]).healthmonitors) == [made.id]
    assert sdk.show_pool(pool_id=owner.id).pool.healthmonitor_id == made.id
    body = elb.UpdateHealthMonitorRequestBody(elb.UpdateHealthMonitorOption(url_path="none"))
    status, code, text = sdk.refused("update_health_monitor", healthmonitor_id=made.id, body=body)
    assert (status, code, text.splitlines()[0]) == (400, "ELB.8902", "Invalid input for 'url_path'.")
    sdk.delete_health_monitor(healthmonitor_id=made.id)
    assert sdk.list_health_monitors().healthmonitors == []


def test_an_ip_group(sdk: Sdk) -> None:
    def entries(*addresses: str, description: str = "") -> list[Any]:
        return [elb.CreateIpGroupIpOption(ip=address, description=description) for address in addresses]

    def shown(group: Any) -> dict[str, str]:
        return {one.ip: one.description for one in group.ip_list}

    option = elb.CreateIpGroupOption(name="g", ip_list=entries("198.51.100.0/24", "203.0.113.9", description="x"))
    made = sdk.create_ip_group(body=elb.CreateIpGroupRequestBody(option)).ipgroup
    assert shown(made) == {"198.51.100.0/24": "x", "203.0.113.9": "x"}
    more = elb.UpdateIpListOption(ip_list=entries("203.0.113.9", "203.0.113.10", description="y"))
    added = sdk.update_ip_list(ipgroup_id=made.id, body=elb.UpdateIpListRequestBody(more)).ipgroup
    assert shown(added) == {"198.51.100.0/24": "x", "203.0.113.9": "y", "203.0.113.10": "y"}
    fewer = elb.BatchDeleteIpListOption(ip_list=[elb.IpGroupIp(ip="203.0.113.9")])
    left = sdk.batch_delete_ip_list(ipgroup_id=made.id, body=elb.BatchDeleteIpListRequestBody(fewer)).ipgroup
    assert list(shown(left)) == ["198.51.100.0/24", "203.0.113.10"]
    body = elb.UpdateIpGroupRequestBody(elb.UpdateIpGroupOption(name="h", ip_list=entries("192.0.2.1")))
    changed = sdk.update_ip_group(ipgroup_id=made.id, body=body).ipgroup
    assert (changed.name, shown(changed)) == ("h", {"192.0.2.1": ""})
    assert sdk.show_ip_group(ipgroup_id=made.id).ipgroup == changed
    assert ids(sdk.list_ip_groups(ip_list=["192.0.2.1"]).ipgroups) == [made.id]
    assert sdk.show_ip_group_related_listeners(ipgroup_id=made.id).listeners == []
    sdk.delete_ip_group(ipgroup_id=made.id)
    assert sdk.list_ip_groups().ipgroups == []


def test_an_ip_group_may_be_long(sdk: Sdk, started: Gateway) -> None:
    wanted = [f"10.{number // 250}.{number % 250}.0/24" for number in range(10_000)]
    option = elb.CreateIpGroupOption(name="long", ip_list=[elb.CreateIpGroupIpOption(ip=cidr) for cidr in wanted])
    made = sdk.create_ip_group(body=elb.CreateIpGroupRequestBody(option)).ipgroup
    assert [one.ip for one in made.ip_list] == wanted
    more = elb.UpdateIpListOption(ip_list=[elb.CreateIpGroupIpOption(ip="192.0.2.1")])
    body = elb.UpdateIpListRequestBody(more)
    assert sdk.refused("update_ip_list", ipgroup_id=made.id, body=body)[:2] == (409, "ELB.8905")
    fewer = elb.BatchDeleteIpListOption(ip_list=[elb.IpGroupIp(ip=cidr) for cidr in wanted[1:]])
    left = sdk.batch_delete_ip_list(ipgroup_id=made.id, body=elb.BatchDeleteIpListRequestBody(fewer)).ipgroup
    assert [one.ip for one in left.ip_list] == wanted[:1]
    (row,) = started.json("history", "--limit", "1")
    assert row["summary"] == "ip group long changed: entries 10,000 → 1 (+0, -9,999)"


def test_what_there_is(sdk: Sdk) -> None:
    assert [(one.id, one.status) for one in sdk.list_api_versions().versions] == [("v3", "CURRENT")]
    ((zone,),) = sdk.list_availability_zones().availability_zones
    assert (zone.code, zone.protocol) == ("gateway", ["L4"])
    (flavor,) = sdk.list_flavors().flavors
    assert flavor.info.connection == 1_000_000
    assert sdk.show_flavor(flavor_id=flavor.id).flavor == flavor
    quota = sdk.show_quota().quota
    assert (quota.members_per_pool, quota.listener, quota.l7policy) == (500, 16_383, 0)
    (pools,) = sdk.list_quota_details(quota_key=["pool"]).quotas
    assert (pools.quota_limit, pools.used) == (quota.pool, 3)


@pytest.mark.parametrize(("zones", "off", "on"), [(1, 2, 6), (2, 3, 11), (3, 4, 16)])
def test_how_many_addresses_it_takes(sdk: Sdk, zones: int, off: int, on: int) -> None:
    """The published figures."""

    def total(**fields: Any) -> int:
        answer: int = sdk.count_preoccupy_ip_num(**fields).preoccupy_ip.total
        return answer

    names = [f"az{zone}" for zone in range(zones)]
    assert total(availability_zone_id=names, ip_target_enable=False) == off
    assert total(availability_zone_id=names, ip_target_enable=True) == on


def test_how_many_more_addresses_a_change_takes(sdk: Sdk) -> None:
    plain = balancer(sdk, ip_target_enable=False)
    (shop,) = sdk.list_load_balancers(vip_address=[SHOP_VIP]).loadbalancers
    more = [
        sdk.count_preoccupy_ip_num(loadbalancer_id=one.id, ip_target_enable=True).preoccupy_ip.total
        for one in (plain, shop)
    ]
    assert more == [4, 0]


def test_refusals_have_the_published_codes_and_texts(sdk: Sdk) -> None:
    plain = balancer(sdk, ip_target_enable=False)
    owner = pool(sdk, loadbalancer_id=plain.id)
    body = elb.CreateMemberRequestBody(elb.CreateMemberOption(address=MEMBERS["member-1"], protocol_port=80))
    status, code, text = sdk.refused("create_member", pool_id=owner.id, body=body)
    published = "The load balancer's ip_target_enable must be true when adding IP members."
    assert (status, code, text.splitlines()[0]) == (400, "ELB.8939", published)

    owner = pool(sdk)
    body = elb.CreateMemberRequestBody(elb.CreateMemberOption(address="8.8.8.8", protocol_port=80))
    status, code, text = sdk.refused("create_member", pool_id=owner.id, body=body)
    assert (status, code) == (400, "ELB.8902")
    assert "is not a private IPv4 address" in text

    body = elb.CreateMemberRequestBody(elb.CreateMemberOption(address=MEMBERS["member-1"], protocol_port=99_999))
    status, code, text = sdk.refused("create_member", pool_id=owner.id, body=body)
    assert (status, code, text.splitlines()[0]) == (400, "ELB.8902", "Invalid input for 'port'.")

    back = elb.UpdateLoadBalancerRequestBody(elb.UpdateLoadBalancerOption(ip_target_enable=False))
    (shop,) = sdk.list_load_balancers(vip_address=[SHOP_VIP]).loadbalancers
    assert sdk.refused("update_load_balancer", loadbalancer_id=shop.id, body=back)[:2] == (400, "ELB.8902")

    option = elb.CreatePoolOption(protocol="TCP", lb_algorithm="QUIC_CID")
    assert sdk.refused("create_pool", body=elb.CreatePoolRequestBody(option))[:2] == (400, "ELB.8902")
    option = elb.CreateListenerOption(
        loadbalancer_id=plain.id, protocol="TCP", protocol_port=1, proxy_protocol_enable=True
    )
    status, code, text = sdk.refused("create_listener", body=elb.CreateListenerRequestBody(option))
    assert (status, code, text.splitlines()[0]) == (
        400,
        "ELB.8902",
        "Invalid input for 'listener.proxy_protocol_enable'.",
    )


def test_pages(sdk: Sdk) -> None:
    every = ids(sdk.list_pools().pools)
    first = sdk.list_pools(limit=2)
    assert (ids(first.pools), first.page_info.current_count) == (every[:2], 2)
    second = sdk.list_pools(limit=2, marker=first.page_info.next_marker)
    assert (ids(second.pools), second.page_info.next_marker) == (every[2:], None)
    back = sdk.list_pools(limit=2, marker=second.page_info.previous_marker, page_reverse=True)
    assert ids(back.pools) == every[:2]
