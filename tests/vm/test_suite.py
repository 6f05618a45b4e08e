"""The tests of the data plane and of the lab, on another kernel and with another userland."""

from pathlib import Path

from .conftest import SITE, SOURCE
from .images import Image
from .machine import Machine

HOUR = 3600.0
# In emulation everything takes some twenty times as long: fewer lives and frames, and no races between real CPUs.
LESS = "MODEL_LIVES=3 FUZZ_FRAMES=3000"
TESTS = "tests/packet tests/netns/test_traffic.py tests/netns/test_gateway.py tests/netns/test_icmp.py"


def test_the_data_plane_and_the_lab_hold_on_this_kernel(system: Image, files: Path, folder: Path) -> None:
    with Machine("suite", folder, system.kernel, system.initrd, system.disk, (files,), memory=4096) as machine:
        machine.wait()
        machine.run(f"mkdir -p /mnt/files {SOURCE} && mount -o ro /dev/vdb /mnt/files")
        machine.run(f"cp -r /mnt/files/ipbackend/. {SOURCE} && ln -s /mnt/files/site {SITE}")
        print(machine.run("uname -r; python3 --version; dpkg-query -W python3-bpfcc"))
        command = (
            f"cd {SOURCE} && CI=true {LESS} PYTHONPATH={SITE}:.:ctl python3 -m pytest -q -p no:cacheprovider {TESTS}"
        )
        status, output = machine.attempt(f"{command} 2>&1", HOUR)
        print(output[-3000:])
        assert status == 0
