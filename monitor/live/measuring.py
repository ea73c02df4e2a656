"""From any object that holds weights to the records that files give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike, fspath
from typing import Any

from monitor.live.boosters import booster_checkpoint
from monitor.live.collections import collection
from monitor.live.estimators import estimator_checkpoint
from monitor.live.keras_models import keras_model
from monitor.live.leaves import is_leaf, owners
from monitor.live.memory import CHUNK_BYTES, memory_checkpoint
from monitor.live.tensorflow_objects import tensorflow_object
from monitor.live.torch_models import torch_model
from monitor.measure.bias_comparison import compare_biases
from monitor.measure.comparison import Comparison, compare, pairs_to_read
from monitor.measure.matching import match_tensors
from monitor.measure.measured import Measured
from monitor.measure.options import MeasureOptions
from monitor.measure.pair_comparison import compare_pairs
from monitor.measure.recurrent_bias import join_biases
from monitor.measure.snapshot import measure_checkpoint
from monitor.read.reader import OpenCheckpoint, ReadLimits, UnsupportedError
from monitor.read.registry import open_path
from monitor.read.renamed import without_wrappers

_LIMITS = ReadLimits(chunk_bytes_max=CHUNK_BYTES)


def measure(model: Any, optimizer: Any = None, *, options: MeasureOptions | None = None) -> Measured:
    """Measure every tensor of a model in memory.

    `model` is a torch.nn.Module, a Keras model or layer, a tf.train.Checkpoint or tf.Module, a fitted estimator
    of scikit-learn, XGBoost or LightGBM, one of their Boosters, or a variable, list or dict of tensors. `optimizer` is
    the torch or Keras optimizer that trains it, None to leave it out. Names, kinds, dtypes and statistics are those of
    the files that the framework would write; `step` is None unless the object tells it, and `bytes_read` counts the
    bytes of the tensors. Raises UnsupportedError (a ReadError) for an object of another kind, or without any tensor.
    """
    checkpoint, framework = opened(model, optimizer)
    return measure_checkpoint(checkpoint, options or MeasureOptions(), format=framework)


def diff(a: Any, b: Any, *, options: MeasureOptions | None = None) -> Comparison:
    """Compare two models in memory, `a` the older one, tensor by tensor, of whatever frameworks they are.

    Each is what `measure` takes, or the path of a checkpoint. Tensors are matched by name rules and numbers, and count
    as the same when they are equal bit by bit with their axes in the other framework's order. Raises ReadError for a
    path that cannot be read or an object of another kind.
    """
    chosen = replace(options or MeasureOptions(), drift="exact")
    with _side(a) as (old, old_format), _side(b) as (new, new_format):
        before = measure_checkpoint(old, chosen, format=old_format)
        after = measure_checkpoint(new, chosen, format=new_format, reference=old)
        matching, joined = join_biases(match_tensors(before.tensors, after.tensors))
        results = list(compare_pairs(old, new, pairs_to_read(matching, after, joined)))
        for bias in joined:
            results += compare_biases(old, new, bias)
        return compare(matching, after, results, joined)


@contextmanager
def _side(model: Any) -> Iterator[tuple[OpenCheckpoint, str]]:
    if not isinstance(model, str | PathLike):
        yield opened(model)
        return
    with open_path(fspath(model), _LIMITS) as found:
        yield found.checkpoint, found.format
        found.file.verify_unchanged()


def opened(model: Any, optimizer: Any = None) -> tuple[OpenCheckpoint, str]:
    """Return an object as an open checkpoint, and the framework that it is of."""
    checkpoint, framework = _opened(model, optimizer)
    if not checkpoint.tensors:
        raise UnsupportedError(f"the {type(model).__name__} holds no tensors; has it been built and fitted?")
    return without_wrappers(checkpoint, _LIMITS), framework


def _opened(model: Any, optimizer: Any) -> tuple[OpenCheckpoint, str]:
    packages = owners(model)
    if packages & {"keras", "tf_keras"} and hasattr(model, "variables"):
        return memory_checkpoint(keras_model(model, optimizer, _LIMITS), _LIMITS), "keras"
    if "torch" in packages and hasattr(model, "named_parameters"):
        return memory_checkpoint(torch_model(model, optimizer), _LIMITS), "torch"
    if "tensorflow" in packages and not is_leaf(model) and not isinstance(model, list | tuple | Mapping):
        return memory_checkpoint(tensorflow_object(model, optimizer, _LIMITS), _LIMITS), "tensorflow"
    if optimizer is not None:
        raise UnsupportedError(f"an optimizer cannot be measured beside a {type(model).__name__}")
    for library in ("xgboost", "lightgbm"):
        if library in packages:
            return booster_checkpoint(model, library, _LIMITS), library
    if "sklearn" in packages:
        return estimator_checkpoint(model, _LIMITS), "sklearn"
    if is_leaf(model) or isinstance(model, Mapping | list | tuple):
        return memory_checkpoint(collection(model, _LIMITS), _LIMITS), "memory"
    raise UnsupportedError(
        f"a {type(model).__module__}.{type(model).__name__} is not measured; give a model of PyTorch, Keras, "
        "TensorFlow, scikit-learn, XGBoost or LightGBM, or a list or dict of arrays"
    )
