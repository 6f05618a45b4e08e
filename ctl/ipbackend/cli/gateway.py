"""`ipbackend gateway`: this machine, of which there is one."""

from pathlib import Path
from typing import Any

import click

from ipbackend.cli import output as out
from ipbackend.cli import resource
from ipbackend.cli.resource import only_listed
from ipbackend.client import Client
from ipbackend.model import AttachMode, FlowLog

PATH = "/ipbackend/gateway"


@click.group()
def gateway() -> None:
    """The gateway: where XDP is attached, and what it uses as a source."""


@gateway.command()
@out.choice
@click.pass_obj
def show(run_directory: Path, output: out.Format) -> None:
    """Show the gateway's settings.

    Example: ipbackend gateway show
    """
    with Client(run_directory) as client:
        out.show_one(output, client.request("GET", PATH)["gateway"])


@gateway.command("set")
@click.option("--interface", "interfaces", multiple=True, callback=only_listed, help="One of all; repeat it.")
@click.option(
    "--snat-address", "snat_addresses", multiple=True, callback=only_listed, help="One of all 1, 2 or 4; repeat it."
)
@click.option("--snat-interface", help="Where they live; the last interface unless named.")
@click.option(
    "--health-address", metavar="ADDRESS", help="Health checks come from it; it lives with the SNAT addresses."
)
@click.option("--no-health-address", is_flag=True, help="Health checks come from any address of the gateway.")
@click.option("--max-connections", type=int, help="Of the whole gateway.")
@click.option("--attach-mode", type=click.Choice([str(mode) for mode in AttachMode]))
@click.option("--syn-sent-timeout", type=int, help="Seconds, as the next three.")
@click.option("--syn-received-timeout", type=int)
@click.option("--closing-timeout", type=int)
@click.option("--rest", type=int, help="A closed slot answers late packets for so long.")
@click.option("--half-open-percent", type=int, help="Of a ceiling, for handshakes under way.")
@click.option("--icmp-error-rate", type=int, help="ICMP errors a second that each CPU sends of its own.")
@click.option("--private-range", "private_ranges", multiple=True, callback=only_listed, help="One of all; repeat it.")
@click.option(
    "--flow-log", type=click.Choice([str(one) for one in FlowLog]), help="Where connections are written down."
)
@click.option("--flow-log-counts/--no-flow-log-counts", default=None, help="With the packets and bytes of each.")
@click.option("--flow-log-days", type=int, help="That they are kept.")
@click.option("--flow-log-megabytes", type=int, help="That they take at most.")
@out.choice
@click.pass_obj
def set_(run_directory: Path, /, no_health_address: bool, output: out.Format, **given: Any) -> None:
    """Set up the gateway, or change it; what is not given stays.

    SNAT addresses, max-connections and attach-mode change only while there are no members.

    Example: ipbackend gateway set --interface eth0 --interface eth1 --snat-address 10.0.0.101
    """
    fields = resource.without(given, health_address=no_health_address)
    with Client(run_directory) as client:
        changed = client.request("PUT", PATH, {"gateway": resource.wanted(fields)})["gateway"]
    if output is out.Format.TABLE:
        click.echo("gateway changed")
    else:
        out.show_data(output, changed)


@gateway.command()
@click.pass_obj
def delete(run_directory: Path) -> None:
    """Forward nothing any more; everything else must be deleted first.

    Example: ipbackend gateway delete
    """
    with Client(run_directory) as client:
        client.request("DELETE", PATH)
    click.echo("gateway deleted")
