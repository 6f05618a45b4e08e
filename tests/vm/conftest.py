"""The kernel that is asked for (VM_KERNEL), the files that machines are given, and the machines of a test."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .images import BUILD, REPOSITORY, SYSTEMS, Image, image, payload
from .packages import checkout

SOURCE = "/srv/ipbackend"  # where a machine finds the checkout
SITE = "/srv/site"  # and what the tests need from PyPI


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Half an hour, and only where it is asked for: `make vm-test`."""
    if "VM_KERNEL" not in os.environ:
        for item in items:
            if Path(item.path).parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason="wants VM_KERNEL: `make vm-test KERNEL=6.1`"))


@pytest.fixture(scope="session")
def kernel() -> str:
    """One of SYSTEMS."""
    return os.environ["VM_KERNEL"]


@pytest.fixture(scope="session")
def system(kernel: str) -> Image:
    """What the machines boot."""
    return image(kernel)


@pytest.fixture(scope="session")
def files(kernel: str) -> Path:
    """A disk with the checkout as it is committed, the packages of PyPI for that Python, and our own package."""
    with tempfile.TemporaryDirectory(prefix="ipbackend-vm-", dir=BUILD) as folder:
        staged = Path(folder)
        checkout(staged / "ipbackend")
        python = SYSTEMS[kernel].python
        shutil.copytree(_site(python), staged / "site")
        return payload(f"files-{kernel}", staged)


def _site(python: str) -> Path:
    """What the tests import, for another Python than ours."""
    wanted_by = hashlib.sha256(" ".join(_requirements()).encode()).hexdigest()[:8]
    site = BUILD / f"python{python}-{wanted_by}"
    if not site.exists():
        fresh = site.with_name(f"{site.name}.making")
        shutil.rmtree(fresh, ignore_errors=True)
        wanted = ["--python-version", python, "--only-binary=:all:", "--target", str(fresh)]
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted, *_requirements()], check=True)
        fresh.rename(site)
    return site


def _requirements() -> list[str]:
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["test"]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Sockets and console logs of one test."""
    with tempfile.TemporaryDirectory(prefix="ipbackend-vm-") as name:
        yield Path(name)
