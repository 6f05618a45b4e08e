"""What all tests share: tests that need root are skipped without it, but in CI they fail rather than skip."""

import os

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        if "CI" in os.environ:
            pytest.fail("needs root, and in CI nothing may be skipped", pytrace=False)
        pytest.skip("needs root: sudo make test")
