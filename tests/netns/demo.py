"""The demo: real connections through the real gateway, in networks of its own; it checks what it shows.

`make demo` runs it to its end, `make lab` stays in it. All of it lives in namespaces that this process holds:
it ends with the process, however that ends.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.netns.clients import Crowd, UdpClient, http_get, open_many
from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import CLIENT, CLIENTS, MEMBERS, SECOND_VIP, SHOP_VIP, SNATS, Lab, private_mounts
from tests.netns.members import running

WEB, INTRANET, RESOLVER = (SHOP_VIP, 80), (SECOND_VIP, 80), (SHOP_VIP, 53)
FIFTY = CONFIGURATION.replace(
    f'"{MEMBERS["member-1"]}", port = 8080, weight = 3', f'"{MEMBERS["member-1"]}", port = 8080, max_connections = 50'
)
LAB_TOML = Path(__file__).parent / "lab.toml"
LINE = "─" * 78


class WrongError(Exception):
    """The demo saw something else than what it is about to show."""


def say(text: str = "") -> None:
    print(text, flush=True)


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise WrongError(what)


def shell(gateway: Gateway, *command: str, lines: int = 40) -> None:
    """Show a command of the gateway and what it prints."""
    say(f"\n  gateway# ipbackend {' '.join(command)}")
    printed = gateway.command(*command).splitlines()
    for line in printed[:lines]:
        say(f"    {line}")
    if len(printed) > lines:
        say(f"    … {len(printed) - lines} more")


def show_weights(lab: Lab, gateway: Gateway) -> None:
    """80 requests go to members in three networks, by weight."""
    seen = Counter(http_get(lab["client"], None, WEB).identity.member for _ in range(80))
    for name, address in MEMBERS.items():
        say(f"    {name:14} {address:14} {seen[name]:3} requests  {'█' * seen[name]}")
    expect(seen == {"member-1": 30, "member-2": 20, "member-peered": 20, "member-onprem": 10}, f"weights: {seen}")


def show_addresses(lab: Lab, gateway: Gateway) -> None:
    """Members see SNAT addresses only, clients see the VIP only."""
    with open_many(lab["client"], CLIENT, WEB, 16) as crowd:
        peers = Counter(connection.get().identity.peer_address for connection in crowd.connected)
        ends = {connection.socket.getpeername()[0] for connection in crowd.connected}
    say(f"    {CLIENT} opened 16 connections; its sockets are connected to {', '.join(ends)}")
    say(f"    the members saw them come from {', '.join(f'{peer} ({count})' for peer, count in sorted(peers.items()))}")
    expect(set(peers) <= set(SNATS) and ends == {SHOP_VIP}, f"addresses: {peers}, {ends}")


def show_two_vips(lab: Lab, gateway: Gateway) -> None:
    """Two VIPs share one member: one endpoint, one ceiling, no collision of ports."""
    name = "member-peered"
    with open_many(lab["client"], CLIENT, WEB, 200) as shop, open_many(lab["client"], CLIENT, INTRANET, 50) as office:
        identities = [connection.get().identity for connection in shop.connected + office.connected]
        peers = [identity.peer for identity in identities if identity.member == name]
        say(f"    200 connections to {SHOP_VIP}, 50 to {SECOND_VIP}: {len(peers)} of them on {name},")
        say(f"    from {len(set(peers))} different SNAT addresses and ports")
        expect(len(peers) == len(set(peers)) == 100, f"two VIPs: {len(peers)}, {len(set(peers))}")
        shell(gateway, "member", "list", "--pool", "intranet")


def show_ceiling(lab: Lab, gateway: Gateway) -> None:
    """A member with a ceiling of 50 holds 50 and not one more; the others take the rest."""
    gateway.apply(FIFTY)
    with open_many(lab["client"], CLIENT, WEB, 300) as crowd:
        seen = members_of(crowd)
        say(f"    300 connections at once: {', '.join(f'{name} {count}' for name, count in sorted(seen.items()))}")
        expect(seen["member-1"] == 50 and sum(seen.values()) == 300, f"ceiling: {seen}")
        shell(gateway, "member", "list", "--pool", "web")
        shell(gateway, "connection", "list", "--member", f"{MEMBERS['member-1']}:8080", "--limit", "5")


def show_refusal(lab: Lab, gateway: Gateway) -> None:
    """Where the whole pool is full, the 51st connection is refused at once, and the counter says so."""
    start, end = CONFIGURATION.index("[pools.web]"), CONFIGURATION.index("[pools.resolver]")
    alone = f'[pools.web]\nprotocol = "TCP"\nmembers = [{{ address = "{MEMBERS["member-2"]}", port = 8080, '
    gateway.apply(CONFIGURATION[:start] + alone + "max_connections = 50 }]\n\n" + CONFIGURATION[end:])
    with open_many(lab["client"], CLIENT, WEB, 51) as crowd:
        say(
            f"    51 connections to a pool that carries 50: {len(crowd.connected)} established, {crowd.refused} refused"
        )
        expect((len(crowd.connected), crowd.refused) == (50, 1), f"refusal: {len(crowd.connected)}, {crowd.refused}")
    gateway.apply(CONFIGURATION)


def show_udp(lab: Lab, gateway: Gateway) -> None:
    """UDP, the same way: each client stays with its member."""
    seen: Counter[str] = Counter()
    for client in CLIENTS[:10]:
        with UdpClient(lab["client"], client, RESOLVER) as asking:
            answers = {asking.ask(f"{number}".encode()).member for number in range(5)}
            expect(len(answers) == 1, f"UDP: one client was answered by {answers}")
            seen.update(answers)
    say(f"    10 clients, 5 questions each: {', '.join(f'{name} {count} clients' for name, count in seen.items())}")


def show_counters(lab: Lab, gateway: Gateway) -> None:
    """Every packet that came in is counted under the verdict it left with."""
    totals = gateway.json("counters")["totals"]
    parts = sum(totals[name] for name in ("passed", "forwarded", "rejected", "dropped"))
    expect(totals["received"] == parts, f"counters: {totals}")
    shell(gateway, "counters")
    shell(gateway, "audit")


def members_of(crowd: Crowd) -> Counter[str]:
    return Counter(connection.get().identity.member for connection in crowd.connected)


STEPS: tuple[Callable[[Lab, Gateway], None], ...] = (
    show_weights,
    show_addresses,
    show_two_vips,
    show_ceiling,
    show_refusal,
    show_udp,
    show_counters,
)


def look_around(lab: Lab, gateway: Gateway) -> None:
    """Tell how to use the lab, and wait for Ctrl-C."""
    entered = f"sudo nsenter --target {os.getpid()} --mount"
    command = f"IPBACKEND_RUN_DIR={gateway.run_directory} {Path(sys.executable).parent}/ipbackend"
    fds = {role: f"--net=/proc/{os.getpid()}/fd/{namespace.fd}" for role, namespace in lab.namespaces.items()}
    say(f"\nThe lab is up. In another terminal, a shell in any of {', '.join(fds)}:\n")
    say(f"  client:   {entered} {fds['client']} bash      then: curl http://{SHOP_VIP}/")
    say(f"  gateway:  {entered} {fds['gateway']} bash      then: {command} connection list")
    say("\nThe other roles' namespaces:")
    for role, option in fds.items():
        say(f"  {role:16} {option}")
    say(f"\nTo change it, on the gateway: ipbackend apply -f FILE; it started with {LAB_TOML}")
    say("\nCtrl-C here ends the lab and leaves nothing behind.")
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


def main() -> int:
    if os.geteuid() != 0:
        say("demo: it makes network namespaces and loads an XDP program (run as root: sudo make demo)")
        return 1
    stay = "--stay" in sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a script started us in the background
    if stay:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    started = time.monotonic()
    private_mounts()
    say("Building a client, a gateway, two routers and four members in three networks …")
    try:
        with Lab() as lab, running(lab.members()), Gateway(lab) as gateway:
            say(f"Up after {time.monotonic() - started:.1f} s. The gateway forwards in XDP, its own kernel nothing.")
            if stay:
                look_around(lab, gateway)
                return 0
            shell(gateway, "listener", "list")
            shell(gateway, "network", "list")
            for number, step in enumerate(STEPS, 1):
                say(f"\n{LINE}\n{number}. {step.__doc__}\n")
                step(lab, gateway)
            say(f"\n{LINE}\nDone in {time.monotonic() - started:.1f} s. `sudo make lab` keeps it up to look around in.")
    except KeyboardInterrupt:
        say("\ndemo: interrupted; everything is cleaned up")
        return 130
    except WrongError as wrong:
        say(f"\ndemo: it is not as it should be: {wrong}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
