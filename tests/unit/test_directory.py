"""A directory against a dict: what a reader finds is what was put there, whatever came and went."""

import random

import pytest

from ipbackend.abi import BUCKET_ENTRIES, DIRECTORY_STEPS, NUMBERS
from ipbackend.datapath.directory import Directory, key_of, parts_of
from ipbackend.errors import DatapathError


def found(directory: Directory, words: list[int], key: int) -> int:
    """As bpf/directory.h looks: on to the next bucket only if this one's last entry is taken."""
    for step in range(DIRECTORY_STEPS):
        bucket = [words[at] for at in directory._bucket(directory._home(key) + step)]
        for word in bucket:
            if word ^ key < NUMBERS:
                return word & (NUMBERS - 1)
        if not bucket[BUCKET_ENTRIES - 1]:
            return 0
    return 0


@pytest.mark.parametrize("seed", range(4))
def test_a_reader_finds_what_is_there_and_nothing_else(seed: int) -> None:
    """At a load where many buckets are full, and after each single change."""
    rng = random.Random(seed)
    words = [0] * BUCKET_ENTRIES * 16
    directory = Directory("test", words)
    have: dict[int, int] = {}
    keys = [key_of(rng.getrandbits(32), rng.getrandbits(16), rng.random() < 0.5) for _ in range(150)]
    for _ in range(3000):
        key = rng.choice(keys)
        if key in have and rng.random() < 0.6:
            del have[key]
            assert directory.delete(key)
        else:
            try:
                directory.set(key, number := rng.randrange(1, NUMBERS))
            except DatapathError:
                assert len(have) > 8 * BUCKET_ENTRIES
                continue
            have[key] = number
        assert {key: found(directory, words, key) for key in keys} == {key: have.get(key, 0) for key in keys}
    assert dict(directory.entries()) == have
    for key in list(have):
        directory.delete(key)
    assert not any(words)


def test_what_is_not_there_is_not_deleted() -> None:
    assert not Directory("test", [0] * BUCKET_ENTRIES).delete(key_of(1, 2))


@pytest.mark.parametrize("parts", [(1, 0, False), (0xFFFFFFFF, 0xFFFF, True), (0x0A000001, 80, True)])
def test_a_key_holds_its_parts(parts: tuple[int, int, bool]) -> None:
    assert parts_of(key_of(*parts) | 77) == parts
