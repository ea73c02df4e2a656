"""One rank's file of ZeRO's optimizer state: its flat buffers, found among inert nodes.

It knows the keys of DeepSpeed's stages 1 to 3 and of its BF16 optimizer. Values are left where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monitor.read.access.partial_sources import JoinedSource, PartSource
from monitor.read.access.strided import ChunkReader
from monitor.read.dtypes import DTYPES
from monitor.read.naming import as_step
from monitor.read.pickles.inert_nodes import Node, Pairs
from monitor.read.pickles.inert_view import entries_of, text_keyed
from monitor.read.pytorch.torch_archive import TorchArchive
from monitor.read.pytorch.torch_objects import FoundTensor, TensorError, numpy_scalar, sizes_of, tensor_of
from monitor.read.pytorch.torch_storages import TensorStorages, single_value
from monitor.read.pytorch.zero import MASTER, Flat, RankGroup
from monitor.read.reader import CorruptError, LimitError, ReadLimits

_GROUPS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class RankState:
    """What one rank keeps: its groups, how they were cut (see zero.place), and the settings of the optimizer."""

    groups: tuple[RankGroup, ...]
    by_parameter: bool
    settings: object


def rank_state(archive: TorchArchive, limits: ReadLimits) -> RankState | None:
    """Return the flat buffers in a file of optimizer state, None where it holds none."""
    root = text_keyed(entries_of(archive.result.root) or [])
    state = text_keyed(entries_of(root.get("optimizer_state_dict")) or [])
    found = _Buffers(archive.storages(limits), limits)
    if "fp32_flat_groups" in state:
        base = text_keyed(entries_of(state.get("optimizer_state_dict")) or [])
        groups = found.groups(state["fp32_flat_groups"], base)
        return RankState((_joined(groups),) if groups else (), True, base.get("param_groups"))
    if "single_partition_of_fp32_groups" in state:
        stored = state.get("base_optimizer_state")
        base = text_keyed(entries_of(stored) or [])
        if isinstance(stored, list):  # one state a group, its padding left out
            once = Pairs()
            once.pairs.append(("step", state.get("base_optimizer_state_step")))
            base = {"state": stored, "param_groups": [once] * len(stored)}
            return RankState(found.groups(state["single_partition_of_fp32_groups"], base), False, None)
        return RankState(found.groups(state["single_partition_of_fp32_groups"], base), False, base.get("param_groups"))
    return None


def shapes_of(value: object, limits: ReadLimits) -> list[dict[str, tuple[int, ...]]]:
    """Return the shapes of parameters by name, one dict a group, from what DeepSpeed keeps of them."""
    groups = value if isinstance(value, list) else [value] if entries_of(value) is not None else []
    found: list[dict[str, tuple[int, ...]]] = []
    n_names = 0
    for group in groups:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, size in entries_of(group) or ():
            if type(name) is not str:
                raise CorruptError("a parameter's name is no text")
            try:
                shapes[name] = sizes_of(size, limits.dimensions_max)
            except TensorError as error:
                raise CorruptError(f"the shapes of the parameters have {error}") from None
        n_names += len(shapes)
        if n_names > limits.tensors_max or len(found) > _GROUPS_MAX:
            raise LimitError(f"the checkpoint has more than {limits.tensors_max} parameters")
        found.append(shapes)
    return found


def flat_of(value: object, storages: TensorStorages, limits: ReadLimits) -> Flat | None:
    """Return a contiguous tensor as a flat buffer, None for anything else."""
    tensor = tensor_of(value, limits.dimensions_max)
    if tensor is None or tensor.problem is not None or tensor.conjugate or tensor.negative:
        return None
    try:
        values = storages.values(tensor)
    except TensorError as error:
        raise CorruptError(f"a flat buffer has {error}") from None
    layout = values.layout
    if not layout.is_contiguous or layout.big_endian:
        return None
    itemsize = DTYPES[tensor.dtype].itemsize
    source = PartSource(values.source, layout.offset * itemsize, layout.n_elements * itemsize)
    return Flat(tensor.dtype, source, layout.n_elements)


class _Buffers:
    """Finds buffers in the file they were saved in."""

    __slots__ = ("_limits", "_reader", "_storages")

    def __init__(self, storages: TensorStorages, limits: ReadLimits) -> None:
        self._storages = storages
        self._limits = limits
        self._reader = ChunkReader(limits.chunk_bytes_max)

    def groups(self, masters: object, base: dict[str, object]) -> tuple[RankGroup, ...]:
        """Return a group for each buffer of master weights, with the state that the optimizer has under its number."""
        if not isinstance(masters, list) or len(masters) > _GROUPS_MAX:
            raise CorruptError("the master weights are not in a list of groups")
        states = self._states(base.get("state"))
        settings = base.get("param_groups")
        found = []
        for number, value in enumerate(masters):
            master = flat_of(value, self._storages, self._limits)
            if master is None:
                raise CorruptError("the master weights of a group are no flat tensor")
            group = settings[number] if isinstance(settings, list) and number < len(settings) else None
            state = states.get(number, {})
            buffers = {MASTER: master}
            for key, part in state.items():
                buffer = flat_of(part, self._storages, self._limits) if key != "step" else None
                if buffer is not None and buffer.n_elements >= master.n_elements:
                    buffers[key] = buffer
            step = self._step(state.get("step"))
            if step is None:
                step = self._step(text_keyed(entries_of(group) or []).get("step"))
            found.append(RankGroup(buffers, step))
        return tuple(found)

    def _states(self, value: object) -> dict[int, dict[str, object]]:
        if isinstance(value, list):
            return {number: text_keyed(entries_of(state) or []) for number, state in enumerate(value)}
        return {key: text_keyed(entries_of(state) or []) for key, state in entries_of(value) or () if type(key) is int}

    def _step(self, value: object) -> int | None:
        tensor = tensor_of(value, self._limits.dimensions_max)
        if isinstance(tensor, FoundTensor):
            return as_step(single_value(tensor, self._storages, self._reader))
        return as_step(numpy_scalar(value) if isinstance(value, Node) else value)


def _joined(groups: Sequence[RankGroup]) -> RankGroup:
    """Return the sub-groups of stage 3 as one group, with the buffers that all of them have."""
    first = groups[0]
    buffers = {}
    for key, buffer in first.buffers.items():
        parts = [group.buffers.get(key) for group in groups]
        kept = [part for part in parts if part is not None and part.dtype == buffer.dtype]
        if len(kept) == len(groups):
            joined = JoinedSource([part.source for part in kept])
            buffers[key] = Flat(buffer.dtype, joined, sum(part.n_elements for part in kept))
    return RankGroup(buffers, first.step)
