"""The programs, and the tests of the data plane and of the lab, on another kernel and with another userland."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import SITE, SOURCE
from .images import Image
from .machine import Machine

PATIENCE = 1800.0  # seconds
PYTHON = f"cd {SOURCE} && CI=true PYTHONPATH={SITE}:.:ctl python3"
LOADED = """
from ipbackend.datapath.rehearsal import rehearse
print("instructions that the verifier went through, and seconds: %s, %.1f" % rehearse())
"""
# In emulation everything takes some twenty times as long. Left out is what no other kernel decides otherwise: long
# lives, random frames and large tables, which are our own code's matter; the API and the CLI; and races, since there
# are no two CPUs at once.
PACKET = (
    "verifier",
    "roads",
    "tcp",
    "endings",
    "fragments",
    "icmp",
    "reject",
    "limits",
    "persistence",
    "sweep",
    "events",
)
NETNS = ("traffic",)
LONG = (
    "random",
    "hours",
    "any_place",
    "ten_thousand",
    "cut_here",
    "heed",
    "memory_is_bounded",
    "finds_no_room",
    "keeps_the_budget",
)
TESTS = " ".join(
    [
        *(f"tests/packet/test_{name}.py" for name in PACKET),
        *(f"tests/netns/test_{name}.py" for name in NETNS),
        f"-k 'not ({' or '.join(LONG)})'",
    ]
)


@pytest.fixture
def machine(system: Image, files: Path, folder: Path) -> Iterator[Machine]:
    """One with the checkout and what the tests need of PyPI."""
    with Machine("suite", folder, system.kernel, system.initrd, system.disk, (files,), memory=3072) as machine:
        machine.wait()
        machine.run(f"mkdir -p /mnt/files {SOURCE} && mount -o ro /dev/vdb /mnt/files")
        machine.run(f"cp -r /mnt/files/ipbackend/. {SOURCE} && ln -s /mnt/files/site {SITE}")
        yield machine


def test_the_data_plane_and_the_lab_hold_on_this_kernel(machine: Machine) -> None:
    print(machine.run("uname -r; python3 --version; dpkg-query -W python3-bpfcc"))
    print(machine.run(f"{PYTHON} -c '{LOADED}'", timeout=300))

    status, output = machine.attempt(
        f"{PYTHON} -m pytest -q -p no:cacheprovider -n 2 --dist loadfile --durations=5 {TESTS} 2>&1",
        PATIENCE,
    )
    print(output[-5000:])
    assert status == 0
