"""The contract of every rule: a pure judgement over a window of snapshots.

A rule sees one run's latest snapshots and says what it found, or why it cannot say anything. It must not read a clock,
a file or a database, and it must not know other rules, alerts or notifiers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from storage.records import Finding, Severity, Window


class Needs(StrEnum):
    """What a rule has to have before it can judge; shown in the documentation and in `config check`."""

    WEIGHTS = "weights"
    TWO_CHECKPOINTS = "two checkpoints"
    OPTIMIZER = "optimizer state"
    LOG = "training log"
    FILES = "files"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a rule says about one window.

    `findings` are hits, at most one per identity. `notes` are stored with the snapshot but open no alert: things that
    look odd and were judged harmless. `silent` is None, or the reason why the rule could not judge at all; a silent
    outcome has no findings and neither opens nor resolves an alert.
    """

    findings: tuple[Finding, ...] = ()
    notes: tuple[Finding, ...] = ()
    silent: str | None = None


def quiet(reason: str) -> Outcome:
    """Return the outcome of a rule that cannot judge, with the reason why."""
    return Outcome(silent=reason)


class Rule(Protocol):
    """One rule. Facts are on the class; `Options` is a frozen dataclass in which every field has a default.

    `on_tick` says that time alone can change the judgement, so that the rule is also asked when no checkpoint came.
    """

    name: ClassVar[str]
    severity: ClassVar[Severity]
    needs: ClassVar[tuple[Needs, ...]]
    on_tick: ClassVar[bool]

    @property
    def Options(self) -> type[Any]:  # noqa: N802 - a class inside the rule's own, which mypy sees as a property
        """Return the class of the rule's options."""

    def check(self, window: Window, options: Any) -> Outcome:
        """Judge the window's newest snapshot (or the time since it); never raise for odd values in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSetting:
    """One rule as it is to be used: its options and what overrides its own facts.

    `options` is an instance of the rule's `Options`. `severity`, `for_snapshots` and `resolve_after_snapshots` are None
    where the rule's and the policy's own values hold.
    """

    rule: Rule
    options: object
    enabled: bool = True
    severity: Severity | None = None
    for_snapshots: int | None = None
    resolve_after_snapshots: int | None = None

    @property
    def name(self) -> str:
        """Return the rule's name."""
        return self.rule.name


def number(value: float | None) -> str:
    """Write a number for a message: four significant digits, thousands separated, "unknown" for None."""
    if value is None:
        return "unknown"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}" if 1e-3 <= abs(value) < 1e6 else f"{value:.3e}"


def step_text(step: int | None) -> str:
    """Write a step for a message: "step 1200", or "an unknown step"."""
    return "an unknown step" if step is None else f"step {step}"
