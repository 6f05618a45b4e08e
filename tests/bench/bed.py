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
from tests.bench import frames
from tests.bench.driver import Driver, Placed, array_of, compiled
from tests.bench.frames import ACK, SYN, TCP, UDP, Row
from tests.packet import cast
from tests.packet.conftest import Dataplane

VIP = int(IPv4Address(cast.VIP))
ELSEWHERE = int(IPv4Address("198.51.100.1"))  # no address of ours
PORTS = {TCP: 80, UDP: 53}
NO_LISTENER = 9
_TRANSLATION = np.dtype([("saddr", ">u4"), ("daddr", ">u4"), ("sport", ">u2"), ("dport", ">u2"), ("macs", "V12")])


def listening(name: str, port: int, members: list[str], protocol: str = "TCP") -> str:
    """A listener with a pool of its own; members as TOML has them."""
    return f"""
[listeners.{name}]
load_balancer = "shop"
protocol = "{protocol}"
port = {port}
pool = "{name}"

[pools.{name}]
protocol = "{protocol}"
members = [{", ".join(f"{{ {member} }}" for member in members)}]
"""


def configured(dataplane: Dataplane, *listeners: str) -> None:
    """These listeners, reached and answered by one interface, and handshakes up to the ceilings."""
    dataplane.member_interface = cast.CLIENT_INTERFACE
    networks = cast.NETWORKS.replace("[gateway]", "[gateway]\nmax_connections = 16000000")
    dataplane.configure(cast.all_half_open(networks) + "".join(listeners))


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
def counted(dataplane: Dataplane, **expected: int) -> Iterator[None]:
    """Every packet meanwhile must end as said, or the figures would be of something else."""
    before = dataplane.verdicts()
    yield
    have = dataplane.verdicts() - before
    if have != Counter({Verdict[name]: count for name, count in expected.items() if count}):
        raise AssertionError(f"packets ended as { {v.name: n for v, n in have.items()} } instead of {expected}")


@dataclass(frozen=True)
class Flows:
    """Open connections: what their clients and their members send."""

    requests: Row
    replies: Row

    def __len__(self) -> int:
        return len(self.requests)

    def __add__(self, other: Flows) -> Flows:
        return Flows(np.concatenate([self.requests, other.requests]), np.concatenate([self.replies, other.replies]))


def opened(dataplane: Dataplane, requests: Row) -> Flows:
    """A connection for each of these requests, after its handshake."""
    driver = Driver(len(requests), len(requests))
    driver.aim(dataplane.program.entry)
    number = len(requests)
    tcp = requests["protocol"][0] == TCP
    placed = driver.place(changed(requests, flags=SYN, sequence=requests["sequence"] - 1) if tcp else requests)
    with counted(dataplane, FORWARD_OPENED=number):
        left = driver.observe(placed)
    replies = frames.turned(left, sequence=requests["sequence"], flags=ACK if tcp else 0)
    if tcp:
        driver.replace(placed, changed(replies, flags=SYN | ACK))
        with counted(dataplane, FORWARD_REPLY=number):
            driver.observe(placed)
        driver.replace(placed, requests)
        with counted(dataplane, FORWARD_REQUEST=number):
            driver.observe(placed)
    driver.close()
    return Flows(requests, replies)


def closed(dataplane: Dataplane, protocol: str) -> None:
    """All connections of this protocol ended, unmeasured."""
    for number, endpoint in dataplane.entries.endpoints.items():
        if endpoint.key.protocol == protocol:
            dataplane.tables.sweep(number, SweepMode.ENDPOINT)


class Yardsticks:
    """The programs of yardsticks.c over the flows whose requests these are, as they leave the data plane."""

    def __init__(self, flows: Flows) -> None:
        self._bpf = compiled("yardsticks.c", FLOWS=len(flows))
        names = ("empty", "array_nat", "reference_nat")
        self.programs = {name: self._bpf.load_func(name.encode(), BPF.XDP).fd for name in names}
        table = array_of(self._bpf[b"by_index"].map_fd, _TRANSLATION, len(flows))
        at = flows.requests["sequence"] - 1
        for name, there in (("saddr", "daddr"), ("daddr", "saddr"), ("sport", "dport"), ("dport", "sport")):
            table[name][at] = flows.replies[there]
        table["macs"] = bytes.fromhex("021100000001021100000002")
        driver = Driver(len(flows), 1)
        driver.aim(self._bpf.load_func(b"fill", BPF.XDP).fd)
        driver.send(driver.place(flows.requests), len(flows))
        driver.close()

    def close(self) -> None:
        self._bpf.cleanup()


def check_rewritten(driver: Driver, placed: Placed, sent: Row, expected: Row) -> None:
    """Each frame of the row must leave as expected, one hop older; checksums are computed anew."""
    left = driver.observe(placed)
    expected = changed(expected, ttl=frames.TTL - 1)
    wrong = np.flatnonzero(left != expected)
    if len(wrong):
        at = wrong[0]
        raise AssertionError(
            f"{len(wrong)} of {len(sent)} frames leave wrong: {sent[at]} as {left[at]}, not {expected[at]}"
        )
