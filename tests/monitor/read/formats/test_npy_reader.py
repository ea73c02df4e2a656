from pathlib import Path

import numpy as np
import pytest

from tests.conformance.reader import Arrays, ReaderConformance
from tests.support.memory import PEAK_BYTES_MAX, peak_bytes_of_reading


class TestNpy(ReaderConformance):
    format = "npy"
    one_array = "tensor"

    def write(self, path: Path, arrays: Arrays) -> None:
        (array,) = arrays.values()
        with path.open("wb") as stream:
            np.save(stream, array)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "large.npy"
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (2**15, 2**14)})
        stream.truncate(stream.tell() + 2**31)
    assert peak_bytes_of_reading(path, n_elements=2**29) < PEAK_BYTES_MAX
