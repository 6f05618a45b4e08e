"""The soak in its short form: the same load, the same checks but that of memory, which needs a quarter of an hour."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.netns.members import REPOSITORY

MINUTES = "0.5"  # a minute with its beginning and its end

pytestmark = pytest.mark.root


def test_nothing_is_left_of_a_load_and_nothing_failed_unexplained() -> None:
    command = [sys.executable, "-m", "tests.soak", "--minutes", MINUTES]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
