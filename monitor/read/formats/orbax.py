"""Orbax checkpoints of JAX: a directory of items, each a tree of arrays in zarr, mostly within an OCDBT database.

Orbax renames a directory into place when it is whole; where it cannot (object stores), it leaves `commit_success.txt`
last. Read with tensorstore, an extra; neither JAX nor Orbax is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any, ClassVar

from monitor.read.arrays.array_store import ArrayStore, describe
from monitor.read.bounded_unit import BoundedUnit
from monitor.read.dtypes import DTYPES
from monitor.read.models.jax_names import model_prefix, name_and_kind
from monitor.read.naming import ASSUMED_BETA2, STEP_KEYS, UniqueNames, as_step, is_optimizer_key, printable
from monitor.read.notes import FormatNotes
from monitor.read.reader import (
    Chunk,
    CorruptError,
    IncompleteError,
    LimitError,
    ReadLimits,
    TensorSpec,
    UnsupportedError,
)
from monitor.read.unit import Claim, DirectoryListing
from storage.records import TensorKind

_MARK, _TREE, _COMMIT, _MANIFEST = "_CHECKPOINT_METADATA", "_METADATA", "commit_success.txt", "manifest.ocdbt"
_FILES = frozenset({_MARK, _TREE, _COMMIT, _MANIFEST, "_sharding", "_strings.json", "checkpoint"})
# What optax calls the moments of its optimizers, and PyTorch does.
_ROLES = {"mu": "exp_avg", "nu": "exp_avg_sq", "trace": "momentum_buffer"}
_COUNT = "count"
_BETA2_DEFAULT = 0.999  # optax's for everything that has both moments
_UNREAD_TYPES = frozenset({"None", "string", "Dict", "List", "Tuple", "NamedTuple"})
_METADATA_BYTES_MAX = 64 * 2**20
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class _Leaf:
    """One array of one item: its keys in the tree, and where it was opened."""

    path: tuple[str, ...]
    stored_as: str
    store: ArrayStore
    array: Any
    dtype: str
    shape: tuple[int, ...]
    problem: str | None


@dataclass(frozen=True, slots=True)
class OrbaxCheckpoint:
    """An open Orbax checkpoint."""

    step: int | None
    epoch: float | None
    scalars: Mapping[str, float]
    tensors: tuple[TensorSpec, ...]
    chunk_bytes_max: int

    def chunks(self, spec: TensorSpec) -> Iterator[Chunk]:
        """Yield the values of one array in C order of its shape."""
        if not isinstance(spec.key, _Leaf) or spec.problem is not None or spec.n_elements == 0:
            return iter(())
        n_max = max(1, self.chunk_bytes_max // DTYPES[spec.dtype].itemsize)
        return spec.key.store.chunks(spec.key.stored_as, spec.key.array, n_max)


class OrbaxReader:
    """The reader of Orbax checkpoints."""

    name: ClassVar[str] = "orbax"
    marks: ClassVar[tuple[str, ...]] = (_MARK, _COMMIT)
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="directories with `_CHECKPOINT_METADATA` or `_METADATA`",
        written_by="Orbax, Flax; needs `pip install 'ckptwatch[orbax]'`",
        optimizer_state="inside (optax)",
        whole=(
            "the directory has its final name, its time of commit or `commit_success.txt`, and every array of"
            " its tree is there"
        ),
        not_yet="a name with `.orbax-checkpoint-tmp`, no commit, a missing array or chunk",
        never="a tree with keys that lead elsewhere",
        step="an array of one element of a step's name, else the number in the directory's name",
        safety=(
            "tensorstore reads the arrays, by names that were checked, in a directory without links that lead"
            " out; the worker that it runs in is confined"
        ),
        limits=(
            (
                "chunks of more than 24 MiB unpacked are a tensor's `problem`; `chunk_byte_size` of Orbax's save "
                "arguments bounds them"
            ),
        ),
        tested_in="tests/monitor/read/formats/test_orbax.py",
        tested_with="orbax-checkpoint",
    )

    @classmethod
    def claim(cls, directory: DirectoryListing) -> Sequence[Claim]:
        """Claim a step with its items, or a single item."""
        is_item = _TREE in directory.files and (_MANIFEST in directory.files or "_sharding" in directory.files)
        if not is_item and not (_MARK in directory.files and directory.directories):
            return ()
        return (Claim(reader=cls.name, files=_FILES & directory.files, directories=directory.directories),)

    def open(self, unit: BoundedUnit, limits: ReadLimits) -> OrbaxCheckpoint:
        """Read the trees of all items and open their arrays."""
        _check_committed(unit)
        for name in unit.names:
            unit.open(name)  # the library opens files by itself: none may be a link that leads out
        items = sorted(
            {n.rpartition(_TREE)[0] for n in unit.names if n.rpartition("/")[2] == _TREE and n.count("/") < 2}
        )
        if not items:
            if _MARK in unit:
                raise UnsupportedError("the Orbax checkpoint holds no item with arrays")
            raise IncompleteError(f"the Orbax checkpoint has no {_TREE} (yet)")
        leaves: list[_Leaf] = []
        for item in items:
            inner = unit.below(item.rstrip("/")) if item else unit
            leaves += _leaves(inner, limits, len(leaves), (item.rstrip("/"),) if len(items) > 1 else ())
        return _assembled(leaves, limits)


def _check_committed(unit: BoundedUnit) -> None:
    if _MARK not in unit:
        return
    described = unit.read_json(_MARK, _METADATA_BYTES_MAX)
    if not isinstance(described, dict):
        raise CorruptError(f"{_MARK} is no JSON object")
    if "commit_timestamp_nsecs" in described and described["commit_timestamp_nsecs"] is None and _COMMIT not in unit:
        raise IncompleteError("the Orbax checkpoint is not committed yet")


def _leaves(unit: BoundedUnit, limits: ReadLimits, n_before: int, outer: tuple[str, ...]) -> list[_Leaf]:
    """Return the arrays of one item in the order of its tree."""
    described = unit.read_json(_TREE, _METADATA_BYTES_MAX)
    tree = described.get("tree_metadata") if isinstance(described, dict) else None
    if not isinstance(described, dict) or not isinstance(tree, dict):
        raise CorruptError(f"{_TREE} describes no tree")
    is_database = bool(described.get("use_ocdbt", _MANIFEST in unit))
    if is_database and _MANIFEST not in unit:
        raise IncompleteError(f"'{_MANIFEST}' is not there (yet)")
    if len(tree) + n_before > limits.tensors_max:
        raise LimitError(f"the tree has more than {limits.tensors_max} arrays")
    options: dict[str, object] = {"driver": "zarr3" if described.get("use_zarr3") else "zarr"}
    if described.get("store_array_data_equal_to_fill_value"):
        options["fill_missing_data_reads"] = False  # what is not there was lost, and is no zero
    store = ArrayStore(unit.directory, options, is_database=is_database, on_read=unit.count)
    found: list[_Leaf] = []
    for label, entry in tree.items():
        path = _keys(label, entry)
        value = entry.get("value_metadata")
        if isinstance(value, dict) and value.get("value_type") in _UNREAD_TYPES:
            continue
        stored_as = ".".join(path)
        if "/" in stored_as or "\\" in stored_as or stored_as.strip(".") != stored_as or "\0" in stored_as:
            raise CorruptError(f"the tree has a key that is no name: '{printable(stored_as, _SHOWN)}'")
        if not is_database and not {f"{stored_as}/.zarray", f"{stored_as}/zarr.json"} & unit.stats.keys():
            raise IncompleteError(f"'{printable(stored_as, _SHOWN)}' is not there (yet)")
        array = store.open(stored_as)
        dtype, shape, problem = describe(array)
        if len(shape) > limits.dimensions_max:
            raise LimitError(f"'{printable(stored_as, _SHOWN)}' has {len(shape)} dimensions")
        found.append(_Leaf((*outer, *path), stored_as, store, array, dtype, shape, problem))
    return found


def _keys(label: object, entry: object) -> tuple[str, ...]:
    keys = entry.get("key_metadata") if isinstance(entry, dict) else None
    if not isinstance(keys, list) or not keys:
        raise CorruptError(f"the tree has an entry without keys: '{printable(str(label), _SHOWN)}'")
    path = tuple(str(key.get("key")) if isinstance(key, dict) else "" for key in keys)
    if not all(path):
        raise CorruptError(f"the tree has an empty key: '{printable(str(label), _SHOWN)}'")
    return path


def _assembled(leaves: Sequence[_Leaf], limits: ReadLimits) -> OrbaxCheckpoint:
    tops = list(dict.fromkeys(leaf.path[0] for leaf in leaves))
    model = next((top for top in ("params", *tops) if top in tops and model_prefix([top], ())), None)
    prefix = model_prefix(tops, {leaf.path[1] for leaf in leaves if len(leaf.path) > 1 and leaf.path[0] == model})
    parameters = (
        {leaf.path[len(prefix) :] for leaf in leaves if leaf.path[: len(prefix)] == prefix} if prefix else set()
    )
    counts = {leaf.path[:-1]: leaf for leaf in leaves if leaf.path[-1] == _COUNT and leaf.shape == ()}
    first_moments = {leaf.path[: leaf.path.index("mu")] for leaf in leaves if "mu" in leaf.path}
    names = UniqueNames(limits.name_characters_max)
    specs: list[TensorSpec] = []
    scalars: dict[str, float] = {}
    numbers: dict[str, int | float] = {}
    for leaf in leaves:
        name, kind = name_and_kind(leaf.path, prefix, leaf.dtype, len(leaf.shape))
        state = _state(leaf.path, parameters)
        if state is not None:
            at, parameter, role = state
            name, kind = f"optimizer.state.{parameter}.{role}", TensorKind.OPTIMIZER
            if role == "exp_avg_sq" and at in counts and len(scalars) < limits.scalars_max:
                count = _number(counts[at])
                scalars.update({f"optimizer.state.{parameter}.step": float(count)} if count is not None else {})
                if at in first_moments:
                    scalars[ASSUMED_BETA2] = _BETA2_DEFAULT
        elif len(leaf.path) > 1 and is_optimizer_key(leaf.path[0]):
            name = ".".join(("optimizer", *leaf.path[1:]))
        name = names.claim(name, ".".join(leaf.path))
        specs.append(
            TensorSpec(
                name=name,
                kind=kind,
                dtype=leaf.dtype,
                shape=leaf.shape,
                n_elements=prod(leaf.shape),
                key=leaf,
                problem=leaf.problem,
            )
        )
        if leaf.shape in ((), (1,)) and len(scalars) < limits.scalars_max and (number := _number(leaf)) is not None:
            scalars[name] = float(number)
            numbers[leaf.path[-1] if len(leaf.path) == 1 else name] = number
    step = next((s for key in STEP_KEYS if (s := as_step(numbers.get(key))) is not None), None)
    return OrbaxCheckpoint(
        step=step, epoch=None, scalars=scalars, tensors=tuple(specs), chunk_bytes_max=limits.chunk_bytes_max
    )


def _state(path: tuple[str, ...], parameters: set[tuple[str, ...]]) -> tuple[tuple[str, ...], str, str] | None:
    """Return (place of the state, parameter, role) of an optimizer's array that belongs to one parameter."""
    if not is_optimizer_key(path[0]):
        return None
    for i, key in enumerate(path):
        if key in _ROLES:
            for skipped in (0, 1):  # a tree of flax variables has a `params` of its own
                if path[i + 1 + skipped :] in parameters:
                    return path[:i], ".".join(path[i + 1 + skipped :]), _ROLES[key]
    return None


def _number(leaf: _Leaf) -> int | float | None:
    """Return the value of an array of one element, None where it is no finite real number."""
    if leaf.problem is not None or DTYPES[leaf.dtype].kind not in "iuf":
        return None
    value = next(leaf.store.chunks(leaf.stored_as, leaf.array, 1)).values[0].item()
    return value if isinstance(value, int | float) and isfinite(value) else None
