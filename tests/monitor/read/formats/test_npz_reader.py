from pathlib import Path

import numpy as np

from tests.conformance.reader import Arrays, ReaderConformance


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
