"""A gateway's life as its operator sees it, by the real commands in the lab; it prints the page docs/life.md.

`make life` writes it anew. Whatever it tells it has checked; everything lives in
namespaces that this process holds, and ends with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.netns.clients import Crowd, http_get, open_many
from tests.netns.gateway import Gateway
from tests.netns.lab import MEMBERS, SHOP_VIP, SNATS, Lab, private_mounts
from tests.netns.members import running

ADDRESS = MEMBERS["member-onprem"]
FIRST, EACH = 20_000, 500  # ports of the member's address: 1,000 members in two pools
HELD = 40
LINES = 24  # of a command's output; more are counted
VIP = (SHOP_VIP, 80)
REDIRECT = f"""
table ip life {{
    chain c {{
        type nat hook prerouting priority 0;
        tcp dport {FIRST}-{FIRST + 2 * EACH - 1} redirect to :8080
    }}
}}
"""


class WrongError(Exception):
    """Something else happened than what the page is about to tell."""


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise WrongError(what)


class Page:
    """Commands on the gateway, what they print, and how long they take."""

    def __init__(self, lab: Lab, gateway: Gateway, tell: Callable[[str], None]) -> None:
        self._lab = lab
        self.tell = tell
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "IPBACKEND_RUN_DIR": str(gateway.run_directory),
        }
        self._folder = gateway.run_directory

    def shell(self, *commands: str, status: int = 0) -> str:
        """Run each as a shell would, and tell all of it."""
        self.tell("```")
        printed = ""
        for command in commands:
            started = time.monotonic()
            done = self._lab["gateway"].run(
                ["bash", "-o", "pipefail", "-c", command],
                env=self._environment,
                cwd=self._folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            took = time.monotonic() - started
            expect(done.returncode == status, f"{command}: status {done.returncode}: {done.stdout}")
            lines = done.stdout.splitlines()
            self.tell(f"$ {command}")
            for line in lines[:LINES]:
                self.tell(line)
            if len(lines) > LINES:
                self.tell(f"… {len(lines) - LINES:,} lines more")
            self.tell(f"# {took:.2f} s")
            printed += done.stdout
        self.tell("```\n")
        return printed


class Clients:
    """Requests one after another, all the while; who served them, and what failed."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.served: Counter[str] = Counter()
        self.failed: list[str] = []

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                self.served[http_get(self._lab["client"], None, VIP).identity.local] += 1
            except OSError as error:
                self.failed.append(str(error))


def answers(crowd: Crowd) -> int:
    """How many of the connections that are held still answer."""
    return sum(connection.get().status == 200 for connection in crowd.connected)


def create(page: Page) -> None:
    page.tell("## 1. Create\n\nA gateway that forwards nothing yet is told its interfaces, and what to serve.")
    snat = " ".join(f"--snat-address {address}" for address in SNATS)
    page.shell(
        "ipbackend status",
        f"ipbackend gateway set --interface eth0 --interface eth1 {snat}",
        "ipbackend network create on-premises --kind vpn --cidr 192.168.50.0/24 --next-hop 10.0.0.3",
        f"ipbackend lb create shop --vip {SHOP_VIP} --ip-target",
        "ipbackend pool create web",
        "ipbackend pool create next",
        "ipbackend listener create http --lb shop --port 80 --pool web",
        "ipbackend listener create preview --lb shop --port 8080 --pool next",
    )
    page.tell(
        "Before members are added, one is tried: by real connections through the data plane, from every SNAT address."
    )
    page.shell(f"ipbackend member check {ADDRESS}:{FIRST}")
    page.tell("Then a thousand are, from CSV.")
    page.shell(
        f"(echo member; seq -f '{ADDRESS}:%.0f' {FIRST} {FIRST + EACH - 1}) > web.csv",
        f"(echo member; seq -f '{ADDRESS}:%.0f' {FIRST + EACH} {FIRST + 2 * EACH - 1}) > next.csv",
        "ipbackend member add --from web.csv --pool web --max-connections 500",
        "ipbackend member add --from - --pool next --max-connections 500 < next.csv",
    )


def traffic(page: Page, lab: Lab) -> Crowd:
    page.tell("## 2. Traffic\n\nClients connect; some stay.")
    crowd = open_many(lab["client"], None, VIP, HELD)
    expect(len(crowd.connected) == HELD, f"{len(crowd.connected)} of {HELD} connected")
    expect(answers(crowd) == HELD, "held connections answer")
    page.shell("ipbackend status", "ipbackend connection list --limit 3")
    return crowd


def change(page: Page, clients: Clients, crowd: Crowd) -> None:
    page.tell(
        "## 3. Change 1,000 members\n\nOne file, one change: the plan first, then all of it at once, under traffic."
    )
    before, failed = sum(clients.served.values()), len(clients.failed)
    page.shell(
        "ipbackend export > wanted.toml",
        "sed -i 's/port = \\([0-9]*\\), max/port = \\1, weight = 3, max/' wanted.toml",
        "ipbackend apply -f wanted.toml --dry-run",
        "ipbackend apply -f wanted.toml",
        "ipbackend apply -f wanted.toml --dry-run",
    )
    wait(lambda: sum(clients.served.values()) > before + 20, "requests after the change")
    expect(len(clients.failed) == failed, f"requests failed meanwhile: {clients.failed[failed:]}")
    expect(answers(crowd) == HELD, "held connections answer")
    page.tell(
        f"Meanwhile {sum(clients.served.values()) - before:,} requests were served and none failed; the {HELD} open"
    )
    page.tell("connections go on.\n")


def drain(page: Page, clients: Clients, crowd: Crowd, revision: int) -> None:
    page.tell("## 4. Drain\n\nWeight 0: no new connections, the open ones go on.")
    drained = " ".join(f"{ADDRESS}:{port}" for port in range(FIRST, FIRST + 3))
    page.shell(
        f"ipbackend member set {drained} --pool web --weight 0",
        "ipbackend member set --all --pool web --weight 0",
        "ipbackend pool list",
    )
    failed = len(clients.failed)
    wait(lambda: len(clients.failed) > failed, "refusals of a pool that is drained")
    expect(answers(crowd) == HELD, "held connections answer")
    page.tell(
        f"New clients are refused at once, since nobody is left to serve them; the {HELD} open connections go on.\n"
    )
    page.tell("## 5. Roll back\n\nThat was too much. Every change is a revision, and any of them can be had again.")
    page.shell("ipbackend history --limit 6", f"ipbackend rollback {revision}")
    before = sum(clients.served.values())
    wait(lambda: sum(clients.served.values()) > before + 20, "requests after the way back")
    expect(answers(crowd) == HELD, "held connections answer")
    page.tell("Clients are served again.\n")


def delete(page: Page, crowd: Crowd) -> None:
    page.tell("## 6. Delete\n\nWhat stands in the way is named; a plan says which connections end.")
    page.shell("ipbackend pool delete web", status=1)
    page.shell("sed '/^\\[load/,/^$/d; /^\\[listeners/,/^$/d; /^\\[pools/,/^]$/d' wanted.toml > empty.toml")
    plan = page.shell("ipbackend apply -f empty.toml --prune --dry-run | tail -2")
    expect(f"{HELD} open connections end" in plan, f"the plan counts the open connections: {plan}")
    page.shell(
        "ipbackend lb delete shop --cascade",
        "ipbackend network delete on-premises",
        "ipbackend gateway delete",
        "ipbackend status",
    )
    crowd.close()


def wait(condition: Callable[[], bool], what: str, deadline: float = 20.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        expect(time.monotonic() < end, f"not within {deadline} s: {what}")
        time.sleep(0.01)


def live(lab: Lab, gateway: Gateway, tell: Callable[[str], None]) -> None:
    """All of it, on a gateway with an empty store."""
    page = Page(lab, gateway, tell)
    page.tell("# A life of a gateway\n")
    page.tell(
        "Made by `make life` in the lab's namespaces: real commands, real connections, and the time that each step"
    )
    page.tell("took, the start of the command included.\n")
    lab["member-onprem"].run(["nft", REDIRECT])
    try:
        create(page)
        crowd = traffic(page, lab)
        with gateway.client() as asking, Clients(lab) as clients:
            change(page, clients, crowd)
            revision = int(asking.request("GET", "/ipbackend/status")["status"]["revision"])
            drain(page, clients, crowd, revision)
        delete(page, crowd)
    finally:
        lab["member-onprem"].run(["nft", "delete table ip life"])


def main() -> None:
    private_mounts()
    with Lab() as lab, running(lab.members()):
        gateway = Gateway(lab)
        gateway.start()
        try:
            live(lab, gateway, print)
        finally:
            gateway.stop()
            gateway.command("unload")


if __name__ == "__main__":
    main()
