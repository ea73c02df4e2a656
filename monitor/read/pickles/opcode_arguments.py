"""The arguments of pickle opcodes, taken from bytes that may end too early: each length is checked before it is used.

It knows frames, which nothing may reach over, and nothing of what the opcodes mean.
"""

from __future__ import annotations

from monitor.read.pickles.pickle_values import Octets
from monitor.read.reader import CorruptError, LimitError

NUMBER_BYTES_MAX = 1024


class Arguments:
    """A place in a pickle that moves forward; `end` is that of the current frame, or of the data outside of frames."""

    __slots__ = ("data", "end", "position")

    def __init__(self, data: Octets) -> None:
        self.data = data
        self.end = len(data)
        self.position = 0

    def take(self, n: int) -> bytes:
        """Return the next `n` bytes of the current frame."""
        start = self.position
        stop = start + n
        if stop > self.end:
            raise CorruptError(f"an opcode at byte {start} needs {n} bytes, {self.end - start} are left")
        self.position = stop
        return self.data[start:stop]

    def byte(self) -> int:
        """Return the next byte of the current frame."""
        position = self.position
        if position >= self.end:
            raise CorruptError(f"an opcode at byte {position} needs a byte, none is left")
        self.position = position + 1
        return self.data[position]

    def unsigned(self, n_bytes: int) -> int:
        """Return the next bytes as an unsigned integer."""
        start = self.position
        stop = start + n_bytes
        if stop > self.end:
            raise CorruptError(f"an opcode at byte {start} needs {n_bytes} bytes, {self.end - start} are left")
        self.position = stop
        return int.from_bytes(self.data[start:stop], "little")

    def line(self) -> bytes:
        """Return the text up to the next newline, without it."""
        stop = self.data.find(b"\n", self.position, self.end)
        if stop < 0:
            raise CorruptError(f"a text argument at byte {self.position} has no end")
        text = self.data[self.position : stop]
        self.position = stop + 1
        return text

    def number_line(self) -> bytes:
        """Return a text argument that is to be a number."""
        text = self.line()
        if len(text) > NUMBER_BYTES_MAX:
            raise LimitError(f"a number in the pickle has {len(text)} digits, the limit is {NUMBER_BYTES_MAX}")
        return text.strip()
