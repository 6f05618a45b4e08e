"""The HTTP server against whoever means it ill: on a real socket, with the real application behind it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ipbackend import serving
from ipbackend.api import app as application
from ipbackend.api.app import create_app, create_metrics_app
from tests.unit.serving import ELB, OURS, PROJECT, Kept

POOLS = f"{ELB}/pools"
PATIENT = 0.3  # seconds that a test waits for what takes minutes elsewhere


class Asked:
    """A server on a Unix socket, in a thread of its own."""

    def __init__(self, path: Path, kept: Kept, create: Callable[[Any], Any]) -> None:
        self.path, self.kept, self._create = path, kept, create
        self._server: serving.Server | None = None
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        with closing(serving.UnixSocket(self.path)) as unix:
            self._server = serving.Server.of(self._create(self.kept), serving.UnixProtocol)
            serve = asyncio.create_task(self._server.serve(sockets=[unix.listening]))
            await self._server.serving.wait()
            self._up.set()
            await serve

    def __enter__(self) -> Asked:
        self._thread.start()
        assert self._up.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def connections(self) -> int:
        assert self._server is not None
        return len(self._server.server_state.connections)

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(20)
        client.connect(str(self.path))
        return client

    def send(self, *pieces: bytes) -> bytes:
        """All that comes back until the server closes, to these bytes."""
        with self.connect() as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for piece in pieces:
                    client.sendall(piece)
            return everything(client)

    def status(self, *pieces: bytes) -> int:
        """Of the first answer; 0 is none."""
        answer = self.send(*pieces)
        return int(answer.split(b" ", 2)[1]) if answer else 0

    def serves(self) -> bool:
        """Whether somebody who behaves is answered."""
        return self.status(request(f"GET {POOLS}")) == 200


def everything(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(1 << 16):
            received += piece
    return received


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: gateway", "Connection: close", *headers, "", ""]).encode() + body


def posted(body: bytes, *headers: str, path: str = POOLS) -> bytes:
    return request(
        f"POST {path}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers, body=body
    )


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with Asked(tmp_path_factory.mktemp("http") / "api.sock", Kept(), create_app) as running:
        yield running


@pytest.fixture
def asked(server: Asked) -> Iterator[Asked]:
    """Nothing changed yet, and nobody connected; afterwards it serves whoever behaves."""
    until(lambda: server.connections == 0)
    vars(server.kept).clear()
    vars(server.kept).update(vars(Kept()))
    yield server
    assert server.serves()


@pytest.fixture
def impatient(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setattr(serving, "PATIENCE", PATIENT)
    return asked


# Paths


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd", f"/v3/{PROJECT}/elb/pools/../../../../etc/shadow", "/%2e%2e/%2e%2e/etc/passwd",
        f"{POOLS}/..%2f..%2fetc%2fpasswd", "//etc/passwd", f"{POOLS}/%00", f"{POOLS}/web%00.json", f"{POOLS}/%ff%fe",
        f"{POOLS}/web%0d%0aX-Injected:%201", f"{POOLS}/" + "a" * 5000, f"{POOLS}/%1b%5b31m", "/" + "/" * 2000,
        f"{POOLS}/web/members/%e2%80%ae", "/metrics/../openapi.json", "*", "http://elsewhere/v3", f"{POOLS}?name=%00",
        f"{OURS}/revisions/-1", f"{OURS}/revisions/99999999999999999999999999", f"{POOLS}?limit=1e9",
        f"{POOLS}?marker=%ff", f"{OURS}/connections?client=%1b%5b2J", f"{ELB}/pools/web/members?" + "id=a&" * 1900,
    ],
)  # fmt: skip
def test_paths_lead_nowhere_else(asked: Asked, path: str) -> None:
    """Nothing is ever read of a file, nothing of the path comes back as a header, and nothing is a bug."""
    answer = asked.send(request(f"GET {path}"))
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])

    assert status in (200, 400, 404, 414)
    assert b"root:" not in body
    assert b"x-injected" not in head.lower()
    assert b"\x1b" not in head
    assert status != 200 or path.startswith(("//", "/openapi", POOLS)), body[:200]


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "OPTIONS", "PROPFIND", "get", "GET\x0b", "A" * 300])
def test_other_methods_are_refused(asked: Asked, method: str) -> None:
    assert asked.status(request(f"{method} {POOLS}")) in (400, 404, 405)


# Headers


SMUGGLED = posted(b'{"pool": {}}')


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 5", "Content-Length: 6"], ["Content-Length: 5, 6"], ["Content-Length: -1"],
        ["Content-Length: 0x10"], ["Content-Length: 1e3"], ["Content-Length: " + "9" * 30], ["Content-Length: +5"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"], ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: xchunked"], ["Transfer-Encoding : chunked"], ["Bad Header: 1"], ["X: a\x00b"], ["X: a\rb"],
        ["Host: another"],
    ],
)  # fmt: skip
def test_headers_that_say_two_things(asked: Asked, headers: list[str]) -> None:
    """Who reads them in one way and who reads them in another would see other requests: refused, and closed."""
    sent = request(f"POST {POOLS}", *headers, body=b"hello" + SMUGGLED)
    answer = asked.send(sent)

    assert answer.startswith(b"HTTP/1.1 4"), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1, "what was smuggled behind it was answered as well"
    assert asked.kept.authors == []


def test_a_length_and_chunks_are_read_as_chunks_and_nothing_behind_them(asked: Asked) -> None:
    """RFC 9112, 6.3: chunks win, and the connection is closed; the length is nobody's."""
    sent = request(f"POST {POOLS}", "Content-Length: 4", "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED)
    answer = asked.send(sent)

    assert answer.startswith(b"HTTP/1.1 4")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert asked.kept.authors == []


@pytest.mark.parametrize(
    "headers",
    [
        ["X: " + "a" * (1 << 20)],
        [f"X-{number}: {'a' * 100}" for number in range(5000)],
        ["Cookie: " + "a=b;" * 100_000],
    ],
    ids=["long", "many", "cookies"],
)
def test_heads_have_an_end(asked: Asked, headers: list[str]) -> None:
    assert asked.status(request(f"GET {POOLS}", *headers)) in (0, 400, 431)


def test_nothing_of_a_header_reaches_the_log(asked: Asked, caplog: pytest.LogCaptureFixture) -> None:
    for sent in (
        request(f"GET {POOLS}", "X: \x1b[2Jred"),
        request(f"GET {POOLS}/%1b%5b2Jred%0aERROR%20forged"),
        request(f"GET {POOLS}", "User-Agent: \x1b[2J", "Host: \x1b[2J"),
        b"\x1b[2Jforged\r\n\r\n",
    ):
        asked.send(sent)
    assert "\x1b" not in caplog.text
    assert "forged" not in caplog.text


# Bodies


def deep(levels: int) -> bytes:
    return b'{"pool":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    "body",
    [
        deep(100_000), b"[" * 1_000_000, b'{"pool": ' + b"9" * 1_000_000 + b"}", b'{"pool": 1e999999}', b"NaN",
        b"\xff\xfe",
        b'{"pool": {"name": "\\ud800"}}', b'"' + b"a" * 1_000_000 + b'"', b"null", b"[]", b"", b'{"pool": {"x": NaN}}',
        json.dumps({"pool": {"name": "\x1b[31mred"}}).encode(), json.dumps({"pool": {"name": "a\u202eb"}}).encode(),
        b'{"pool": {"protocol": "TCP"}, "pool": {"lb_algorithm": "ROUND_ROBIN"}}',
        b"{" + b",".join(b'"%d": 1' % number for number in range(100_000)) + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
def test_bodies_that_mean_nothing(asked: Asked, body: bytes) -> None:
    """A refusal with its reason; not a bug, and nothing changed."""
    answer = asked.send(posted(body))
    head, _, said = answer.partition(b"\r\n\r\n")

    assert head.split(b" ", 2)[1] in (b"400", b"413")
    assert json.loads(said)["error_code"] == "ELB.8902"
    assert b"\x1b" not in said
    assert len(said) < 20_000
    assert asked.kept.authors == []


def test_a_body_has_an_end_by_what_it_says_and_by_what_comes(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is not taken for what is refused: 200 MB are sent, and the process grows by none of them."""
    before = resident()
    told = request(f"POST {POOLS}", "Content-Type: application/json", f"Content-Length: {application.BODY + 1}")
    assert asked.status(told + b"{}") == 413
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    chunked = request(f"POST {POOLS}", "Content-Type: application/json", "Transfer-Encoding: chunked")
    assert asked.status(chunked, *[chunk] * 200) in (0, 413)  # closed before all of it was read

    assert resident() - before < 3 * application.BODY
    assert asked.kept.authors == []


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_compressed_body_is_not_unpacked(asked: Asked) -> None:
    """There is nothing that would: a bomb is a body that is no JSON."""
    bomb = gzip.compress(b" " * 50_000_000)
    before = resident()

    assert asked.status(posted(bomb, "Content-Encoding: gzip")) == 400
    assert resident() - before < 20_000_000


# Slow, silent and many


def test_whoever_does_not_finish_a_request_is_cut_off(impatient: Asked) -> None:
    """Who says nothing, who says half a head, who trickles, who owes the rest of a body."""
    half = request(f"GET {POOLS}")[:-2]
    owing = request(f"POST {POOLS}", "Content-Length: 1000", body=b"{")
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(impatient.connect()) for _ in range(4)]
        for client, sent in zip(clients, (b"", half, half, owing), strict=True):
            client.sendall(sent)
        trickling, began = clients[2], time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - began < 20:
                trickling.sendall(b"X: 1\r\n")
                time.sleep(PATIENT / 10)
        assert time.monotonic() - began < 20
        for client in clients:
            assert everything(client)[9:12] in (b"", b"400")
    until(lambda: impatient.connections == 0)


def test_whoever_does_not_read_is_cut_off_and_who_reads_slowly_is_not(impatient: Asked) -> None:
    with impatient.connect() as silent, impatient.connect() as slow:
        for client in (silent, slow):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(request("GET /openapi.json").replace(b"Connection: close\r\n", b"") * 40)
        received = 0
        began = time.monotonic()
        while time.monotonic() - began < 4 * PATIENT:
            received += len(slow.recv(1 << 16))
            time.sleep(PATIENT / 20)
        until(lambda: impatient.connections == 1)
        assert received > 0
        assert slow.recv(2048)


def test_an_answer_that_takes_long_is_waited_for(impatient: Asked) -> None:
    """Patience is for clients: what the gateway itself takes its time for comes to its end."""

    async def slowly(*_: object) -> str:
        await asyncio.sleep(4 * PATIENT)
        return "done 1\n"

    impatient.kept.metrics = slowly  # type: ignore[method-assign]
    assert impatient.send(request("GET /metrics")).endswith(b"done 1\n")


def test_thousands_of_sockets_take_no_more_than_their_share(tmp_path: Path) -> None:
    """2,000 at the API's socket: 256 kept, the others closed as they are taken; metrics are served all the while."""
    with (
        Asked(tmp_path / "api.sock", Kept(), create_app) as api,
        Asked(tmp_path / "metrics.sock", Kept(), create_metrics_app) as metrics,
        contextlib.ExitStack() as opened,
    ):
        before = descriptors()
        sockets = [opened.enter_context(api.connect()) for _ in range(2000)]
        until(lambda: api.connections == serving.CONNECTIONS)
        until(lambda: descriptors() - before <= 2000 + serving.CONNECTIONS + 20)
        assert metrics.status(request("GET /metrics")) == 200
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            assert api.send(request(f"GET {POOLS}")) == b""
        for one in sockets:
            one.close()
        until(lambda: api.connections == 0)
        assert api.serves()


def test_scrapes_at_the_same_time_are_one(tmp_path: Path) -> None:
    """Whoever hammers /metrics gets what is being written anyway: `daemon.Service` writes it once at a time."""
    from ipbackend.service import Service

    service = Service.__new__(Service)
    service._scraping = None
    written = []

    def scrape() -> str:
        written.append(1)
        time.sleep(0.2)
        return "text"

    service._scrape = scrape  # type: ignore[method-assign]

    async def many() -> list[str]:
        return await asyncio.gather(*(service.metrics() for _ in range(200)))

    assert asyncio.run(many()) == ["text"] * 200
    assert len(written) == 1
    assert asyncio.run(many()) == ["text"] * 200
    assert len(written) == 2


def test_a_client_that_leaves_in_the_middle_of_a_change_does_not_stop_it(asked: Asked) -> None:
    """200 of them: whatever was whole when they left is made, and the next one is served."""
    body = json.dumps({"pool": {"protocol": "TCP", "lb_algorithm": "ROUND_ROBIN"}}).encode()
    for _ in range(200):
        with asked.connect() as client:
            client.sendall(posted(body))
    until(lambda: len(asked.kept.authors) == 200)


def test_many_changes_at_the_same_time_are_all_made(asked: Asked) -> None:
    body = json.dumps({"pool": {"protocol": "TCP", "lb_algorithm": "ROUND_ROBIN"}}).encode()
    found: list[int] = []

    def change() -> None:
        for _ in range(10):
            connection = http.client.HTTPConnection("gateway")
            connection.sock = asked.connect()
            connection.request("POST", POOLS, body, {"Content-Type": "application/json"})
            found.append(connection.getresponse().status)
            connection.close()

    threads = [threading.Thread(target=change) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [201] * 500
    assert len(asked.kept.configuration.pools) == 500 + len(Kept().configuration.pools)
