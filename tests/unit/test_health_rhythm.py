"""When members are asked: never all at once, and in time whatever happens."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipbackend.health.rhythm import Rhythm, phase
from ipbackend.health.slow_start import next_step, share

seconds = st.integers(1, 50)
part = st.floats(0, 1)


@given(seconds, seconds, part, st.floats(0, 1000), st.integers(1, 10), st.randoms(use_true_random=False), st.booleans())
def test_failures_are_noticed_within_the_published_window(
    delay: int, timeout: int, its_phase: float, start: float, count: int, random: Random, slowly: bool
) -> None:
    """`timeout × n + delay × (n − 1)` from the beginning of the first failed check, wherever that begins."""
    rhythm = Rhythm(delay, timeout, its_phase)
    began = start
    for number in range(count):
        took = timeout if slowly else random.choice((0, timeout, random.uniform(0, timeout)))
        ended = began + took
        if number < count - 1:
            began = rhythm.next(began, ended, random.random())
            assert began >= ended
    assert ended - start <= timeout * count + delay * (count - 1) + 1e-3


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.05, 0.5, 0.999])
def test_also_in_the_worst_case(share: float) -> None:
    """Every check takes all of its time, the first one begins at or after its turn, the last one is late by chance."""
    for delay, timeout, count in product(range(1, 51), range(1, 51), (1, 2, 3, 10)):
        rhythm = Rhythm(delay, timeout, 0.25)
        start = began = (7.25 + share) * delay
        for number in range(1, count):
            began = rhythm.next(began, began + timeout, float(number == count - 1))
        assert began + timeout - start <= timeout * count + delay * (count - 1) + 1e-6, (delay, timeout, count)


@given(seconds, seconds, part, st.floats(0, 1e6), st.randoms(use_true_random=False))
def test_quick_checks_keep_the_delay(delay: int, timeout: int, its_phase: float, start: float, random: Random) -> None:
    rhythm = Rhythm(delay, timeout, its_phase)
    first = began = rhythm.next(start, start, random.random())
    for _ in range(20):
        began = rhythm.next(began, began + 0.001, random.random())
    assert (began - first) / delay == pytest.approx(20, abs=0.2)


def test_a_member_that_hangs_longer_than_the_delay_is_never_asked_twice_at_a_time() -> None:
    rhythm = Rhythm(2, 5, 0.3)
    began = 100.0
    for _ in range(50):
        following = rhythm.next(began, began + 5, 0.5)
        assert began + 5 <= following <= began + 5 + 2
        began = following


@pytest.mark.parametrize("members", [10, 100, 1000, 10_000])
def test_checks_are_spread_over_the_delay(members: int) -> None:
    """Also those that begin together, as after a restart: in each twentieth of the delay about as many."""
    random = Random(members)
    first = random.randrange(1 << 20)
    rhythms = [Rhythm(5, 3, phase(first + number)) for number in range(members)]
    for round_ in range(3):
        at = 1000.0 + 5 * round_
        moments = [rhythm.next(at, at, random.random()) for rhythm in rhythms]
        buckets = Counter(int((moment % 5) * 4) for moment in moments)
        mean = members / 20
        assert set(buckets) == set(range(20)) or members < 20
        assert max(buckets.values()) <= mean + max(5, 0.4 * mean)


def test_no_two_members_keep_being_asked_together() -> None:
    phases = sorted(phase(number) for number in range(1000))
    gaps = [after - before for before, after in pairwise(phases)]
    assert min(gaps) > 0.0003
    assert max(gaps) < 0.003


def test_a_share_rises_from_a_tenth_to_all_of_it() -> None:
    shares = [share(second, 90) for second in range(100)]
    assert (shares[0], shares[9], shares[10], shares[89], shares[90]) == (1, 1, 2, 9, 10)
    assert shares == sorted(shares)
    assert set(shares) == set(range(1, 11))


@given(st.integers(30, 1200))
def test_each_step_is_known_in_advance(duration: int) -> None:
    elapsed, found = 0.0, [1]
    while elapsed < duration:
        before = elapsed
        elapsed = next_step(elapsed, duration)
        assert elapsed > before
        assert share(elapsed - 0.01, duration) == found[-1]
        found.append(share(elapsed, duration))
    assert found == list(range(1, 11))
    assert elapsed == pytest.approx(duration)
