"""What DeepSpeed writes for one tag: `global_stepN/` with a file of the model and one of each rank's ZeRO state.

There is no marker that can be trusted (`latest` may be written before other ranks are done): the checkpoint is whole
when every rank that the model's file speaks of has its file, and each is a whole archive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

from monitor.read.access.partial_sources import JoinedSource
from monitor.read.access.sources import MemorySource
from monitor.read.access.strided import ChunkReader, Layout, contiguous_strides
from monitor.read.bounded_unit import BoundedUnit, naming
from monitor.read.dtypes import DTYPES
from monitor.read.inner import open_inner
from monitor.read.merged import Part, merge
from monitor.read.naming import printable, refine_kind
from monitor.read.notes import FormatNotes
from monitor.read.pickles.inert_nodes import Pairs, PickleResult
from monitor.read.pickles.inert_view import entries_of, text_keyed
from monitor.read.pytorch.torch_archive import TorchArchive, open_archive_in
from monitor.read.pytorch.torch_storages import StoredValues, TorchCheckpoint, torch_checkpoint
from monitor.read.pytorch.zero import MASTER, Flat, Placed, Shapes, place
from monitor.read.pytorch.zero_state import RankState, flat_of, rank_state, shapes_of
from monitor.read.reader import CorruptError, IncompleteError, OpenCheckpoint, ReadLimits, TensorSpec, UnsupportedError
from monitor.read.renamed import with_named_states
from monitor.read.unit import Claim, DirectoryListing
from storage.records import TensorKind

RANKS_MAX = 65_536

_MODEL = re.compile(r"(?:zero_pp_rank_(?P<rank>\d+)_)?mp_rank_(?P<slice>\d+)_model_states\.pt")
_OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(?P<rank>\d+)_mp_rank_(?P<slice>\d+)_optim_states\.pt")
_LAYER = re.compile(r"layer_(?P<layer>\d+)-model_(?P<slice>\d+)-model_states\.pt")
_EXPERT = re.compile(r"(?:layer_\d+_)?expert_\d+_mp_rank_\d+_model_states\.pt")
_EXPERT_OPTIMIZER = re.compile(r"expp_rank_(?P<rank>\d+)_mp_rank_(?P<slice>\d+)_optim_states\.pt")
_ALL = (_MODEL, _OPTIMIZER, _LAYER, _EXPERT, _EXPERT_OPTIMIZER)

# What the engine keeps about its parameters; shapes and fragments are looked at here, none of it is a number to keep.
_ABOUT_PARAMETERS = frozenset(
    {
        *("param_shapes", "frozen_param_shapes", "frozen_param_fragments", "shared_params", "buffer_names"),
        *("sparse_tensor_module_names", "ds_config", "universal_checkpoint_info"),
    }
)


class DeepSpeedReader:
    """The reader of directories of `mp_rank_XX_model_states.pt` and `zero_pp_rank_*_optim_states.pt`."""

    name: ClassVar[str] = "deepspeed"
    marks: ClassVar[tuple[str, ...]] = ("*_model_states.pt", "*-model_states.pt", "*_optim_states.pt")
    notes: ClassVar[FormatNotes] = FormatNotes(
        files=(
            "directories with `mp_rank_XX_model_states.pt` and `zero_pp_rank_D_mp_rank_XX_optim_states.pt`, "
            "such as `global_stepN/`"
        ),
        written_by="DeepSpeed without ZeRO and with its stages 1 to 3, its BF16 optimizer, pipelines and experts",
        optimizer_state=(
            "by parameter name where the shapes in the files account for the flat partitions, else by rank and group"
        ),
        whole=(
            "every rank that the model's file speaks of has its files, and each is whole; `latest` is not "
            "looked at, it may be written before other ranks are done"
        ),
        not_yet="any of them is missing or not whole",
        never="a file that is broken",
        step="`global_steps` of the model's file",
        safety="as `torch_zip`",
        tested_in="tests/monitor/read/formats/test_deepspeed.py",
        tested_with="torch",
        layout_of="DeepSpeed 0.19.6",
    )

    @classmethod
    def claim(cls, directory: DirectoryListing) -> Sequence[Claim]:
        """Claim a directory with any file of one rank in it."""
        ours = frozenset(name for name in directory.files if any(p.fullmatch(name) for p in _ALL))
        return (Claim(reader=cls.name, files=ours),) if ours else ()

    def open(self, unit: BoundedUnit, limits: ReadLimits) -> OpenCheckpoint:
        """Open every rank's file, and find the parameters in the flat buffers."""
        models: dict[int, dict[int, str]] = {}
        optimizers: dict[int, dict[int, str]] = {}
        for name in unit.names:
            for pattern, found in ((_MODEL, models), (_OPTIMIZER, optimizers)):
                match = pattern.fullmatch(name)
                if match is not None:
                    found.setdefault(int(match["slice"]), {})[int(match["rank"] or 0)] = name
        if not models:
            raise IncompleteError("no file mp_rank_XX_model_states.pt is there (yet)")
        parts: list[Part] = []
        sliced = max(models) > 0
        for number in sorted(models):
            engine = _Engine(unit, models[number], optimizers.get(number, {}), limits)
            engine.check(number)
            prefix = f"mp_rank_{number:02d}." if sliced else ""
            parts += [
                Part(checkpoint=engine.model(), prefix=prefix.rstrip("."), scalars=number == 0),
                Part(checkpoint=engine.state(prefix), scalars=number == 0),
            ]
        _check_slices(models, parts, unit)
        return merge([*parts, *_beside(unit, limits)], limits)


def _check_slices(models: Mapping[int, object], parts: Sequence[Part], unit: BoundedUnit) -> None:
    stated = parts[0].checkpoint.scalars.get("mp_world_size", 1.0)
    is_pipeline = any(_LAYER.fullmatch(name) for name in unit.names)
    wanted = max(models) + 1 if is_pipeline else max(int(min(stated, RANKS_MAX)), max(models) + 1)
    missing = set(range(wanted)) - models.keys()
    if missing:
        raise IncompleteError(f"no file of model-parallel rank {min(missing)} of {wanted} is there (yet)")


def _beside(unit: BoundedUnit, limits: ReadLimits) -> Iterator[Part]:
    """Yield the layers of a pipeline and the experts, which have files of their own."""
    slices = {match["slice"] for name in unit.names if (match := _LAYER.fullmatch(name))}
    for name in unit.names:
        layer, expert_state = _LAYER.fullmatch(name), _EXPERT_OPTIMIZER.fullmatch(name)
        if layer is not None:
            prefix = f"layer_{layer['layer']}" + (f".model_{layer['slice']}" if len(slices) > 1 else "")
            yield Part(checkpoint=open_inner(unit, name, limits), prefix=prefix, scalars=False)
        elif expert_state is not None:
            prefix = f"experts_{expert_state['rank']}_{expert_state['slice']}"
            yield Part(
                checkpoint=open_inner(unit, name, limits), prefix=prefix, kind=TensorKind.OPTIMIZER, scalars=False
            )
        elif _EXPERT.fullmatch(name):
            yield Part(checkpoint=open_inner(unit, name, limits), scalars=False)


@dataclass(slots=True)
class _Engine:
    """The files of one model-parallel rank: those of the model and of the ZeRO state by data-parallel rank."""

    unit: BoundedUnit
    model_files: Mapping[int, str]
    state_files: Mapping[int, str]
    limits: ReadLimits
    archives: list[TorchArchive] = field(default_factory=list)
    shapes: list[dict[str, tuple[int, ...]]] = field(default_factory=list)
    is_sliced: bool = False  # stage 3: the model's parameters are with the ranks

    def check(self, number: int) -> None:
        """Open the model's files, and raise IncompleteError unless every rank that they speak of has its own."""
        for rank in sorted(self.model_files):
            self.archives.append(open_archive_in(self.unit, self.model_files[rank], self.limits))
        about = self._about(0)
        n_ranks = about.get("dp_world_size")
        if type(n_ranks) is not int or not 1 <= n_ranks <= RANKS_MAX:
            n_ranks = max(self.state_files, default=0) + 1
        self.shapes = shapes_of(about.get("param_shapes"), self.limits)
        self.is_sliced = any(name.startswith("zero_pp_rank_") for name in self.model_files.values())
        if about.get("param_shapes") is not None:
            _check_ranks(self.state_files, n_ranks, f"optimizer state of mp_rank_{number:02d}")
        if self.is_sliced:
            _check_ranks(self.model_files, n_ranks, f"model of mp_rank_{number:02d}")

    def _about(self, index: int) -> dict[str, object]:
        return text_keyed(entries_of(self.archives[index].result.root) or [])

    def model(self) -> OpenCheckpoint:
        """Return what the model's file holds besides ZeRO's bookkeeping, without the husks that stage 3 leaves."""
        archive = self.archives[0]
        entries = entries_of(archive.result.root)
        if entries is None:
            raise CorruptError(f"'{self.model_files[min(self.model_files)]}' holds no dict")
        kept = Pairs()
        kept.pairs.extend(
            (key, value) for key, value in entries if type(key) is not str or key not in _ABOUT_PARAMETERS
        )
        result = archive.result
        pruned = PickleResult(kept, result.globals_seen, result.persistents, result.n_objects, result.n_bytes)
        opened = torch_checkpoint(pruned, archive.storages(self.limits), self.limits)
        if not self.is_sliced:
            return opened if self.state_files else with_named_states(opened)
        husks = {name for group in self.shapes for name in group}
        husks |= {name for name, _ in self._frozen()}
        tensors = tuple(spec for spec in opened.tensors if spec.n_elements or spec.name not in husks)
        return _checkpoint(tensors, opened.scalars, opened.reader, opened.step, opened.epoch)

    def state(self, prefix: str) -> OpenCheckpoint:
        """Return the parameters and their state, as found in the flat buffers of all ranks."""
        states: list[RankState] = []
        for rank in sorted(self.state_files):
            name = self.state_files[rank]
            with naming(name):
                state = rank_state(open_archive_in(self.unit, name, self.limits), self.limits)
                if state is None:
                    raise UnsupportedError("the optimizer state is laid out in a way that is not read here")
            states.append(state)
        by_parameter = any(state.by_parameter for state in states)
        specs: list[TensorSpec] = []
        if by_parameter:
            specs += [_spec(placed, prefix, is_model=True) for placed in self._frozen_parameters()]
        with_step: set[str] = set()
        for placed in place([state.groups for state in states], self.shapes, by_parameter=by_parameter):
            if placed.step is not None and placed.name not in with_step:
                with_step.add(placed.name)
                specs.append(_step_spec(placed, prefix))
            specs.append(_spec(placed, prefix, is_model=by_parameter and placed.key == MASTER))
        specs.sort(key=lambda spec: spec.kind is TensorKind.OPTIMIZER)
        return _checkpoint(tuple(specs), self._settings(states), ChunkReader(self.limits.chunk_bytes_max), None, None)

    def _settings(self, states: Sequence[RankState]) -> Mapping[str, float]:
        """Return the numbers in the optimizer's groups of parameters, as a file of torch.save would give them."""
        settings = next((state.settings for state in states if state.settings is not None), None)
        optimizer, root = Pairs(), Pairs()
        optimizer.pairs.extend([("state", Pairs()), ("param_groups", settings)])
        root.pairs.append(("optimizer", optimizer))
        result = PickleResult(root, (), (), 0, 0)
        return torch_checkpoint(result, self.archives[0].storages(self.limits), self.limits).scalars

    def _frozen(self) -> list[tuple[str, tuple[int, ...]]]:
        shapes = shapes_of(self._about(0).get("frozen_param_shapes"), self.limits)
        return [item for group in shapes for item in group.items()]

    def _frozen_parameters(self) -> Iterator[Placed]:
        """Yield the parameters that are not trained, which stage 3 cuts like the others but keeps with the model."""
        fragments: list[dict[str, Flat | None]] = []
        frozen: Shapes = dict(self._frozen())
        for index, archive in enumerate(self.archives):
            storages = archive.storages(self.limits)
            kept = entries_of(self._about(index).get("frozen_param_fragments")) or []
            fragments.append({k: flat_of(v, storages, self.limits) for k, v in kept if type(k) is str and k in frozen})
        for name, shape in frozen.items():
            pieces = [piece for rank in fragments if (piece := rank.get(name)) is not None]
            n_slice = -(-prod(shape) // max(1, len(fragments)))
            if len(pieces) != len(fragments) or any(piece.n_elements < n_slice for piece in pieces):
                continue
            lengths = [max(0, min(n_slice, prod(shape) - rank * n_slice)) for rank in range(len(pieces))]
            source = JoinedSource([piece.part(0, n) for piece, n in zip(pieces, lengths, strict=True)])
            yield Placed(name, MASTER, pieces[0].dtype, shape, source, None)


def _check_ranks(files: Mapping[int, str], n_ranks: int, what: str) -> None:
    missing = set(range(n_ranks)) - files.keys()
    if missing:
        raise IncompleteError(
            f"the {what} of data-parallel rank {min(missing)} is not there (yet); {n_ranks} ranks wrote one each"
        )


def _checkpoint(
    tensors: tuple[TensorSpec, ...],
    scalars: Mapping[str, float],
    reader: ChunkReader,
    step: int | None,
    epoch: float | None,
) -> TorchCheckpoint:
    return TorchCheckpoint(
        step=step, epoch=epoch, scalars=scalars, tensors=tensors, globals_seen=(), n_objects=0, reader=reader
    )


def _spec(placed: Placed, prefix: str, *, is_model: bool) -> TensorSpec:
    parameter = prefix + printable(placed.name, 1000)
    name = parameter if is_model else f"optimizer.state.{parameter}.{printable(placed.key, 40)}"
    kind = TensorKind.PARAMETER if is_model else TensorKind.OPTIMIZER
    dtype = DTYPES[placed.dtype]
    layout = Layout(dtype=dtype, shape=placed.shape, strides=contiguous_strides(placed.shape))
    return TensorSpec(
        name=name,
        kind=refine_kind(name, placed.dtype, len(placed.shape), kind),
        dtype=placed.dtype,
        shape=placed.shape,
        n_elements=prod(placed.shape),
        key=StoredValues(layout, placed.source),
    )


def _step_spec(placed: Placed, prefix: str) -> TensorSpec:
    """Return the step of a group as that of one of its parameters, the way PyTorch's own optimizers keep it."""
    assert placed.step is not None
    source = MemorySource(placed.step.to_bytes(8, "little"))
    stated = Placed(placed.name, "step", "int64", (), source, None)
    return _spec(stated, prefix, is_model=False)
