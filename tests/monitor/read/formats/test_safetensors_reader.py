from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conformance.reader import Arrays, ReaderConformance
from tests.support.memory import PEAK_BYTES_MAX, peak_bytes_of_reading
from tests.support.sparse_files import sparse_safetensors


class TestSafetensors(ReaderConformance):
    format = "safetensors"

    def write(self, path: Path, arrays: Arrays) -> None:
        save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    sparse_safetensors(path, {f"w{n}": (2**16, 2**11) for n in range(4)})
    assert peak_bytes_of_reading(path, n_elements=2**29) < PEAK_BYTES_MAX
