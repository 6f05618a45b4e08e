"""Where the command line looks: the pinned maps, and the store that a link beside them leads to.

No daemon is asked, but for what only a daemon can know: how the members' health is.
"""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ipbackend.cli import resource
from ipbackend.client import Client
from ipbackend.datapath.maps import Maps
from ipbackend.datapath.tables import Tables
from ipbackend.errors import DatapathError, NotRunningError, ServiceError
from ipbackend.store import LINK, Store
from ipbackend.view import View

_READ_ONLY = -1  # in place of the sweep program: nothing is swept here


@contextmanager
def opened(run_directory: Path) -> Iterator[Maps]:
    """The pinned maps. NotRunningError: there are none. DatapathError: they may not be read."""
    try:
        maps = Maps(run_directory)
    except PermissionError as error:
        raise DatapathError(f"{run_directory}: {error.strerror} (maps are read as root: use sudo)") from error
    with maps:
        yield maps


@contextmanager
def looking(run_directory: Path) -> Iterator[View]:
    """A look at the gateway. NotRunningError: nothing is loaded, or nothing applied yet."""
    with opened(run_directory) as maps:
        kept = run_directory / LINK
        if not kept.exists():
            raise NotRunningError(f"{kept}: nothing is applied yet (start the daemon: `ipbackend run`)")
        with Store(kept, read_only=True) as store:
            wanted, drains = store.configuration, store.drains
        yield View(maps, wanted, Tables(maps, _READ_ONLY).read(), drains=drains)


class Told(NamedTuple):
    """What the daemon says of a member: as published; `reason` is a code, and there where it is OFFLINE."""

    health: str
    reason: str | None


def health(run_directory: Path) -> dict[str, Told]:
    """Of every member, by its id; nothing where no daemon answers."""
    with contextlib.suppress(NotRunningError, ServiceError), Client(run_directory) as client:
        rows = resource.rows(client, resource.ALL_MEMBERS)
        return {one["id"]: Told(one["operating_status"], (one["reason"] or {}).get("reason_code")) for one in rows}
    return {}
