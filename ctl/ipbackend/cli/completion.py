"""`ipbackend completion`: what a shell needs to complete commands, options and names. Click writes it."""

import click
from click.shell_completion import get_completion_class

PROGRAM, VARIABLE = "ipbackend", "_IPBACKEND_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    Example: ipbackend completion bash > /etc/bash_completion.d/ipbackend
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())
