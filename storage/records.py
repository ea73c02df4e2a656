"""The words everyone shares: frozen records that carry facts between the parts.

Standard library only. Nothing here decides, reads or writes. Times are Unix seconds (UTC) as float, sizes are bytes,
counts are elements. Statistics are over finite elements, None where there are none; records hold no NaN or infinity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Severity(IntEnum):
    """How much a finding matters; ordered, so that `severity >= Severity.WARNING` reads as it sounds."""

    INFO = 10
    WARNING = 20
    CRITICAL = 30

    @property
    def label(self) -> str:
        """Return the lower-case name used in JSON, metrics and messages."""
        return self.name.lower()


class TensorKind(StrEnum):
    """What a tensor is in the model; only a PARAMETER counts as a weight."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    OPTIMIZER = "optimizer"
    OTHER = "other"


class SnapshotStatus(StrEnum):
    """Whether a checkpoint could be measured."""

    COMPLETE = "complete"
    FAILED = "failed"


class AlertState(StrEnum):
    """Where an alert stands in its life."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


class ProblemKind(StrEnum):
    """Why a checkpoint could not be read; the closed list that metrics and queries use."""

    INCOMPLETE = "incomplete"  # still being written; retried, never stored as a failure before the time limit
    VANISHED = "vanished"  # deleted while we looked; normal life
    CHANGED = "changed"  # rewritten while we read; retried
    TRUNCATED = "truncated"  # incomplete for longer than the time limit
    CORRUPT = "corrupt"
    AMBIGUOUS = "ambiguous"  # two readers could see two different files in it
    UNSUPPORTED = "unsupported"
    LIMIT = "limit"  # a count, size or depth over the configured limit
    UNSAFE_REFERENCE = "unsafe_reference"  # points outside its own directory
    NOT_REGULAR = "not_regular"  # a pipe, device or socket
    PERMISSION = "permission"
    IO_ERROR = "io_error"
    TIMEOUT = "timeout"
    WORKER_CRASHED = "worker_crashed"
    SUPERSEDED = "superseded"  # never read: a newer checkpoint of the run waited, and the configuration says to skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One reason why a checkpoint could not be measured: a kind and a printable line of at most 500 characters."""

    kind: ProblemKind
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """What `stat` said about one file of a checkpoint; equal before and after means nobody wrote meanwhile."""

    path: str  # absolute
    device: int
    inode: int
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Something in a watched root that may be, or become, a checkpoint."""

    run: str
    root: str
    path: str  # absolute; the identity of the unit on disk
    files: tuple[FileStat, ...]
    first_seen_at: float
    last_changed_at: float  # when our own observations last differed

    @property
    def size_bytes(self) -> int:
        """Return the sum of the sizes of all files."""
        return sum(f.size_bytes for f in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A settled candidate: quiet long enough to be read.

    `step` and `epoch`, None while unknown, come from the path, after reading from the content where it names them.
    `format` is "" before reading; `signature`, a hash of the files' names, sizes, mtimes and inodes, is the work's key.
    """

    run: str
    root: str
    path: str
    files: tuple[FileStat, ...]
    signature: str
    written_at: float
    format: str = ""
    step: int | None = None
    epoch: float | None = None

    @property
    def size_bytes(self) -> int:
        """Return the sum of the sizes of all files."""
        return sum(f.size_bytes for f in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """A linear sketch of a tensor or of all parameters, from which drift to any other snapshot can be estimated.

    `kind` "raw": `values` holds the elements themselves (n_elements <= n_buckets); "sketch": y[i mod k] += s_i * x_i
    with k = n_buckets prime and signs from a hash of (seed, i); "weights": these of all parameters folded once more,
    `seed` a hash of which ones. `values` are little-endian float32 or float64 (`dtype`). Non-finite elements are zero.
    """

    kind: str
    n_buckets: int
    seed: int
    dtype: str
    values: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts over fixed logarithmic magnitude bins, the same for every tensor, so that histograms can be compared.

    `bin_indices` are the non-empty bins in increasing value order (see monitor.measure.histogram), `counts` their
    element counts. `n_sampled` finite elements were counted: all when `exact`, else a deterministic sample.
    """

    bin_indices: tuple[int, ...]
    counts: tuple[int, ...]
    n_sampled: int
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSummary:
    """The statistics of one tensor of one checkpoint.

    min, max, mean, std (ddof 0), norm_l1, norm_l2, abs_max are over finite elements, None where there are none.
    `quantiles` maps a probability written as text ("0.01") to a value estimated from the histogram; empty when there
    is no finite element. `position` is the place in the checkpoint's own order, so that "which came first" has an
    answer. `tied_to` names the tensor whose storage this one shares in full (its statistics are equal), else None.
    """

    name: str
    kind: TensorKind
    dtype: str  # NumPy / ml_dtypes spelling: float32, bfloat16, float8_e4m3fn, int64, bool, complex64
    shape: tuple[int, ...]
    position: int
    n_elements: int
    n_nan: int
    n_posinf: int
    n_neginf: int
    n_zero: int
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    norm_l1: float | None
    norm_l2: float | None
    abs_max: float | None
    quantiles: Mapping[str, float] = field(default_factory=dict)
    histogram: Histogram | None = None
    sketch: Sketch | None = None
    tied_to: str | None = None
    problem: str | None = None  # why this tensor alone could not be measured, else None
    content_hash: str | None = None  # SHA-256 of what could not be measured, as it is stored; None of all else

    @property
    def n_nonfinite(self) -> int:
        """Return the number of NaN and infinite elements."""
        return self.n_nan + self.n_posinf + self.n_neginf


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDrift:
    """How far a tensor moved from a reference snapshot.

    `relative_l2` is |w - w0| / |w0| (None when |w0| is 0 or an element is not finite), `cosine_distance` is
    1 - cos(w, w0) in 0..2 (None when either norm is 0), `max_abs_difference` and `n_changed` are None unless exact.
    """

    name: str
    reference_step: int | None
    method: str  # "exact" or "sketch"
    difference_l2: float | None  # |w - w0|, absolute
    relative_l2: float | None
    cosine_distance: float | None
    max_abs_difference: float | None = None
    n_changed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPoint:
    """The few facts of one parameter in one snapshot that a map of many of them needs.

    `norm_l2` and `relative_l2`, the drift from the reference, are None as in TensorSummary and TensorDrift.
    """

    snapshot_id: int
    name: str
    n_elements: int
    n_nonfinite: int
    norm_l2: float | None
    relative_l2: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientEstimate:
    """The gradient norm over the steps between two checkpoints, with its source.

    `norm` is the root of the weighted mean of the squared global gradient norm over `window_steps` steps (source
    "adam_window", and the same of other optimizers), or over the optimizer's own memory (source "adam_ema" and others,
    window_steps None). Source "logged" is the mean of the norms that training itself logged. A source that ends in
    "_assumed" rests on a setting that the checkpoint does not state: a number to look at, which no rule judges.
    """

    norm: float
    source: str
    window_steps: int | None
    beta2: float | None = None

    @property
    def is_assumed(self) -> bool:
        """Say whether the number rests on a setting that the checkpoint does not state."""
        return self.source.endswith("_assumed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Our record of one checkpoint: statistics, drift and problems.

    `attempt` counts restarts of a run in the same directory from 1. `scalars` are the plain numbers found beside the
    tensors (step, learning rate, betas ...), by dotted path. `weight_norm` is the L2 norm over all finite parameter
    elements; `update_ratio` is |W - W0| / |W0| / steps elapsed over all parameters that both snapshots hold, None
    without a reference. `first_bad_tensor` is the first tensor, in the checkpoint's order, that holds a non-finite
    element. A `failed` snapshot has a problem and no tensors.
    """

    checkpoint: Checkpoint
    status: SnapshotStatus
    problem: Problem | None
    tensors: tuple[TensorSummary, ...]
    drifts: tuple[TensorDrift, ...]
    scalars: Mapping[str, float]
    attempt: int
    n_tensors: int
    n_parameters: int
    n_nonfinite: int
    weight_norm: float | None
    update_ratio: float | None
    gradient: GradientEstimate | None
    first_bad_tensor: str | None
    reference_step: int | None
    bytes_read: int
    duration_seconds: float
    measured_at: float
    weights: Sketch | None = None  # of all parameters; None where one of them is not finite or was not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSnapshot:
    """A snapshot as storage gives it back: the run-level facts and its number, without the tensors."""

    id: int
    run: str
    root: str
    attempt: int
    path: str
    signature: str
    format: str
    step: int | None
    epoch: float | None
    status: SnapshotStatus
    problem: Problem | None
    size_bytes: int
    written_at: float
    measured_at: float
    n_tensors: int
    n_parameters: int
    n_nonfinite: int
    weight_norm: float | None
    update_ratio: float | None
    gradient: GradientEstimate | None
    first_bad_tensor: str | None
    reference_step: int | None
    duration_seconds: float
    bytes_read: int
    worst_severity: Severity | None  # the highest severity among the findings of this very snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run as the database knows it."""

    run: str
    root: str
    attempt: int
    n_snapshots: int
    last_step: int | None
    last_written_at: float | None
    last_measured_at: float | None
    active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PastSnapshot:
    """An earlier complete snapshot as rules see it: tensors (no quantiles, histogram or sketch), drifts, scalars."""

    snapshot: StoredSnapshot
    tensors: tuple[TensorSummary, ...]
    drifts: tuple[TensorDrift, ...]
    scalars: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a rule sees: the latest snapshots of one run's current attempt, oldest to newest, and the time.

    `tensors`, `drifts` and `scalars` belong to the newest snapshot only (empty when it failed). `past` holds the last
    complete ones before it, oldest to newest; fewer where they have very many tensors. `previous_attempt` is the newest
    complete one of the attempt before, None once this one is as long as `past` may be. `twins` are pairs of one of the
    latest snapshots and one of another run with the same weights at the same step. All are empty on a tick. `reason` is
    "snapshot" (one was stored) or "tick" (time has passed). `active` is False once the run is known to have ended.
    """

    run: str
    snapshots: tuple[StoredSnapshot, ...]
    tensors: tuple[TensorSummary, ...]
    drifts: tuple[TensorDrift, ...]
    now: float
    reason: str = "snapshot"
    active: bool = True
    scalars: Mapping[str, float] = field(default_factory=dict)
    past: tuple[PastSnapshot, ...] = ()
    previous_attempt: PastSnapshot | None = None
    twins: tuple[tuple[StoredSnapshot, StoredSnapshot], ...] = ()

    @property
    def newest(self) -> StoredSnapshot | None:
        """Return the newest snapshot, None in an empty window."""
        return self.snapshots[-1] if self.snapshots else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One hit of one rule, now.

    `identity` distinguishes alerts of the same rule in the same run and stays equal while the trouble lasts ("" when
    there can be only one); `subject` is what the message names (a tensor, a path) and may be "". `details` are label
    -> text pairs for the message, in order of importance, at most 20.
    """

    rule: str
    severity: Severity
    run: str
    step: int | None
    subject: str
    value: float | None
    threshold: float | None
    unit: str
    summary: str
    identity: str = ""
    details: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """The alerts of one run that belong together; rule, step, tensor and summary are their first cause."""

    id: int  # 0 while it is not stored
    run: str
    state: AlertState  # firing or resolved
    severity: Severity  # the highest that any of its alerts had
    told_severity: Severity | None  # the highest that somebody was told of and that still holds
    rule: str
    step: int | None  # the first bad one
    tensor: str  # the first in the model's order that an alert of that step named, "" where none did
    summary: str
    opened_by: str  # the key of the alert with which it opened: the name of the conversation about it
    opened_at: float
    changed_at: float  # when an alert last joined
    resolved_at: float | None
    n_alerts: int  # how many ever belonged to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """The life of a finding over time; `fingerprint` is a hash of (rule, run, identity)."""

    fingerprint: str
    run: str
    rule: str
    severity: Severity
    state: AlertState
    subject: str
    step: int | None
    value: float | None
    threshold: float | None
    unit: str
    summary: str
    details: tuple[tuple[str, str], ...]
    opened_at: float
    fired_at: float | None
    resolved_at: float | None
    last_seen_at: float
    n_seen: int  # snapshots or ticks in a row in which the rule hit
    episode: int  # counts how often this fingerprint opened, from 1
    incident: Incident | None = None  # since it fired, as that is now; None for an info

    @property
    def key(self) -> str:
        """Return "fingerprint.episode", which names this episode of this alert."""
        return f"{self.fingerprint}.{self.episode}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathering:
    """An incident as one message tells of it: as it was then, with the other alerts that belonged to it."""

    incident: Incident
    others: tuple[Alert, ...]  # the worst and earliest, at most 24
    n_others: int  # all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One message to be sent to one notifier, kept in the outbox until it was.

    `reason` is "firing", "resolved" or "repeat". `deduplication_key` is the same for every try of the same message.
    `last_good_step` and `last_good_path` are None when no good checkpoint is known. `first_receipt` is what the
    receiver calls the first message of this conversation, None where there was none or it cannot be changed. `alert`
    is what the message is about first; `gathering` is the incident it is part of, None for an alert on its own.
    """

    id: int = 0  # while it is not in the outbox
    notifier: str
    reason: str
    alert: Alert
    deduplication_key: str
    last_good_step: int | None
    last_good_path: str | None
    created_at: float
    due_at: float
    n_attempts: int = 0
    last_error: str | None = None
    first_receipt: str | None = None
    gathering: Gathering | None = None

    @property
    def conversation(self) -> str:
        """Return what all messages about one incident, or one episode of an alert on its own, have in common."""
        return self.alert.key if self.gathering is None else self.gathering.incident.opened_by


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """An order not to tell anybody about some alerts until it ends; alerts are still judged and stored."""

    id: int
    runs: str  # a glob pattern or a plain name
    rules: str  # the same
    created_at: float
    ends_at: float
    comment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldAlert:
    """An alert that a notifier was to be told of, with the last good checkpoint that its last message named."""

    alert: Alert
    last_good_step: int | None
    last_good_path: str | None
