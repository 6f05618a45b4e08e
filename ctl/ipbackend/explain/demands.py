"""Whether a listener takes one connection more, in the steps and the order of bpf/limits.h. No I/O."""

from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import NamedTuple

from ipbackend.abi import RATE_SECOND, Verdict
from ipbackend.explain.frame import Ending
from ipbackend.explain.reader import Reader
from ipbackend.model import Access
from ipbackend.plan import Listener


class Demand(NamedTuple):
    """One that a listener makes: how things stand, and where a connection ends that does not meet it.

    Not `sure`: it is about to be met or not, and a moment decides.
    """

    step: str
    what: str
    ending: Ending | None = None
    sure: bool = True


def demands(reader: Reader, listener: Listener, client: IPv4Address) -> Iterator[Demand]:
    """All that it makes of a new connection, up to the first that is surely not met."""
    if listener.access is not None:
        listed = reader.is_listed(listener.list, client)
        what = f"{client} is {'' if listed else 'not '}on its {listener.access.value} list"
        ends = listed is (listener.access is Access.DENY)
        yield Demand("access", what, Ending(Verdict.DROP_ACCESS, what) if ends else None)
    if listener.source_rate:
        due = reader.source_due(listener.id, client)
        why = f"{client} has opened as many a second as one client may, {listener.source_rate:,}"
        yield _rate(reader, "client rate", due, listener.source_rate, Ending(Verdict.DROP_SOURCE_RATE, why))
    load = reader.listener_load(listener.id)
    if listener.limit:
        what = f"{load.active:,} of {listener.limit:,} connections of this listener"
        full = load.active >= listener.limit
        yield Demand("limit", what, Ending(Verdict.REJECT_LISTENER_FULL, what) if full else None)
    if listener.rate:
        why = f"all clients together have opened as many a second as they may, {listener.rate:,}"
        yield _rate(reader, "rate", load.due, listener.rate, Ending(Verdict.DROP_LISTENER_RATE, why))


def _rate(reader: Reader, step: str, due: int, rate: int, ending: Ending) -> Demand:
    """A bucket that holds a second's worth of tokens; the time is known to within some of the timer's jumps."""
    interval = -(-RATE_SECOND // rate)
    at = reader.rate_now()
    out = {max(due - one, 0) > (rate - 1) * interval for one in at}
    if out == {True}:
        return Demand(step, ending.why, ending)
    if True in out:
        return Demand(step, f"about to be used up: it may be that {ending.why}", ending, sure=False)
    left = min(rate - -(-max(due - at[0], 0) // interval), rate)
    return Demand(step, f"{left:,} of {rate:,} new connections are left for this second")
