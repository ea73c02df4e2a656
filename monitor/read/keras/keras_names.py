"""What Keras calls a variable, from the place at which it saved it; pure text and shapes.

Keras 3 saves the variables of a layer under numbers (`layers/dense_1/vars/0`) and notes only the layer's name. The
names of the variables follow from the layer's class, which the place tells, or from the shapes; where neither does, the
number stays. The model's own name is left out, as in the paths of a functional model, so that every way to save a model
gives the same names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from monitor.read.naming import refine_kind
from storage.records import TensorKind

BUFFER_NAMES = frozenset({"moving_mean", "moving_variance", "seed_generator_state"})

_PLAIN = ("kernel", "bias")
_SCALE = ("gamma", "beta")
_RECURRENT = ("kernel", "recurrent_kernel", "bias")
# The variables of Keras' layers in the order in which they are made, by the snake-case name of the class.
_VARIABLES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("dense", "einsum_dense", "conv1d", "conv2d", "conv3d", "conv"), _PLAIN),
    **dict.fromkeys(("conv1d_transpose", "conv2d_transpose", "conv3d_transpose"), _PLAIN),
    **dict.fromkeys(("depthwise_conv1d", "depthwise_conv2d"), _PLAIN),
    **dict.fromkeys(("separable_conv1d", "separable_conv2d"), ("depthwise_kernel", "pointwise_kernel", "bias")),
    **dict.fromkeys(("layer_normalization", "group_normalization"), _SCALE),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "rms_normalization": ("scale",),
    "normalization": ("mean", "variance", "count"),
    "embedding": ("embeddings",),
    "p_re_lu": ("alpha",),
    "spectral_normalization": ("vector_u",),
    **dict.fromkeys(("lstm_cell", "gru_cell", "simple_rnn_cell", "conv_lstm_cell"), _RECURRENT),
    **dict.fromkeys(("conv_lstm1d_cell", "conv_lstm2d_cell", "conv_lstm3d_cell"), _RECURRENT),
    "seed_generator": ("seed_generator_state",),
}
# Composite layers of Keras whose parts are saved by the alphabet but were made in this order.
_MADE_IN_ORDER = {
    name: rank
    for parts in (
        ("forward_layer", "backward_layer"),
        ("query_dense", "key_dense", "value_dense", "output_dense"),
        ("_query_dense", "_key_dense", "_value_dense", "_output_dense"),
    )
    for rank, name in enumerate(parts)
}
_NUMBER = re.compile(r"_\d+$")
_VARS = "vars"


@dataclass(frozen=True, slots=True, kw_only=True)
class KerasVariable:
    """One saved variable: `index` is its place in the list that was given, `name` what Keras calls it."""

    index: int
    name: str
    kind: TensorKind


@dataclass(frozen=True, slots=True, kw_only=True)
class KerasVariables:
    """The model's variables in the order in which Keras made them, and whether that order is known for sure."""

    model: tuple[KerasVariable, ...]
    is_order_known: bool


class _Group:
    """A node of the tree of places: numbered variables of its own, and parts in order of creation."""

    __slots__ = ("own", "parts")

    def __init__(self) -> None:
        self.own: dict[str, int] = {}
        self.parts: dict[str, _Group] = {}


def split_place(path: str) -> tuple[tuple[str, ...], str] | None:
    """Return (places of the layer, key of the variable) of `a/b/vars/0`, None for what Keras 3 did not save."""
    *layer, marker, key = path.split("/") if path.count("/") else ("", path)
    return (tuple(layer), key) if marker == _VARS else None


def name_variables(
    paths: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str],
    layer_names: Mapping[str, str],
) -> KerasVariables:
    """Name the variables saved at `paths`, which are in order of creation and all have a place as `split_place` wants.

    `layer_names` maps the place of a `vars` group to the name of the layer that it belongs to.
    """
    root = _Group()
    for index, path in enumerate(paths):
        place = split_place(path)
        assert place is not None
        group = root
        for part in place[0]:
            group = group.parts.setdefault(part, _Group())
        group.own[place[1]] = index
    found: list[KerasVariable] = []
    known = [True]
    _collect(root, ((), ()), (shapes, dtypes, layer_names), found, known)
    return KerasVariables(model=tuple(found), is_order_known=known[0])


_Facts = tuple[Sequence[tuple[int, ...]], Sequence[str], Mapping[str, str]]


def _collect(
    group: _Group,
    at: tuple[tuple[str, ...], tuple[str, ...]],
    facts: _Facts,
    found: list[KerasVariable],
    known: list[bool],
) -> None:
    """Append the variables below a group; `at` is its place and the names on the way there."""
    place, names = at
    shapes, dtypes, layer_names = facts
    keys = sorted(group.own, key=lambda k: (int(k) if k.isdecimal() and len(k) < 10 else inf, k))
    own_shapes = [shapes[group.own[key]] for key in keys]
    layer_name = names[-1] if names else ""
    variable_names = _variable_names(keys, own_shapes, place[-1] if place else "", layer_name)
    for key, variable in zip(keys, variable_names, strict=True):
        index = group.own[key]
        name = "/".join((*names, variable))
        found.append(KerasVariable(index=index, name=name, kind=kind_of(name, dtypes[index], len(shapes[index]))))
    is_layer = bool(group.own) or "/".join((*place, _VARS)) in layer_names
    with_parts = [name for name, part in group.parts.items() if _holds_trainable(part)]
    if is_layer and place and len(with_parts) > 1 and not all(name in _MADE_IN_ORDER for name in with_parts):
        known[0] = False
    if is_layer and not place and with_parts not in ([], ["layers"]):
        known[0] = False
    for part in sorted(group.parts, key=lambda name: _MADE_IN_ORDER.get(name, -1)):
        inner = (*place, part)
        layer = layer_names.get("/".join((*inner, _VARS))) or (part if group.parts[part].own else None)
        _collect(group.parts[part], (inner, (*names, layer) if layer else names), facts, found, known)


def _holds_trainable(group: _Group) -> bool:
    waiting = [("", group)]
    while waiting:
        name, here = waiting.pop()
        if here.own and _NUMBER.sub("", name) != "seed_generator":
            return True
        waiting.extend(here.parts.items())
    return False


def _variable_names(
    keys: Sequence[str], shapes: Sequence[tuple[int, ...]], place: str, layer_name: str
) -> tuple[str, ...]:
    """Return the names of one layer's variables: by its class, else by the shapes, else by their numbers."""
    if keys != [str(i) for i in range(len(keys))]:
        return tuple(key if not key.isdecimal() else f"{_VARS}/{key}" for key in keys)
    for candidate in (place, layer_name):
        names = _VARIABLES.get(_NUMBER.sub("", candidate))
        if names is not None and _fits(names, shapes):
            return _taken(names, shapes)
    if len(shapes) == 2 and len(shapes[0]) > len(shapes[1]) > 0 and shapes[0][-len(shapes[1]) :] == shapes[1]:
        return _PLAIN
    return tuple(f"{_VARS}/{key}" for key in keys)


def _fits(names: tuple[str, ...], shapes: Sequence[tuple[int, ...]]) -> bool:
    if len(shapes) > len(names):
        return False
    if names is _VARIABLES["batch_normalization"]:
        return len(shapes) in (2, 4)  # of one scale alone nothing says whether it is gamma or beta
    return len(shapes) == len(names) or names[-1] == "bias"


def _taken(names: tuple[str, ...], shapes: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
    return names[-len(shapes) :] if names is _VARIABLES["batch_normalization"] else names[: len(shapes)]


def kind_of(name: str, dtype: str, n_dimensions: int) -> TensorKind:
    """Return the kind of a model's variable, judged by its last name and its dtype."""
    last = name.rpartition("/")[2]
    if last in BUFFER_NAMES:
        return TensorKind.BUFFER
    return refine_kind(last, dtype, n_dimensions, TensorKind.PARAMETER)
