"""A stored run judged again: its snapshots pass, in the order they came, through an engine with other settings.

Reads one database and writes another, which the caller makes and throws away; nothing is measured again, no file of the
run is opened, nobody is notified. Rules about waiting are not asked between snapshots: only snapshots are replayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from alerts.engine import Engine, EngineSettings
from alerts.lifecycle import Transition
from storage import queries
from storage.database import Database
from storage.records import Alert, Checkpoint, FileStat, Snapshot, StoredSnapshot

_FIRED = frozenset({Transition.FIRED, Transition.ESCALATED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What the rules make of a stored run.

    `fired` holds each alert as it was when it fired or became more severe, in that order. `silent` maps a rule that
    never could judge to its latest reason, `failures` a rule that raised to its latest message.
    """

    n_snapshots: int
    fired: tuple[Alert, ...]
    silent: Mapping[str, str]
    failures: Mapping[str, str]


def replay(source: Database, scratch: Database, settings: EngineSettings, run: str, *, limit: int) -> Replay | None:
    """Judge the latest `limit` snapshots of a run in an empty `scratch` database; return None for an unknown run.

    Each is judged at the time at which it was measured. Raises a DatabaseError.
    """
    with source.read() as session:
        if queries.run(session, run) is None:
            return None
        stored = sorted(queries.history(session, run, limit=limit), key=lambda s: s.id)
    now = 0.0
    engine = Engine(replace(settings, routes=()), clock=lambda: now)
    fired: list[Alert] = []
    silent, failures, judged = dict[str, str](), dict[str, str](), set[str]()
    for entry in stored:
        now = entry.measured_at
        outcome = engine.record(scratch, _snapshot(source, entry))
        fired += [change.alert for change in outcome.changes if change.transition in _FIRED]
        failures |= {failure.rule: failure.message for failure in outcome.failures}
        silent |= outcome.silent
        judged |= {s.name for s in settings.rules} - outcome.silent.keys() - failures.keys()
    return Replay(
        n_snapshots=len(stored),
        fired=tuple(fired),
        silent={rule: reason for rule, reason in silent.items() if rule not in judged},
        failures=failures,
    )


def _snapshot(source: Database, stored: StoredSnapshot) -> Snapshot:
    """Return a snapshot as it was recorded, with one file of the size of all, and without sketches."""
    with source.read() as session:
        tensors = queries.tensors(session, stored.id)
        drifts = queries.drifts(session, stored.id)
        scalars = queries.scalars(session, stored.id)
    file = FileStat(
        path=stored.path,
        device=0,
        inode=0,
        size_bytes=stored.size_bytes,
        mtime_ns=int(stored.written_at * 1e9),
    )
    return Snapshot(
        checkpoint=Checkpoint(
            run=stored.run,
            root=stored.root,
            path=stored.path,
            files=(file,),
            signature=stored.signature,
            written_at=stored.written_at,
            format=stored.format,
            step=stored.step,
            epoch=stored.epoch,
        ),
        status=stored.status,
        problem=stored.problem,
        tensors=tensors,
        drifts=drifts,
        scalars=scalars,
        attempt=stored.attempt,
        n_tensors=stored.n_tensors,
        n_parameters=stored.n_parameters,
        n_nonfinite=stored.n_nonfinite,
        weight_norm=stored.weight_norm,
        update_ratio=stored.update_ratio,
        gradient=stored.gradient,
        first_bad_tensor=stored.first_bad_tensor,
        reference_step=stored.reference_step,
        bytes_read=stored.bytes_read,
        duration_seconds=stored.duration_seconds,
        measured_at=stored.measured_at,
    )
