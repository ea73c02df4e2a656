"""Megatron-LM's own format: `iter_0000100/mp_rank_00_001/model_optim_rng.pt`, one directory a model-parallel rank.

(What Megatron calls torch_dist is a directory of torch.distributed.checkpoint and read as such.) There is no marker
inside: the checkpoint is whole when there are as many directories as the arguments in the files say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import ClassVar

from monitor.read.bounded_unit import BoundedUnit
from monitor.read.inner import open_inner
from monitor.read.merged import Part, merge
from monitor.read.naming import is_optimizer_key
from monitor.read.notes import FormatNotes
from monitor.read.pickles.inert_nodes import Node, Pairs
from monitor.read.pickles.inert_view import attributes_of, entries_of, text_keyed
from monitor.read.pytorch.torch_archive import open_archive_in
from monitor.read.pytorch.torch_storages import torch_checkpoint
from monitor.read.reader import CorruptError, IncompleteError, OpenCheckpoint, ReadLimits
from monitor.read.renamed import with_named_states
from monitor.read.unit import Claim, DirectoryListing
from storage.records import TensorKind

RANKS_MAX = 65_536

_RANK = re.compile(r"mp_rank_\d{2,}(?:_\d{3,}){0,2}")
_MODEL_FILES = ("model_optim_rng.pt", "model_rng.pt")
_DISTRIBUTED = "distrib_optim.pt"
_SIZES = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size")
_MODEL_CHUNK = re.compile(r"model\d+")  # of a pipeline whose ranks hold several stretches of layers
_STATE = "optimizer.state."


class MegatronReader:
    """The reader of directories with `mp_rank_*` directories in them."""

    name: ClassVar[str] = "megatron"
    marks: ClassVar[tuple[str, ...]] = (*_MODEL_FILES, _DISTRIBUTED)
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="directories with `mp_rank_TT[_PPP[_EEE]]/model_optim_rng.pt`, such as `iter_0000100/`",
        written_by="Megatron-LM's own format",
        optimizer_state="inside, or in `distrib_optim.pt` as flat buffers",
        whole=(
            "there are as many ranks as the arguments in the files say, and each file is whole; "
            "`latest_checkpointed_iteration.txt` is not looked at"
        ),
        not_yet="any of them is missing or not whole",
        never="a file that is broken",
        step="`iteration` of the first rank's file",
        safety="as `torch_zip`",
        limits=("weights of several ranks stay apart, named by rank: how they go together is not in the files",),
        tested_in="tests/monitor/read/formats/test_megatron.py",
        tested_with="torch",
        layout_of="Megatron-LM core 0.20",
    )

    @classmethod
    def claim(cls, directory: DirectoryListing) -> Sequence[Claim]:
        """Claim a directory with a model-parallel rank's directory in it."""
        ranks = frozenset(name for name in directory.directories if _RANK.fullmatch(name))
        return (Claim(reader=cls.name, files=frozenset(), directories=ranks),) if ranks else ()

    def open(self, unit: BoundedUnit, limits: ReadLimits) -> OpenCheckpoint:
        """Open every rank's file; raise IncompleteError while there are fewer ranks than the files speak of."""
        ranks = sorted(unit.claim.directories)
        if len(ranks) > RANKS_MAX:
            raise CorruptError(f"there are more than {RANKS_MAX} ranks")
        parts: list[Part] = []
        n_wanted = 1
        for rank in ranks:
            name = next((f"{rank}/{file}" for file in _MODEL_FILES if f"{rank}/{file}" in unit), None)
            if name is None:
                raise IncompleteError(f"'{rank}/{_MODEL_FILES[0]}' is not there (yet)")
            opened, sizes = _open_rank(unit, name, limits)
            n_wanted = max(n_wanted, prod(sizes))
            prefix = f"{rank}." if len(ranks) > 1 or n_wanted > 1 else ""
            parts.append(_named(with_named_states(opened), prefix, is_first=not parts))
            if f"{rank}/{_DISTRIBUTED}" in unit:
                parts.append(_distributed(open_inner(unit, f"{rank}/{_DISTRIBUTED}", limits), opened, prefix, limits))
        if len(ranks) < n_wanted:
            raise IncompleteError(f"{len(ranks)} of {n_wanted} model-parallel ranks are there so far")
        return merge(parts, limits)


def _open_rank(unit: BoundedUnit, name: str, limits: ReadLimits) -> tuple[OpenCheckpoint, list[int]]:
    """Return what one rank saved, and the numbers of ranks along each axis that its arguments state."""
    archive = open_archive_in(unit, name, limits)
    entries = entries_of(archive.result.root)
    if entries is None:
        raise CorruptError(f"'{name}' holds no dict")
    top = text_keyed(entries)
    arguments = top.get("args")
    stated = text_keyed(attributes_of(arguments)) if isinstance(arguments, Node) else {}
    sizes = [size for key in _SIZES if type(size := stated.get(key)) is int and 1 <= size <= RANKS_MAX]
    root, chunks = Pairs(), Pairs()
    for key, value in entries:
        if type(key) is str and key == "args":
            continue
        if type(key) is str and _MODEL_CHUNK.fullmatch(key) and "model" not in top:
            chunks.pairs.append((key, value))
        elif type(key) is str and is_optimizer_key(key):
            root.pairs.append((key, _hoisted(value)))
        else:
            root.pairs.append((key, value))
    if chunks.pairs:
        root.pairs.append(("model", chunks))
    return torch_checkpoint(replace(archive.result, root=root), archive.storages(limits), limits), sizes


def _hoisted(value: object) -> object:
    """Return an optimizer in mixed precision, which wraps PyTorch's own, with the inner one's entries at its top."""
    entries = entries_of(value)
    inner = entries_of(text_keyed(entries or []).get("optimizer"))
    if entries is None or inner is None:
        return value
    made = Pairs()
    made.pairs.extend(inner)
    made.pairs.extend(entry for entry in entries if entry[0] != "optimizer")
    return made


def _named(opened: OpenCheckpoint, prefix: str, *, is_first: bool) -> Part:
    """Return a rank's part, its names under the rank's own where there are several."""
    rename = {}
    if prefix:
        for spec in opened.tensors:
            if spec.name.startswith(_STATE):
                rename[spec.name] = f"{_STATE}{prefix}{spec.name.removeprefix(_STATE)}"
            elif spec.kind is not TensorKind.OPTIMIZER:
                rename[spec.name] = prefix + spec.name
            else:
                rename[spec.name] = f"optimizer.{prefix}{spec.name.removeprefix('optimizer.')}"
    return Part(checkpoint=opened, rename=rename, scalars=is_first)


def _distributed(buffers: OpenCheckpoint, model: OpenCheckpoint, prefix: str, limits: ReadLimits) -> Part:
    """Return the flat buffers of a distributed optimizer, whose step is with the settings in the model's file."""
    steps = {v for k, v in model.scalars.items() if k.startswith("optimizer.param_groups.") and k.endswith(".step")}
    scalars = {}
    if len(steps) == 1:
        owners = sorted({spec.name.rpartition(".")[0] for spec in buffers.tensors})
        scalars = {f"{_STATE}{prefix}{owner}.step": next(iter(steps)) for owner in owners if owner}
    inner = Part(checkpoint=buffers, prefix=f"{_STATE}{prefix}".rstrip("."), kind=TensorKind.OPTIMIZER, scalars=False)
    return Part(checkpoint=merge([inner], limits, scalars=scalars))
