"""The header tree BCC compiles against: UAPI types only, so it serves any kernel and needs no headers package.

BCC asks for the running kernel's source, which gateways often lack. The data plane uses nothing of it, so a
handful of small files and links to the C library's kernel headers (Debian: linux-libc-dev) do instead.
"""

import platform
from pathlib import Path

from ipbackend.errors import DatapathError

_FILES = {
    "include/linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
    "include/linux/types.h": """\
#pragma once
#define __always_inline inline __attribute__((always_inline))
#include <uapi/linux/types.h>
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef __u16 uint16_t;
typedef __u32 uint32_t;
typedef __u64 uint64_t;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
typedef _Bool bool;
enum { false, true };
#define NULL ((void *)0)
""",
    "include/linux/stddef.h": "#include <uapi/linux/stddef.h>\n",
    "include/linux/if.h": "#define IFNAMSIZ 16\n",  # all that icmp.h wants of it
    "include/linux/version.h": """\
#define LINUX_VERSION_CODE 0
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
""",
    "include/linux/log2.h": "",
    "include/asm/page.h": "",
}
_UAPI = Path("/usr/include")


def make_header_tree(directory: Path) -> Path:
    """Write the tree below `directory` and return it; a DatapathError says which package is missing."""
    multiarch = _UAPI / f"{platform.machine()}-linux-gnu" / "asm"  # Debian's place for it
    multiarch = multiarch if multiarch.is_dir() else _UAPI / "asm"
    links = {"linux": _UAPI / "linux", "asm-generic": _UAPI / "asm-generic", "asm": multiarch}
    for name, text in _FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (directory / "include/uapi").mkdir(exist_ok=True)
    for name, target in links.items():
        if not target.is_dir():
            raise DatapathError(f"{target}: no kernel headers of the C library (install linux-libc-dev)")
        (directory / "include/uapi" / name).symlink_to(target)
    return directory
