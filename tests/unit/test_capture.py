"""Captures as files and as requests: what pcapng readers find in them, and what the API makes of them."""

from __future__ import annotations

import asyncio
import io
import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import RawPcapNgReader

from ipbackend import capture, capturing, pcapng
from ipbackend.abi import Verdict
from ipbackend.capture import Captured, Order, Recording, order
from ipbackend.capturing import Capturing
from ipbackend.errors import ConfigurationError, NotRunningError
from ipbackend.pcapng import Direction
from ipbackend.peer import Peer
from tests.unit.serving import OURS, Client, Kept, refused

FRAME = bytes(range(70))
ANY = order("", "", None, "", (), 1000, 2048)


def packet(verdict: Verdict = Verdict.FORWARD_REQUEST, leaves: bool = True) -> Captured:
    return Captured(10**9, verdict, 4, (3, 90, FRAME), (4, 94, FRAME[::-1]) if leaves else None)


@dataclass
class Source:
    """Gives what it has, and may have been ended."""

    packets: list[Captured] = field(default_factory=list)
    over_rate: int = 0
    unread: int = 0
    ended: bool = False

    def read(self, most: int) -> list[Captured]:
        given, self.packets = self.packets[:most], self.packets[most:]
        return given


def blocks(content: bytes) -> list[tuple[int, bytes]]:
    """Type and body of each; the lengths before and behind must agree."""
    found = []
    while content:
        kind, length = struct.unpack_from("=II", content)
        assert length % 4 == 0
        assert struct.unpack_from("=I", content, length - 4)[0] == length
        found.append((kind, content[8 : length - 4]))
        content = content[length:]
    return found


@given(
    st.lists(
        st.tuples(st.integers(0, 2**63), st.binary(max_size=100), st.integers(0, 2**64 - 1), st.text(max_size=40)),
        max_size=5,
    )
)
def test_whatever_is_written_is_read_back(packets: list[tuple[int, bytes, int, str]]) -> None:
    content = pcapng.section("test") + pcapng.interface("eth0", 2048)
    for at, frame, number, comment in packets:
        content += pcapng.packet(at, 0, Direction.INBOUND, len(frame) + 7, frame, number, 3, comment)
    content += pcapng.statistics(5, 0, len(packets), 2, "the end")

    assert [kind for kind, _ in blocks(content)] == [0x0A0D0D0A, 1, *[6] * len(packets), 5]
    with RawPcapNgReader(io.BytesIO(content)) as reader:
        for (at, frame, _, comment), (read, told) in zip(packets, reader, strict=True):
            assert read == frame
            assert told.linktype == pcapng.ETHERNET
            assert told.wirelen == len(frame) + 7
            assert (told.tshigh << 32) + told.tslow == at
            assert told.tsresol == 10**9
            assert [*told.comments] == [comment.encode()]
            assert told.ifname == b"eth0"
            assert told.direction == Direction.INBOUND
    assert pcapng.closing(content) == "the end"


@pytest.mark.parametrize("tail", [b"", b"abc", bytes(200), pcapng.section("x"), b"\xff" * 30])
def test_a_file_that_was_cut_has_no_end(tail: bytes) -> None:
    assert pcapng.closing(tail) is None


def test_each_interface_is_told_before_its_first_frame() -> None:
    recording = Recording(ANY, lambda index: f"eth{index}")
    content = recording.begin() + recording.add([packet(), packet(Verdict.DROP_TTL, leaves=False)])
    content += recording.end(3, 1)

    assert [kind for kind, _ in blocks(content)] == [0x0A0D0D0A, 1, 6, 1, 6, 6, 5]
    with RawPcapNgReader(io.BytesIO(content)) as reader:
        told = [(one.ifname, one.direction, one.comments[0].decode()) for _, one in reader]
    assert told == [
        (b"eth3", 1, "FORWARD_REQUEST: of a connection, on to the member; packet 1 as it came"),
        (b"eth4", 2, "FORWARD_REQUEST: of a connection, on to the member; packet 1 as it left"),
        (
            b"eth3",
            1,
            "DROP_TTL: its time to live ended here, and there was no one to tell; packet 2 as it came",
        ),
    ]
    assert pcapng.closing(content) == "2 packets; left out: 3 over 1,000 a second, 1 not read in time"


def test_a_file_without_packets_has_an_end() -> None:
    recording = Recording(ANY, lambda index: f"if{index}")
    content = recording.begin() + recording.end(0, 0)
    assert [kind for kind, _ in blocks(content)] == [0x0A0D0D0A, 1, 5]


# --- What is asked for.


def test_an_order_is_read_from_text() -> None:
    wanted = order("203.0.113.0/24", "10.0.0.100", 80, "10.0.0.11:8080", ["drop_ttl"], 5, 100)
    assert str(wanted.client) == "203.0.113.0/24"
    assert wanted.member == Peer(IPv4Address("10.0.0.11"), 8080)
    assert wanted.verdicts == {Verdict.DROP_TTL}
    assert Verdict.PASS_NOT_OURS not in ANY.verdicts
    assert len(ANY.verdicts) == len(Verdict) - 2


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"client": "nowhere"}, "'nowhere' is not an IPv4 address"),
        ({"client": "203.0.113.7/24"}, "has host bits set"),
        ({"client": "203.0.113.7:80"}, "has a port"),
        ({"vip": "10.0.0"}, "'10.0.0' is not an IPv4 address"),
        ({"member": "10.0.0.11:99999"}, "no possible port"),
        ({"verdicts": ["DROP_TLT"]}, "did you mean DROP_TTL?"),
    ],
)
def test_an_order_that_says_nothing_is_refused(given: dict[str, Any], why: str) -> None:
    usual = {"client": "", "vip": "", "port": None, "member": "", "verdicts": (), "rate": 1, "snaplen": 96}
    with pytest.raises(ConfigurationError, match=why.replace("?", r"\?")):
        order(**{**usual, **given})


# --- How it runs.


def chunks(running: Capturing, count: int = 0, seconds: float = 0.0) -> bytes:
    async def all_() -> bytes:
        return b"".join([piece async for piece in running.chunks(count, seconds)])

    return asyncio.run(all_())


@pytest.mark.parametrize("how", ["count", "seconds", "stopped", "ended"])
def test_a_capture_ends(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "PAUSE", 0)
    source = Source([packet()] * 3)
    running = Capturing("root", ANY, source)
    if how == "stopped":
        running.stop()
    source.ended = how == "ended"
    content = chunks(running, 2 if how == "count" else 0, 1e-9 if how == "seconds" else 0)
    packets = 2 if how == "count" else 3
    assert running.packets == packets
    assert (pcapng.closing(content) or "").startswith(f"{packets} packets; ")


class Capturer(Kept):
    """A service whose packets come from a list."""

    def __init__(self) -> None:
        super().__init__()
        self.source = Source([packet()] * 3)
        self.ordered: Order | None = None
        self.ends = 0

    async def capture(self, author: str, wanted: Order) -> Capturing:
        if self.refusal:
            raise self.refusal
        self.ordered = wanted
        self.capturing = Capturing(author, wanted, self.source)
        return self.capturing

    async def end_capture(self, capturing: Capturing) -> None:
        assert self.capturing is capturing
        self.capturing = None
        self.ends += 1


def test_a_capture_is_an_answer_that_grows() -> None:
    service = Capturer()
    answer = Client(service).get(f"{OURS}/capture", params={"count": 3, "client": "203.0.113.0/24", "rate": 7})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-pcapng")
    assert pcapng.closing(answer.content) == "3 packets; left out: 0 over 7 a second, 0 not read in time"
    assert service.ordered is not None
    assert (str(service.ordered.client), service.ordered.rate) == ("203.0.113.0/24", 7)
    assert service.ends == 1


def test_a_capture_that_fails_on_its_way_is_ended() -> None:
    class Broken(Source):
        def read(self, most: int) -> list[Captured]:
            raise ZeroDivisionError

    service = Capturer()
    service.source = Broken()
    answer = Client(service).get(f"{OURS}/capture")
    assert pcapng.closing(answer.content) is None
    assert service.ends == 1


def test_what_cannot_be_captured_is_refused() -> None:
    service = Capturer()
    client = Client(service)
    assert "rate" in refused(client.get(f"{OURS}/capture", params={"rate": 0}), 400, "ELB.8902")
    assert "snaplen" in refused(client.get(f"{OURS}/capture", params={"snaplen": capture.MOST + 1}), 400, "ELB.8902")
    assert "DROP_TTL" in refused(client.get(f"{OURS}/capture", params={"verdict": "DROP_TLT"}), 400, "ELB.8902")
    service.refusal = NotRunningError("gateway: nothing is loaded")
    assert "nothing is loaded" in refused(client.get(f"{OURS}/capture"), 404, "ELB.8904")
    assert service.ends == 0


def test_a_capture_is_ended_by_anybody_and_shown_while_it_runs() -> None:
    service = Capturer()
    client = Client(service)
    assert client.delete(f"{OURS}/capture").status_code == 204
    service.source.over_rate = 5
    service.capturing = Capturing("root", ANY, service.source)
    shown = client.get(f"{OURS}/status").json()["status"]["capture"]
    assert (shown["author"], shown["packets"], shown["over_rate"], shown["unread"]) == ("root", 0, 5, 0)
    assert client.delete(f"{OURS}/capture").status_code == 204
    assert (pcapng.closing(chunks(service.capturing)) or "").startswith("3 packets")
