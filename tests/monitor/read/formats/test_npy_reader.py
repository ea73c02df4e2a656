from pathlib import Path

import numpy as np

from tests.conformance.reader import Arrays, ReaderConformance


class TestNpy(ReaderConformance):
    format = "npy"
    one_array = "tensor"

    def write(self, path: Path, arrays: Arrays) -> None:
        (array,) = arrays.values()
        with path.open("wb") as stream:
            np.save(stream, array)
