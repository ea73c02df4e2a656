"""How long the queries behind a page take over millions of stored tensor rows.

    python -m benchmarks.storage_queries                              300 000 rows, about half a minute
    python -m benchmarks.storage_queries --snapshots 1000 --tensors 3000      3 000 000 rows
    python -m benchmarks.storage_queries --distributions --sketches   with the large parts, as the daemon stores them

Builds a database in a temporary directory (or --directory), and reports the median and the worst of several runs of
each query; with --json as one document.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.orm import Session

from benchmarks.figures import Figure, median, publish
from storage import queries, windows, writer
from storage.database import open_database
from storage.records import (
    Alert,
    AlertState,
    Checkpoint,
    GradientEstimate,
    Histogram,
    Severity,
    Sketch,
    Snapshot,
    SnapshotStatus,
    TensorDrift,
    TensorKind,
    TensorSummary,
)

RUN = "run-0"
TARGET_MS = 200.0


def make_tensors(n_tensors: int, *, distributions: bool, sketches: bool) -> tuple[TensorSummary, ...]:
    """Return summaries as large as real ones: 120 histogram bins and 1021 sketch buckets where asked for."""
    chance = random.Random(0)
    histogram = Histogram(
        bin_indices=tuple(range(-60, 60)),
        counts=tuple(chance.randrange(60_000) for _ in range(120)),
        n_sampled=3_000_000,
        exact=False,
    )
    quantiles = {p: chance.gauss(0, 1) for p in ("0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99")}
    return tuple(
        TensorSummary(
            name=f"transformer.h.{i // 12}.part{i % 12}.weight",
            kind=TensorKind.PARAMETER,
            dtype="bfloat16",
            shape=(2048, 2048),
            position=i,
            n_elements=2048 * 2048,
            n_nan=0,
            n_posinf=0,
            n_neginf=0,
            n_zero=chance.randrange(1000),
            min=chance.gauss(-3, 1),
            max=chance.gauss(3, 1),
            mean=chance.gauss(0, 0.01),
            std=chance.gauss(1, 0.01),
            norm_l1=chance.gauss(2000, 10),
            norm_l2=chance.gauss(20, 1),
            abs_max=chance.gauss(4, 1),
            quantiles=quantiles if distributions else {},
            histogram=histogram if distributions else None,
            sketch=Sketch(kind="sketch", n_buckets=1021, seed=1, dtype="float32", values=chance.randbytes(4084))
            if sketches
            else None,
        )
        for i in range(n_tensors)
    )


def make_snapshot(run: str, step: int, tensors: tuple[TensorSummary, ...]) -> Snapshot:
    """Return a snapshot of the given tensors, with a drift for each."""
    checkpoint = Checkpoint(
        run=run,
        root="/data",
        path=f"/data/{run}/checkpoint-{step}.safetensors",
        files=(),
        signature=f"{step:032x}",
        written_at=1e9 + step,
        format="safetensors",
        step=step,
    )
    drifts = tuple(
        TensorDrift(
            name=tensor.name,
            reference_step=step - 1,
            method="sketch",
            difference_l2=0.1,
            relative_l2=0.001,
            cosine_distance=1e-6,
        )
        for tensor in tensors
    )
    return Snapshot(
        checkpoint=checkpoint,
        status=SnapshotStatus.COMPLETE,
        problem=None,
        tensors=tensors,
        drifts=drifts,
        scalars={"lr": 3e-4},
        attempt=1,
        n_tensors=len(tensors),
        n_parameters=sum(tensor.n_elements for tensor in tensors),
        n_nonfinite=0,
        weight_norm=100.0,
        update_ratio=1e-4,
        gradient=GradientEstimate(norm=0.5, source="adam_window", window_steps=1),
        first_bad_tensor=None,
        reference_step=step - 1,
        bytes_read=1,
        duration_seconds=1.0,
        measured_at=1e9 + step,
    )


def make_alert(step: int) -> Alert:
    """Return an alert that is over, as most are."""
    return Alert(
        fingerprint=f"{step % 50:016x}",
        run=RUN,
        rule="nonfinite",
        severity=Severity.CRITICAL,
        state=AlertState.RESOLVED,
        subject="transformer.h.0.part0.weight",
        step=step,
        value=1.0,
        threshold=0.0,
        unit="elements",
        summary="1 element is NaN",
        details=(),
        opened_at=1e9 + step,
        fired_at=1e9 + step,
        resolved_at=1e9 + step + 1,
        last_seen_at=1e9 + step,
        n_seen=1,
        episode=step // 50 + 1,
    )


def asked(newest: int, tensor: str) -> dict[str, Callable[[Session], object]]:
    """Return what is timed, by name."""
    return {
        "runs": queries.runs,
        "history of a run, 1000": lambda s: queries.history(s, RUN, limit=1000),
        "newest snapshot": lambda s: queries.newest(s, RUN),
        "reference for drift": lambda s: queries.reference(s, RUN, 1, step=10**9, written_at=0.0),
        "window for the rules": lambda s: windows.window(s, RUN, n_snapshots_max=50, now=0.0, reason="tick"),
        "tensors of a snapshot": lambda s: queries.tensors(s, newest),
        "the same, numbers only": lambda s: queries.tensors(s, newest, with_distribution=False),
        "the same, with sketches": lambda s: queries.tensors(s, newest, with_sketch=True),
        "drifts of a snapshot": lambda s: queries.drifts(s, newest),
        "one tensor over 200 snapshots": lambda s: queries.tensor_history(s, RUN, tensor, limit=200),
        "what is known of a root": lambda s: queries.known(s, "/data"),
        "is a checkpoint known": lambda s: queries.is_known(s, RUN, "/data/x", "y"),
        "alerts, 500": queries.alerts,
        "open alerts": queries.open_alerts,
        "firing counts": queries.firing_counts,
    }


def main() -> None:
    """Build, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshots", type=int, default=1000)
    parser.add_argument("--tensors", type=int, default=300)
    parser.add_argument("--runs", type=int, default=5, help="the snapshots are shared out among so many runs")
    parser.add_argument("--distributions", action="store_true")
    parser.add_argument("--sketches", action="store_true")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tensors = make_tensors(options.tensors, distributions=options.distributions, sketches=options.sketches)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        path = Path(directory) / "bench.db"
        database = open_database(str(path))
        begun = time.perf_counter()
        newest = 0
        for number in range(options.snapshots):
            snapshot = make_snapshot(f"run-{number % options.runs}", number, tensors)
            with database.write() as session:
                added = writer.add_snapshot(session, snapshot)
                writer.save_alert(session, make_alert(number))
            newest = added if added is not None and number % options.runs == 0 else newest
        build_seconds = time.perf_counter() - begun
        n_rows = options.snapshots * options.tensors
        stored = f"{n_rows:,} rows"
        mib = (
            sum(file.stat().st_size for file in Path(directory).iterdir()) / 2**20
        )  # the log of what was just written too
        figures = [
            Figure(
                what=f"{stored}: store {options.tensors} tensors",
                measured=1000 * build_seconds / options.snapshots,
                unit="ms",
            ),
            Figure(what=f"{stored}: database", measured=mib, unit="MiB"),
        ]
        for name, ask in asked(newest, tensors[0].name).items():
            times = []
            for _ in range(options.repeat):
                begun = time.perf_counter()
                with database.read() as session:
                    ask(session)
                times.append(1000 * (time.perf_counter() - begun))
            figures.append(
                Figure(what=f"{stored}: {name}, median", measured=median(times), unit="ms", target=TARGET_MS)
            )
            figures.append(Figure(what=f"{stored}: {name}, worst", measured=max(times), unit="ms"))
        database.close()
    publish(figures, options.json, rows=n_rows)


if __name__ == "__main__":
    main()
