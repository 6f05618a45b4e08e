"""The process that BCC works in: it compiles a program, has the kernel load it, hands that over, and ends.

What a compiler takes of memory ends with it: 40 MB, of which a process that lives on gives back pages but not the
place, so that it fills again. compiler.py begins it and gives it its order.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ipbackend.datapath import syscall
from ipbackend.datapath.features import compiler
from ipbackend.datapath.headers import make_header_tree
from ipbackend.errors import DatapathError

_LOG_LINES = 20  # of what the verifier says, the last ones
_PR_SET_PDEATHSIG = 1
Compiled = Any  # a bcc.BPF


def main(channel: int, parent: int) -> None:
    """One order from standard input; the answer to standard output, and descriptors in its order to `channel`."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    order = json.load(sys.stdin)
    try:
        made = compiled(order["text"], order["macros"])
        fds = load_all(made, order["kinds"])
        fds |= {name: made[name.encode()].map_fd for name in order["maps"]}
    except DatapathError as error:
        print(json.dumps({"refusal": str(error)}))
        return
    socket.send_fds(socket.socket(fileno=channel), [b"."], list(fds.values()))
    print(json.dumps({"descriptors": list(fds), "layouts": layouts(made)}))


def compiled(text: str, macros: Mapping[str, object]) -> Compiled:
    """The maps made, or found pinned, and the programs not loaded yet. DatapathError: BCC is lacking or refuses."""
    try:
        compiler()
        from bcc import BPF
    except (ImportError, OSError) as error:  # OSError: the module is there, its library is not
        raise DatapathError(
            f"bcc: {error} (it is the distribution's: `apt install python3-bpfcc`, for /usr/bin/python3; not PyPI's "
            "bcc; see `ipbackend doctor`)"
        ) from error
    with tempfile.TemporaryDirectory(prefix="ipbackend-") as headers:
        os.environ["BCC_KERNEL_SOURCE"] = str(make_header_tree(Path(headers)))
        try:
            # Without BTF: before Linux 6.3 an inner map that has none is refused where the pattern for it has.
            return BPF(text=text.encode(), cflags=["-g0", *(f"-D{name}={value}" for name, value in macros.items())])
        except Exception as error:  # BCC raises nothing more specific
            raise DatapathError(f"BCC does not compile it: {error} (its messages are above)") from error


def load_all(made: Compiled, kinds: Mapping[str, int]) -> dict[str, int]:
    """Descriptors of these programs, loaded side by side: the kernel goes through each on the CPU that asks it to."""
    with ThreadPoolExecutor() as pool:
        loading = {name: pool.submit(load, made, name, kind) for name, kind in kinds.items()}
    return {name: one.result() for name, one in loading.items()}


def load(made: Compiled, name: str, kind: int) -> int:
    """One program's descriptor. XDP programs take frames of several buffers, which BCC's own loading cannot say."""
    from bcc import lib

    try:
        code, licence = made.dump_func(name.encode()), lib.bpf_module_license(made.module)
    except Exception as error:  # BCC raises nothing more specific, and ctypes where it is of another version
        raise DatapathError(f"{name}: BCC does not give it: {error} (install BCC 0.26 or later)") from error
    flags = syscall.F_XDP_HAS_FRAGS if kind == syscall.XDP else 0
    try:
        return syscall.program_load(kind, code, licence, flags, name)
    except OSError as error:
        said = "\n".join(str(error.filename or "").splitlines()[-_LOG_LINES:])
        raise DatapathError(f"{name}: the kernel does not take it: {error.strerror}\n{said}") from error


def layouts(made: Compiled) -> dict[str, Any]:
    """Of each map the layouts of its keys and values, as BCC has them."""
    from bcc import lib

    module = ctypes.c_void_p(made.module)
    lib.bpf_table_name.restype = ctypes.c_char_p
    names = [lib.bpf_table_name(module, ctypes.c_size_t(number)) for number in range(lib.bpf_num_tables(module))]
    return {
        name.decode(): {
            "key": json.loads(lib.bpf_table_key_desc(module, name)),
            "leaf": json.loads(lib.bpf_table_leaf_desc(module, name)),
        }
        for name in names
    }


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
