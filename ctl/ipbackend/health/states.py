"""Whether a member serves, decided by one answer after another. Pure: it knows no sockets, pools or clocks.

INITIAL ──first answer──▶ ONLINE ──`falls` failures in a row──▶ OFFLINE ──`rises` answers in a row──▶ ONLINE
"""

from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto


class Code(StrEnum):
    """Why a check failed, as published."""

    CONNECT_TIMEOUT = "CONNECT_TIMEOUT"  # no answer to a SYN, or to an echo request
    CONNECT_REFUSED = "CONNECT_REFUSED"  # RST, or port unreachable
    CONNECT_FAILED = "CONNECT_FAILED"  # no way to it
    CONNECT_INTERRUPT = "CONNECT_INTERRUPT"  # connected, and reset before anything was asked
    SSL_HANDSHAKE_ERROR = "SSL_HANDSHAKE_ERROR"
    SEND_REQUEST_FAILED = "SEND_REQUEST_FAILED"
    SEND_REQUEST_TIMEOUT = "SEND_REQUEST_TIMEOUT"
    RECV_RESPONSE_FAILED = "RECV_RESPONSE_FAILED"  # closed or reset before the response was there
    RECV_RESPONSE_TIMEOUT = "RECV_RESPONSE_TIMEOUT"
    RESPONSE_FORMAT_ERROR = "RESPONSE_FORMAT_ERROR"  # no HTTP
    RESPONSE_MISMATCH = "RESPONSE_MISMATCH"  # another status than expected


@dataclass(frozen=True)
class Reason:
    """Why a check failed: what was expected and what came, in words."""

    code: Code
    expected: str = ""
    received: str = ""

    def __str__(self) -> str:
        told = [f"expected {self.expected}"] * bool(self.expected) + [f"received {self.received}"] * bool(self.received)
        return f"{self.code} ({', '.join(told)})" if told else str(self.code)


class Status(StrEnum):
    """What is known of a member, as published."""

    INITIAL = "INITIAL"  # not decided yet
    ONLINE = "ONLINE"
    OFFLINE = "OFFLINE"


class Start(Enum):
    """How a member that is asked for the first time stands until an answer decides."""

    WAITING = auto()  # it gets no connections
    SERVING = auto()  # it got connections before it was asked, and goes on
    KEPT = auto()  # the same, and an earlier daemon asked it: one failure does not decide


@dataclass(frozen=True)
class Health:
    """Of a member: `serves` whether it gets new connections, `since` seconds of the clock that gave `now`.

    `contrary` answers in a row have said otherwise; `reason` is why the last check that counts failed.
    """

    status: Status
    serves: bool
    since: float
    kept: bool = False
    contrary: int = 0
    reason: Reason | None = None


def begun(start: Start, now: float) -> Health:
    """Before the first answer."""
    return Health(Status.INITIAL, start is not Start.WAITING, now, kept=start is Start.KEPT)


def answered(have: Health, failure: Reason | None, rises: int, falls: int, now: float) -> Health:
    """After one answer more; the same object where nothing is different."""
    says = Status.OFFLINE if failure else Status.ONLINE
    if have.status is says:
        return have if not have.contrary and have.reason == failure else replace(have, contrary=0, reason=failure)
    contrary = have.contrary + 1
    if contrary < _needed(have, says, rises, falls):
        return replace(have, contrary=contrary)
    return Health(says, says is Status.ONLINE, now, reason=failure)


def _needed(have: Health, says: Status, rises: int, falls: int) -> int:
    """How many answers in a row it takes to change to what they say."""
    if have.status is Status.INITIAL and not (have.kept and says is Status.OFFLINE):
        return 1
    return falls if says is Status.OFFLINE else rises
