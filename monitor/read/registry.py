"""Which formats there are, which one a file is in, and the one way to open a checkpoint.

Detection goes by content first and by name second. A reader's module is imported when a file of its format is met.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from monitor.read.bounded_file import BoundedFile, as_read_error, open_bounded
from monitor.read.bounded_unit import BoundedUnit
from monitor.read.directories import Located, locate, reader_of
from monitor.read.naming import printable
from monitor.read.plugins import load_plugins
from monitor.read.reader import (
    SNIFF_BYTES_MAX,
    CorruptError,
    IncompleteError,
    LimitError,
    OpenCheckpoint,
    Reader,
    ReadLimits,
    UnsupportedError,
)
from monitor.read.renamed import with_named_states, without_wrappers

READERS = {
    "flax_msgpack": "monitor.read.formats.flax_msgpack:FlaxMsgpackReader",
    "gguf": "monitor.read.formats.gguf:GgufReader",
    "hdf5": "monitor.read.formats.hdf5:Hdf5Reader",
    "keras": "monitor.read.formats.keras:KerasReader",
    "lightgbm": "monitor.read.formats.lightgbm:LightgbmReader",
    "npy": "monitor.read.formats.npy:NpyReader",
    "npz": "monitor.read.formats.npz:NpzReader",
    "onnx": "monitor.read.formats.onnx:OnnxReader",
    "pickle": "monitor.read.formats.pickle:PickleReader",
    "safetensors": "monitor.read.formats.safetensors:SafetensorsReader",
    "skops": "monitor.read.formats.skops:SkopsReader",
    "torch_legacy": "monitor.read.formats.torch_legacy:TorchLegacyReader",
    "torch_zip": "monitor.read.formats.torch_zip:TorchZipReader",
    "xgboost": "monitor.read.formats.xgboost:XgboostReader",
}
ENTRY_POINT_GROUP = "ckptwatch.readers"

# What else a file may turn out to be; the message says what it looks like.
_LOOKALIKES = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself; run `git lfs pull`"),
    (b"<!doctype html", "an HTML page, perhaps the error page of a download"),
    (b"<html", "an HTML page, perhaps the error page of a download"),
    (b"<?xml", "an XML document"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"\x1f\x8b", "a gzip file; unpack it"),
    (b"BZh", "a bzip2 file; unpack it"),
    (b"\xfd7zXZ\0", "an xz file; unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstandard file; unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it"),
    (b"\x7fELF", "a program"),
    (b"%PDF-", "a PDF document"),
)


@dataclass(frozen=True, slots=True)
class OpenedPath:
    """A checkpoint that is open: its format's name, its tensors, and the file or files under it."""

    format: str
    checkpoint: OpenCheckpoint
    file: BoundedFile | BoundedUnit


@cache
def reader_class(name: str) -> type[Reader]:
    """Import the built-in reader of this name; raise KeyError for an unknown one."""
    module_name, _, class_name = READERS[name].partition(":")
    found: type[Reader] = getattr(import_module(module_name), class_name)
    return found


@cache
def plugin_readers() -> tuple[type[Reader], ...]:
    """Import the readers that other distributions offer; one that cannot be used is logged and left out."""
    return load_plugins(ENTRY_POINT_GROUP, READERS, "suffixes", ("sniff", "open"))


def detect(head: bytes, path: str) -> Reader:
    """Return the reader for a file that begins with `head` (at most SNIFF_BYTES_MAX bytes).

    Raises IncompleteError for an empty or all-zero file and UnsupportedError, which says what the file looks like.
    A file that only has the name of a format is given to that format's reader, whose error says what is wrong.
    """
    if not head:
        raise IncompleteError("the file is empty")
    built_in = [reader_class(name) for name in READERS]
    for reader in built_in:
        if reader.sniff(head, path):
            return reader()
    for reader in plugin_readers():
        if reader.sniff(head, path):
            return reader()
    lower = head[:64].lstrip().lower()
    for magic, what in _LOOKALIKES:
        if head.startswith(magic) or (magic.isascii() and lower.startswith(magic.lower())):
            raise UnsupportedError(f"the file looks like {what}")
    if not any(head):
        raise IncompleteError("the file begins with zeros only; some writers make room before they write")
    for reader in (*built_in, *plugin_readers()):
        if path.lower().endswith(reader.suffixes):
            return reader()
    raise UnsupportedError(
        f"the file is in no format that is read here ({', '.join(READERS)}); it begins with {head[:8].hex(' ')}"
    )


@contextmanager
def open_path(
    path: str, limits: ReadLimits | None = None, on_read: Callable[[int], None] | None = None
) -> Iterator[OpenedPath]:
    """Open one checkpoint, a file or a unit of several, detect its format and parse its structure; close it on leaving.

    `on_read` gets the number of bytes after each read. Raises a ReadError whose kind says why it cannot be read.
    The caller closes the stat bracket with `opened.file.verify_unchanged()` when all values were read.
    """
    limits = limits or ReadLimits()
    located = _located(path)
    if located is not None:
        with BoundedUnit(located.directory, located.claim, on_read=on_read) as unit:
            directory_reader = reader_of(located.claim)
            checkpoint = _opened(lambda: directory_reader.open(unit, limits))
            yield OpenedPath(directory_reader.name, without_wrappers(checkpoint, limits), unit)
        return
    if os.path.isdir(path):
        raise UnsupportedError(
            f"{printable(path, 200)} is a directory in no format that is read here; give one of the files in it"
        )
    with open_bounded(path, on_read=on_read) as file:
        reader = detect(file.head(SNIFF_BYTES_MAX), path)
        checkpoint = _opened(lambda: reader.open(file, limits))
        if getattr(reader, "keeps_module_order", False):
            checkpoint = with_named_states(checkpoint)
        yield OpenedPath(reader.name, without_wrappers(checkpoint, limits), file)


def _located(path: str) -> Located | None:
    try:
        return locate(path)
    except OSError as error:
        raise as_read_error(error, path) from error
    except ValueError:  # a NUL in the path; opening it says so
        return None


def _opened(opening: Callable[[], OpenCheckpoint]) -> OpenCheckpoint:
    """Open, and give what a parser did not foresee a place in the tree of errors."""
    try:
        return opening()
    except (RecursionError, MemoryError) as error:
        raise LimitError(f"the structure is too deep or too large to be parsed ({type(error).__name__})") from error
    except (ValueError, LookupError, ArithmeticError, TypeError, AttributeError, struct.error, zlib.error) as error:
        what = printable(str(error), 200)
        raise CorruptError(f"the structure cannot be parsed ({type(error).__name__}: {what})") from error
