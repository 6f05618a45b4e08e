"""Our own package in two versions, built for a release in a root folder of that release, and what pip needs offline."""

import os
import shutil
import subprocess
from pathlib import Path

from .images import BUILD, REPOSITORY, SYSTEMS, builder, locked

# The second version's programs are others: one more draw before the schedule is gone through in order.
CHANGE = ("bpf/schedule.h", "#define DRAWS 16", "#define DRAWS 17")
# Nothing of it outlives the build, and nothing is left in the root folder: the mounts are this process's alone.
BUILDING = """\
mount --bind "$2" "$1/mnt"
mount --bind "$3" "$1/media"
mount -t tmpfs tmpfs "$1/tmp"
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/tmp SOURCE_DATE_EPOCH=1700000000 \
	DPKG_DEB_COMPRESSOR_TYPE=none PIP_NO_INDEX=1 PIP_FIND_LINKS=/media make -s -C /mnt deb "VERSION=$4"
"""


def checkout(target: Path) -> Path:
    """The files that are under version control, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, target / name)
    return target


def wheels(kernel: str) -> Path:
    """What an operator brings to a machine without a way to PyPI."""
    python = SYSTEMS[kernel].python
    folder = BUILD / f"wheels-{python}"
    with locked(BUILD / f"{folder.name}.lock"):
        subprocess.run(["make", "-s", "wheels", f"WHEELS={folder}", f"PYTHON={python}"], cwd=REPOSITORY, check=True)
    return folder


def packages(kernel: str, work: Path) -> list[Path]:
    """Version 0.1.0, and 0.1.1 whose programs differ."""
    root, brought = builder(SYSTEMS[kernel].release), wheels(kernel)
    made: list[Path] = []
    for version in ("0.1.0", "0.1.1"):
        source = checkout(work / version)
        if made:
            name, have, want = CHANGE
            text = (source / name).read_text()
            assert have in text
            (source / name).write_text(text.replace(have, want))
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", BUILDING, "sh"]
        subprocess.run([*command, root, source, brought, version], check=True, env=os.environ)
        made += (source / "build/deb").glob("*.deb")
    return made
