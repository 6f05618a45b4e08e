"""What Wireshark makes of a capture: fields of packets, and what its experts find wrong. Unpacked by the Makefile."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

TOOLS = Path("build/bench/tools")
LIBRARIES = TOOLS / f"usr/lib/{platform.machine()}-linux-gnu"
CHECKING = [f"-o{protocol}.check_checksum:TRUE" for protocol in ("ip", "tcp", "udp")]


def tshark(file: Path, *arguments: str) -> str:
    """What it prints."""
    done = subprocess.run(
        [str(TOOLS / "usr/bin/tshark"), "-r", str(file), *CHECKING, *arguments],
        env={**os.environ, "LD_LIBRARY_PATH": str(LIBRARIES)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def wrong_checksums(file: Path) -> list[str]:
    """The numbers of frames with a checksum that is not right, at any depth."""
    bad = " || ".join(f"{protocol}.checksum.status == 0" for protocol in ("ip", "tcp", "udp", "icmp"))
    return tshark(file, "-Y", bad, "-T", "fields", "-e", "frame.number").split()


def checked(file: Path) -> int:
    """How many transport checksums it has looked at, and found right."""
    good = " || ".join(f"{protocol}.checksum.status == 1" for protocol in ("tcp", "udp", "icmp"))
    return len(tshark(file, "-Y", good, "-T", "fields", "-e", "frame.number").split())


def fields(file: Path, *names: str) -> list[dict[str, Any]]:
    """These fields of each frame; each a list of values."""
    asked = [part for name in names for part in ("-e", name)]
    return [one["_source"]["layers"] for one in json.loads(tshark(file, "-T", "json", *asked))]
