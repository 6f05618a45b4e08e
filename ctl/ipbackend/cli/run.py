"""`ipbackend run` and `unload`: the daemon in the foreground, and the end of what it leaves forwarding."""

import logging
from pathlib import Path

import click

STORE = Path("/var/lib/ipbackend/store.db")


@click.command()
@click.option(
    "--store",
    envvar="IPBACKEND_STORE",
    default=STORE,
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where what is wanted is kept (or IPBACKEND_STORE); made if it is not there.",
)
@click.option(
    "--observe", is_flag=True, help="Report what others change of routes, addresses and maps; put nothing back."
)
@click.pass_obj
def run(run_directory: Path, store: Path, observe: bool) -> None:
    """Keep the gateway as the store says, and take changes on a socket, in the foreground.

    An empty store is a gateway that waits to be told its interfaces. SIGTERM stops, and the data plane goes on
    without; the next `run` takes it over.

    Example: ipbackend run --store /var/lib/ipbackend/store.db
    """
    from ipbackend import daemon  # takes a second, which the help of all commands need not

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    daemon.run(run_directory, store, observe)


@click.command()
@click.pass_obj
def unload(run_directory: Path) -> None:
    """Take the data plane away: program, addresses, routes and maps. All its connections end.

    What is wanted stays in the store: the next `run` sets it up again.

    Example: ipbackend unload
    """
    from ipbackend import daemon

    for line in daemon.unload(run_directory) or ["nothing was loaded"]:
        click.echo(line)
