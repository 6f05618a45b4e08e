"""`/elb/loadbalancers/{id}/statuses` and `/local-ports`: a load balancer from its VIP down to what members see."""

from typing import Annotated, Literal

from fastapi import Query

from ipbackend import edits
from ipbackend.api.base import ELB, Answer, AnyOf, Id, Ref, RequestId, Serving, Shown, router
from ipbackend.api.health import OperatingStatus, WholeStatus, status_of, whole
from ipbackend.api.relations import Relations
from ipbackend.api.service import Service
from ipbackend.model import Check, Listener, LoadBalancer, Pool

operations = router(f"{ELB}/loadbalancers", "load balancers")


class MemberStatus(Ref):
    """A member in the tree."""

    address: str
    protocol_port: int
    operating_status: OperatingStatus
    provisioning_status: Literal["ACTIVE"] = "ACTIVE"


class HealthMonitorStatus(Ref):
    """A health monitor in the tree."""

    name: str
    type: Check
    provisioning_status: Literal["ACTIVE"] = "ACTIVE"


class PoolStatus(Ref):
    """A pool in the tree."""

    name: str
    provisioning_status: Literal["ACTIVE"] = "ACTIVE"
    operating_status: WholeStatus
    healthmonitor: HealthMonitorStatus | None
    members: list[MemberStatus]


class ListenerStatus(Ref):
    """A listener in the tree."""

    name: str
    provisioning_status: Literal["ACTIVE"] = "ACTIVE"
    operating_status: WholeStatus
    pools: list[PoolStatus]
    l7policies: list[Ref]


class LoadBalancerStatus(Ref):
    """The tree's root. It, a listener or a pool is DEGRADED where a member under it is OFFLINE."""

    name: str
    provisioning_status: Literal["ACTIVE"] = "ACTIVE"
    operating_status: WholeStatus
    listeners: list[ListenerStatus]
    pools: list[PoolStatus]


class Statuses(Shown):
    """The tree."""

    loadbalancer: LoadBalancerStatus


class StatusesAnswer(Answer):
    """The envelope."""

    statuses: Statuses


class Port(Shown):
    """An address that members see connections come from."""

    port_id: str
    ip_address: str
    ipv6_address: str
    type: Literal["l4"] = "l4"
    virsubnet_id: str


class PortsAnswer(Answer):
    """The envelope."""

    ports: list[Port]


def _pool(service: Service, relations: Relations, one: Pool) -> PoolStatus:
    monitor = relations.monitor_of_pool.get(one.id)
    return PoolStatus(
        id=one.id,
        name=one.name,
        operating_status=whole(service, [one]),
        healthmonitor=HealthMonitorStatus(id=monitor.id, name=monitor.name, type=monitor.type) if monitor else None,
        members=[
            MemberStatus(
                id=member.id,
                address=str(member.address),
                protocol_port=member.port,
                operating_status=status_of(service, member),
            )
            for member in one.members
        ],
    )


@operations.get("/{number}/statuses")
async def show_load_balancer_status(
    service: Serving, request_id: RequestId, project_id: Id, number: Id
) -> StatusesAnswer:
    """Show a load balancer with all that hangs on it."""
    have = service.configuration
    one: LoadBalancer = edits.find(have, "load_balancers", number)
    relations = Relations(have)
    its = relations.pools_of_balancer.get(number, [])
    pools = {pool.id: _pool(service, relations, pool) for pool in its}

    def listener(there: Listener) -> ListenerStatus:
        its_pools = [pools[there.pool]] if there.pool else []
        status = its_pools[0].operating_status if its_pools else "ONLINE"
        return ListenerStatus(id=there.id, name=there.name, operating_status=status, pools=its_pools, l7policies=[])

    tree = LoadBalancerStatus(
        id=one.id,
        name=one.name,
        operating_status=whole(service, its),
        listeners=[listener(there) for there in relations.listeners_of_balancer.get(number, ())],
        pools=list(pools.values()),
    )
    return StatusesAnswer(statuses=Statuses(loadbalancer=tree), request_id=request_id)


@operations.get("/{number}/local-ports")
async def show_load_balancer_ports(
    service: Serving,
    request_id: RequestId,
    project_id: Id,
    number: Id,
    ip_address: AnyOf,
    port_type: Annotated[list[str], Query(alias="type", default_factory=list)],
) -> PortsAnswer:
    """List the SNAT addresses: all load balancers use the gateway's. There are no subnets' ports to name."""
    have = service.configuration
    one: LoadBalancer = edits.find(have, "load_balancers", number)
    used = have.gateway.snat_addresses if have.gateway and one.ip_target_enable else ()
    ports = [
        Port(port_id="", ip_address=str(address), ipv6_address="", virsubnet_id="")
        for address in used
        if (not ip_address or str(address) in ip_address) and (not port_type or "l4" in port_type)
    ]
    return PortsAnswer(ports=ports, request_id=request_id)
