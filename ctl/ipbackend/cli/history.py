"""`ipbackend history` and `rollback`: who changed what and when, and the way back."""

from pathlib import Path

import click

from ipbackend.cli import output as out
from ipbackend.cli.plan import show_changes
from ipbackend.client import Client

PATH = "/ipbackend/revisions"
COLUMNS = ("number", "time", "author", "summary")


@click.command()
@click.argument("number", type=click.IntRange(min=0), required=False)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=0), help="How many, the newest first.")
@out.choice
@click.pass_obj
def history(run_directory: Path, number: int | None, limit: int, output: out.Format) -> None:
    """List the last changes, or show one whole.

    Example: ipbackend history 12
    """
    with Client(run_directory) as client:
        if number is not None:
            changes = client.request("GET", f"{PATH}/{number}")["changes"]
            if output is out.Format.TABLE:
                show_changes(changes)
            else:
                out.show_data(output, changes)
            return
        revisions = client.request("GET", PATH, limit=limit)["revisions"]
    out.show_rows(output, COLUMNS, [[one[column] for column in COLUMNS] for one in revisions])


@click.command()
@click.argument("number", type=click.IntRange(min=0))
@out.choice
@click.pass_obj
def rollback(run_directory: Path, number: int, output: out.Format) -> None:
    """Make everything as it was with a revision; that is a new revision, so that it can be undone as well.

    Example: ipbackend rollback 12
    """
    with Client(run_directory) as client:
        result = client.request("POST", f"{PATH}/{number}/rollback")
    if output is not out.Format.TABLE:
        out.show_data(output, {"revision": result["revision"], "changes": result["changes"]})
        return
    show_changes(result["changes"])
    click.echo(f"rolled back to revision {number}: now revision {result['revision']}")
