"""Draw one plot as a PNG: `python -m alerts.drawing`, the plot as JSON on standard input, the PNG on standard output.

A process of its own, because Matplotlib takes a second and 70 MiB that the daemon need not hold. It reads and writes
nothing else, has little time and memory, and gives way to training.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
from typing import Any

from matplotlib.figure import Figure

from alerts.plot import Plot

WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 6.4, 3.2, 150
INPUT_BYTES_MAX = 1_000_000
MEMORY_BYTES_MAX = 2 * 2**30
CPU_SECONDS_MAX = 30
LINE, BAD, OVER, LIMIT = "#175cd3", "#b42318", "#067647", "#b54708"


def draw(plot: Plot) -> bytes:
    """Return the picture: the line, the threshold as a dashed line with its value, the alert as a dot."""
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(plot.xs, plot.ys, color=LINE, linewidth=1.5, marker=".", markersize=4)
    if plot.is_logarithmic:
        axes.set_yscale("log")
    if plot.threshold is not None and (plot.threshold > 0 or not plot.is_logarithmic):
        label = f"threshold {plot.threshold:.4g}"
        axes.axhline(plot.threshold, color=LIMIT, linewidth=1.2, linestyle="--", label=label)
    if plot.marked is not None:
        x, y = plot.xs[plot.marked], plot.ys[plot.marked]
        colour = OVER if plot.is_over else BAD
        axes.axvline(x, color=colour, linewidth=0.8, alpha=0.5)
        axes.plot([x], [y], color=colour, marker="o", markersize=8, linestyle="none", label=f"alert: {y:.4g}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)
    # Names come from files; a dollar sign in one must not begin a formula.
    axes.set_title(plot.title, fontsize=10, parse_math=False)
    axes.set_xlabel(plot.x_label, fontsize=9)
    axes.set_ylabel(plot.y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def main() -> None:
    """Read the plot, draw it, write the picture."""
    os.nice(19)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS_MAX, CPU_SECONDS_MAX))
    given: dict[str, Any] = json.loads(sys.stdin.buffer.read(INPUT_BYTES_MAX))
    plot = Plot(**{**given, "xs": tuple(given["xs"]), "ys": tuple(given["ys"])})
    sys.stdout.buffer.write(draw(plot))


if __name__ == "__main__":
    main()
