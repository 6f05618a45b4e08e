"""Whether a network, or a member that is there or to be added, is prepared: step by step, with remedies.

The steps are those of a manual's table: route, next hop, security groups, way back, path MTU. They change nothing
that stays, and must have the turn of the thread that changes the gateway.
"""

import errno
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address

from ipbackend.configuration import Configuration
from ipbackend.errors import ConfigurationError, Kind, NetworkError, Problem
from ipbackend.finding import Finding
from ipbackend.model import EndpointKey
from ipbackend.model import Network as Wanted
from ipbackend.network import Network
from ipbackend.plan import gateway_of
from ipbackend.tap import Tap
from ipbackend.trial import LARGEST, Answer, Attempt, Trial

RESOLVE = 1.5  # seconds for a next hop to answer ARP: the kernel asks once a second
CONNECT = 1.0  # seconds for the member to answer the gateway's own address
POLL = 0.01
SMALLEST_MTU = 576  # that any host must take (RFC 791)


def of_network(configuration: Configuration, wanted: Wanted, network: Network) -> Iterator[Finding]:
    """The way to a network; its members are asked one by one."""
    addresses = sorted(
        {key.address for key in configuration.endpoints if configuration.network_of(key.address) is wanted}
    )
    for cidr in wanted.cidrs:
        yield _route(
            wanted, next((one for one in addresses if one in cidr), cidr[1 if cidr.num_addresses > 2 else 0]), network
        )
    if wanted.next_hop:
        yield _next_hop(wanted, wanted.next_hop, network)
    else:
        yield Finding("next hop", True, f"none: members are on the link of {wanted.interface}")
    if not addresses:
        yield Finding(
            "members", None, "none yet", "try an address before adding it: `ipbackend member check ADDR:PORT`"
        )


def of_way(configuration: Configuration, key: EndpointKey, network: Network) -> Iterator[Finding]:
    """The way to a member, the next hop last: the data plane goes by that, whatever the kernel's route says."""
    wanted = configuration.find_network(key.address)
    if wanted is None:
        what = f"{key.address} is in no network (add one: `ipbackend network create`)"
        raise ConfigurationError(Problem(what, Kind.MISSING))
    cidr = next(cidr for cidr in wanted.cidrs if key.address in cidr)
    via = f"via {wanted.next_hop} on {wanted.interface}" if wanted.next_hop else f"on the link of {wanted.interface}"
    yield Finding("network", True, f"{wanted.name or wanted.id} ({wanted.kind}): {cidr} {via}")
    yield _route(wanted, key.address, network)
    yield _next_hop(wanted, wanted.next_hop or key.address, network)


def of_member(
    configuration: Configuration, key: EndpointKey, mtu: int, trial: Trial, network: Network
) -> Iterator[Finding]:
    """How a member answers on the data path; `mtu` is what the way is said to carry."""
    snat = gateway_of(configuration).snat_addresses
    before = network.received()
    with Tap(key.address) as tap:
        attempts = trial.attempts()
        trial.wait(attempts)
        strays = tap.interfaces(snat)
    after = network.received()
    if not attempts:
        yield Finding(
            "member", False, "takes no connection now: it is at its ceiling", "wait, or raise max_connections"
        )
        return
    if strays:
        what = f"answers the SNAT addresses by {' and '.join(strays)}, where no XDP takes it"
        yield Finding(
            "way back", False, what, "route it back by one of gateway.interfaces, or add that interface to them"
        )
        return
    yield _answered(configuration, key, attempts, network)
    heard = [one for one in attempts if one.answer is not Answer.SILENT]
    if not heard:
        return
    came = [name for name in gateway_of(configuration).interfaces if after[name] > before[name]]
    yield Finding("way back", True, f"to the SNAT addresses, by {' or '.join(came)}")
    yield _path_mtu(heard[0], mtu, trial)


def _route(wanted: Wanted, address: IPv4Address, network: Network) -> Finding:
    try:
        way = network.way_to(address)
    except NetworkError as error:
        return Finding("route", False, str(error).split(" (")[0], f"see `ip route get {address}`: something forbids it")
    link = next((one for one in network.interfaces().values() if one.index == way.interface), None)
    name = link.name if link else str(way.interface)
    what = f"to {address} via {way.next_hop} on {name}" if way.next_hop else f"to {address} on the link of {name}"
    if (way.next_hop, name) == (wanted.next_hop, wanted.interface):
        return Finding("route", True, what)
    if link and not link.mac:
        remedy = "end the tunnel on a router of its own, and name that as next hop of the network"
        return Finding("route", False, f"{what}, which is no Ethernet: XDP cannot send there", remedy)
    meant = f"via {wanted.next_hop}" if wanted.next_hop else "on the link"
    remedy = f"the network says {meant} of {wanted.interface}: correct one of them, see `ip route get {address}`"
    return Finding("route", False, what, remedy)


def _next_hop(wanted: Wanted, address: IPv4Address, network: Network) -> Finding:
    link = network.interfaces().get(wanted.interface)
    if link is None or not link.up:
        what = f"interface {wanted.interface} is {'down' if link else 'missing'}"
        return Finding("next hop", False, what, f"`ip link set {wanted.interface} up`, and look at its cable or port")
    end, asked = time.monotonic() + RESOLVE, False
    while True:
        there = network.neighbours().get((address, link.index))
        if there and there.usable:
            return Finding("next hop", True, f"{address} is {there.mac.hex(':')} on {wanted.interface}")
        if not asked or (there and there.dormant):
            network.resolve(address, link.index)
            asked = True
        if time.monotonic() > end:
            what = f"{address} does not answer ARP on {wanted.interface}"
            whose = "the router" if wanted.next_hop else "the member"
            return Finding("next hop", False, what, f"start {whose}, or correct its address or the interface")
        time.sleep(POLL)  # the kernel's reports are the loop's to read


def _answered(configuration: Configuration, key: EndpointKey, attempts: list[Attempt], network: Network) -> Finding:
    by_answer = {answer: [one for one in attempts if one.answer is answer] for answer in Answer}
    silent, heard = by_answer[Answer.SILENT], by_answer[Answer.OPEN] or by_answer[Answer.REFUSED]
    everyone = _listed(gateway_of(configuration).snat_addresses)
    if heard and silent:
        what = f"answers {_listed(one.snat for one in heard)}, and not {_listed(one.snat for one in silent)}"
        remedy = f"allow TCP {key.port} from {everyone} in its security group and firewalls, and route all of them back"
        return Finding("member", False, what, remedy)
    if by_answer[Answer.REFUSED]:
        what = f"refuses connections to port {key.port} (RST), from {_listed(one.snat for one in heard)}"
        return Finding("member", False, what, "start its service, or correct the port")
    if heard:
        fastest, tried = min(one.seconds for one in heard) * 1000, {one.snat for one in attempts}
        what = f"answers {_listed(one.snat for one in heard)}, in {fastest:.1f} ms"
        untried = [address for address in gateway_of(configuration).snat_addresses if address not in tried]
        remedy = f"try again when it has room: {_listed(untried)} were not tried" if untried else ""
        return Finding("member", None if untried else True, what, remedy)
    own, why = _own(key, network)
    what = f"does not answer the SNAT addresses {everyone}"
    if why is None:
        remedy = f"allow TCP {key.port} from {everyone} in its security group and firewalls, and route all of them back"
        return Finding("member", False, f"{what}, but the gateway's own {own}", remedy)
    remedy = f"start it; or let its network route {everyone} back here and allow TCP {key.port} from them"
    return Finding("member", False, f"{what}, nor the gateway's own {own} ({why})", remedy)


def _own(key: EndpointKey, network: Network) -> tuple[str, str | None]:
    """Our own address towards a member, and why the member does not answer that either; None: it does."""
    try:
        source = network.way_to(key.address).source
    except NetworkError:
        return "address", "no route"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        asking.settimeout(CONNECT)
        code = asking.connect_ex((str(key.address), key.port))
    if code in (0, errno.ECONNREFUSED):
        return str(source), None
    return str(source), "silence" if code in (errno.ETIMEDOUT, errno.EAGAIN) else os.strerror(code).lower()


def _path_mtu(attempt: Attempt, mtu: int, trial: Trial) -> Finding:
    """By segments that may not be fragmented, where the member answers such; else what the way is said to carry."""
    if attempt.answer is not Answer.OPEN or not trial.carries(attempt, SMALLEST_MTU):
        return Finding("path MTU", None, f"{mtu} by the route; the member answers nothing that would tell")
    largest = min(mtu, LARGEST)
    if trial.carries(attempt, largest):
        more = f"; the route says {mtu}" if mtu > largest else ""
        return Finding("path MTU", True, f"{largest}: a packet of that size arrives unfragmented{more}")
    fits, above = SMALLEST_MTU, largest
    while above - fits > 1:
        middle = (fits + above) // 2
        fits, above = (middle, above) if trial.carries(attempt, middle) else (fits, middle)
    remedy = f"raise it on the way, or `ip route change … mtu {fits}`; until then it takes routers that tell (ICMP)"
    return Finding("path MTU", False, f"{fits}, not {mtu} as the route says", remedy)


def _listed(addresses: Iterable[IPv4Address]) -> str:
    return ", ".join(map(str, sorted(addresses)))
