"""The command line: one file per noun. The only place that prints or exits; it decides nothing."""

import importlib
from pathlib import Path

import click

from ipbackend import __version__
from ipbackend.errors import IpbackendError

# Where each command is. They are imported when asked for: pyroute2 alone takes a tenth of a second.
COMMANDS = {
    "apply": "ipbackend.cli.apply:apply",
    "audit": "ipbackend.cli.audit:audit",
    "capture": "ipbackend.cli.capture:capture",
    "check": "ipbackend.cli.check:check",
    "completion": "ipbackend.cli.completion:completion",
    "connection": "ipbackend.cli.connection:connection",
    "counters": "ipbackend.cli.counters:counters",
    "doctor": "ipbackend.cli.doctor:doctor",
    "explain": "ipbackend.cli.explain:explain",
    "export": "ipbackend.cli.export:export",
    "flow": "ipbackend.cli.flow:flow",
    "gateway": "ipbackend.cli.gateway:gateway",
    "healthmonitor": "ipbackend.cli.healthmonitor:healthmonitor",
    "history": "ipbackend.cli.history:history",
    "ipgroup": "ipbackend.cli.ipgroup:ipgroup",
    "ips": "ipbackend.cli.ips:ips",
    "lb": "ipbackend.cli.lb:lb",
    "listener": "ipbackend.cli.listener:listener",
    "map": "ipbackend.cli.maps:map_",
    "member": "ipbackend.cli.member:member",
    "network": "ipbackend.cli.networks:network",
    "pool": "ipbackend.cli.pool:pool",
    "rollback": "ipbackend.cli.history:rollback",
    "run": "ipbackend.cli.run:run",
    "status": "ipbackend.cli.status:status",
    "top": "ipbackend.cli.top:top",
    "unload": "ipbackend.cli.run:unload",
    "who": "ipbackend.cli.flow:who",
}


class Refused(click.ClickException):
    """An error of ours as it is shown: each line of it on stderr, exit status 1."""

    def __init__(self, error: IpbackendError) -> None:
        super().__init__(str(error))

    def show(self, file: object = None) -> None:
        """One `Error: ` for each problem."""
        for line in self.message.splitlines():
            click.echo(f"Error: {line}", err=True)


class Commands(click.Group):
    """Knows its commands by name, imports the one that is called, and shows our errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All of them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The one of this name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; whatever is not an IpbackendError is a bug and keeps its traceback."""
        try:
            return super().invoke(ctx)
        except IpbackendError as error:
            raise Refused(error) from error


@click.command(cls=Commands)
@click.option(
    "--run-dir",
    envvar="IPBACKEND_RUN_DIR",
    default="/run/ipbackend",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the data plane is pinned (or IPBACKEND_RUN_DIR).",
)
@click.version_option(__version__, prog_name="ipbackend")
@click.pass_context
def main(ctx: click.Context, run_dir: Path) -> None:
    """L4 load balancing in XDP to members that are nothing but a private IPv4 address.

    Nouns group, verbs act. Changes are asked of the daemon, which makes them at once and keeps them. What only
    looks (list, connection, counters, explain, map, audit) reads the kernel's maps directly, with or without a daemon.
    The exit status is 0, 1 for what is refused, 2 for a wrong call.
    """
    ctx.obj = run_dir
