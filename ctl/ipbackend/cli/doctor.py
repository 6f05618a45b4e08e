"""`ipbackend doctor`: whether this machine can carry the data plane, or does."""

from pathlib import Path

import click

from ipbackend.cli import findings
from ipbackend.cli import output as out


@click.command()
@click.option("--interface", "interfaces", multiple=True, help="One that XDP is to be attached to; may be repeated.")
@click.option("--file", type=click.Path(path_type=Path), help="The configuration that is to be applied.")
@click.option("--load", is_flag=True, help="Also compile the whole program, and have the kernel take it on trial.")
@out.choice
@click.pass_context
def doctor(ctx: click.Context, interfaces: tuple[str, ...], file: Path | None, load: bool, output: out.Format) -> None:
    """Look at kernel, BPF, BCC, memory, interfaces and next hops, before attaching and after.

    No daemon is needed, and nothing configured: with --file it looks with what that says; else with what is in the
    store of a daemon that ran here; else at all Ethernet interfaces. What BPF has is tried, not told by a version.
    The exit status is 1 if something stands against the data plane; `?` is worth knowing.

    Example: ipbackend doctor --file gateway.toml
    """
    from ipbackend import config
    from ipbackend.checkup import checkup
    from ipbackend.store import LINK, Store

    run_directory: Path = ctx.obj
    kept = run_directory / LINK
    wanted = None
    if file:
        wanted = config.load(file)
    elif kept.exists():
        with Store(kept, read_only=True) as store:
            wanted = store.configuration
    found = [one._asdict() for one in checkup(run_directory, interfaces, wanted, load)]
    if output is out.Format.TABLE:
        findings.show(found)
    else:
        out.show_data(output, found)
    ctx.exit(findings.failed(found))
