"""`/elb/healthmonitors`: how the members of a pool are asked whether they serve."""

from typing import Annotated, Any, ClassVar
from uuid import uuid4

from fastapi import Request

from ipbackend import edits
from ipbackend.api.base import (
    ELB,
    Answer,
    Author,
    Body,
    Changes,
    Flag,
    Id,
    Ref,
    RequestId,
    Serving,
    Stamped,
    Text,
    number,
    refs,
    router,
    stamps,
)
from ipbackend.api.lists import Listing, Rows
from ipbackend.api.service import Service
from ipbackend.model import Check, HealthMonitor, HttpMethod

operations = router(f"{ELB}/healthmonitors", "health monitors")
SECTION = "health_monitors"
NAMES = {"pool_id": "pool", "admin_state_up": "enabled"}
Seconds = Annotated[int, number(HealthMonitor, "delay")]
Retries = Annotated[int, number(HealthMonitor, "max_retries")]
MonitorPort = Annotated[int, number(HealthMonitor, "monitor_port")]


class NewHealthMonitor(Body):
    """What a health monitor is made of; on unless it is said to be off. Other types keep what HTTP is asked."""

    NAMES: ClassVar = NAMES
    WITHOUT_EFFECT: ClassVar = frozenset(("project_id",))

    name: Text = ""
    pool_id: Text
    type: Check
    delay: Seconds
    timeout: Seconds
    max_retries: Retries
    max_retries_down: Retries = 3
    monitor_port: MonitorPort | None = None
    http_method: HttpMethod = HttpMethod.GET
    url_path: Text = "/"
    domain_name: Text = ""
    expected_codes: Text = "200"
    admin_state_up: Flag = True
    project_id: Text | None = None


class HealthMonitorChanges(Changes):
    """What may change later: everything but the pool."""

    NAMES: ClassVar = NAMES

    name: Text = ""
    type: Check = Check.TCP
    delay: Seconds = 5
    timeout: Seconds = 3
    max_retries: Retries = 3
    max_retries_down: Retries = 3
    monitor_port: MonitorPort | None = None
    http_method: HttpMethod = HttpMethod.GET
    url_path: Text = "/"
    domain_name: Text = ""
    expected_codes: Text = "200"
    admin_state_up: Flag = True


class HealthMonitorShown(Stamped):
    """As published."""

    name: str
    project_id: str
    admin_state_up: bool
    type: Check
    delay: int
    timeout: int
    max_retries: int
    max_retries_down: int
    monitor_port: int | None
    http_method: HttpMethod
    url_path: str
    domain_name: str
    expected_codes: str
    pools: list[Ref]


class NewHealthMonitorBody(Body):
    """The envelope."""

    healthmonitor: NewHealthMonitor


class HealthMonitorChangesBody(Body):
    """The envelope."""

    healthmonitor: HealthMonitorChanges


class HealthMonitorAnswer(Answer):
    """The envelope."""

    healthmonitor: HealthMonitorShown


class HealthMonitorsAnswer(Listing):
    """The envelope of many."""

    healthmonitors: list[HealthMonitorShown]


ROWS = Rows(HealthMonitorShown)


def shown(service: Service, one: HealthMonitor, project_id: str) -> HealthMonitorShown:
    """As published."""
    return HealthMonitorShown(
        id=one.id,
        name=one.name,
        project_id=project_id,
        admin_state_up=one.enabled,
        type=one.type,
        delay=one.delay,
        timeout=one.timeout,
        max_retries=one.max_retries,
        max_retries_down=one.max_retries_down,
        monitor_port=one.monitor_port,
        http_method=one.http_method,
        url_path=one.url_path,
        domain_name=one.domain_name,
        expected_codes=one.expected_codes,
        pools=refs([one.pool]),
        **stamps(service, one.id),
    )


def _answer(service: Service, request_id: str, project_id: str, number: str) -> HealthMonitorAnswer:
    one = edits.find(service.configuration, SECTION, number)
    return HealthMonitorAnswer(healthmonitor=shown(service, one, project_id), request_id=request_id)


@operations.post("", status_code=201)
async def create_health_monitor(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, body: NewHealthMonitorBody
) -> HealthMonitorAnswer:
    """Give a pool a health monitor; a pool has one."""
    given: dict[str, Any] = body.healthmonitor.fields_given()
    one = HealthMonitor(**given, id=str(uuid4()))
    await service.change(author, lambda have: edits.put(have, SECTION, one))
    return _answer(service, request_id, project_id, one.id)


@operations.get("", openapi_extra=ROWS.openapi)
async def list_health_monitors(
    request: Request, service: Serving, request_id: RequestId, project_id: Id
) -> HealthMonitorsAnswer:
    """List health monitors."""
    rows = (shown(service, one, project_id) for one in service.configuration.health_monitors.values())
    page, info = ROWS.page(request, rows)
    return HealthMonitorsAnswer(healthmonitors=page, page_info=info, request_id=request_id)


@operations.get("/{number}")
async def show_health_monitor(
    service: Serving, request_id: RequestId, project_id: Id, number: Id
) -> HealthMonitorAnswer:
    """Show a health monitor."""
    return _answer(service, request_id, project_id, number)


@operations.put("/{number}")
async def update_health_monitor(
    service: Serving, author: Author, request_id: RequestId, project_id: Id, number: Id, body: HealthMonitorChangesBody
) -> HealthMonitorAnswer:
    """Change a health monitor."""
    fields = body.healthmonitor.fields_given()
    await service.change(author, lambda have: edits.change(have, SECTION, number, fields))
    return _answer(service, request_id, project_id, number)


@operations.delete("/{number}", status_code=204)
async def delete_health_monitor(service: Serving, author: Author, project_id: Id, number: Id) -> None:
    """Delete a health monitor."""
    await service.change(author, lambda have: edits.delete(have, SECTION, number))
