"""What members are asked: a health monitor's settings, put to one member. Pure: it knows no sockets and no states."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from ipbackend.configuration import Configuration
from ipbackend.model import Check, HealthMonitor, Member, Pool

HTTP_PORTS = {Check.HTTP: 80, Check.HTTPS: 443}  # left out of the Host header


@dataclass(frozen=True)
class Question:
    """Put to `address` and `port` from `source` (None: the kernel's choice); an answer may take `timeout` seconds.

    Of HTTP: `codes` are the status codes of a good answer as they are written, `200`, `200,202` or `200-204`.
    """

    type: Check
    address: IPv4Address
    port: int
    timeout: int
    source: IPv4Address | None = None
    method: str = ""
    path: str = ""
    host: str = ""
    name: str = ""  # of the server, for TLS; empty where it has none
    codes: str = ""


def watched(configuration: Configuration) -> Iterator[tuple[HealthMonitor, Pool, Member]]:
    """Every member that is asked, with what asks it."""
    for monitor in configuration.health_monitors.values():
        if monitor.enabled:
            pool = configuration.pools[monitor.pool]
            yield from ((monitor, pool, member) for member in pool.members)


def question(monitor: HealthMonitor, member: Member, source: IPv4Address | None) -> Question:
    """What this monitor asks this member."""
    port = monitor.monitor_port or member.port
    if monitor.type not in HTTP_PORTS:
        return Question(monitor.type, member.address, port, monitor.timeout, source)
    at = "" if port == HTTP_PORTS[monitor.type] else f":{port}"
    return Question(
        monitor.type,
        member.address,
        port,
        monitor.timeout,
        source,
        monitor.http_method,
        monitor.url_path,
        monitor.domain_name or f"{member.address}{at}",
        monitor.domain_name,
        monitor.expected_codes,
    )


def expects(codes: str, status: int) -> bool:
    """Whether a status code is one of those written."""
    ranges = (part.partition("-") for part in codes.split(","))
    return any(int(first) <= status <= int(last or first) for first, _, last in ranges)
