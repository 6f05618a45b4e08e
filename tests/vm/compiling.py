"""Runs in a root folder of another release, by that release's Python and BCC: all programs compiled and loaded.

python3 compiling.py TEXT HEADERS NAME=VALUE...     prints the version of BCC, and each program that the kernel took
"""

import os
import sys

SWEEP = "ipbackend_sweep"


def main(text: str, headers: str, *macros: str) -> None:
    os.environ["BCC_KERNEL_SOURCE"] = headers
    import bcc
    from bcc import BPF

    with open(text, "rb") as file:  # noqa: PTH123 - Python 3.9
        compiled = BPF(text=file.read(), cflags=[f"-D{macro}" for macro in macros])
    print(bcc.__version__)
    for name in names(compiled):
        kind = BPF.SCHED_CLS if name == SWEEP else BPF.XDP
        compiled.load_func(name, kind)
        print(name)


def names(compiled: "object") -> "list[str]":
    """The functions that were compiled."""
    from bcc import lib

    module = compiled.module  # type: ignore[attr-defined]
    return [lib.bpf_function_name(module, number).decode() for number in range(lib.bpf_num_functions(module))]


if __name__ == "__main__":
    main(*sys.argv[1:])
