"""The programs under other versions of BCC and its compiler: by our own code in a root folder of that release."""

import subprocess

import pytest

from ipbackend.datapath.loader import KINDS

from .images import REPOSITORY, builder

# By the kernel that runs here, whatever VM_KERNEL is; nothing of it outlives the process that the mounts belong to.
IN_THERE = """\
mount --bind "$1" "$1"
mount -t tmpfs tmpfs "$1/tmp"
mkdir "$1/tmp/source"
mount --bind -o ro "$2" "$1/tmp/source"
exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp PYTHONPATH=/tmp/source/ctl \\
	PYTHONDONTWRITEBYTECODE=1 python3 -c "$3"
"""
ALONE = ("unshare", "--mount", "--propagation", "private")
LOAD = """\
import bcc
from ipbackend.datapath.rehearsal import rehearse
print(bcc.__version__, len(rehearse()[0]))
"""


@pytest.mark.parametrize(("release", "version"), [("bookworm", "0.26"), ("trixie", "0.31")])
def test_the_programs_compile_and_load(release: str, version: str) -> None:
    said = subprocess.run(
        [*ALONE, "sh", "-ec", IN_THERE, "sh", builder(release), REPOSITORY, LOAD],
        capture_output=True,
        text=True,
        check=False,
    )

    assert said.returncode == 0, said.stderr[-5000:]
    found, loaded = said.stdout.split()
    assert found.startswith(version)
    assert int(loaded) == len(KINDS)
