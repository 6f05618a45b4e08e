"""`make install` and `make uninstall` in a root folder of a release, laid over so that nothing of it stays."""

import subprocess
from pathlib import Path

from .images import SYSTEMS, builder
from .packages import checkout, wheels

# No systemd runs there: what it would be asked is left out by the scripts, but for the group.
INSIDE = """\
ip link set lo up
mount -t tmpfs tmpfs "$4"
mkdir "$4/upper" "$4/work" "$4/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$4/upper,workdir=$4/work" "$4/root"
mount --bind "$2" "$4/root/mnt"
mount --bind "$3" "$4/root/media"
mount -t proc proc "$4/root/proc"
mount --rbind /dev "$4/root/dev"
exec chroot "$4/root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/tmp sh -exc '
ln -s /bin/true /usr/sbin/systemd-sysusers && mkdir -p /usr/lib/sysusers.d
find / -xdev -path /tmp -prune -o -path /proc -prune -o -print | sort >/tmp/before
make -s -C /mnt install PIP_NO_INDEX=1 PIP_FIND_LINKS=/media
ipbackend --version
ipbackend check /etc/ipbackend/gateway.toml.example
grep -rlF ipbackend.making /opt/ipbackend/bin && exit 1
make -s -C /mnt install PIP_NO_INDEX=1 PIP_FIND_LINKS=/nowhere && exit 1
ipbackend --version
make -s -C /mnt install PIP_NO_INDEX=1 PIP_FIND_LINKS=/media
ipbackend ips required
make -s -C /mnt uninstall
find / -xdev -path /tmp -prune -o -path /proc -prune -o -print | sort | diff /tmp/before -
'
"""


def test_installed_kept_where_the_next_fails_installed_again_and_removed(kernel: str, tmp_path: Path) -> None:
    source, laid = checkout(tmp_path / "source"), tmp_path / "laid"
    laid.mkdir()
    root = builder(SYSTEMS[kernel].release)

    command = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-ec", INSIDE, "sh"]
    done = subprocess.run(
        [*command, root, source, wheels(kernel), laid],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "No matching distribution" in done.stderr
    assert done.stdout.count("ipbackend, version") == 2
    assert "uninstall: done" in done.stdout
