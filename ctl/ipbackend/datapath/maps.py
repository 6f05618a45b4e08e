"""The pinned maps, typed: read and written by key, or as shared memory. It knows no meaning of what they hold."""

import contextlib
import ctypes
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ipbackend.datapath import syscall
from ipbackend.datapath.clock import Clock
from ipbackend.datapath.compiler import NOT_MADE
from ipbackend.datapath.directory import Directory
from ipbackend.datapath.layout import Layouts, Type
from ipbackend.errors import DatapathError, NotRunningError

PINS = "bpf"
_CLEARED = 1  # entries of the inner map that stands for none: every other has more
_CODES: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}  # of unsigned numbers, by their size
_PIECE = 128  # rows
_PER_CPU_ARRAY, _PROG_ARRAY, _ARRAY_OF_MAPS = 6, 3, 12


@cache
def _cpus() -> int:
    """How many values a per-CPU map gives for each key: one for every possible CPU."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1].split("-")[-1]
    return int(last) + 1


class Memory:
    """An array that is shared with the kernel: `memory[i]` is a live view, not a copy. Rows are `step` bytes apart."""

    def __init__(self, shared: mmap.mmap, kind: Type, first: int, entries: int) -> None:
        self.step = -(-ctypes.sizeof(kind) // 8) * 8  # the kernel rounds an array's values up to 8 bytes
        self._mmap = shared
        self._kind = kind
        self._start = self.step * first
        self.bytes = memoryview(shared)[self._start : self._start + self.step * entries]

    @classmethod
    def of(cls, fd: int, kind: Type, entries: int) -> "Memory":
        """All of an mmapable array."""
        step = -(-ctypes.sizeof(kind) // 8) * 8
        return cls(syscall.map_memory(fd, step * entries), kind, 0, entries)

    def part(self, first: int, entries: int) -> "Memory":
        """Some rows of it, numbered from 0 anew."""
        return Memory(self._mmap, self._kind, self._start // self.step + first, entries)

    def __len__(self) -> int:
        return len(self.bytes) // self.step

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        value = self._kind.from_buffer(self._mmap, self._start + index * self.step)
        return value if issubclass(self._kind, ctypes.Structure) else value.value

    def write(self, index: int, raw: bytes) -> None:
        """Put a row in place."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        self.bytes[index * self.step : index * self.step + len(raw)] = raw

    def column(self, field: str) -> memoryview:
        """One byte a row: the lowest byte of a field, for scanning many rows at once."""
        return self.bytes[getattr(self._kind, field).offset :: self.step]

    def values(self, field: str) -> memoryview:
        """A field of every row; its size is a power of two, and it lies at a multiple of it."""
        its = getattr(self._kind, field)
        return self.bytes.cast(_CODES[its.size])[its.offset // its.size :: self.step // its.size]


class Map:
    """One pinned map.

    `there`: of a map of maps, by key, whether it may have an inner one. To look costs as much as to set: before Linux
    6.8 the kernel waits for packets under way each time, some 10 ms.
    """

    def __init__(self, name: str, fd: int, key: Type, leaf: Type) -> None:
        self.name = name
        self.fd = fd
        self.key = key
        self.leaf = leaf
        self.info = syscall.map_info(fd)
        self._memory: Memory | None = None
        self.there = memoryview(b"")

    @property
    def holds_maps(self) -> bool:
        """Whether its values are maps."""
        return self.info.type == _ARRAY_OF_MAPS

    def get(self, key: Any) -> Any:
        """The value, or None; of a per-CPU map the list of all CPUs' values; of a map of maps an id."""
        cpus = _cpus() if self.info.type == _PER_CPU_ARRAY else 1
        step = -(-self.info.value_size // 8) * 8 if cpus > 1 else self.info.value_size
        raw = syscall.lookup(self.fd, self._packed(key), max(step * cpus, self.info.value_size))
        if raw is None:
            return None
        if self.holds_maps or self.info.type == _PROG_ARRAY:
            return int.from_bytes(raw[:4], "little")
        values = [self._unpacked(raw[cpu * step :]) for cpu in range(cpus)]
        return values if self.info.type == _PER_CPU_ARRAY else values[0]

    def columns(self, rows: int, first: int = 0) -> dict[str, list[int]]:
        """Of so many rows of a per-CPU array each field (64 bits) row by row, all CPUs together."""
        names = self.leaf.names() if issubclass(self.leaf, ctypes.Structure) else [self.name]
        cpus, fields = _cpus(), len(names)
        words = memoryview(syscall.lookup_many(self.fd, first, rows, 8 * fields * cpus)).cast("Q")
        return {
            name: list(map(sum, zip(*(words[at + cpu * fields :: cpus * fields] for cpu in range(cpus)), strict=True)))
            for at, name in enumerate(names)
        }

    def rows_in_use(self) -> Iterator[int]:
        """The rows of a per-CPU array that are not all 0: looked for in pieces, as nearly all are."""
        size = self.info.value_size * _cpus()
        raw = memoryview(syscall.lookup_many(self.fd, 0, self.info.max_entries, size))
        for start in range(0, self.info.max_entries, _PIECE):
            if raw[start * size : (start + _PIECE) * size] != bytes(_PIECE * size):
                rows = range(start, min(start + _PIECE, self.info.max_entries))
                yield from (row for row in rows if any(raw[row * size : (row + 1) * size]))

    def put_row(self, row: int, numbers: Iterable[int]) -> None:
        """Have a per-CPU array's row hold these numbers in all, by field: the first CPU's, and 0 of the others."""
        numbers = list(numbers)
        raw = struct.pack(f"{len(numbers)}Q", *numbers)
        syscall.update(self.fd, self._packed(row), raw.ljust(len(raw) * _cpus(), b"\0"))

    def set(self, key: Any, value: Any) -> None:
        """Write an entry; of a map of maps or programs the value is a file descriptor."""
        raw = bytes(ctypes.c_uint32(value)) if isinstance(value, int) else bytes(value)
        if self._is_memory and isinstance(key, int):
            self.memory().write(key, raw)
        else:
            syscall.update(self.fd, self._packed(key), raw)

    def set_inner(self, inner: dict[int, int]) -> None:
        """Put fresh inner maps, by key and descriptor, in place at once; closes the descriptors."""
        for key in inner if self.there else ():
            self.there[key] = 1
        try:
            syscall.update_batch(self.fd, list(inner), list(inner.values()))
        finally:
            for fd in set(inner.values()):
                os.close(fd)

    def clear_inner(self, keys: list[int]) -> None:
        """Let go of inner maps: one of a single entry takes their place, and counts as none.

        To delete them would have the kernel wait for packets once for each, 10 ms or more.
        """
        self.set_inner(dict.fromkeys(keys, self.new_inner(_CLEARED)))
        for key in keys if self.there else ():
            self.there[key] = 0

    def delete(self, key: Any) -> bool:
        """Whether there was such an entry."""
        return syscall.delete(self.fd, self._packed(key))

    def items(self) -> Iterator[tuple[Any, Any]]:
        """All entries that exist, by one system call or two each."""
        if self.there:
            yield from ((key, self.get(key)) for key, one in enumerate(self.there) if one and self.inner_size(key))
            return
        size = self.info.key_size
        raw = syscall.next_key(self.fd, None, size)
        while raw is not None:
            key = self.key.from_buffer_copy(raw)
            value = self.get(key)
            if value is not None:
                yield _content(key), value
            raw = syscall.next_key(self.fd, raw, size)

    def all_keys(self) -> list[Any]:
        """The keys of all entries that exist, by few system calls."""
        size = self.info.key_size
        raw = syscall.lookup_keys(self.fd, size, self.info.value_size)
        return [self.key.from_buffer_copy(raw, at) for at in range(0, len(raw), size)]

    def values(self) -> Iterator[Any]:
        """The values of all entries that exist."""
        return (value for _, value in self.items())

    def memory(self) -> Memory:
        """An mmapable array's own memory; mapped once and kept."""
        if self._memory is None:
            self._memory = Memory.of(self.fd, self.leaf, self.info.max_entries)
        return self._memory

    def inner(self, key: int) -> Memory | None:
        """The memory of the inner array of a map of maps, or None where there is none."""
        with self._inner(key) as (fd, entries):
            return Memory.of(fd, self.leaf, entries) if entries > _CLEARED else None

    def inner_size(self, key: int) -> int:
        """The entries of the inner array, or 0 where there is none."""
        with self._inner(key) as (_, entries):
            return entries if entries > _CLEARED else 0

    @contextlib.contextmanager
    def _inner(self, key: int) -> Iterator[tuple[int, int]]:
        """The inner array's descriptor and its number of entries."""
        number = self.get(key)
        if number is None:
            yield -1, 0
            return
        fd = syscall.map_by_id(number)
        try:
            yield fd, syscall.map_info(fd).max_entries
        finally:
            os.close(fd)

    def new_inner(self, entries: int, content: bytes = b"") -> int:
        """The descriptor of a fresh inner array, not in the map yet: for `set_inner`. It begins with `content`.

        DatapathError: the kernel has no memory for it.
        """
        flags = syscall.F_INNER_MAP | syscall.F_MMAPABLE
        try:
            fd = syscall.map_create(syscall.ARRAY, 4, ctypes.sizeof(self.leaf), entries, flags, self.name)
        except OSError as error:
            raise DatapathError(f"map {self.name}: {NOT_MADE.format(error.strerror)}") from error
        if content:
            Memory.of(fd, self.leaf, entries).bytes[: len(content)] = content
        return fd

    def _packed(self, key: Any) -> bytes:
        return bytes(self.key(key) if isinstance(key, int) else key)

    def _unpacked(self, raw: bytes) -> Any:
        return _content(self.leaf.from_buffer_copy(raw))

    @property
    def _is_memory(self) -> bool:
        return self.info.type == syscall.ARRAY and bool(self.info.flags & syscall.F_MMAPABLE)


def _content(value: Any) -> Any:
    return value if isinstance(value, ctypes.Structure) else value.value


class Maps:
    """All maps of the data plane that is loaded under `run_directory`; a context manager that closes them."""

    def __init__(self, run_directory: Path) -> None:
        layouts = Layouts(run_directory)
        self.layout = layouts.text
        self.fingerprint = layouts.fingerprint
        self._maps: dict[str, Map] = {}
        for name in layouts.names():
            path = run_directory / PINS / name
            try:
                fd = syscall.open_pin(str(path))
            except FileNotFoundError:
                self.close()
                raise NotRunningError(f"{path}: no data plane is loaded (start one: `ipbackend run`)") from None
            self._maps[name] = Map(name, fd, *layouts.types(name))
        self._maps["pools"].there = self._maps["cursors"].memory().values("there")

    def __getitem__(self, name: str) -> Map:
        return self._maps[name]

    @property
    def clock(self) -> Clock:
        """What the ticks in connections mean."""
        settings = self._maps["gateway"].memory()[0]
        return Clock(settings.epoch, settings.hz)

    @property
    def seconds_unswept(self) -> float | None:
        """How long ago a controller last ended what is silent for too long; None: none ever did."""
        swept = self._maps["gateway"].memory()[0].swept
        return self.clock.seconds_since(swept) if swept else None

    def directory(self, name: str) -> Directory:
        """One of the maps that tell what an address, a port and a protocol are to us."""
        return Directory(name, self._maps[name].memory().bytes.cast("Q"))

    def of_endpoint(self, name: str, endpoint: int) -> Memory:
        """The endpoint's part of `conntrack` or `free_slots`; empty where there is no such endpoint."""
        its = self._maps["endpoints"].memory()[endpoint]
        return self._maps[name].memory().part(its.first, its.slots)

    def __iter__(self) -> Iterator[Map]:
        return iter(self._maps.values())

    def __contains__(self, name: str) -> bool:
        return name in self._maps

    def __enter__(self) -> "Maps":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors; memory that is still in use stays mapped."""
        for one in self._maps.values():
            os.close(one.fd)
        self._maps.clear()
