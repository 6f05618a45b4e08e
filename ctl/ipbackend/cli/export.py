"""`ipbackend export`: all that is wanted, as the file that `apply` takes. The daemon writes it."""

from pathlib import Path

import click

from ipbackend.client import Client


@click.command()
@click.pass_obj
def export(run_directory: Path) -> None:
    """Print what is wanted as TOML; applied again, it changes nothing.

    Example: ipbackend export > gateway.toml
    """
    with Client(run_directory) as client:
        click.echo(client.request("GET", "/ipbackend/export")["export"]["toml"], nl=False)
