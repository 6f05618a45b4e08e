"""`ipbackend ips`: how many addresses a deployment needs. Arithmetic only."""

import click

from ipbackend.cli import output as out
from ipbackend.sizing import CEILING_MAX, addresses_required


@click.group()
def ips() -> None:
    """How many IPv4 addresses a deployment needs."""


@ips.command()
@click.option("--gateways", default=1, show_default=True, help="Gateways, one a zone.")
@click.option("--load-balancers", default=1, show_default=True, help="Load balancers: a VIP each.")
@click.option("--max-connections", default=CEILING_MAX, show_default=True, help="The largest ceiling of a member.")
@click.option("--no-ip-backend", is_flag=True, help="Without IP addresses as members.")
@out.choice
def required(gateways: int, load_balancers: int, max_connections: int, no_ip_backend: bool, output: out.Format) -> None:
    """Print the sum and its parts: VIPs, addresses for health checks, SNAT addresses.

    Example: ipbackend ips required --gateways 2
    """
    need = addresses_required(gateways, load_balancers, max_connections, not no_ip_backend)
    if output is not out.Format.TABLE:
        out.show_data(output, {"total": need.total, "parts": need.parts})
    else:
        out.show_rows(output, ("part", "addresses"), [("total", need.total), *need.parts.items()])
