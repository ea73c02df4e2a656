"""The tables, as typed SQLAlchemy models.

Only what SQLite and PostgreSQL both understand. The models say how facts lie on disk, nothing more: conversion to and
from records is in `rows`, and a change here needs a revision in `migrations` (a test compares the two).

    runs ─┬─ snapshots ─┬─ snapshot_scalars        numbers found beside the tensors
          │             ├─ tensor_statistics ───┐  one row a tensor: numbers only, clustered by snapshot
          │             ├─ tensor_distributions │  quantiles and histogram
          │             ├─ tensor_sketches      │  the large part; may be thinned without losing statistics
          │             ├─ weight_sketches      │  one row a snapshot, of all parameters
          │             ├─ drifts ──────────────┤
          │             └─ findings             │
          ├─ tensors ───────────────────────────┘  dictionary of what stays equal: name, kind, dtype, shape
          └─ incidents ── alerts ── outbox
    silences                                       who need not be told, and until when
    claims                                         which daemon does what, where several share the work
    meta                                           small facts about the database itself
"""

from __future__ import annotations

from typing import Any, Final, cast

from sqlalchemy import (
    BigInteger,
    Boolean,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

# A noncharacter: valid UTF-8, and in no honest path or name, so it can say "what follows is escaped".
ESCAPE_MARK: Final = "\ufdd0"

# SQLite gives a rowid alias, and with it a cheap key, only to a column declared INTEGER.
RowNumber = BigInteger().with_variant(Integer(), "sqlite")


def _needs_escape(text: str) -> bool:
    if text.isascii():
        return "\0" in text
    return text.startswith(ESCAPE_MARK) or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text)


def escape_text(text: str) -> str:
    r"""Return a text that any database can hold, from which `unescape_text` makes the same text again.

    File names that are not UTF-8 come from Python with lone surrogates; they and NUL are written as `\uXXXX` behind a
    mark, and all other texts are returned as they are.
    """
    if not _needs_escape(text):
        return text
    escaped = (rf"\u{ord(c):04x}" if c in {"\\", "\0"} or "\ud800" <= c <= "\udfff" else c for c in text)
    return ESCAPE_MARK + "".join(escaped)


def unescape_text(text: str) -> str:
    """Return the text that `escape_text` was given."""
    if not text.startswith(ESCAPE_MARK):
        return text
    first, *rest = text[1:].split("\\u")
    return first + "".join(chr(int(part[:4], 16)) + part[4:] for part in rest)


def printable_text(text: str) -> str:
    """Return a text with lone surrogates and NUL replaced by a readable escape, for good."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


class ExactText(TypeDecorator[str]):
    """A text that is an identity (a path, a run, a tensor's name): comes back exactly as it went in."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 (given by SQLAlchemy)
        """Escape what the database could not hold."""
        return None if value is None else escape_text(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> str | None:  # noqa: ARG002 (given by SQLAlchemy)
        """Undo the escape."""
        return None if value is None else unescape_text(str(value))


class PlainText(TypeDecorator[str]):
    """A text for people (a summary, a problem): what is not UTF-8 is replaced by a readable escape, for good."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 (given by SQLAlchemy)
        """Replace lone surrogates and NUL."""
        return None if value is None else printable_text(value)


class Base(DeclarativeBase):
    """The base of all tables; constraints have names, so that migrations can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class MetaRow(Base):
    """One small fact about the database itself."""

    __tablename__ = "meta"

    key: Mapped[str] = mapped_column(String(100), primary_key=True)
    value: Mapped[str] = mapped_column(PlainText)


class RunRow(Base):
    """One run; `attempt` is the highest attempt that has a snapshot, 1 before the first."""

    __tablename__ = "runs"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True)
    name: Mapped[str] = mapped_column(ExactText)
    root: Mapped[str] = mapped_column(ExactText)
    attempt: Mapped[int] = mapped_column(Integer)
    active: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[float] = mapped_column(Double)
    seen_at: Mapped[float] = mapped_column(Double)


class SnapshotRow(Base):
    """One measured, or failed, checkpoint.

    `sort_step` orders the snapshots of an attempt: the step, or where it is unknown the one of the snapshot before, or
    -1 before any. So a snapshot that was stored late takes its place in history, and one without a step keeps the place
    in which it was stored. Numbers are never reused, so that views may cache by them.
    """

    __tablename__ = "snapshots"
    __table_args__ = (
        UniqueConstraint("run_id", "path", "signature"),
        Index(None, "run_id", "attempt", "sort_step", "id"),
        Index(None, "weight_norm"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    attempt: Mapped[int] = mapped_column(Integer)
    sort_step: Mapped[int] = mapped_column(BigInteger)
    path: Mapped[str] = mapped_column(ExactText)
    signature: Mapped[str] = mapped_column(ExactText)
    format: Mapped[str] = mapped_column(PlainText)
    step: Mapped[int | None] = mapped_column(BigInteger)
    epoch: Mapped[float | None] = mapped_column(Double)
    status: Mapped[str] = mapped_column(String(20))
    problem_kind: Mapped[str | None] = mapped_column(String(40))
    problem_message: Mapped[str | None] = mapped_column(PlainText)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    written_at: Mapped[float] = mapped_column(Double)
    measured_at: Mapped[float] = mapped_column(Double)
    n_tensors: Mapped[int] = mapped_column(BigInteger)
    n_parameters: Mapped[int] = mapped_column(BigInteger)
    n_nonfinite: Mapped[int] = mapped_column(BigInteger)
    weight_norm: Mapped[float | None] = mapped_column(Double)
    update_ratio: Mapped[float | None] = mapped_column(Double)
    gradient_norm: Mapped[float | None] = mapped_column(Double)
    gradient_source: Mapped[str | None] = mapped_column(String(40))
    gradient_window_steps: Mapped[int | None] = mapped_column(BigInteger)
    gradient_beta2: Mapped[float | None] = mapped_column(Double)
    first_bad_tensor: Mapped[str | None] = mapped_column(ExactText)
    reference_step: Mapped[int | None] = mapped_column(BigInteger)
    bytes_read: Mapped[int] = mapped_column(BigInteger)
    duration_seconds: Mapped[float] = mapped_column(Double)


class ScalarsRow(Base):
    """The plain numbers found beside the tensors of one snapshot, as one JSON object of dotted path to number."""

    __tablename__ = "snapshot_scalars"

    snapshot_id: Mapped[int] = mapped_column(
        ForeignKey("snapshots.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    scalars: Mapped[str] = mapped_column(Text)


class TensorRow(Base):
    """What stays equal of a tensor from snapshot to snapshot, kept once a run; `digest` identifies the four facts."""

    __tablename__ = "tensors"
    __table_args__ = (UniqueConstraint("run_id", "digest"), Index(None, "run_id", "name"))

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    digest: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(ExactText)
    kind: Mapped[str] = mapped_column(String(20))
    dtype: Mapped[str] = mapped_column(PlainText)
    shape: Mapped[str] = mapped_column(Text)


class _OfSnapshot:
    """The key of every table that has one row a tensor: the snapshot and the tensor's place in the checkpoint.

    The key's columns come first in the table: SQLite 3.40 finds NULLs that are not there in a table without row
    numbers whose key stands elsewhere (`PRAGMA quick_check`).
    """

    snapshot_id: Mapped[int] = mapped_column(
        ForeignKey("snapshots.id", ondelete="CASCADE"), primary_key=True, autoincrement=False, sort_order=-2
    )
    position: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False, sort_order=-1)


class StatisticsRow(_OfSnapshot, Base):
    """The numbers of one tensor in one snapshot; short rows clustered by snapshot, so that a page reads few pages."""

    __tablename__ = "tensor_statistics"
    __table_args__ = (Index(None, "tensor_id", "snapshot_id"), {"sqlite_with_rowid": False})

    tensor_id: Mapped[int] = mapped_column(ForeignKey("tensors.id", ondelete="CASCADE"))
    n_elements: Mapped[int] = mapped_column(BigInteger)
    n_nan: Mapped[int] = mapped_column(BigInteger)
    n_posinf: Mapped[int] = mapped_column(BigInteger)
    n_neginf: Mapped[int] = mapped_column(BigInteger)
    n_zero: Mapped[int] = mapped_column(BigInteger)
    min: Mapped[float | None] = mapped_column(Double)
    max: Mapped[float | None] = mapped_column(Double)
    mean: Mapped[float | None] = mapped_column(Double)
    std: Mapped[float | None] = mapped_column(Double)
    norm_l1: Mapped[float | None] = mapped_column(Double)
    norm_l2: Mapped[float | None] = mapped_column(Double)
    abs_max: Mapped[float | None] = mapped_column(Double)
    tied_to: Mapped[str | None] = mapped_column(ExactText)
    problem: Mapped[str | None] = mapped_column(PlainText)


class DistributionRow(_OfSnapshot, Base):
    """Quantiles (JSON) and histogram (see `rows.encode_histogram`) of one tensor in one snapshot."""

    __tablename__ = "tensor_distributions"

    quantiles: Mapped[str | None] = mapped_column(Text)
    histogram: Mapped[bytes | None] = mapped_column(LargeBinary)


class SketchRow(_OfSnapshot, Base):
    """The linear sketch of one tensor in one snapshot."""

    __tablename__ = "tensor_sketches"

    kind: Mapped[str] = mapped_column(String(20))
    n_buckets: Mapped[int] = mapped_column(BigInteger)
    seed: Mapped[int] = mapped_column(BigInteger)
    dtype: Mapped[str] = mapped_column(String(20))
    values: Mapped[bytes] = mapped_column(LargeBinary)


class WeightSketchRow(Base):
    """The sketch of all parameters of one snapshot; `seed` says which parameters these are. Never thinned."""

    __tablename__ = "weight_sketches"

    snapshot_id: Mapped[int] = mapped_column(
        ForeignKey("snapshots.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    n_buckets: Mapped[int] = mapped_column(BigInteger)
    seed: Mapped[int] = mapped_column(BigInteger)
    dtype: Mapped[str] = mapped_column(String(20))
    values: Mapped[bytes] = mapped_column(LargeBinary)


class DriftRow(_OfSnapshot, Base):
    """How far one tensor moved; `position` is the place in the snapshot's list of drifts."""

    __tablename__ = "drifts"
    __table_args__ = (Index(None, "tensor_id", "snapshot_id"), {"sqlite_with_rowid": False})

    tensor_id: Mapped[int] = mapped_column(ForeignKey("tensors.id", ondelete="CASCADE"))
    reference_step: Mapped[int | None] = mapped_column(BigInteger)
    method: Mapped[str] = mapped_column(String(20))
    difference_l2: Mapped[float | None] = mapped_column(Double)
    relative_l2: Mapped[float | None] = mapped_column(Double)
    cosine_distance: Mapped[float | None] = mapped_column(Double)
    max_abs_difference: Mapped[float | None] = mapped_column(Double)
    n_changed: Mapped[int | None] = mapped_column(BigInteger)


class FindingRow(Base):
    """One hit of one rule in one snapshot."""

    __tablename__ = "findings"

    snapshot_id: Mapped[int] = mapped_column(
        ForeignKey("snapshots.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    rule: Mapped[str] = mapped_column(String(100), primary_key=True)
    identity: Mapped[str] = mapped_column(ExactText, primary_key=True)
    severity: Mapped[int] = mapped_column(Integer)
    step: Mapped[int | None] = mapped_column(BigInteger)
    subject: Mapped[str] = mapped_column(PlainText)
    value: Mapped[float | None] = mapped_column(Double)
    threshold: Mapped[float | None] = mapped_column(Double)
    unit: Mapped[str] = mapped_column(PlainText)
    summary: Mapped[str] = mapped_column(PlainText)
    details: Mapped[str] = mapped_column(Text)


class IncidentRow(Base):
    """One incident: what an alert that fires belongs to, under the first cause; see `records.Incident`."""

    __tablename__ = "incidents"
    __table_args__ = (Index(None, "run_id", "state"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    state: Mapped[str] = mapped_column(String(20))
    severity: Mapped[int] = mapped_column(Integer)
    told_severity: Mapped[int | None] = mapped_column(Integer)
    rule: Mapped[str] = mapped_column(String(100))
    step: Mapped[int | None] = mapped_column(BigInteger)
    tensor: Mapped[str] = mapped_column(PlainText)
    summary: Mapped[str] = mapped_column(PlainText)
    opened_by: Mapped[str] = mapped_column(String(100))
    opened_at: Mapped[float] = mapped_column(Double)
    changed_at: Mapped[float] = mapped_column(Double)
    resolved_at: Mapped[float | None] = mapped_column(Double)
    n_alerts: Mapped[int] = mapped_column(BigInteger)


class AlertRow(Base):
    """One episode of one alert; `incident_id` is None before it fires, and for alerts that belong to none."""

    __tablename__ = "alerts"
    __table_args__ = (
        UniqueConstraint("fingerprint", "episode"),
        Index(None, "state", "opened_at"),
        Index(None, "opened_at"),
        Index(None, "run_id", "opened_at"),
        Index(None, "incident_id"),
    )

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    episode: Mapped[int] = mapped_column(BigInteger)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    rule: Mapped[str] = mapped_column(String(100))
    severity: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(20))
    subject: Mapped[str] = mapped_column(PlainText)
    step: Mapped[int | None] = mapped_column(BigInteger)
    value: Mapped[float | None] = mapped_column(Double)
    threshold: Mapped[float | None] = mapped_column(Double)
    unit: Mapped[str] = mapped_column(PlainText)
    summary: Mapped[str] = mapped_column(PlainText)
    details: Mapped[str] = mapped_column(Text)
    opened_at: Mapped[float] = mapped_column(Double)
    fired_at: Mapped[float | None] = mapped_column(Double)
    resolved_at: Mapped[float | None] = mapped_column(Double)
    last_seen_at: Mapped[float] = mapped_column(Double)
    n_seen: Mapped[int] = mapped_column(BigInteger)
    # Not enforced: SQLite cannot add a constraint without copying the table, and incidents are never deleted alone.
    incident_id: Mapped[int | None] = mapped_column(BigInteger)


class OutboxRow(Base):
    """One message to one notifier.

    `alert` is the alert as it was when the message was queued (JSON): a firing that is delivered late still says
    what it was about, and every try of a message has the same text; `gathering` is the incident around it (JSON).
    `fingerprint` and `episode` name the conversation: the alert's own, or those of the alert that opened the incident.
    `state` is "pending", "sent" or "dead". `receipt` is what the receiver calls the message, where it can be changed
    later.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        UniqueConstraint("notifier", "deduplication_key"),
        Index(None, "state", "notifier", "due_at"),
        Index(None, "fingerprint", "episode"),
        Index(None, "incident_id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True)
    notifier: Mapped[str] = mapped_column(String(100))
    deduplication_key: Mapped[str] = mapped_column(String(200))
    reason: Mapped[str] = mapped_column(String(20))
    fingerprint: Mapped[str] = mapped_column(String(64))
    episode: Mapped[int] = mapped_column(BigInteger)
    alert: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(20))
    last_good_step: Mapped[int | None] = mapped_column(BigInteger)
    last_good_path: Mapped[str | None] = mapped_column(ExactText)
    created_at: Mapped[float] = mapped_column(Double)
    due_at: Mapped[float] = mapped_column(Double)
    sent_at: Mapped[float | None] = mapped_column(Double)
    n_attempts: Mapped[int] = mapped_column(Integer)
    last_error: Mapped[str | None] = mapped_column(PlainText)
    receipt: Mapped[str | None] = mapped_column(PlainText)
    incident_id: Mapped[int | None] = mapped_column(BigInteger)
    gathering: Mapped[str | None] = mapped_column(Text)


class SilenceRow(Base):
    """One silence; what is over stays as a record of who was not told. Numbers are never reused."""

    __tablename__ = "silences"
    __table_args__ = (Index(None, "ends_at"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True)
    runs: Mapped[str] = mapped_column(ExactText)
    rules: Mapped[str] = mapped_column(ExactText)
    created_at: Mapped[float] = mapped_column(Double)
    ends_at: Mapped[float] = mapped_column(Double)
    comment: Mapped[str] = mapped_column(PlainText)


class ClaimRow(Base):
    """A piece of work that one of several daemons does (see `claims`); worth nothing after `leased_until`."""

    __tablename__ = "claims"

    what: Mapped[str] = mapped_column(ExactText, primary_key=True)
    owner: Mapped[str] = mapped_column(String(200))
    leased_until: Mapped[float] = mapped_column(Double)


def table(model: type[Base]) -> Table:
    """Return the table of a model, for bulk statements that need no objects."""
    return cast(Table, model.__table__)
