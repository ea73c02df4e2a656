"""What a diagnosis found about one subject."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Condition(StrEnum):
    """How a subject fares; WARNING works with a loss that is named, PROBLEM keeps ckptwatch from its work."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One thing that was looked at; `remedy` says what to do, "" where nothing needs doing."""

    subject: str
    condition: Condition
    message: str
    remedy: str = ""


def well(subject: str, message: str) -> Diagnosis:
    """Return that a subject is in order."""
    return Diagnosis(subject=subject, condition=Condition.OK, message=message)


def warning(subject: str, message: str, remedy: str) -> Diagnosis:
    """Return that a subject works with a loss."""
    return Diagnosis(subject=subject, condition=Condition.WARNING, message=message, remedy=remedy)


def problem(subject: str, message: str, remedy: str) -> Diagnosis:
    """Return that a subject keeps ckptwatch from its work."""
    return Diagnosis(subject=subject, condition=Condition.PROBLEM, message=message, remedy=remedy)
