"""Pickle opcodes to inert nodes: the only unpickling in the project.

Nothing is imported, called, hashed, compared or formatted that the pickle names: a global becomes a Ref, a call
becomes a Node that remembers function and arguments, a dict becomes a list of pairs. What the nodes mean is for
others to decide. Every length is checked against what is there before anything is taken.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from monitor.read.pickles.inert_nodes import Items, Node, Pairs, Persistent, PickleResult, Ref
from monitor.read.pickles.opcode_arguments import NUMBER_BYTES_MAX, Arguments
from monitor.read.pickles.pickle_values import Octets, decimal, in_pairs, unescape, within_64_bits
from monitor.read.reader import CorruptError, LimitError, ReadLimits, UnsupportedError

MEMO_ENTRIES_MAX = 2_000_000
MARK_DEPTH_MAX = 10_000
GLOBALS_KEPT_MAX = 1000
CONTAINERS_MAX = 2_000_000  # dicts and sets: one byte makes one, which takes over a hundred


def parse(data: bytes, limits: ReadLimits, *, allow_trailing: bool = False) -> PickleResult:
    """Interpret one pickle of protocol 0 to 5.

    Bytes after STOP are an error unless `allow_trailing`. Raises CorruptError, LimitError (size, opcodes, memo,
    depth of marks) or UnsupportedError (extension registry, out-of-band buffers).
    """
    if len(data) > limits.pickle_bytes_max:
        raise LimitError(f"the pickle has {len(data)} bytes, the limit is {limits.pickle_bytes_max}")
    machine = _Machine(data)
    try:
        root = machine.run(limits.pickle_opcodes_max)
    except IndexError:
        raise CorruptError(f"the pickle takes from an empty stack before byte {machine.position}") from None
    except UnicodeDecodeError as error:
        raise CorruptError(f"the pickle has a broken text before byte {machine.position}: {error.reason}") from None
    if machine.position != len(data) and not allow_trailing:
        raise CorruptError(f"{len(data) - machine.position} bytes follow the end of the pickle")
    names = sorted(f"{module}.{name}" for module, name in machine.globals)[:GLOBALS_KEPT_MAX]
    return PickleResult(root, tuple(names), tuple(machine.persistents), machine.n_objects, machine.position)


class _Machine(Arguments):
    """The stack machine: one method an opcode."""

    __slots__ = ("globals", "marked", "memo", "n_containers", "n_objects", "persistents", "stack")

    table: ClassVar[list[Callable[[Any], None]]]  # what to do for each opcode; subclasses make their own

    def __init__(self, data: Octets) -> None:
        super().__init__(data)
        self.stack: list[object] = []
        self.marked: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.globals: dict[tuple[str, str], Ref] = {}
        self.persistents: list[Persistent] = []
        self.n_objects = 0
        self.n_containers = 0

    def run(self, opcodes_max: int) -> object:
        """Interpret until STOP and return the top of the stack."""
        data, table = self.data, self.table
        for _ in range(opcodes_max):
            position = self.position
            if position >= self.end:
                if position >= len(data):
                    raise CorruptError("the pickle ends before its STOP")
                self.end = len(data)  # a frame is over
            code = data[position]
            self.position = position + 1
            if code == _STOP:
                if self.end not in (self.position, len(data)):
                    raise CorruptError("the pickle stops within a frame")
                if self.marked:
                    raise CorruptError("the pickle stops with an open mark")
                return self.stack.pop()
            table[code](self)
        raise LimitError(f"the pickle has more than {opcodes_max} opcodes")

    # The stack, the marks and the memo.

    def pop_mark(self) -> list[object]:
        """Return what was pushed since the last mark."""
        if not self.marked:
            raise CorruptError(f"the pickle needs a mark before byte {self.position}")
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def put(self, index: int) -> None:
        """Remember the top of the stack."""
        if len(self.memo) >= MEMO_ENTRIES_MAX:
            raise LimitError(f"the pickle memorises more than {MEMO_ENTRIES_MAX} values")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        """Push what was remembered."""
        try:
            self.stack.append(self.memo[index])
        except KeyError:
            raise CorruptError(f"the pickle asks for value {index}, which it never memorised") from None

    def push_ref(self, module: object, name: object) -> None:
        """Push a global by name."""
        if type(module) is not str or type(name) is not str:
            raise CorruptError("the pickle names a global by something that is no text")
        ref = self.globals.get((module, name))
        if ref is None:
            ref = self.globals[module, name] = Ref(module, name)
        self.stack.append(ref)

    def push_node(self, function: object, args: object, kwargs: object = None) -> None:
        """Push a call that is not made."""
        if type(args) is not tuple:
            raise CorruptError("the pickle calls something with arguments that are no tuple")
        self.n_objects += 1
        self.stack.append(Node(function, args, kwargs))

    # Marks, memo, constants.

    def op_mark(self) -> None:
        if len(self.marked) >= MARK_DEPTH_MAX:
            raise LimitError(f"the pickle nests deeper than {MARK_DEPTH_MAX} marks")
        self.marked.append(self.stack)
        self.stack = []

    def op_pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def op_pop_mark(self) -> None:
        self.pop_mark()

    def op_dup(self) -> None:
        self.stack.append(self.stack[-1])

    def op_put(self) -> None:
        index = decimal(self.number_line())
        if not 0 <= index < 2**32:
            raise CorruptError(f"the pickle memorises at the impossible index {index}")
        self.put(index)

    def op_binput(self) -> None:
        self.put(self.byte())

    def op_long_binput(self) -> None:
        self.put(self.unsigned(4))

    def op_memoize(self) -> None:
        self.put(len(self.memo))

    def op_get(self) -> None:
        self.get(decimal(self.number_line()))

    def op_binget(self) -> None:
        self.get(self.byte())

    def op_long_binget(self) -> None:
        self.get(self.unsigned(4))

    def op_none(self) -> None:
        self.stack.append(None)

    def op_true(self) -> None:
        self.stack.append(True)

    def op_false(self) -> None:
        self.stack.append(False)

    def op_proto(self) -> None:
        protocol = self.unsigned(1)
        if protocol > 5:
            raise UnsupportedError(f"the pickle has protocol {protocol}; 0 to 5 are read")

    def op_frame(self) -> None:
        n_bytes = self.unsigned(8)
        if self.end != len(self.data):
            raise CorruptError("the pickle begins a frame within a frame")
        if n_bytes > len(self.data) - self.position:
            raise CorruptError(f"the pickle claims a frame of {n_bytes} bytes, fewer are left")
        self.end = self.position + n_bytes

    # Numbers.

    def op_int(self) -> None:
        text = self.number_line()
        if text in (b"00", b"01"):
            self.stack.append(text == b"01")
        else:
            self.stack.append(within_64_bits(decimal(text)))

    def op_long(self) -> None:
        self.stack.append(within_64_bits(decimal(self.number_line().removesuffix(b"L"))))

    def op_binint(self) -> None:
        self.stack.append(int.from_bytes(self.take(4), "little", signed=True))

    def op_binint1(self) -> None:
        self.stack.append(self.byte())

    def op_binint2(self) -> None:
        self.stack.append(self.unsigned(2))

    def op_long1(self) -> None:
        self.stack.append(within_64_bits(int.from_bytes(self.take(self.byte()), "little", signed=True)))

    def op_long4(self) -> None:
        n_bytes = self.unsigned(4)
        if n_bytes >= 2**31:
            raise CorruptError("the pickle has an integer of negative length")
        raw = self.take(n_bytes)
        if n_bytes > NUMBER_BYTES_MAX:
            raise LimitError(f"an integer in the pickle has {n_bytes} bytes, the limit is {NUMBER_BYTES_MAX}")
        self.stack.append(within_64_bits(int.from_bytes(raw, "little", signed=True)))

    def op_float(self) -> None:
        text = self.number_line()
        try:
            self.stack.append(float(text))
        except ValueError:
            raise CorruptError(f"the pickle has a number that is none before byte {self.position}") from None

    def op_binfloat(self) -> None:
        self.stack.append(_BIG_ENDIAN_DOUBLE.unpack(self.take(8))[0])

    # Text and bytes.

    def op_string(self) -> None:
        text = self.line().strip()
        if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
            raise CorruptError(f"the pickle has a text without quotes before byte {self.position}")
        self.stack.append(unescape(text[1:-1]))

    def op_binstring(self) -> None:
        n_bytes = self.unsigned(4)
        self.stack.append(self.take(n_bytes).decode("latin-1"))

    def op_short_binstring(self) -> None:
        self.stack.append(self.take(self.byte()).decode("latin-1"))

    def op_unicode(self) -> None:
        self.stack.append(self.line().decode("raw_unicode_escape"))

    def op_short_binunicode(self) -> None:
        self.stack.append(self.take(self.byte()).decode("utf-8", "surrogatepass"))

    def op_binunicode(self) -> None:
        self.stack.append(self.take(self.unsigned(4)).decode("utf-8", "surrogatepass"))

    def op_binunicode8(self) -> None:
        self.stack.append(self.take(self.unsigned(8)).decode("utf-8", "surrogatepass"))

    def op_short_binbytes(self) -> None:
        self.stack.append(self.take(self.byte()))

    def op_binbytes(self) -> None:
        self.stack.append(self.take(self.unsigned(4)))

    def op_binbytes8(self) -> None:
        self.stack.append(self.take(self.unsigned(8)))

    # Containers.

    def op_empty_list(self) -> None:
        self.stack.append([])

    def op_list(self) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def op_append(self) -> None:
        value = self.stack.pop()
        self._extend([value])

    def op_appends(self) -> None:
        items = self.pop_mark()
        self._extend(items)

    def _extend(self, items: list[object]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is Node:
            if target.items is None:
                target.items = []
            target.items.extend(items)
        else:
            raise CorruptError("the pickle appends to something that is no list")

    def op_empty_tuple(self) -> None:
        self.stack.append(())

    def op_tuple(self) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def op_tuple1(self) -> None:
        self.stack[-1] = (self.stack[-1],)

    def op_tuple2(self) -> None:
        second = self.stack.pop()
        self.stack[-1] = (self.stack[-1], second)

    def op_tuple3(self) -> None:
        third = self.stack.pop()
        second = self.stack.pop()
        self.stack[-1] = (self.stack[-1], second, third)

    def op_empty_dict(self) -> None:
        self._hold(Pairs())

    def op_dict(self) -> None:
        items = self.pop_mark()
        made = Pairs()
        made.pairs.extend(in_pairs(items))
        self._hold(made)

    def _hold(self, container: Pairs | Items) -> None:
        self.n_containers += 1
        if self.n_containers > CONTAINERS_MAX:
            raise LimitError(f"the pickle has more than {CONTAINERS_MAX} dicts and sets")
        self.stack.append(container)

    def op_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._put_in([(key, value)])

    def op_setitems(self) -> None:
        items = self.pop_mark()
        self._put_in(in_pairs(items))

    def _put_in(self, pairs: list[tuple[object, object]]) -> None:
        target = self.stack[-1]
        if type(target) is Pairs:
            target.pairs.extend(pairs)
        elif type(target) is Node:
            if target.pairs is None:
                target.pairs = []
            target.pairs.extend(pairs)
        else:
            raise CorruptError("the pickle sets an item of something that is no dict")

    def op_empty_set(self) -> None:
        self._hold(Items([]))

    def op_additems(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        if type(target) is not Items:
            raise CorruptError("the pickle adds to something that is no set")
        target.items.extend(items)

    def op_frozenset(self) -> None:
        items = self.pop_mark()
        self._hold(Items(items))

    # Globals, calls, persistent references.

    def op_global(self) -> None:
        module = self.line().decode("utf-8", "surrogatepass")
        self.push_ref(module, self.line().decode("utf-8", "surrogatepass"))

    def op_stack_global(self) -> None:
        name = self.stack.pop()
        module = self.stack.pop()
        self.push_ref(module, name)

    def op_reduce(self) -> None:
        args = self.stack.pop()
        function = self.stack.pop()
        self.push_node(function, args)

    def op_newobj_ex(self) -> None:
        kwargs = self.stack.pop()
        args = self.stack.pop()
        function = self.stack.pop()
        self.push_node(function, args, kwargs)

    def op_obj(self) -> None:
        items = self.pop_mark()
        self.push_node(items[0], tuple(items[1:]))

    def op_inst(self) -> None:
        module = self.line().decode("utf-8", "surrogatepass")
        self.push_ref(module, self.line().decode("utf-8", "surrogatepass"))
        function = self.stack.pop()
        items = self.pop_mark()
        self.push_node(function, tuple(items))

    def op_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is not Node:
            raise CorruptError("the pickle gives a state to something that is no object")
        target.state = state

    def op_persid(self) -> NoReturn:
        raise CorruptError("the pickle has a persistent id that is plain text; no checkpoint writer makes such")

    def op_binpersid(self) -> None:
        persistent = Persistent(self.stack.pop())
        self.persistents.append(persistent)
        self.stack.append(persistent)

    def op_extension(self) -> NoReturn:
        raise UnsupportedError("the pickle uses the extension registry of one Python process; it cannot be read")

    def op_buffer(self) -> NoReturn:
        raise UnsupportedError("the pickle keeps its buffers outside of itself; it cannot be read")

    def op_unknown(self) -> NoReturn:
        code = self.data[self.position - 1]
        raise CorruptError(f"byte 0x{code:02x} at {self.position - 1} is no pickle opcode")


_BIG_ENDIAN_DOUBLE = struct.Struct(">d")
_STOP = ord(".")


def opcode_table(m: type[_Machine]) -> list[Callable[[Any], None]]:
    """Return the methods of a machine by opcode."""
    table: list[Callable[[Any], None]] = [m.op_unknown] * 256
    named: dict[bytes, Callable[[Any], None]] = {
        **{b"(": m.op_mark, b"0": m.op_pop, b"1": m.op_pop_mark, b"2": m.op_dup},
        **{b"p": m.op_put, b"q": m.op_binput, b"r": m.op_long_binput, b"\x94": m.op_memoize},
        **{b"g": m.op_get, b"h": m.op_binget, b"j": m.op_long_binget},
        **{b"N": m.op_none, b"\x88": m.op_true, b"\x89": m.op_false, b"\x80": m.op_proto, b"\x95": m.op_frame},
        **{b"I": m.op_int, b"L": m.op_long, b"J": m.op_binint, b"K": m.op_binint1, b"M": m.op_binint2},
        **{b"\x8a": m.op_long1, b"\x8b": m.op_long4, b"F": m.op_float, b"G": m.op_binfloat},
        **{b"S": m.op_string, b"T": m.op_binstring, b"U": m.op_short_binstring, b"V": m.op_unicode},
        **{b"\x8c": m.op_short_binunicode, b"X": m.op_binunicode, b"\x8d": m.op_binunicode8},
        **{b"C": m.op_short_binbytes, b"B": m.op_binbytes, b"\x8e": m.op_binbytes8, b"\x96": m.op_binbytes8},
        **{b"]": m.op_empty_list, b"l": m.op_list, b"a": m.op_append, b"e": m.op_appends},
        **{b")": m.op_empty_tuple, b"t": m.op_tuple, b"\x85": m.op_tuple1, b"\x86": m.op_tuple2, b"\x87": m.op_tuple3},
        **{b"}": m.op_empty_dict, b"d": m.op_dict, b"s": m.op_setitem, b"u": m.op_setitems},
        **{b"\x8f": m.op_empty_set, b"\x90": m.op_additems, b"\x91": m.op_frozenset},
        **{b"c": m.op_global, b"\x93": m.op_stack_global, b"R": m.op_reduce, b"\x81": m.op_reduce},
        **{b"\x92": m.op_newobj_ex, b"o": m.op_obj, b"i": m.op_inst, b"b": m.op_build},
        **{b"P": m.op_persid, b"Q": m.op_binpersid, b"\x97": m.op_buffer, b"\x98": m.op_buffer},
        **{b"\x82": m.op_extension, b"\x83": m.op_extension, b"\x84": m.op_extension},
    }
    for code, method in named.items():
        table[code[0]] = method
    return table


_Machine.table = opcode_table(_Machine)
PickleMachine = _Machine  # for the one that leaves large parts in the file
