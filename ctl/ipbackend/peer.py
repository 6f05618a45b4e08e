"""Who is at one end of a connection, as people write it. It knows no connection."""

from ipaddress import IPv4Address
from typing import NamedTuple

from ipbackend.errors import ConfigurationError


class Peer(NamedTuple):
    """One side of a connection, with any port or with this one."""

    address: IPv4Address
    port: int | None


def peer(text: str) -> Peer:
    """`ADDRESS` or `ADDRESS:PORT`. ConfigurationError: it is neither."""
    address, colon, port = text.partition(":")
    try:
        found = Peer(IPv4Address(address), int(port) if colon else None)
    except ValueError:
        what = f"{text!r} is not an IPv4 address, or one with a port (such as 10.0.0.11:8080)"
        raise ConfigurationError(what) from None
    if found.port is not None and not 1 <= found.port <= 65_535:
        raise ConfigurationError(f"{text!r} has no possible port (write 1 to 65535)")
    return found
