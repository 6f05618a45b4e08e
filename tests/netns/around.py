"""A gateway under traffic while something around it is damaged: what is lost, and what its operator is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from .gateway import Gateway
from .lab import MEMBERS, SHOP_VIP, Lab
from .load import Load, load
from .talk import Streams, streams

WEB = (SHOP_VIP, 80)
LINES = 60  # that the log may have while one damage lasts


def hasty(lab: Lab) -> None:
    """Have both ends send again what is lost after a second at most, where the kernel can, and not give up early."""
    for role in ("client", *MEMBERS):
        with lab[role]:
            for name, value in (("tcp_rto_max_ms", "1000"), ("tcp_retries2", "200")):
                path = Path("/proc/sys/net/ipv4", name)
                if path.exists():
                    path.write_text(value)


def wait_until(condition: Callable[[], object], deadline: float = 60.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


def status(gateway: Gateway) -> dict[str, Any]:
    with gateway.client() as client:
        answer: dict[str, Any] = client.request("GET", "/ipbackend/status")["status"]
        return answer


def metric(gateway: Gateway, name: str) -> float:
    """A metric without labels."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(gateway.run_directory / "api.sock"))) as http:
        answer = http.get("http://gateway/metrics")
    assert answer.status_code == 200, answer.text
    lines = answer.text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"ipbackend_{name} "))


class Seen:
    """What there is to see of a damage."""

    def __init__(self, gateway: Gateway, talk: Streams, clients: Load) -> None:
        self._gateway, self.talk, self.clients = gateway, talk, clients
        self._before = len(gateway.log())

    def log(self) -> str:
        """What the daemon has said since."""
        return self._gateway.log()[self._before :]

    def told(self, *parts: str) -> None:
        """Status, log and metric say so, in these words."""
        wait_until(lambda: all(part in (status(self._gateway)["problem"] or "") for part in parts))
        assert all(part in self.log() for part in parts)
        assert metric(self._gateway, "problem") == 1

    def drift(self, line: str) -> None:
        """It was put back, and told."""
        wait_until(lambda: f"drift: {line}, put back" in self.log())

    def well(self) -> None:
        """Everything is as wanted by itself, and new connections are served."""
        wait_until(lambda: not status(self._gateway)["problem"] and not status(self._gateway)["drift"])
        self.clients.wait_for(8, 60)


@contextmanager
def damage(lab: Lab, gateway: Gateway) -> Iterator[Seen]:
    """Connections that talk all the time, and clients that open new ones; of the former none is lost in the end."""
    hasty(lab)
    with streams(lab["client"], WEB) as talk, load(lab["client"], WEB, clients=2) as clients:
        seen = Seen(gateway, talk, clients)
        yield seen
        seen.well()
    assert len(seen.log().splitlines()) <= LINES
