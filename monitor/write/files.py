"""Tensors to the bytes of a safetensors or npz file, as a stream: one chunk is in memory at a time."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from monitor.read.dtypes import DTYPES
from monitor.read.reader import CorruptError, LimitError, OpenCheckpoint
from monitor.write.selection import SAFETENSORS_DTYPES, Selected

_HEADER_BYTES_MAX = 100_000_000  # what readers of safetensors accept
_ALIGNMENT = 8
_MEMBER_BYTES = 512  # more than a zip spends on one member beside its name
_ZIP_BYTES = 65_536
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same tensors give the same bytes

Writer = Callable[[BinaryIO, OpenCheckpoint, Sequence[Selected]], None]


def size_bytes_max(format_name: str, checkpoint: OpenCheckpoint, selected: Sequence[Selected]) -> int:
    """Return how large a file of the selected tensors is at most; exact for safetensors."""
    values = sum(tensor.size_bytes for tensor in selected)
    if format_name == "safetensors":
        return len(_safetensors_header(checkpoint, _by_width(selected))) + values
    names = sum(len(tensor.spec.name.encode()) for tensor in selected)
    return values + 2 * names + _MEMBER_BYTES * len(selected) + _ZIP_BYTES


def write_safetensors(file: BinaryIO, checkpoint: OpenCheckpoint, selected: Sequence[Selected]) -> None:
    """Write tensors with their dtypes, widest elements first; a tied tensor is written like any other.

    Step and epoch go into the metadata as text. Raises LimitError when the names alone are more than readers accept.
    """
    ordered = _by_width(selected)
    file.write(_safetensors_header(checkpoint, ordered))
    for values in _values(checkpoint, ordered):
        file.write(values)


def write_npz(file: BinaryIO, checkpoint: OpenCheckpoint, selected: Sequence[Selected]) -> None:
    """Write tensors as arrays of NumPy in an uncompressed archive, in the checkpoint's own order."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for tensor in selected:
            info = zipfile.ZipInfo(f"{tensor.spec.name}.npy", _LONG_AGO)
            with archive.open(info, "w", force_zip64=True) as member:
                member.write(_npy_header(tensor))
                for values in _values(checkpoint, [tensor]):
                    member.write(values)


WRITERS: Mapping[str, Writer] = {"npz": write_npz, "safetensors": write_safetensors}


def _by_width(selected: Sequence[Selected]) -> list[Selected]:
    """Return the tensors in the order in which every one is aligned."""
    return sorted(selected, key=lambda tensor: -DTYPES[tensor.dtype].itemsize)


def _safetensors_header(checkpoint: OpenCheckpoint, ordered: Sequence[Selected]) -> bytes:
    metadata = {"format": "pt"}
    if checkpoint.step is not None:
        metadata["step"] = str(checkpoint.step)
    if checkpoint.epoch is not None:
        metadata["epoch"] = str(checkpoint.epoch)
    document: dict[str, object] = {"__metadata__": metadata}
    place = 0
    for tensor in ordered:
        if tensor.spec.name in document:
            raise CorruptError(
                "a tensor has the name that safetensors keeps for its metadata; leave it out by --filter"
            )
        end = place + tensor.size_bytes
        document[tensor.spec.name] = {
            "dtype": SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.spec.shape),
            "data_offsets": [place, end],
        }
        place = end
    header = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    if len(header) > _HEADER_BYTES_MAX:
        raise LimitError(f"the names of the tensors need {len(header)} bytes, readers accept {_HEADER_BYTES_MAX}")
    return len(header).to_bytes(8, "little") + header


def _npy_header(tensor: Selected) -> bytes:
    out = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(DTYPES[tensor.dtype].newbyteorder("<"))
    np.lib.format.write_array_header_2_0(
        out, {"descr": descr, "fortran_order": False, "shape": tuple(tensor.spec.shape)}
    )
    return out.getvalue()


def _values(checkpoint: OpenCheckpoint, tensors: Sequence[Selected]) -> Iterator[memoryview]:
    """Yield the bytes of the tensors, one after the other, little-endian."""
    by_name = {spec.name: spec for spec in checkpoint.tensors}
    for tensor in tensors:
        owner = by_name.get(tensor.spec.tied_to or tensor.spec.name, tensor.spec)
        n_written = 0
        for chunk in checkpoint.chunks(owner):
            values = chunk.values
            n_written += values.size
            yield _little_endian(values if tensor.dtype == tensor.spec.dtype else values.astype(tensor.dtype))
        if n_written != tensor.spec.n_elements:
            raise CorruptError(
                f"{tensor.spec.name} has {n_written} values where {tensor.spec.n_elements} were announced"
            )


def _little_endian(values: npt.NDArray[np.generic]) -> memoryview:
    word = values.dtype.itemsize // (2 if values.dtype.kind == "c" else 1)
    words = np.ascontiguousarray(values).view(f"u{word}").astype(f"<u{word}", copy=False)
    return words.view(np.uint8).data
