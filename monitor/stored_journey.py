"""The path of a run's weights and their drift from any snapshot of it, from what is stored: no checkpoint is read.

All parameters at once come from one sketch a snapshot, which is always kept; single tensors from their own sketches,
of which those of older snapshots are thinned. Writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alerts.verdict import last_good
from monitor.measure import sketch
from monitor.measure.drift import finite_or_none
from monitor.measure.trajectory import Follower
from monitor.show.views import DriftQuery, Journey, QuestionError, ReferenceDrift, WayPoint
from storage import queries, series, sketches
from storage.database import Database
from storage.records import Sketch, SnapshotStatus, StoredSnapshot
from storage.sketches import DriftSum, Place, TensorSketch

_SLICE = 250  # snapshots whose sketches are in memory at once
_STEPS_NAMED = 2
_LOSSES = ("log.eval_loss", "log.loss")  # the first that any snapshot has decides which one is best


def journey(database: Database, run: str, limit: int, query: DriftQuery | None) -> Journey | None:
    """Return the latest `limit` snapshots of a run with their places on its path, and their drift where asked for.

    None for an unknown run. Raises QuestionError for a reference or tensor that the run does not have, and a
    DatabaseError.
    """
    with database.read() as session:
        if queries.run(session, run) is None:
            return None
        snapshots = tuple(queries.history(session, run, limit=limit))
        places = sketches.places(session, run)
        tensors = None
        if query is not None and query.tensors is not None:
            tensors = sketches.tensor_numbers(session, run, query.tensors)
            if not tensors:
                raise QuestionError(f"no tensor of this run matches {query.tensors!r}; `ckptwatch inspect` lists names")
    asked = [s for s in snapshots if s.status is SnapshotStatus.COMPLETE]
    drifts: dict[int, ReferenceDrift] = {}
    if query is not None:
        references = _references(database, run, query.against, places)
        pairs = [(s.id, references[s.id]) for s in asked if s.id in references]
        stored = _stored_drifts(database, pairs, tensors) if query.against == "previous" else {}
        by_id = {place.id: place for place in places}
        for start in range(0, len(pairs), _SLICE):
            part = [(by_id[number], reference) for number, reference in pairs[start : start + _SLICE]]
            if tensors is None:
                drifts |= _drifts_of_weights(database, part, stored)
            else:
                drifts |= _drifts_of_tensors(database, part, tensors, stored)
    return Journey(snapshots=snapshots, points=_way_points(database, places, asked), drifts=drifts)


def _way_points(database: Database, places: Sequence[Place], asked: Sequence[StoredSnapshot]) -> dict[int, WayPoint]:
    """Follow every attempt that is asked for from its first snapshot on."""
    wanted, attempts = {s.id for s in asked}, {s.attempt for s in asked}
    followers = {attempt: Follower() for attempt in attempts}
    attempt_of = {place.id: place.attempt for place in places if place.attempt in attempts}
    points: dict[int, WayPoint] = {}
    with database.read() as session:
        for number, weights in sketches.weights(session, list(attempt_of)):
            point = followers[attempt_of[number]].follow(weights)
            if number in wanted:
                points[number] = WayPoint(
                    update_cosine=point.update_cosine,
                    path_length=finite_or_none(point.path_length),
                    displacement=finite_or_none(point.displacement),
                )
    return points


def _references(database: Database, run: str, against: str, places: Sequence[Place]) -> dict[int, Place]:
    """Return for each complete snapshot the one that it is compared with; those without any are left out."""
    if against in {"first", "previous"}:
        first: dict[int, Place] = {}
        before: dict[int, Place] = {}
        found: dict[int, Place] = {}
        for place in places:
            reference = (first if against == "first" else before).get(place.attempt)
            if reference is not None:
                found[place.id] = reference
            first.setdefault(place.attempt, place)
            before[place.attempt] = place
        return found
    reference = best(database, run, places) if against == "best" else _at_step(against, places)
    if reference is None:
        raise QuestionError("no loss was logged beside this run's checkpoints, and none of them is good")
    return {place.id: reference for place in places}


def _at_step(against: str, places: Sequence[Place]) -> Place:
    if not (against.isascii() and against.isdecimal() and len(against) <= 19):
        raise QuestionError(f"{against!r} is no reference; give first, previous, best or a step")
    step = int(against)
    at_step = [place for place in places if place.step == step]
    if at_step:
        return at_step[-1]
    known = sorted({place.step for place in places if place.step is not None}, key=lambda s: (abs(s - step), s))
    near = " and ".join(str(s) for s in sorted(known[:_STEPS_NAMED]))
    raise QuestionError(f"no snapshot of step {step} was measured" + (f"; the nearest are {near}" if near else ""))


def best(database: Database, run: str, places: Sequence[Place]) -> Place | None:
    """Return the snapshot with the lowest logged loss, the earlier one of equals; without a log the last good one.

    Validation loss decides where any snapshot has one, else training loss. None where neither a loss nor a good
    snapshot is known.
    """
    ids = [place.id for place in places]
    by_id = {place.id: place for place in places}
    with database.read() as session:
        for key in _LOSSES:
            losses: dict[int, float] = {}
            for start in range(0, len(ids), series.SNAPSHOTS_MAX):
                losses |= series.scalar_values(session, ids[start : start + series.SNAPSHOTS_MAX], key)
            known = [number for number in ids if number in losses]
            if known:
                return by_id[min(known, key=lambda number: losses[number])]
        good = last_good(queries.history(session, run))
    return None if good is None else by_id.get(good.id)


def best_number(database: Database, run: str) -> int | None:
    """Return the number of a run's best snapshot (see `best`), None where there is none."""
    with database.read() as session:
        places = sketches.places(session, run)
    found = best(database, run, places)
    return None if found is None else found.id


def _stored_drifts(
    database: Database, pairs: Sequence[tuple[int, Place]], tensors: Sequence[int] | None
) -> dict[int, DriftSum]:
    """Return the drifts that were measured against just this reference, which are better than any estimate."""
    with database.read() as session:
        sums = sketches.drift_sums(session, [number for number, _ in pairs], tensors)
    steps = {number: reference.step for number, reference in pairs}
    return {
        number: found
        for number, found in sums.items()
        if found.reference_step == steps[number] and found.n_known == found.n_tensors
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    """What one snapshot and its reference come to: norms and distance over the same tensors."""

    old_norm: float | None
    difference: float
    cosine: float | None
    method: str = "sketch"
    n_tensors: int | None = None


def _drift(reference: Place, compared: _Compared | str) -> ReferenceDrift:
    """Return the drift, or the reason why there is none."""
    if isinstance(compared, str):
        return ReferenceDrift(
            reference_step=reference.step,
            reference_path=reference.path,
            method="sketch",
            relative_l2=None,
            cosine=None,
            reason=compared,
        )
    base = compared.old_norm
    relative = finite_or_none(compared.difference / base) if base else None
    return ReferenceDrift(
        reference_step=reference.step,
        reference_path=reference.path,
        method=compared.method,
        relative_l2=relative,
        cosine=compared.cosine,
        n_tensors=compared.n_tensors,
        reason="" if relative is not None else "the reference is zero",
    )


def _drifts_of_weights(
    database: Database, pairs: Sequence[tuple[Place, Place]], stored: Mapping[int, DriftSum]
) -> dict[int, ReferenceDrift]:
    ids = list(dict.fromkeys(place.id for pair in pairs for place in pair))
    with database.read() as session:
        known = dict(sketches.weights(session, ids))
    return {new.id: _drift(old, _compare_weights(new, old, known, stored.get(new.id))) for new, old in pairs}


def _compare_weights(new: Place, old: Place, known: Mapping[int, Sketch], stored: DriftSum | None) -> _Compared | str:
    a, b = known.get(new.id), known.get(old.id)
    for place, found in ((new, a), (old, b)):
        if found is None:
            return f"not all parameters of {_named(place)} are finite and measured"
    if a is None or b is None or not sketch.comparable(a, b):
        return f"its parameters are not those of {_named(old)}; --tensor compares those that are in both"
    old_norm, new_norm = old.weight_norm, new.weight_norm
    if stored is not None and stored.is_exact and old_norm is not None and new_norm is not None:
        difference = stored.difference_l2
        distance = sketch.cosine_distance_of(new_norm, old_norm, difference)
        cosine = None if distance is None else 1.0 - distance
        return _Compared(old_norm=old_norm, difference=difference, cosine=cosine, method="exact")
    return _Compared(old_norm=old_norm, difference=sketch.difference_l2(a, b), cosine=sketch.cosine(a, b))


def _drifts_of_tensors(
    database: Database, pairs: Sequence[tuple[Place, Place]], tensors: Sequence[int], stored: Mapping[int, DriftSum]
) -> dict[int, ReferenceDrift]:
    found: dict[int, ReferenceDrift] = {}
    held: dict[int, list[TensorSketch]] = {}  # the next reference is mostly this one, or the snapshot just compared
    for new, old in pairs:
        with database.read() as session:
            now, before = (held.get(place.id) or sketches.tensors(session, place.id, tensors) for place in (new, old))
        held = {new.id: now, old.id: before}
        found[new.id] = _drift(old, _compare_tensors(now, before, (new, old), stored.get(new.id)))
    return found


def _compare_tensors(
    new: Sequence[TensorSketch], old: Sequence[TensorSketch], places: tuple[Place, Place], stored: DriftSum | None
) -> _Compared | str:
    before = {(t.name, t.shape): t for t in old}
    both = [(t, before[t.name, t.shape]) for t in new if (t.name, t.shape) in before]
    if not both:
        return f"no tensor of this name and shape is in {_named(places[0])} and {_named(places[1])}"
    for index, place in enumerate(places):
        if any(pair[index].n_nonfinite for pair in both):
            return f"not all elements in {_named(place)} are finite"
    old_norm = math.hypot(*(o.norm_l2 or 0.0 for _, o in both))
    new_norm = math.hypot(*(n.norm_l2 or 0.0 for n, _ in both))
    if stored is not None and stored.is_exact and stored.n_tensors == len(both):
        difference = stored.difference_l2
        distance = sketch.cosine_distance_of(new_norm, old_norm, difference)
        cosine = None if distance is None else 1.0 - distance
        return _Compared(old_norm=old_norm, difference=difference, cosine=cosine, method="exact", n_tensors=len(both))
    for index, place in enumerate(places):
        if any(pair[index].sketch is None for pair in both):
            return f"the sketches of the tensors of {_named(place)} are no longer kept (storage.sketches_recent)"
    return _compare_sketches([(n.sketch, o.sketch) for n, o in both if n.sketch and o.sketch], old_norm)


def _compare_sketches(both: Sequence[tuple[Sketch, Sketch]], old_norm: float) -> _Compared | str:
    if not all(sketch.comparable(a, b) for a, b in both):
        return "the sketches were taken with other buckets (measure.sketch_buckets)"
    difference = math.hypot(*(sketch.difference_l2(a, b) for a, b in both))
    norms = [math.hypot(*(sketch.norm(s) for s in side)) for side in zip(*both, strict=True)]
    distance = sketch.cosine_distance_of(norms[0], norms[1], difference)
    cosine = None if distance is None else 1.0 - distance
    return _Compared(old_norm=old_norm, difference=difference, cosine=cosine, n_tensors=len(both))


def _named(place: Place) -> str:
    return f"step {place.step}" if place.step is not None else place.path
