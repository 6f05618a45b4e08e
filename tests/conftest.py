"""What all tests share: a /run of their own, and that tests which need root fail in CI rather than be skipped."""

import os
import signal

import pytest

from tests.netns.lab import private_mounts


def pytest_configure() -> None:
    """A shell has what it runs in the background ignore this, and what tests start would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        if "CI" in os.environ:
            pytest.fail("needs root, and in CI nothing may be skipped", pytrace=False)
        pytest.skip("needs root: sudo make test")


@pytest.fixture(scope="session")
def own_run() -> None:
    """Pins and run directories in a /run that ends with this process, however it ends."""
    private_mounts()
