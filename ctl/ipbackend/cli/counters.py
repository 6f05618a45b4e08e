"""`ipbackend counters`: how every packet's journey ended, and what that means."""

from pathlib import Path

import click

from ipbackend.cli import output as out
from ipbackend.verdicts import MEANINGS, counts, totals


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also verdicts that no packet has met.")
@out.choice
@click.pass_obj
def counters(run_directory: Path, everything: bool, output: out.Format) -> None:
    """Count packets by how their journey ended.

    The sums below say that received = passed + forwarded + rejected + dropped: what is received is counted where
    packets enter, the rest where they leave.

    Example: ipbackend counters --all
    """
    from ipbackend.cli.view import opened  # takes longer to import than all else here

    with opened(run_directory) as maps:
        packets = counts(maps)
    sums = totals(packets)
    columns = ("verdict", "packets", "meaning")
    rows = [(one.name, packets[one], meaning) for one, meaning in MEANINGS.items() if packets[one] or everything]
    if output is not out.Format.TABLE:
        out.show_data(output, {"verdicts": [dict(zip(columns, row, strict=True)) for row in rows], "totals": sums})
    else:
        click.echo(out.table(columns, rows))
        received, *parts = sums.items()
        click.echo(f"\n{received[0]} {received[1]} = " + " + ".join(f"{total} {count}" for total, count in parts))
