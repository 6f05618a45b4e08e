"""The program: compiled, loaded, pinned. What it forwards is in the maps, which it makes or finds pinned."""

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ipbackend.abi import Road
from ipbackend.datapath import syscall
from ipbackend.datapath.clock import epoch_of, timer_frequency
from ipbackend.datapath.compiler import Built, build
from ipbackend.datapath.layout import FILE, SWEEP_ORDERS, Layouts, describe, fingerprint
from ipbackend.datapath.maps import PINS, Maps
from ipbackend.datapath.pins import ENTRY, PROGRAMS, layout_of, mount, write
from ipbackend.datapath.source import bpf_directory, expand
from ipbackend.errors import DatapathError, NotRunningError
from ipbackend.sizing import flow_index_buckets, gateway_slots, sources

SWEEP, GUARD = "ipbackend_sweep", "ipbackend_guard"
ROADS = {road: f"{ENTRY}_{road.name.lower()}" for road in Road}
KINDS = {ENTRY: syscall.XDP, SWEEP: syscall.SCHED_CLS, GUARD: syscall.SCHED_CLS} | dict.fromkeys(
    ROADS.values(), syscall.XDP
)
FIRST = "ipbackend.c"  # includes all others
_BESIDE = "beside"  # the folder of an entry that is attached in place of the first for a while
_UNFINISHED = "unfinished"  # in it: a set that is being pinned


class Loaded:
    """Programs in the kernel that packets go through, from the entry on: descriptors by name."""

    def __init__(self, fds: dict[str, int]) -> None:
        self._fds = fds
        self.entry = fds[ENTRY]

    def join(self, maps: Maps) -> None:
        """Have the entry program, this one or one that is attached, hand packets on to these roads."""
        for road, name in ROADS.items():
            maps["roads"].set(int(road), self._fds[name])

    def lost(self, maps: Maps) -> list[Road]:
        """The roads that packets are not handed on to, or not to ours."""
        ids = {road: syscall.program_id(self._fds[name]) for road, name in ROADS.items()}
        return [road for road, number in ids.items() if maps["roads"].get(int(road)) != number]

    def verified(self) -> dict[str, int]:
        """How many instructions the kernel's verifier went through, by program."""
        return {name: syscall.verified_instructions(fd) for name, fd in self._fds.items()}

    def close(self) -> None:
        """Let go of all descriptors; what is pinned or attached stays."""
        for fd in self._fds.values():
            os.close(fd)


class Program(Loaded):
    """The data plane's programs, loaded and pinned under `run_directory`; maps that are pinned there stay."""

    def __init__(self, run_directory: Path, connections: int, counted: bool = False) -> None:
        """Load for so many `connections` in all, whose packets and bytes are counted or not.

        DatapathError: the maps there are of another layout or size.
        """
        self._pins = run_directory / PINS
        self._home: Path | None = None  # where the programs are pinned
        self._source = bpf_directory()
        buckets = flow_index_buckets(connections)
        mount(self._pins)
        layout = fingerprint((self._source / "abi.h").read_text() + (self._source / "maps.h").read_text())
        _clear_leftovers(run_directory)
        self._refuse_other_maps(run_directory, layout, buckets)
        self._text = expand(self._source / FIRST)
        counted_slots = gateway_slots(connections) if counted else 1
        self._macros = {
            "__LINUX_BPF_H__": "",  # BCC has its own copy of bpf.h: the only one
            "PIN_DIRECTORY": f'"{self._pins}"',
            "FLOW_INDEX_BUCKETS": buckets,
            "SLOTS": gateway_slots(connections),
            "SOURCES": sources(connections),
            "COUNTED_SLOTS": counted_slots,
            "HZ": timer_frequency(),
        }
        _let_go_of_counts(self._pins, counted_slots)
        self._made_of = f"{fingerprint(f'{self._text} {self._macros}'):08x}"
        super().__init__(self._pinned() or self._load(run_directory, layout))
        self.sweep, self.guard = self._fds[SWEEP], self._fds[GUARD]

    def set_clock(self, maps: Maps) -> None:
        """Write down which tick it is now, for whoever reads what was seen when."""
        hz, at = timer_frequency(), time.monotonic_ns()
        _, swept, _ = syscall.run(self.sweep, SWEEP_ORDERS.pack(*[0] * 7))
        settings = maps["gateway"].memory()[0]
        settings.hz, settings.epoch = hz, epoch_of(SWEEP_ORDERS.unpack(swept)[6], at, hz)

    def variant(self, instead: Mapping[str, str], kinds: Mapping[str, int], maps: Sequence[str] = ()) -> Built:
        """The same on the same maps, with other files in place of some: these programs, and maps of their own.

        DatapathError: they cannot be compiled or loaded.
        """
        if expand(self._source / FIRST) != self._text:
            raise DatapathError(f"{self._source}: changed since it was loaded (restart the daemon first)")
        return build(expand(self._source / FIRST, instead), self._macros, kinds, maps)

    def pin(self) -> None:
        """Have later runs know these programs, all at once; before any of them is attached, or nobody would."""
        if self._home:
            return
        unfinished = self._folder(_UNFINISHED)
        for name, fd in self._fds.items():
            syscall.pin(fd, str(unfinished / name))
        self._home = unfinished.rename(unfinished.with_name(f"{self._made_of}_{secrets.token_hex(4)}"))

    @property
    def pinned(self) -> bool:
        """Whether later runs know all of these programs."""
        home = self._home
        return home is not None and all((home / name).exists() for name in self._fds)

    def pin_again(self) -> None:
        """Somebody took pins away."""
        before, self._home = self._home, None
        self.pin()
        if before:
            _remove(before)

    def forget_others(self) -> None:
        """No other programs are attached any more."""
        for path in (self._pins / PROGRAMS).iterdir():
            if path != self._home:
                _remove(path)

    def pin_beside(self, other: Loaded) -> None:
        """Have later runs know other programs' entry as ours; they replace it by their own."""
        syscall.pin(other.entry, str(self._folder(_BESIDE) / ENTRY))

    def unpin_beside(self) -> None:
        """It is not attached any more."""
        _remove(self._pins / PROGRAMS / _BESIDE)

    def _folder(self, name: str) -> Path:
        """An empty one among those of the programs."""
        folder = self._pins / PROGRAMS / name
        _remove(folder)
        folder.mkdir(parents=True)
        return folder

    def _pinned(self) -> dict[str, int]:
        """The programs that an earlier run has made of the same, if they go by the maps that are pinned."""
        maps = {_id_of_map(self._pins / name) for name in _pinned_maps(self._pins)}
        for folder in sorted((self._pins / PROGRAMS).glob(f"{self._made_of}_*")):
            fds = {path.name: syscall.open_pin(str(path)) for path in folder.iterdir()}
            if fds.keys() == KINDS.keys() and all(maps.issuperset(syscall.program_maps(fd)) for fd in fds.values()):
                self._home = folder
                return fds
            for fd in fds.values():
                os.close(fd)
        return {}

    def _load(self, run_directory: Path, layout: int) -> dict[str, int]:
        """Compile and load them; of what is refused halfway, nothing remains."""
        before = _pinned_maps(self._pins)
        try:
            built = build(self._text, self._macros, KINDS)
            write(run_directory / FILE, describe(built.layouts, _pinned_maps(self._pins), layout))
        except BaseException:
            for name in set(_pinned_maps(self._pins)) - set(before):
                (self._pins / name).unlink()
            raise
        return built.programs

    def _refuse_other_maps(self, run_directory: Path, number: int, buckets: int) -> None:
        index = self._pins / "flow_index"
        if not index.exists():
            return
        remedy = "`ipbackend unload`, then run again: its connections end"
        if _layout(run_directory) != number:
            raise DatapathError(f"{self._pins}: maps of another version are loaded ({remedy})")
        fd = syscall.open_pin(str(index))
        have = syscall.map_info(fd).max_entries
        os.close(fd)
        if have != buckets:
            raise DatapathError(
                f"{index}: loaded for another gateway.max_connections, {have} buckets instead of {buckets} ({remedy})"
            )


def _layout(run_directory: Path) -> int | None:
    """The fingerprint of the maps that are pinned there: as is written beside them, else as they say themselves."""
    try:
        return Layouts(run_directory).fingerprint
    except NotRunningError:
        return layout_of(run_directory)


def pinned_program(run_directory: Path, name: str) -> int | None:
    """A descriptor of the program that an earlier run pinned, if there is one."""
    found = sorted((run_directory / PINS / PROGRAMS).rglob(name))
    return syscall.open_pin(str(found[0])) if found else None


def entries(run_directory: Path) -> list[int]:
    """Descriptors of the entry programs that an earlier run may have left attached."""
    return [syscall.open_pin(str(path)) for path in (run_directory / PINS / PROGRAMS).rglob(ENTRY)]


def unpin(run_directory: Path) -> list[str]:
    """Take away all pins and the layouts; the kernel frees what is not attached. Returns the maps' names."""
    pins = run_directory / PINS
    names = _pinned_maps(pins)
    _remove(pins / PROGRAMS)
    for name in names:
        (pins / name).unlink()
    (run_directory / FILE).unlink(missing_ok=True)
    return names


def _clear_leftovers(run_directory: Path) -> None:
    """Some of the maps, and no programs, are of a load or an unload that was killed: no packet goes by them."""
    try:
        whole = {*Layouts(run_directory).names()} <= {*_pinned_maps(run_directory / PINS)}
    except NotRunningError:
        whole = False
    if not whole and not entries(run_directory):
        unpin(run_directory)


def _remove(path: Path) -> None:
    """A pin, or a folder with all that is in it, if it is there."""
    if path.is_dir():
        for one in path.iterdir():
            _remove(one)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _id_of_map(path: Path) -> int:
    fd = syscall.open_pin(str(path))
    try:
        return syscall.map_info(fd).id
    finally:
        os.close(fd)


def _let_go_of_counts(pins: Path, entries: int) -> None:
    """Counts of another size stay with the programs that write to them, until ours take their place."""
    path = pins / "connection_counts"
    if path.exists():
        fd = syscall.open_pin(str(path))
        if syscall.map_info(fd).max_entries != entries:
            path.unlink()
        os.close(fd)


def _pinned_maps(pins: Path) -> list[str]:
    """The names of what is pinned there; with a dot in the name it is the kernel's own."""
    return sorted(path.name for path in pins.glob("*") if path.is_file() and "." not in path.name)
