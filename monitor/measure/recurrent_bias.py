"""The biases of a recurrent layer: two vectors in PyTorch, of which Keras keeps the sum, or both as rows of one.

Pure: which tensors belong together, by names and shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from monitor.measure.matching import Match, MatchedBy, Matching
from monitor.measure.name_rules import last_part, layer_of, role_of
from storage.records import TensorSummary

ELEMENTS_MAX = 2**20  # they are held in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedBias:
    """Names of one bias of Keras and of the two of PyTorch that it is made of; `is_old` says where Keras' is."""

    single: str
    first: str
    second: str
    is_old: bool


def join_biases(matching: Matching) -> tuple[Matching, tuple[JoinedBias, ...]]:
    """Return the matching with the biases of recurrent layers joined, and which they are.

    Of two biases of PyTorch on the newer side both are matched with the one of Keras; on the older side the first is,
    and the second stays alone. Layers are told by their recurrent kernels.
    """
    sides = (
        {m.old.name: m.old for m in matching.matches if m.old is not None},
        {m.new.name: m.new for m in matching.matches if m.new is not None},
    )
    found = [joined for m in matching.matches for joined in _joined(m, sides)]
    partners = [(m.old.name if m.old else None, m.new.name if m.new else None) for m in matching.matches]
    joined = tuple(j for j in found if _are_free(j, partners))
    matches = list(matching.matches)
    for bias in joined:
        matches = _rematched(matches, bias, sides)
    return replace(matching, matches=tuple(matches)), joined


_Side = dict[str, TensorSummary]


def _joined(match: Match, sides: tuple[_Side, _Side]) -> Iterator[JoinedBias]:
    if match.old is None or match.new is None:
        return
    for is_old, keras, torch in ((True, match.old, match.new), (False, match.new, match.old)):
        last = last_part(torch.name)
        if last_part(keras.name) != "recurrent_kernel" or not last.startswith("weight_hh"):
            continue
        ours, theirs = (sides[0], sides[1]) if is_old else (sides[1], sides[0])
        layer = layer_of(keras.name)
        single = next((n for n in ours if layer_of(n) == layer and role_of(n) == "bias"), None)
        above = torch.name.removesuffix(last)
        first, second = (above + last.replace("weight_hh", part) for part in ("bias_ih", "bias_hh"))
        if single is None or first not in theirs or second not in theirs:
            continue
        n = theirs[first].n_elements
        if theirs[second].n_elements == n and ours[single].n_elements in (n, 2 * n) and n <= ELEMENTS_MAX:
            yield JoinedBias(single=single, first=first, second=second, is_old=is_old)


def _are_free(bias: JoinedBias, partners: list[tuple[str | None, str | None]]) -> bool:
    """Say whether none of the three is matched with a tensor of another layer."""
    for old, new in partners:
        keras, torch = (old, new) if bias.is_old else (new, old)
        if keras is not None and torch is not None:
            if keras == bias.single and torch not in (bias.first, bias.second):
                return False
            if torch in (bias.first, bias.second) and keras != bias.single:
                return False
    return True


def _rematched(matches: list[Match], bias: JoinedBias, sides: tuple[_Side, _Side]) -> list[Match]:
    if bias.is_old:
        single = sides[0][bias.single]
        return [
            replace(m, old=single, by=MatchedBy.LAYER) if m.new and m.new.name in (bias.first, bias.second) else m
            for m in matches
            if m.new is not None or m.old is None or m.old.name != bias.single
        ]
    first, second = (sides[0][name] for name in (bias.first, bias.second))
    kept = [
        replace(m, old=first, by=MatchedBy.LAYER) if m.new and m.new.name == bias.single else m
        for m in matches
        if m.new is not None or m.old is None or m.old.name not in (bias.first, bias.second)
    ]
    return [*kept, Match(old=second, new=None)]
