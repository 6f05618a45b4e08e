"""`ipbackend apply`: a file becomes what is wanted. The daemon reads it, and decides."""

from pathlib import Path

import click

from ipbackend import config
from ipbackend.cli import output as out
from ipbackend.client import Client


@click.command()
@click.option("-f", "--file", required=True, type=click.Path(path_type=Path), help="The TOML file of what is wanted.")
@click.option("--prune", is_flag=True, help="Remove what the file does not name.")
@click.option("--dry-run", is_flag=True, help="Only tell what would change.")
@out.choice
@click.pass_obj
def apply(run_directory: Path, file: Path, prune: bool, dry_run: bool, output: out.Format) -> None:
    """Bring the gateway to what a file says, all in one change, or not at all.

    Names in the file stand for the resources that have them.

    Example: ipbackend apply -f gateway.toml --prune
    """
    document = {"toml": config.read(file), "source": str(file), "prune": prune, "dry_run": dry_run}
    with Client(run_directory) as client:
        result = client.request("POST", "/ipbackend/apply", {"apply": document})["apply"]
    if output is out.Format.JSON:
        out.show_json(result)
        return
    for change in result["changes"]:
        click.echo(change["text"])
    click.echo("nothing was changed" if dry_run else f"applied: revision {result['revision']}")
