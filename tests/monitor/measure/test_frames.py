from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.measure import frames

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | FLOATS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_a_document_comes_back_as_it_was(document: dict[str, Any]) -> None:
    frame = frames.encode(document, bytes_max=10**6)
    size = frames.HEADER.size
    assert frames.length(frame[:size], bytes_max=10**6) == len(frame) - size
    assert frames.decode(frame[size:]) == document


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_a_frame_error(body: bytes) -> None:
    try:
        document = frames.decode(body)
    except frames.FrameError:
        return
    assert isinstance(document, dict)


def test_the_limit_is_exact_on_both_sides() -> None:
    frame = frames.encode({"a": "x" * 92}, bytes_max=100)
    assert len(frame) == 104
    with pytest.raises(frames.FrameError, match="limit"):
        frames.encode({"a": "x" * 93}, bytes_max=100)
    assert frames.length(frames.HEADER.pack(100), bytes_max=100) == 100
    with pytest.raises(frames.FrameError, match="announced"):
        frames.length(frames.HEADER.pack(101), bytes_max=100)


def test_a_path_that_is_no_text_crosses_unchanged() -> None:
    frame = frames.encode({"path": "/r/\udcff.pt"}, bytes_max=100)
    assert frames.decode(frame[frames.HEADER.size :]) == {"path": "/r/\udcff.pt"}
