"""The manual's pages, one for each command, written by click-man from the help that the commands have themselves."""

import sys
from pathlib import Path

import click
from click_man.core import write_man_pages

from ipbackend import __version__
from ipbackend.cli import main


def whole(group: click.Group, context: click.Context) -> click.Group:
    """The group with its commands in place: ours imports each only when it is called."""
    commands = {name: group.get_command(context, name) for name in group.list_commands(context)}
    help_text, params = group.help, group.params
    return click.Group(group.name, commands, help=help_text, params=params)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_man_pages("ipbackend", whole(main, click.Context(main)), version=__version__, target_dir=str(target))
