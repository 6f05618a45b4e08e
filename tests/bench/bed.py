"""The data plane with connections by the million, and the yardsticks over as many. It knows no clock and no case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

import numpy as np
from bcc import BPF  # noqa: TID251 - programs beside the data plane, not a part of it

from ipbackend.abi import SweepMode, Verdict
from ipbackend.config import parse
from ipbackend.configuration import Configuration
from ipbackend.datapath.compiling import load
from tests.bench import frames
from tests.bench.driver import Driver, Placed, array_of, compiled
from tests.bench.frames import ACK, SYN, TCP, UDP, Row
from tests.packet import cast
from tests.packet.conftest import Dataplane

VIP = int(IPv4Address(cast.VIP))
ELSEWHERE = int(IPv4Address("198.51.100.1"))  # no address of ours
PORTS = {TCP: 80, UDP: 53}
NO_LISTENER = 9
_NETWORKS = cast.NETWORKS.replace("[gateway]", "[gateway]\nmax_connections = 16000000")
CONNECTIONS = 1_200_000  # that the data plane is loaded for
_TRANSLATION = np.dtype([("saddr", ">u4"), ("daddr", ">u4"), ("sport", ">u2"), ("dport", ">u2"), ("macs", "V12")])


def listening(
    name: str, port: int, members: list[str], protocol: str = "TCP", listener: str = "", pool: str = ""
) -> str:
    """A listener with a pool of its own; members, and what more there is to say of both, as TOML has them."""
    return f"""
[listeners.{name}]
load_balancer = "shop"
protocol = "{protocol}"
port = {port}
pool = "{name}"
{listener}

[pools.{name}]
protocol = "{protocol}"
{pool}
members = [{", ".join(f"{{ {member} }}" for member in members)}]
"""


def configured(dataplane: Dataplane, *listeners: str) -> None:
    """These listeners and no other."""
    configure(dataplane, wanted(*listeners))


def wanted(*listeners: str) -> Configuration:
    """These listeners, and handshakes up to the ceilings."""
    return parse(cast.all_half_open(_NETWORKS) + "".join(listeners), "bench")


def configure(dataplane: Dataplane, configuration: Configuration) -> None:
    """All of it reached and answered by one interface."""
    dataplane.member_interface = cast.CLIENT_INTERFACE
    dataplane.configure(_NETWORKS)  # whatever tables there were are gone, and their slots free
    dataplane.configure(configuration)


def clients(count: int, protocol: int, seed: int) -> Row:
    """The requests of so many random clients, no two alike: their first packets' numbers are 1 less."""
    random = np.random.default_rng(seed)
    tuples = np.empty(0, np.uint64)
    while len(tuples) < count:
        more = random.integers(0x0B000000 << 16, 0x60000000 << 16, count + count // 16 + 16, np.uint64)
        tuples = np.unique(np.concatenate([tuples, more[more & 0xFFFF > 1023]]))
    random.shuffle(tuples)
    tuples = tuples[:count]
    return frames.row(
        count,
        protocol,
        ACK if protocol == TCP else 0,
        saddr=tuples >> 16,
        daddr=VIP,
        sport=tuples & 0xFFFF,
        dport=PORTS[protocol],
        sequence=np.arange(1, count + 1) if protocol == TCP else 0,
    )


def changed(shots: Row, **fields: object) -> Row:
    """The same frames with other fields, their checksums right again."""
    shots = shots.copy()
    for name, value in fields.items():
        shots[name] = value
    shots["ip_check"], shots["check"] = frames.checksums(shots)
    return shots


@contextmanager
def counted(dataplane: Dataplane, expected: dict[Verdict, int]) -> Iterator[None]:
    """Every packet meanwhile must end as said, or the figures would be of something else."""
    before = dataplane.verdicts()
    yield
    have = dataplane.verdicts() - before
    if have != Counter(expected):
        raise AssertionError(f"packets ended as {_named(have)} instead of {_named(expected)}")


def _named(counts: dict[Verdict, int]) -> dict[str, int]:
    return {verdict.name: count for verdict, count in counts.items()}


@dataclass(frozen=True)
class Flows:
    """Open connections: what their clients and their members send."""

    requests: Row
    replies: Row

    def __len__(self) -> int:
        return len(self.requests)

    def __add__(self, other: Flows) -> Flows:
        return Flows(np.concatenate([self.requests, other.requests]), np.concatenate([self.replies, other.replies]))


def opened(dataplane: Dataplane, driver: Driver, requests: Row) -> Flows:
    """A connection for each of these requests, after its handshake."""
    number, entry = len(requests), dataplane.program.entry
    if not number:
        return Flows(requests, requests)
    tcp = requests["protocol"][0] == TCP
    with driver.borrowed():
        placed = driver.place(changed(requests, flags=SYN, sequence=requests["sequence"] - 1) if tcp else requests)
        with counted(dataplane, {Verdict.FORWARD_OPENED: number}):
            left = driver.observe(entry, placed)
        replies = frames.turned(left, sequence=requests["sequence"], flags=ACK if tcp else 0)
        if tcp:
            driver.replace(placed, changed(replies, flags=SYN | ACK))
            with counted(dataplane, {Verdict.FORWARD_REPLY: number}):
                driver.observe(entry, placed)
            driver.replace(placed, requests)
            with counted(dataplane, {Verdict.FORWARD_REQUEST: number}):
                driver.observe(entry, placed)
    return Flows(requests, replies)


def fill(dataplane: Dataplane, driver: Driver, syns: Row) -> None:
    """Connections that stay, their handshakes under way."""
    with driver.borrowed(), counted(dataplane, {Verdict.FORWARD_OPENED: len(syns)}):
        driver.observe(dataplane.program.entry, driver.place(syns))


def ended(dataplane: Dataplane, *protocols: str) -> None:
    """All connections of these protocols, unmeasured."""
    for number, endpoint in dataplane.entries.endpoints.items():
        if endpoint.key.protocol in protocols:
            dataplane.tables.sweep(number, SweepMode.ENDPOINT)


@contextmanager
def yardsticks(driver: Driver, flows: Flows | None = None) -> Iterator[dict[str, int]]:
    """The programs of yardsticks.c, over the flows whose requests these are, as they leave the data plane."""
    number = len(flows) if flows else 1
    bpf = compiled("yardsticks.c", FLOWS=number)
    programs = {name: load(bpf, name, BPF.XDP) for name in ("empty", "array_nat", "reference_nat", "fill")}
    if flows:
        table = array_of(bpf[b"by_index"].map_fd, _TRANSLATION, number)
        at = flows.requests["sequence"] - 1
        for name, there in (("saddr", "daddr"), ("daddr", "saddr"), ("sport", "dport"), ("dport", "sport")):
            table[name][at] = flows.replies[there]
        table["macs"] = bytes.fromhex("021100000001021100000002")
        with driver.borrowed():
            driver.observe(programs["fill"], driver.place(flows.requests))
    with driver.borrowed():
        yield programs
    bpf.cleanup()


def check_rewritten(driver: Driver, program: int, placed: Placed, expected: Row) -> None:
    """Each frame of the row must leave as expected, one hop older; checksums are computed anew."""
    left = driver.observe(program, placed)
    expected = changed(expected, ttl=frames.TTL - 1)
    wrong = np.flatnonzero(left != expected)
    if len(wrong):
        at = wrong[0]
        raise AssertionError(f"{len(wrong)} of {len(left)} frames leave wrong: {left[at]} instead of {expected[at]}")
