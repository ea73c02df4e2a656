from __future__ import annotations

import base64
import copy
import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.measure.codec import measured_from_json, measured_to_json
from monitor.measure.measured import Measured, count_parameters
from storage.records import TensorDrift, TensorKind
from tests.support.measuring import summarise


def _measured() -> Measured:
    rng = np.random.default_rng(0)
    tensors = [
        summarise(rng.standard_normal(5000).astype(np.float32), name="big"),
        summarise(np.array([1.0, math.nan, -math.inf]), name="bad"),
        summarise(np.empty(0, np.float32), name="empty"),
        summarise(np.array([1 + 2j, 3j]).astype(np.complex64), name="complex"),
        dataclasses.replace(summarise(np.ones(4), name="moment"), kind=TensorKind.OPTIMIZER),
        dataclasses.replace(summarise(np.ones(4), name="tied"), tied_to="moment", kind=TensorKind.OPTIMIZER),
    ]
    placed = tuple(dataclasses.replace(t, position=i) for i, t in enumerate(tensors))
    drift = TensorDrift(
        name="big",
        reference_step=4,
        method="exact",
        difference_l2=1.0,
        relative_l2=0.5,
        cosine_distance=0.1,
        max_abs_difference=0.2,
        n_changed=7,
    )
    return Measured(
        format="safetensors",
        step=9,
        epoch=0.5,
        scalars={"lr": 1e-3},
        tensors=placed,
        exact_drifts=(drift,),
        bytes_read=12345,
        n_parameters=count_parameters(placed),
    )


MEASURED = _measured()
DOCUMENT: dict[str, Any] = json.loads(json.dumps(measured_to_json(MEASURED), allow_nan=False))


def test_what_goes_out_as_json_comes_back_equal() -> None:
    assert measured_from_json(DOCUMENT) == MEASURED


def test_an_absent_number_stays_absent() -> None:
    bare = dataclasses.replace(MEASURED, step=None, epoch=None, scalars={}, exact_drifts=())
    assert measured_from_json(json.loads(json.dumps(measured_to_json(bare)))) == bare


def _set(*path: object) -> Callable[[dict[str, Any]], None]:
    *way, last, value = path

    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in way:
            place = place[key]
        place[last] = value

    return change


T0 = ("tensors", 0)
NONSENSE: dict[str, Callable[[dict[str, Any]], None]] = {
    "a field too many": _set("more", 1),
    "a field too few": lambda d: d.pop("step"),
    "a tensor field too few": lambda d: d["tensors"][0].pop("mean"),
    "no format": _set("format", ""),
    "a step that is text": _set("step", "9"),
    "a step that is a bool": _set("step", True),
    "a step beyond 64 bits": _set("step", 2**63),
    "an infinite epoch": _set("epoch", math.inf),
    "a scalar that is NaN": _set("scalars", {"lr": math.nan}),
    "a scalar that is an object": _set("scalars", {"lr": {}}),
    "a scalar with a control character": _set("scalars", {"l\x1br": 1.0}),
    "scalars as a list": _set("scalars", []),
    "too many scalars": _set("scalars", {str(i): 1.0 for i in range(100_001)}),
    "tensors as an object": _set("tensors", {}),
    "a tensor that is text": _set("tensors", 0, "big"),
    "n_parameters made up": _set("n_parameters", 1),
    "negative bytes": _set("bytes_read", -1),
    "an unknown kind": _set(*T0, "kind", "weight"),
    "an empty name": _set(*T0, "name", ""),
    "a name with a terminal escape": _set(*T0, "name", "\x1b[31m"),
    "a name with a line break": _set(*T0, "name", "a\nb"),
    "a name that is too long": _set(*T0, "name", "n" * 5000),
    "a lone surrogate": _set(*T0, "name", "\ud800"),
    "a name twice": _set(*T0, "name", "bad"),
    "a shape of another size": _set(*T0, "shape", [4999]),
    "a negative shape": _set(*T0, "shape", [-1, -5000]),
    "too many dimensions": _set(*T0, "shape", [5000] + [1] * 64),
    "a float in the shape": _set(*T0, "shape", [5000.0]),
    "a position out of order": _set(*T0, "position", 1),
    "more NaN than elements": _set(*T0, "n_nan", 5001),
    "a negative count": _set(*T0, "n_zero", -1),
    "a mean of NaN": _set(*T0, "mean", math.nan),
    "a mean of text": _set(*T0, "mean", "1"),
    "a mean that is an enormous integer": _set(*T0, "mean", 10**400),
    "a negative std": _set(*T0, "std", -1.0),
    "a minimum above the maximum": _set(*T0, "min", 1e9),
    "a minimum without a maximum": _set(*T0, "max", None),
    "too many quantiles": _set(*T0, "quantiles", {str(i): 0.0 for i in range(100)}),
    "tied to itself": _set(*T0, "tied_to", "big"),
    "tied to a later tensor": _set(*T0, "tied_to", "bad"),
    "bins out of order": lambda d: d["tensors"][0]["histogram"]["bin_indices"].reverse(),
    "a bin outside the scheme": _set(*T0, "histogram", "bin_indices", 0, -20_000),
    "a count for no bin": lambda d: d["tensors"][0]["histogram"]["counts"].append(1),
    "a sample larger than its counts": _set(*T0, "histogram", "n_sampled", 4000),
    "a histogram of more elements than there are": lambda d: d["tensors"][0]["histogram"].update(
        bin_indices=[1], counts=[10**9], n_sampled=10**9
    ),
    "an exact of 1": _set(*T0, "histogram", "exact", 1),
    "a sketch of another kind": _set(*T0, "sketch", "kind", "full"),
    "a sketch of objects": _set(*T0, "sketch", "dtype", "object"),
    "a sketch that is too short": _set(*T0, "sketch", "values", "AAAA"),
    "a sketch that is no base64": _set(*T0, "sketch", "values", "!" * 5448),
    "a sketch with NaN": _set(*T0, "sketch", "values", base64.b64encode(b"\xff" * 4084).decode()),
    "too many buckets": _set(*T0, "sketch", "n_buckets", 10**9),
    "a raw sketch of another length": _set("tensors", 1, "sketch", "values", "AAAAAAAAAAA="),
    "a drift of an unknown tensor": _set("exact_drifts", 0, "name", "nobody"),
    "a sketched drift": _set("exact_drifts", 0, "method", "sketch"),
    "more changes than elements": _set("exact_drifts", 0, "n_changed", 5001),
    "a cosine distance above two": _set("exact_drifts", 0, "cosine_distance", 2.5),
    "a negative distance": _set("exact_drifts", 0, "difference_l2", -1.0),
    "a drift twice": lambda d: d["exact_drifts"].append(d["exact_drifts"][0]),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_from_a_worker_is_refused(case: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    NONSENSE[case](document)
    with pytest.raises(ValueError, match=r"^(measured|tensors|exact_drifts|n_parameters)\b"):
        measured_from_json(document)


@pytest.mark.parametrize("document", [None, [], "", 1, {}, [DOCUMENT]])
def test_what_is_no_measured_at_all_is_refused(document: object) -> None:
    with pytest.raises(ValueError, match="measured: expected an object"):
        measured_from_json(document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def _places(node: object, way: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [way, *(place for key, value in items for place in _places(value, (*way, key)))]


SMALL = {**DOCUMENT, "tensors": DOCUMENT["tensors"][1:2], "exact_drifts": [], "n_parameters": 3}
SMALL["tensors"] = [{**SMALL["tensors"][0], "position": 0}]
PLACES = [p for p in _places(SMALL) if p]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(PLACES), JSON)
def test_any_change_gives_a_value_error_or_a_document_that_means_itself(way: tuple[object, ...], value: object) -> None:
    document = copy.deepcopy(SMALL)
    _set(*way, value)(document)
    try:
        measured = measured_from_json(document)
    except ValueError:
        return
    assert measured_from_json(json.loads(json.dumps(measured_to_json(measured), allow_nan=False))) == measured
