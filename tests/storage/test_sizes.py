"""What a snapshot takes in the database, with and without its details: the figures that docs/drift.md gives."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from monitor.measure.weight_sketch import weight_sketch
from storage import writer
from storage.database import Database
from storage.records import TensorDrift, TensorSummary
from storage.retention import thin_distributions, thin_sketches
from tests.support.measuring import summarise
from tests.support.stored import make_snapshot

N_TENSORS = 60
N_SNAPSHOTS = 24
N_RECENT = 4


def used_bytes(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        n_pages, n_free, page_bytes = (
            connection.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "freelist_count", "page_size")
        )
    return int((n_pages - n_free) * page_bytes)


def drift_of(tensor: TensorSummary) -> TensorDrift:
    return TensorDrift(
        name=tensor.name,
        reference_step=1,
        method="sketch",
        difference_l2=0.1234567,
        relative_l2=0.01234567,
        cosine_distance=1.234567e-5,
    )


def test_a_snapshot_takes_what_the_page_says_and_little_once_it_is_thinned(
    sqlite_database: Database, path: Path
) -> None:
    measured = summarise(np.random.default_rng(0).standard_normal(20_000).astype(np.float32))
    tensors = tuple(replace(measured, name=f"model.layers.{i}.self_attn.weight", position=i) for i in range(N_TENSORS))
    drifts = tuple(drift_of(tensor) for tensor in tensors)
    empty = used_bytes(path)
    with sqlite_database.write() as session:
        for step in range(N_SNAPSHOTS):
            snapshot = make_snapshot(step, tensors=tensors, drifts=drifts, weights=weight_sketch(tensors))
            assert writer.add_snapshot(session, snapshot) is not None
    everything = used_bytes(path) - empty
    assert 5_000 < everything / N_SNAPSHOTS / N_TENSORS < 6_500
    with sqlite_database.write() as session:
        n_sketches = thin_sketches(session, "gpt", n_recent=N_RECENT)
        assert n_sketches == thin_distributions(session, "gpt", n_recent=N_RECENT)
    n_thinned = n_sketches // N_TENSORS
    thinned = used_bytes(path) - empty
    kept_details = everything / N_SNAPSHOTS * (N_SNAPSHOTS - n_thinned)
    lasting = (thinned - kept_details) / n_thinned
    assert lasting < 5_500 + 220 * N_TENSORS
