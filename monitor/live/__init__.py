"""The same numbers as from a file, from a model in memory: `measure(model)` and `diff(a, b)`.

Models of PyTorch, Keras, TensorFlow, scikit-learn, XGBoost and LightGBM, and plain arrays. A framework is told by the
type of the object and never imported for asking. This runs in the caller's own process and must not write anything.
"""

from __future__ import annotations

from monitor.live.measuring import diff, measure

__all__ = ["diff", "measure"]
