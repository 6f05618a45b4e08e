"""`ipbackend run` and `unload`: the daemon in the foreground, and the end of what it leaves forwarding."""

from ipaddress import IPv4Address
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
@click.option(
    "--metrics",
    envvar="IPBACKEND_METRICS",
    metavar="ADDRESS:PORT",
    callback=lambda _ctx, _option, text: _address(text),
    help="Have Prometheus read metrics there by TCP as well (or IPBACKEND_METRICS), such as 127.0.0.1:9177.",
)
@click.pass_obj
def run(run_directory: Path, store: Path, observe: bool, metrics: tuple[str, int] | None) -> None:
    """Keep the gateway as the store says, and take changes on a socket, in the foreground.

    An empty store is a gateway that waits to be told its interfaces. SIGTERM stops, and the data plane goes on
    without; the next `run` takes it over.

    Example: ipbackend run --store /var/lib/ipbackend/store.db
    """
    from ipbackend import daemon, logs  # takes a second, which the help of all commands need not

    logs.begin()
    daemon.run(run_directory, store, observe, metrics)


def _address(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    address, _, port = text.rpartition(":")
    try:
        IPv4Address(address)
        if not 0 < int(port) < 1 << 16:
            raise ValueError
    except ValueError:
        raise click.BadParameter(f"{text!r} is not an IPv4 address and a port, such as 127.0.0.1:9177") from None
    return address, int(port)


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
