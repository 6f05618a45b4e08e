"""The program: compiled, loaded, pinned. What it forwards is in the maps, which it makes or finds pinned."""

import ctypes
import os
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ipbackend.abi import Road
from ipbackend.datapath import syscall
from ipbackend.datapath.clock import epoch_of, timer_frequency
from ipbackend.datapath.compiler import BPF, lib
from ipbackend.datapath.headers import make_header_tree
from ipbackend.datapath.layout import FILE, SWEEP_ORDERS, Layouts, describe, fingerprint
from ipbackend.datapath.maps import PINS, Maps
from ipbackend.datapath.source import bpf_directory, expand
from ipbackend.errors import DatapathError, NotRunningError
from ipbackend.sizing import flow_index_buckets, gateway_slots, sources

ENTRY, SWEEP = "ipbackend", "ipbackend_sweep"
ROADS = {road: f"{ENTRY}_{road.name.lower()}" for road in Road}
KINDS = {ENTRY: BPF.XDP, SWEEP: BPF.SCHED_CLS} | dict.fromkeys(ROADS.values(), BPF.XDP)
FIRST = "ipbackend.c"  # includes all others
BESIDE = "ipbackend_beside"  # the pin of an entry that is attached in place of the first for a while
PROGRAMS = "programs"  # the folder of their pins, beside the maps'
_BPFFS_MAGIC = 0xCAFE4A11
_LOG_LINES = 20  # of what the verifier says, the last ones


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
        self._source = bpf_directory()
        buckets = flow_index_buckets(connections)
        _mount_bpffs(self._pins)
        layout = fingerprint((self._source / "abi.h").read_text() + (self._source / "maps.h").read_text())
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
        made_of = fingerprint(f"{self._text} {self._macros}")
        fds = self._pinned() if made_of == _made_of(run_directory) else {}
        super().__init__(fds or self._load(run_directory, layout, made_of))
        self.sweep = self._fds[SWEEP]

    def set_clock(self, maps: Maps) -> None:
        """Write down which tick it is now, for whoever reads what was seen when."""
        hz, at = timer_frequency(), time.monotonic_ns()
        _, swept, _ = syscall.run(self.sweep, SWEEP_ORDERS.pack(*[0] * 7))
        settings = maps["gateway"].memory()[0]
        settings.hz, settings.epoch = hz, epoch_of(SWEEP_ORDERS.unpack(swept)[6], at, hz)

    def variant(self, instead: Mapping[str, str]) -> BPF:
        """The same, compiled on the same maps, with other files in place of some. DatapathError: it cannot be."""
        if expand(self._source / FIRST) != self._text:
            raise DatapathError(f"{self._source}: changed since it was loaded (restart the daemon first)")
        return _compiled(self._source, expand(self._source / FIRST, instead), self._macros)

    def pin(self) -> None:
        """Keep the programs under their names, in place of those of an earlier run."""
        for name, fd in self._fds.items():
            self._pin(name, fd)
        self.unpin_beside()

    def pin_beside(self, other: Loaded) -> None:
        """Have later runs know other programs' entry as ours; they replace it by their own."""
        self._pin(BESIDE, other.entry)

    def unpin_beside(self) -> None:
        """It is not attached any more."""
        (self._pins / PROGRAMS / BESIDE).unlink(missing_ok=True)

    def _pin(self, name: str, fd: int) -> None:
        folder = self._pins / PROGRAMS
        folder.mkdir(exist_ok=True)
        fresh = folder / f"{name}_next"
        fresh.unlink(missing_ok=True)
        syscall.pin(fd, str(fresh))
        fresh.rename(folder / name)

    def _pinned(self) -> dict[str, int]:
        """The programs of an earlier run, all of them or none."""
        fds: dict[str, int] = {}
        for name in KINDS:
            fd = pinned_program(self._pins.parent, name)
            if fd is None:
                for one in fds.values():
                    os.close(one)
                return {}
            fds[name] = fd
        return fds

    def _load(self, run_directory: Path, layout: int, made_of: int) -> dict[str, int]:
        """Compile and load them."""
        compiled = _compiled(self._source, self._text, self._macros)
        temporary = run_directory / f"{FILE}.tmp"
        temporary.write_text(describe(compiled, _pinned_maps(self._pins), layout, made_of))
        temporary.rename(run_directory / FILE)
        fds = load_all(compiled, KINDS)
        compiled.cleanup()
        return fds

    def _refuse_other_maps(self, run_directory: Path, number: int, buckets: int) -> None:
        index = self._pins / "flow_index"
        if not index.exists():
            return
        remedy = "`ipbackend unload`, then run again: its connections end"
        if Layouts(run_directory).fingerprint != number:
            raise DatapathError(f"{self._pins}: maps of another version are loaded ({remedy})")
        fd = syscall.open_pin(str(index))
        have = syscall.map_info(fd).max_entries
        os.close(fd)
        if have != buckets:
            raise DatapathError(
                f"{index}: loaded for another gateway.max_connections, {have} buckets instead of {buckets} ({remedy})"
            )


def _compiled(source: Path, text: str, macros: Mapping[str, object]) -> BPF:
    with tempfile.TemporaryDirectory(prefix="ipbackend-") as headers:
        os.environ["BCC_KERNEL_SOURCE"] = str(make_header_tree(Path(headers)))
        try:
            return BPF(text=text.encode(), cflags=[f"-D{name}={value}" for name, value in macros.items()])
        except Exception as error:  # BCC raises nothing more specific
            raise DatapathError(f"{source}: BCC does not compile it: {error} (its messages are above)") from error
        finally:
            del os.environ["BCC_KERNEL_SOURCE"]


def load_all(compiled: BPF, kinds: Mapping[str, int]) -> dict[str, int]:
    """Descriptors of these programs, loaded side by side: the kernel goes through each on the CPU that asks it to."""
    with ThreadPoolExecutor() as pool:
        loading = {name: pool.submit(load, compiled, name, kind) for name, kind in kinds.items()}
    return {name: one.result() for name, one in loading.items()}


def load(compiled: BPF, name: str, kind: int) -> int:
    """One program's descriptor. XDP programs take frames of several buffers, which BCC's own loading cannot say."""
    try:
        code, licence = compiled.dump_func(name.encode()), lib.bpf_module_license(compiled.module)
    except Exception as error:  # BCC raises nothing more specific, and ctypes where it is of another version
        raise DatapathError(f"{name}: BCC does not give it: {error} (install BCC 0.18 or later)") from error
    flags = syscall.F_XDP_HAS_FRAGS if kind == BPF.XDP else 0
    try:
        return syscall.program_load(kind, code, licence, flags, name)
    except OSError as error:
        said = "\n".join(str(error.filename or "").splitlines()[-_LOG_LINES:])
        raise DatapathError(f"{name}: the kernel does not take it: {error.strerror}\n{said}") from error


def _made_of(run_directory: Path) -> int | None:
    """The fingerprint of what the programs that are pinned there were made of."""
    try:
        return Layouts(run_directory).made_of
    except NotRunningError:
        return None


def pinned_program(run_directory: Path, name: str) -> int | None:
    """A descriptor of the program that an earlier run pinned, if there is one."""
    try:
        return syscall.open_pin(str(run_directory / PINS / PROGRAMS / name))
    except FileNotFoundError:
        return None


def entries(run_directory: Path) -> list[int]:
    """Descriptors of the entry programs that an earlier run may have left attached."""
    found = (pinned_program(run_directory, name) for name in (ENTRY, BESIDE))
    return [fd for fd in found if fd is not None]


def unpin(run_directory: Path) -> list[str]:
    """Take away all pins and the layouts; the kernel frees what is not attached. Returns the maps' names."""
    pins = run_directory / PINS
    names = _pinned_maps(pins)
    for path in [*pins.glob(f"{PROGRAMS}/*"), *(pins / name for name in names)]:
        path.unlink()
    if (pins / PROGRAMS).is_dir():
        (pins / PROGRAMS).rmdir()
    (run_directory / FILE).unlink(missing_ok=True)
    return names


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


def _mount_bpffs(directory: Path) -> None:
    """A bpffs of our own: `ip netns exec` hides /sys/fs/bpf, and some systems do not mount it."""
    libc = ctypes.CDLL(None, use_errno=True)
    directory.mkdir(parents=True, exist_ok=True)
    kind = ctypes.create_string_buffer(256)  # struct statfs begins with the magic number
    libc.statfs(bytes(directory), kind)
    if int.from_bytes(kind.raw[:4], "little") == _BPFFS_MAGIC:
        return
    if libc.mount(b"bpf", bytes(directory), b"bpf", 0, b"mode=0700") < 0:
        problem = os.strerror(ctypes.get_errno())
        raise DatapathError(f"{directory}: cannot mount a bpffs: {problem} (run as root)")
