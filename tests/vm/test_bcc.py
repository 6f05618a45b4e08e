"""The programs under other versions of BCC and its compiler: compiled in a root folder of that release, and loaded."""

import subprocess
from pathlib import Path

import pytest

from ipbackend.datapath.clock import timer_frequency
from ipbackend.datapath.headers import make_header_tree
from ipbackend.datapath.loader import FIRST, KINDS
from ipbackend.datapath.source import bpf_directory, expand
from ipbackend.sizing import flow_index_buckets, gateway_slots, sources

from .images import builder

CONNECTIONS = 1_000
# By the kernel that runs here, whatever VM_KERNEL is; nothing of it outlives the process that the mounts belong to.
COMPILING = """\
mount -t tmpfs tmpfs "$1/tmp"
mkdir "$1/tmp/bpf" "$1/tmp/source"
mount -t bpf bpf "$1/tmp/bpf"
mount --bind "$2" "$1/tmp/source"
root=$1
shift 2
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp \
	python3 /tmp/source/compiling.py /tmp/source/ipbackend.c /tmp/source/headers "$@"
"""


@pytest.mark.parametrize(("release", "version"), [("bookworm", "0.26"), ("trixie", "0.31")])
def test_the_programs_compile_and_load(release: str, version: str, tmp_path: Path) -> None:
    root = builder(release)
    (tmp_path / "ipbackend.c").write_text(expand(bpf_directory() / FIRST))
    (tmp_path / "compiling.py").write_text(Path(__file__).with_name("compiling.py").read_text())
    make_header_tree(tmp_path / "headers")
    macros = {
        "__LINUX_BPF_H__": "",
        "PIN_DIRECTORY": '"/tmp/bpf"',
        "FLOW_INDEX_BUCKETS": flow_index_buckets(CONNECTIONS),
        "SLOTS": gateway_slots(CONNECTIONS),
        "SOURCES": sources(CONNECTIONS),
        "COUNTED_SLOTS": 1,
        "HZ": timer_frequency(),
    }

    said = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", COMPILING, "sh", root, tmp_path]
        + [f"{name}={value}" for name, value in macros.items()],
        capture_output=True,
        text=True,
        check=False,
    )

    assert said.returncode == 0, said.stderr[-5000:]
    first, *loaded = said.stdout.split()
    assert first.startswith(version)
    assert set(loaded) == set(KINDS)
