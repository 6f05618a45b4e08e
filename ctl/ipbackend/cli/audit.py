"""`ipbackend audit`: whether counts, queues and the flow index agree with the slots."""

from pathlib import Path

import click

from ipbackend.cli import output as out
from ipbackend.cli.view import opened
from ipbackend.datapath import audit as books


@click.command()
@out.choice
@click.pass_context
def audit(ctx: click.Context, output: out.Format) -> None:
    """Check that the data plane's books balance.

    Prints `clean`, or every difference with exit status 1. Traffic goes on meanwhile: what differs is looked at
    several times, as a connection that begins or ends may be between two books. The daemon does the same, a little
    at a time.

    Example: ipbackend audit
    """
    run_directory: Path = ctx.obj
    with opened(run_directory) as maps:
        problems = books.audit(maps)
    if output is not out.Format.TABLE:
        out.show_data(output, problems)
    else:
        click.echo("\n".join(problems) or "clean")
    if problems:
        ctx.exit(1)
