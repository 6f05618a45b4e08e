"""`/elb/quotas` and `/elb/preoccupy-ip-num`: how many there may be, and how many addresses it takes."""

from collections.abc import Mapping
from typing import Annotated, Literal

from fastapi import Query

from ipbackend import edits
from ipbackend.api.base import ELB, Answer, AnyOf, Id, QueryFlag, RequestId, Serving, Shown, router
from ipbackend.configuration import LIMITS, Configuration
from ipbackend.model import GROUP_MAX, GROUPS_MAX, MEMBERS_MAX
from ipbackend.sizing import CEILING_MAX, addresses_required

operations = router(ELB, "quotas")
UNLIMITED = -1
ZONES_MAX = 64  # in one question


class QuotaShown(Shown):
    """How many there may be; -1 is as many as you like, 0 is what this gateway does not do."""

    project_id: str
    loadbalancer: int
    listener: int
    pool: int
    member: int
    members_per_pool: int
    healthmonitor: int
    ipgroup: int
    ipgroup_max_length: int
    ipgroup_bindings: int
    ipgroups_per_listener: int
    listeners_per_loadbalancer: int
    listeners_per_pool: int
    certificate: int
    l7policy: int
    condition_per_policy: int
    pools_per_l7policy: int
    l7policies_per_listener: int
    security_policy: int


class QuotaAnswer(Answer):
    """The envelope."""

    quota: QuotaShown


class QuotaDetail(Shown):
    """One of them, and how many there are."""

    quota_key: str
    quota_limit: int
    used: int
    unit: Literal["count"] = "count"


class QuotasAnswer(Answer):
    """The envelope of many."""

    quotas: list[QuotaDetail]


class Preoccupied(Shown):
    """Addresses."""

    total: int


class PreoccupiedAnswer(Answer):
    """The envelope."""

    preoccupy_ip: Preoccupied


def _limits(have: Configuration) -> Mapping[str, int]:
    snat = len(have.gateway.snat_addresses) if have.gateway else 0
    nothing = (
        *("certificate", "l7policy", "condition_per_policy", "pools_per_l7policy", "l7policies_per_listener"),
        "security_policy",
    )
    return {
        "loadbalancer": LIMITS["addresses of load balancers and SNAT"] - snat,
        "listener": LIMITS["listeners"],
        "pool": LIMITS["pools"],
        "member": LIMITS["endpoints behind pools"],
        "members_per_pool": MEMBERS_MAX,
        "healthmonitor": LIMITS["pools"],
        "ipgroup": UNLIMITED,
        "ipgroup_max_length": GROUP_MAX,
        "ipgroup_bindings": UNLIMITED,
        "ipgroups_per_listener": GROUPS_MAX,
        "listeners_per_loadbalancer": UNLIMITED,
        "listeners_per_pool": UNLIMITED,
        **dict.fromkeys(nothing, 0),
    }


def _used(have: Configuration) -> Mapping[str, int]:
    """Of what counts for the whole gateway."""
    return {
        "loadbalancer": len(have.load_balancers),
        "listener": len(have.listeners),
        "pool": len(have.pools),
        "member": len(have.endpoints),
        "healthmonitor": len(have.health_monitors),
        "ipgroup": len(have.ip_groups),
    }


@operations.get("/quotas")
async def show_quota(service: Serving, request_id: RequestId, project_id: Id) -> QuotaAnswer:
    """Tell how many there may be."""
    quota = QuotaShown(project_id=project_id, **_limits(service.configuration))
    return QuotaAnswer(quota=quota, request_id=request_id)


@operations.get("/quotas/details")
async def list_quota_details(
    service: Serving,
    request_id: RequestId,
    project_id: Id,
    quota_key: AnyOf,
) -> QuotasAnswer:
    """Tell how many there may be and are, of what counts for the whole gateway."""
    have = service.configuration
    limits = _limits(have)
    quotas = [
        QuotaDetail(quota_key=key, quota_limit=limits[key], used=used)
        for key, used in _used(have).items()
        if not quota_key or key in quota_key
    ]
    return QuotasAnswer(quotas=quotas, request_id=request_id)


@operations.get("/preoccupy-ip-num")
async def count_preoccupy_ip_num(
    service: Serving,
    request_id: RequestId,
    project_id: Id,
    availability_zone_id: Annotated[list[str], Query(default_factory=list, max_length=ZONES_MAX)],
    ip_target_enable: QueryFlag = False,
    loadbalancer_id: str = "",
    ip_version: Annotated[Literal["4"], Query()] = "4",
    nat64_enable: Annotated[Literal["false"], Query()] = "false",
) -> PreoccupiedAnswer:
    """Count the addresses that a load balancer takes, or those that a change of one takes beside.

    As published: one VIP, and in each zone one for health checks and, with IP as a backend, four as SNAT addresses.
    """
    zones = len(set(availability_zone_id)) or 1
    if not loadbalancer_id:
        total = addresses_required(zones, 1, CEILING_MAX, ip_target_enable).total
    else:
        one = edits.find(service.configuration, "load_balancers", loadbalancer_id)
        want = one.ip_target_enable or ip_target_enable
        need = (addresses_required(1, 1, CEILING_MAX, flag).total for flag in (want, one.ip_target_enable))
        total = next(need) - next(need)
    return PreoccupiedAnswer(preoccupy_ip=Preoccupied(total=total), request_id=request_id)
