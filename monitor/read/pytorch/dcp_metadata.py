"""What the `.metadata` of torch.distributed.checkpoint says: which values there are, and where they lie in which file.

The pickle is interpreted inertly and its classes are known by name only. Every number is checked for type and range
here; whether the files hold what is said of them is for the one who opens them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from monitor.read.naming import printable
from monitor.read.pickles.inert_nodes import Node, Pairs, Ref
from monitor.read.pickles.inert_pickle import parse
from monitor.read.pickles.inert_view import attributes_of, text_keyed
from monitor.read.pytorch.torch_objects import TensorError, dtype_name, sizes_of
from monitor.read.reader import CorruptError, LimitError, ReadLimits, UnsupportedError

_MODULES = "torch.distributed."
_SIZE_MAX = 2**63
_SHOWN = 80

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some bytes of one file of the checkpoint; `file` is a relative name as the writer gave it, not yet checked."""

    file: str
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class SavedPart:
    """One box of a tensor: where it begins, its sizes, and the archive that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    stretch: Stretch


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor in parts. `path` is where it stood in the state that was saved, its flat name where that is not said.

    A `dtype` may be one that is not read; it is only a name.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[SavedPart, ...]


@dataclass(frozen=True, slots=True)
class SavedObject:
    """Something that is no tensor, pickled into an archive of its own."""

    path: Path
    stretch: Stretch


@dataclass(slots=True)
class DcpMetadata:
    """Everything in a checkpoint, in the order of the state that was saved where that is known."""

    saved: list[SavedTensor | SavedObject] = field(default_factory=list)


def parse_metadata(data: bytes, limits: ReadLimits) -> DcpMetadata:
    """Interpret one `.metadata` file.

    Raises CorruptError for what no writer makes, UnsupportedError for compressed parts, LimitError.
    """
    root = _state(parse(data, limits).root, "Metadata")
    described = root.get("state_dict_metadata")
    if not isinstance(described, Pairs):
        raise CorruptError("the metadata does not say what was saved")
    stretches = _stretches(root.get("storage_data"), limits)
    paths = _paths(root.get("planner_data"))
    found = DcpMetadata()
    n_parts = 0
    for name, value in described.pairs:
        if type(name) is not str:
            raise CorruptError("the metadata has a name that is no text")
        path = paths.get(name, (name,))
        kind = _class_of(value)
        if kind == "TensorStorageMetadata":
            tensor = _tensor(name, path, value, stretches, limits)
            n_parts += len(tensor.parts)
            found.saved.append(tensor)
        elif kind == "BytesStorageMetadata":
            n_parts += 1
            stretch = stretches.get((name, None))
            if stretch is None:
                raise CorruptError(f"the metadata does not say where {_shown(name)} is")
            found.saved.append(SavedObject(path, stretch))
        else:
            raise UnsupportedError(f"{_shown(name)} was saved as something that is neither tensor nor object")
        if n_parts > limits.tensors_max:
            raise LimitError(f"the checkpoint has more than {limits.tensors_max} parts")
    order = {path: place for place, path in enumerate(paths.values())}
    found.saved.sort(key=lambda item: order.get(item.path, len(order)))
    return found


def _tensor(
    name: str,
    path: Path,
    value: object,
    stretches: dict[tuple[str, tuple[int, ...] | None], Stretch],
    limits: ReadLimits,
) -> SavedTensor:
    state = _state(value, "TensorStorageMetadata")
    try:
        shape = sizes_of(state.get("size"), limits.dimensions_max)
        if prod(shape) >= _SIZE_MAX:
            raise TensorError("a tensor too large for any machine")
        dtype = _dtype(state.get("properties"))
        chunks = state.get("chunks")
        if not isinstance(chunks, list):
            raise TensorError("a tensor without a list of its parts")
        parts = []
        for chunk in chunks:
            box = _state(chunk, "ChunkStorageMetadata")
            offsets = sizes_of(box.get("offsets"), limits.dimensions_max)
            sizes = sizes_of(box.get("sizes"), limits.dimensions_max)
            stretch = stretches.get((name, offsets)) or stretches.get((name, None))
            if stretch is None:
                raise TensorError("a part whose place is not said")
            parts.append(SavedPart(offsets, sizes, stretch))
    except TensorError as error:
        raise CorruptError(f"the metadata of {_shown(name)} has {error}") from None
    return SavedTensor(path, dtype, shape, tuple(parts))


def _dtype(properties: object) -> str:
    """Return the dtype that TensorProperties state, whose own state is a tuple that begins with it."""
    if isinstance(properties, Node):
        if isinstance(properties.state, tuple) and properties.state:
            return dtype_name(properties.state[0])
        return dtype_name(text_keyed(attributes_of(properties)).get("dtype"))
    raise TensorError("a tensor without properties")


def _stretches(value: object, limits: ReadLimits) -> dict[tuple[str, tuple[int, ...] | None], Stretch]:
    """Return the place of each part by name and offsets (None for an object); of a part saved twice, the first."""
    if not isinstance(value, Pairs):
        raise CorruptError("the metadata does not say where the values are")
    found: dict[tuple[str, tuple[int, ...] | None], Stretch] = {}
    for key, info in value.pairs:
        index, place = _state(key, "MetadataIndex"), _state(info, "_StorageInfo")
        name, offset = index.get("fqn"), index.get("offset")
        file, begin, n_bytes = place.get("relative_path"), place.get("offset"), place.get("length")
        if type(name) is not str or type(file) is not str:
            raise CorruptError("the metadata places something without a name or a file")
        if (
            type(begin) is not int
            or type(n_bytes) is not int
            or not 0 <= begin < _SIZE_MAX
            or not 0 <= n_bytes < _SIZE_MAX
        ):
            raise CorruptError(f"the metadata gives {_shown(name)} a place that is none")
        if place.get("transform_descriptors"):
            raise UnsupportedError(f"{_shown(name)} was transformed (compressed, say) when saved, which is not read")
        try:
            offsets = None if offset is None else sizes_of(offset, limits.dimensions_max)
        except TensorError:
            raise CorruptError(f"the metadata gives {_shown(name)} an offset that is none") from None
        found.setdefault((name, offsets), Stretch(file, begin, n_bytes))
    return found


def _paths(value: object) -> dict[str, Path]:
    """Return where each flat name stood in the state that was saved; empty where the planner did not keep that."""
    found: dict[str, Path] = {}
    for name, path in value.pairs if isinstance(value, Pairs) else ():
        if type(name) is str and isinstance(path, tuple) and path and all(type(part) in (str, int) for part in path):
            found[name] = tuple(_parts(path))
    return found


def _parts(path: tuple[object, ...]) -> Iterator[str | int]:
    for part in path:
        if isinstance(part, str | int):
            yield part


def _class_of(value: object) -> str:
    """Return the name of the class of PyTorch's that a node is an object of, "" for anything else."""
    if isinstance(value, Node) and isinstance(value.function, Ref) and value.function.module.startswith(_MODULES):
        return value.function.name
    return ""


def _state(value: object, name: str) -> dict[str, object]:
    """Return the attributes of an object of this class; raise CorruptError for anything else."""
    if _class_of(value) != name:
        raise CorruptError(f"the metadata has something else where there should be a {name}")
    assert isinstance(value, Node)
    return text_keyed(attributes_of(value))


def _shown(name: str) -> str:
    return f"'{printable(name, _SHOWN)}'"
