"""`ipbackend apply`: a file becomes what is wanted. The daemon reads it, and decides."""

import sys
from pathlib import Path

import click

from ipbackend import config
from ipbackend.cli import output as out
from ipbackend.cli.plan import show_changes, summary
from ipbackend.client import Client

STDIN = Path("-")


@click.command()
@click.option(
    "-f",
    "--file",
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    help="The TOML file of what is wanted, or - for stdin.",
)
@click.option("--prune", is_flag=True, help="Remove what the file does not name.")
@click.option("--dry-run", is_flag=True, help="Only show the plan.")
@out.choice
@click.pass_obj
def apply(run_directory: Path, file: Path, prune: bool, dry_run: bool, output: out.Format) -> None:
    """Bring the gateway to what a file says, all in one change, or not at all.

    Shows the plan first: what is added (+), changed (~) and removed (-), and how many open connections end with
    it. Names in the file stand for the resources that have them.

    Example: ipbackend apply -f gateway.toml --prune --dry-run
    """
    text, source = (sys.stdin.read(), "stdin") if file == STDIN else (config.read(file), str(file))
    document = {"toml": text, "source": source, "prune": prune}
    with Client(run_directory) as client:
        plan = client.request("POST", "/ipbackend/plan", {"apply": document})["plan"]
        if output is out.Format.TABLE:
            show_changes(plan["changes"], plan["ending"], plan["draining"])
            click.echo(summary(plan["changes"], plan["ending"], plan["draining"]))
        if dry_run:
            result = {"dry_run": True, **plan}
        else:
            result = client.request("POST", "/ipbackend/apply", {"apply": document})["apply"]
            result |= {"ending": plan["ending"], "draining": plan["draining"]}
    if output is not out.Format.TABLE:
        out.show_data(output, result)
    elif dry_run:
        click.echo("nothing was changed")
    else:
        if [one["text"] for one in result["changes"]] != [one["text"] for one in plan["changes"]]:
            click.echo("somebody changed something meanwhile; this is what was applied:")
            show_changes(result["changes"])
        click.echo(f"applied: revision {result['revision']}")
