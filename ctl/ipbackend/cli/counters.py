"""`ipbackend counters`: how every packet's journey ended, and what that means."""

from pathlib import Path

import click

from ipbackend.abi import Verdict
from ipbackend.cli import output as out

MEANINGS = {
    Verdict.PASS_NOT_OURS: "to no address of ours: left to the kernel",
    Verdict.PASS_ECHO: "ICMP echo request to an address of ours: the kernel answers",
    Verdict.FORWARD_OPENED: "opened a connection, on to the member",
    Verdict.FORWARD_REQUEST: "of a connection, on to the member",
    Verdict.FORWARD_REPLY: "of a connection, back to the client",
    Verdict.FORWARD_ICMP_ERROR: "an ICMP error about a connection, on to the end that it concerns",
    Verdict.REJECT_NO_LISTENER: "nothing listens on this port of the VIP",
    Verdict.REJECT_NO_CONNECTION: "TCP, no SYN, and of no connection",
    Verdict.REJECT_NO_MEMBER: "the listener's pool has no member that can be reached",
    Verdict.REJECT_ALL_FULL: "every member is at its ceiling",
    Verdict.REJECT_TOO_BIG: "longer than the next link's MTU, and not to be fragmented: its sender is told",
    Verdict.REJECT_TTL: "its time to live ended here: its sender is told",
    Verdict.REJECT_EXPIRED: "of a connection that was silent for too long: its sender is told by a RST",
    Verdict.DROP_MALFORMED: "lengths that lie or do not suffice",
    Verdict.DROP_FRAGMENT: "a later fragment whose first one did not come before it",
    Verdict.DROP_ICMP: "ICMP that is neither an echo request nor an error",
    Verdict.DROP_ICMP_UNRELATED: "an ICMP error about no connection of ours",
    Verdict.DROP_PROTOCOL: "neither TCP, UDP nor ICMP",
    Verdict.DROP_TTL: "its time to live ended here, and there was no one to tell",
    Verdict.DROP_TOO_BIG: "longer than the next link's MTU, and we do not fragment",
    Verdict.DROP_NO_CONNECTION: "to a SNAT address or a RST, and of no connection",
    Verdict.DROP_NO_NEXT_HOP: "the way to the member was not known at the moment",
    Verdict.DROP_NOT_OPENED: "no free slot, or another CPU in the way: a retransmission opens it",
    Verdict.DROP_HALF_OPEN: "every member with room had too many handshakes under way",
    Verdict.DROP_INDEX_FULL: "both buckets of the flow index were full",
}
TOTALS = {"passed": "PASS", "forwarded": "FORWARD", "rejected": "REJECT", "dropped": "DROP"}


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also verdicts that no packet has met.")
@out.choice
@click.pass_obj
def counters(run_directory: Path, everything: bool, output: out.Format) -> None:
    """Count packets by how their journey ended.

    The sums below say that received = passed + forwarded + rejected + dropped.

    Example: ipbackend counters --all
    """
    from ipbackend.cli.view import opened  # it brings BCC along, which whoever wants the meanings does not need

    with opened(run_directory) as maps:
        counts = {verdict: sum(maps["verdicts"].get(int(verdict))) for verdict in MEANINGS}
    totals = {
        total: sum(count for verdict, count in counts.items() if verdict.name.split("_")[0] == action)
        for total, action in TOTALS.items()
    }
    totals = {"received": sum(counts.values()), **totals}
    columns = ("verdict", "packets", "meaning")
    rows = [(one.name, count, MEANINGS[one]) for one, count in counts.items() if count or everything]
    if output is not out.Format.TABLE:
        out.show_data(output, {"verdicts": [dict(zip(columns, row, strict=True)) for row in rows], "totals": totals})
    else:
        click.echo(out.table(columns, rows))
        received, *parts = totals.items()
        click.echo(f"\n{received[0]} {received[1]} = " + " + ".join(f"{total} {count}" for total, count in parts))
