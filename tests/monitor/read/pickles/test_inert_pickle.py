from __future__ import annotations

import argparse
import copyreg
import datetime
import fractions
import io
import pickle
import struct
import tracemalloc
from collections import Counter, OrderedDict, defaultdict, namedtuple
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.read.pickles.inert_nodes import Items, Node, Pairs, Persistent, Ref
from monitor.read.pickles.inert_pickle import MARK_DEPTH_MAX, parse
from monitor.read.pickles.opcode_arguments import NUMBER_BYTES_MAX
from monitor.read.pickles.pickle_values import BIG_INTEGER
from monitor.read.reader import CorruptError, LimitError, ReadError, ReadLimits, UnsupportedError
from tests.hostile.pickles import STOP, call, integer, mapping, payloads, ref, text
from tests.support.audit import audited

LIMITS = ReadLimits()
PROTOCOLS = range(6)


def plain(value: object) -> Any:
    """Return what ordinary unpickling would have made of plain containers and values."""
    if isinstance(value, Pairs):
        return {plain(key): plain(inner) for key, inner in value.pairs}
    if isinstance(value, Items):
        return {plain(item) for item in value.items}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, Node) and isinstance(value.function, Ref):
        name, args = value.function.name, value.args
        if name == "encode" and isinstance(args, tuple):  # bytes in protocols 0 to 2
            return args[0].encode("latin-1")
        if name in ("set", "frozenset", "bytes", "bytearray") and isinstance(args, tuple):
            made = {"set": set, "frozenset": set, "bytes": bytes, "bytearray": bytes}[name]
            return made(plain(args[0])) if args else made()
    return value


keys = st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1), st.none(), st.booleans(), st.floats(allow_nan=False))
values = st.recursive(
    st.one_of(keys, st.binary(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(
        st.lists(inner),
        st.dictionaries(keys, inner),
        st.tuples(inner, inner),
        st.sets(st.integers(-1000, 1000)),
    ),
    max_leaves=30,
)


@given(value=values, protocol=st.sampled_from(list(PROTOCOLS)))
def test_plain_values_of_every_protocol_come_out_as_they_went_in(value: object, protocol: int) -> None:
    assert plain(parse(pickle.dumps(value, protocol), LIMITS).root) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_large_texts_and_many_items_of_every_protocol_come_out_as_they_went_in(protocol: int) -> None:
    value = {
        "long": "x" * 200_000,
        "many": list(range(3000)),
        "raw": bytes(range(256)) * 300,
        "umlaut": "ä\u2028\U0001f600",
    }
    assert plain(parse(pickle.dumps(value, protocol), LIMITS).root) == value


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_become_nodes_that_remember_function_arguments_and_state(protocol: int) -> None:
    result = parse(pickle.dumps(argparse.Namespace(lr=0.1, name="run"), protocol), LIMITS)
    assert isinstance(result.root, Node)
    assert isinstance(result.root.state, Pairs)
    assert plain(result.root.state) == {"lr": 0.1, "name": "run"}
    assert "argparse.Namespace" in result.globals_seen
    assert result.n_objects == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        OrderedDict(a=1),
        Counter("abba"),
        defaultdict(list, {"k": [1]}),
        fractions.Fraction(1, 3),
        datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC),
        Path("/x"),
        complex(1, 2),
        range(3),
        {1, 2},
        frozenset({1}),
        slice(1, 2),
        bytearray(b"abc"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_ordinary_objects_parse_without_being_made(value: object, protocol: int) -> None:
    parse(pickle.dumps(value, protocol), LIMITS)


def test_shared_values_stay_shared_and_cycles_stay_cycles() -> None:
    shared: list[object] = [1]
    shared.append(shared)
    root = parse(pickle.dumps({"a": shared, "b": shared}), LIMITS).root
    assert isinstance(root, Pairs)
    first, second = (value for _, value in root.pairs)
    assert first is second
    assert isinstance(first, list)
    assert first[1] is first


def test_persistent_references_are_kept_with_their_id() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", "key") if isinstance(obj, complex) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump([1j])
    result = parse(stream.getvalue(), LIMITS)
    assert isinstance(result.root, list)
    assert isinstance(result.root[0], Persistent)
    assert result.persistents == (result.root[0],)


@pytest.mark.parametrize("name", payloads("x"))
def test_what_a_pickle_would_run_is_not_run(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    data = b"\x80\x04" + mapping({"evil": payloads(str(canary))[name], "good": integer(5)}) + STOP
    with audited() as events:
        result = parse(data, LIMITS)
    assert events == []
    assert not canary.exists()
    assert isinstance(result.root, Pairs)
    assert plain(result.root.pairs[1][1]) == 5


@pytest.mark.parametrize("name", ["reduce", "stack_global", "memoised_stack_global", "inst", "obj", "path_touch"])
def test_the_canaries_would_have_worked(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with audited() as events:
        pickle.loads(b"\x80\x04" + payloads(str(canary))[name] + STOP)
    assert canary.exists()
    assert events != []


def test_the_globals_are_listed(tmp_path: Path) -> None:
    result = parse(call("os", "system", text("true")) + STOP, LIMITS)
    assert result.globals_seen == ("os.system",)


class _Evil:
    """Registered as a copyreg extension, so that the interpreter's cache would serve it without a look-up by name."""


@pytest.mark.parametrize("opcode", [b"\x82\x7b", b"\x83\x7b\x00", b"\x84\x7b\x00\x00\x00"])
def test_the_extension_registry_is_refused(opcode: bytes) -> None:
    copyreg.add_extension(__name__, "_Evil", 0x7B)
    try:
        with pytest.raises(UnsupportedError):
            parse(opcode + STOP, LIMITS)
    finally:
        copyreg.remove_extension(__name__, "_Evil", 0x7B)


@pytest.mark.parametrize("opcode", [b"\x97", b"\x98", b"N\x98"])
def test_buffers_outside_of_the_pickle_are_refused(opcode: bytes) -> None:
    with pytest.raises(UnsupportedError):
        parse(opcode + STOP, LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"N",
        b".",
        b"\xff.",
        b"N.N",
        b"Ptext\n.",
        b"(.",
        b"(N.",
        b"h\x00.",
        b"g5\n.",
        b"gx\n.",
        b"p\n.",
        b"Np99999999999999999999\n.",
        b"Np-1\n.",
        b"Ix\n.",
        b"I\n.",
        b"L12x\n.",
        b"Fx\n.",
        b"Sno quotes\n.",
        b"S'open\n.",
        b"Sx",
        b"V\\u12\n.",
        b"X\x01\x00\x00\x00\xff.",
        b"NNs.",
        b"N(NNu.",
        b"}(Nu.",
        b"(Nd.",
        b"NNa.",
        b"N(Ne.",
        b"N(N\x90.",
        b"NNR.",
        b"N]R.",
        b"N]\x81.",
        b"NNb.",
        b"}}b.",
        b"NN\x93.",
        b"K\x01X\x01\x00\x00\x00a\x93.",
        b"(o.",
        b"cos\n",
        b"cos",
        b"\x95\x05\x00\x00\x00\x00\x00\x00\x00N.",
    ],
)
def test_what_breaks_the_rules_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        parse(data, LIMITS)


@pytest.mark.parametrize("code", range(256))
def test_every_opcode_on_an_empty_stack_ends_in_an_error_of_the_tree_or_a_value(code: int) -> None:
    for tail in (b"", b".", b"\0" * 16 + b".", b"\xff" * 16 + b"."):
        try:
            parse(bytes([code]) + tail, LIMITS)
        except ReadError as error:
            assert str(error).isprintable()  # noqa: PT017 - which opcodes are errors depends on the tail


@pytest.mark.parametrize("opcode", [b"\x8d", b"\x8e", b"\x96", b"\x95"])
@pytest.mark.parametrize("length", [2**40, 2**63, 2**64 - 1])
def test_a_length_beyond_the_data_is_refused_before_anything_is_allocated(opcode: bytes, length: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError):
            parse(opcode + struct.pack("<Q", length) + b"abc.", LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data", [b"X\xff\xff\xff\xffabc.", b"B\xff\xff\xff\x7fabc.", b"T\xff\xff\xff\xffab.", b"\x8b\xff\xff\xff\xff."]
)
def test_a_32_bit_length_beyond_the_data_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptError):
        parse(data, LIMITS)


def test_a_memo_bomb_costs_one_entry() -> None:
    tracemalloc.start()
    try:
        assert parse(b"]r\xff\xff\xff\x7f.", LIMITS).root == []
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


FRAME = b"\x95"


@pytest.mark.parametrize(
    "data",
    [
        FRAME + struct.pack("<Q", 1) + b"K\x01.",  # an opcode's argument outside of the frame
        FRAME + struct.pack("<Q", 3) + b"X\x03\x00\x00\x00abc.",
        FRAME + struct.pack("<Q", 4) + b"cos\nsystem\n.",
        FRAME + struct.pack("<Q", 10) + FRAME + struct.pack("<Q", 1) + b"N.",  # a frame in a frame
        FRAME + struct.pack("<Q", 3) + b"N.N",  # STOP within the frame
    ],
)
def test_opcodes_that_straddle_a_frame_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        parse(data, LIMITS)


def test_frames_that_end_between_opcodes_are_read() -> None:
    assert parse(FRAME + struct.pack("<Q", 2) + b"K\x01" + FRAME + struct.pack("<Q", 1) + b".", LIMITS).root == 1


def test_numbers_are_kept_within_64_bits() -> None:
    assert parse(pickle.dumps([2**63 - 1, -(2**63)]), LIMITS).root == [2**63 - 1, -(2**63)]
    assert parse(pickle.dumps([2**63, -(2**63) - 1, 10**500]), LIMITS).root == [BIG_INTEGER] * 3
    assert parse(pickle.dumps([2**63], 0), LIMITS).root == [BIG_INTEGER]


@pytest.mark.parametrize(
    "data", [b"I" + b"1" * 10**6 + b"\n.", b"L" + b"1" * 2000 + b"L\n.", b"F" + b"1" * 2000 + b"\n."]
)
def test_a_number_of_many_digits_is_over_the_limit(data: bytes) -> None:
    with pytest.raises(LimitError):
        parse(data, LIMITS)


def test_numbers_at_the_limit_of_digits_are_read_and_one_more_is_not() -> None:
    assert parse(b"I" + b"1" * NUMBER_BYTES_MAX + b"\n.", LIMITS).root == BIG_INTEGER
    with pytest.raises(LimitError):
        parse(b"I" + b"1" * (NUMBER_BYTES_MAX + 1) + b"\n.", LIMITS)
    at_limit = b"\x8b" + struct.pack("<I", NUMBER_BYTES_MAX) + b"\x01" * NUMBER_BYTES_MAX
    assert parse(at_limit + STOP, LIMITS).root == BIG_INTEGER
    with pytest.raises(LimitError):
        parse(b"\x8b" + struct.pack("<I", NUMBER_BYTES_MAX + 1) + b"\x01" * (NUMBER_BYTES_MAX + 1) + STOP, LIMITS)


def test_the_limits_of_size_and_opcodes_hold_at_their_value_and_not_beyond() -> None:
    data = b"N0" * 10 + b"N."
    n_opcodes = 22
    assert parse(data, ReadLimits(pickle_opcodes_max=n_opcodes, pickle_bytes_max=len(data))).root is None
    with pytest.raises(LimitError):
        parse(data, ReadLimits(pickle_opcodes_max=n_opcodes - 1))
    with pytest.raises(LimitError):
        parse(data, ReadLimits(pickle_bytes_max=len(data) - 1))


def test_nested_marks_are_limited() -> None:
    parse(b"(" * MARK_DEPTH_MAX + b"t" * MARK_DEPTH_MAX + STOP, LIMITS)
    with pytest.raises(LimitError):
        parse(b"(" * (MARK_DEPTH_MAX + 1) + b"t" * (MARK_DEPTH_MAX + 1) + STOP, LIMITS)


@pytest.mark.parametrize("data", [b")" + b"\x85" * 1_000_000, b"]" * 1_000_000 + b"a" * 999_999], ids=["tuple", "list"])
def test_a_million_nested_containers_are_parsed_without_recursion(data: bytes) -> None:
    parse(data + STOP, LIMITS)


def test_a_deep_tuple_as_a_key_is_never_hashed() -> None:
    data = b"})" + b"\x85" * 1_000_000 + b"Ns."
    root = parse(data, LIMITS).root
    assert isinstance(root, Pairs)
    assert len(root.pairs) == 1


@pytest.mark.parametrize("shared", [b"2", b"h\x00"])
def test_billion_laughs_are_cheap_to_parse(shared: bytes) -> None:
    layer = b"(" + b"h\x00" * 9 + b"tq\x00" if shared == b"h\x00" else b"2\x86"
    data = b"X\x03\x00\x00\x00lolq\x00" + layer * 60 + STOP
    tracemalloc.start()
    try:
        parse(data, LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_colliding_keys_cost_nothing() -> None:
    keys = b"".join(
        b"\x8a\x0a" + (i * (2**61 - 1) + 1).to_bytes(10, "little", signed=True) + b"N" for i in range(100_000)
    )
    root = parse(b"}(" + keys + b"u.", LIMITS).root
    assert isinstance(root, Pairs)
    assert len(root.pairs) == 100_000


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a\u202eb", "<img onerror=x>", "x" * 5_000_000])
def test_any_text_may_be_the_name_of_a_class(name: str) -> None:
    result = parse(text("m") + text(name) + b"\x93)R.", LIMITS)
    assert result.globals_seen == (f"m.{name}",)


def test_trailing_bytes_are_refused_unless_asked_for() -> None:
    data = pickle.dumps(1) + b"tail"
    with pytest.raises(CorruptError):
        parse(data, LIMITS)
    assert parse(data, LIMITS, allow_trailing=True).n_bytes == len(data) - 4


@given(data=st.binary(max_size=60))
def test_random_bytes_give_a_value_or_an_error_of_the_tree(data: bytes) -> None:
    with suppress(ReadError):
        parse(data, LIMITS)


@given(value=values, place=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_changed_byte_gives_a_value_or_an_error_of_the_tree(value: object, place: int, byte: int) -> None:
    data = bytearray(pickle.dumps({"k": value}))
    data[place % len(data)] = byte
    with suppress(ReadError):
        parse(bytes(data), LIMITS)


def test_protocol_0_texts_with_escapes_come_out_as_they_went_in() -> None:
    root = parse(b"(S'a\\n\\x41\\101\\\\\\'\\q'\nS\"b\"\nl.", LIMITS).root
    assert root == ["a\nAA\\'q", "b"]


def test_a_call_with_arguments_that_are_no_tuple_is_corrupt() -> None:
    with pytest.raises(CorruptError):
        parse(ref("os", "system") + b"]R.", LIMITS)


def test_sets_and_their_items_are_kept() -> None:
    root = parse(b"\x8f(K\x01K\x02\x90.", LIMITS).root
    assert isinstance(root, Items)
    assert root.items == [1, 2]
    assert plain(parse(pickle.dumps(frozenset({7})), LIMITS).root) == {7}
