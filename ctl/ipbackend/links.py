"""What network interfaces are and can do, by netlink and ethtool's ioctl. It only looks, and judges nothing."""

import errno
import fcntl
import socket
import struct
from array import array
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntFlag
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2 import Ethtool, IPRoute
from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from ipbackend.network import MODE_PROGRAM_ID, Attachment, asking

_ETHERNET = 1  # ARPHRD_ETHER
_SIOCETHTOOL, _GET_DRIVER = 0x8946, 0x00000003
_DRIVER_INFO = 196  # bytes of struct ethtool_drvinfo
_LRO, _HARDWARE_GRO, _RX_CHECKSUM = "rx-lro", "rx-gro-hw", "rx-checksum"
_TX_CHECKSUM = "tx-checksum-ip-generic"
_SYSCTL = Path("/proc/sys/net/ipv4/conf")


class Xdp(IntFlag):
    """What a driver can do with XDP (linux/netdev.h)."""

    BASIC = 1
    REDIRECT = 2
    NDO_XMIT = 4  # frames may be redirected to it
    ZERO_COPY = 8
    HARDWARE = 16
    RX_SG = 32  # frames of several buffers
    NDO_XMIT_SG = 64


@dataclass(frozen=True)
class Link:
    """An interface; `mtu` in bytes of IP; queues are those in use, `most_queues` what it could have.

    `xdp` is None where the kernel does not tell; `peer` is a veth's other end if that is in this namespace, and
    `peer_far` says that it is in another one.
    """

    index: int
    name: str
    mtu: int
    up: bool
    ethernet: bool
    kind: str = ""
    driver: str = ""
    rx_queues: int = 1
    tx_queues: int = 1
    most_queues: int = 1
    master: str = ""
    peer: str = ""
    peer_far: bool = False
    lro: bool = False
    hardware_gro: bool = False
    rx_checksum: bool = False
    tx_checksum: bool = False
    xdp: Xdp | None = None
    program: Attachment | None = None
    rp_filter: int = 0
    arp_ignore: int = 0


class Route(NamedTuple):
    """A route of the main table: where to, by which interface (its name), and who set it (a protocol's number)."""

    cidr: IPv4Network
    interface: str
    protocol: int


class _Device(genlmsg):  # type: ignore[misc]
    """A device as the family `netdev` tells of it, from Linux 6.3 on."""

    prefix = "NETDEV_A_DEV_"
    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
    )


def links() -> dict[str, Link]:
    """All interfaces of the caller's namespace by name. NetworkError: they cannot be read."""
    with asking("interfaces", "try again"), IPRoute() as netlink, Ethtool() as ethtool:
        xdp = _xdp_features()
        messages = list(netlink.link("dump"))
        names = {message["index"]: message.get_attr("IFLA_IFNAME") for message in messages}
        found = (_link(message, names, xdp, ethtool) for message in messages)
        return {link.name: link for link in found}


def routes() -> list[Route]:
    """The main table's routes that lead out by an interface. NetworkError: they cannot be read."""
    with asking("routes", "try again"), IPRoute() as netlink:
        names = {message["index"]: message.get_attr("IFLA_IFNAME") for message in netlink.link("dump")}
        return [
            Route(
                IPv4Network((message.get_attr("RTA_DST") or "0.0.0.0", message["dst_len"])),
                names.get(message.get_attr("RTA_OIF"), "?"),
                message["proto"],
            )
            for message in netlink.route("dump", family=socket.AF_INET, table=254)
            if message.get_attr("RTA_OIF")
        ]


def _link(message: Any, names: Mapping[int, str], xdp: Mapping[int, Xdp] | None, ethtool: Any) -> Link:
    index, name = message["index"], message.get_attr("IFLA_IFNAME")
    info = message.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") if info is not None else "") or ""
    other = message.get_attr("IFLA_LINK") if kind == "veth" else None
    far = message.get_attr("IFLA_LINK_NETNSID") is not None
    features = _features(ethtool, name)
    rx, tx, most = _queues(ethtool, name, message)
    return Link(
        index=index,
        name=name,
        mtu=message.get_attr("IFLA_MTU"),
        up=message.get_attr("IFLA_OPERSTATE") in ("UP", "UNKNOWN"),
        ethernet=message["ifi_type"] == _ETHERNET,
        kind=kind,
        driver=_driver(name),
        rx_queues=rx,
        tx_queues=tx,
        most_queues=most,
        master=names.get(message.get_attr("IFLA_MASTER") or 0, ""),
        peer="" if far else names.get(other or 0, ""),
        peer_far=far and other is not None,
        lro=_LRO in features,
        hardware_gro=_HARDWARE_GRO in features,
        rx_checksum=_RX_CHECKSUM in features,
        tx_checksum=_TX_CHECKSUM in features,
        xdp=None if xdp is None else xdp.get(index, Xdp(0)),
        program=_program(message),
        rp_filter=_sysctl(name, "rp_filter"),
        arp_ignore=_sysctl(name, "arp_ignore"),
    )


def _xdp_features() -> dict[int, Xdp] | None:
    """By interface; None: this kernel does not tell."""
    with GenericNetlinkSocket() as generic:
        try:
            generic.bind("netdev", _Device)
            asked = _Device()
            asked["cmd"], asked["version"] = 1, 1
            told = list(generic.nlm_request(asked, msg_type=generic.prid, msg_flags=NLM_F_REQUEST | NLM_F_DUMP))
        except NetlinkError as error:
            if error.code in (errno.ENOENT, errno.EOPNOTSUPP):
                return None
            raise
    return {one.get_attr("NETDEV_A_DEV_IFINDEX"): Xdp(one.get_attr("NETDEV_A_DEV_XDP_FEATURES") or 0) for one in told}


def _features(ethtool: Any, name: str) -> set[str]:
    """Those that are on."""
    with suppress(Exception):  # pyroute2 raises what it likes for devices that have none
        return {name for group in (ethtool.get_features(name).features,) for name, one in group.items() if one.enable}
    return set()


def _queues(ethtool: Any, name: str, message: Any) -> tuple[int, int, int]:
    """Receiving and sending ones in use, and how many there could be."""
    with suppress(Exception):  # the same
        have = ethtool.get_channels(name)
        rx, tx = have.combined_count + have.rx_count, have.combined_count + have.tx_count
        return rx, tx, max(have.max_combined, min(have.max_rx, have.max_tx))
    rx, tx = message.get_attr("IFLA_NUM_RX_QUEUES") or 1, message.get_attr("IFLA_NUM_TX_QUEUES") or 1
    return rx, tx, min(rx, tx)


def _driver(name: str) -> str:
    told = array("B", _GET_DRIVER.to_bytes(4, "little") + bytes(_DRIVER_INFO - 4))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), told.buffer_info()[0]))
        except OSError:
            return ""
    return told.tobytes()[4:36].split(b"\0")[0].decode()


def _program(message: Any) -> Attachment | None:
    xdp = message.get_attr("IFLA_XDP")
    ids = {mode: xdp.get_attr(attribute) for mode, attribute in MODE_PROGRAM_ID.items()} if xdp is not None else {}
    return next((Attachment(number, mode) for mode, number in ids.items() if number is not None), None)


def _sysctl(name: str, what: str) -> int:
    """As it takes effect: the larger one of its own and of all interfaces'."""
    try:
        return max(int((_SYSCTL / one / what).read_text()) for one in ("all", name))
    except OSError:
        return 0
