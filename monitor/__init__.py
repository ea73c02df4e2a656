"""ckptwatch: the flight recorder for model weights.

In a notebook: `monitor.open(path)`, `monitor.measure(path)`, `monitor.diff(a, b)`, `monitor.history(database, run)` and
`monitor.frame(records)`; see monitor.notebook. They are loaded when asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NOTEBOOK = frozenset({"diff", "frame", "history", "open"})


def __getattr__(name: str) -> Any:
    if name in _NOTEBOOK:
        return getattr(importlib.import_module("monitor.notebook"), name)
    if name == "measure":  # a package that can be called
        return importlib.import_module("monitor.measure")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
