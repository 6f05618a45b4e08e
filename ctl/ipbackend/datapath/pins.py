"""Pins, which let maps and programs outlive their daemon: kept where they are, and made again from what still runs.

It knows neither what is in the maps nor how programs come to be.
"""

import ctypes
import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ipbackend.datapath import syscall
from ipbackend.datapath.layout import FILE
from ipbackend.datapath.maps import PINS, Maps
from ipbackend.datapath.source import bpf_directory
from ipbackend.errors import DatapathError

ENTRY = "ipbackend"
PROGRAMS = "programs"  # the folder of their pins, beside the maps': a folder for each set of them, whole or not there
_BPFFS_MAGIC = 0xCAFE4A11
_SHOWN = 3  # pins that are named
_NAME = 15  # characters of a map's name that the kernel keeps
_FINGERPRINT = 40  # where it is in struct gateway


class Programs(Protocol):
    """Those of one data plane, pinned as a set."""

    entry: int

    @property
    def pinned(self) -> bool:
        """Whether all of them are."""

    def pin_again(self) -> None:
        """Pin all of them."""


class Pins:
    """Those of one data plane that is loaded: its maps', and its programs'."""

    def __init__(self, run_directory: Path, maps: Maps, programs: Programs) -> None:
        """Have all maps live as long as the entry program: packets go through it, pinned or not."""
        self._run_directory = run_directory
        self._maps = maps
        self._programs = programs
        for one in maps:
            syscall.bind_map(programs.entry, one.fd)

    def missing(self) -> list[str]:
        """What others took away, a line each."""
        pins = self._run_directory / PINS
        if not is_bpffs(pins):
            return [f"bpffs missing from {pins}"]
        lacks = [one.name for one in self._maps if not (pins / one.name).exists()]
        lacks += [] if self._programs.pinned else [PROGRAMS]
        lines = [f"pins missing from {pins}: {_some(lacks)}"] if lacks else []
        return lines + ([] if (self._run_directory / FILE).exists() else [f"{self._run_directory / FILE} missing"])

    def put_back(self) -> None:
        """All that is missing. DatapathError: it cannot be."""
        pins = self._run_directory / PINS
        mount(pins)
        with _named(self._run_directory):
            for one in self._maps:
                if not (pins / one.name).exists():
                    syscall.pin(one.fd, str(pins / one.name))
            if not self._programs.pinned:
                self._programs.pin_again()
            if not (self._run_directory / FILE).exists():
                write(self._run_directory / FILE, self._maps.layout)


def rescue(run_directory: Path, attached: Iterable[int]) -> bool:
    """Pin again what runs without pins: the maps of an entry program of ours among those `attached`, by their ids.

    False: there is no such program, or all pins are there. DatapathError: another daemon holds it.
    """
    pins = run_directory / PINS
    names = {name[:_NAME]: name for name in re.findall(r'PINNED\("[^"]+", "(\w+)"\)', _maps_h())}
    if all((pins / name).exists() for name in names.values()):
        return False
    found = False
    for number in dict.fromkeys(attached):
        program = syscall.program_by_id(number)
        try:
            if syscall.program_name(program) != ENTRY:
                continue
            _refuse_held(run_directory, number)
            mount(pins)
            with _named(run_directory):
                _pin(program, pins / PROGRAMS / f"rescued_{number}" / ENTRY)
                for name, fd in () if found else _maps_of(program):
                    if name in names:
                        _pin(fd, pins / names[name])
            found = True
        finally:
            os.close(program)
    return found


def layout_of(run_directory: Path) -> int | None:
    """The fingerprint of the layout that the pinned maps were made with, as they have it themselves."""
    try:
        fd = syscall.open_pin(str(run_directory / PINS / "gateway"))
    except FileNotFoundError:
        return None
    with os.fdopen(fd):
        settings = syscall.lookup(fd, bytes(4), syscall.map_info(fd).value_size) or b""
    return int(struct.unpack_from("I", settings, _FINGERPRINT)[0])


def mount(directory: Path) -> None:
    """A bpffs of our own: `ip netns exec` hides /sys/fs/bpf, and some systems do not mount it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatapathError(f"{directory}: cannot be made: {error.strerror} (move away what is there)") from error
    if is_bpffs(directory):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", bytes(directory), b"bpf", 0, b"mode=0700") < 0:
        problem = os.strerror(ctypes.get_errno())
        remedy = (
            f"run as root; under systemd: `systemctl start run-ipbackend-bpf.mount`, or `mount -t bpf bpf {directory}`"
        )
        raise DatapathError(f"{directory}: cannot mount a bpffs: {problem} ({remedy})")


def is_bpffs(directory: Path) -> bool:
    """Whether things can be pinned there."""
    kind = ctypes.create_string_buffer(256)  # struct statfs begins with the magic number
    ctypes.CDLL(None).statfs(bytes(directory), kind)
    return int.from_bytes(kind.raw[:4], "little") == _BPFFS_MAGIC


def write(path: Path, text: str) -> None:
    """The whole file at once, or nothing of it."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    temporary.rename(path)


@contextmanager
def _named(run_directory: Path) -> Iterator[None]:
    """Whatever the kernel refuses there, as an error of ours."""
    try:
        yield
    except OSError as error:
        where = error.filename or run_directory / PINS
        raise DatapathError(
            f"{where}: cannot be pinned: {error.strerror} (see `dmesg`, and the memory left)"
        ) from error


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _pin(fd: int, path: Path) -> None:
    """In place of whatever is pinned there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    syscall.pin(fd, str(path))


def _maps_h() -> str:
    return (bpf_directory() / "maps.h").read_text()


def _maps_of(program: int) -> Iterator[tuple[str, int]]:
    for number in syscall.program_maps(program):
        fd = syscall.map_by_id(number)
        try:
            yield syscall.map_name(fd), fd
        finally:
            os.close(fd)


def _refuse_held(run_directory: Path, program: int) -> None:
    """A daemon that lives keeps its programs open; whose descriptors we may not see is taken for none."""
    wanted = f"prog_id:\t{program}"
    for info in Path("/proc").glob("[0-9]*/fdinfo/*"):
        try:
            held = info.parts[2] != str(os.getpid()) and wanted in info.read_text().splitlines()
        except OSError:
            continue
        if held:
            raise DatapathError(
                f"{run_directory}: our program {program} is attached, and process {info.parts[2]} holds it "
                "(stop that one, or use its run directory)"
            )
