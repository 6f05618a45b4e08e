"""The ring that captured packets come by: records of any length, read without a system call. It knows no packet.

Layout: kernel/bpf/ringbuf.c. A page that the reader writes, a page that the kernel writes, and the data twice in a
row, so that no record is ever in two pieces.
"""

import mmap
import struct

_BUSY, _DISCARDED = 1 << 31, 1 << 30
_HEADER = 8  # bytes before each record: its length with these two bits, and where its page is


class Ring:
    """The one reader of a ring of `size` bytes, by its descriptor, which may be closed afterwards."""

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._read_up_to = memoryview(mmap.mmap(fd, page)).cast("Q")
        written = memoryview(mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page))
        self._written_up_to, self._data = written[:page].cast("Q"), written[page:]
        self._size = size

    def read(self, most: int) -> list[bytes]:
        """The next records, at most so many; their room is given back."""
        at, end = self._read_up_to[0], self._written_up_to[0]
        records: list[bytes] = []
        while at < end and len(records) < most:
            start = at % self._size
            (length,) = struct.unpack_from("I", self._data, start)
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if size == length:
                records.append(bytes(self._data[start + _HEADER : start + _HEADER + size]))
            at += -(-(size + _HEADER) // 8) * 8
        self._read_up_to[0] = at
        return records
