"""The controller's side of bpf/directory.h: keys to numbers in buckets of one cache line. It knows no kernel.

An entry is in its key's own bucket or, if that is full, in one of the next; a reader goes on only behind a full
bucket. So what leaves a full bucket is replaced by an entry from further on, and each change is one 64-bit store.
"""

from collections.abc import Iterator

from ipbackend.abi import BUCKET_ENTRIES, DIRECTORY_FACTOR, DIRECTORY_STEPS, NUMBERS
from ipbackend.errors import DatapathError

_WORD = (1 << 64) - 1


def key_of(address: int, port: int = 0, udp: bool = False) -> int:
    """A key; `address` and `port` as a C struct has them in network order."""
    return address << 32 | port << 16 | (NUMBERS if udp else 0)


def parts_of(key: int) -> tuple[int, int, bool]:
    """The reverse."""
    return key >> 32, key >> 16 & 0xFFFF, bool(key & NUMBERS)


class Directory:
    """A table over memory shared with the kernel: `words` are its 64-bit entries, 0 where there is none."""

    def __init__(self, name: str, words: "memoryview[int] | list[int]") -> None:
        self._name = name
        self._words = words
        self._buckets = len(words) // BUCKET_ENTRIES

    def entries(self) -> Iterator[tuple[int, int]]:
        """All keys and their numbers."""
        for word in filter(None, self._words):
            yield word & ~(NUMBERS - 1), word & (NUMBERS - 1)

    def get(self, key: int) -> int:
        """The number of a key, or 0."""
        at = self._find(key)
        return self._words[at] & (NUMBERS - 1) if at is not None else 0

    def set(self, key: int, number: int) -> None:
        """Have the key stand for the number, from the next packet on. DatapathError: no room near its bucket."""
        at = self._find(key)
        if at is None:
            at = next((free for free in self._chain(key) if not self._words[free]), None)
        if at is None:
            raise DatapathError(f"{self._name}: no room for one entry more near its place ({len(self._words)} in all)")
        self._words[at] = key | number

    def delete(self, key: int) -> bool:
        """Whether there was such a key."""
        at = self._find(key)
        if at is None:
            return False
        while (other := self._displaced(at)) is not None:
            self._words[at] = self._words[other]
            at = other
        self._words[at] = 0
        return True

    def _home(self, key: int) -> int:
        return ((key ^ key >> 32) * DIRECTORY_FACTOR & _WORD) >> 40 & (self._buckets - 1)

    def _bucket(self, number: int) -> range:
        start = number % self._buckets * BUCKET_ENTRIES
        return range(start, start + BUCKET_ENTRIES)

    def _chain(self, key: int) -> Iterator[int]:
        home = self._home(key)
        for step in range(DIRECTORY_STEPS):
            yield from self._bucket(home + step)

    def _find(self, key: int) -> int | None:
        return next((at for at in self._chain(key) if self._words[at] ^ key < NUMBERS), None)

    def _displaced(self, at: int) -> int | None:
        """An entry that had to pass the full bucket of `at`, and would be found there."""
        number = at // BUCKET_ENTRIES
        if not all(self._words[one] for one in self._bucket(number)):
            return None
        for step in range(1, DIRECTORY_STEPS):
            for other in self._bucket(number + step):
                word = self._words[other]
                if word and (number + step - self._home(word & ~(NUMBERS - 1))) % self._buckets >= step:
                    return other
            if not all(self._words[one] for one in self._bucket(number + step)):
                return None
        return None
