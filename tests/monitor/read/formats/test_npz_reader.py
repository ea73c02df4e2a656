import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.conformance.reader import Arrays, ReaderConformance
from tests.support.memory import PEAK_BYTES_MAX, peak_bytes_of_reading


class TestNpz(ReaderConformance):
    format = "npz"

    def write(self, path: Path, arrays: Arrays) -> None:
        with path.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]


class TestDeflatedNpz(ReaderConformance):
    format = "npz"

    def write(self, path: Path, arrays: Arrays) -> None:
        with path.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path, method: int) -> None:
    path = tmp_path / "large.npz"
    block = np.random.default_rng(0).standard_normal(2**18).astype(np.float32).tobytes() + bytes(2**20)
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**28,)}
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for name in ("a", "b"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for _ in range(2**30 // len(block)):
                    member.write(block)
    assert peak_bytes_of_reading(path, n_elements=2**29) < PEAK_BYTES_MAX
