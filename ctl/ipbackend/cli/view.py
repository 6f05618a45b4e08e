"""Where the command line looks: the pinned maps, and the store that a link beside them leads to.

No daemon is asked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipbackend.datapath.maps import Maps
from ipbackend.datapath.tables import Tables
from ipbackend.errors import DatapathError, NotRunningError
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
        yield View(maps, wanted, Tables(maps, _READ_ONLY).read(), drains)
