"""The fused single pass over a tensor's values: counts, extrema, moments, sketch and histogram at once.

Only this package imports Numba, and only worker processes import it. It knows arrays, no tensors or files.

A tensor is worked through in rows of k elements (k = number of sketch buckets), so that a row lies on the sketch's
buckets one to one and LLVM can vectorise it; whole groups of GROUP_ROWS rows, which share their sign hash, are folded
at once. Extrema are found among bit patterns as integers, since float comparisons would not vectorise, and show
whether a row holds anything that is not finite; only such rows are looked at again.

Moments are deviations from the mean before the group, summed in float32 over a few hundred columns at most, in 16
lanes or more, and merged in float64 by the formula of Chan, Golub, LeVeque (1979), so that std stays accurate where
|mean| >> std. What comes near float32's limits when squared is summed again in float64. Sketches are float32 over at
most eight groups, float64 from there on. Kernels are compiled when first called, one for each way of storing values.
"""

from __future__ import annotations

from monitor.measure.kernel.accumulate import accumulate32, accumulate64, merge_moments
from monitor.measure.kernel.compare import compare32, compare64

__all__ = ["accumulate32", "accumulate64", "compare32", "compare64", "merge_moments"]
