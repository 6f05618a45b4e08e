"""The enums of bpf/abi.h, held equal to it by a test. Nothing here knows how they get into the kernel or out."""

from enum import IntEnum, auto


class Verdict(IntEnum):
    """How a packet's journey ended; the first word is the action taken. Each one's meaning stands in abi.h."""

    NEXT_STEP = 0
    PASS_NOT_OURS = auto()
    PASS_ECHO = auto()
    FORWARD_OPENED = auto()
    FORWARD_REQUEST = auto()
    FORWARD_REPLY = auto()
    FORWARD_ICMP_ERROR = auto()
    REJECT_NO_LISTENER = auto()
    REJECT_NO_CONNECTION = auto()
    REJECT_NO_MEMBER = auto()
    REJECT_ALL_FULL = auto()
    REJECT_LISTENER_FULL = auto()
    REJECT_TOO_BIG = auto()
    REJECT_TTL = auto()
    REJECT_EXPIRED = auto()
    DROP_MALFORMED = auto()
    DROP_FRAGMENT = auto()
    DROP_ICMP = auto()
    DROP_ICMP_UNRELATED = auto()
    DROP_PROTOCOL = auto()
    DROP_SOURCE_ROUTE = auto()
    DROP_TTL = auto()
    DROP_TOO_BIG = auto()
    DROP_NO_CONNECTION = auto()
    DROP_NO_NEXT_HOP = auto()
    DROP_NOT_OPENED = auto()
    DROP_HALF_OPEN = auto()
    DROP_ACCESS = auto()
    DROP_SOURCE_RATE = auto()
    DROP_LISTENER_RATE = auto()
    DROP_INDEX_FULL = auto()
    DROP_ERROR_RATE = auto()
    DROP_NO_ROAD = auto()


class Road(IntEnum):
    """The programs beside the first one."""

    UNCOMMON = 0
    OPEN = auto()
    ICMP = auto()
    REJECT = auto()
    RECLAIM = auto()


class Role(IntEnum):
    """What an address of ours is for."""

    VIP = 1
    SNAT = 2


class Phase(IntEnum):
    """The phase of a slot; SYN_SENT to CLOSING are the open connections."""

    FREE = 0
    BUSY = auto()
    CANCELLED = auto()
    PENDING = auto()
    SYN_SENT = auto()
    SYN_RECEIVED = auto()
    ESTABLISHED = auto()
    CLOSING = auto()
    CLOSED = auto()
    EXPIRED = auto()

    @property
    def is_half_open(self) -> bool:
        """Whether the handshake is under way."""
        return self in (Phase.SYN_SENT, Phase.SYN_RECEIVED)

    @property
    def is_open(self) -> bool:
        """Whether a connection in this phase counts against the ceiling."""
        return Phase.SYN_SENT <= self <= Phase.CLOSING


class SweepMode(IntEnum):
    """What a sweep ends."""

    EXPIRED = 0
    ENDPOINT = auto()
    ORPHANS = auto()
    REMOVED = auto()
    DRAINED = auto()
    KILLED = auto()


class EventKind(IntEnum):
    """What is reported of connections."""

    OPENED = 0
    CLOSED = auto()
    REJECTED = auto()
    LOST = auto()
    WITHHELD = auto()


class Ending(IntEnum):
    """Why a connection is over; from EXPIRED on by the sweep, in the order of its modes."""

    CLIENT_FIN = 0
    MEMBER_FIN = auto()
    CLIENT_RST = auto()
    MEMBER_RST = auto()
    EXPIRED = auto()
    ENDPOINT_REMOVED = auto()
    LISTENER_REMOVED = auto()
    MEMBER_REMOVED = auto()
    DRAINED = auto()
    KILLED = auto()


class PoolWord(IntEnum):
    """The words of a pool's header."""

    MEMBERS = 0
    TURNS = auto()
    ALGORITHM = auto()
    PERSISTENCE = auto()


class Algorithm(IntEnum):
    """How a pool's members are chosen among, in its header."""

    ROUND_ROBIN = 0
    LEAST_CONNECTIONS = auto()
    SOURCE_IP = auto()
    SOURCE_IP_PORT = auto()


class Access(IntEnum):
    """Whom a listener serves."""

    ALL = 0
    ALLOW = auto()
    DENY = auto()


STATE_TOLD_CLIENT = 0x800
STATE_TOLD_MEMBER = 0x1000
STATE_GENERATION = 0x10000
TICK_SHIFT = 4
SWEEP_SLICE = 64
UNSWEPT = 10
RECLAIM_SLICE = 32
EVENTS_SIZE = 16777216
REJECTION_INTERVAL = 1000000
MAX_LISTENERS = 16384  # and pools
BUCKET_ENTRIES = 8
POOL_WORDS = 8
WORD_TURNS = 4
ACCESS_BITS = 2
RATE_SECOND = 10**9 << 8
NUMBERS = 32768
ROLE_SHIFT = 3
DIRECTORY_STEPS = 4
DIRECTORY_FACTOR = 0x9E3779B97F4A7C15
