"""Whether a machine can carry the data plane, judged from facts: what each one means here, and what to do. No I/O.

It looks at what matters to this program only. Not here, since nothing hangs on them: ip_forward (XDP forwards by
itself), firewall and conntrack settings (they never see these packets), socket backlogs and port ranges (none is
ours), unprivileged BPF (everything is loaded by root), ring sizes and interrupt moderation (a matter of taste).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from ipbackend import drivers
from ipbackend.finding import Finding
from ipbackend.host import Host
from ipbackend.links import Link, Route, Xdp
from ipbackend.model import AttachMode
from ipbackend.network import ROUTE_PROTOCOL

_NO_MEMLOCK = (5, 11)  # from there on maps are charged to the memory cgroup
_NOT_ALLOWED = "Operation not permitted"
_SLOW_CLOCKS = ("acpi_pm", "hpet", "jiffies", "refined-jiffies")
_MIB = 1 << 20
_NAMED = 8  # next hops that are told one by one where all is well


class Hop(NamedTuple):
    """Whom packets to members are handed to: a router, or a member on the link."""

    interface: str
    address: IPv4Address
    router: bool


def of_host(host: Host, tables: int | None) -> Iterator[Finding]:
    """The machine; `tables` are the bytes that the configured ceilings take, None where none are or they are there."""
    yield Finding("kernel", True, f"Linux {host.release}, {host.cpus} CPUs")
    yield from _bpf(host)
    yield from _jit(host)
    yield from _bcc(host)
    if tables is not None:
        yield _memory(host, tables)
    yield from _memlock(host, tables or 0)
    if not host.bpffs:
        remedy = "a kernel with CONFIG_BPF_SYSCALL"
        yield Finding("bpffs", False, "this kernel has no such file system: maps could not outlive the daemon", remedy)
    if host.clock in _SLOW_CLOCKS:
        what = (
            f"{host.clock} is slow to read; packets are timed by ticks, which cost nothing, but all else here is slow"
        )
        yield Finding(
            "clock", None, what, "clocksource=tsc on the kernel's command line, or another virtual machine type"
        )
    elif host.clock:
        yield Finding("clock", True, f"{host.clock}")


def _bpf(host: Host) -> Iterator[Finding]:
    if set(host.lacking.values()) == {_NOT_ALLOWED}:
        yield Finding("BPF", None, "could not be tried: this user may not", "run doctor as root")
        return
    for name, why in host.lacking.items():
        yield Finding("BPF", False, f"no {name}: {why}", "a kernel from 5.19 on, built with CONFIG_BPF_SYSCALL")
    if not host.lacking:
        yield Finding("BPF", True, f"all {host.tried} features that the program needs, tried one by one")


def _jit(host: Host) -> Iterator[Finding]:
    if host.jit is False:
        what = "off: the program is interpreted, and a packet takes many times as long"
        yield Finding("JIT", False, what, "sysctl -w net.core.bpf_jit_enable=1")
    elif host.jit:
        yield Finding("JIT", True, "on: programs become machine code")


def _bcc(host: Host) -> Iterator[Finding]:
    if not host.bcc:
        remedy = (
            "apt install python3-bpfcc, and a venv of /usr/bin/python3 with --system-site-packages; PyPI's is another"
        )
        yield Finding("BCC", False, f"it cannot be used: {host.without_bcc}", remedy)
        return
    yield Finding("BCC", True, host.bcc)
    if host.without_headers:
        yield Finding("BCC", False, host.without_headers, "apt install linux-libc-dev")


def _memory(host: Host, tables: int) -> Finding:
    what = f"{tables / _MIB:,.0f} MiB for the tables of the configured ceilings, {host.memory / _MIB:,.0f} MiB are free"
    if tables > host.memory:
        return Finding("memory", False, what, "more memory, or a lower gateway.max_connections")
    if 2 * tables > host.memory:
        return Finding("memory", None, what, "it fits, with little to spare")
    return Finding("memory", True, what)


def _memlock(host: Host, tables: int) -> Iterator[Finding]:
    numbers = host.release.split("-")[0].split(".")[:2]
    if tuple(int(one) for one in numbers if one.isdigit()) >= _NO_MEMLOCK or host.memlock < 0:
        return
    if host.memlock <= max(tables, 64 * _MIB):
        what = f"maps are charged to RLIMIT_MEMLOCK before Linux 5.11, and that is {host.memlock // 1024:,} kiB"
        yield Finding("memory", False, what, "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)")


def of_rehearsal(verified: Mapping[str, int], seconds: float, refusal: str) -> Finding:
    """Whether the whole program compiles and loads; `refusal` says why not.

    `verified`: the instructions that the kernel's verifier went through, by program.
    """
    if refusal:
        return Finding(
            "program", False, refusal, "what the compiler or the kernel says stands above; a newer kernel or BCC may do"
        )
    largest = max(verified, key=lambda name: verified[name])
    what = f"compiled, and all {len(verified)} parts taken by the kernel, in {seconds:.1f} s"
    most = f"its verifier went through {verified[largest]:,} instructions of {largest}, and gives up at 1,000,000"
    return Finding("program", True, f"{what} ({most})")


def of_links(
    found: Mapping[str, Link], wanted: Collection[str], mode: AttachMode, ours: int | None, cpus: int
) -> Iterator[Finding]:
    """The interfaces that XDP is to be attached to; `ours` is the id of our program, if it is loaded."""
    chosen = []
    for name in wanted:
        if name in found:
            chosen.append(found[name])
            yield from of_link(found[name], found, mode, ours, cpus)
        else:
            known = ", ".join(sorted(one for one, link in found.items() if link.ethernet)) or "none"
            yield Finding(name, False, "there is no such interface", f"see `ip link`; Ethernet here: {known}")
    mtus = {link.name: link.mtu for link in chosen}
    if len(set(mtus.values())) > 1:
        said = ", ".join(f"{name} {mtu:,}" for name, mtu in mtus.items())
        what = (
            f"they differ: {said}; what is longer than its way on is refused (ICMP), or dropped if it may be fragmented"
        )
        yield Finding("MTU", None, what, "set all alike, unless all clients and members discover path MTUs")


def of_link(link: Link, others: Mapping[str, Link], mode: AttachMode, ours: int | None, cpus: int) -> Iterator[Finding]:
    """One interface, from its cable to its sysctls."""
    if not link.ethernet:
        remedy = "end the tunnel on a router of its own, and name that as next hop of a network"
        yield Finding(
            link.name, False, f"no Ethernet ({link.kind or link.driver or 'unknown kind'}): no XDP here", remedy
        )
        return
    if not link.up:
        remedy = f"`ip link set {link.name} up`, and see to its other end"
        yield Finding(link.name, False, "it is down, or has no carrier", remedy)
    yield _driver(link, mode)
    yield from _program(link, mode, ours)
    yield from _mtu(link, mode)
    yield from _queues(link, mode, cpus)
    yield from _offloads(link, others, mode)
    yield from _sysctls(link)
    if link.master:
        what = f"a port of {link.master}: XDP takes its frames before that sees them"
        yield Finding(link.name, None, what, "")


def can_native(link: Link) -> bool:
    """Whether its driver has native XDP, as the kernel says, or as is known of it."""
    return Xdp.BASIC in link.xdp if link.xdp is not None else link.driver in drivers.NATIVE


def _driver(link: Link, mode: AttachMode) -> Finding:
    said = "as it says" if link.xdp is not None else "as is known; this kernel does not tell"
    if can_native(link):
        return Finding(link.name, True, f"{link.driver}: native XDP, {said}")
    what = f"{link.driver or 'its driver'} has no native XDP, {said}"
    if mode is AttachMode.NATIVE:
        return Finding(link.name, False, what, 'gateway.attach_mode = "auto", or another network card')
    return Finding(link.name, None, f"{what}: generic XDP does, at about the cost of a packet in the kernel")


def _program(link: Link, mode: AttachMode, ours: int | None) -> Iterator[Finding]:
    there = link.program
    if there is None:
        if ours is not None:
            yield Finding(link.name, False, "our program is loaded, and not on it", "see `ipbackend status`")
        return
    if there.program_id != ours:
        what = f"somebody else's XDP program {there.program_id} is on it ({there.mode} mode)"
        remedy = f"stop what put it there, or `ip link set dev {link.name} xdp off`"
        yield Finding(link.name, False, what, remedy)
        return
    if there.mode == "generic" and mode is not AttachMode.GENERIC and can_native(link):
        what = "our program runs in generic mode, and its driver has native"
        yield Finding(
            link.name, None, what, "it refused when we attached, see `dmesg`; `ipbackend unload`, and run again"
        )
        return
    yield Finding(link.name, True, f"our program is on it, {there.mode} mode")
    if there.mode == "native" and link.xdp is not None and Xdp.NDO_XMIT not in link.xdp:
        what = "the kernel takes no frames for it from XDP of other interfaces: they would be lost"
        remedy = "`ethtool -K DEV gro on` on its other end" if link.kind == "veth" else "see `dmesg`"
        yield Finding(link.name, False, what, remedy)


def _mtu(link: Link, mode: AttachMode) -> Iterator[Finding]:
    largest = drivers.largest_mtu(link.driver)
    if link.mtu <= largest or mode is AttachMode.GENERIC or not can_native(link):
        return
    if link.xdp is None and not drivers.knows_largest_mtu(link.driver):
        what = f"MTU {link.mtu:,} is more than one buffer ({largest:,}); whether its driver does more is not known"
        yield Finding(link.name, None, what, "attaching shows: native mode is refused, or works")
    elif link.xdp is not None and Xdp.RX_SG in link.xdp:
        yield Finding(link.name, True, f"MTU {link.mtu:,}: its driver has XDP for frames in several buffers")
    else:
        what = f"MTU {link.mtu:,} is more than one buffer ({largest:,}), and its driver has no XDP for several"
        remedy = f'`ip link set {link.name} mtu {largest}`, or gateway.attach_mode = "generic"'
        yield Finding(link.name, False, what, remedy)


def _queues(link: Link, mode: AttachMode, cpus: int) -> Iterator[Finding]:
    native = mode is not AttachMode.GENERIC and can_native(link)
    most = drivers.most_queues(link.driver, link.most_queues) if native else link.most_queues
    fewer = min(link.rx_queues, link.tx_queues)
    if most < link.most_queues and link.rx_queues > most:
        what = f"{link.rx_queues} of {link.most_queues} queues are in use: native XDP is refused with more than half"
        remedy = _set_queues(link, most) if most else 'gateway.attach_mode = "generic", or a larger machine'
        yield Finding(link.name, False, what, remedy)
    elif link.rx_queues and fewer < cpus:
        what = f"{link.rx_queues} receive and {link.tx_queues} send queues for {cpus} CPUs: not all of them share it"
        none = "it has no more; a virtual machine's card may be given more from outside"
        yield Finding(link.name, None, what, _set_queues(link, min(most, cpus)) if most > fewer else none)
    elif native and link.driver == "virtio_net" and link.rx_queues + cpus > link.most_queues:
        what = "no queues are left over for what XDP sends: CPUs wait for each other at the others' (`dmesg`: locked)"
        yield Finding(link.name, None, what, f"give its card {2 * cpus} queues from outside, and use {cpus}")


def _set_queues(link: Link, many: int) -> str:
    how = f"rx {many} tx {many}" if "veth" in (link.kind, link.driver) or link.driver == "gve" else f"combined {many}"
    return f"`ethtool -L {link.name} {how}`"


def _offloads(link: Link, others: Mapping[str, Link], mode: AttachMode) -> Iterator[Finding]:
    for on, option, what in (
        (link.lro, "lro", "LRO is on: it makes one packet of many, which cannot go on as they came"),
        (link.hardware_gro, "rx-gro-hw", "the card's own GRO is on: it makes one packet of many before XDP sees them"),
    ):
        if on:
            yield Finding(link.name, False, what, f"`ethtool -K {link.name} {option} off`")
    peer = others.get(link.peer)
    if peer is not None and peer.tx_checksum:
        what = (
            f"its other end {peer.name} leaves checksums to hardware that is not there: what we rewrite arrives broken"
        )
        yield Finding(link.name, False, what, f"`ethtool -K {peer.name} tx off`")
    if link.peer_far:
        what = "its other end is in another namespace: it must compute checksums itself, and take our frames"
        yield Finding(
            link.name, None, what, "there: `ethtool -K DEV tx off gro on`, and an XDP program if it is to take many"
        )
    generic = mode is AttachMode.GENERIC or not can_native(link)
    if generic and link.driver == "virtio_net" and link.rx_checksum:
        what = "in generic mode packets of its own host come without checksums: what we rewrite of them arrives broken"
        yield Finding(link.name, None, what, f"`ethtool -K {link.name} rx off`")


def _sysctls(link: Link) -> Iterator[Finding]:
    where = f"net.ipv4.conf.{link.name}"
    if link.arp_ignore in (3, 8):
        what = (
            f"arp_ignore is {link.arp_ignore}: the kernel answers no ARP for our VIPs and SNAT addresses (scope host)"
        )
        yield Finding(
            link.name, False, what, f"sysctl -w {where}.arp_ignore=1 (and of `all`, where the larger one counts)"
        )
    elif link.arp_ignore == 2:
        what = (
            "arp_ignore is 2: ARP for our addresses is answered only where the interface has an address in their subnet"
        )
        yield Finding(link.name, None, what, f"sysctl -w {where}.arp_ignore=1, unless it has")
    if link.rp_filter == 1:
        what = (
            "rp_filter is strict: ARP and echo requests from whom the kernel would reach another way are not answered"
        )
        yield Finding(
            link.name, None, what, f"sysctl -w {where}.rp_filter=2, if routers on it have addresses elsewhere"
        )


def of_routes(
    routes: Iterable[Route], found: Mapping[str, Link], networks: Mapping[str, Collection[IPv4Network]], loaded: bool
) -> Iterator[Finding]:
    """Ways that frames cannot take from XDP, and routes under our protocol that are not ours; `networks` by name."""
    for route in routes:
        link = found.get(route.interface)
        used = [name for name, cidrs in networks.items() if any(route.cidr.overlaps(cidr) for cidr in cidrs)]
        if link and not link.ethernet and link.name != "lo" and (used or route.cidr.is_private):
            what = f"{route.cidr} leads to {link.name}, which is no Ethernet: XDP cannot send there"
            remedy = "end the tunnel on a router of its own, and name that as next hop"
            yield Finding("route", False if used and route.cidr.prefixlen else None, what, remedy)
        if route.protocol == ROUTE_PROTOCOL and not loaded:
            what = f"{route.cidr} by {route.interface} has protocol {ROUTE_PROTOCOL}, which is ours: it will be removed"
            yield Finding("route", False, what, "give it another protocol, or `ipbackend unload`")


def of_next_hops(found: Mapping[Hop, str | None], host: Host) -> Iterator[Finding]:
    """Who answers ARP, with which MAC; and whether the kernel keeps as many neighbours as there are."""
    for hop, mac in found.items():
        if mac is None:
            whose = "the router" if hop.router else "the member"
            remedy = f"start {whose}, or correct its address or the interface: no packet goes there until it answers"
            yield Finding("next hop", False, f"{hop.address} does not answer ARP on {hop.interface}", remedy)
    answering = [f"{hop.address} is {mac} on {hop.interface}" for hop, mac in found.items() if mac is not None]
    if len(answering) > _NAMED:
        yield Finding("next hop", True, f"{len(answering):,} answer ARP")
    else:
        yield from (Finding("next hop", True, what) for what in answering)
    if host.neighbours and len(found) > host.neighbours * 3 // 4:
        what = f"there are {len(found):,}, and the kernel keeps {host.neighbours:,} neighbours at most"
        remedy = f"sysctl -w net.ipv4.neigh.default.gc_thresh3={len(found) * 2} (and gc_thresh2)"
        yield Finding("next hop", False, what, remedy)
