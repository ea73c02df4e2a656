from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conformance.reader import Arrays, ReaderConformance
from tests.support.memory import PEAK_BYTES_MAX, peak_bytes_of_reading


class TestTorchZip(ReaderConformance):
    format = "torch_zip"

    def write(self, path: Path, arrays: Arrays) -> None:
        torch.save({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    model = {f"w{n}": torch.zeros(2**14, 2**13) for n in range(4)}  # pages of zeros that nobody wrote take no room
    torch.save({"model": model, "step": 7}, path)
    assert peak_bytes_of_reading(path, n_elements=2**29) < PEAK_BYTES_MAX
