"""The rule `hyperparameters`: what the optimizer is told changed between two checkpoints, and not as planned.

A learning rate that leaps above all that was planned is a fault that the weights show only later. Betas, weight decay
and the like that stood still and then change are news; after a restart they are most often a configuration that the
checkpoint's own state overrode, or the reverse. Schedules move at every checkpoint and are not remarked upon.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit, listed, of_same_family, why_silent
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Finding, PastSnapshot, Severity, Window

_SETTING = re.compile(r"^(?P<group>optimizer(?:\.\d+)?(?:\.param_groups\.\d+)?)\.(?P<name>[a-z][a-z0-9_]*(?:\.\d)?)$")
RATES = frozenset({"lr", "learning_rate"})
NAMES = frozenset(
    {
        *("betas.0", "betas.1", "betas.2", "beta_1", "beta_2", "eps", "epsilon", "weight_decay", "momentum"),
        *("dampening", "alpha", "rho", "nesterov", "amsgrad", "maximize", "centered"),
    }
)
STEADY_CHECKPOINTS_MIN = 3  # so often a setting was the same before: then it is no schedule


class Hyperparameters:
    """A setting of the optimizer changed."""

    name: ClassVar[str] = "hyperparameters"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.TWO_CHECKPOINTS, Needs.OPTIMIZER)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`rate_factor`: a learning rate this many times the highest before, set or planned, is a leap."""

        rate_factor: Annotated[float, Field(gt=1)] = 5.0

    def check(self, window: Window, options: Options) -> Outcome:
        """Compare the newest settings with those before; silent without settings in two checkpoints."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        now = settings(window.scalars)
        if not now:
            return quiet("the newest checkpoint states no settings of an optimizer")
        past = [p for p in of_same_family(window) if settings(p.scalars)]
        old = window.previous_attempt
        if not past and (old is None or not settings(old.scalars)):
            return quiet("no earlier checkpoint states settings to compare with")
        found = [_leap(window, past, options), _changed(window, past, old)]
        return Outcome(findings=tuple(f for f in found if f is not None))


def settings(scalars: Mapping[str, float]) -> Mapping[str, float]:
    """Return what a checkpoint says that its optimizers were told, rates and others, by full name."""
    return {k: v for k, v in scalars.items() if (m := _SETTING.match(k)) and (m["name"] in RATES or m["name"] in NAMES)}


def _is_rate(name: str) -> bool:
    return name.rpartition(".")[2] in RATES


def _leap(window: Window, past: list[PastSnapshot], options: Hyperparameters.Options) -> Finding | None:
    """Find rates that are above everything set or planned before, since a checkpoint and until now."""
    assert window.newest is not None
    series = [(p.snapshot.step, p.scalars) for p in past]
    series.append((window.newest.step, window.scalars))
    leaps = []
    for name in filter(_is_rate, settings(window.scalars)):
        course = [
            (step, s[name], s.get(f"{name.rpartition('.')[0]}.initial_lr", 0.0)) for step, s in series if name in s
        ]
        found = _leap_of(course, options.rate_factor)
        if found is not None:
            leaps.append((course[-1][1] / found[1], name, course[-1][1], *found))
    if not leaps:
        return None
    times, name, rate, step, usual = max(leaps, key=lambda leap: leap[0])
    return hit(
        Hyperparameters,
        window,
        f"The learning rate leapt to {number(rate)} at {step_text(step)}, {number(times)} times the highest before "
        f"({number(usual)})",
        step=step,
        value=rate,
        threshold=options.rate_factor * usual,
        identity="learning rate",
        details=(("Setting", name), *listed((n, f"{number(u)} -> {number(r)}") for _, n, r, _, u in leaps)),
    )


def _leap_of(course: list[tuple[int | None, float, float]], factor: float) -> tuple[int | None, float] | None:
    """Return the step at which a course of (step, rate, initial rate) leapt, and the highest before; None for none.

    What only ever rose before is a warm-up, whose end nobody can know.
    """
    for index in range(STEADY_CHECKPOINTS_MIN, len(course)):
        rates = [rate for _, rate, _ in course[:index]]
        usual = max(*rates, *(initial for _, _, initial in course[:index]))
        is_warm_up = all(b > a for a, b in pairwise(rates))
        if usual > 0.0 and not is_warm_up and all(rate > factor * usual for _, rate, _ in course[index:]):
            return course[index][0], usual
    return None


def _changed(window: Window, past: list[PastSnapshot], old: PastSnapshot | None) -> Finding | None:
    now = {k: v for k, v in settings(window.scalars).items() if not _is_rate(k)}
    resumed = not past and old is not None
    if resumed:
        assert old is not None
        before, steady = old, {k: v for k, v in settings(old.scalars).items() if not _is_rate(k)}
    else:
        if len(past) < STEADY_CHECKPOINTS_MIN:
            return None
        before = past[-1]
        recent = [settings(p.scalars) for p in past[-STEADY_CHECKPOINTS_MIN:]]
        steady = {k: v for k, v in recent[-1].items() if all(r.get(k) == v for r in recent)}
    changes = [(k, steady[k], v) for k, v in now.items() if k in steady and steady[k] != v]
    if not changes:
        return None
    name, was, value = changes[0]
    when = "on resuming" if resumed else f"since {step_text(before.snapshot.step)}"
    more = f" (and {number(len(changes) - 1)} more)" if len(changes) > 1 else ""
    return hit(
        Hyperparameters,
        window,
        f"{name} changed from {number(was)} to {number(value)} {when}{more}",
        severity=Severity.WARNING if resumed else Severity.INFO,
        value=value,
        threshold=was,
        identity="settings",
        details=(
            ("Before", before.snapshot.path),
            *listed((n, f"{number(w)} -> {number(v)}") for n, w, v in changes),
        ),
    )
