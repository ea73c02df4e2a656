"""Between rows and records: pure conversions.

No session; columns at most, no statement. What goes in is made fit for a database by `encoding`; what comes out is a
record as `records` defines it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from storage.encoding import (
    decode_details,
    decode_histogram,
    decode_numbers,
    encode_details,
    encode_histogram,
    encode_numbers,
    finite,
    integer,
    optional_integer,
)
from storage.models import IncidentRow, printable_text, table
from storage.records import (
    Alert,
    AlertState,
    Finding,
    Gathering,
    GradientEstimate,
    Incident,
    Notification,
    Problem,
    ProblemKind,
    RunSummary,
    Severity,
    Silence,
    Sketch,
    Snapshot,
    SnapshotStatus,
    StoredSnapshot,
    TensorDrift,
    TensorKind,
    TensorSummary,
)

Row = dict[str, Any]


def snapshot_row(snapshot: Snapshot, *, run_id: int, sort_step: int) -> Row:
    """Return the row of table snapshots for a snapshot."""
    checkpoint, gradient, problem = snapshot.checkpoint, snapshot.gradient, snapshot.problem
    gradient_norm = finite(gradient.norm) if gradient else None
    return {
        "run_id": run_id,
        "attempt": snapshot.attempt,
        "sort_step": sort_step,
        "path": checkpoint.path,
        "signature": checkpoint.signature,
        "format": checkpoint.format,
        "step": optional_integer(checkpoint.step),
        "epoch": finite(checkpoint.epoch),
        "status": snapshot.status.value,
        "problem_kind": problem.kind.value if problem else None,
        "problem_message": problem.message[:500] if problem else None,
        "size_bytes": integer(checkpoint.size_bytes),
        "written_at": finite(checkpoint.written_at) or 0.0,
        "measured_at": finite(snapshot.measured_at) or 0.0,
        "n_tensors": integer(snapshot.n_tensors),
        "n_parameters": integer(snapshot.n_parameters),
        "n_nonfinite": integer(snapshot.n_nonfinite),
        "weight_norm": finite(snapshot.weight_norm),
        "update_ratio": finite(snapshot.update_ratio),
        "gradient_norm": gradient_norm,
        "gradient_source": gradient.source if gradient and gradient_norm is not None else None,
        "gradient_window_steps": optional_integer(gradient.window_steps) if gradient else None,
        "gradient_beta2": finite(gradient.beta2) if gradient else None,
        "first_bad_tensor": snapshot.first_bad_tensor,
        "reference_step": optional_integer(snapshot.reference_step),
        "bytes_read": integer(snapshot.bytes_read),
        "duration_seconds": finite(snapshot.duration_seconds) or 0.0,
    }


def stored_snapshot(row: Any) -> StoredSnapshot:
    """Return the record of a snapshot from its columns, with run, root and worst_severity beside them."""
    gradient = None
    if row.gradient_norm is not None and row.gradient_source is not None:
        gradient = GradientEstimate(
            norm=row.gradient_norm,
            source=row.gradient_source,
            window_steps=row.gradient_window_steps,
            beta2=row.gradient_beta2,
        )
    problem = None
    if row.problem_kind is not None:
        problem = Problem(kind=ProblemKind(row.problem_kind), message=row.problem_message or "")
    return StoredSnapshot(
        id=row.id,
        run=row.run,
        root=row.root,
        attempt=row.attempt,
        path=row.path,
        signature=row.signature,
        format=row.format,
        step=row.step,
        epoch=row.epoch,
        status=SnapshotStatus(row.status),
        problem=problem,
        size_bytes=row.size_bytes,
        written_at=row.written_at,
        measured_at=row.measured_at,
        n_tensors=row.n_tensors,
        n_parameters=row.n_parameters,
        n_nonfinite=row.n_nonfinite,
        weight_norm=row.weight_norm,
        update_ratio=row.update_ratio,
        gradient=gradient,
        first_bad_tensor=row.first_bad_tensor,
        reference_step=row.reference_step,
        duration_seconds=row.duration_seconds,
        bytes_read=row.bytes_read,
        worst_severity=None if row.worst_severity is None else Severity(row.worst_severity),
    )


def run_summary(row: Any) -> RunSummary:
    """Return the record of a run from its columns and those of its newest snapshot."""
    last_step = row.last_step
    if last_step is None and row.last_sort_step is not None and row.last_sort_step >= 0:
        last_step = row.last_sort_step  # the newest checkpoint names no step; the one before it did
    return RunSummary(
        run=row.run,
        root=row.root,
        attempt=row.attempt,
        n_snapshots=row.n_snapshots,
        last_step=last_step,
        last_written_at=row.last_written_at,
        last_measured_at=row.last_measured_at,
        active=row.active,
    )


def tensor_digest(name: str, kind: str, dtype: str, shape: str) -> str:
    """Return what identifies a tensor's lasting facts within a run: 32 hexadecimal digits."""
    joined = "\0".join((shape, dtype, kind, name))  # the name last: it alone may hold a NUL
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def tensor_row(
    *, run_id: int, name: str, kind: TensorKind = TensorKind.OTHER, dtype: str = "", shape: tuple[int, ...] = ()
) -> Row:
    """Return the row of the dictionary of tensors for what stays equal of a tensor."""
    dimensions = ",".join(map(str, shape))
    return {
        "run_id": run_id,
        "digest": tensor_digest(name, kind, dtype, dimensions),
        "name": name,
        "kind": kind.value,
        "dtype": dtype,
        "shape": dimensions,
    }


def statistics_row(summary: TensorSummary, *, snapshot_id: int, tensor_id: int) -> Row:
    """Return the row of table tensor_statistics for a summary."""
    return {
        "snapshot_id": snapshot_id,
        "position": summary.position,
        "tensor_id": tensor_id,
        "n_elements": integer(summary.n_elements),
        "n_nan": integer(summary.n_nan),
        "n_posinf": integer(summary.n_posinf),
        "n_neginf": integer(summary.n_neginf),
        "n_zero": integer(summary.n_zero),
        "min": finite(summary.min),
        "max": finite(summary.max),
        "mean": finite(summary.mean),
        "std": finite(summary.std),
        "norm_l1": finite(summary.norm_l1),
        "norm_l2": finite(summary.norm_l2),
        "abs_max": finite(summary.abs_max),
        "tied_to": summary.tied_to,
        "problem": summary.problem,
    }


def distribution_row(summary: TensorSummary, *, snapshot_id: int) -> Row | None:
    """Return the row of table tensor_distributions for a summary; None when it has neither quantiles nor histogram."""
    quantiles = encode_numbers(summary.quantiles)
    if quantiles is None and summary.histogram is None:
        return None
    histogram = None if summary.histogram is None else encode_histogram(summary.histogram)
    return {
        "snapshot_id": snapshot_id,
        "position": summary.position,
        "quantiles": quantiles,
        "histogram": histogram,
    }


def sketch_row(summary: TensorSummary, *, snapshot_id: int) -> Row | None:
    """Return the row of table tensor_sketches for a summary; None when it has no sketch."""
    sketch = summary.sketch
    if sketch is None:
        return None
    return {
        "snapshot_id": snapshot_id,
        "position": summary.position,
        "kind": sketch.kind,
        "n_buckets": integer(sketch.n_buckets),
        "seed": integer(sketch.seed),
        "dtype": sketch.dtype,
        "values": sketch.values,
    }


def weight_sketch_row(sketch: Sketch, *, snapshot_id: int) -> Row:
    """Return the row of table weight_sketches for the sketch of all parameters."""
    return {
        "snapshot_id": snapshot_id,
        "n_buckets": integer(sketch.n_buckets),
        "seed": integer(sketch.seed),
        "dtype": sketch.dtype,
        "values": sketch.values,
    }


def tensor_summary(row: Any, sketch: Sketch | None = None) -> TensorSummary:
    """Return the record of a tensor from the columns of tensors, tensor_statistics and tensor_distributions."""
    return TensorSummary(
        name=row.name,
        kind=TensorKind(row.kind),
        dtype=row.dtype,
        shape=tuple(map(int, row.shape.split(","))) if row.shape else (),
        position=row.position,
        n_elements=row.n_elements,
        n_nan=row.n_nan,
        n_posinf=row.n_posinf,
        n_neginf=row.n_neginf,
        n_zero=row.n_zero,
        min=row.min,
        max=row.max,
        mean=row.mean,
        std=row.std,
        norm_l1=row.norm_l1,
        norm_l2=row.norm_l2,
        abs_max=row.abs_max,
        quantiles=decode_numbers(row.quantiles),
        histogram=None if row.histogram is None else decode_histogram(row.histogram),
        sketch=sketch,
        tied_to=row.tied_to,
        problem=row.problem,
    )


def sketch_record(row: Any) -> Sketch:
    """Return the record of a sketch from its columns."""
    return Sketch(
        kind=row.sketch_kind,
        n_buckets=row.n_buckets,
        seed=row.seed,
        dtype=row.sketch_dtype,
        values=bytes(row.sketch_values),
    )


def drift_row(drift: TensorDrift, *, snapshot_id: int, position: int, tensor_id: int) -> Row:
    """Return the row of table drifts for a drift."""
    return {
        "snapshot_id": snapshot_id,
        "position": position,
        "tensor_id": tensor_id,
        "reference_step": optional_integer(drift.reference_step),
        "method": drift.method,
        "difference_l2": finite(drift.difference_l2),
        "relative_l2": finite(drift.relative_l2),
        "cosine_distance": finite(drift.cosine_distance),
        "max_abs_difference": finite(drift.max_abs_difference),
        "n_changed": optional_integer(drift.n_changed),
    }


def tensor_drift(row: Any) -> TensorDrift:
    """Return the record of a drift from its columns and the tensor's name."""
    return TensorDrift(
        name=row.name,
        reference_step=row.reference_step,
        method=row.method,
        difference_l2=row.difference_l2,
        relative_l2=row.relative_l2,
        cosine_distance=row.cosine_distance,
        max_abs_difference=row.max_abs_difference,
        n_changed=row.n_changed,
    )


def finding_row(finding: Finding, *, snapshot_id: int) -> Row:
    """Return the row of table findings for a finding."""
    return {
        "snapshot_id": snapshot_id,
        "rule": finding.rule,
        "identity": finding.identity,
        "severity": int(finding.severity),
        "step": optional_integer(finding.step),
        "subject": finding.subject,
        "value": finite(finding.value),
        "threshold": finite(finding.threshold),
        "unit": finding.unit,
        "summary": finding.summary,
        "details": encode_details(finding.details),
    }


def finding_record(row: Any) -> Finding:
    """Return the record of a finding from its columns and the run's name."""
    return Finding(
        rule=row.rule,
        severity=Severity(row.severity),
        run=row.run,
        step=row.step,
        subject=row.subject,
        value=row.value,
        threshold=row.threshold,
        unit=row.unit,
        summary=row.summary,
        identity=row.identity,
        details=decode_details(row.details),
    )


def alert_row(alert: Alert, *, run_id: int) -> Row:
    """Return the row of table alerts for an alert."""
    return {
        "fingerprint": alert.fingerprint,
        "episode": alert.episode,
        "run_id": run_id,
        "rule": alert.rule,
        "severity": int(alert.severity),
        "state": alert.state.value,
        "subject": alert.subject,
        "step": optional_integer(alert.step),
        "value": finite(alert.value),
        "threshold": finite(alert.threshold),
        "unit": alert.unit,
        "summary": alert.summary,
        "details": encode_details(alert.details),
        "opened_at": alert.opened_at,
        "fired_at": alert.fired_at,
        "resolved_at": alert.resolved_at,
        "last_seen_at": alert.last_seen_at,
        "n_seen": integer(alert.n_seen),
        "incident_id": None if alert.incident is None else alert.incident.id,
    }


def alert_record(row: Any) -> Alert:
    """Return the record of an alert from its columns, the run's name and the columns of its incident."""
    return Alert(
        fingerprint=row.fingerprint,
        run=row.run,
        rule=row.rule,
        severity=Severity(row.severity),
        state=AlertState(row.state),
        subject=row.subject,
        step=row.step,
        value=row.value,
        threshold=row.threshold,
        unit=row.unit,
        summary=row.summary,
        details=decode_details(row.details),
        opened_at=row.opened_at,
        fired_at=row.fired_at,
        resolved_at=row.resolved_at,
        last_seen_at=row.last_seen_at,
        n_seen=row.n_seen,
        episode=row.episode,
        incident=None if row.incident_id is None or row.incident_rule is None else _incident_of(row),
    )


def incident_row(incident: Incident, *, run_id: int) -> Row:
    """Return the row of table incidents for an incident, without its number."""
    told = incident.told_severity
    return {
        "run_id": run_id,
        "state": incident.state.value,
        "severity": int(incident.severity),
        "told_severity": None if told is None else int(told),
        "rule": incident.rule,
        "step": optional_integer(incident.step),
        "tensor": incident.tensor,
        "summary": incident.summary,
        "opened_by": incident.opened_by,
        "opened_at": incident.opened_at,
        "changed_at": incident.changed_at,
        "resolved_at": incident.resolved_at,
        "n_alerts": integer(incident.n_alerts),
    }


def incident_record(row: Any) -> Incident:
    """Return the record of an incident from its columns and the run's name."""
    return Incident(id=row.id, run=row.run, **_incident_facts(row, ""))


def incident_columns() -> list[Any]:
    """Return the columns of an incident, each named `incident_...`, for statements that give alerts."""
    return [c.label(f"incident_{c.name}") for c in table(IncidentRow).c if c.name not in {"id", "run_id"}]


def _incident_of(row: Any) -> Incident:
    return Incident(id=row.incident_id, run=row.run, **_incident_facts(row, "incident_"))


def _incident_facts(row: Any, prefix: str) -> dict[str, Any]:
    plain = ("rule", "step", "tensor", "summary", "opened_by", "opened_at", "changed_at", "resolved_at", "n_alerts")
    facts: dict[str, Any] = {name: getattr(row, prefix + name) for name in plain}
    told = getattr(row, prefix + "told_severity")
    facts["state"] = AlertState(getattr(row, prefix + "state"))
    facts["severity"] = Severity(getattr(row, prefix + "severity"))
    facts["told_severity"] = None if told is None else Severity(told)
    return facts


def encode_gathering(gathering: Gathering) -> str:
    """Return an incident and its alerts as one JSON object, for the outbox."""
    incident = gathering.incident
    facts = {**incident_row(incident, run_id=0), "id": incident.id, "run": incident.run}
    facts["tensor"], facts["summary"] = printable_text(incident.tensor), printable_text(incident.summary)
    del facts["run_id"]
    document = {
        "incident": facts,
        "others": [json.loads(encode_alert(alert)) for alert in gathering.others],
        "n_others": gathering.n_others,
    }
    return json.dumps(document, allow_nan=False, separators=(",", ":"))


def decode_gathering(text: str) -> Gathering:
    """Return what `encode_gathering` was given."""
    document = json.loads(text)
    facts = document["incident"]
    facts["state"], facts["severity"] = AlertState(facts["state"]), Severity(facts["severity"])
    facts["told_severity"] = None if facts["told_severity"] is None else Severity(facts["told_severity"])
    return Gathering(
        incident=Incident(**facts),
        others=tuple(_alert_of(alert) for alert in document["others"]),
        n_others=document["n_others"],
    )


def encode_alert(alert: Alert) -> str:
    """Return an alert as one JSON object, for the outbox."""
    document = {**alert_row(alert, run_id=0), "run": alert.run, "subject": printable_text(alert.subject)}
    document["summary"], document["unit"] = printable_text(alert.summary), printable_text(alert.unit)
    del document["run_id"], document["incident_id"]
    return json.dumps(document, allow_nan=False, separators=(",", ":"))


def decode_alert(text: str) -> Alert:
    """Return the alert that `encode_alert` was given, without its incident."""
    return _alert_of(json.loads(text))


def _alert_of(document: dict[str, Any]) -> Alert:
    document["severity"], document["state"] = Severity(document["severity"]), AlertState(document["state"])
    document["details"] = decode_details(document["details"])
    return Alert(**document)


def notification_record(row: Any) -> Notification:
    """Return the record of a notification from its columns."""
    return Notification(
        id=row.id,
        notifier=row.notifier,
        reason=row.reason,
        alert=decode_alert(row.alert),
        deduplication_key=row.deduplication_key,
        last_good_step=row.last_good_step,
        last_good_path=row.last_good_path,
        created_at=row.created_at,
        due_at=row.due_at,
        n_attempts=row.n_attempts,
        last_error=row.last_error,
        first_receipt=row.first_receipt,
        gathering=None if row.gathering is None else decode_gathering(row.gathering),
    )


def silence_record(row: Any) -> Silence:
    """Return the record of a silence from its columns."""
    return Silence(
        id=row.id,
        runs=row.runs,
        rules=row.rules,
        created_at=row.created_at,
        ends_at=row.ends_at,
        comment=row.comment,
    )
