"""Snapshots, findings and alerts for the tests of storage: one plain example of each, and Hypothesis strategies."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from storage.records import (
    Alert,
    AlertState,
    Checkpoint,
    FileStat,
    Finding,
    GradientEstimate,
    Histogram,
    Problem,
    ProblemKind,
    Severity,
    Sketch,
    Snapshot,
    SnapshotStatus,
    StoredSnapshot,
    TensorDrift,
    TensorKind,
    TensorSummary,
)


def make_tensor(name: str = "weight", position: int = 0, **changes: Any) -> TensorSummary:
    """Return the summary of a small parameter."""
    facts: dict[str, Any] = {
        "kind": TensorKind.PARAMETER,
        "dtype": "float32",
        "shape": (3, 4),
        "n_elements": 12,
        "n_nan": 0,
        "n_posinf": 0,
        "n_neginf": 0,
        "n_zero": 1,
        "min": -1.5,
        "max": 2.0,
        "mean": 0.1,
        "std": 0.7,
        "norm_l1": 9.0,
        "norm_l2": 3.0,
        "abs_max": 2.0,
        "quantiles": {"0.5": 0.05, "0.99": 1.9},
        "histogram": Histogram(bin_indices=(-3, 0, 70_000), counts=(1, 1, 10), n_sampled=12, exact=True),
        "sketch": Sketch(kind="raw", n_buckets=1021, seed=7, dtype="float32", values=bytes(range(48))),
    }
    return TensorSummary(name=name, position=position, **{**facts, **changes})


def make_snapshot(
    step: int | None = 1,
    *,
    run: str = "gpt",
    root: str = "/data",
    path: str | None = None,
    signature: str | None = None,
    written_at: float | None = None,
    size_bytes: int = 1000,
    **changes: Any,
) -> Snapshot:
    """Return a complete snapshot of two tensors; path, signature and time follow from the step."""
    path = path or f"{root}/{run}/checkpoint-{step}.pt"
    file = FileStat(path=path, device=1, inode=2, size_bytes=size_bytes, mtime_ns=5)
    checkpoint = Checkpoint(
        run=run,
        root=root,
        path=path,
        files=(file,),
        signature=signature or f"signature-{step}",
        written_at=1000.0 + (step or 0) if written_at is None else written_at,
        format="torch",
        step=step,
        epoch=0.5,
    )
    bare = make_tensor("b.bias", 1, shape=(), sketch=None, histogram=None, quantiles={})
    facts: dict[str, Any] = {
        "status": SnapshotStatus.COMPLETE,
        "problem": None,
        "tensors": (make_tensor("a.weight", 0), bare),
        "drifts": (
            TensorDrift(
                name="a.weight",
                reference_step=0,
                method="sketch",
                difference_l2=0.1,
                relative_l2=0.01,
                cosine_distance=0.001,
            ),
        ),
        "scalars": {"lr": 1e-3, "optimizer.betas.1": 0.999},
        "attempt": 1,
        "n_tensors": 2,
        "n_parameters": 13,
        "n_nonfinite": 0,
        "weight_norm": 3.0,
        "update_ratio": 0.01,
        "gradient": GradientEstimate(norm=0.3, source="adam_window", window_steps=10, beta2=0.999),
        "first_bad_tensor": None,
        "reference_step": 0,
        "bytes_read": 1000,
        "duration_seconds": 0.2,
        "measured_at": 2000.0,
    }
    return Snapshot(checkpoint=checkpoint, **{**facts, **changes})


def make_failure(step: int | None = 1, **changes: Any) -> Snapshot:
    """Return a snapshot of a checkpoint that could not be read."""
    facts: dict[str, Any] = {
        "status": SnapshotStatus.FAILED,
        "problem": Problem(kind=ProblemKind.TRUNCATED, message="ends after 12 of 40 bytes"),
        "tensors": (),
        "drifts": (),
        "scalars": {},
        "n_tensors": 0,
        "n_parameters": 0,
        "weight_norm": None,
        "update_ratio": None,
        "gradient": None,
        "reference_step": None,
    }
    return make_snapshot(step, **{**facts, **changes})


def make_finding(rule: str = "nonfinite", **changes: Any) -> Finding:
    """Return a critical finding."""
    facts: dict[str, Any] = {
        "severity": Severity.CRITICAL,
        "run": "gpt",
        "step": 7,
        "subject": "a.weight",
        "value": 3.0,
        "threshold": 0.0,
        "unit": "elements",
        "summary": "3 elements are NaN",
        "identity": "weights",
        "details": (("first bad tensor", "a.weight"), ("since step", "7")),
    }
    return Finding(rule=rule, **{**facts, **changes})


def make_alert(fingerprint: str = "f1", **changes: Any) -> Alert:
    """Return a firing alert."""
    facts: dict[str, Any] = {
        "run": "gpt",
        "rule": "nonfinite",
        "severity": Severity.CRITICAL,
        "state": AlertState.FIRING,
        "subject": "a.weight",
        "step": 7,
        "value": 3.0,
        "threshold": 0.0,
        "unit": "elements",
        "summary": "3 elements are NaN",
        "details": (("first bad tensor", "a.weight"),),
        "opened_at": 100.0,
        "fired_at": 100.0,
        "resolved_at": None,
        "last_seen_at": 100.0,
        "n_seen": 1,
        "episode": 1,
    }
    return Alert(fingerprint=fingerprint, **{**facts, **changes})


def stored_as(snapshot: Snapshot, snapshot_id: int, worst_severity: Severity | None = None) -> StoredSnapshot:
    """Return what storage should give back for a snapshot whose values all fit."""
    checkpoint = snapshot.checkpoint
    return StoredSnapshot(
        id=snapshot_id,
        run=checkpoint.run,
        root=checkpoint.root,
        attempt=snapshot.attempt,
        path=checkpoint.path,
        signature=checkpoint.signature,
        format=checkpoint.format,
        step=checkpoint.step,
        epoch=checkpoint.epoch,
        status=snapshot.status,
        problem=snapshot.problem,
        size_bytes=checkpoint.size_bytes,
        written_at=checkpoint.written_at,
        measured_at=snapshot.measured_at,
        n_tensors=snapshot.n_tensors,
        n_parameters=snapshot.n_parameters,
        n_nonfinite=snapshot.n_nonfinite,
        weight_norm=snapshot.weight_norm,
        update_ratio=snapshot.update_ratio,
        gradient=snapshot.gradient,
        first_bad_tensor=snapshot.first_bad_tensor,
        reference_step=snapshot.reference_step,
        duration_seconds=snapshot.duration_seconds,
        bytes_read=snapshot.bytes_read,
        worst_severity=worst_severity,
    )


# Any text Python can hold, lone surrogates and NUL among it: file names need not be UTF-8.
any_text = st.text(st.characters(codec=None), max_size=30)
int64 = st.integers(-(2**63) + 1, 2**63 - 1)
count = st.integers(0, 2**63 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
moment = st.floats(0, 4e9)
optional = st.none() | finite
pairs = st.lists(st.tuples(any_text, any_text), max_size=20).map(tuple)
# Texts for people lose what is not UTF-8, so equality after a round trip is asked only of those that are.
plain_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
plain_pairs = st.lists(st.tuples(plain_text, plain_text), max_size=20).map(tuple)

histograms = st.lists(st.tuples(int64, count), max_size=20, unique_by=lambda pair: pair[0]).flatmap(
    lambda bins: st.builds(
        Histogram,
        bin_indices=st.just(tuple(sorted(index for index, _ in bins))),
        counts=st.just(tuple(n for _, n in bins)),
        n_sampled=count,
        exact=st.booleans(),
    )
)
sketches = st.builds(
    Sketch,
    kind=st.sampled_from(["raw", "sketch"]),
    n_buckets=st.integers(1, 2**31),
    seed=int64,
    dtype=st.sampled_from(["float32", "float64"]),
    values=st.binary(max_size=64),
)
tensors = st.builds(
    TensorSummary,
    name=any_text,
    kind=st.sampled_from(TensorKind),
    dtype=st.sampled_from(["float32", "bfloat16", "float8_e4m3fn", "bool"]),
    shape=st.lists(st.integers(0, 2**40), max_size=5).map(tuple),
    position=st.just(0),
    n_elements=count,
    n_nan=count,
    n_posinf=count,
    n_neginf=count,
    n_zero=count,
    min=optional,
    max=optional,
    mean=optional,
    std=optional,
    norm_l1=optional,
    norm_l2=optional,
    abs_max=optional,
    quantiles=st.dictionaries(plain_text, finite, max_size=5),
    histogram=st.none() | histograms,
    sketch=st.none() | sketches,
    tied_to=st.none() | any_text,
    problem=st.none() | plain_text,
)
drifts = st.builds(
    TensorDrift,
    name=any_text,
    reference_step=st.none() | int64,
    method=st.sampled_from(["exact", "sketch"]),
    difference_l2=optional,
    relative_l2=optional,
    cosine_distance=optional,
    max_abs_difference=optional,
    n_changed=st.none() | count,
)
gradients = st.builds(
    GradientEstimate,
    norm=finite,
    source=st.sampled_from(["adam_window", "adam_ema", "logged"]),
    window_steps=st.none() | count,
    beta2=optional,
)
problems = st.builds(Problem, kind=st.sampled_from(ProblemKind), message=plain_text)
checkpoints = st.builds(
    Checkpoint,
    run=any_text,
    root=any_text,
    path=any_text,
    files=st.just((FileStat(path="/x", device=1, inode=1, size_bytes=77, mtime_ns=1),)),
    signature=any_text,
    written_at=moment,
    format=plain_text,
    step=st.none() | int64,
    epoch=optional,
)
snapshots = st.builds(
    Snapshot,
    checkpoint=checkpoints,
    status=st.sampled_from(SnapshotStatus),
    problem=st.none() | problems,
    tensors=st.lists(tensors, max_size=4, unique_by=lambda tensor: tensor.name),
    drifts=st.lists(drifts, max_size=3, unique_by=lambda drift: drift.name).map(tuple),
    scalars=st.dictionaries(plain_text, finite, max_size=5),
    attempt=st.integers(1, 1000),
    n_tensors=count,
    n_parameters=count,
    n_nonfinite=count,
    weight_norm=optional,
    update_ratio=optional,
    gradient=st.none() | gradients,
    first_bad_tensor=st.none() | any_text,
    reference_step=st.none() | int64,
    bytes_read=count,
    duration_seconds=moment,
    measured_at=moment,
)
findings = st.builds(
    Finding,
    rule=plain_text,
    severity=st.sampled_from(Severity),
    run=st.just("gpt"),
    step=st.none() | int64,
    subject=plain_text,
    value=optional,
    threshold=optional,
    unit=plain_text,
    summary=plain_text,
    identity=any_text,
    details=plain_pairs,
)
alerts = st.builds(
    Alert,
    fingerprint=st.text("0123456789abcdef", min_size=16, max_size=16),
    run=any_text,
    rule=plain_text,
    severity=st.sampled_from(Severity),
    state=st.sampled_from(AlertState),
    subject=plain_text,
    step=st.none() | int64,
    value=optional,
    threshold=optional,
    unit=plain_text,
    summary=plain_text,
    details=plain_pairs,
    opened_at=moment,
    fired_at=st.none() | moment,
    resolved_at=st.none() | moment,
    last_seen_at=moment,
    n_seen=count,
    episode=st.integers(1, 2**31),
)
