from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.conformance.reader import Arrays, ReaderConformance


class TestSafetensors(ReaderConformance):
    format = "safetensors"

    def write(self, path: Path, arrays: Arrays) -> None:
        save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path)
