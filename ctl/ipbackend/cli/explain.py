"""`ipbackend explain`: what would become of a packet, and why."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ipbackend.cli import output as out

if TYPE_CHECKING:
    from ipbackend.explain.question import Answer

COLUMNS = ("verdict", "member", "snat", "interface", "mac", "mtu")


@click.command()
@click.argument("source", metavar="SOURCE:PORT")
@click.argument("destination", metavar="DESTINATION:PORT")
@click.option("--protocol", type=click.Choice(["TCP", "UDP"], case_sensitive=False), default="TCP", show_default=True)
@click.option("--flags", default="S", show_default=True, help="Of TCP, letters of FSRA: `A` or `FA`, say.")
@click.option("--size", type=int, default=0, help="Bytes of IP; the bare headers if not said.")
@click.option("--interface", default="", help="Where it comes in; else where such packets usually do.")
@click.option("--ttl", type=int, default=64, show_default=True)
@click.option("--df", is_flag=True, help="Not to be fragmented.")
@click.option("--icmp-error", is_flag=True, help="An ICMP error of a router about this packet, which went out so.")
@out.choice
@click.pass_obj
def explain(
    run_directory: Path,
    source: str,
    destination: str,
    protocol: str,
    flags: str,
    size: int,
    interface: str,
    ttl: int,
    df: bool,
    icmp_error: bool,
    output: out.Format,
) -> None:
    """Tell what the data plane would do with a packet, step by step, and why.

    It walks the program's own maps as they are at this moment, with or without a daemon, and nothing moves by it: no
    counter, no turn, no slot. Of a client's packet the source is the client; of a reply, the member, and the
    destination a SNAT address with its port. What is left to chance is told as several outcomes.

    Example: ipbackend explain 203.0.113.7:40000 10.0.0.100:80
    """
    from ipbackend.cli.view import looking  # takes longer to import than all else here
    from ipbackend.explain.question import Question, answer
    from ipbackend.model import Protocol

    asked = Question(source, destination, Protocol(protocol.upper()), flags, size, interface, ttl, df, icmp_error)
    with looking(run_directory) as view:
        answered = answer(view, asked)
    if output is out.Format.TABLE:
        _show(answered)
    else:
        out.show_data(output, {name: [one._asdict() for one in rows] for name, rows in answered._asdict().items()})


def _show(answered: "Answer") -> None:
    width = max(map(len, ["verdict", *(one.step for one in answered.steps)]))
    for step, what in answered.steps:
        click.echo(f"{step:{width}}  {what}")
    meanings = {one.verdict: one.meaning for one in answered.outcomes}
    for verdict, meaning in meanings.items():
        click.echo(f"{'verdict':{width}}  {click.style(verdict, bold=True)}: {meaning}")
    ends = [one for one in answered.outcomes if one.member]
    if len(ends) > 1:
        click.echo(f"\n{out.table(COLUMNS, [[getattr(one, name) for name in COLUMNS] for one in ends])}")
