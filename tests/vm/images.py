"""What virtual machines boot from: root file systems of Debian releases with their kernels, made once in build/vm."""

import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
BUILD = REPOSITORY / "build" / "vm"
PACKAGES = (
    *("systemd-sysv", "udev", "dbus", "kmod", "iproute2", "nftables", "curl", "make", "wireguard-tools", "ethtool"),
    *("python3", "python3-venv", "python3-bpfcc", "linux-libc-dev", "linux-image-amd64"),
    *("man-db", "bash-completion", "sqlite3"),
)
BUILDER = ("build-essential", "debhelper", "make", "python3", "python3-bpfcc", "python3-venv")
SIZE = "4G"
AGENT = """\
[Unit]
Description=Commands from outside
[Service]
ExecStart=/usr/bin/python3 /usr/local/sbin/agent.py
Restart=always
[Install]
WantedBy=multi-user.target
"""
QUIET = ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "dpkg-db-backup.timer", "fstrim.timer")


@dataclass(frozen=True)
class System:
    """A release, and where its kernel comes from if it is not the release's own."""

    release: str
    python: str
    kernel_suite: str = ""


# By the kernel that is asked for.
SYSTEMS = {
    "6.1": System("bookworm", "3.11"),
    "6.12": System("bookworm", "3.11", "bookworm-backports"),
    "trixie": System("trixie", "3.13"),
}


@dataclass(frozen=True)
class Image:
    """A disk and what to boot from it."""

    kernel: Path
    initrd: Path
    disk: Path


def image(kernel: str) -> Image:
    """The image of one of SYSTEMS, made if it is not there: two minutes, and a gigabyte on disk."""
    system, agent = SYSTEMS[kernel], Path(__file__).with_name("agent.py").read_text()
    recipe = (system, PACKAGES, SIZE, QUIET, AGENT, agent)
    folder = _made(kernel, recipe, lambda folder: _make(system, folder))
    return Image(folder / "vmlinuz", folder / "initrd", folder / "root.qcow2")


def builder(release: str) -> Path:
    """The root folder of a release with its BCC and what it takes to build the package, made if it is not there."""
    made = _made(f"builder-{release}", BUILDER, lambda folder: _debootstrap(release, BUILDER, folder / "root"))
    return made / "root"


def _made(name: str, recipe: object, make: Callable[[Path], None]) -> Path:
    """A folder of BUILD, named by its recipe too, so that another one makes another; one process makes it."""
    folder = BUILD / f"{name}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]}"
    with locked(BUILD / f"{name}.lock"):
        if not folder.exists():
            making = folder.with_name(f"{folder.name}.making")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(parents=True)
            make(making)
            making.rename(folder)
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """For one process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def payload(name: str, staged: Path) -> Path:
    """A disk with the files of a folder on it."""
    disk = BUILD / f"{name}.img"
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", str(staged), str(disk), "1G")
    return disk


def _make(system: System, folder: Path) -> None:
    root = folder / "root"
    hooks = [
        'mkdir -p "$1/usr/local/sbin"',
        f'cp {Path(__file__).with_name("agent.py")} "$1/usr/local/sbin/agent.py"',
        f'cp {_written(folder / "agent.service", AGENT)} "$1/etc/systemd/system/agent.service"',
        'chroot "$1" systemctl enable agent.service',
        f'chroot "$1" systemctl mask {" ".join(QUIET)}',
        'rm -rf "$1"/usr/share/doc "$1"/usr/share/locale "$1"/var/cache/apt/*.bin',
    ]
    if system.kernel_suite:
        upgrade = f"apt-get install -y -qq --no-install-recommends -t {system.kernel_suite} linux-image-amd64"
        hooks.insert(0, f'DEBIAN_FRONTEND=noninteractive chroot "$1" {upgrade}')
    _debootstrap(system.release, PACKAGES, root, hooks, system.kernel_suite)
    newest = max((root / "boot").glob("vmlinuz-*"), key=lambda path: _version(path.name))
    shutil.copy(newest, folder / "vmlinuz")
    shutil.copy(root / "boot" / newest.name.replace("vmlinuz", "initrd.img"), folder / "initrd")
    raw = folder / "root.img"
    _run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(root), str(raw), SIZE)
    _run("qemu-img", "convert", "-O", "qcow2", str(raw), str(folder / "root.qcow2"))
    raw.unlink()
    shutil.rmtree(root)


def _debootstrap(
    release: str, packages: tuple[str, ...], root: Path, hooks: Sequence[str] = (), suite: str = ""
) -> None:
    _run(
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        "--mode=root",
        f"--include={','.join(packages)}",
        *(f"--customize-hook={hook}" for hook in hooks),
        release,
        str(root),
        *(f"deb {_mirror()} {one} main" for one in (release, suite) if one),
    )


def _mirror() -> str:
    """Where this machine's own packages come from."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)"], capture_output=True, text=True, check=True
    )
    codename = subprocess.run(
        ["sh", "-c", ". /etc/os-release && echo $VERSION_CODENAME"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return next(line.split()[0] for line in listed.stdout.splitlines() if line.split()[1] == codename)


def _version(name: str) -> list[int]:
    digits = name.removeprefix("vmlinuz-").split("+")[0].split("-")[0]
    return [int(part) for part in digits.split(".")]


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
