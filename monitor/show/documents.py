"""The JSON documents that the HTTP API serves and the commands print with `--json`: pure functions, records to dict.

One shape, two doors: whoever scripts against the one can read the other. Numbers are finite or null.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from monitor.show.views import Journey, ReferenceDrift, RunView, WayPoint
from storage.records import Alert, Incident, StoredSnapshot

JsonObject = dict[str, Any]


def runs_document(views: Sequence[RunView]) -> list[JsonObject]:
    """Return one object a run: what it is, how far it came, whether it is healthy, where to resume from."""
    return [
        {
            "run": view.run.run,
            "root": view.run.root,
            "attempt": view.run.attempt,
            "n_snapshots": view.run.n_snapshots,
            "last_step": view.run.last_step,
            "healthy": view.healthy,
            "health_reason": view.health_reason,
            "last_good_step": None if view.last_good is None else view.last_good.step,
            "last_good_path": None if view.last_good is None else view.last_good.path,
            "active": view.run.active,
        }
        for view in views
    ]


def history_document(run: str, journey: Journey, *, with_drift: bool = False) -> JsonObject:
    """Return the snapshots of one run in the order given (storage gives them oldest first).

    With `with_drift` each has a `drift` from the reference that was asked for, null where it has no reference.
    """
    return {"run": run, "snapshots": [_on_the_way(snapshot, journey, with_drift) for snapshot in journey.snapshots]}


def _on_the_way(snapshot: StoredSnapshot, journey: Journey, with_drift: bool) -> JsonObject:
    point = journey.points.get(snapshot.id, WayPoint())
    document = {
        **_snapshot(snapshot),
        "update_cosine": _number(point.update_cosine),
        "path_length": _number(point.path_length),
        "displacement": _number(point.displacement),
    }
    if with_drift:
        drift = journey.drifts.get(snapshot.id)
        document["drift"] = None if drift is None else _drift(drift)
    return document


def _drift(drift: ReferenceDrift) -> JsonObject:
    return {
        "reference_step": drift.reference_step,
        "reference_path": drift.reference_path,
        "method": drift.method,
        "relative_l2": _number(drift.relative_l2),
        "cosine": _number(drift.cosine),
        "n_tensors": drift.n_tensors,
        "reason": drift.reason or None,
    }


def _snapshot(snapshot: StoredSnapshot) -> JsonObject:
    problem = snapshot.problem
    gradient = snapshot.gradient
    return {
        "step": snapshot.step,
        "epoch": _number(snapshot.epoch),
        "attempt": snapshot.attempt,
        "path": snapshot.path,
        "format": snapshot.format,
        "status": snapshot.status.value,
        "problem": None if problem is None else {"kind": problem.kind.value, "message": problem.message},
        "size_bytes": snapshot.size_bytes,
        "written_at": _number(snapshot.written_at),
        "measured_at": _number(snapshot.measured_at),
        "n_tensors": snapshot.n_tensors,
        "n_parameters": snapshot.n_parameters,
        "weight_norm": _number(snapshot.weight_norm),
        "update_ratio": _number(snapshot.update_ratio),
        "gradient_norm": None if gradient is None else _number(gradient.norm),
        "gradient_source": None if gradient is None else gradient.source,
        "n_nonfinite": snapshot.n_nonfinite,
        "first_bad_tensor": snapshot.first_bad_tensor,
    }


def alerts_document(alerts: Sequence[Alert]) -> list[JsonObject]:
    """Return one object an alert, in the order given (storage gives them newest first).

    `incident` is what it belongs to, with the first cause (rule, step, tensor, summary), null where it belongs to none.
    """
    return [
        {
            "fingerprint": alert.fingerprint,
            "episode": alert.episode,
            "run": alert.run,
            "rule": alert.rule,
            "severity": alert.severity.label,
            "state": alert.state.value,
            "subject": alert.subject,
            "step": alert.step,
            "value": _number(alert.value),
            "threshold": _number(alert.threshold),
            "unit": alert.unit,
            "summary": alert.summary,
            "opened_at": _number(alert.opened_at),
            "fired_at": _number(alert.fired_at),
            "resolved_at": _number(alert.resolved_at),
            "incident": None if alert.incident is None else _incident(alert.incident),
        }
        for alert in alerts
    ]


def _incident(incident: Incident) -> JsonObject:
    return {
        "id": incident.id,
        "state": incident.state.value,
        "severity": incident.severity.label,
        "rule": incident.rule,
        "step": incident.step,
        "tensor": incident.tensor,
        "summary": incident.summary,
        "n_alerts": incident.n_alerts,
        "opened_at": _number(incident.opened_at),
        "resolved_at": _number(incident.resolved_at),
    }


def _number(value: float | None) -> float | None:
    """Return a finite number or None: JSON has no other."""
    return value if value is not None and math.isfinite(value) else None
