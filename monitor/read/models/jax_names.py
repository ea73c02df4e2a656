"""Names and kinds for trees of JAX: flax variables, train states, optax states. Pure functions over keys.

A `params` at the top is left out of the names, so that a train state, a variables dict and a bare tree of parameters
give the same ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from monitor.read.naming import MODEL_CONTAINERS, is_optimizer_key, is_side_key, kind_of_flat_name, refine_kind
from storage.records import TensorKind

_PARAMETERS = "params"
# Collections of flax that hold what is no parameter but belongs to the model.
_STATISTICS = frozenset({"batch_stats", "cache", "spectral_stats", "quant", "buffers", "state"})


def model_prefix(tops: Collection[str], inner: Collection[str]) -> tuple[str, ...]:
    """Return the keys that lead to the parameters, to be left out; () for a bare tree of parameters.

    `tops` are the keys at the top, `inner` those below the first of them that holds a model.
    """
    top = next((key for key in (_PARAMETERS, *MODEL_CONTAINERS) if key in tops), None)
    if top is None:
        return ()
    return (
        (top, _PARAMETERS) if (_PARAMETERS in inner and top != _PARAMETERS) or set(inner) == {_PARAMETERS} else (top,)
    )


def name_and_kind(
    path: Sequence[str], prefix: tuple[str, ...], dtype: str, n_dimensions: int
) -> tuple[str, TensorKind]:
    """Return the dotted name of the leaf at `path`, without the model's prefix, and its kind."""
    if prefix and tuple(path[: len(prefix)]) == prefix:
        name = ".".join(path[len(prefix) :])
        return name, refine_kind(name, dtype, n_dimensions, TensorKind.PARAMETER)
    name = ".".join(path)
    if not prefix:
        return name, kind_of_flat_name(name, dtype, n_dimensions)
    if len(path) > 1 and is_optimizer_key(path[0]):
        return name, TensorKind.OPTIMIZER
    if path[0] in _STATISTICS or (path[0] == prefix[0] and len(path) > 1 and path[1] in _STATISTICS):
        return name, TensorKind.BUFFER
    if path[0] == prefix[0] and not is_side_key(path[0]):
        return name, refine_kind(name, dtype, n_dimensions, TensorKind.PARAMETER)
    return name, TensorKind.OTHER
