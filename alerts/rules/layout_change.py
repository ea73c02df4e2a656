"""The rule `layout_change`: tensors came, went, or changed shape or dtype within one run.

It compares names, shapes and dtypes of parameters and buffers with earlier checkpoints of the same kind of file, and
looks at no value. Optimizer state comes and goes with the first step and with exports, and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import ClassVar

from alerts.evidence import hit, listed, newest_of, of_same_family, why_silent
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Severity, TensorKind, TensorSummary, Window

_Layout = Mapping[str, tuple[tuple[int, ...], str]]
KINDS = (TensorKind.PARAMETER, TensorKind.BUFFER)
COMMON_SHARE_MIN = 0.5  # of the smaller layout: below it the file holds another model, not the same one changed


class LayoutChange:
    """The set of tensors is not what it was."""

    name: ClassVar[str] = "layout_change"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.TWO_CHECKPOINTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`ignore`: glob patterns of tensor names that may come and go."""

        ignore: tuple[str, ...] = ()

    def check(self, window: Window, options: Options) -> Outcome:
        """Compare the newest layout with the oldest one at hand; silent without an earlier checkpoint of its kind."""
        if (reason := why_silent(window)) not in (None, "the newest checkpoint holds NaN or infinity"):
            return quiet(reason or "")
        past = of_same_family(window)
        if not past:
            return quiet("no earlier checkpoint of the same kind to compare with")
        layouts = [_layout(p.tensors, options.ignore) for p in past]
        now = _layout(window.tensors, options.ignore)
        if now == layouts[0]:
            return Outcome()
        if _alternates([*layouts, now]):
            return quiet("checkpoints of several models take turns under names of one kind")
        change = _Change.between(layouts[0], now)
        if change.n_common < COMMON_SHARE_MIN * min(len(layouts[0]), len(now)):
            return quiet("the checkpoint before holds another model: hardly a tensor in common")
        since = next(p.snapshot for p, layout in zip(past, layouts, strict=True) if layout == layouts[0])
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"{change.text()}, compared with {step_text(since.step)}",
                    severity=change.severity(len(layouts[0])),
                    subject=change.first(window.tensors),
                    value=float(change.n_changed),
                    threshold=0.0,
                    unit="tensors",
                    details=(("Checkpoint", newest_of(window).path), *change.details(layouts[0], now)),
                ),
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    added: tuple[str, ...]
    removed: tuple[str, ...]
    emptied: tuple[str, ...]
    reshaped: tuple[str, ...]
    retyped: tuple[str, ...]
    n_common: int

    @classmethod
    def between(cls, old: _Layout, new: _Layout) -> _Change:
        common = [name for name in old if name in new]
        moved = [name for name in common if old[name][0] != new[name][0]]
        emptied = [name for name in moved if 0 in new[name][0] and 0 not in old[name][0]]
        return cls(
            added=tuple(name for name in new if name not in old),
            removed=tuple(name for name in old if name not in new),
            emptied=tuple(emptied),
            reshaped=tuple(name for name in moved if name not in emptied),
            retyped=tuple(name for name in common if old[name][1] != new[name][1]),
            n_common=len(common),
        )

    @property
    def n_changed(self) -> int:
        return len({*self.added, *self.removed, *self.emptied, *self.reshaped, *self.retyped})

    def severity(self, n_old: int) -> Severity:
        """Return critical where weights are gone, info where only the dtype is another one (an export, as a rule)."""
        if self.emptied or 2 * len(self.removed) >= n_old:
            return Severity.CRITICAL
        return Severity.WARNING if self.added or self.removed or self.reshaped else Severity.INFO

    def text(self) -> str:
        parts = [
            f"{number(len(names))} {what}"
            for names, what in (
                (self.emptied, "now empty"),
                (self.removed, "removed"),
                (self.added, "added"),
                (self.reshaped, "reshaped"),
                (self.retyped, "of another dtype"),
            )
            if names
        ]
        return f"The tensors changed: {', '.join(parts)}"

    def first(self, tensors: Iterable[TensorSummary]) -> str:
        touched = {*self.emptied, *self.reshaped, *self.added, *self.retyped}
        return next(iter(self.removed), None) or next((t.name for t in tensors if t.name in touched), "")

    def details(self, old: _Layout, new: _Layout) -> tuple[tuple[str, str], ...]:
        lines = [(name, f"{_text(old[name])}, now {_text(new[name])}") for name in (*self.emptied, *self.reshaped)]
        lines += [(name, f"was {_text(old[name])}, is gone") for name in self.removed]
        lines += [(name, f"new, {_text(new[name])}") for name in self.added]
        lines += [(name, f"{old[name][1]}, now {new[name][1]}") for name in self.retyped]
        return listed(lines)


def _layout(tensors: Iterable[TensorSummary], ignore: Sequence[str]) -> _Layout:
    return {
        t.name: (t.shape, t.dtype)
        for t in tensors
        if t.kind in KINDS and not any(fnmatchcase(t.name, pattern) for pattern in ignore)
    }


def _text(entry: tuple[tuple[int, ...], str]) -> str:
    return f"{list(entry[0])} {entry[1]}"


def _alternates(layouts: Sequence[_Layout]) -> bool:
    """Say whether a layout comes back after another one took its place."""
    ended: list[_Layout] = []
    for before, after in pairwise(layouts):
        if before != after:
            ended.append(before)
            if after in ended:
                return True
    return False
