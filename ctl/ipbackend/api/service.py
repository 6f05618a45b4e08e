"""What the API asks of whoever serves it. It knows no threads, maps or files: the daemon does, or a test."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from ipbackend.capture import Order
from ipbackend.capturing import Capturing
from ipbackend.changes import Change
from ipbackend.configuration import Configuration
from ipbackend.connections import Target
from ipbackend.drains import NO_DELAYS, Claim, Drains
from ipbackend.edits import Edit
from ipbackend.finding import Finding
from ipbackend.flows.archive import Reader
from ipbackend.flows.keeper import Standing
from ipbackend.health.states import Health
from ipbackend.model import EndpointKey
from ipbackend.store import Revision, Stamp
from ipbackend.view import View

Found = TypeVar("Found")


class Service(Protocol):
    """Looks are immediate; changes wait for their turn, and are kept and applied when they return."""

    @property
    def configuration(self) -> Configuration:
        """What is in force."""

    @property
    def stamps(self) -> Mapping[str, Stamp]:
        """When each resource was made and last changed, by id."""

    @property
    def revision(self) -> int:
        """The number of the last change."""

    @property
    def problem(self) -> str:
        """Why not everything is as wanted, or nothing."""

    @property
    def drift(self) -> list[str]:
        """What others changed, as the last look at the kernel found it."""

    @property
    def unbalanced(self) -> list[str]:
        """Counters that must say the same and do not, a line each."""

    @property
    def audited(self) -> list[str]:
        """Counts, queues and index entries that do not agree with the slots, a line each."""

    @property
    def forwarding(self) -> bool:
        """Whether there is a data plane."""

    @property
    def health(self) -> Mapping[str, Health]:
        """The state of each member that a health monitor asks, by the member's id."""

    async def look(self, read: Callable[[View], Found]) -> Found:
        """What `read` finds in the data plane, while all else goes on. NotRunningError: there is none."""

    @property
    def drains(self) -> Drains:
        """Who drains, and how long yet."""

    @property
    def flow_log(self) -> Standing:
        """How the flow log is."""

    async def recall(self, read: Callable[[Reader], Found]) -> Found:
        """What `read` finds in the flow log, while all else goes on."""

    async def metrics(self) -> str:
        """A Prometheus scrape."""

    async def change(
        self, author: str, edit: Edit, what: str = "", dry_run: bool = False, delays: Mapping[Claim, int] = NO_DELAYS
    ) -> list[Change]:
        """Bring everything to what `edit` makes of what is in force. IpbackendError: refused, nothing changed.

        `delays`, in seconds, are for members that get no connections any more, in place of their pools'.
        """

    async def kill(self, choose: Callable[[View], Iterable[Target]]) -> int:
        """End the connections that `choose` finds, and tell both ends; how many. NotRunningError: no data plane."""

    async def roll_back(self, author: str, number: int) -> list[Change]:
        """Make the state of a revision a new one."""

    async def history(self, limit: int) -> list[Revision]:
        """The last revisions, the newest first."""

    async def changes(self, number: int) -> list[Change]:
        """What a revision changed."""

    async def examine(self, key: EndpointKey) -> Sequence[Finding]:
        """Whether a member that is there, or to be added, is prepared."""

    async def examine_network(self, number: str) -> Sequence[Finding]:
        """Whether the way to a network is prepared."""

    @property
    def capturing(self) -> Capturing | None:
        """The capture that runs."""

    async def capture(self, author: str, order: Order) -> Capturing:
        """Begin a capture. ConfigurationError: another one runs. NotRunningError: nothing forwards."""

    async def end_capture(self, capturing: Capturing) -> None:
        """End it, if it has not ended yet."""
