"""`ipbackend check`: whether a file can be run, and what it would take. It touches nothing but the file."""

from pathlib import Path

import click

from ipbackend import config
from ipbackend.cli import output as out
from ipbackend.configuration import Configuration
from ipbackend.plan import gateway_of
from ipbackend.sizing import Required, flow_index_buckets, gateway_slots

BYTES_PER_SLOT = 72  # 64 of the connection, 8 of the ring of free slots
BYTES_PER_BUCKET = 64
MIB = 1 << 20


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@out.choice
def check(file: Path, output: out.Format) -> None:
    """Check a configuration file.

    Prints what it would take, or every problem with exit status 1.

    Example: ipbackend check /etc/ipbackend/gateway.toml
    """
    configuration = config.load(file)
    counts = {
        "load_balancers": len(configuration.load_balancers),
        "listeners": len(configuration.listeners),
        "pools": len(configuration.pools),
        "members": sum(len(pool.members) for pool in configuration.pools.values()),
        "networks": len(configuration.networks),
        "health_monitors": len(configuration.health_monitors),
        "ip_groups": len(configuration.ip_groups),
    }
    required, memory = _required(configuration), memory_of(configuration)
    if output is not out.Format.TABLE:
        addresses = {"total": required.total, "parts": required.parts}
        out.show_data(output, {**counts, "addresses_required": addresses, "memory_bytes": memory})
        return
    parts = ", ".join(f"{part} {count}" for part, count in required.parts.items())
    click.echo(f"{file}: valid")
    click.echo(", ".join(f"{what.replace('_', ' ')} {count}" for what, count in counts.items()))
    click.echo(f"addresses required: {required.total} ({parts})")
    click.echo(f"memory of the tables: {memory / MIB:.1f} MiB")


def _required(configuration: Configuration) -> Required:
    """What this one gateway uses: its SNAT addresses are written down, however few would do."""
    parts = {
        "vip": len(configuration.load_balancers),
        "health_check": 1,
        "snat": len(gateway_of(configuration).snat_addresses),
    }
    return Required(sum(parts.values()), parts)


def memory_of(configuration: Configuration) -> int:
    """Bytes of the tables that grow with connections: slots and flow index."""
    connections = gateway_of(configuration).max_connections
    return gateway_slots(connections) * BYTES_PER_SLOT + flow_index_buckets(connections) * BYTES_PER_BUCKET
