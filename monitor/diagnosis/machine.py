"""The interpreter, the packages, and a worker that measures a real file; also where its compiled code is kept."""

from __future__ import annotations

import json
import platform
import resource
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from monitor.diagnosis.finding import Diagnosis, problem, warning, well
from monitor.measure.codec import measured_from_json
from monitor.measure.options import MeasureOptions
from monitor.measure.workers import PoolOptions, WorkerError, WorkerPool

DESCRIPTORS_MIN = 1024
_PACKAGES = (
    "ckptwatch", "numpy", "numba", "h5py", "SQLAlchemy", "alembic", "watchdog", "starlette", "prometheus-client",
)  # fmt: skip
_EXTRAS = {"matplotlib": "pictures in messages and `ckptwatch plot`"}


def diagnose_machine(options: PoolOptions) -> Sequence[Diagnosis]:
    """Look at versions, limits of the process and the measuring worker; starts one worker and ends it."""
    return [_versions(), *_extras(), _descriptors(), _worker(options)]


def _versions() -> Diagnosis:
    known = [f"{name} {found}" for name in _PACKAGES if (found := _version(name)) is not None]
    return well(
        "versions", f"Python {platform.python_version()}, {', '.join(known)}, {platform.system()} {platform.release()}"
    )


def _extras() -> list[Diagnosis]:
    return [
        warning(name, f"is not installed: no {use}", f"pip install {name}")
        for name, use in _EXTRAS.items()
        if _version(name) is None
    ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _descriptors() -> Diagnosis:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < DESCRIPTORS_MIN:
        return warning(
            "open files", f"this process may open {soft} files", f"raise the limit to {DESCRIPTORS_MIN}: ulimit -n"
        )
    return well("open files", f"this process may open {soft} files")


def _worker(options: PoolOptions) -> Diagnosis:
    with tempfile.TemporaryDirectory(prefix="ckptwatch-doctor-") as directory:
        path = Path(directory) / "probe.safetensors"
        path.write_bytes(_probe())
        try:
            with WorkerPool(options) as pool:
                payload = {"path": str(path), "options": asdict(MeasureOptions()), "reference_path": None}
                found = measured_from_json(pool.submit("measure", payload).result())
        except WorkerError as error:
            return problem(
                "worker",
                f"cannot measure a small file: {error.problem.kind}: {error.problem.message}",
                "look at measure.memory_bytes_max and the limits of this user (ulimit -a)",
            )
        except (OSError, ValueError) as error:
            return problem("worker", f"cannot be started: {error}", "look at the limits of this user (ulimit -a)")
    if [tensor.n_elements for tensor in found.tensors] != [64] or found.tensors[0].abs_max != 63.0:
        return problem("worker", "measures wrongly", "report this with the versions above")
    return well("worker", "starts, measures a small file and measures it right")


def _probe() -> bytes:
    """Return a safetensors file of the numbers 0 to 63."""
    header = json.dumps({"probe": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<64f", *range(64))
