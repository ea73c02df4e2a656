"""The figures as tables for docs/detection.md. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks.detection.faults import FAULTS
from benchmarks.detection.settings import SETTINGS

PARTS = (("all", "all settings"), ("tuned", "tuned on"), ("held_out", "held out"))


def text(document: Mapping[str, Any]) -> str:
    """Return the summary and the table of faults of a document (see `report.document`)."""
    return "\n".join([*_summary(document), "", *_faults(document["all"])])


def _summary(document: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{document['date']}, {document['machine']}; {document['n_trainings']} trainings in {document['n_settings']} "
        f"of {len(SETTINGS)} settings.",
        "",
        "| settings | | visible faults | found | median delay | sound checkpoints | false alerts in 1000 |",
        "|---|---|---|---|---|---|---|",
    ]
    for part, title in PARTS:
        for side, name in (("ckptwatch", "ckptwatch"), ("debugger", "SageMaker Debugger")):
            found = document[part][side]
            if found["n_faults"] and found["n_sound_checkpoints"]:
                lines.append(
                    f"| {title} | {name} | {found['n_faults']} | {100 * found['found_share']:.1f} % | "
                    f"{_text(found['median_delay'])} | {found['n_sound_checkpoints']} | "
                    f"{found['false_alerts_per_1000']:.1f} |"
                )
    return lines


def _faults(figures: Mapping[str, Any]) -> list[str]:
    lines = ["| fault | ckptwatch | delay | by | Debugger | by |", "|---|---|---|---|---|---|"]
    for fault in FAULTS:
        ours, theirs = (figures[side]["faults"].get(fault.name) for side in ("ckptwatch", "debugger"))
        if ours is None or fault.unseen:
            continue
        lines.append(
            f"| {fault.what} | {ours['n_found']} of {ours['n']} | {_delay(ours)} | {_rules(ours)} | "
            f"{theirs['n_found']} of {theirs['n']} | {_rules(theirs)} |"
        )
    return lines


def _delay(entry: Mapping[str, Any]) -> str:
    return _text(median(entry["delays"]) if entry["delays"] else None)


def _text(number: float | None) -> str:
    return "" if number is None else f"{number:g}"


def _rules(entry: Mapping[str, Any]) -> str:
    return ", ".join(list(entry["rules"])[:2])
