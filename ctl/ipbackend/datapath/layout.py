"""The layouts of keys and values, as BCC reads them from the C structs, kept beside the pins for whoever comes later.

So every reader of pinned maps uses the layout they were made with, without compiling anything.
"""

import ctypes
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

from ipbackend.datapath.compiler import BPF, lib
from ipbackend.errors import DatapathError, NotRunningError

Type = Any  # a ctypes type: BCC builds it at run time, so nothing more can be said
FILE = "layout.json"
SWEEP_ORDERS = struct.Struct("16x7I")  # struct sweep of abi.h
_INNER = {"pools": b"pool_rows"}


def fingerprint(abi: str) -> int:
    """A number that differs where structs, enums or maps do, but not with comments and spaces."""
    code = re.sub(r"/\*.*?\*/", "", abi, flags=re.DOTALL)
    return zlib.crc32(" ".join(code.split()).encode())


def describe(program: BPF, maps: list[str], number: int) -> str:
    """The layouts of a compiled program's maps as text, `number` their fingerprint."""

    def described(name: str) -> dict[str, Any]:
        keys, leaves = name.encode(), _INNER.get(name, name.encode())
        return {
            "key": json.loads(lib.bpf_table_key_desc(program.module, keys)),
            "leaf": json.loads(lib.bpf_table_leaf_desc(program.module, leaves)),
        }

    return json.dumps({"fingerprint": number, "maps": {name: described(name) for name in maps}}, indent=1)


class Layouts:
    """The layouts of one loaded data plane."""

    def __init__(self, run_directory: Path) -> None:
        path = run_directory / FILE
        try:
            self.text = path.read_text()
        except FileNotFoundError:
            raise NotRunningError(f"{path}: no data plane is loaded (start one: `ipbackend run`)") from None
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error
        try:
            content = json.loads(self.text)
            self.fingerprint: int = content["fingerprint"]
            self._maps: dict[str, Any] = content["maps"]
        except (ValueError, KeyError, TypeError) as error:
            raise _unreadable(path, error) from error

    def names(self) -> list[str]:
        """The names of all maps."""
        return sorted(self._maps)

    def types(self, name: str) -> tuple[Type, Type]:
        """A map's key and value; for a map of maps, the key and the inner maps' value."""
        return _decoded(self._maps[name]["key"]), _decoded(self._maps[name]["leaf"])


def _unreadable(path: Path, error: Exception) -> DatapathError:
    what = getattr(error, "strerror", None) or "it is damaged"
    return DatapathError(f"{path}: {what} (`ipbackend unload`, then run again: its connections end)")


def leaf_of(program: BPF, name: bytes) -> Type:
    """The values of one of a compiled program's maps."""
    return _decoded(json.loads(lib.bpf_table_leaf_desc(program.module, name)))


def _decoded(description: Any) -> Type:
    kind = BPF._decode_table_type(description)
    return type(kind.__name__, (Struct, kind), {}) if issubclass(kind, ctypes.Structure) else kind


class Struct:
    """A C struct that takes values by its fields' names and refuses any other name."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        for name, value in values.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.names():
            raise AttributeError(f"struct {type(self).__name__} has no field {name} ({', '.join(self.names())})")
        if isinstance(value, bytes | tuple):
            getattr(self, name)[:] = value
        else:
            super().__setattr__(name, value)

    @classmethod
    def names(cls) -> list[str]:
        """The fields' names."""
        return [field[0] for field in cls._fields_]  # type: ignore[attr-defined]

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, arrays as lists; padding left out."""
        values = {name: getattr(self, name) for name in self.names() if name not in ("pad", "reserved")}
        return {name: list(value) if isinstance(value, ctypes.Array) else value for name, value in values.items()}
