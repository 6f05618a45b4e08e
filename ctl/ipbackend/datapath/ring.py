"""The ring buffer of events, read in place. It knows its pages, which are the kernel's ABI, and no event.

Its first page holds how far it was read, its second how far it was written; then comes the data, which is mapped
twice in a row, so that no record has a seam. Each begins with its length, whose upper bits say that it is being
written or to be passed over, and with where it lies, 8 bytes in all (BPF_MAP_TYPE_RINGBUF, linux/bpf.h).
"""

import mmap
import select

from ipbackend.datapath import syscall

HEADER = 8  # bytes
_AT_A_TIME = 4096  # records


class Ring:
    """One ring buffer of records that are `size` bytes long, a multiple of 8. One reader at a time."""

    def __init__(self, fd: int, size: int) -> None:
        """`fd` stays the caller's; it must stay open while the ring is used."""
        self._step = HEADER + size
        self.bytes = syscall.map_info(fd).max_entries
        self._reader = mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._writer = mmap.mmap(
            fd, mmap.PAGESIZE + 2 * self.bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE
        )
        self._read = memoryview(self._reader).cast("Q")
        self._written = memoryview(self._writer)[: mmap.PAGESIZE].cast("Q")
        self._data = memoryview(self._writer)[mmap.PAGESIZE :]
        self._wakes = select.epoll()
        self._wakes.register(fd, select.EPOLLIN)

    def close(self) -> None:
        """Let go of the memory."""
        for view in (self._read, self._written, self._data):
            view.release()
        self._reader.close()
        self._writer.close()
        self._wakes.close()

    @property
    def position(self) -> int:
        """How far it was read, in bytes since it was made."""
        return self._read[0]

    @property
    def waiting(self) -> int:
        """How many records are there to be read."""
        return (self._written[0] - self._read[0]) // self._step

    def wait(self, seconds: float) -> None:
        """Until a record comes, or the time is over."""
        if not self.waiting:
            self._wakes.poll(seconds)

    def records(self) -> bytes:
        """The next records, with their headers, as many as are whole; they stay until `advance`."""
        have = min(self.waiting, _AT_A_TIME)
        start = self._read[0] & (self.bytes - 1)
        lengths = self._data[start : start + have * self._step].cast("I")[:: self._step // 4].tolist()
        whole = next((n for n, length in enumerate(lengths) if length != self._step - HEADER), have)
        return bytes(self._data[start : start + whole * self._step])

    def advance(self, position: int) -> None:
        """What lies before `position` was read, and its room may be used again."""
        self._read[0] = position
