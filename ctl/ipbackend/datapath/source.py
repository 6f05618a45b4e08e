"""The data plane's C as the one text that BCC wants: our own includes expanded in place, `#line` keeping the places.

BCC rewrites map calls only in the text it is handed, not in files that text includes.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from ipbackend.errors import DatapathError

_INCLUDE = re.compile(r'#include "([\w./]+)"\s*')


def bpf_directory() -> Path:
    """Where the C files are: inside the installed package, or beside `ctl/` in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "bpf", package.parent.parent / "bpf"):
        if (candidate / "ipbackend.c").is_file():
            return candidate
    raise DatapathError(f"{package}: the data plane's C files are not installed (reinstall ipbackend)")


def expand(path: Path, instead: Mapping[str, str] | None = None, seen: set[Path] | None = None) -> str:
    """The text of `path` with every `#include "..."` replaced by that file's text, each file once.

    `instead` names files that take the place of others.
    """
    instead = {} if instead is None else instead
    seen = set() if seen is None else seen
    seen.add(path)
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text().splitlines(), 1):
        include = _INCLUDE.fullmatch(line)
        if not include:
            lines.append(line)
            continue
        included = path.parent / instead.get(include[1], include[1])
        if included not in seen:
            lines.append(expand(included, instead, seen))
        lines.append(f'#line {number + 1} "{path.name}"')
    return "\n".join(lines)
