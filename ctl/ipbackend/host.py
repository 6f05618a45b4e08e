"""What this machine gives a data plane: kernel, BPF, BCC, memory. It only looks, and judges nothing."""

import os
import platform
import resource
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ipbackend.datapath import features
from ipbackend.datapath.headers import make_header_tree
from ipbackend.errors import DatapathError

_UNLIMITED = -1


@dataclass(frozen=True)
class Host:
    """`lacking`: BPF features and why; `bcc` its version, or "" and why in `without_bcc`; memory in bytes.

    `memlock` is -1 without a limit; `jit` is None where no program can be loaded; `clock` "" where it is not told.
    """

    release: str
    cpus: int
    lacking: Mapping[str, str] = field(default_factory=dict)
    tried: int = 0
    bcc: str = ""
    without_bcc: str = ""
    without_headers: str = ""
    memory: int = 0
    memlock: int = _UNLIMITED
    jit: bool | None = None
    bpffs: bool = True
    clock: str = ""
    neighbours: int = 0  # that the kernel keeps at most


def host() -> Host:
    """The machine as it is now."""
    bcc, without_bcc = _compiler()
    return Host(
        platform.release(),
        len(os.sched_getaffinity(0)),
        features.missing(),
        len(features.FEATURES),
        bcc,
        without_bcc,
        _headers(),
        _available(),
        resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        features.jited(),
        "nodev\tbpf" in _read("/proc/filesystems").splitlines(),
        _read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        int(_read("/proc/sys/net/ipv4/neigh/default/gc_thresh3") or 0),
    )


def _compiler() -> tuple[str, str]:
    try:
        return features.compiler(), ""
    except (ImportError, OSError) as error:  # OSError: the module is there, its library is not
        return "", str(error)


def _headers() -> str:
    with tempfile.TemporaryDirectory(prefix="ipbackend-") as directory:
        try:
            make_header_tree(Path(directory))
        except DatapathError as error:
            return str(error).split(" (")[0]
    return ""


def _available() -> int:
    lines = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip("\n")
    except OSError:
        return ""
