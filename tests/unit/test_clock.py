"""Ticks of the data plane and what they are in seconds."""

import time
from random import Random

import pytest

from ipbackend.abi import TICK_SHIFT
from ipbackend.datapath.clock import Clock, epoch_of, timer_frequency

AT = 10**15


@pytest.fixture(autouse=True)
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic_ns", lambda: AT)


@pytest.mark.parametrize("hz", [100, 250, 300, 1000])
@pytest.mark.parametrize("tick", [0, 5, 2**31, 2**32 - 1])
def test_a_clock_shows_the_tick_it_was_set_to(tick: int, hz: int) -> None:
    clock = Clock(epoch_of(tick, AT, hz), hz)

    assert (clock.now() - tick) % 2**32 in (0, 2**32 - 1)


@pytest.mark.parametrize("hz", [100, 250, 300, 1000])
def test_ages_survive_the_wrap_of_ticks(hz: int) -> None:
    clock = Clock(epoch_of(5, AT, hz), hz)

    assert clock.seconds_since(5) == pytest.approx(0, abs=2**TICK_SHIFT / hz)
    assert clock.seconds_since(2**32 - 5) == pytest.approx(10 * 2**TICK_SHIFT / hz, abs=1.01 * 2**TICK_SHIFT / hz)
    assert clock.seconds_since((5 - clock.ticks(3600)) % 2**32) == pytest.approx(3600, abs=2**TICK_SHIFT / hz)


@pytest.mark.parametrize("hz", [100, 250, 300, 1000])
@pytest.mark.parametrize("at", [AT, AT + 2**33 * 10**9])
def test_nothing_began_after_it_did(monkeypatch: pytest.MonkeyPatch, at: int, hz: int) -> None:
    """The kernel's ticks begin wherever they do; ours were read in the middle of one. Wherever, and however often."""
    length = 10**9 * 2**TICK_SHIFT / hz
    random = Random(3)
    for _ in range(1000):
        read = AT - random.random() * length * 100
        first = read - random.random() * length  # when the tick that was read began
        clock = Clock(epoch_of(7, int(read), hz), hz)
        opened = at - random.random() * length * 5
        tick = int(7 + (opened - first) // length) % 2**32
        monkeypatch.setattr(time, "monotonic_ns", lambda: at)

        assert opened - 2 * length < clock.earliest(tick) <= opened
        monkeypatch.setattr(time, "monotonic_ns", lambda: at + 10**10)
        assert opened - 2 * length < clock.earliest(tick) <= opened


def test_what_is_a_tick_ahead_of_our_reckoning_is_now() -> None:
    clock = Clock(epoch_of(5, AT, 250), 250)

    assert clock.seconds_since(6) == 0


def test_the_kernel_has_one_of_the_usual_frequencies() -> None:
    assert timer_frequency() in (100, 250, 300, 1000)
