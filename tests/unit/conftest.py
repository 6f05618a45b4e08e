"""The API of a gateway that only keeps, for the tests that ask it."""

from __future__ import annotations

import pytest

from tests.unit.serving import Client, Kept


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def client(kept: Kept) -> Client:
    return Client(kept)
