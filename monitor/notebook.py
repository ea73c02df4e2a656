"""The same answers in a notebook: `open`, `measure`, `diff` and `history`, as records or as a pandas DataFrame.

For people at a keyboard; also reached as `monitor.open(...)`, `monitor.measure(...)`, `monitor.diff(...)`,
`monitor.history(...)` and `monitor.frame(...)`. A path is measured in a confined worker, a model in this process.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from monitor import files, live
from monitor.files import CheckpointError, Order
from monitor.measure.comparison import Comparison
from monitor.measure.measured import Measured
from monitor.read.reader import LimitError, OpenCheckpoint, TensorSpec, UnsupportedError
from monitor.read.registry import open_path
from storage import queries
from storage.database import open_database
from storage.records import Problem, StoredSnapshot

if TYPE_CHECKING:
    import pandas

VALUES_BYTES_MAX = 2**31
HISTORY_MAX = 100_000

Path = str | os.PathLike[str]


class Opened:
    """An open checkpoint: what it holds, and the values of one tensor at a time."""

    def __init__(self, format_name: str, checkpoint: OpenCheckpoint) -> None:
        self.format = format_name
        self._checkpoint = checkpoint
        self._specs = {spec.name: spec for spec in checkpoint.tensors}

    @property
    def step(self) -> int | None:
        """Return the optimizer step that the content states, None where it states none."""
        return self._checkpoint.step

    @property
    def tensors(self) -> Sequence[TensorSpec]:
        """Return names, kinds, dtypes and shapes of the tensors, in the checkpoint's own order."""
        return self._checkpoint.tensors

    def __contains__(self, name: str) -> bool:
        return name in self._specs

    def __getitem__(self, name: str) -> npt.NDArray[np.generic]:
        """Return the values of a tensor in its shape; bfloat16 and fp8 come as types of ml_dtypes.

        Raises KeyError for an unknown name, UnsupportedError for a tensor whose values are not read (quantised,
        sparse), and LimitError for one of more than VALUES_BYTES_MAX bytes.
        """
        spec = self._specs[name]
        if spec.problem is not None:
            raise UnsupportedError(f"{name}: {spec.problem}")
        parts: list[npt.NDArray[np.generic]] = []
        n_bytes = 0
        for chunk in self._checkpoint.chunks(spec):
            n_bytes += chunk.values.nbytes
            if n_bytes > VALUES_BYTES_MAX:
                raise LimitError(f"{name} has more than {VALUES_BYTES_MAX:,} bytes; `ckptwatch export` copies it")
            parts.append(chunk.values.copy())  # a chunk is valid only until the next one
        if not parts:
            return np.zeros(spec.shape, np.float32 if spec.n_elements else np.dtype(spec.dtype))
        return np.concatenate(parts).reshape(spec.shape)


@contextmanager
def open(path: Path) -> Iterator[Opened]:
    """Open a checkpoint of any format, a file or a directory; raises a ReadError that says what is wrong.

    Nothing of the file is executed and no framework is imported; the structure is parsed in this process.
    """
    with open_path(os.path.abspath(os.fspath(path))) as opened:
        yield Opened(opened.format, opened.checkpoint)


def measure(subject: Any, optimizer: Any = None) -> Measured:
    """Measure every tensor of a checkpoint, given its path, or of a model in memory (see `monitor.live.measure`).

    Raises CheckpointError for a path that cannot be read.
    """
    if not isinstance(subject, str | os.PathLike):
        return live.measure(subject, optimizer)
    path = os.path.abspath(os.fspath(subject))
    (found,) = files.measure_files([Order(path=path)])
    if isinstance(found, Problem):
        raise CheckpointError(path, found)
    return found


def diff(a: Any, b: Any) -> Comparison:
    """Compare two checkpoints or models in memory, `a` the older one, of whatever frameworks they are.

    Raises CheckpointError or ReadError for a path that cannot be read.
    """
    if isinstance(a, str | os.PathLike) and isinstance(b, str | os.PathLike):
        return files.compare_files(os.path.abspath(os.fspath(a)), os.path.abspath(os.fspath(b)))
    return live.diff(a, b)


def history(database: Path, run: str, *, limit: int = HISTORY_MAX) -> tuple[StoredSnapshot, ...]:
    """Return the latest `limit` snapshots of a run, oldest first, from a database URL or the path of an SQLite file.

    Raises KeyError for an unknown run and a DatabaseError when the database cannot answer.
    """
    url = os.fspath(database)
    if "://" not in url and not os.path.exists(url):
        raise FileNotFoundError(f"there is no database at {url}")
    opened = open_database(url)
    try:
        with opened.read() as session:
            if queries.run(session, run) is None:
                raise KeyError(f"there is no run {run!r}; `ckptwatch runs` lists them")
            return tuple(queries.history(session, run, limit=min(limit, HISTORY_MAX)))
    finally:
        opened.close()


def frame(records: Measured | Comparison | Sequence[Any]) -> pandas.DataFrame:
    """Return a pandas DataFrame with a row a tensor, or a row a record for a sequence of records.

    Needs pandas (`pip install pandas`). Records inside a record become columns named `outer.inner`.
    """
    loaded = importlib.import_module("pandas")  # an extra: most people who ask want records
    rows = records.tensors if isinstance(records, Measured | Comparison) else records
    table: pandas.DataFrame = loaded.DataFrame([_flat(record) for record in rows])
    return table


def _flat(record: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if field.name in {"sketch", "histogram"}:
            continue
        if hasattr(value, "__dataclass_fields__"):
            flat |= _flat(value, f"{prefix}{field.name}.")
        elif hasattr(value, "items"):
            flat |= {f"{prefix}{field.name}.{key}": inner for key, inner in value.items()}
        else:
            flat[prefix + field.name] = value.value if isinstance(value, Enum) else value
    return flat
