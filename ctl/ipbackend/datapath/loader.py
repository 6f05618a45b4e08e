"""The program: compiled, loaded, pinned. What it forwards is in the maps, which it makes or finds pinned."""

import ctypes
import os
import tempfile
from pathlib import Path

from bcc import BPF

from ipbackend.abi import Road
from ipbackend.datapath import syscall
from ipbackend.datapath.headers import make_header_tree
from ipbackend.datapath.layout import FILE, Layouts, describe, fingerprint
from ipbackend.datapath.maps import PINS, Maps
from ipbackend.datapath.source import bpf_directory, expand
from ipbackend.errors import DatapathError
from ipbackend.sizing import flow_index_buckets

ENTRY, SWEEP = "ipbackend", "ipbackend_sweep"
ROADS = {Road.OPEN: "ipbackend_open", Road.ICMP: "ipbackend_icmp", Road.FRAGMENT: "ipbackend_fragment"}
PROGRAMS = "programs"  # the folder of their pins, beside the maps'
_BPFFS_MAGIC = 0xCAFE4A11


class Program:
    """The data plane's programs, loaded and pinned under `run_directory`; maps that are pinned there stay."""

    def __init__(self, run_directory: Path, connections: int) -> None:
        """Load for so many `connections` in all. DatapathError: the maps there are of another layout or size."""
        self._pins = run_directory / PINS
        source = bpf_directory()
        buckets = flow_index_buckets(connections)
        _mount_bpffs(self._pins)
        number = fingerprint((source / "abi.h").read_text() + (source / "maps.h").read_text())
        self._refuse_other_maps(run_directory, number, buckets)
        self._bpf = self._compile(source, buckets)
        names = _pinned_maps(self._pins)
        temporary = run_directory / f"{FILE}.tmp"
        temporary.write_text(describe(self._bpf, names, number))
        temporary.rename(run_directory / FILE)
        self.entry = self._load(ENTRY, BPF.XDP)
        self.sweep = self._load(SWEEP, BPF.SCHED_CLS)
        self._roads = {road: self._load(name, BPF.XDP) for road, name in ROADS.items()}

    def join(self, maps: Maps) -> None:
        """Have the entry program, this one or one that is attached, hand packets on to these roads."""
        for road, fd in self._roads.items():
            maps["roads"].set(int(road), fd)

    def lost(self, maps: Maps) -> list[Road]:
        """The roads that packets are not handed on to, or not to ours."""
        roads = self._roads.items()
        return [road for road, fd in roads if maps["roads"].get(int(road)) != syscall.program_id(fd)]

    def pin(self) -> None:
        """Keep the programs under their names, in place of those of an earlier run."""
        folder = self._pins / PROGRAMS
        folder.mkdir(exist_ok=True)
        for name, fd in ((ENTRY, self.entry), (SWEEP, self.sweep)):
            fresh = folder / f"{name}_next"
            fresh.unlink(missing_ok=True)
            syscall.pin(fd, str(fresh))
            fresh.rename(folder / name)

    def close(self) -> None:
        """Let go of BCC's descriptors; what is pinned or attached stays."""
        self._bpf.cleanup()

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

    def _compile(self, source: Path, buckets: int) -> BPF:
        with tempfile.TemporaryDirectory(prefix="ipbackend-") as headers:
            os.environ["BCC_KERNEL_SOURCE"] = str(make_header_tree(Path(headers)))
            try:
                return BPF(
                    text=expand(source / "ipbackend.c").encode(),
                    cflags=[
                        "-D__LINUX_BPF_H__",  # BCC has its own copy of bpf.h: the only one
                        f'-DPIN_DIRECTORY="{self._pins}"',
                        f"-DFLOW_INDEX_BUCKETS={buckets}",
                    ],
                )
            except Exception as error:  # BCC raises nothing more specific
                raise DatapathError(f"{source}: BCC does not compile it: {error} (its messages are above)") from error
            finally:
                del os.environ["BCC_KERNEL_SOURCE"]

    def _load(self, name: str, kind: int) -> int:
        try:
            fd: int = self._bpf.load_func(name.encode(), kind).fd
        except Exception as error:  # as above
            raise DatapathError(f"{name}: the kernel does not take it: {error} (its messages are above)") from error
        return fd


def pinned_program(run_directory: Path, name: str) -> int | None:
    """A descriptor of the program that an earlier run pinned, if there is one."""
    try:
        return syscall.open_pin(str(run_directory / PINS / PROGRAMS / name))
    except FileNotFoundError:
        return None


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
