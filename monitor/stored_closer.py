"""Incidents with their messages, two snapshots side by side and a run from above, from what is stored; read only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from monitor.measure import sketch
from monitor.measure.drift import sketch_drift
from monitor.measure.trajectory import drift_matrix, path_in_two_dimensions
from monitor.show.closer_views import (
    DriftMap,
    Happenings,
    IncidentView,
    MessageView,
    PairRelation,
    SnapshotComparison,
    TensorPair,
)
from storage import happenings, queries, sketches, telling
from storage.database import Database
from storage.records import Sketch, StoredSnapshot, TensorKind, TensorSummary

SKETCHED_TENSORS_MAX = 5000  # a sketch is about 8 KiB in memory, and two snapshots are held
PLACES_MAX = 100_000


@dataclass(frozen=True, slots=True)
class StoredCloser:
    """The database asked closely; raises a DatabaseError when it cannot answer."""

    database: Database
    clock: Callable[[], float] = time.time

    def happenings(self, run: str | None, limit: int) -> Happenings:
        """Return at most `limit` incidents of a run, or of all for None, and the silences that last."""
        with self.database.read() as session:
            found = happenings.incidents(session, run=run, limit=limit)
            messages: dict[int, list[MessageView]] = {}
            for message in happenings.messages(session, [incident.id for incident in found]):
                messages.setdefault(message.incident_id, []).append(_message(message))
            return Happenings(
                incidents=tuple(
                    IncidentView(
                        incident=incident,
                        alerts=tuple(queries.incident_alerts(session, incident.id)),
                        messages=tuple(messages.get(incident.id, ())),
                    )
                    for incident in found
                ),
                silences=tuple(telling.silences(session, now=self.clock())),
            )

    def comparison(self, old_id: int, new_id: int) -> SnapshotComparison | None:
        """Compare two snapshots of any runs; None where one does not exist or holds no tensors."""
        with self.database.read() as session:
            old, new = (queries.snapshot(session, number) for number in (old_id, new_id))
            if old is None or new is None or not old.n_tensors or not new.n_tensors:
                return None
            has_sketches = max(old.n_tensors, new.n_tensors) <= SKETCHED_TENSORS_MAX
            before, after = (
                queries.tensors(session, snapshot.id, with_sketch=has_sketches, with_distribution=False)
                for snapshot in (old, new)
            )
        return _compare(old, new, before, after)

    def drift_map(self, run: str, limit: int) -> DriftMap | None:
        """Return at most `limit` snapshots of a run, spread evenly, as a map; None for an unknown run."""
        with self.database.read() as session:
            if queries.run(session, run) is None:
                return None
            ids = [place.id for place in sketches.places(session, run)]
            chosen = spread(ids, limit)
            known = _comparable(dict(sketches.weights(session, chosen)))
            by_id = {s.id: s for s in (queries.snapshot(session, number) for number in known) if s is not None}
        shown = [number for number in known if number in by_id]
        held = [known[number] for number in shown]
        path = path_in_two_dimensions(held)
        return DriftMap(
            snapshots=tuple(by_id[number] for number in shown),
            relative=_relative(held),
            points=path.points,
            share=path.share,
            n_left_out=len(ids) - len(shown),
        )


def spread(ids: Sequence[int], limit: int) -> list[int]:
    """Return at most `limit` (at least 2) of some numbers, evenly spread, the first and the last among them."""
    if len(ids) <= limit:
        return list(ids)
    return [ids[round(place * (len(ids) - 1) / (limit - 1))] for place in range(limit)]


def _message(message: happenings.StoredMessage) -> MessageView:
    return MessageView(
        notifier=message.notifier,
        reason=message.reason,
        state=message.state,
        at=message.created_at if message.sent_at is None else message.sent_at,
        n_attempts=message.n_attempts,
        error=message.last_error or "",
    )


def _comparable(known: Mapping[int, Sketch]) -> dict[int, Sketch]:
    """Return the sketches that can be compared with the newest one."""
    if not known:
        return {}
    newest = known[max(known)]
    return {number: found for number, found in known.items() if sketch.comparable(newest, found)}


def _relative(held: Sequence[Sketch]) -> tuple[tuple[float, ...], ...]:
    if not held:
        return ()
    norms = np.array([sketch.norm(found) for found in held])
    larger = np.maximum.outer(norms, norms)
    distances = drift_matrix(held)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(larger > 0, distances / larger, 0.0)
    return tuple(tuple(float(value) for value in row) for row in relative)


def _compare(
    old: StoredSnapshot, new: StoredSnapshot, before: Sequence[TensorSummary], after: Sequence[TensorSummary]
) -> SnapshotComparison:
    olds = {tensor.name: tensor for tensor in before if tensor.kind is not TensorKind.OPTIMIZER}
    pairs = [
        _pair(olds.pop(tensor.name, None), tensor, old.step)
        for tensor in after
        if tensor.kind is not TensorKind.OPTIMIZER
    ]
    pairs += [TensorPair(name=t.name, relation=PairRelation.REMOVED, old=t, new=None) for t in olds.values()]
    missing = any(p.relation is PairRelation.CHANGED and p.relative_l2 is None for p in pairs)
    return SnapshotComparison(
        old=old,
        new=new,
        pairs=tuple(pairs),
        n_optimizer=sum(tensor.kind is TensorKind.OPTIMIZER for tensor in after),
        is_estimated=any(p.relative_l2 is not None for p in pairs),
        reason=_why_missing(pairs) if missing else "",
    )


def _pair(old: TensorSummary | None, new: TensorSummary, old_step: int | None) -> TensorPair:
    if old is None:
        return TensorPair(name=new.name, relation=PairRelation.ADDED, old=None, new=new)
    if old.shape != new.shape:
        return TensorPair(name=new.name, relation=PairRelation.RESHAPED, old=old, new=new)
    drift = sketch_drift(new, old, old_step)
    if drift is None or drift.difference_l2 is None:
        return TensorPair(name=new.name, relation=PairRelation.CHANGED, old=old, new=new)
    return TensorPair(
        name=new.name,
        relation=PairRelation.SAME if drift.difference_l2 == 0 else PairRelation.CHANGED,
        old=old,
        new=new,
        relative_l2=drift.relative_l2,
        cosine_distance=drift.cosine_distance,
    )


def _why_missing(pairs: Sequence[TensorPair]) -> str:
    if any(t is not None and t.n_nonfinite for p in pairs for t in (p.old, p.new)):
        return "a tensor with NaN or infinity has no distance"
    return "some distances are not known: sketches of older snapshots are thinned (storage.sketches_recent)"
