"""One question after another to real servers, good and bad: what is answered, and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import TCP

from ipbackend.health.probes import Answer, Prober, Unasked
from ipbackend.health.questions import Question
from ipbackend.health.states import Code, Reason
from ipbackend.model import Check
from tests.netns.asked import (
    ADDRESS,
    apart,
    certificate,
    connections,
    descriptors,
    full,
    hanging,
    open_files,
    response,
    saying,
    server,
)
from tests.netns.clients import RawPort
from tests.netns.namespace import Namespace

pytestmark = pytest.mark.root

CLOSED = 9  # a port that nobody listens on


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    namespace = Namespace("probes")
    with namespace.netlink() as netlink:
        netlink.addr("add", index=1, address=ADDRESS, prefixlen=32)
        netlink.addr("add", index=1, address="10.99.0.2", prefixlen=32)
    yield namespace
    namespace.close()


Work = Callable[[Prober], Awaitable[Any]]
Run = Callable[[Work], Any]


@pytest.fixture
def run(namespace: Namespace) -> Iterator[Run]:
    """Runs work in the namespace; nothing of it may be left there, nor a descriptor here."""

    def run(work: Work) -> Any:
        async def whole() -> Any:
            prober = Prober(asyncio.get_running_loop())
            try:
                return await work(prober)
            finally:
                prober.close()

        return asyncio.run(whole())

    with namespace:
        before = descriptors()
        yield run
        assert descriptors() == before
        end = time.monotonic() + 5
        while (left := connections()) and time.monotonic() < end:
            time.sleep(0.01)  # the kernel takes down what servers have closed
        assert left == []


def put(port: int, kind: Check = Check.TCP, address: str = ADDRESS, **more: Any) -> Question:
    http = {"method": "GET", "path": "/", "host": "web", "codes": "200"} if kind.startswith("HTTP") else {}
    return Question(kind, IPv4Address(address), port, **{"timeout": 1, **http, **more})


async def asked(prober: Prober, question: Question) -> Answer:
    answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    prober.ask(question, answer.set_result)
    return await answer


def code(answer: Answer) -> str:
    return answer.code if isinstance(answer, Reason) else "good" if answer is None else "unasked"


# --- TCP.


def test_who_accepts_serves(run: Run) -> None:
    async def work(prober: Prober) -> None:
        async with server(hanging) as port:
            assert await asked(prober, put(port)) is None

    run(work)


def test_a_port_that_is_closed(run: Run) -> None:
    async def work(prober: Prober) -> None:
        assert await asked(prober, put(CLOSED)) == Reason(Code.CONNECT_REFUSED, "", "Connection refused")

    run(work)


def test_no_answer_to_a_syn(run: Run) -> None:
    async def work(prober: Prober) -> None:
        with full() as port:
            began = time.monotonic()
            assert await asked(prober, put(port)) == Reason(Code.CONNECT_TIMEOUT, "", "no answer in 1 s")
            assert time.monotonic() - began >= 1

    run(work)


def test_where_our_own_kernel_has_no_route_nobody_is_asked(run: Run) -> None:
    """Somebody took a route away, or an interface is down: no member goes down for it."""

    async def work(prober: Prober) -> None:
        for kind in Check:
            answer = await asked(prober, put(80, kind, address="192.168.77.7"))
            assert answer == Unasked("at 192.168.77.7: Network is unreachable"), kind

    run(work)


def test_from_an_address_that_is_not_here_nobody_is_asked(run: Run) -> None:
    """It is the gateway's own trouble, and no member goes down for it."""

    async def work(prober: Prober) -> None:
        for kind in Check:
            answer = await asked(prober, put(CLOSED, kind, source=IPv4Address("10.98.0.1")))
            assert answer == Unasked("from 10.98.0.1: Cannot assign requested address"), kind

    run(work)


def test_without_descriptors_nobody_is_asked(run: Run) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def work(prober: Prober) -> None:
        taken: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(one.name) for one in open_files()) + 1, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            answers = [await asked(prober, put(CLOSED, kind)) for kind in Check]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for one in taken:
                os.close(one)
        assert answers == [Unasked("from the address that the kernel chooses: Too many open files")] * len(Check)
        assert code(await asked(prober, put(CLOSED))) == Code.CONNECT_REFUSED

    run(work)


def test_a_check_is_syn_syn_ack_ack_rst(namespace: Namespace, run: Run) -> None:
    """And it goes from the health-check address."""

    async def work(prober: Prober) -> None:
        async with server(hanging) as port:
            with RawPort(namespace, "lo") as wire:
                assert await asked(prober, put(port, source=IPv4Address("10.99.0.2"))) is None
                frames = [wire.expect(lambda frame: TCP in frame) for _ in range(4)]
                assert wire.arrived() == []  # all of it, on the loopback, was there before the answer
        assert [str(frame[TCP].flags) for frame in frames] == ["S", "SA", "A", "RA"]
        assert frames[0].sprintf("%IP.src%>%IP.dst%") == f"10.99.0.2>{ADDRESS}"

    run(work)


# --- HTTP and HTTPS.


@pytest.mark.parametrize(
    ("serve", "expected"),
    [
        (saying(response()), "good"),
        (saying(response(), then="hang"), "good"),
        (saying(response(body=b"x" * 5_000_000), then="hang"), "good"),
        (saying(response(), pause=0.005, size=3), "good"),
        (saying(b"HTTP/1.1 100 Continue\r\n\r\n" + response()), "good"),
        (saying(response("503 Busy")), Code.RESPONSE_MISMATCH),
        (saying(b"220 mail.example ESMTP\r\n", then="hang"), Code.RESPONSE_FORMAT_ERROR),
        (saying(bytes(range(256)) * 1000), Code.RESPONSE_FORMAT_ERROR),
        (saying(b""), Code.RECV_RESPONSE_FAILED),
        (saying(b"HTTP/1.1 200 OK\r\nServ"), Code.RECV_RESPONSE_FAILED),
        (saying(b"HTTP/1.1 200 OK\r\nServ", then="reset"), Code.RECV_RESPONSE_FAILED),
        (saying(b"HTTP/1.1 200 OK\r\nServ", then="hang"), Code.RECV_RESPONSE_TIMEOUT),
        (saying(response(), pause=0.1, size=1), Code.RECV_RESPONSE_TIMEOUT),
        (hanging, Code.RECV_RESPONSE_TIMEOUT),
    ],
)
@pytest.mark.parametrize("kind", [Check.HTTP, Check.HTTPS])
def test_what_a_server_says_and_does(run: Run, tmp_path: Path, kind: Check, serve: Any, expected: str) -> None:
    async def work(prober: Prober) -> None:
        async with server(serve, certificate(tmp_path) if kind is Check.HTTPS else None) as port:
            answer = await asked(prober, put(port, kind))
            assert code(answer) == expected, answer

    run(work)


def test_the_status_that_came_is_told(run: Run) -> None:
    async def work(prober: Prober) -> None:
        async with server(saying(response("503 Busy"))) as port:
            answer = await asked(prober, put(port, Check.HTTP, codes="200-204"))
            assert answer == Reason(Code.RESPONSE_MISMATCH, "200-204", "503")

    run(work)


def test_a_server_that_resets_before_it_is_asked(run: Run) -> None:
    """Where that is seen first is a race of two programs: before, in or after sending."""

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: socket.socket = writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        writer.transport.abort()

    async def work(prober: Prober) -> None:
        async with server(reset) as port:
            possible = (Code.CONNECT_INTERRUPT, Code.SEND_REQUEST_FAILED, Code.RECV_RESPONSE_FAILED)
            assert code(await asked(prober, put(port, Check.HTTP))) in possible

    run(work)


def test_a_request_that_nobody_reads(run: Run) -> None:
    """With a request larger than all buffers, the time ends while it is being sent."""

    async def stuffed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(3600)

    async def work(prober: Prober) -> None:
        async with server(stuffed) as port:
            question = put(port, Check.HTTP, path="/" + "x" * 20_000_000)
            assert code(await asked(prober, question)) == Code.SEND_REQUEST_TIMEOUT

    run(work)


@pytest.mark.parametrize("serve", [saying(b"\r\n\r\n" + bytes(100)), hanging, saying(b"")])
def test_a_server_without_tls(run: Run, serve: Any) -> None:
    async def work(prober: Prober) -> None:
        async with server(serve) as port:
            answer = await asked(prober, put(port, Check.HTTPS))
            assert code(answer) == Code.SSL_HANDSHAKE_ERROR, answer

    run(work)


def test_a_server_with_no_tls_that_we_speak(run: Run, tmp_path: Path) -> None:
    async def work(prober: Prober) -> None:
        context = certificate(tmp_path)
        context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        prober.tls.minimum_version = ssl.TLSVersion.TLSv1_3
        async with server(saying(response()), context) as port:
            answer = await asked(prober, put(port, Check.HTTPS))
            assert code(answer) == Code.SSL_HANDSHAKE_ERROR

    run(work)


def test_the_name_that_is_asked_for_by_tls(run: Run, tmp_path: Path) -> None:
    """Nobody signed the certificate, and it is for another name: it is not who the member is that is asked."""
    seen: list[str | None] = []

    async def work(prober: Prober) -> None:
        context = certificate(tmp_path)
        context.sni_callback = lambda _socket, name, _context: seen.append(name)
        async with server(saying(response()), context) as port:
            assert await asked(prober, put(port, Check.HTTPS, name="shop.example")) is None
            assert await asked(prober, put(port, Check.HTTPS)) is None
            assert code(await asked(prober, put(port, Check.HTTPS, name=".wrong"))) == "unasked"

    run(work)
    assert seen == ["shop.example", None]


# --- UDP.


@contextlib.contextmanager
def bound(answers: bool) -> Iterator[int]:
    """A UDP port; what comes is answered by a thread, or not at all."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind((ADDRESS, 0))
        listening.settimeout(5)

        def answer() -> None:
            _, peer = listening.recvfrom(100)
            listening.sendto(b"here", peer)

        thread = threading.Thread(target=answer)
        if answers:
            thread.start()
        yield listening.getsockname()[1]
        if answers:
            thread.join()


def test_silence_after_an_echo_is_good(run: Run) -> None:
    async def work(prober: Prober) -> None:
        with bound(answers=False) as port:
            began = time.monotonic()
            assert await asked(prober, put(port, Check.UDP_CONNECT)) is None
            assert time.monotonic() - began >= 1  # as long as port unreachable may take

    run(work)


def test_an_answer_is_good_at_once(run: Run) -> None:
    async def work(prober: Prober) -> None:
        with bound(answers=True) as port:
            began = time.monotonic()
            assert await asked(prober, put(port, Check.UDP_CONNECT, timeout=30)) is None
            assert time.monotonic() - began < 15

    run(work)


def test_port_unreachable(run: Run) -> None:
    async def work(prober: Prober) -> None:
        answer = await asked(prober, put(CLOSED, Check.UDP_CONNECT))
        assert answer == Reason(Code.CONNECT_REFUSED, "", "Connection refused")

    run(work)


@contextlib.contextmanager
def no_echo() -> Iterator[None]:
    switch = Path("/proc/sys/net/ipv4/icmp_echo_ignore_all")  # of the calling thread's namespace
    switch.write_text("1")
    try:
        yield
    finally:
        switch.write_text("0")


def test_a_member_that_answers_no_echo_is_down_whatever_its_port_does(run: Run) -> None:
    async def work(prober: Prober) -> None:
        with bound(answers=False) as port, no_echo():
            answer = await asked(prober, put(port, Check.UDP_CONNECT))
            assert answer == Reason(Code.CONNECT_TIMEOUT, "an ICMP echo reply", "no answer in 1 s")

    run(work)


def test_many_echoes_find_their_ways(run: Run) -> None:
    async def work(prober: Prober) -> None:
        with bound(answers=False) as port:
            questions = [put(port if i % 2 else CLOSED, Check.UDP_CONNECT) for i in range(200)]
            answers = await asyncio.gather(*(asked(prober, one) for one in questions))
        assert [code(one) for one in answers] == [Code.CONNECT_REFUSED, "good"] * 100

    # Port unreachable is sent at some rate only, to whom it was sent before: see docs/health.md.
    Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")
    run(work)


# --- Whoever is late.


@pytest.mark.parametrize("kind", Check)
def test_a_loop_that_was_away_blames_no_member(namespace: Namespace, run: Run, tmp_path: Path, kind: Check) -> None:
    """It is held up longer than the answer may take, again and again; the member answers in its own time."""
    serve = hanging if kind is Check.TCP else saying(response(), pause=0.01, size=20)
    held = 0

    async def work(prober: Prober) -> None:
        loop = asyncio.get_running_loop()

        def hold() -> None:
            nonlocal held
            held += 1
            time.sleep(1.2)
            if held < 5:
                loop.call_later(0.02, hold)

        loop.call_later(0, hold)
        with contextlib.ExitStack() as opened:
            if kind is Check.UDP_CONNECT:
                port = opened.enter_context(bound(answers=False))
            else:
                tls = certificate(tmp_path) if kind is Check.HTTPS else None
                port = opened.enter_context(apart(namespace, serve, tls))
            assert await asked(prober, put(port, kind)) is None

    run(work)
    assert held


@pytest.mark.parametrize("kind", Check)
def test_nor_is_a_member_that_hangs_believed_for_that(run: Run, tmp_path: Path, kind: Check) -> None:
    async def work(prober: Prober) -> None:
        asyncio.get_running_loop().call_later(0.01, time.sleep, 1.2)
        with full() as port, no_echo():
            assert code(await asked(prober, put(port, kind))) == Code.CONNECT_TIMEOUT

    run(work)
