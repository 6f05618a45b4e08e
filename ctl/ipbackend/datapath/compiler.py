"""From C to programs in the kernel, by a process that ends with it: BCC is never loaded into ours."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ipbackend.errors import DatapathError

_NOT_MADE = re.compile(r"could not open bpf map: (\S+), error: (.+)")
NOT_MADE = (
    "the kernel does not make it: {} (lower gateway.max_connections, or give the machine or its cgroup more memory: "
    "`ipbackend doctor` counts it)"
)


class Built(NamedTuple):
    """Descriptors of programs and maps by name, for the caller to close; `layouts` of all maps, for layout.py."""

    programs: dict[str, int]
    maps: dict[str, int]
    layouts: dict[str, Any]


def build(text: str, macros: Mapping[str, object], kinds: Mapping[str, int], maps: Sequence[str] = ()) -> Built:
    """Compile `text` and load its programs `kinds`, by name and type; of its maps give out those that are named.

    What it says is written to stderr. DatapathError: it cannot be compiled or loaded.
    """
    order = json.dumps({"text": text, "macros": dict(macros), "kinds": dict(kinds), "maps": list(maps)})
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "ipbackend.datapath.compiling", str(theirs.fileno()), str(os.getpid())]
        try:
            done = subprocess.run(
                command, input=order.encode(), capture_output=True, pass_fds=[theirs.fileno()], check=False
            )
        except OSError as error:
            raise DatapathError(
                f"{sys.executable}: the compiler does not begin: {error.strerror} (`ipbackend doctor`)"
            ) from error
        said = done.stderr.decode(errors="replace")
        sys.stderr.write(said)
        if refused := _NOT_MADE.search(said):
            path, why = refused.groups()
            raise DatapathError(f"map {Path(path).name}: {NOT_MADE.format(why)}")
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            raise DatapathError(
                f"the compiler ended with status {done.returncode} (its messages are above; `ipbackend doctor` says "
                "whether BCC and the machine's memory do)"
            ) from None
        if "refusal" in answer:
            raise DatapathError(answer["refusal"])
        names = answer["descriptors"]
        _, fds, _, _ = socket.recv_fds(ours, 1, len(names), socket.MSG_CMSG_CLOEXEC)
    if len(fds) < len(names):
        for fd in fds:
            os.close(fd)
        raise DatapathError(f"{len(names)} more files cannot be open (raise the limit of open files: LimitNOFILE)")
    by_name = dict(zip(names, fds, strict=True))
    return Built(
        {name: by_name[name] for name in kinds},
        {name: by_name[name] for name in maps},
        answer["layouts"],
    )
