"""The real program in the kernel, fed packet by packet through BPF_PROG_TEST_RUN. No link carries anything here."""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from typing import Any

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from ipbackend.abi import Phase, SweepMode, Verdict
from ipbackend.config import parse
from ipbackend.configuration import Configuration
from ipbackend.conservation import Difference
from ipbackend.datapath import syscall
from ipbackend.datapath.audit import audit
from ipbackend.datapath.loader import Program
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.tables import Tables
from ipbackend.plan import Entries, NextHop, diff, hops, plan
from ipbackend.sizing import FIRST_SNAT_PORT
from ipbackend.verdicts import counts
from ipbackend.view import View
from tests.packet import cast
from tests.packet.cast import Flow
from tests.packet.driver import Driver

pytest.register_assert_rewrite("tests.packet.both")
RUN = Path("/run/ipbackend")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.root)


@dataclass(frozen=True)
class Result:
    """What became of one packet; `packet` is what left, whatever the action."""

    verdict: Verdict
    action: str
    packet: Packet


class Dataplane:
    """The program, its maps, and a configuration to change."""

    def __init__(self, program: Program, maps: Maps) -> None:
        self.program = program
        self.maps = maps
        self.tables = Tables(maps, program.sweep)
        self.settings = maps["gateway"].memory()[0]  # live
        self.entries = Entries()
        self.reset()

    def reset(self) -> None:
        """Next hops and timeouts as every test finds them; `configure` uses the next hops."""
        self.unresolved: set[IPv4Address] = set()
        self.mtu = cast.MTU
        self.links = {cast.CLIENT_INTERFACE: cast.MTU, cast.MEMBER_INTERFACE: cast.MTU}
        self.member_interface = cast.MEMBER_INTERFACE
        self.member_vlan = 0
        self.settings.syn_sent_timeout, self.settings.syn_received_timeout = 5, 15
        self.settings.closing_timeout, self.settings.rest = 20, 60
        self.settings.error_interval = 10**6
        self.forget_errors()
        for name in ("fragments", "stays", "source_dues"):
            for key in self.maps[name].all_keys():
                self.maps[name].delete(key)
        for listener in self.entries.listeners.values():
            self.maps["listener_load"].memory()[listener.id].due = 0

    def forget_errors(self) -> None:
        """As if no ICMP error had been sent yet, by any CPU."""
        self._zero("answers", 0)

    def run_on_one_cpu(self, packet: bytes, times: int) -> None:
        """The same packet again and again, where what one CPU counts is to be seen."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(before)})
        try:
            for _ in range(times):
                syscall.run(self.program.entry, packet)
        finally:
            os.sched_setaffinity(0, before)

    def configure(self, configuration: str | Configuration = cast.CONFIGURATION) -> None:
        """Apply a configuration as the daemon would, with next hops that need no network."""
        if isinstance(configuration, str):
            configuration = parse(configuration, "test")
        ways = {
            hop: NextHop(
                self.member_interface,
                hop.address,
                cast.mac_of(hop.address),
                bytes.fromhex(cast.GATEWAY_MEMBER_MAC.replace(":", "")),
                self.mtu,
                hop.address not in self.unresolved,
                self.member_vlan,
            )
            for hop in hops(configuration)
        }
        want = plan(configuration, ways, dict(self.links), self.entries, self.tables.slots)
        self.tables.apply(diff(self.entries, want))
        self.entries = want

    def start_anew(self) -> None:
        """Endpoints, all of whose slots are free, as if just made: queues in order, counters at 0."""
        for number, endpoint in self.entries.endpoints.items():
            ring = self.maps.of_endpoint("free_slots", number)
            ring.bytes[:] = struct.pack(f"{endpoint.slots}Q", *range(endpoint.first, endpoint.first + endpoint.slots))
            load = self.maps["load"].memory()[number]
            load.head, load.tail = 0, endpoint.slots
        for pool in self.entries.pools:
            self.maps["cursors"].memory()[pool].position = 0
        for name in ("verdicts", "listener_counts", "endpoint_counts"):
            counted = self.maps[name].columns(len(Verdict) if name == "verdicts" else self._used())
            for number in {row for column in counted.values() for row, count in enumerate(column) if count}:
                self.maps[name].put_row(number, [0] * len(counted))

    def _used(self) -> int:
        """Ids of listeners and endpoints are below this."""
        return 1 + max([0, *self.entries.endpoints, *(one.id for one in self.entries.listeners.values())])

    def unbalanced(self) -> dict[str, Difference]:
        """What of all that was counted does not add up."""
        return View(self.maps, Configuration(), self.entries).differences()

    def _zero(self, table: str, number: int) -> None:
        values = self.maps[table].get(number)
        syscall.update(self.maps[table].fd, struct.pack("I", number), bytes(sum(len(bytes(one)) for one in values)))

    def verdicts(self) -> Counter[Verdict]:
        """How many packets ended in each verdict so far; the difference of two is what lies between."""
        return Counter({verdict: count for verdict, count in counts(self.maps).items() if verdict})

    def run(self, packet: Packet | bytes) -> Result:
        """One packet from the wire, on CLIENT_INTERFACE."""
        before = counts(self.maps)
        action, left, _ = syscall.run(self.program.entry, bytes(packet))
        changed = Counter(counts(self.maps)) - Counter(before)
        assert changed.pop(Verdict.NEXT_STEP) == 1, "it entered more than once"
        assert changed.total() == 1, f"counted under {changed}"
        name = ("ABORTED", "DROP", "PASS", "TX", "REDIRECT")[action]
        return Result(changed.most_common()[0][0], name, Ether(left))

    def open(self, packet: Packet = cast.SYN) -> Flow:
        """The connection that this packet opens."""
        result = self.run(packet)
        assert result.verdict is Verdict.FORWARD_OPENED
        return Flow.of(packet, result.packet)

    def establish(self, packet: Packet = cast.SYN) -> Flow:
        """The TCP connection that this SYN begins, after its handshake."""
        flow = self.open(packet)
        self.run(flow.reply(flags="SA"))
        self.run(flow.request(flags="A"))
        assert self.phase(flow) is Phase.ESTABLISHED
        return flow

    def endpoint(self, member: str = cast.MEMBER, port: int = cast.MEMBER_PORT, protocol: str = "TCP") -> int:
        sought = (IPv4Address(member), port, protocol)
        return next(number for number, endpoint in self.entries.endpoints.items() if endpoint.key == sought)

    def load(self, member: str = cast.MEMBER, port: int = cast.MEMBER_PORT, protocol: str = "TCP") -> Any:
        """Live: the endpoint's active connections and ceiling."""
        return self.maps["load"].memory()[self.endpoint(member, port, protocol)]

    def slot(self, flow: Flow) -> int:
        return (flow.snat_port - FIRST_SNAT_PORT) * len(cast.SNATS) + cast.SNATS.index(flow.snat)

    def connection(self, flow: Flow) -> Any:
        """Live: the conntrack entry that carries the flow."""
        protocol = "TCP" if flow.kind is TCP else "UDP"
        memory = self.maps.of_endpoint("conntrack", self.endpoint(flow.member, flow.member_port, protocol))
        return memory[self.slot(flow)]

    def phase(self, flow: Flow) -> Phase:
        return Phase(self.connection(flow).state & 0xFF)

    def phases(self, endpoint: int) -> bytes:
        """Of all slots of the endpoint."""
        return bytes(self.maps.of_endpoint("conntrack", endpoint).column("state"))

    def sweep(self, mode: SweepMode = SweepMode.EXPIRED) -> tuple[int, int]:
        """All endpoints in use: how many connections ended, how many slots were rested."""
        used = [number for number in self.entries.endpoints if any(self.phases(number))]
        results = [self.tables.sweep(number, mode) for number in used]
        return sum(ended for ended, _ in results), sum(rested for _, rested in results)

    def count(self, table: str, number: int, field: str) -> int:
        """A counter of a listener or an endpoint, over all CPUs."""
        return sum(getattr(one, field) for one in self.maps[table].get(number))


@contextmanager
def load(connections: int, counted: bool = False, run_directory: Path = RUN) -> Iterator[Dataplane]:
    """Compiled and loaded for so many connections, with a hash key as the daemon draws one."""
    program = Program(run_directory, connections, counted)
    with Maps(run_directory) as maps:
        settings = maps["gateway"].memory()[0]
        secret = Random(1)
        settings.hash_key = tuple(secret.getrandbits(64) for _ in range(5))
        settings.snat_shift = 2
        program.set_clock(maps)
        program.join(maps)
        yield Dataplane(program, maps)
    program.close()


@pytest.fixture(scope="session")
def loaded(own_run: None) -> Iterator[Dataplane]:
    """Once for all tests."""
    with load(1_200_000, counted=True) as dataplane:
        yield dataplane


@pytest.fixture
def unconfigured(loaded: Dataplane) -> Iterator[Dataplane]:
    """Configured as it happens to be: for tests that begin with a configuration of their own.

    Afterwards the books must balance, and everything be given back.
    """
    loaded.reset()
    yield loaded
    problems = audit(loaded.maps) + list(loaded.unbalanced())
    loaded.sweep(SweepMode.ENDPOINT)
    left = audit(loaded.maps) + list(loaded.unbalanced())
    if problems or left:
        start_over(loaded)
    assert problems == []
    assert left == []


@pytest.fixture
def dataplane(unconfigured: Dataplane) -> Dataplane:
    """The usual cast configured, and no connection."""
    unconfigured.configure()
    unconfigured.start_anew()
    return unconfigured


def start_over(dataplane: Dataplane) -> None:
    """No test shall fail for another's mess: fresh tables and an empty index."""
    dataplane.tables.apply(diff(dataplane.entries, Entries()))
    dataplane.entries = Entries()
    index = dataplane.maps["flow_index"].memory().bytes
    index[:] = bytes(len(index))
    dataplane.start_anew()


@pytest.fixture(scope="session")
def driver(loaded: Dataplane) -> Iterator[Driver]:
    """Packets made in the kernel, for races and for numbers."""
    driver = Driver(loaded.program.entry, RUN)
    yield driver
    driver.close()
