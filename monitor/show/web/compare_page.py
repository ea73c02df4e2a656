"""Two snapshots side by side as display values, the tensors that moved most first; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monitor.show.closer_views import PairRelation, SnapshotComparison, TensorPair
from monitor.show.views import RunView
from monitor.show.visible_text import shortened
from monitor.show.web import formatting
from monitor.show.web.addresses import run_url, tensor_url
from storage.records import StoredSnapshot, TensorSummary

PAIRS_SHOWN_MAX = 500
CHOICES_MAX = 200
TEXT_CHARACTERS_MAX = 200
_ORDER = (PairRelation.ADDED, PairRelation.REMOVED, PairRelation.RESHAPED, PairRelation.CHANGED, PairRelation.SAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A snapshot that can be chosen: its number and what it is called."""

    number: int
    label: str
    is_chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """One tensor as shown; `share` is the length of its bar, 0..100."""

    tone: str
    name: str
    url: str
    relation: str
    shape: str
    change: str
    cosine: str
    old_norm: str
    new_norm: str
    nonfinite: str
    share: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two snapshots as shown."""

    run: str
    run_url: str
    name: str
    path: str
    facts: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparePage:
    """The page as shown; `verdict` is one sentence."""

    old: Side
    new: Side
    verdict: str
    note: str
    rows: tuple[PairRow, ...]
    n_more: int


def choices(snapshots: Sequence[StoredSnapshot], chosen: int | None) -> tuple[Choice, ...]:
    """Return the measured snapshots of a run, the newest first, as what a form offers."""
    measured = [snapshot for snapshot in reversed(snapshots) if snapshot.n_tensors][:CHOICES_MAX]
    return tuple(Choice(number=s.id, label=_name(s), is_chosen=s.id == chosen) for s in measured)


def newest_of_others(views: Sequence[RunView], run: str) -> tuple[Choice, ...]:
    """Return the newest measured snapshot of every other run, by name."""
    found = [(view.run.run, view.measured) for view in views if view.run.run != run]
    known = [Choice(number=s.id, label=f"{name}, {_name(s)}") for name, s in found if s is not None]
    return tuple(known[:CHOICES_MAX])


def compare_page(found: SnapshotComparison) -> ComparePage:
    """Return the page of two snapshots."""
    largest = max((pair.relative_l2 or 0.0 for pair in found.pairs), default=0.0)
    ordered = sorted(found.pairs, key=_rank)
    return ComparePage(
        old=_side(found.old),
        new=_side(found.new),
        verdict=_verdict(found),
        note="; ".join(part for part in (_how(found), found.reason) if part),
        rows=tuple(_row(found.new.run, pair, largest) for pair in ordered[:PAIRS_SHOWN_MAX]),
        n_more=max(0, len(ordered) - PAIRS_SHOWN_MAX),
    )


def _how(found: SnapshotComparison) -> str:
    parts = ["distances are estimated from what was kept of each checkpoint"] if found.is_estimated else []
    parts += [f"{found.n_optimizer} tensors of the optimizer are not listed"] if found.n_optimizer else []
    return "; ".join(parts)


def _verdict(found: SnapshotComparison) -> str:
    counts = {relation: sum(pair.relation is relation for pair in found.pairs) for relation in PairRelation}
    n_bad = sum(pair.new is not None and pair.new.n_nonfinite > 0 for pair in found.pairs)
    if counts[PairRelation.SAME] == len(found.pairs):
        return f"All {len(found.pairs)} tensors are the same."
    parts = [f"{counts[relation]} {relation.value}" for relation in _ORDER if counts[relation]]
    bad = f" {n_bad} hold NaN or infinity." if n_bad else ""
    return f"Of {len(found.pairs)} tensors {', '.join(parts)}.{bad}"


def _rank(pair: TensorPair) -> tuple[bool, int, float]:
    """Order by what to look at first: not finite, then what came, went or changed its shape, then the most moved."""
    is_finite = not any(t is not None and t.n_nonfinite for t in (pair.new,))
    return is_finite, _ORDER.index(pair.relation), -(pair.relative_l2 or 0.0)


def _row(run: str, pair: TensorPair, largest: float) -> PairRow:
    is_bad = pair.new is not None and pair.new.n_nonfinite > 0
    shown = pair.new or pair.old
    assert shown is not None
    is_structure = pair.relation in {PairRelation.ADDED, PairRelation.REMOVED, PairRelation.RESHAPED}
    return PairRow(
        tone="critical" if is_bad else "warning" if is_structure else "",
        name=pair.name,
        url=tensor_url(run, pair.name) if pair.new is not None else "",
        relation=pair.relation.value,
        shape=_shape(pair.old, pair.new),
        change=formatting.number(pair.relative_l2),
        cosine=formatting.number(pair.cosine_distance),
        old_norm=formatting.NOTHING if pair.old is None else formatting.number(pair.old.norm_l2),
        new_norm=formatting.NOTHING if pair.new is None else formatting.number(pair.new.norm_l2),
        nonfinite=formatting.integer(shown.n_nonfinite),
        share=round(100 * (pair.relative_l2 or 0.0) / largest) if largest > 0 else 0,
    )


def _shape(old: TensorSummary | None, new: TensorSummary | None) -> str:
    shapes = ["×".join(map(str, t.shape)) or "scalar" for t in (old, new) if t is not None]
    return shapes[0] if len(set(shapes)) == 1 else " → ".join(shapes)


def _side(snapshot: StoredSnapshot) -> Side:
    return Side(
        run=snapshot.run,
        run_url=run_url(snapshot.run),
        name=_name(snapshot),
        path=snapshot.path,
        facts=f"written {formatting.timestamp(snapshot.written_at)} UTC, {formatting.size(snapshot.size_bytes)}",
    )


def _name(snapshot: StoredSnapshot) -> str:
    name = snapshot.path.rpartition("/")[2] if snapshot.step is None else f"step {formatting.integer(snapshot.step)}"
    return shortened(name, TEXT_CHARACTERS_MAX) + (f" (attempt {snapshot.attempt})" if snapshot.attempt > 1 else "")
