"""Text logs: whole, cut off, damaged, and hostile."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from monitor.logbook.points import LogPoint
from monitor.logbook.text_logs import csv_table, json_lines, trainer_state


def test_a_history_is_read_with_nan_as_pythons_json_writes_it() -> None:
    content = b'{"log_history": [{"step": 10, "loss": NaN, "grad_norm": Infinity}, {"step": 20, "loss": 1.5}, 7, {}]}'
    found = trainer_state(content)
    assert [(p.step, p.key) for p in found] == [(10, "loss"), (10, "grad_norm"), (20, "loss")]
    assert math.isnan(found[0].value)


def test_what_is_no_trainer_state_says_nothing() -> None:
    for content in (b"", b"{", b"[]", b'{"log_history": 3}', b"[" * 100_000, b'{"log_history": {"a": 1}}', b"\xff\xfe"):
        assert trainer_state(content) == []


def test_lines_are_read_one_by_one_and_damaged_ones_are_passed_over() -> None:
    content = b'{"step": 1, "loss": 3}\nnot json\n{"step": 2, "loss": 2}\n[1]\n{"step": 3, "lo'
    assert json_lines(content, whole=True) == [LogPoint(1, "loss", 3.0), LogPoint(2, "loss", 2.0)]


def test_the_first_line_of_the_end_of_a_file_is_not_trusted() -> None:
    assert json_lines(b'{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}', whole=False) == [LogPoint(2, "loss", 2.0)]


def test_a_table_is_read_by_its_header_with_empty_cells_left_out() -> None:
    table = b"epoch,step,train_loss,val_loss\r\n0,9,2.0,\r\n0,9,,1.5\r\n0,19,1.0"
    assert csv_table(table, table) == [LogPoint(9, "loss", 2.0), LogPoint(9, "eval_loss", 1.5)]


def test_the_end_of_a_table_needs_only_the_header_of_its_beginning() -> None:
    head = b"step,loss\n1,9.0\n"
    assert csv_table(head, b"0,8.0\n30,2.0\n31,nan\n")[0] == LogPoint(30, "loss", 2.0)


def test_a_table_of_other_things_says_nothing() -> None:
    table = b"name,age\nx,3\n"
    assert csv_table(table, table) == []
    wide = b",".join(b"step" for _ in range(2000)) + b"\n"
    assert csv_table(wide, wide) == []


@given(st.binary(max_size=400), st.booleans())
def test_no_bytes_make_the_parsers_raise(content: bytes, whole: bool) -> None:
    trainer_state(content)
    json_lines(content, whole=whole)
    csv_table(content, content)
    json_lines(b'{"step": 1, "loss": ' + content, whole=True)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["step", "loss", "x"]), inner),
        max_leaves=10,
    )
)
def test_no_document_makes_the_parsers_raise(document: object) -> None:
    text = json.dumps(document).encode()
    trainer_state(b'{"log_history": [' + text + b"]}")
    json_lines(text, whole=True)
