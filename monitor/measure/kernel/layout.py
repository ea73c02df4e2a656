"""Which slot of an accumulator array holds what; NumPy only, so that both sides of the compiled code can read it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monitor.measure.histogram import MAGNITUDES

# counts (int64)
N_FINITE, N_NAN, N_POSINF, N_NEGINF, N_ZERO = range(5)
COUNTS = 5
# moments (float64); M2 is the sum of squared deviations from the mean, L1 the sum of magnitudes
MIN, MAX, MEAN, M2, L1 = range(5)
MOMENTS = 5
# sums of a comparison (float64)
DIFFERENCE2, NEW2, OLD2, LARGEST_DIFFERENCE = range(4)
DRIFT_SUMS = 4
# counts of a comparison (int64)
N_CHANGED, N_PAIRS_NONFINITE = range(2)
DRIFT_COUNTS = 2


def empty_histogram() -> npt.NDArray[np.int64]:
    """Return a table of zeros, one slot a bin, the positive half first (see histogram.from_counts)."""
    return np.zeros(2 * MAGNITUDES, dtype=np.int64)
