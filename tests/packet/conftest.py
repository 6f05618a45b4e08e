"""The real program in the kernel, fed packet by packet through BPF_PROG_TEST_RUN. No link carries anything here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from ipbackend.abi import Road, Verdict
from ipbackend.config import parse
from ipbackend.datapath import syscall
from ipbackend.datapath.audit import audit
from ipbackend.datapath.loader import Program
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.tables import Tables
from ipbackend.model import Configuration
from ipbackend.plan import Entries, NextHop, diff, hops, plan
from tests.netns.lab import private_mounts
from tests.packet import cast

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
        self.entries = Entries()
        self.unresolved: set[IPv4Address] = set()
        self.mtu = 1500
        self.member_interface = 2

    def configure(self, configuration: str | Configuration) -> None:
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
            )
            for hop in hops(configuration)
        }
        self.apply(plan(configuration, ways, self.entries))

    def apply(self, want: Entries) -> None:
        for step in diff(self.entries, want):
            self.tables.apply(step)
        self.entries = want

    def verdicts(self) -> dict[Verdict, int]:
        return {verdict: sum(self.maps["verdicts"].get(int(verdict))) for verdict in Verdict}

    def run(self, packet: Packet | bytes) -> Result:
        """One packet from the wire, on interface 1 (BPF_PROG_TEST_RUN's lo)."""
        before = self.verdicts()
        action, left, _ = syscall.run(self.program.entry, bytes(packet), 1)
        changed = [verdict for verdict, count in self.verdicts().items() if count != before[verdict]]
        assert len(changed) == 1, f"counted under {changed}"
        name = ("ABORTED", "DROP", "PASS", "TX", "REDIRECT")[action]
        return Result(changed[0], name, Ether(left))

    def active(self, member: str = cast.MEMBER, port: int = cast.MEMBER_PORT) -> int:
        number = self.endpoint(member, port)
        return int(self.maps["load"].memory()[number].active)

    def endpoint(self, member: str = cast.MEMBER, port: int = cast.MEMBER_PORT, protocol: str = "TCP") -> int:
        sought = (IPv4Address(member), port, protocol)
        return next(number for number, endpoint in self.entries.endpoints.items() if endpoint.key == sought)

    def connection(self, slot: int, endpoint: int | None = None):
        memory = self.maps["conntrack"].inner(self.endpoint() if endpoint is None else endpoint)
        assert memory is not None
        return memory[slot]


@pytest.fixture(scope="session")
def loaded() -> Iterator[Dataplane]:
    """Compiled and loaded once for all tests, with a hash key and timeouts as the daemon sets them."""
    with contextlib.suppress(RuntimeError):  # another fixture of this process has made them
        private_mounts()
    program = Program(RUN, 200_000)
    with Maps(RUN) as maps:
        settings = maps["gateway"].memory()[0]
        settings.hash_key = tuple(range(0x1234567890ABCDE1, 0x1234567890ABCDE1 + 5 * 0x1111111111111, 0x1111111111111))
        settings.snat_shift = 2
        settings.syn_sent_timeout, settings.syn_received_timeout = 5, 15
        settings.closing_timeout, settings.rest = 15, 60
        maps["roads"].set(int(Road.OPEN), program.open)
        yield Dataplane(program, maps)
    program.close()


@pytest.fixture
def dataplane(loaded: Dataplane) -> Iterator[Dataplane]:
    """The usual cast configured; afterwards the books must balance, and nothing may be left."""
    loaded.unresolved, loaded.mtu, loaded.member_interface = set(), 1500, 2
    loaded.configure(cast.CONFIGURATION)
    yield loaded
    assert audit(loaded.maps) == []
    loaded.apply(replace(Entries()))
    assert audit(loaded.maps) == []
