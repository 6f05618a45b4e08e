"""`ipbackend map`: the pinned maps as they are, field by field. For whoever wants the bytes; it names no meaning."""

import ctypes
import os
import socket
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import click

from ipbackend.abi import NUMBERS, ROLE_SHIFT, Phase, Road, Role, Verdict
from ipbackend.cli import output as out
from ipbackend.cli.view import opened
from ipbackend.datapath import syscall
from ipbackend.datapath.directory import parts_of
from ipbackend.datapath.layout import Struct
from ipbackend.datapath.maps import Map, Maps, Memory
from ipbackend.datapath.tables import ip_from_map, protocol_from_map
from ipbackend.errors import ConfigurationError, suggestion

_HASH, _ARRAY, _PROG_ARRAY, _PER_CPU_ARRAY, _LRU_HASH, _LPM_TRIE, _ARRAY_OF_MAPS, _RING = 1, 2, 3, 6, 9, 11, 12, 27
_TYPES = {
    _HASH: "hash",
    _ARRAY: "array",
    _PROG_ARRAY: "prog_array",
    _PER_CPU_ARRAY: "percpu_array",
    _LRU_HASH: "lru_hash",
    _LPM_TRIE: "lpm_trie",
    _ARRAY_OF_MAPS: "array_of_maps",
    _RING: "ringbuf",
}

# What a key or value is called that is no struct.
_KEYS = {
    "addresses": "bucket",
    "conntrack": "slot",
    "endpoints_by_addr": "bucket",
    "flow_index": "bucket",
    "free_slots": "position",
    "listeners_by_addr": "bucket",
    "pools": "row",
    "roads": "road",
    "verdicts": "verdict",
}
_VALUES = {
    "access": "listed",
    "roads": "program",
    "source_dues": "due",
    "verdicts": "packets",
}
_PARTS = ("conntrack", "free_slots")  # each endpoint's part of them follows in a row
_DIRECTORIES = ("addresses", "endpoints_by_addr", "listeners_by_addr")
_PIECE = 64  # rows that are looked at together
_SECRET = "hash_key"  # whoever knows it can aim at one bucket of the flow index


class Row(NamedTuple):
    """A map; a map of maps with its inner ones. `used` is None where an entry cannot be told from an unused one."""

    name: str
    type: str
    key_bytes: int
    value_bytes: int
    entries_max: int
    entries_used: int | None
    memory_bytes: int


class Inner(NamedTuple):
    """A map in a map of maps."""

    id: int
    entries: int
    value_bytes: int
    memory_bytes: int


@click.group("map")
def map_() -> None:
    """The data plane's maps, straight from their pins."""


@map_.command("list")
@out.choice
@click.pass_obj
def list_(run_directory: Path, output: out.Format) -> None:
    """List the maps with their sizes and the memory the kernel says they take.

    Example: ipbackend map list
    """
    with opened(run_directory) as maps:
        out.show_rows(output, Row._fields, [_row(maps, one) for one in maps])


@map_.command()
@click.argument("name")
@click.option("--id", "number", type=int, help="Which one, in a map of maps; or whose part, of an endpoint's.")
@out.choice
@click.pass_obj
def dump(run_directory: Path, name: str, number: int | None, output: out.Format) -> None:
    """Show all entries of map NAME, field by field, and the bytes they are made of.

    Entries of arrays that are all zero are left out; the hash key is a secret and shown as zeros. Of a map of
    maps (pools) the ids are listed, and --id shows one; of conntrack and free_slots it shows an endpoint's part.

    Example: ipbackend map dump conntrack --id 1
    """
    with opened(run_directory) as maps:
        table = _chosen(maps, name, number)
        if table.holds_maps and number is None:
            out.show_rows(output, Inner._fields, _inner(table))
            return
        entries = [_entry(table, key, value) for key, value in _entries(maps, table, number)]
        out.show_rows(output, _columns(table), entries)


def _chosen(maps: Maps, name: str, number: int | None) -> Map:
    if name not in maps:
        raise ConfigurationError(f"{name!r} is not one of the maps ({suggestion(name, (one.name for one in maps))})")
    table = maps[name]
    if table.info.type == _RING:
        raise ConfigurationError(f"{name} is a ring buffer, and the daemon reads it (`ipbackend flow list`)")
    if number is None:
        return table
    if name in _PARTS:
        if not (0 <= number < maps["endpoints"].info.max_entries and maps["endpoints"].memory()[number].slots):
            raise ConfigurationError(f"--id: there is no endpoint {number} (`ipbackend map dump endpoints` lists them)")
        return table
    if not table.holds_maps:
        raise ConfigurationError(f"--id: {name} holds no maps (leave it out)")
    if not (0 <= number < table.info.max_entries and table.get(number)):
        raise ConfigurationError(f"--id: {name} holds no map {number} (`ipbackend map dump {name}` lists them)")
    return table


def _row(maps: Maps, table: Map) -> Row:
    info = table.info
    inner = list(_inner(table)) if table.holds_maps else []
    return Row(
        table.name,
        _TYPES.get(info.type, str(info.type)),
        info.key_size,
        info.value_size,
        info.max_entries,
        len(inner) if table.holds_maps else _used(maps, table),
        _memory(table.fd) + sum(one.memory_bytes for one in inner),
    )


def _used(maps: Maps, table: Map) -> int | None:
    if table.name in _DIRECTORIES:
        return sum(1 for _ in maps.directory(table.name).entries())
    if table.info.flags & syscall.F_MMAPABLE:
        return sum(1 for _ in _nonzero(table.memory()))
    return None if table.info.type in (_PER_CPU_ARRAY, _RING) else sum(1 for _ in table.items())


def _inner(table: Map) -> Iterator[Inner]:
    for number, map_id in table.items():
        try:
            fd = syscall.map_by_id(map_id)
        except FileNotFoundError:  # replaced meanwhile
            continue
        info = syscall.map_info(fd)
        yield Inner(number, info.max_entries, info.value_size, _memory(fd))
        os.close(fd)


def _memory(fd: int) -> int:
    """Bytes, as the kernel counts them (rounded, before Linux 6.4)."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("memlock:")))


def _nonzero(memory: Memory) -> Iterator[int]:
    """Rows that hold anything."""
    step, zeros = memory.step, bytes(memory.step * _PIECE)
    for start in range(0, len(memory), _PIECE):
        piece = bytes(memory.bytes[start * step : (start + _PIECE) * step])
        if piece == zeros[: len(piece)]:
            continue
        for row in range(len(piece) // step):
            if piece[row * step : (row + 1) * step] != zeros[:step]:
                yield start + row


def _entries(maps: Maps, table: Map, number: int | None) -> Iterator[tuple[Any, Any]]:
    """Keys and copies of values; of a per-CPU map the key is (key, CPU)."""
    if table.info.type == _PER_CPU_ARRAY:
        for key, values in table.items():
            yield from (((key, cpu), value) for cpu, value in enumerate(values) if any(bytes(_raw(table.leaf, value))))
        return
    memory = None
    if number is not None:
        memory = maps.of_endpoint(table.name, number) if table.name in _PARTS else table.inner(number)
    if memory is None and table.info.flags & syscall.F_MMAPABLE:
        memory = table.memory()
    if memory is None:
        yield from table.items()
        return
    for row in _nonzero(memory):
        value = table.leaf.from_buffer_copy(memory.bytes, row * memory.step)
        yield row, value if isinstance(value, ctypes.Structure) else value.value


def _columns(table: Map) -> list[str]:
    cpu = ["cpu"] if table.info.type == _PER_CPU_ARRAY else []
    keys = _names(table.key, _KEYS.get(table.name, "id"))
    return [*keys, *cpu, *_names(table.leaf, _VALUES.get(table.name, "value")), "key_raw", "value_raw"]


def _names(kind: Any, scalar: str) -> list[str]:
    return list(kind().as_dict()) if issubclass(kind, Struct) else [scalar]


def _entry(table: Map, key: Any, value: Any) -> list[Any]:
    """The fields of `_columns`."""
    key, cpu = (key[0], [key[1]]) if table.info.type == _PER_CPU_ARRAY else (key, [])
    if isinstance(value, Struct) and _SECRET in value.names():
        setattr(value, _SECRET, (0,) * len(getattr(value, _SECRET)))
    if table.name in _DIRECTORIES:
        readable: list[Any] = [[_named(entry) for entry in value.entry if entry]]
    else:
        readable = _fields(value, _VALUES.get(table.name, "value"))
    return [
        *_fields(key, _KEYS.get(table.name, "id")),
        *cpu,
        *readable,
        bytes(_raw(table.key, key)).hex(),
        bytes(_raw(table.leaf, value)).hex(),
    ]


def _raw(kind: Any, value: Any) -> Any:
    """The ctypes object of a value, to take its bytes."""
    return kind(value) if isinstance(value, int) else value


def _fields(value: Any, scalar: str) -> list[Any]:
    named = value.as_dict() if isinstance(value, Struct) else {scalar: value}
    return [_READABLE[name](content) if name in _READABLE else content for name, content in named.items()]


def _ip(value: int) -> str:
    return str(ip_from_map(value))


def _mac(value: list[int]) -> str:
    return bytes(value).hex(":")


def _protocol(number: int) -> str | int:
    return protocol_from_map(number) if number in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) else number


def _name_in(kind: type[IntEnum]) -> Callable[[int], str | int]:
    return lambda value: kind(value).name if value in list(kind) else value


def _state(value: int) -> str:
    return f"{_name_in(Phase)(value & 0xFF)} {value:#x}"


def _place(entry: int) -> str:
    """An entry of the flow index: tag, and slot among all."""
    return f"{entry >> 32:08x}/{entry & 0xFFFF_FFFF}"


def _named(entry: int) -> str:
    """An entry of a directory: what stands for which number, or which role."""
    address, port, udp = parts_of(entry)
    number = entry & NUMBERS - 1
    if port:
        return f"{ip_from_map(address)}:{socket.ntohs(port)}/{'UDP' if udp else 'TCP'} {number}"
    return f"{ip_from_map(address)} {Role(number >> ROLE_SHIFT).name} {number & (1 << ROLE_SHIFT) - 1}"


# BCC knows a __be32 as an unsigned int: what is an address, a port or a MAC is told by its name.
_READABLE: dict[str, Callable[[Any], Any]] = {
    "address": _ip,
    "client": _ip,
    "vip": _ip,
    "snat": lambda values: [_ip(value) for value in values if value],
    "port": socket.ntohs,
    "client_port": socket.ntohs,
    "vip_port": socket.ntohs,
    "destination": _mac,
    "source": _mac,
    "client_mac": _mac,
    "gateway_mac": _mac,
    "protocol": _protocol,
    "road": _name_in(Road),
    "verdict": _name_in(Verdict),
    "state": _state,
    "entry": lambda values: [_place(value) for value in values if value],
}
