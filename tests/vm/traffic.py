"""Runs on the client: keep-alive connections that go on and on, and fresh ones, until told to stop; then what it saw.

python3 -m tests.vm.traffic VIP REPORT     ends by SIGTERM, and writes {"requests", "opened", "failures"} then

REPORT.begun is there from when all the kept connections are up and have been used.
"""

import hashlib
import http.client
import json
import os
import signal
import sys
import threading
from pathlib import Path

KEEPERS, OPENERS = 12, 2
PAUSE = 0.1  # seconds between the requests of one connection
TIMEOUT = 30.0


class Tally:
    """What all of them saw."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = self.opened = 0
        self.failures: list[str] = []

    def count(self, requests: int = 0, opened: int = 0, failure: str = "") -> None:
        with self._lock:
            self.requests += requests
            self.opened += opened
            self.failures += [failure] if failure else []


def exchange(connection: http.client.HTTPConnection) -> None:
    """A kilobyte there, its hash back."""
    body = os.urandom(1024)
    connection.request("POST", "/echo-hash", body)
    answer = json.loads(connection.getresponse().read())
    if answer["sha256"] != hashlib.sha256(body).hexdigest():
        raise ValueError(f"corrupted: {answer}")


def keep(vip: str, tally: Tally, stopped: threading.Event) -> None:
    """One connection for the whole time: it is never opened again."""
    connection = http.client.HTTPConnection(vip, timeout=TIMEOUT)
    connection.connect()
    connection.auto_open = 0
    tally.count(opened=1)
    while not stopped.is_set():
        try:
            exchange(connection)
        except (OSError, ValueError, http.client.HTTPException) as error:
            tally.count(failure=f"kept: {error!r}")
            return
        tally.count(requests=1)
        stopped.wait(PAUSE)
    connection.close()


def reopen(vip: str, tally: Tally, stopped: threading.Event) -> None:
    """A fresh connection for each request."""
    while not stopped.is_set():
        connection = http.client.HTTPConnection(vip, timeout=TIMEOUT)
        try:
            exchange(connection)
            tally.count(requests=1, opened=1)
        except (OSError, ValueError, http.client.HTTPException) as error:
            tally.count(failure=f"fresh: {error!r}")
        finally:
            connection.close()
        stopped.wait(PAUSE)


def main(vip: str, report: str) -> None:
    tally, stopped = Tally(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    work = [threading.Thread(target=keep, args=(vip, tally, stopped)) for _ in range(KEEPERS)]
    work += [threading.Thread(target=reopen, args=(vip, tally, stopped)) for _ in range(OPENERS)]
    for thread in work:
        thread.start()
    begun = Path(f"{report}.begun")
    while not stopped.wait(0.2):
        if tally.requests > 2 * len(work):
            begun.touch()
    for thread in work:
        thread.join()
    begun.unlink()
    seen = {"requests": tally.requests, "opened": tally.opened, "failures": tally.failures}
    Path(report).write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
