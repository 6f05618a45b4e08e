"""The lab with its members running, and the gateway in it as lab.toml says: built once, put back before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.gateway import CONFIGURATION, Gateway
from tests.netns.lab import Lab
from tests.netns.members import Member, running


@pytest.fixture(scope="session")
def lab(own_run: None) -> Iterator[Lab]:
    with Lab() as built:
        yield built


@pytest.fixture(scope="session")
def members(lab: Lab) -> Iterator[dict[str, Member]]:
    with running(lab.members()) as by_name:
        yield by_name


@pytest.fixture(scope="session")
def started(lab: Lab, members: dict[str, Member]) -> Iterator[Gateway]:
    with Gateway(lab) as gateway:
        yield gateway


@pytest.fixture
def gateway(started: Gateway) -> Iterator[Gateway]:
    """As lab.toml says; afterwards the books must balance and the daemon must have met no bug."""
    if started.process is None:
        started.start()
    started.apply(CONFIGURATION)
    yield started
    assert "Traceback" not in started.log()
    assert started.audit() == []
