"""From a tensor bundle to a checkpoint: names, kinds, step and the numbers beside the tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, prod

import numpy as np

from monitor.read.access.sources import FileSource
from monitor.read.access.strided import ChunkReader, Layout, contiguous_strides
from monitor.read.dtypes import DTYPES
from monitor.read.keras.keras_names import kind_of
from monitor.read.keras.keras_optimizer import OptimizerConfig, optimizer_scalars
from monitor.read.naming import EPOCH_KEYS, STEP_KEYS, UniqueNames, as_epoch, as_step
from monitor.read.reader import Chunk, ReadLimits, TensorSpec
from monitor.read.tensorflow.object_graph import GRAPH_KEY, VALUE_SUFFIX, GraphNames, name_keys, parse_graph
from monitor.read.tensorflow.tensor_bundle import STRING, Bundle, BundleEntry
from storage.records import TensorKind

_COUNTERS = frozenset({*STEP_KEYS, *EPOCH_KEYS, "save_counter"})
# How the optimizers of TensorFlow 1 name their variables, after the parameter's name.
_V1_STATE = ("/Adam", "/Adam_1", "/Momentum", "/RMSProp", "/RMSProp_1", "/Adagrad", "/Ftrl", "/Ftrl_1")


@dataclass(frozen=True, slots=True)
class BundleCheckpoint:
    """An open tensor bundle."""

    step: int | None
    epoch: float | None
    scalars: Mapping[str, float]
    tensors: tuple[TensorSpec, ...]
    bundle: Bundle
    reader: ChunkReader

    def chunks(self, spec: TensorSpec) -> Iterator[Chunk]:
        """Yield the values of one variable in order."""
        entry = spec.key
        assert isinstance(entry, BundleEntry)
        if entry.problem is not None or spec.n_elements == 0:
            return iter(())
        layout = Layout(
            dtype=DTYPES[entry.dtype],
            shape=entry.shape,
            strides=contiguous_strides(entry.shape),
            big_endian=self.bundle.big_endian,
        )
        source = FileSource(self.bundle.shards[entry.shard], entry.offset, entry.n_bytes)
        return self.reader.chunks(source, layout)


def open_variables(bundle: Bundle, limits: ReadLimits) -> BundleCheckpoint:
    """Name the variables of a bundle and read its numbers; texts, which are no tensors, are left out."""
    graph = bundle.entries.get(GRAPH_KEY)
    named = GraphNames(model={}, optimizer={}, states={})
    if graph is not None and graph.dtype == STRING:
        named = name_keys(parse_graph(bundle.text(graph, limits.header_bytes_max)))
    names = UniqueNames(limits.name_characters_max)
    reader = ChunkReader(limits.chunk_bytes_max)
    specs: list[TensorSpec] = []
    numbers: dict[str, int | float] = {}  # by key
    scalars: dict[str, float] = {}
    entries = [entry for entry in bundle.entries.values() if entry.dtype != STRING]
    positions = {key: position for position, key in enumerate((*named.model, *named.optimizer))}
    for entry in sorted(entries, key=lambda e: positions.get(e.key, -1)):
        name = _name(entry, named)
        spec = TensorSpec(
            name=names.claim(name, entry.key),
            kind=_kind(entry, name, named),
            dtype=entry.dtype,
            shape=entry.shape,
            n_elements=prod(entry.shape),
            key=entry,
            problem=entry.problem,
        )
        specs.append(spec)
        if entry.shape == () and len(numbers) < limits.scalars_max and (value := _number(bundle, entry)) is not None:
            numbers[entry.key] = value
            scalars[spec.name] = float(value)
    step, state_scalars = _optimizer(named, numbers, limits.scalars_max - len(scalars))
    at_top = {key.removesuffix(VALUE_SUFFIX): value for key, value in numbers.items()}
    found = next((s for key in STEP_KEYS if (s := as_step(at_top.get(key))) is not None), None)
    return BundleCheckpoint(
        step=step if found is None else found,
        epoch=next((e for key in EPOCH_KEYS if (e := as_epoch(at_top.get(key))) is not None), None),
        scalars={**scalars, **state_scalars},
        tensors=tuple(specs),
        bundle=bundle,
        reader=reader,
    )


def _name(entry: BundleEntry, named: GraphNames) -> str:
    return named.model.get(entry.key) or named.optimizer.get(entry.key) or entry.key.removesuffix(VALUE_SUFFIX)


def _kind(entry: BundleEntry, name: str, named: GraphNames) -> TensorKind:
    if entry.key in named.optimizer or (not named.model and name.endswith(_V1_STATE)):
        return TensorKind.OPTIMIZER
    if entry.key in named.copies or (entry.shape == () and name in _COUNTERS):
        return TensorKind.OTHER
    return kind_of(name, entry.dtype, len(entry.shape))


def _number(bundle: Bundle, entry: BundleEntry) -> int | float | None:
    """Return the value of a variable without dimensions, None where it is no finite real number."""
    if entry.problem is not None or DTYPES[entry.dtype].kind not in "iuf":
        return None
    dtype = DTYPES[entry.dtype].newbyteorder(">" if bundle.big_endian else "<")
    value = np.frombuffer(bundle.read(entry, dtype.itemsize), dtype)[0].item()
    return value if isinstance(value, int | float) and isfinite(value) else None


def _optimizer(
    named: GraphNames, numbers: Mapping[str, int | float], n_max: int
) -> tuple[int | None, dict[str, float]]:
    """Return (iterations, numbers of the optimizer under PyTorch's names)."""
    if not named.iterations:
        return None, {}
    iterations = as_step(numbers.get(named.iterations))
    config = OptimizerConfig(beta1=_fraction(numbers.get(named.beta1)), beta2=_fraction(numbers.get(named.beta2)))
    rate = numbers.get(named.learning_rate)
    return iterations, optimizer_scalars(list(named.states.values()), iterations, rate, config, n_max)


def _fraction(value: float | None) -> float | None:
    return float(value) if value is not None and 0 <= value < 1 else None
