"""Series of snapshots for the tests of alerts: short to write down, as storage would give them back."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from storage.records import (
    GradientEstimate,
    Histogram,
    PastSnapshot,
    Problem,
    ProblemKind,
    Snapshot,
    SnapshotStatus,
    StoredSnapshot,
    TensorDrift,
    TensorKind,
    TensorSummary,
    Window,
)
from tests.support.stored import make_snapshot, make_tensor, stored_as

PACE_SECONDS = 100.0  # time between two checkpoints where a series says nothing else
START = 1_700_000_000.0


def bad_tensor(
    name: str = "a.weight",
    position: int = 0,
    *,
    n_nan: int = 0,
    n_posinf: int = 0,
    n_neginf: int = 0,
    kind: TensorKind = TensorKind.PARAMETER,
    n_elements: int = 12,
    n_zero: int = 0,
    **facts: Any,
) -> TensorSummary:
    """Return a tensor that holds the given numbers of non-finite elements; `facts` are fields of a TensorSummary.

    `histogram` may be a mapping of a magnitude to the number of elements that have it.
    """
    if "shape" in facts:
        facts["shape"] = tuple(facts["shape"])
        n_elements = math.prod(facts["shape"])
    if isinstance(facts.get("histogram"), Mapping):
        facts["histogram"] = _histogram(facts["histogram"])
    facts = {"shape": (n_elements,), "sketch": None, **facts}
    return make_tensor(
        name,
        position,
        kind=kind,
        n_elements=n_elements,
        n_nan=n_nan,
        n_posinf=n_posinf,
        n_neginf=n_neginf,
        n_zero=n_zero,
        **facts,
    )


def _histogram(counts: Mapping[float, int]) -> Histogram:
    """Return the histogram of positive numbers and zeros."""
    bins = {
        0 if value == 0 else (struct.unpack("<q", struct.pack("<d", value))[0] >> 49) + 1: n
        for value, n in counts.items()
    }
    places = sorted(bins)
    return Histogram(
        bin_indices=tuple(places), counts=tuple(bins[p] for p in places), n_sampled=sum(bins.values()), exact=True
    )


def _drift(name: str, entry: Mapping[str, Any] | float, reference_step: int | None) -> TensorDrift:
    facts: dict[str, Any] = {"difference_l2": float(entry)} if not isinstance(entry, Mapping) else dict(entry)
    moved = facts.get("difference_l2")
    plain = {"method": "exact", "relative_l2": moved, "cosine_distance": None}
    return TensorDrift(name=name, reference_step=reference_step, **{**plain, **facts})


def snapshot_of(entry: Mapping[str, Any], index: int, *, run: str = "gpt") -> Snapshot:
    """Return the snapshot that one entry of a series describes.

    Keys: step, path, at (seconds after START), gradient, source, window_steps, beta2, update_ratio, failed (a kind of
    problem), tensors (a list of keyword arguments of `bad_tensor`, which also takes any fact of a TensorSummary), twins
    (other runs with the same weights), attempt, drifts (tensor name -> how far it moved, or facts of a TensorDrift),
    scalars, reference_step, weight_norm, n_parameters, size_bytes.
    """
    step = entry.get("step", index + 1)
    at = START + float(entry.get("at", index * PACE_SECONDS))
    common: dict[str, Any] = {
        "run": run,
        "written_at": at,
        "measured_at": at + 1.0,
        "attempt": entry.get("attempt", 1),
        "signature": entry.get("signature", f"signature-{index}"),
    }
    if "path" in entry:
        common["path"] = entry["path"]
    if "failed" in entry:
        problem = Problem(kind=ProblemKind(entry["failed"]), message="it is broken")
        return make_snapshot(
            step,
            status=SnapshotStatus.FAILED,
            problem=problem,
            tensors=(),
            drifts=(),
            scalars={},
            n_tensors=0,
            weight_norm=None,
            update_ratio=None,
            gradient=None,
            **common,
        )
    if "size_bytes" in entry:
        common["size_bytes"] = entry["size_bytes"]
    given = [{**t, "kind": TensorKind(t.get("kind", "parameter"))} for t in entry.get("tensors", ())]
    tensors = [bad_tensor(position=position, **{"name": f"t{position}", **t}) for position, t in enumerate(given)]
    tensors = tensors or [make_tensor("a.weight", 0), make_tensor("b.bias", 1)]
    bad = [t for t in tensors if t.n_nonfinite]
    norm = entry.get("gradient")
    gradient = None
    if norm is not None:
        gradient = GradientEstimate(
            norm=float(norm),
            source=entry.get("source", "adam_window"),
            window_steps=entry.get("window_steps", 10),
            beta2=entry.get("beta2", 0.999),
        )
    reference_step = entry.get("reference_step", step - 1 if isinstance(step, int) else None)
    drifts = [_drift(name, moved, reference_step) for name, moved in entry.get("drifts", {}).items()]
    return make_snapshot(
        step,
        tensors=tuple(tensors),
        drifts=tuple(drifts),
        scalars={str(k): float(v) for k, v in entry.get("scalars", {}).items()},
        reference_step=reference_step,
        weight_norm=entry.get("weight_norm", 3.0),
        n_parameters=entry.get("n_parameters", 13),
        n_tensors=len(tensors),
        n_nonfinite=sum(t.n_nonfinite for t in bad),
        first_bad_tensor=bad[0].name if bad else None,
        gradient=gradient,
        update_ratio=entry.get("update_ratio"),
        **common,
    )


def expanded(series: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the series with every entry that says `repeat: n` written out n times."""
    return [
        {key: value for key, value in entry.items() if key != "repeat"}
        for entry in series
        for _ in range(entry.get("repeat", 1))
    ]


def stored_series(series: Sequence[Mapping[str, Any]], *, run: str = "gpt") -> list[tuple[Snapshot, StoredSnapshot]]:
    """Return the snapshots of a series, each with what storage gives back for it."""
    snapshots = [snapshot_of(entry, index, run=run) for index, entry in enumerate(expanded(series))]
    return [(snapshot, stored_as(snapshot, index + 1)) for index, snapshot in enumerate(snapshots)]


def _past(pairs: Sequence[tuple[Snapshot, StoredSnapshot]]) -> tuple[PastSnapshot, ...]:
    return tuple(
        PastSnapshot(snapshot=stored, tensors=snapshot.tensors, drifts=snapshot.drifts, scalars=snapshot.scalars)
        for snapshot, stored in pairs
        if stored.status is SnapshotStatus.COMPLETE
    )


def _twins(
    series: Sequence[Mapping[str, Any]], current: Sequence[tuple[Snapshot, StoredSnapshot]]
) -> tuple[tuple[StoredSnapshot, StoredSnapshot], ...]:
    """Return a snapshot with one of each run that its entry names under `twins`."""
    entries = expanded(series)
    return tuple(
        (stored, replace(stored, id=1000 + stored.id, run=run, path=f"/data/{run}/x-{stored.step}.pt"))
        for _, stored in current
        for run in entries[stored.id - 1].get("twins", ())
    )


def _last(past: tuple[PastSnapshot, ...]) -> PastSnapshot | None:
    return past[-1] if past else None


def window_of(
    series: Sequence[Mapping[str, Any]],
    *,
    n_snapshots_max: int = 64,
    now: float | None = None,
    reason: str = "snapshot",
    active: bool = True,
) -> Window:
    """Return the window that ends with the last snapshot of a series; `now` is counted from START."""
    pairs = stored_series(series)[-n_snapshots_max:]
    current = [p for p in pairs if p[0].attempt == pairs[-1][0].attempt]
    newest_at = pairs[-1][1].measured_at if pairs else START
    return Window(
        run="gpt",
        snapshots=tuple(stored for _, stored in current),
        tensors=pairs[-1][0].tensors if pairs and reason == "snapshot" else (),
        drifts=pairs[-1][0].drifts if pairs and reason == "snapshot" else (),
        scalars=pairs[-1][0].scalars if pairs and reason == "snapshot" else {},
        past=_past([p for p in pairs[:-1] if p[0].attempt == pairs[-1][0].attempt])[-8:] if pairs else (),
        twins=_twins(series, current),
        previous_attempt=_last(_past([p for p in pairs[:-1] if p[0].attempt < pairs[-1][0].attempt]))
        if pairs
        else None,
        now=newest_at if now is None else START + now,
        reason=reason,
        active=active,
    )
