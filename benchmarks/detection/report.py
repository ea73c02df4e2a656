"""Results of trials to figures, and figures to text. Pure.

An alert counts from the severity warning on. A fault is found when a rule fires at or after its first checkpoint that
does not fire there in the same training without the fault: what goes off anyway is no evidence. The same holds for
the rules of both sides.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from statistics import median
from typing import Any

from benchmarks.detection.faults import FAULTS
from benchmarks.detection.trials import Result
from benchmarks.detection.watching import Fired

Side = Callable[[Result], Sequence[Fired]]
SIDES: dict[str, Side] = {"ckptwatch": lambda result: result.alerts, "debugger": lambda result: result.debugger}
COUNTED = ("warning", "critical")
VERSIONS = ("torch", "scikit-learn", "numpy", "numba")


def document(results: Sequence[Result]) -> dict[str, Any]:
    """Return all figures as JSON: for all settings, for those that were tuned on, and for those held out."""
    held_out = [r for r in results if r.held_out]
    tuned = [r for r in results if not r.held_out]
    both = figures(results)
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}",
        "versions": {name: version(name) for name in VERSIONS},
        "n_trainings": len(results),
        "n_settings": len({r.trial.setting for r in results}),
        "goals_reached": _reached(both),
        "all": both,
        "tuned": figures(tuned),
        "held_out": figures(held_out),
        "unseen": {f.name: f.unseen for f in FAULTS if f.unseen},
        "replica_diverged": "not visible: no checkpoint of these trainings holds more than one replica",
    }


def figures(results: Sequence[Result]) -> dict[str, Any]:
    """Return what each side found and raised in vain."""
    return {name: _side(results, side) for name, side in SIDES.items()}


def _side(results: Sequence[Result], side: Side) -> dict[str, Any]:
    sound = [r for r in results if r.first_bad is None]
    n_sound = sum(r.n_checkpoints for r in sound)
    vain = Counter(alert.rule for r in sound for alert in _counted(side(r)))
    twins = {(r.trial.setting, r.trial.seed): r for r in sound}
    faults: dict[str, Any] = {}
    for fault in FAULTS:
        tried = [r for r in results if r.trial.fault == fault.name]
        hits = [hit for r in tried if (hit := _first_hit(r, twins.get((r.trial.setting, r.trial.seed)), side))]
        if tried:
            faults[fault.name] = {
                "visible": not fault.unseen,
                "n": len(tried),
                "n_found": len(hits),
                "delays": sorted(delay for delay, _ in hits),
                "rules": dict(Counter(rule for _, rules in hits for rule in rules).most_common()),
            }
    seen = [entry for entry in faults.values() if entry["visible"]]
    delays = [delay for entry in seen for delay in entry["delays"]]
    n_tried = sum(entry["n"] for entry in seen)
    return {
        "n_sound_checkpoints": n_sound,
        "n_false_alerts": sum(vain.values()),
        "false_alerts_per_1000": 1000.0 * sum(vain.values()) / n_sound if n_sound else None,
        "false_alerts_by_rule": dict(vain.most_common()),
        "n_faults": n_tried,
        "n_found": len(delays),
        "found_share": len(delays) / n_tried if n_tried else None,
        "median_delay": median(delays) if delays else None,
        "faults": faults,
    }


def _counted(alerts: Iterable[Fired]) -> list[Fired]:
    return [alert for alert in alerts if alert.severity in COUNTED]


def _first_hit(result: Result, twin: Result | None, side: Side) -> tuple[int, list[str]] | None:
    """Return the delay in checkpoints and the rules that fired first, None where nothing speaks of the fault."""
    assert result.first_bad is not None
    anyway = {a.rule for a in _counted(side(twin)) if a.checkpoint >= result.first_bad} if twin else set()
    hits = [a for a in _counted(side(result)) if a.checkpoint >= result.first_bad and a.rule not in anyway]
    if not hits:
        return None
    first = min(a.checkpoint for a in hits)
    return first - result.first_bad, sorted({a.rule for a in hits if a.checkpoint == first})


def _reached(both: dict[str, Any]) -> bool:
    ours, theirs = both["ckptwatch"], both["debugger"]
    if not ours["n_faults"] or not ours["n_sound_checkpoints"]:
        return False
    return bool(
        ours["found_share"] >= 0.95
        and ours["median_delay"] <= 1
        and ours["false_alerts_per_1000"] <= 1.0
        and (ours["found_share"] == 1.0 or ours["found_share"] > theirs["found_share"])
        and (ours["n_false_alerts"] == 0 or ours["false_alerts_per_1000"] < theirs["false_alerts_per_1000"])
    )


def text(document: dict[str, Any]) -> str:
    """Return the tables that are printed."""
    lines = [
        f"{document['date']}, {document['machine']}; {document['n_trainings']} trainings, "
        f"{document['n_settings']} settings",
        "",
        f"{'':26} {'ckptwatch':>34}   {'Debugger':>34}",
    ]
    ours, theirs = (document["all"][name]["faults"] for name in SIDES)
    for name, entry in ours.items():
        lines.append(
            f"{name:26} {_cell(entry):>34}   {_cell(theirs[name]):>34}{'' if entry['visible'] else '  (unseen)'}"
        )
    for part in ("all", "tuned", "held_out"):
        if not any(document[part][side]["n_faults"] for side in SIDES):
            continue
        lines += ["", f"{part.replace('_', ' ')}:"]
        for side, name in zip(SIDES, ("ckptwatch", "SageMaker Debugger"), strict=True):
            found = document[part][side]
            if found["n_sound_checkpoints"] and found["n_faults"]:
                lines.append(
                    f"  {name:20} {100 * found['found_share']:5.1f} % of {found['n_faults']} visible faults found, "
                    f"median delay {found['median_delay']}, {found['false_alerts_per_1000']:.2f} false alerts in 1000 "
                    f"of {found['n_sound_checkpoints']} sound checkpoints {found['false_alerts_by_rule'] or ''}"
                )
    lines += ["", "goals reached" if document["goals_reached"] else "goals missed"]
    return "\n".join(lines)


def _cell(entry: dict[str, Any]) -> str:
    first = next(iter(entry["rules"]), "")
    delay = f"{median(entry['delays']):g} late" if entry["delays"] else ""
    return f"{entry['n_found']}/{entry['n']} {delay} {first}".strip()


def details(results: Sequence[Result]) -> str:
    """Return a line for every false alarm of ckptwatch and every visible fault that it did not find."""
    unseen = {f.name for f in FAULTS if f.unseen}
    side = SIDES["ckptwatch"]
    lines = [
        f"false: {_name(r)} at {a.checkpoint}: {a.rule}, {a.severity}: {a.summary}"
        for r in results
        if r.first_bad is None
        for a in _counted(side(r))
    ]
    twins = {(r.trial.setting, r.trial.seed): r for r in results if r.first_bad is None}
    for r in results:
        if r.first_bad is not None and r.trial.fault not in unseen:
            found = _first_hit(r, twins.get((r.trial.setting, r.trial.seed)), side)
            if found is None:
                fired = ", ".join(f"{a.rule} ({a.severity}) at {a.checkpoint}" for a in r.alerts)
                lines.append(f"missed: {_name(r)}, bad from {r.first_bad}; {fired or 'nothing fired'}")
            elif found[0] > 2:
                lines.append(f"late: {_name(r)}, {found[0]} checkpoints, by {', '.join(found[1])}")
    return "\n".join(lines)


def _name(result: Result) -> str:
    return f"{result.trial.setting} {result.trial.fault} seed {result.trial.seed}"
