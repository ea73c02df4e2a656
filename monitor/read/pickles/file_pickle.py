"""A pickle that is interpreted where it lies in a file, its large parts left there.

The same inert machine as for pickles in memory, over a window that moves along a source. Bytes of LAZY_BYTES_MIN or
more, and the raw arrays that joblib writes between opcodes, become stretches that are read when they are wanted.
"""

from __future__ import annotations

from typing import SupportsIndex, overload

from monitor.read.access.sources import ByteSource
from monitor.read.arrays.numpy_records import item_bytes_of, sizes_of
from monitor.read.pickles.inert_nodes import Node, Persistent, PickleResult, Ref
from monitor.read.pickles.inert_pickle import GLOBALS_KEPT_MAX, PickleMachine, opcode_table
from monitor.read.pickles.inert_view import attributes_of, text_keyed
from monitor.read.reader import CorruptError, IncompleteError, LimitError, ReadLimits, UnsupportedError

LAZY_BYTES_MIN = 512
_PAGE_BYTES = 64 * 1024
_TEXT_LINE_BYTES_MAX = 2**20
_NESTED_PICKLES_MAX = 100
_ARRAY_WRAPPERS = frozenset(
    {("joblib.numpy_pickle", "NumpyArrayWrapper"), ("sklearn.externals.joblib.numpy_pickle", "NumpyArrayWrapper")}
)
_OLD_WRAPPERS = frozenset({"NDArrayWrapper", "ZNDArrayWrapper"})


class Stretch:
    """Bytes that were left in the source: where they begin and how many there are."""

    __slots__ = ("n_bytes", "offset")

    def __init__(self, offset: int, n_bytes: int) -> None:
        self.offset = offset
        self.n_bytes = n_bytes


class _Window:
    """A source looked at as if it were bytes; one page of it is held, and it moves forward without going back."""

    __slots__ = ("_page", "_source", "_start")

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._start = 0
        self._page = b""

    def __len__(self) -> int:
        return self._source.n_bytes

    @overload
    def __getitem__(self, key: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> bytes: ...
    def __getitem__(self, key: SupportsIndex | slice, /) -> int | bytes:
        if isinstance(key, slice):
            start, stop = key.start, key.stop
            self._hold(start, stop)
            return self._page[start - self._start : stop - self._start]
        at = key.__index__()
        place = at - self._start
        if not 0 <= place < len(self._page):
            self._hold(at, at + 1)
            place = at - self._start
        return self._page[place]

    def find(self, sub: bytes, start: int, end: int, /) -> int:
        """Return the first place of the byte `sub` in a range, -1 where it is not in the first mebibyte of it."""
        stop = min(end, start + _TEXT_LINE_BYTES_MAX)
        for at in range(start, stop, _PAGE_BYTES):
            found = self[at : min(at + _PAGE_BYTES, stop)].find(sub)
            if found >= 0:
                return at + found
        return -1

    def _hold(self, start: int, stop: int) -> None:
        """Make the page hold a range; what is already held is kept, so that a stream is never read back."""
        held_to = self._start + len(self._page)
        if self._start <= start and stop <= held_to:
            return
        kept = self._page[start - self._start :] if self._start <= start <= held_to else b""
        first = start + len(kept)
        n = min(max(stop - first, _PAGE_BYTES), self._source.n_bytes - first)
        if n < stop - first:
            raise IncompleteError(f"bytes {start} to {stop} are needed, there are {self._source.n_bytes}")
        buffer = bytearray(n)
        self._source.read_into(first, memoryview(buffer))
        self._page = kept + bytes(buffer)
        self._start = start


class _FileMachine(PickleMachine):
    """The machine over a window; running out of the source means that it is not whole yet."""

    __slots__ = ("lazy_bytes_min", "limits", "n_nested", "text_bytes")

    def __init__(self, data: _Window, position: int, limits: ReadLimits, lazy_bytes_min: int) -> None:
        super().__init__(data)
        self.position = position
        self.limits = limits
        self.lazy_bytes_min = lazy_bytes_min
        self.text_bytes = 0
        self.n_nested = 0

    def run(self, opcodes_max: int) -> object:
        """Interpret until STOP; an end that comes too early is an IncompleteError."""
        try:
            return super().run(opcodes_max)
        except CorruptError:
            if self.position >= len(self.data):
                raise IncompleteError("the pickle ends before its STOP") from None
            raise

    def take(self, n: int) -> bytes:
        """Return the next `n` bytes, which count against the limit of what a pickle may hold in memory."""
        self.demand(n)
        self.text_bytes += n
        if self.text_bytes > self.limits.pickle_bytes_max:
            raise LimitError(f"the pickle holds more than {self.limits.pickle_bytes_max} bytes of text and numbers")
        return super().take(n)

    def unsigned(self, n_bytes: int) -> int:
        """Return the next bytes as an unsigned integer."""
        self.demand(n_bytes)
        return super().unsigned(n_bytes)

    def line(self) -> bytes:
        """Return the text up to the next newline, without it."""
        if self.end == len(self.data) and len(self.data) - self.position <= _TEXT_LINE_BYTES_MAX:
            stop = self.data.find(b"\n", self.position, self.end)
            if stop < 0:
                raise IncompleteError("the pickle ends within a line of text")
        return super().line()

    def demand(self, n: int) -> None:
        """Raise IncompleteError where fewer than `n` bytes follow in the whole source."""
        if n > len(self.data) - self.position:
            raise IncompleteError(f"the pickle needs {n} bytes from byte {self.position}, it ends before")

    def stretch(self, n: int) -> bytes | Stretch:
        """Return the next `n` bytes, or where they are when they are many."""
        if n < self.lazy_bytes_min:
            return self.take(n)
        self.demand(n)
        if self.position + n > self.end:
            raise CorruptError(f"an opcode at byte {self.position} reaches over the end of its frame")
        self.position += n
        return Stretch(self.position - n, n)

    def op_binbytes(self) -> None:
        self.stack.append(self.stretch(self.unsigned(4)))

    def op_binbytes8(self) -> None:
        self.stack.append(self.stretch(self.unsigned(8)))

    def op_frame(self) -> None:
        n_bytes = int.from_bytes(self.data[self.position : self.position + 8], "little") if self._has(8) else 0
        if self._has(8) and n_bytes > len(self.data) - self.position - 8:
            raise IncompleteError(f"the pickle claims a frame of {n_bytes} bytes, fewer are left")
        super().op_frame()

    def op_binpersid(self) -> None:
        """Push a persistent reference; two habits of torch.save before its zip format are undone."""
        super().op_binpersid()
        reference = self.stack[-1]
        assert isinstance(reference, Persistent)
        parts = reference.id
        if not isinstance(parts, tuple):
            return
        if len(parts) == 4 and parts[0] == "module" and isinstance(parts[1], Ref):
            self.persistents.pop()  # a class, with its source code beside it
            self.stack[-1] = parts[1]
        elif len(parts) == 6 and parts[5] is None:
            reference.id = parts[:5]  # the last part described a view of a storage; this one is none

    def _has(self, n: int) -> bool:
        return self.position + n <= len(self.data)

    def op_build(self) -> None:
        super().op_build()
        node = self.stack[-1]
        if not isinstance(node, Node) or not isinstance(node.function, Ref):
            return
        if (node.function.module, node.function.name) in _ARRAY_WRAPPERS:
            self._pass_array(node)
        elif node.function.name in _OLD_WRAPPERS and node.function.module.endswith("numpy_pickle_compat"):
            raise UnsupportedError("joblib before 0.10 kept its arrays in other files; save the model again")

    def _pass_array(self, wrapper: Node) -> None:
        """Pass over the values that joblib wrote right after a wrapper, and hang them to it as its items."""
        if self.end not in (self.position, len(self.data)):
            raise CorruptError("an array of joblib begins within a frame of the pickle")
        self.end = len(self.data)
        state = text_keyed(attributes_of(wrapper))
        item_bytes = item_bytes_of(state.get("dtype"))
        if item_bytes is None:  # Python objects, in a pickle of their own
            wrapper.items = [self._nested()]
            return
        if type(state.get("numpy_array_alignment_bytes")) is int:
            self.demand(1)
            self.position += 1 + self.data[self.position]
        shape = sizes_of(state.get("shape"), self.limits.dimensions_max)
        if shape is None:
            raise CorruptError("an array of joblib has no shape")
        n = item_bytes
        for size in shape:
            n *= size
        self.demand(n)
        wrapper.items = [Stretch(self.position, n)]
        self.position += n

    def _nested(self) -> object:
        self.n_nested += 1
        if self.n_nested > _NESTED_PICKLES_MAX:
            raise LimitError(f"the pickle holds more than {_NESTED_PICKLES_MAX} arrays of objects")
        assert isinstance(self.data, _Window)
        inner = _FileMachine(self.data, self.position, self.limits, self.lazy_bytes_min)
        inner.n_nested = self.n_nested
        root = inner.run(self.limits.pickle_opcodes_max)
        self.position = inner.position
        self.n_nested = inner.n_nested
        self.n_objects += inner.n_objects
        self.globals.update(inner.globals)
        return root


_FileMachine.table = opcode_table(_FileMachine)


def parse_at(
    source: ByteSource, position: int, limits: ReadLimits, *, lazy_bytes_min: int = LAZY_BYTES_MIN
) -> PickleResult:
    """Interpret the pickle of protocol 0 to 5 that begins at `position`; `n_bytes` of the result is where it ends.

    Bytes may follow it. In the result a Stretch stands for bytes of `lazy_bytes_min` or more, and a NumpyArrayWrapper
    of joblib has one item: the Stretch of its values, or the root of the pickle of its objects. Raises IncompleteError
    where the source ends too early, and otherwise as the machine in memory does.
    """
    machine = _FileMachine(_Window(source), position, limits, lazy_bytes_min)
    try:
        root = machine.run(limits.pickle_opcodes_max)
    except IndexError:
        raise CorruptError(f"the pickle takes from an empty stack before byte {machine.position}") from None
    except UnicodeDecodeError as error:
        raise CorruptError(f"the pickle has a broken text before byte {machine.position}: {error.reason}") from None
    names = sorted(f"{module}.{name}" for module, name in machine.globals)[:GLOBALS_KEPT_MAX]
    return PickleResult(root, tuple(names), tuple(machine.persistents), machine.n_objects, machine.position)
