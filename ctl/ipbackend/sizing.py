"""How many addresses and slots a number of connections needs: arithmetic that knows no configuration."""

from dataclasses import dataclass

from ipbackend.errors import ConfigurationError

CEILING_MAX = 100_000  # connections one endpoint may hold
CEILING_PER_SNAT = 25_000  # of them, carried by one SNAT address; its other ports rest
PORTS_PER_SNAT = 32_768  # source ports taken of one SNAT address
FIRST_SNAT_PORT = 32_768  # the lowest of them
SNAT_COUNTS = (1, 2, 4)  # powers of two: slot arithmetic is shifts and masks

FIRST_SLOT = 64  # of all: slot 0 is no one's, and a table begins on a cache line of its ring
SLOTS_STEP = 64  # tables are whole multiples of it
_SLOTS_MIN = 128
_SLOTS_SPARE = 512 * _SLOTS_MIN  # beside the share of each connection: for members with few
_HALF_OPEN_MIN = 64
_BUCKET_ENTRIES = 8
BYTES_PER_SLOT = 72  # 64 of the connection, 8 of the ring of free slots
BYTES_PER_BUCKET = 64
BYTES_PER_SOURCE = 192  # of a client that is kept in mind, for persistence and for rates, as the kernel counts it
_SPARSENESS = 4  # entries of the flow index for each slot: that both of its buckets are full is one in a million


@dataclass(frozen=True)
class Required:
    """Addresses a deployment needs: `parts` by purpose (vip, health_check, snat), and their sum."""

    total: int
    parts: dict[str, int]


def snat_addresses_for(max_connections: int) -> int:
    """The smallest number of SNAT addresses (1, 2 or 4) that carries `max_connections` of one endpoint."""
    for count in SNAT_COUNTS:
        if 1 <= max_connections <= count * CEILING_PER_SNAT:
            return count
    raise ConfigurationError(
        f"max_connections: {max_connections} is not within 1 to {CEILING_MAX} "
        f"(one endpoint holds at most {CEILING_MAX}: lower it, or add members)"
    )


def addresses_required(gateways: int, load_balancers: int, max_connections: int, ip_backend: bool) -> Required:
    """How many addresses `gateways` need whose largest ceiling is `max_connections`.

    A VIP for each load balancer, wherever it is just now; for each gateway one address for health checks and,
    with IP as a backend, its SNAT addresses. Raises ConfigurationError, every argument out of range named.
    """
    counts = {"gateways": gateways, "load_balancers": load_balancers}
    problems = [f"{name}: {n} is too few (at least 1)" for name, n in counts.items() if n < 1]
    snat = 0
    if ip_backend:
        try:
            snat = snat_addresses_for(max_connections)
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(*problems)
    parts = {"vip": load_balancers, "health_check": gateways, "snat": gateways * snat}
    return Required(sum(parts.values()), parts)


def slots_for(ceiling: int, snat_count: int) -> int:
    """Slots of the table of an endpoint that holds `ceiling` connections from `snat_count` SNAT addresses.

    As many for each connection as an address has ports for its 25,000, so that 24 % of them rest; at least 128.
    Raises ConfigurationError if the addresses do not carry the ceiling.
    """
    needed = snat_addresses_for(ceiling)
    if snat_count not in SNAT_COUNTS or snat_count < needed:
        raise ConfigurationError(f"snat_addresses: {snat_count} cannot carry {ceiling} connections (take {needed})")
    return max(_SLOTS_MIN, _slots(ceiling))


def gateway_slots(connections: int) -> int:
    """Slots of all endpoints together of a gateway for so many `connections`, and those before the first one."""
    return FIRST_SLOT + _slots(connections) + _SLOTS_SPARE


def _slots(connections: int) -> int:
    return -(-connections * PORTS_PER_SNAT // CEILING_PER_SNAT // SLOTS_STEP) * SLOTS_STEP


def half_open_limit(ceiling: int, percent: int) -> int:
    """Handshakes that an endpoint may have under way: a share of its ceiling, but no fewer than a burst takes."""
    return max(ceiling * percent // 100, min(ceiling, _HALF_OPEN_MIN))


def sources(connections: int) -> int:
    """Client addresses that are kept in mind, for persistence and for rates, of a gateway for so many `connections`."""
    return connections // 4


def flow_index_buckets(connections: int) -> int:
    """Buckets of the flow index, a power of two, for so many `connections` of a gateway.

    What counts are their slots, since a closed connection stays in the index while it rests.
    """
    return 1 << (gateway_slots(connections) * _SPARSENESS // _BUCKET_ENTRIES - 1).bit_length()


def tables_memory(connections: int) -> int:
    """Bytes of the tables that grow with a gateway's `connections`: slots, flow index, clients kept in mind."""
    slots, buckets = gateway_slots(connections) * BYTES_PER_SLOT, flow_index_buckets(connections) * BYTES_PER_BUCKET
    return slots + buckets + sources(connections) * BYTES_PER_SOURCE
