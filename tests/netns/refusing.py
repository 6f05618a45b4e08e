"""Runs a command to whom the kernel refuses a map: by seccomp, so that whoever makes it meets the real system call.

Run as a program: `refusing.py FILE COMMAND…`. The file holds a number: the how-manieth map from now on is refused with
ENOMEM; 0 is none. It is read anew with every map, and set to 0 when that one has been refused.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}[platform.machine()]
MAP_CREATE = 0
PR_SET_NO_NEW_PRIVS = 38
PR_SET_PDEATHSIG = 1
SET_MODE_FILTER, NEW_LISTENER = 1, 8
ALLOW, USER_NOTIF = 0x7FFF0000, 0x7FC00000
NOTIF_RECV, NOTIF_SEND = 0xC0502100, 0xC0182101
CONTINUE = 1
_libc = ctypes.CDLL(None, use_errno=True)


def ask_us_for_maps() -> int:
    """From here on this thread, and what it starts, makes maps only as the returned descriptor's reader says."""
    load, jump_if_equal, give = 0x20, 0x15, 0x06
    number, command = 0, 16  # where struct seccomp_data has them
    lines = [
        (load, 0, 0, number),
        (jump_if_equal, 0, 3, SYS_BPF),
        (load, 0, 0, command),
        (jump_if_equal, 0, 1, MAP_CREATE),
        (give, 0, 0, USER_NOTIF),
        (give, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("H6xQ", len(lines), ctypes.addressof(code)))
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener = int(_libc.syscall(SYS_SECCOMP, SET_MODE_FILTER, NEW_LISTENER, program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


def decide(listener: int, file: Path) -> None:
    """Until nobody is left who could ask."""
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    while waiting.poll()[0][1] & select.POLLIN:  # without: all who could ask have ended
        asked = array.array("B", bytes(80))
        try:
            fcntl.ioctl(listener, NOTIF_RECV, asked)
        except FileNotFoundError:
            continue  # it was killed while it asked
        left = int(file.read_text() or 0)
        if left:
            file.write_text(str(left - 1))
        (number,) = struct.unpack_from("Q", asked)
        answer = (-errno.ENOMEM, 0) if left == 1 else (0, CONTINUE)
        try:
            fcntl.ioctl(listener, NOTIF_SEND, array.array("B", struct.pack("QqiI", number, 0, *answer)))
        except OSError:
            continue


def main(file: Path, command: list[str]) -> int:
    ours, theirs = socket.socketpair()
    parent = os.getpid()

    def prepare() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        socket.send_fds(theirs, [b"!"], [ask_us_for_maps()])

    process = subprocess.Popen(command, preexec_fn=prepare)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.terminate())
    _, (listener, *_), _, _ = socket.recv_fds(ours, 1, 1)
    decide(listener, file)
    return process.wait()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
