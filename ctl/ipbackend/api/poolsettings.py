"""What a pool is told, and tells, in objects, each of which is one field of the model. It knows no requests."""

from typing import Annotated, Any, ClassVar, Literal

from ipbackend.api.base import Body, Changes, Flag, Shown, number
from ipbackend.errors import ConfigurationError
from ipbackend.model import Pool

FIELDS = {  # of the model, by what they are called here
    "session_persistence": "persistence",
    "slow_start": "slow_start",
    "connection_drain": "connection_drain",
    "pool_health": "minimum_healthy",
}
PERSISTENCE = 1  # minutes, unless said otherwise
SLOW_START = 30  # seconds, unless said otherwise


class Setting(Changes):
    """One field of the model; AMOUNT is the number in it, and `DEFAULT` what it is unless said otherwise."""

    AMOUNT: ClassVar[str]
    DEFAULT: ClassVar[int | None]

    def kept(self, before: int | None) -> int | None:
        """What the model has of it; what is not said stays as `before`."""
        amount: int | None = getattr(self, self.AMOUNT)
        return amount if self.AMOUNT in self.model_fields_set else before or self.DEFAULT


class Switched(Setting):
    """One that is on or off."""

    enable: Flag = False

    def kept(self, before: int | None) -> int | None:
        """The same, or none if it is off. ConfigurationError: nobody said how much."""
        if not (self.enable if "enable" in self.model_fields_set else before):
            return None
        amount = super().kept(before)
        if amount is None:
            raise ConfigurationError(f"{self.AMOUNT}: is missing (write it: there is no default)")
        return amount


class Persistence(Setting):
    """A client's address stays with its member for so many minutes. At L4 there is no other type."""

    AMOUNT = "persistence_timeout"
    DEFAULT = PERSISTENCE

    type: Literal["SOURCE_IP"] = "SOURCE_IP"
    persistence_timeout: Annotated[int, number(Pool, "persistence")] = PERSISTENCE
    cookie_name: None = None


class SlowStart(Switched):
    """A member that comes up gets its share in so many seconds."""

    AMOUNT = "duration"
    DEFAULT = SLOW_START

    duration: Annotated[int, number(Pool, "slow_start")] = SLOW_START


class ConnectionDrain(Switched):
    """Connections of a member that is gone live on for so many seconds."""

    AMOUNT = "timeout"
    DEFAULT = None

    timeout: Annotated[int, number(Pool, "connection_drain")] = 0


class PoolHealth(Setting):
    """With 1, all members get connections while all are down."""

    AMOUNT = "minimum_healthy_member_count"
    DEFAULT = 0

    minimum_healthy_member_count: Annotated[int, number(Pool, "minimum_healthy")] = 0


class PoolSettings(Body):
    """What a pool is told; null is off."""

    session_persistence: Persistence | None = None
    slow_start: SlowStart | None = None
    connection_drain: ConnectionDrain | None = None
    pool_health: PoolHealth | None = None

    def wanted(self, before: Pool | None = None) -> dict[str, Any]:
        """What was sent, all other fields included, as the model has it; `before` is the pool as it is."""
        given = self.fields_given()
        for name, field in FIELDS.items():
            if name in given:
                setting: Setting | None = given.pop(name)
                given[field] = setting.kept(getattr(before, field, None)) if setting else getattr(Pool, field)
        return given


class PersistenceShown(Shown):
    """Minutes."""

    type: Literal["SOURCE_IP"] = "SOURCE_IP"
    persistence_timeout: int
    cookie_name: None = None


class SlowStartShown(Shown):
    """Seconds; those by default while it is off."""

    enable: bool
    duration: int


class ConnectionDrainShown(Shown):
    """Seconds; none while it is off."""

    enable: bool
    timeout: int | None


class PoolHealthShown(Shown):
    """1: all members get connections while all are down."""

    minimum_healthy_member_count: int


class SettingsShown(Shown):
    """What a pool tells; there is no object for persistence that is off."""

    session_persistence: PersistenceShown | None
    slow_start: SlowStartShown
    connection_drain: ConnectionDrainShown
    pool_health: PoolHealthShown


def settings_shown(one: Pool) -> dict[str, Any]:
    """The fields of SettingsShown."""
    return {
        "session_persistence": PersistenceShown(persistence_timeout=one.persistence) if one.persistence else None,
        "slow_start": SlowStartShown(enable=one.slow_start is not None, duration=one.slow_start or SLOW_START),
        "connection_drain": ConnectionDrainShown(enable=one.connection_drain is not None, timeout=one.connection_drain),
        "pool_health": PoolHealthShown(minimum_healthy_member_count=one.minimum_healthy),
    }
