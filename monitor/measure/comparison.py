"""Two checkpoints compared, tensor by tensor: the records, and how they come from what was measured and read.

Pure, and free of the kernel and of readers, since commands import it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from monitor.measure.matching import Match, MatchedBy, Matching
from monitor.measure.measured import Measured
from monitor.measure.name_rules import COUNTERS, last_part
from monitor.measure.recurrent_bias import JoinedBias
from storage.records import TensorDrift, TensorKind, TensorSummary


class Relation(StrEnum):
    """How a tensor of the newer checkpoint stands to one of the older."""

    SAME = "same"  # equal bit by bit, perhaps with its axes in another order
    CHANGED = "changed"
    RESHAPED = "reshaped"  # the shapes cannot be one tensor's
    ADDED = "added"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairResult:
    """What reading both tensors of a pair found.

    `drift` is of the newer tensor against the older one with its axes put in `layout`; None where no order of axes
    makes one shape of the other. `layout` is that order as text, None where nothing moves. `note` says what is wrong,
    else None.
    """

    name: str
    other_name: str
    layout: str | None
    drift: TensorDrift | None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorComparison:
    """One tensor of both checkpoints, or of one of them.

    `name` is the newer checkpoint's, None for "removed"; `other_name` the older one's, None for "added". `layout` says
    in which order the older tensor's axes are in the newer, None where they are as they were. `is_judged` is False for
    what one framework keeps and the other does not know, which makes no difference between models.
    """

    name: str | None
    other_name: str | None
    kind: TensorKind
    relation: Relation
    layout: str | None = None
    relative_l2: float | None = None
    cosine_distance: float | None = None
    max_abs_difference: float | None = None
    n_changed: int | None = None
    matched_by: MatchedBy | None = None
    is_judged: bool = True
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All tensors of two checkpoints: those of the newer one in its order, then what only the older one has."""

    tensors: tuple[TensorComparison, ...]

    @property
    def identical(self) -> bool:
        """Say whether both hold the same values, names and the order of axes aside."""
        return all(t.relation is Relation.SAME for t in self.tensors if t.is_judged)


def pairs_to_read(
    matching: Matching, measured: Measured, joined: Sequence[JoinedBias] = ()
) -> tuple[tuple[str, str], ...]:
    """Return (old name, new name) of the pairs that the exact drifts of the newer checkpoint say nothing about.

    Without those of `joined`, which are read on their own.
    """
    apart = {name for bias in joined for name in ((bias.first, bias.second) if bias.is_old else (bias.single,))}
    known = {drift.name for drift in measured.exact_drifts}
    return tuple(
        (match.old.name, match.new.name)
        for match in matching.matches
        if match.old is not None
        and match.new is not None
        and match.new.name not in apart
        and not (_is_plain(match.old, match.new, match.by) and match.new.name in known)
        and match.old.n_elements == match.new.n_elements
        and match.old.problem is None
        and match.new.problem is None
    )


def _is_plain(old: TensorSummary, new: TensorSummary, by: MatchedBy | None) -> bool:
    return by is MatchedBy.NAME and old.shape == new.shape


def compare(
    matching: Matching, measured: Measured, results: Iterable[PairResult], joined: Sequence[JoinedBias] = ()
) -> Comparison:
    """Put a comparison together: `measured` is the newer checkpoint with exact drifts against the older one."""
    parts = {bias.second: bias.single for bias in joined if not bias.is_old}
    drifts = {drift.name: drift for drift in measured.exact_drifts}
    by_name = {result.name: result for result in results}
    is_state_judged = not matching.is_foreign or _both_have_state(matching)
    compared = []
    for match in matching.matches:
        if match.old is None or match.new is None:
            whole = parts.get(match.old.name) if match.old is not None else None
            is_judged = whole is None and _is_judged(match, matching, is_state_judged=is_state_judged)
            note = None if whole is None else f"compared as a part of {whole}"
            compared.append(replace(_alone(match, is_judged=is_judged), note=note))
        else:
            compared.append(_compared(match.old, match.new, match.by, drifts.get(match.new.name), by_name))
    return Comparison(tensors=tuple(compared))


def _is_judged(match: Match, matching: Matching, *, is_state_judged: bool) -> bool:
    """Say whether a tensor without another makes a difference between the two models."""
    alone = match.new or match.old
    assert alone is not None
    if alone.kind is TensorKind.OPTIMIZER:
        return is_state_judged
    return not (matching.is_foreign and last_part(alone.name) in COUNTERS)


def _alone(match: Match, *, is_judged: bool) -> TensorComparison:
    alone = match.new or match.old
    assert alone is not None
    return TensorComparison(
        name=match.new.name if match.new else None,
        other_name=match.old.name if match.old else None,
        kind=alone.kind,
        relation=Relation.ADDED if match.old is None else Relation.REMOVED,
        is_judged=is_judged,
    )


def _both_have_state(matching: Matching) -> bool:
    """Say whether both checkpoints hold an optimizer's state."""
    sides = ([m.old for m in matching.matches], [m.new for m in matching.matches])
    return all(any(t is not None and t.kind is TensorKind.OPTIMIZER for t in side) for side in sides)


def _compared(
    old: TensorSummary,
    new: TensorSummary,
    by: MatchedBy | None,
    drift: TensorDrift | None,
    results: Mapping[str, PairResult],
) -> TensorComparison:
    if _is_plain(old, new, by) and drift is not None:
        return _pair(old, new, drift, by, None)
    if old.content_hash is not None and new.content_hash is not None:
        return _by_hash(old, new, by)
    result = results.get(new.name)
    is_reshaped = by is MatchedBy.NAME and old.shape != new.shape and (result is None or not _is_equal(result.drift))
    if result is not None and result.drift is not None and not is_reshaped:
        return _pair(old, new, result.drift, by, result)
    return TensorComparison(
        name=new.name,
        other_name=old.name,
        kind=new.kind,
        relation=Relation.RESHAPED if old.shape != new.shape else Relation.CHANGED,
        matched_by=by,
        note=result.note if result else None,
    )


def _by_hash(old: TensorSummary, new: TensorSummary, by: MatchedBy | None) -> TensorComparison:
    """Compare two tensors that could only be hashed: of what they hold no more is known than whether it is the same."""
    is_same = (old.content_hash, old.dtype, old.shape) == (new.content_hash, new.dtype, new.shape)
    return TensorComparison(
        name=new.name,
        other_name=old.name,
        kind=new.kind,
        relation=Relation.SAME if is_same else Relation.RESHAPED if old.shape != new.shape else Relation.CHANGED,
        matched_by=by,
        note=None if is_same else f"{new.dtype} elements, of which only the hash is known",
    )


def _pair(
    old: TensorSummary, new: TensorSummary, drift: TensorDrift | None, by: MatchedBy | None, result: PairResult | None
) -> TensorComparison:
    note = result.note if result else None
    is_equal = _is_equal(drift)
    is_same = is_equal and old.dtype == new.dtype and note is None
    return TensorComparison(
        name=new.name,
        other_name=old.name,
        kind=new.kind,
        relation=Relation.SAME if is_same else Relation.CHANGED,
        layout=result.layout if result else None,
        relative_l2=None if drift is None else (0.0 if is_equal else drift.relative_l2),
        cosine_distance=None if drift is None else (0.0 if is_equal else drift.cosine_distance),
        max_abs_difference=drift.max_abs_difference if drift else None,
        n_changed=drift.n_changed if drift else None,
        matched_by=by,
        note=note,
    )


def _is_equal(drift: TensorDrift | None) -> bool:
    return drift is not None and drift.n_changed == 0
