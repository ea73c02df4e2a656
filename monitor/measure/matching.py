"""Which tensor of one checkpoint is which of another, although they have other names and other axes. Pure.

Names go first: the very same, then the same but for how frameworks spell it. Where names differ, statistics decide
that do not change when axes are reordered: counts, extrema, norms. What is left is given by its layer and, where the
two checkpoints were plainly written by different frameworks, by its order; so a conversion that went wrong names the
tensors that it spoilt instead of calling them added and removed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from monitor.measure.name_rules import attention_part, layer_of, may_be_alike, reduced, role_of
from storage.records import TensorKind, TensorSummary

_NORM_TOLERANCE = 1e-5  # sums of the same numbers in another order
_FOREIGN_SHARE_MAX = 0.5  # with fewer equal names than this share of the smaller model, names are another framework's


class MatchedBy(StrEnum):
    """What told that two tensors are the same."""

    NAME = "name"
    RULE = "rule"  # equal names but for a framework's spelling
    STATISTICS = "statistics"
    LAYER = "layer"  # the same role in a layer of which other tensors match
    ORDER = "order"  # the same role and size, at the same place among those left


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Two tensors that are taken for the same one; either is None where there is no other. Names are from summaries."""

    old: TensorSummary | None
    new: TensorSummary | None
    by: MatchedBy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """All tensors of both checkpoints: those of the new one in its order, then what only the old one has.

    `is_foreign` says that the names are those of two frameworks.
    """

    matches: tuple[Match, ...]
    is_foreign: bool


def match_tensors(old: Sequence[TensorSummary], new: Sequence[TensorSummary]) -> Matching:
    """Match every tensor of `new` with at most one of `old`."""
    pairing = _Pairing(old, new)
    pairing.pair(lambda t: t.name, MatchedBy.NAME)
    is_foreign = pairing.is_foreign()
    rules = pairing.unique(lambda t: (_is_state(t), reduced(t.name), t.n_elements))
    if pairing.completes(rules):
        pairing.take(rules, MatchedBy.RULE)
    else:
        pairing.take([(a, b) for a, b in rules if _alike(a, b)], MatchedBy.RULE)
        pairing.pair_by_statistics()
        pairing.take(rules, MatchedBy.RULE)
    pairing.pair_by_layer()
    if is_foreign:
        pairing.pair_by_order(attention_part)
        pairing.pair_by_order(lambda _: "")
    return Matching(matches=pairing.matches(), is_foreign=is_foreign)


_Key = Callable[[TensorSummary], Hashable]
_Pair = tuple[TensorSummary, TensorSummary]


class _Pairing:
    """The pairs found so far, and what is still free on both sides."""

    def __init__(self, old: Sequence[TensorSummary], new: Sequence[TensorSummary]) -> None:
        self._all_old, self._all_new = old, new
        self._old = {t.name: t for t in old}
        self._new = {t.name: t for t in new}
        self._found: dict[str, tuple[TensorSummary, MatchedBy]] = {}  # by new name

    def is_foreign(self) -> bool:
        n_old, n_new = (
            sum(t.kind is not TensorKind.OPTIMIZER for t in side) for side in (self._all_old, self._all_new)
        )
        n_same = sum(t.kind is not TensorKind.OPTIMIZER for t in self._all_new if t.name in self._found)
        return n_same < _FOREIGN_SHARE_MAX * min(n_old, n_new)

    def completes(self, pairs: Sequence[_Pair]) -> bool:
        """Say whether with these pairs no tensor of the smaller model is left."""
        model = sum(old.kind is not TensorKind.OPTIMIZER for old, _ in pairs)
        free = (sum(t.kind is not TensorKind.OPTIMIZER for t in side.values()) for side in (self._old, self._new))
        return model == min(free)

    def take(self, pairs: Iterable[_Pair], by: MatchedBy) -> None:
        for old, new in pairs:
            if old.name in self._old and new.name in self._new:
                del self._old[old.name], self._new[new.name]
                self._found[new.name] = (old, by)

    def pair(self, key: _Key, by: MatchedBy) -> None:
        self.take(self.unique(key), by)

    def unique(self, key: _Key) -> list[_Pair]:
        """Return the free tensors whose key only one on each side has."""
        olds, news = self._grouped(key)
        return [(olds[k][0], b[0]) for k, b in news.items() if len(b) == 1 and len(olds.get(k, ())) == 1]

    def _grouped(self, key: _Key) -> tuple[dict[Hashable, list[TensorSummary]], dict[Hashable, list[TensorSummary]]]:
        sides = []
        for side in (self._old, self._new):
            groups: dict[Hashable, list[TensorSummary]] = defaultdict(list)
            for tensor in side.values():
                groups[key(tensor)].append(tensor)
            sides.append(groups)
        return sides[0], sides[1]

    def pair_by_statistics(self) -> None:
        """Pair what has equal statistics; several that are equal among themselves by layer, role and order."""
        olds, news = self._grouped(_invariant)
        several: list[tuple[list[TensorSummary], list[TensorSummary]]] = []
        for key, tensors in news.items():
            others = [t for t in olds.get(key, ()) if _measurable(t)]
            group = [t for t in tensors if _measurable(t)]
            if len(group) == 1 and len(others) == 1 and not _is_constant(group[0]):
                if _alike(others[0], group[0]) and may_be_alike(others[0].name, group[0].name):
                    self.take([(others[0], group[0])], MatchedBy.STATISTICS)
            elif group and others:
                several.append((others, group))
        self.pair_by_layer(only_alike=True)
        for others, group in several:
            for new in group:
                fitting = [t for t in others if t.name in self._old and role_of(t.name) == role_of(new.name)]
                first = next((t for t in fitting if _alike(t, new)), None)
                if first is not None and new.name in self._new:
                    self.take([(first, new)], MatchedBy.STATISTICS)

    def pair_by_layer(self, *, only_alike: bool = False) -> None:
        """Pair tensors of one role and size in layers of which other tensors were paired."""
        layers: dict[str, Counter[str]] = defaultdict(Counter)
        for name, (old, _) in self._found.items():
            layers[layer_of(name)][layer_of(old.name)] += 1
        olds, _ = self._grouped(lambda t: (layer_of(t.name), role_of(t.name), t.n_elements))
        for new in list(self._new.values()):
            best = layers[layer_of(new.name)].most_common(1)
            others = olds.get((best[0][0], role_of(new.name), new.n_elements), ()) if best else ()
            if len(others) == 1 and (not only_alike or _alike(others[0], new)):
                self.take([(others[0], new)], MatchedBy.STATISTICS if only_alike else MatchedBy.LAYER)

    def pair_by_order(self, word_of: Callable[[str], str]) -> None:
        """Pair what is left of one role, word and size, where there are as many on both sides."""
        olds, news = self._grouped(lambda t: (role_of(t.name), word_of(t.name), t.n_elements, _is_state(t)))
        for key, group in news.items():
            others = olds.get(key, [])
            if len(others) == len(group):
                self.take(zip(others, group, strict=True), MatchedBy.ORDER)

    def matches(self) -> tuple[Match, ...]:
        found: list[Match] = []
        for new in self._all_new:
            pair = self._found.get(new.name)
            found.append(Match(old=pair[0] if pair else None, new=new, by=pair[1] if pair else None))
        return (*found, *(Match(old=old, new=None) for old in self._all_old if old.name in self._old))


def _is_state(tensor: TensorSummary) -> bool:
    return tensor.kind is TensorKind.OPTIMIZER


def _measurable(tensor: TensorSummary) -> bool:
    return tensor.problem is None and tensor.n_elements > 0


def _is_constant(tensor: TensorSummary) -> bool:
    return tensor.min == tensor.max


def _invariant(tensor: TensorSummary) -> Hashable:
    """Return what stays exactly equal when the elements of a tensor are put in another order."""
    counts = (tensor.n_elements, tensor.n_nan, tensor.n_posinf, tensor.n_neginf, tensor.n_zero)
    return (_is_state(tensor), *counts, tensor.min, tensor.max)


def _alike(a: TensorSummary, b: TensorSummary) -> bool:
    """Say whether two tensors may hold the same elements in some order."""
    if _invariant(a) != _invariant(b) or not (_measurable(a) and _measurable(b)):
        return False
    norms = ((a.norm_l1, b.norm_l1), (a.norm_l2, b.norm_l2))
    return all(
        x is y or (x is not None and y is not None and math.isclose(x, y, rel_tol=_NORM_TOLERANCE)) for x, y in norms
    )
