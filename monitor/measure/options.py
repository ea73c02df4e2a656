"""What may be chosen about measuring; plain facts that cross to the worker process.

Standard library only, because the daemon builds these and must not import the compiled kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SKETCH_BUCKETS_MAX = 8191  # four rows are counted in 16 bits

DriftMethod = Literal["sketch", "exact", "auto"]


def _is_prime(n: int) -> bool:
    """Say whether `n` is prime, by trial division (n is at most SKETCH_BUCKETS_MAX)."""
    return n >= 2 and all(n % d for d in range(2, int(n**0.5) + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """How a checkpoint is measured.

    `chunk_bytes` bounds how much of a tensor is in memory at a time; about 2 MiB, read into the same buffer again and
    again, stays in the processor's caches, and makes few system calls. `sketch_buckets` is a prime (the sketch's error
    is 1/sqrt(2 * sketch_buckets)); sketches with another count or seed cannot be compared, and a few shapes get a
    neighbouring prime (see `for_shape`). `drift` "sketch" never reads
    the reference file, "auto" reads it when it is at most `exact_drift_bytes_max` large, "exact" whatever its size; a
    reference that cannot be read is no error, the drift is then sketched. `quantiles` are probabilities in 0..1.
    """

    chunk_bytes: int = 2 * 2**20
    sketch_buckets: int = 1021
    sketch_seed: int = 0
    histogram: bool = True
    drift: DriftMethod = "auto"
    exact_drift_bytes_max: int = 256 * 2**20
    quantiles: tuple[float, ...] = QUANTILES

    def __post_init__(self) -> None:
        """Refuse values with which the measurement would be meaningless; a list of quantiles (from JSON) will do."""
        object.__setattr__(self, "quantiles", tuple(self.quantiles))
        if self.chunk_bytes < 1024:
            raise ValueError(f"chunk_bytes must be at least 1024, not {self.chunk_bytes}")
        if not _is_prime(self.sketch_buckets) or self.sketch_buckets > SKETCH_BUCKETS_MAX:
            raise ValueError(f"sketch_buckets must be a prime up to {SKETCH_BUCKETS_MAX}, not {self.sketch_buckets}")
        if not 0 <= self.sketch_seed < 2**63:
            raise ValueError(f"sketch_seed must be in 0..2**63-1, not {self.sketch_seed}")
        if self.drift not in ("sketch", "exact", "auto"):
            raise ValueError(f"drift must be sketch, exact or auto, not {self.drift!r}")
        if not all(0.0 <= q <= 1.0 for q in self.quantiles):
            raise ValueError(f"quantiles must be in 0..1, not {self.quantiles}")

    def for_shape(self, shape: Sequence[int]) -> Self:
        """Return the options for a tensor of this shape: the same, or with the next smaller prime as `sketch_buckets`.

        Element i falls into bucket i mod k. Where k divides a stride of the tensor, as in a matrix of k columns, a
        whole column would share one bucket and the estimate of a change to it would scatter by more than half; with a
        prime that divides no stride every column, row and plane spreads over as many buckets as it has elements.
        """
        strides = [math.prod(shape[axis + 1 :]) for axis, size in enumerate(shape) if size > 1]
        buckets = self.sketch_buckets
        while any(stride and stride % buckets == 0 for stride in strides):
            buckets = next(n for n in range(buckets - 1, 0, -1) if _is_prime(n))
        return self if buckets == self.sketch_buckets else replace(self, sketch_buckets=buckets)
