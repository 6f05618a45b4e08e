"""What is asked by HTTP, and what the bytes that come back mean."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from ipbackend.health.answers import Exchange
from ipbackend.health.questions import Question, expects, question
from ipbackend.health.states import Code, Reason
from ipbackend.model import Check, HealthMonitor
from tests.unit.wanted import member

MONITOR = HealthMonitor("web", Check.HTTP, 5, 3, 3, url_path="/up?deep=1", http_method="HEAD", expected_codes="200-204")
OK = b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n"


def asked(**more: object) -> Question:
    fields = {"http_method": "GET", "url_path": "/", "domain_name": "", "expected_codes": "200", **more}
    return question(HealthMonitor("web", Check.HTTP, 5, 3, 3, **fields), member(11), None)  # type: ignore[arg-type]


def meaning(data: bytes, size: int, **more: object) -> Reason | bool:
    """After the whole of it, in pieces of `size` bytes; then the end, unless it had a meaning before."""
    exchange = Exchange(asked(**more))
    for start in range(0, len(data), size):
        verdict = exchange.receive(data[start : start + size])
        if verdict is not False:
            return verdict
    return exchange.receive(b"")


def test_the_request_says_what_the_monitor_says() -> None:
    request = Exchange(question(MONITOR, member(11), None)).request.decode()
    first, *headers = request.removesuffix("\r\n\r\n").split("\r\n")
    assert first == "HEAD /up?deep=1 HTTP/1.1"
    assert headers == ["Host: 10.0.0.11:8080", "User-Agent: ipbackend-health", "Accept: */*", "Connection: close"]


@pytest.mark.parametrize(
    ("kind", "port", "name", "host"),
    [
        (Check.HTTP, 80, "", "10.0.0.11"),
        (Check.HTTP, 443, "", "10.0.0.11:443"),
        (Check.HTTPS, 443, "", "10.0.0.11"),
        (Check.HTTPS, None, "", "10.0.0.11:8080"),
        (Check.HTTPS, None, "shop.example", "shop.example"),
    ],
)
def test_the_host_header(kind: Check, port: int | None, name: str, host: str) -> None:
    monitor = HealthMonitor("web", kind, 5, 3, 3, monitor_port=port, domain_name=name)
    assert question(monitor, member(11), None).host == host


def test_a_question_goes_to_the_monitors_port_from_the_health_address() -> None:
    source = IPv4Address("10.0.0.5")
    its = question(HealthMonitor("web", Check.TCP, 5, 2, 3, monitor_port=9000), member(11), source)
    assert (its.port, its.source, its.timeout, its.method) == (9000, source, 2, "")


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("data", "codes", "code", "received"),
    [
        (OK, "204", None, ""),
        (OK, "200-204", None, ""),
        (OK, "200,204", None, ""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, "204", None, ""),
        (b"HTTP/1.0 204 x\r\n\r\n", "204", None, ""),
        (b"HTTP/1.1 204 \r\nContent-Length: 99\r\n\r\nnot all", "204", None, ""),
        (OK, "200", Code.RESPONSE_MISMATCH, "204"),
        (OK, "200-203", Code.RESPONSE_MISMATCH, "204"),
        (b"", "200", Code.RECV_RESPONSE_FAILED, "the end after 0 bytes"),
        (OK[:-2], "204", Code.RECV_RESPONSE_FAILED, "the end after 36 bytes"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "200", Code.RESPONSE_FORMAT_ERROR, ""),
        (b"HTTP/1.1 two hundred\r\n\r\n", "200", Code.RESPONSE_FORMAT_ERROR, ""),
        (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", "200", Code.RESPONSE_FORMAT_ERROR, ""),
        (b"\x16\x03\x01" + bytes(200) + b"\r\n\r\n", "200", Code.RESPONSE_FORMAT_ERROR, ""),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000, "200", Code.RESPONSE_FORMAT_ERROR, ""),
    ],
)
def test_what_comes_back_means_the_same_in_any_pieces(
    data: bytes, codes: str, code: Code | None, received: str, size: int
) -> None:
    verdict = meaning(data, size, expected_codes=codes)
    if code is None:
        assert verdict is True
    else:
        assert isinstance(verdict, Reason)
        assert verdict.code is code
        assert received in verdict.received
        assert verdict.expected


@pytest.mark.parametrize(
    ("codes", "good", "bad"),
    [("200", [200], [199, 201]), ("200,302", [200, 302], [301]), ("200-204", [200, 202, 204], [199, 205])],
)
def test_codes(codes: str, good: list[int], bad: list[int]) -> None:
    assert all(expects(codes, status) for status in good)
    assert not any(expects(codes, status) for status in bad)
