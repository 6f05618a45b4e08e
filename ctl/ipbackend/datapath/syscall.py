"""bpf(2) as Python calls: maps by file descriptor, pins, test runs. It knows no map of ours and no layout.

BCC compiles, loads and describes; it offers none of this for maps that another process has made. Every call
raises BpfError, which is an OSError as well. Attribute layouts: `union bpf_attr` in linux/bpf.h.
"""

import ctypes
import errno
import mmap
import os
import platform
import struct
from dataclasses import dataclass

from ipbackend.errors import DatapathError

_NUMBER = {"x86_64": 321, "aarch64": 280}[platform.machine()]
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY = 0, 1, 2, 3, 4
_PROG_LOAD, _OBJ_PIN, _OBJ_GET, _PROG_RUN, _PROG_FD_BY_ID, _MAP_FD_BY_ID, _OBJ_INFO = 5, 6, 7, 10, 13, 14, 15
_MAP_LOOKUP_BATCH, _MAP_UPDATE_BATCH, _PROG_BIND_MAP = 24, 26, 35
_BATCH = 4096  # entries that are asked for at a time

ARRAY = 2
XDP, SCHED_CLS = 6, 3  # kinds of programs
F_MMAPABLE = 1 << 10
F_INNER_MAP = 1 << 12
F_XDP_HAS_FRAGS = 1 << 5
_LOG_SIZE = 1 << 24  # bytes that the verifier may say


@dataclass(frozen=True)
class MapInfo:
    """What the kernel says of a map: sizes in bytes, `flags` as given when it was made."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


_NAMES = {
    _MAP_CREATE: "a map cannot be made",
    _MAP_LOOKUP: "a map cannot be read",
    _MAP_UPDATE: "a map cannot be written",
    _MAP_DELETE: "a map cannot be written",
    _MAP_NEXT_KEY: "a map cannot be read",
    _PROG_LOAD: "a program cannot be loaded",
    _OBJ_PIN: "what is loaded cannot be pinned",
    _OBJ_GET: "what is pinned cannot be had",
    _PROG_RUN: "a program cannot be run",
    _MAP_FD_BY_ID: "a map cannot be had",
    _OBJ_INFO: "what is loaded tells nothing of itself",
    _MAP_LOOKUP_BATCH: "a map cannot be read",
    _MAP_UPDATE_BATCH: "a map cannot be written",
}
_REMEDIES = {
    errno.EPERM: "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
    errno.EACCES: "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
    errno.ENOMEM: "the kernel has no memory for it: fewer members, lower ceilings, or a larger machine",
    errno.ENOSPC: "there is no room in it: `ipbackend map list` shows how large it is",
    errno.E2BIG: "there is no room in it: `ipbackend map list` shows how large it is",
    errno.ENOENT: "it is gone, somebody removed it: restart the daemon",
    errno.EMFILE: "too many files are open: raise LimitNOFILE",
    errno.ENFILE: "too many files are open: raise fs.file-max",
}


class BpfError(DatapathError, OSError):
    """The kernel refuses a call: `errno` and `strerror` are its own."""

    def __init__(self, code: int, what: str, said: str | None = None) -> None:
        super().__init__(code, os.strerror(code), said)
        self._what = what

    def __str__(self) -> str:
        remedy = _REMEDIES.get(self.errno or 0, "see `dmesg`; what forwards goes on")
        return f"bpf: {self._what}: {self.strerror} ({remedy})"


class BpfMissingError(BpfError, FileNotFoundError):
    """There is no such entry, pin or map, nor a directory to pin in."""


def _error(code: int, what: str) -> BpfError:
    return (BpfMissingError if code == errno.ENOENT else BpfError)(code, what)


def _call(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    while True:
        result: int = _libc.syscall(_NUMBER, command, attributes, len(attributes))
        if result >= 0:
            return result
        if ctypes.get_errno() != errno.EINTR:  # a signal ends a test run early: again, as PEP 475 has it
            raise _error(ctypes.get_errno(), _NAMES[command])


def _bpf(command: int, attributes: bytes) -> int:
    return _call(command, ctypes.create_string_buffer(attributes, 128))


def _address(buffer: object) -> int:
    return ctypes.addressof(buffer)  # type: ignore[arg-type]


def map_create(
    kind: int, key_size: int, value_size: int, max_entries: int, flags: int, name: str, inner: int = 0
) -> int:
    """A new map's file descriptor; `inner` is that of a map like those that a map of maps is to hold."""
    attributes = struct.pack("5I2I16s", kind, key_size, value_size, max_entries, flags, inner, 0, name.encode()[:15])
    return _bpf(_MAP_CREATE, attributes)


def lookup(fd: int, key: bytes, size: int) -> bytes | None:
    """The value, `size` bytes (all CPUs' for a per-CPU map), or None where there is none."""
    value = ctypes.create_string_buffer(size)
    sought = ctypes.create_string_buffer(key, len(key))
    try:
        _bpf(_MAP_LOOKUP, struct.pack("I4xQQQ", fd, _address(sought), _address(value), 0))
    except FileNotFoundError:
        return None
    return value.raw


def lookup_many(fd: int, first: int, count: int, size: int) -> bytes:
    """The values of an array from entry `first` on by one call, `size` bytes each: all CPUs' for a per-CPU array."""
    before = ctypes.create_string_buffer(struct.pack("I", max(first - 1, 0)), 4)
    last, keys, values = (ctypes.create_string_buffer(length) for length in (4, 4 * count, size * count))
    places = (_address(before) if first else 0, _address(last), _address(keys), _address(values))
    _bpf(_MAP_LOOKUP_BATCH, struct.pack("QQQQIIQQ", *places, count, fd, 0, 0))
    return values.raw


def update(fd: int, key: bytes, value: bytes) -> None:
    """Set or replace an entry; in a map of maps the value is the inner map's file descriptor."""
    at = ctypes.create_string_buffer(key, len(key))
    what = ctypes.create_string_buffer(value, len(value))
    _bpf(_MAP_UPDATE, struct.pack("I4xQQQ", fd, _address(at), _address(what), 0))


def update_batch(fd: int, keys: list[int], values: list[int]) -> None:
    """Set many 32-bit entries; a map of maps waits once for packets under way instead of once for each."""
    at = ctypes.create_string_buffer(struct.pack(f"{len(keys)}I", *keys))
    what = ctypes.create_string_buffer(struct.pack(f"{len(values)}I", *values))
    _bpf(_MAP_UPDATE_BATCH, struct.pack("QQQQIIQQ", 0, 0, _address(at), _address(what), len(keys), fd, 0, 0))


def lookup_keys(fd: int, key_size: int, value_size: int) -> bytes:
    """The keys of all entries, one behind the other."""
    keys = ctypes.create_string_buffer(_BATCH * key_size)
    values = ctypes.create_string_buffer(_BATCH * value_size)
    place = ctypes.create_string_buffer(key_size)
    found, begun, left = [], 0, True
    while left:
        attributes = ctypes.create_string_buffer(
            struct.pack("QQQQIIQQ", begun, _address(place), _address(keys), _address(values), _BATCH, fd, 0, 0), 128
        )
        try:
            _call(_MAP_LOOKUP_BATCH, attributes)
        except FileNotFoundError:
            left = False
        (count,) = struct.unpack_from("I", attributes, 32)
        found.append(keys.raw[: count * key_size])
        begun = _address(place)
    return b"".join(found)


def delete(fd: int, key: bytes) -> bool:
    """Whether there was something to delete."""
    at = ctypes.create_string_buffer(key, len(key))
    try:
        _bpf(_MAP_DELETE, struct.pack("I4xQ", fd, _address(at)))
    except FileNotFoundError:
        return False
    return True


def next_key(fd: int, key: bytes | None, size: int) -> bytes | None:
    """The key after `key`, or the first one, or None at the end."""
    after = ctypes.create_string_buffer(key, size) if key is not None else None
    result = ctypes.create_string_buffer(size)
    try:
        _bpf(_MAP_NEXT_KEY, struct.pack("I4xQQ", fd, _address(after) if after else 0, _address(result)))
    except FileNotFoundError:
        return None
    return result.raw


def pin(fd: int, path: str) -> None:
    """Make a map or program outlive its descriptors, under a path in a bpffs."""
    name = ctypes.create_string_buffer(path.encode())
    _bpf(_OBJ_PIN, struct.pack("QI", _address(name), fd))


def open_pin(path: str) -> int:
    """A descriptor of what is pinned there. FileNotFoundError: nothing is, or there is no directory to pin in."""
    name = ctypes.create_string_buffer(path.encode())
    try:
        return _bpf(_OBJ_GET, struct.pack("QI", _address(name), 0))
    except BpfError as error:
        if error.errno != errno.ENOTDIR:
            raise
        raise BpfMissingError(errno.ENOTDIR, _NAMES[_OBJ_GET]) from None


def map_by_id(number: int) -> int:
    """A descriptor of the map with this id, as a map of maps gives it."""
    return _bpf(_MAP_FD_BY_ID, struct.pack("I", number))


def program_by_id(number: int) -> int:
    """A descriptor of the program with this id, as netlink reports it for an interface."""
    return _bpf(_PROG_FD_BY_ID, struct.pack("I", number))


def bind_map(program_fd: int, map_fd: int) -> None:
    """Have a map live as long as a program does, whether its code uses it or not."""
    _bpf(_PROG_BIND_MAP, struct.pack("III", program_fd, map_fd, 0))


def _info(fd: int, size: int) -> bytes:
    info = ctypes.create_string_buffer(size)
    _bpf(_OBJ_INFO, struct.pack("IIQ", fd, size, _address(info)))
    return info.raw


def map_info(fd: int) -> MapInfo:
    """What the kernel says of a map."""
    return MapInfo(*struct.unpack("6I", _info(fd, 24)))


def map_name(fd: int) -> str:
    """What it was called when it was made: 15 characters at most."""
    return _info(fd, 40)[24:].split(b"\0")[0].decode()


def program_name(fd: int) -> str:
    """What it was called when it was loaded: 15 characters at most."""
    return _info(fd, 80)[64:].split(b"\0")[0].decode()


def program_load(kind: int, instructions: bytes, licence: bytes, flags: int, name: str) -> int:
    """A loaded program's file descriptor. Where the verifier refuses it, the error's filename is what it says."""

    def load(log: ctypes.Array[ctypes.c_char] | None) -> int:
        said = (1, len(log), _address(log)) if log is not None else (0, 0, 0)
        attributes = struct.pack(
            "IIQQIIQII16s",
            kind,
            len(instructions) // 8,
            _address(code),
            _address(terms),
            *said,
            0,
            flags,
            name.encode()[:15],
        )
        return _bpf(_PROG_LOAD, attributes)

    code = ctypes.create_string_buffer(instructions, len(instructions))
    terms = ctypes.create_string_buffer(licence)
    try:
        return load(None)
    except OSError as error:
        log = ctypes.create_string_buffer(_LOG_SIZE)
        try:
            return load(log)
        except OSError:
            said = log.value.decode(errors="replace")
            raise BpfError(error.errno or 0, _NAMES[_PROG_LOAD], said) from None


def program_id(fd: int) -> int:
    """The id of a loaded program, as netlink reports it for an interface."""
    number: int = struct.unpack("II", _info(fd, 8))[1]
    return number


def verified_instructions(fd: int) -> int:
    """How many instructions the verifier went through before it took a program; from a million on it refuses one."""
    number: int = struct.unpack("I", _info(fd, 220)[216:])[0]
    return number


def program_maps(fd: int) -> list[int]:
    """The ids of the maps that a loaded program uses."""
    count = struct.unpack_from("I", _info(fd, 56), 52)[0]
    ids = ctypes.create_string_buffer(4 * count)
    info = ctypes.create_string_buffer(struct.pack("52xIQ", count, _address(ids)), 64)
    _bpf(_OBJ_INFO, struct.pack("IIQ", fd, len(info), _address(info)))
    return list(struct.unpack(f"{count}I", ids.raw))


def jited_size(fd: int) -> int:
    """Bytes of machine code that a loaded program became, 0 where it is interpreted."""
    size: int = struct.unpack("2I8xI", _info(fd, 20))[2]
    return size


def map_memory(fd: int, size: int) -> mmap.mmap:
    """The memory of an mmapable array of `size` bytes, shared with the kernel, for reading and writing."""
    try:
        return mmap.mmap(fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, mmap.MAP_SHARED)
    except OSError as error:
        raise _error(error.errno or 0, "a map cannot be had in memory") from error


def run(fd: int, data: bytes, repeat: int = 1) -> tuple[int, bytes, int]:
    """Run a program on a packet: its return value, the packet as it left it, ns per run.

    With `repeat` every run sees what the one before left of the packet. Releases the GIL meanwhile.
    """
    given = ctypes.create_string_buffer(data, len(data))
    result = ctypes.create_string_buffer(len(data) + 256)
    attributes = ctypes.create_string_buffer(
        struct.pack("IIIIQQII", fd, 0, len(data), len(result), _address(given), _address(result), repeat, 0), 128
    )
    _call(_PROG_RUN, attributes)
    _, value, _, length, _, _, _, duration = struct.unpack_from("IIIIQQII", attributes)
    return value, result.raw[:length], duration
