"""The rule `poor_initialisation`: the first checkpoint's layers are far from a scale at which signals pass through.

With weights of standard deviation s and n inputs a layer scales its input by s * sqrt(n), about 0.1 to 2 for every
usual scheme. Only layers with a bias of matching length are judged, so that embedding tables are not taken for layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit, listed, matrices, parameters, why_silent
from alerts.rule import Needs, Outcome, number, quiet
from storage.records import Severity, TensorSummary, Window

INPUTS_MIN = 8  # a standard deviation of fewer inputs says little


class PoorInitialisation:
    """Layers that start with a scale far too large or too small."""

    name: ClassVar[str] = "poor_initialisation"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.WEIGHTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`gain_max`, `gain_min`: the limits of std * sqrt(inputs).

        `share`: which part of the layers must be out of range, or constant.
        """

        gain_max: Annotated[float, Field(gt=0)] = 5.0
        gain_min: Annotated[float, Field(ge=0)] = 0.005
        share: Annotated[float, Field(gt=0, le=1)] = 0.5

    def check(self, window: Window, options: Options) -> Outcome:
        """Judge a run's very first checkpoint; nothing to find in later ones, silent without layers."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        if window.past or window.previous_attempt is not None:
            return Outcome()
        layers = _layers(window)
        if not layers:
            return quiet("no layer with weights and a bias")
        gains = [(t, (t.std or 0.0) * math.sqrt(n)) for t, n in layers]
        large = [(t, g) for t, g in gains if g > options.gain_max]
        small = [(t, g) for t, g in gains if g < options.gain_min]
        found, limit = max((large, options.gain_max), (small, options.gain_min), key=lambda part: len(part[0]))
        if len(found) < options.share * len(layers):
            return Outcome()
        first, gain = found[0]
        what = "too large" if found is large else "too small"
        if not first.std:
            what = "constant"
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"The initial weights are {what} in {number(len(found))} of {number(len(layers))} layers: "
                    f"{first.name} scales its input by {number(gain)}",
                    subject=first.name,
                    value=gain,
                    threshold=limit,
                    details=listed((t.name, f"standard deviation {number(t.std)}, gain {number(g)}") for t, g in found),
                ),
            )
        )


def _layers(window: Window) -> list[tuple[TensorSummary, int]]:
    """Return weight matrices that have a bias of matching length, with the least number of inputs they may have."""
    biases = {t.name: t.n_elements for t in parameters(window.tensors) if t.name.rpartition(".")[2] == "bias"}
    found = []
    for tensor in matrices(window.tensors):
        prefix, _, last = tensor.name.rpartition(".")
        n_outputs = biases.get(f"{prefix}.bias")
        if last not in ("weight", "kernel") or n_outputs not in (tensor.shape[0], tensor.shape[-1]):
            continue
        n_inputs = tensor.n_elements // n_outputs
        if n_inputs >= INPUTS_MIN and n_outputs > 1:
            found.append((tensor, n_inputs))
    return found
