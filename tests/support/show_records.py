"""Records of runs, snapshots, tensors and alerts for the tests of what is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from monitor.show.closer_views import CloserSources, DriftMap, Happenings, SnapshotComparison
from monitor.show.views import (
    AlertQuery,
    Course,
    DriftQuery,
    Journey,
    Measurement,
    QuestionError,
    ReferenceDrift,
    RunView,
    SourceError,
    Sources,
    TensorMoment,
    WayPoint,
)
from storage.records import (
    Alert,
    AlertState,
    GradientEstimate,
    Problem,
    ProblemKind,
    RunSummary,
    Severity,
    SnapshotStatus,
    StoredSnapshot,
    TensorDrift,
    TensorKind,
    TensorSummary,
)

NOW = 1_700_000_000.0


def summary(name: str = "gpt", **changes: object) -> RunSummary:
    """Return a run that wrote its last checkpoint 40 seconds ago."""
    record = RunSummary(
        run=name,
        root="/ckpts",
        attempt=1,
        n_snapshots=12,
        last_step=1200,
        last_written_at=NOW - 40,
        last_measured_at=NOW - 38,
        active=True,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def snapshot(number: int = 12, run: str = "gpt", **changes: object) -> StoredSnapshot:
    """Return a measured snapshot of step 100 * number."""
    record = StoredSnapshot(
        id=number,
        run=run,
        root="/ckpts",
        attempt=1,
        path=f"/ckpts/{run}/step-{number * 100}.safetensors",
        signature=f"{number:032x}",
        format="safetensors",
        step=number * 100,
        epoch=None,
        status=SnapshotStatus.COMPLETE,
        problem=None,
        size_bytes=497_774_208,
        written_at=NOW - 40 - 60 * (12 - number),
        measured_at=NOW - 38 - 60 * (12 - number),
        n_tensors=148,
        n_parameters=124_439_808,
        n_nonfinite=0,
        weight_norm=512.5 + number,
        update_ratio=0.0004,
        gradient=GradientEstimate(norm=0.8, source="adam_window", window_steps=100, beta2=0.999),
        first_bad_tensor=None,
        reference_step=(number - 1) * 100,
        duration_seconds=0.4,
        bytes_read=497_774_208,
        worst_severity=None,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def failed(number: int = 12, run: str = "gpt") -> StoredSnapshot:
    """Return a snapshot of a checkpoint that could not be read."""
    return snapshot(
        number,
        run,
        status=SnapshotStatus.FAILED,
        problem=Problem(kind=ProblemKind.TRUNCATED, message="header promises 400 bytes more than the file has"),
        weight_norm=None,
        update_ratio=None,
        gradient=None,
        n_tensors=0,
        n_parameters=0,
    )


def alert(rule: str = "nonfinite", run: str = "gpt", **changes: object) -> Alert:
    """Return a critical alert that fires since five minutes."""
    record = Alert(
        fingerprint="0123456789abcdef",
        run=run,
        rule=rule,
        severity=Severity.CRITICAL,
        state=AlertState.FIRING,
        subject="transformer.h.3.attn.weight",
        step=1200,
        value=17.0,
        threshold=0.0,
        unit="elements",
        summary="17 elements are NaN, first in transformer.h.3.attn.weight",
        details=(),
        opened_at=NOW - 300,
        fired_at=NOW - 300,
        resolved_at=None,
        last_seen_at=NOW - 10,
        n_seen=3,
        episode=1,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def tensor(name: str = "wte.weight", **changes: object) -> TensorSummary:
    """Return the statistics of a parameter of 64 elements without zeros."""
    record = TensorSummary(
        name=name,
        kind=TensorKind.PARAMETER,
        dtype="float32",
        shape=(8, 8),
        position=0,
        n_elements=64,
        n_nan=0,
        n_posinf=0,
        n_neginf=0,
        n_zero=0,
        min=-1.0,
        max=1.0,
        mean=0.25,
        std=0.5,
        norm_l1=20.0,
        norm_l2=4.0,
        abs_max=1.0,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def drift(name: str = "wte.weight", **changes: object) -> TensorDrift:
    """Return a drift of one hundredth over 100 steps."""
    record = TensorDrift(
        name=name, reference_step=1100, method="sketch", difference_l2=0.04, relative_l2=0.01, cosine_distance=1e-4
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def view(name: str = "gpt", **changes: object) -> RunView:
    """Return a healthy run with twelve measured snapshots."""
    recent = tuple(snapshot(number, name) for number in range(1, 13))
    record = RunView(
        run=summary(name),
        newest=recent[-1],
        healthy=True,
        health_reason="no alert fires and the newest checkpoint is finite",
        last_good=recent[-1],
        firing=(),
        recent=recent,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


@dataclass
class MemorySources:
    """Sources over records in memory, which count how often a measurement is asked for and can be made to fail."""

    runs: Sequence[RunView] = ()
    open_alerts: Sequence[Alert] = ()
    measurements: Mapping[int, Measurement] = field(default_factory=dict)
    courses: Course = field(default_factory=Course)
    moments: Mapping[str, Sequence[TensorMoment]] = field(default_factory=dict)
    points: Mapping[int, WayPoint] = field(default_factory=dict)
    drifts: Mapping[str, Mapping[int, ReferenceDrift]] = field(default_factory=dict)  # by what they are asked against
    happenings: Happenings = field(default_factory=lambda: Happenings(incidents=(), silences=()))
    comparisons: Mapping[tuple[int, int], SnapshotComparison] = field(default_factory=dict)
    maps: Mapping[str, DriftMap] = field(default_factory=dict)
    error: str | None = None
    n_measurements: int = 0

    def views(self) -> Sequence[RunView]:
        self._fail()
        return self.runs

    def history(self, run: str, limit: int) -> Sequence[StoredSnapshot] | None:
        self._fail()
        for candidate in self.runs:
            if candidate.run.run == run:
                return candidate.recent[-limit:]
        return None

    def alerts(self, query: AlertQuery) -> Sequence[Alert]:
        self._fail()
        found = [a for a in self.open_alerts if query.run in (None, a.run) and query.state in (None, a.state.value)]
        return found[: query.limit]

    def measurement(self, snapshot_id: int) -> Measurement:
        self._fail()
        self.n_measurements += 1
        return self.measurements.get(snapshot_id, Measurement())

    def course(self, snapshot_ids: Sequence[int]) -> Course:
        self._fail()
        return Course(
            points=tuple(point for point in self.courses.points if point.snapshot_id in snapshot_ids),
            losses={number: loss for number, loss in self.courses.losses.items() if number in snapshot_ids},
        )

    def tensor(self, run: str, name: str, limit: int) -> Sequence[TensorMoment]:
        self._fail()
        return [moment for moment in self.moments.get(name, ()) if moment.snapshot.run == run][-limit:]

    def journey(self, run: str, limit: int, query: DriftQuery | None) -> Journey | None:
        snapshots = self.history(run, limit)
        if snapshots is None:
            return None
        if query is not None and query.against not in self.drifts:
            raise QuestionError(f"{query.against!r} is no reference")
        drifts = {} if query is None else self.drifts[query.against]
        return Journey(snapshots=tuple(snapshots), points=self.points, drifts=drifts)

    def _fail(self) -> None:
        if self.error is not None:
            raise SourceError(self.error)

    @property
    def sources(self) -> Sources:
        return Sources(
            views=self.views,
            history=self.history,
            alerts=self.alerts,
            measurement=self.measurement,
            course=self.course,
            tensor=self.tensor,
            journey=self.journey,
            closer=CloserSources(
                happenings=lambda run, limit: self.happenings,
                comparison=lambda old, new: self.comparisons.get((old, new)),
                drift_map=lambda run, limit: self.maps.get(run),
            ),
        )
