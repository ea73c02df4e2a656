"""A place in a file that moves forward while a structure is parsed: small reads from one page, long stretches skipped.

Every length is checked against what is there before anything is taken; running out of file means that it is not whole.
"""

from __future__ import annotations

import struct

from monitor.read.bounded_file import BoundedFile
from monitor.read.reader import IncompleteError, LimitError

_PAGE_BYTES = 64 * 1024


class ByteCursor:
    """A position in a file, and an end that may not be passed.

    `taken_bytes_max` limits what is taken (not what is skipped) altogether.
    """

    __slots__ = ("_file", "_page", "_page_start", "_taken_bytes", "_taken_bytes_max", "end", "position")

    def __init__(self, file: BoundedFile, *, taken_bytes_max: int, position: int = 0, end: int | None = None) -> None:
        self._file = file
        self._page = b""
        self._page_start = 0
        self._taken_bytes = 0
        self._taken_bytes_max = taken_bytes_max
        self.position = position
        self.end = file.size_bytes if end is None else end

    @property
    def n_left(self) -> int:
        """Return the number of bytes up to the end."""
        return self.end - self.position

    def take(self, n: int) -> bytes:
        """Return the next `n` bytes."""
        position = self.position
        if n < 0 or n > self.end - position:
            self.demand(n)
        self._taken_bytes += n
        if self._taken_bytes > self._taken_bytes_max:
            raise self._too_much()
        start = position - self._page_start
        if start < 0 or start + n > len(self._page):
            start = self._turn(n)
        self.position = position + n
        return self._page[start : start + n]

    def window(self) -> tuple[bytes, int]:
        """Return the page that is in memory and where in it the position is, for a loop that takes many small things.

        At least one byte from the position on is there, where one is left. What the loop takes it tells to `advance`.
        """
        start = self.position - self._page_start
        if not 0 <= start < len(self._page):
            start = self._turn(1)
        return self._page, start

    def advance(self, n: int, n_taken: int) -> None:
        """Pass over `n` bytes, `n_taken` of which were taken from a window."""
        self.demand(n)
        self._taken_bytes += n_taken
        if self._taken_bytes > self._taken_bytes_max:
            raise self._too_much()
        self.position += n

    def _turn(self, n: int) -> int:
        """Read the page that begins at the position and holds the next `n` bytes; return where in it that is, 0."""
        self._page_start = self.position
        self._page = self._file.read(self.position, min(max(n, _PAGE_BYTES), self.n_left))
        return 0

    def _too_much(self) -> LimitError:
        return LimitError(f"the structure of the file takes more than {self._taken_bytes_max} bytes")

    def byte(self) -> int:
        """Return the next byte."""
        return self.take(1)[0]

    def unpack(self, code: struct.Struct) -> tuple[int | float | bool, ...]:
        """Return the next values of a fixed structure."""
        return code.unpack(self.take(code.size))

    def unsigned(self, n_bytes: int, *, big_endian: bool = False) -> int:
        """Return the next bytes as an unsigned integer."""
        return int.from_bytes(self.take(n_bytes), "big" if big_endian else "little")

    def skip(self, n: int) -> int:
        """Pass over `n` bytes and return where they begin."""
        self.demand(n)
        self.position += n
        return self.position - n

    def demand(self, n: int) -> None:
        """Raise IncompleteError where fewer than `n` bytes follow."""
        if n < 0 or n > self.n_left:
            raise IncompleteError(f"{n} bytes are needed from byte {self.position}, {self.n_left} are left")
