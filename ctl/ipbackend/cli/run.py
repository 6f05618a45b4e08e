"""`ipbackend run` and `unload`: the daemon in the foreground, and the end of what it leaves forwarding."""

import logging
from pathlib import Path

import click

from ipbackend import daemon


@click.command()
@click.option(
    "--config", "path", required=True, type=click.Path(path_type=Path), help="The TOML file of what is wanted."
)
@click.pass_obj
def run(run_directory: Path, path: Path) -> None:
    """Set up the gateway as a file says and keep it so, in the foreground.

    SIGHUP reads the file again (a bad one changes nothing); SIGTERM stops, and the data plane goes on without.

    Example: ipbackend run --config /etc/ipbackend/gateway.toml
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    daemon.Daemon(path, run_directory).run()


@click.command()
@click.pass_obj
def unload(run_directory: Path) -> None:
    """Take the data plane away: program, addresses, routes and maps. All its connections end.

    Example: ipbackend unload
    """
    for line in daemon.unload(run_directory) or ["nothing was loaded"]:
        click.echo(line)
