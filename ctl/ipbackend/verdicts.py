"""How packets' journeys ended, counted, and what each end means. It reads the maps and changes nothing."""

from collections.abc import Mapping

from ipbackend.abi import Verdict
from ipbackend.datapath.maps import Maps

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
    Verdict.REJECT_LISTENER_FULL: "the listener had as many connections as it may have (max_connections)",
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
    Verdict.DROP_ACCESS: "the listener is not for this client: an ip group keeps it out, or none lets it in",
    Verdict.DROP_SOURCE_RATE: "this client opened more a second than the listener lets one open (source_cps)",
    Verdict.DROP_LISTENER_RATE: "all clients together opened more a second than the listener takes (cps)",
    Verdict.DROP_INDEX_FULL: "both buckets of the flow index were full",
    Verdict.DROP_NO_ROAD: "a program was not in its place: the controller was at work",
    Verdict.DROP_ERROR_RATE: "its sender was not told by an ICMP error, as enough had been sent",
    Verdict.DROP_SOURCE_ROUTE: "its sender would choose the way that it takes from the member on",
}
TOTALS = {"passed": "PASS", "forwarded": "FORWARD", "rejected": "REJECT", "dropped": "DROP"}


def counts(maps: Maps) -> dict[Verdict, int]:
    """Packets by verdict, since the data plane was loaded; those under NEXT_STEP are all that entered."""
    (packets,) = maps["verdicts"].columns(len(Verdict)).values()
    return dict(zip(Verdict, packets, strict=True))


def totals(packets: Mapping[Verdict, int]) -> dict[str, int]:
    """received = passed + forwarded + rejected + dropped, but for packets that are on their way at this moment."""
    sums = {
        total: sum(count for verdict, count in packets.items() if verdict.name.split("_")[0] == action)
        for total, action in TOTALS.items()
    }
    return {"received": packets[Verdict.NEXT_STEP], **sums}
