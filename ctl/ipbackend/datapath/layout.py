"""The layouts of keys and values, as BCC reads them from the C structs, kept beside the pins for whoever comes later.

So every reader of pinned maps uses the layout they were made with, without compiling anything.
"""

import ctypes
import json
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipbackend.errors import DatapathError, NotRunningError

Type = Any  # a ctypes type: it is built at run time, so nothing more can be said
FILE = "layout.json"
SWEEP_ORDERS = struct.Struct("16x7I")  # struct sweep of abi.h
_INNER = {"pools": "pool_rows"}
_NUMBERS = {
    "unsigned char": ctypes.c_uint8,
    "unsigned short": ctypes.c_uint16,
    "unsigned int": ctypes.c_uint32,
    "unsigned long long": ctypes.c_uint64,
    "int": ctypes.c_int32,
    "long long": ctypes.c_int64,
}


def fingerprint(abi: str) -> int:
    """A number that differs where structs, enums or maps do, but not with comments and spaces."""
    code = re.sub(r"/\*.*?\*/", "", abi, flags=re.DOTALL)
    return zlib.crc32(" ".join(code.split()).encode())


def describe(layouts: Mapping[str, Any], maps: list[str], number: int) -> str:
    """Of all that BCC tells of a program's maps those of `maps`, as text; `number` is their fingerprint."""
    its = {name: layouts[name] | {"leaf": layouts[_INNER.get(name, name)]["leaf"]} for name in maps}
    return json.dumps({"fingerprint": number, "maps": its}, indent=1)


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
        return type_of(self._maps[name]["key"]), type_of(self._maps[name]["leaf"])


def _unreadable(path: Path, error: Exception) -> DatapathError:
    what = getattr(error, "strerror", None) or "it is damaged"
    return DatapathError(f"{path}: {what} (`ipbackend unload`, then run again: its connections end)")


def type_of(description: Any) -> Type:
    """The ctypes type of a key or a value as BCC describes it: a number's name, or a struct's name and its fields."""
    if isinstance(description, str):
        return _NUMBERS[description]
    name, members, how = description
    fields = [(field, type_of(kind) * length[0][0] if length else type_of(kind)) for field, kind, *length in members]
    return type(name, (Struct, ctypes.Structure), {"_pack_": 1 if how == "struct_packed" else 0, "_fields_": fields})


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
