"""The rule `replica_mismatch`: what model-parallel ranks hold in common is no longer the same on all of them.

Checkpoints of Megatron-LM and DeepSpeed keep the weights of each model-parallel rank apart, under names such as
`mp_rank_01.`. Norms and some biases are replicated over tensor-parallel ranks and get the same update on each; where
they differ, a gradient was not reduced, or a rank took another turn. Equal statistics over every element stand for
equal bits: two different tensors do not agree in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from alerts.evidence import hit, listed, parameters, why_silent
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Finding, Severity, TensorSummary, Window

_RANK = re.compile(r"^mp_rank_(?P<tensor>\d+)(?P<stage>_\d+)?(?P<expert>_\d+)?\.(?P<rest>.+)$")
# The norms over a whole hidden state: replicated by every tensor-parallel scheme, whatever their values.
_NORM = re.compile(
    r"(?:^|\.)(?:input_layernorm|pre_mlp_layernorm|post_attention_layernorm|post_attention_norm|final_layernorm|"
    r"final_norm|self_attention\.linear_qkv\.layer_norm|mlp\.linear_fc1\.layer_norm)[._](?:weight|bias)$"
)


class ReplicaMismatch:
    """Copies of a tensor on several ranks differ."""

    name: ClassVar[str] = "replica_mismatch"
    severity: ClassVar[Severity] = Severity.CRITICAL
    needs: ClassVar[tuple[Needs, ...]] = (Needs.WEIGHTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`ignore`: glob patterns of tensor names, without the rank, that may differ."""

        ignore: tuple[str, ...] = ()

    def check(self, window: Window, options: Options) -> Outcome:
        """Compare each tensor over the tensor-parallel ranks; silent where no format keeps ranks apart.

        A tensor that was equal on all ranks in an earlier checkpoint, and was no mere constant, must stay equal. A
        norm of the whole hidden state must be equal in any case; where it was never seen equal that is a warning.
        """
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        copies = _copies(window.tensors, options)
        if not copies:
            return quiet("the checkpoint holds no weights of several tensor-parallel ranks")
        differing = {name: found for name, found in copies.items() if not _are_equal(found)}
        once_equal = _once_equal(window, options, differing)
        broken = {name: found for name, found in differing.items() if name in once_equal}
        odd = {name: found for name, found in differing.items() if name not in broken and _NORM.search(name)}
        if not broken and not odd:
            return Outcome()
        return Outcome(findings=(_finding(window, broken or odd, len(copies), once_equal),))


def _copies(tensors: Iterable[TensorSummary], options: ReplicaMismatch.Options) -> Mapping[str, list[TensorSummary]]:
    """Return the tensors of one name, shape and pipeline stage on several ranks, by name and in the model's order."""
    found: dict[tuple[str, str, tuple[int, ...]], list[TensorSummary]] = {}
    for tensor in parameters(tensors):
        match = _RANK.match(tensor.name)
        if match is None or any(fnmatchcase(match["rest"], pattern) for pattern in options.ignore):
            continue
        place = f"{match['stage'] or ''}{match['expert'] or ''}"
        found.setdefault((match["rest"], place, tensor.shape), []).append(tensor)
    return {
        f"{rest}{f' of stage {place[1:]}' if place else ''}": t for (rest, place, _), t in found.items() if len(t) > 1
    }


def _are_equal(copies: Iterable[TensorSummary]) -> bool:
    return len({_numbers(t) for t in copies}) == 1


def _numbers(tensor: TensorSummary) -> tuple[object, ...]:
    """Return all numbers of a tensor that earlier snapshots keep as well."""
    return (
        *(tensor.n_zero, tensor.n_nan, tensor.n_posinf, tensor.n_neginf, tensor.min, tensor.max),
        *(tensor.mean, tensor.std, tensor.norm_l1, tensor.norm_l2, tensor.abs_max),
    )


def _once_equal(window: Window, options: ReplicaMismatch.Options, names: Iterable[str]) -> Mapping[str, int | None]:
    """Return the step of the last earlier checkpoint in which each tensor was equal on all ranks and not constant."""
    wanted = set(names)
    found: dict[str, int | None] = {}
    for past in window.past:
        for name, copies in _copies(past.tensors, options).items() if wanted else ():
            if name in wanted and _are_equal(copies) and any(t.std for t in copies):
                found[name] = past.snapshot.step
    return found


def _finding(
    window: Window,
    bad: Mapping[str, list[TensorSummary]],
    n_compared: int,
    once_equal: Mapping[str, int | None],
) -> Finding:
    name, copies = min(bad.items(), key=lambda item: item[1][0].position)
    last = step_text(once_equal[name]) if name in once_equal else None
    until = f"; it was the same until {last}" if last else ""
    return hit(
        ReplicaMismatch,
        window,
        f"{name} differs between {len(copies)} tensor-parallel ranks that should hold the same{until} "
        f"({number(len(bad))} of {number(n_compared)} tensors)",
        severity=ReplicaMismatch.severity if last else Severity.WARNING,
        subject=copies[0].name,
        value=float(len(bad)),
        threshold=0.0,
        unit="tensors",
        details=(
            ("Usual reasons", "a gradient that is not reduced over the ranks, or ranks that resumed differently"),
            *listed((t.name, f"norm {number(t.norm_l2)}, mean {number(t.mean)}") for t in copies),
        ),
    )
