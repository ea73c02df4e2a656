from pathlib import Path

import numpy as np
import torch

from tests.conformance.reader import Arrays, ReaderConformance


class TestTorchZip(ReaderConformance):
    format = "torch_zip"

    def write(self, path: Path, arrays: Arrays) -> None:
        torch.save({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, path)
