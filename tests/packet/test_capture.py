"""Packets captured as they come and as they leave: what is shown, of whom, how fast, and that nothing else changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from ipbackend import capture
from ipbackend.abi import Verdict
from ipbackend.capture import Captured, Order
from ipbackend.datapath import loader, pins, syscall
from ipbackend.datapath.capture import Capture
from ipbackend.datapath.compiling import compiled
from ipbackend.datapath.source import bpf_directory, expand
from tests.packet import cast
from tests.packet.cast import CLIENT, FROM_CLIENT, MEMBER, OTHER_CLIENT, SECOND_VIP, SYN, UDP_MEMBER, VIP
from tests.packet.conftest import Dataplane

Look = Callable[..., "Looking"]


class Looking:
    """A data plane whose packets are captured."""

    def __init__(self, dataplane: Dataplane, seen: Capture) -> None:
        self.dataplane = dataplane
        self._capture = seen
        self._before = self._capture.over_rate, self._capture.unread

    def seen(self) -> list[Captured]:
        return self._capture.read(1 << 20)

    def verdicts(self) -> list[Verdict]:
        """Of what was captured since the last look."""
        return [Verdict(one.verdict) for one in self.seen()]

    @property
    def missing(self) -> tuple[int, int]:
        """How many packets came too fast, and how many were not read."""
        over_rate, unread = self._before
        return self._capture.over_rate - over_rate, self._capture.unread - unread


def order(**wanted: Any) -> Order:
    usual = {"client": "", "vip": "", "port": None, "member": "", "verdicts": (), "rate": 100_000, "snaplen": 9216}
    return capture.order(**{**usual, **wanted})


@pytest.fixture(scope="module")
def showing(loaded: Dataplane) -> Iterator[Capture]:
    """The programs that show, loaded once."""
    capture = Capture(loaded.program, order())
    yield capture
    capture.close()


@pytest.fixture
def looking(dataplane: Dataplane, showing: Capture) -> Callable[..., Any]:
    """Begins a capture of what is ordered, as often as one likes; afterwards nothing is captured."""
    program = dataplane.program

    @contextmanager
    def begun(**wanted: Any) -> Iterator[Looking]:
        showing.look_for(order(**wanted))
        showing.join(dataplane.maps)
        dataplane.program = showing  # type: ignore[assignment]
        try:
            yield Looking(dataplane, showing)
        finally:
            dataplane.program = program
            program.join(dataplane.maps)
            showing.read(1 << 20)

    return begun


# --- What is shown.


def test_a_packet_is_shown_as_it_came_and_as_it_left(looking: Look) -> None:
    with looking() as look:
        result = look.dataplane.run(SYN)
        (one,) = look.seen()

    assert (one.verdict, one.action) == (Verdict.FORWARD_OPENED, 4)
    assert one.came == (cast.CLIENT_INTERFACE, len(SYN), bytes(SYN))
    assert one.left == (cast.MEMBER_INTERFACE, len(result.packet), bytes(result.packet))


def test_every_road_ends_where_it_would_have_ended(looking: Look) -> None:
    """Verdict, action and bytes are those of the programs that show nothing; what is shown is what left."""
    tagged = FROM_CLIENT / TCP(sport=40000, dport=80, flags="A")
    packets = {
        Verdict.PASS_ECHO: FROM_CLIENT / ICMP(),
        Verdict.FORWARD_REQUEST: tagged,
        Verdict.REJECT_NO_LISTENER: FROM_CLIENT / TCP(sport=40000, dport=99, flags="S"),
        Verdict.REJECT_NO_MEMBER: FROM_CLIENT / TCP(sport=40000, dport=81, flags="S"),
        Verdict.DROP_TTL: cast.from_client(ttl=1) / ICMP(type=3, code=1) / bytes(28),
        Verdict.DROP_PROTOCOL: cast.from_client(proto=47) / bytes(40),
    }
    with looking() as look:
        look.dataplane.run(SYN)
        look.seen()
        shown = {verdict: (look.dataplane.run(packet), look.seen()) for verdict, packet in packets.items()}
    for verdict, packet in packets.items():
        result, (one,) = shown[verdict]
        plain = look.dataplane.run(packet)
        assert (result.verdict, result.action, bytes(result.packet)) == (verdict, plain.action, bytes(plain.packet))
        assert one.verdict == verdict
        assert one.came[2] == bytes(packet)
        leaves = plain.action in ("TX", "REDIRECT")
        assert (one.left and one.left[2]) == (bytes(plain.packet) if leaves else None)


def test_a_refusal_is_shown_with_its_answer(looking: Look) -> None:
    closed = FROM_CLIENT / UDP(sport=40000, dport=99) / b"who?"
    with looking() as look:
        look.dataplane.run(FROM_CLIENT / TCP(sport=40000, dport=99, flags="S"))
        look.dataplane.run(closed)
        reset, unreachable = (Ether(one.left[2]) for one in look.seen() if one.left)

    assert (reset[IP].dst, reset[TCP].flags) == (CLIENT, "RA")
    assert (unreachable[IP].dst, unreachable[ICMP].type, unreachable[ICMP].code) == (CLIENT, 3, 3)


def test_what_is_the_kernels_is_shown_only_if_asked_for(looking: Look) -> None:
    stranger = cast.from_client(vip="10.0.0.99") / TCP(dport=22)
    with looking() as look:
        look.dataplane.run(stranger)
        assert look.verdicts() == []
    with looking(verdicts=["pass_not_ours"]) as look:
        look.dataplane.run(SYN)
        look.dataplane.run(stranger)
        assert look.verdicts() == [Verdict.PASS_NOT_OURS]


def test_only_so_much_of_a_frame_is_kept(looking: Look) -> None:
    with looking(snaplen=100) as look:
        look.dataplane.run(cast.QUERY / Raw(bytes(500)))
        (one,) = look.seen()
    assert one.left
    assert [(length, len(kept)) for _, length, kept in (one.came, one.left)] == [(len(cast.QUERY) + 500, 100)] * 2


def test_a_frame_of_several_buffers_is_kept_whole(looking: Look) -> None:
    long = FROM_CLIENT / UDP(sport=40000, dport=53) / Raw(bytes(range(256)) * 23)
    with looking() as look:
        look.dataplane.mtu = 9000
        look.dataplane.configure()
        result = look.dataplane.run(long)
        (one,) = look.seen()
    assert one.came[2] == bytes(long)
    assert one.left
    assert one.left[2] == bytes(result.packet)


# --- Whose packets.


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ({"client": CLIENT}, {"request", "reply", "error"}),
        ({"client": "203.0.113.0/29"}, {"request", "reply", "error"}),
        ({"client": OTHER_CLIENT}, {"other", "other-reply"}),
        ({"client": "203.0.113.0/24"}, {"request", "reply", "error", "other", "other-reply", "query", "answer"}),
        ({"vip": SECOND_VIP}, {"other", "other-reply"}),
        ({"port": 53}, {"query", "answer"}),
        ({"port": 80, "vip": VIP}, {"request", "reply", "error"}),
        ({"member": UDP_MEMBER}, {"query", "answer"}),
        ({"member": f"{MEMBER}:8080"}, {"request", "reply", "error", "other", "other-reply"}),
        ({"member": f"{MEMBER}:8081"}, set()),
        ({"member": MEMBER, "vip": VIP}, {"request", "reply", "error"}),
        ({"verdicts": ["FORWARD_REPLY"]}, {"reply", "other-reply", "answer"}),
        ({"verdicts": ["FORWARD_REPLY", "FORWARD_ICMP_ERROR"], "client": CLIENT}, {"reply", "error"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),  # a set's order differs by process
)
def test_only_wanted_packets_are_shown(wanted: dict[str, Any], shown: set[str], looking: Look) -> None:
    with looking(**wanted) as look:
        dataplane = look.dataplane
        one = dataplane.establish()
        other = dataplane.establish(cast.from_client(OTHER_CLIENT, SECOND_VIP) / TCP(sport=40000, dport=80, flags="S"))
        dns = dataplane.open(cast.from_client("203.0.113.9") / UDP(sport=40000, dport=53))
        look.seen()
        quoted = bytes(one.requested(flags="A")[IP])[:28]
        router = cast.from_member("172.16.0.1", one.snat)
        packets = {
            "request": one.request(flags="A"),
            "reply": one.reply(flags="A"),
            "error": router / IP(src="172.16.0.1", dst=one.snat, proto=1) / ICMP(type=3, code=1) / quoted,
            "other": other.request(flags="A"),
            "other-reply": other.reply(flags="A"),
            "query": dns.request(),
            "answer": dns.reply(),
        }
        packets["error"] = router / ICMP(type=3, code=1) / quoted
        found = set()
        for name, packet in packets.items():
            dataplane.run(packet)
            if look.seen():
                found.add(name)
    assert found == shown


def test_a_packet_whose_other_end_is_not_known_is_nobodys(looking: Look) -> None:
    """A member's packet of no connection has no client; a client's that no member gets has no member."""
    lost, refused = cast.from_member() / TCP(sport=8080, dport=40000, flags="A"), FROM_CLIENT / TCP(dport=81, flags="S")
    for wanted, expected in (
        ({"client": CLIENT}, [Verdict.REJECT_NO_MEMBER]),
        ({"member": MEMBER}, [Verdict.DROP_NO_CONNECTION]),
        ({"vip": VIP}, [Verdict.REJECT_NO_MEMBER]),
        ({"member": CLIENT}, []),
    ):
        with looking(**wanted) as look:
            look.dataplane.run(lost)
            look.dataplane.run(refused)
            assert look.verdicts() == expected


# --- How fast, and what is lost.


def test_the_rate_is_bounded_and_what_is_over_it_counted(looking: Look) -> None:
    with looking(rate=50) as look:
        look.dataplane.open()
        look.dataplane.run_on_one_cpu(bytes(SYN), 999)
        shown = len(look.seen())
        assert 5 <= shown < 500
        assert look.missing == (1000 - shown, 0)


def test_what_is_not_read_is_counted(looking: Look) -> None:
    packet = cast.QUERY / Raw(bytes(1400))
    with looking() as look:
        look.dataplane.run(packet)
        runs = 0
        while not look.missing[1]:
            look.dataplane.run_on_one_cpu(bytes(packet), 100)
            runs += 100
            assert runs < 20_000
        shown = len(look.seen())
        assert shown + sum(look.missing) == runs + 1
        look.dataplane.run(packet)
        assert len(look.seen()) == 1  # there is room again


def test_programs_that_show_may_be_mixed_with_those_that_do_not(dataplane: Dataplane, looking: Look) -> None:
    """As they are for a moment when a capture begins and ends: what did not come in view is not shown."""
    quiet = dataplane.program.entry
    with looking() as look:
        look.dataplane.run(SYN)
        look.seen()
        syscall.run(quiet, bytes(FROM_CLIENT / TCP(sport=40001, dport=80, flags="S")))
        assert look.seen() == []
        assert look.dataplane.load().active == 2


def test_what_shows_nothing_costs_nothing(loaded: Dataplane) -> None:
    """The programs are, instruction for instruction, those of a text without any look at packets."""

    def code(text: str) -> dict[str, bytes]:
        made = compiled(text, loaded.program._macros)
        return {name: bytes(_without_maps(made.dump_func(name.encode()))) for name in loader.KINDS}

    text = expand(bpf_directory() / loader.FIRST)
    blind = re.sub(r"\t(arrived|left)\(.*\);\n", "", text)
    assert blind.count("\n") == text.count("\n") - 2
    quiet, without = code(text), code(blind)
    assert quiet == without
    showing = code(expand(bpf_directory() / loader.FIRST, {"quiet.h": "capture.h"}))
    assert showing[pins.ENTRY] != quiet[pins.ENTRY]


def _without_maps(code: bytes) -> Iterator[int]:
    """Each load of a map's address, as of its descriptor, which is another one each time, is left out."""
    for start in range(0, len(code), 8):
        instruction = code[start : start + 8]
        if (instruction[0], instruction[1] >> 4) != (0x18, 1):
            yield from instruction


def test_the_same_is_said_in_c_and_python() -> None:
    text = (bpf_directory() / "capture.h").read_text()
    (most,) = re.findall(r"#define CAPTURE_MOST (\d+)", text)
    assert int(most) == capture.MOST
    assert max(Verdict) < 64  # a bit for each, in one word
    assert Path(bpf_directory() / "quiet.h").exists()
