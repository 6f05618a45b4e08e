"""Every metric of the gateway: its name, labels and meaning; and how Prometheus reads them. It knows no numbers.

The format is the text format, version 0.0.4. The client library takes eighteen times as long to write it, most of a
second for 10,000 members, so that it writes only what the daemon measures of itself (instruments.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "ipbackend_"
LISTENER = ("load_balancer", "listener", "protocol")
POOL = ("pool", "protocol")
MEMBER = ("member", "protocol")
POOL_MEMBER = ("pool", "member", "protocol")


class Family(NamedTuple):
    """One metric: how it behaves, what its series are told apart by, and what it means."""

    kind: str
    labels: tuple[str, ...]
    help: str


def _counter(labels: Sequence[str], text: str) -> Family:
    return Family("counter", tuple(labels), text)


def _gauge(labels: Sequence[str], text: str) -> Family:
    return Family("gauge", tuple(labels), text)


FAMILIES: Mapping[str, Family] = {
    "build_info": _gauge(("version", "python", "kernel"), "What runs here; the value is 1."),
    "forwarding": _gauge((), "1 where a data plane is loaded, else 0."),
    "problem": _gauge((), "1 where not everything is as wanted, else 0; `ipbackend status` says why."),
    "drift": _gauge((), "Differences that others made, as the last look at the kernel found them."),
    "unbalanced_books": _gauge((), "Counters that must say the same and do not; `ipbackend status` names them."),
    "audit_differences": _gauge(
        (), "Counts, queues and index entries that do not agree with the slots; `ipbackend status` names them."
    ),
    "revision": _gauge((), "The number of the last change of what is wanted."),
    "packets_received_total": _counter((), "Packets that entered the program."),
    "packets_total": _counter(("verdict",), "Packets by how their journey ended."),
    "events_lost_total": _counter((), "Events that found no room in the ring buffer: the flow log misses them."),
    "events_withheld_total": _counter((), "Refused connections that were not told of, as there were too many."),
    "connections_max": _gauge((), "Connections that the gateway is made for."),
    "flow_index_entries": _gauge((), "Entries of the flow index in use: of open and of resting slots."),
    "flow_index_size": _gauge((), "Entries that the flow index has."),
    "snat_slots_used": _gauge(("snat_address",), "Open connections that a SNAT address carries, to all members."),
    "snat_slots": _gauge(("snat_address",), "Slots, each a port towards a member, that a SNAT address has."),
    "load_balancer_info": _gauge(("load_balancer", "id", "vip"), "A load balancer; the value is 1."),
    "listener_info": _gauge((*LISTENER, "id", "vip", "port", "pool"), "A listener; the value is 1."),
    "listener_connections": _gauge(LISTENER, "Open connections that came by a listener."),
    "listener_connections_half_open": _gauge(LISTENER, "Those of them whose handshake is under way."),
    "listener_connections_opened_total": _counter(LISTENER, "Connections opened by a listener."),
    "listener_connections_refused_total": _counter(
        (*LISTENER, "reason"), "Packets that would have opened a connection and did not, by verdict."
    ),
    "listener_packets_total": _counter((*LISTENER, "direction"), "Packets forwarded, by direction."),
    "listener_bytes_total": _counter((*LISTENER, "direction"), "Bytes of IP forwarded, by direction."),
    "pool_info": _gauge((*POOL, "id", "algorithm"), "A pool; the value is 1."),
    "pool_members": _gauge(POOL, "Members of a pool."),
    "pool_members_reachable": _gauge(POOL, "Members of a pool whose next hop is known."),
    "pool_connections": _gauge(POOL, "Open connections of a pool's members, of whichever pool they are members."),
    "pool_room": _gauge(POOL, "Connections that a pool can take: of members with a weight that are reachable."),
    "pool_member_weight": _gauge(POOL_MEMBER, "A member's weight in a pool."),
    "pool_member_status": _gauge((*POOL_MEMBER, "status"), "A member's operating status in a pool; the value is 1."),
    "member_reachable": _gauge(MEMBER, "1 where the next hop towards a member is known, else 0."),
    "member_connections": _gauge(MEMBER, "Open connections of a member, of whichever pool."),
    "member_connections_half_open": _gauge(MEMBER, "Those of them whose handshake is under way."),
    "member_connections_max": _gauge(MEMBER, "A member's ceiling."),
    "member_connections_opened_total": _counter(MEMBER, "Connections opened to a member."),
    "member_connections_ended_total": _counter(
        (*MEMBER, "how"),
        "Connections ended: closed by FIN or RST, expired by silence, removed, drained, killed.",
    ),
    "member_packets_total": _counter((*MEMBER, "direction"), "Packets forwarded, by direction."),
    "member_bytes_total": _counter((*MEMBER, "direction"), "Bytes of IP forwarded, by direction."),
    "member_slots_free": _gauge(MEMBER, "Slots of a member without a connection, and rested."),
    "member_slots_resting": _gauge(MEMBER, "Slots of a member that answer late packets of a connection that is over."),
}


Series = tuple[str, int]  # labels as they are written, and the value


def labels(names: Iterable[str], values: Iterable[object]) -> str:
    """As they are written behind a metric's name, without the braces."""
    return ",".join(f'{name}="{escaped(str(value))}"' for name, value in zip(names, values, strict=True))


def escaped(text: str) -> str:
    """A label's value as it is written between quotes."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def text(families: Iterable[tuple[str, Iterable[Series]]]) -> str:
    """The exposition of families and their series."""
    lines = []
    for name, series in families:
        lines.append(f"# HELP ipbackend_{name} {FAMILIES[name].help}\n# TYPE ipbackend_{name} {FAMILIES[name].kind}\n")
        lines += [
            f"ipbackend_{name}{{{its}}} {value}\n" if its else f"ipbackend_{name} {value}\n" for its, value in series
        ]
    return "".join(lines)
