"""A row of files, written one after the other and dropped from the oldest on. It knows nothing of what is in them."""

import re
from collections.abc import Iterator
from pathlib import Path

DAY = 86_400  # seconds


class Files:
    """`flows-000001` and so on, with a suffix, in a folder of our own, which is made; numbers are never used again."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder = folder
        self._suffix = suffix
        self._pattern = re.compile(rf"flows-(\d{{6,}}){re.escape(suffix)}")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def paths(self) -> list[Path]:
        """All there are, the oldest first."""
        return [path for _, path in sorted(self._numbered())]

    def next(self) -> Path:
        """The path of a file that comes after all others; it is there, and empty."""
        number = max((number for number, _ in self._numbered()), default=0) + 1
        path = self.folder / f"flows-{number:06}{self._suffix}"
        path.touch(mode=0o600, exist_ok=False)
        return path

    def size(self) -> int:
        """Bytes of all together, with what lies beside them (a database's log)."""
        return sum(_size(path) for path in self.paths())

    def expire(self, oldest: float, limit: int) -> list[Path]:
        """Drop those not written to since `oldest`, and the oldest while all take more than `limit` bytes.

        The newest stays whatever it takes. Returns those that are gone.
        """
        gone, total = [], self.size()
        for path in self.paths()[:-1]:
            if total <= limit and path.stat().st_mtime >= oldest:
                break
            total -= _size(path)
            for one in _beside(path):
                one.unlink(missing_ok=True)
            gone.append(path)
        return gone

    def _numbered(self) -> Iterator[tuple[int, Path]]:
        for path in self.folder.iterdir():
            if match := self._pattern.fullmatch(path.name):
                yield int(match[1]), path


def _beside(path: Path) -> list[Path]:
    """A file, and what a database keeps beside it."""
    return [path.with_name(path.name + end) for end in ("-wal", "-shm", "")]


def _size(path: Path) -> int:
    return sum(one.stat().st_size for one in _beside(path) if one.exists())
