"""The Vagrant lab as Vagrant reads it: for both providers, without a network and without either of them."""

import subprocess
from pathlib import Path

import pytest

from .images import REPOSITORY


@pytest.mark.parametrize("provider", ["libvirt", "virtualbox"])
def test_vagrant_takes_the_lab(provider: str, tmp_path: Path) -> None:
    """VirtualBox is not there, and asked for no more than its version."""
    stub = tmp_path / "VBoxManage"
    stub.write_text("#!/bin/sh\necho 7.0.20r163906\n")
    stub.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(tmp_path),
        "VAGRANT_DOTFILE_PATH": str(tmp_path / "state"),
        "VAGRANT_DEFAULT_PROVIDER": provider,
    }

    done = subprocess.run(
        ["vagrant", "validate"],
        cwd=REPOSITORY / "vagrant",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout
