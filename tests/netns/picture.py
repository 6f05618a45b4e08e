"""Draws docs/top.svg: what `ipbackend top` shows of the lab while clients come and go.

`make picture` draws it anew. Everything lives in namespaces that this process holds, and ends with it.
"""

from __future__ import annotations

import io
import re
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from ipbackend.cli.top import measure, screen
from ipbackend.top import Board
from tests.netns.clients import UdpClient, http_get, open_many
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import CLIENTS, SECOND_VIP, SHOP_VIP, Lab, private_mounts
from tests.netns.members import running

WIDTH, HEIGHT = 100, 14
LOOKS, INTERVAL = 24, 0.5  # seconds between them
CROWD, SHOPPERS = 16, 3  # connections that come to stay with each look; clients that come and go
FONTS = re.compile(r"@font-face\s*\{[^}]*\}\s*")  # rich would have whoever looks fetch them from elsewhere
CEILINGS = {"weight = 3": 170, "10.0.0.12": 150, "172.16.10.10": 160, "192.168.50.10": 90}
WEB, INTRANET, RESOLVER = (SHOP_VIP, 80), (SECOND_VIP, 80), (SHOP_VIP, 53)


def configuration() -> str:
    """The lab's, with ceilings that are soon in sight."""
    text = CONFIGURATION
    for mark, ceiling in CEILINGS.items():
        lines = [
            line.replace(" }", f", max_connections = {ceiling} }}", 1) if mark in line and "8080" in line else line
            for line in text.splitlines()
        ]
        text = "\n".join(lines)
    return text


def shop(lab: Lab, client: str, enough: threading.Event) -> None:
    """One client after the other, a page each."""
    while not enough.is_set():
        http_get(lab["client"], client, WEB)


def draw(lab: Lab, gateway: Gateway) -> str:
    """The screen at the end of a rush, as SVG."""
    board, enough = Board(), threading.Event()
    shoppers = [threading.Thread(target=shop, args=(lab, client, enough)) for client in CLIENTS[1 : 1 + SHOPPERS]]
    with ExitStack() as open_, gateway.client() as client:
        try:
            for one in shoppers:
                one.start()
            for look in range(LOOKS):
                open_.enter_context(open_many(lab["client"], CLIENTS[0], WEB, CROWD))
                if look % 3 == 0:
                    open_.enter_context(open_many(lab["client"], CLIENTS[4], INTRANET, CROWD // 4))
                    asking = open_.enter_context(UdpClient(lab["client"], CLIENTS[5], RESOLVER))
                    asking.ask(b"who is it?")
                measure(client, board)
                enough.wait(INTERVAL)
        finally:
            enough.set()
            for one in shoppers:
                one.join()
    console = Console(width=WIDTH, height=HEIGHT, record=True, file=io.StringIO(), force_terminal=True)
    console.print(screen(board, WIDTH, HEIGHT))
    return FONTS.sub("", console.export_svg(title="ipbackend top"))


def main() -> None:
    """Draw it into the file that is named."""
    private_mounts()
    with Lab() as lab, running(lab.members()), Gateway(lab, configuration()) as gateway:
        Path(sys.argv[1]).write_text(draw(lab, gateway))


if __name__ == "__main__":
    main()
