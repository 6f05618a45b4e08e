"""Who is at one end of a connection, as people write it. It knows no connection."""

from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from ipbackend.errors import ConfigurationError


class Peer(NamedTuple):
    """One side of a connection, with any port or with this one."""

    address: IPv4Address
    port: int | None

    def __str__(self) -> str:
        return f"{self.address}:{self.port}" if self.port else str(self.address)


def address(text: str) -> IPv4Address:
    """ConfigurationError: it is none."""
    try:
        return IPv4Address(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} is not an IPv4 address (such as 10.0.0.100)") from None


def peer(text: str) -> Peer:
    """`ADDRESS` or `ADDRESS:PORT`. ConfigurationError: it is neither."""
    host, colon, port = text.partition(":")
    try:
        found = Peer(IPv4Address(host), int(port) if colon else None)
    except ValueError:
        what = f"{text!r} is not an IPv4 address, or one with a port (such as 10.0.0.11:8080)"
        raise ConfigurationError(what) from None
    if found.port is not None and not 1 <= found.port <= 65_535:
        raise ConfigurationError(f"{text!r} has no possible port (write 1 to 65535)")
    return found


class Peers(NamedTuple):
    """All ends in a network, with any port or with this one."""

    network: IPv4Network
    port: int | None

    def __str__(self) -> str:
        return f"{self.network}:{self.port}" if self.port else str(self.network)


def peers(text: str) -> Peers:
    """`ADDRESS[/LENGTH][:PORT]`. ConfigurationError: it is none."""
    network, colon, port = text.partition(":")
    host, slash, length = network.partition("/")
    one = peer(f"{host}{colon}{port}")
    try:
        return Peers(IPv4Network(f"{host}/{length}" if slash else host), one.port)
    except ValueError as error:
        raise ConfigurationError(f"{network!r} is no network: {error} (such as 203.0.113.0/24)") from None
