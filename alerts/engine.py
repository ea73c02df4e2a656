"""One snapshot in, everything decided and stored in one transaction: findings, alerts and messages to be sent.

The engine asks the rules, moves the alerts on and fills the outbox. It sends nothing and reads no configuration; a rule
that raises is logged and counted and stops no other. Doing the same snapshot twice changes nothing.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from alerts.announcing import Announced, Announcer, Repeat, Route
from alerts.incident import Occasion
from alerts.lifecycle import DETAILS_MAX, Change, Evaluation, Transition, advance
from alerts.quiet import MaintenanceWindow
from alerts.rule import Outcome, RuleSetting
from alerts.verdict import is_good, last_good
from storage import queries, windows, writer
from storage.failpoints import reach
from storage.records import (
    Alert,
    AlertState,
    Finding,
    Severity,
    Snapshot,
    SnapshotStatus,
    StoredSnapshot,
    Window,
)

if TYPE_CHECKING:
    from sqlalchemy.orm import Session  # the name of a type only; sessions are made and used up in storage

    from storage.database import Database

WINDOW_SNAPSHOTS_MAX = 64  # more than the longest baseline and stretch that any rule looks at
HISTORY_SNAPSHOTS_MAX = 256  # how far back the last good checkpoint is looked for
REPEAT_INTERVAL_SECONDS = 4 * 3600.0  # Alertmanager's default

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOverride:
    """Settings that replace those of the same rules for runs whose name matches a glob pattern."""

    runs: str
    rules: tuple[RuleSetting, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Everything the engine is told, as plain data.

    Of `overrides` that match a run, the last one wins. `repeat_interval_seconds` None means that a firing alert is
    never repeated. In `windows` nobody is told; a silence in the database does the same.
    """

    rules: tuple[RuleSetting, ...]
    overrides: tuple[RunOverride, ...] = ()
    routes: tuple[Route, ...] = ()
    windows: tuple[MaintenanceWindow, ...] = ()
    repeat_interval_seconds: float | None = REPEAT_INTERVAL_SECONDS
    window_snapshots_max: int = WINDOW_SNAPSHOTS_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFailure:
    """A rule that raised instead of answering."""

    rule: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOutcome:
    """What happened with one snapshot or one tick.

    `stored` is False when the snapshot was known already; then nothing else happened. `late` says that a newer
    snapshot was stored before it: its findings are kept with it, but alerts are about the newest. `silent` maps a rule
    to the reason why it could not judge; `quiet` maps the fingerprint of an alert to the reason why nobody was told.
    """

    stored: bool
    snapshot_id: int | None = None
    late: bool = False
    findings: tuple[Finding, ...] = ()
    changes: tuple[Change, ...] = ()
    n_enqueued: int = 0
    failures: tuple[RuleFailure, ...] = ()
    silent: Mapping[str, str] = field(default_factory=dict)
    quiet: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    evaluations: tuple[Evaluation, ...]
    failures: tuple[RuleFailure, ...]
    silent: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What a tick would change; `is_news` is False when that is nothing."""

    judged: _Judged
    occasion: Occasion
    before: tuple[Alert, ...] = ()
    changes: tuple[Change, ...] = ()
    repeats: tuple[Repeat, ...] = ()
    untold: tuple[Alert, ...] = ()
    is_news: bool = False


class Engine:
    """Judges runs. Its only memory is the database; make one a process and call it from any thread.

    `exists` says whether the bytes of a stored checkpoint are still on disk as they were measured (one `stat`), `kept`
    where a protected copy of them is; both are called outside of transactions.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        clock: Callable[[], float],
        exists: Callable[[StoredSnapshot], bool] | None = None,
        kept: Callable[[StoredSnapshot], str | None] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._exists = exists
        self._kept = kept
        self._announcer = Announcer(
            settings.routes,
            windows=settings.windows,
            repeat_interval_seconds=settings.repeat_interval_seconds,
        )

    def record(self, database: Database, snapshot: Snapshot) -> RecordOutcome:
        """Store a snapshot with all that follows from it in one transaction; raise DatabaseError and change nothing."""
        now = self._clock()
        run = snapshot.checkpoint.run
        prior = self._last_good(database, run, overwritten=snapshot.checkpoint.path)
        with database.write() as session:
            snapshot_id = writer.add_snapshot(session, snapshot)
            if snapshot_id is None:
                return RecordOutcome(stored=False)
            reach("record.snapshot")
            window = windows.window(
                session, run, n_snapshots_max=self._settings.window_snapshots_max, now=now, reason="snapshot"
            )
            late = window.newest is None or window.newest.id != snapshot_id
            if late:
                window = _window_of(window, snapshot, queries.snapshot(session, snapshot_id))
            judged = self._judge(window, self._settings_for(run))
            writer.save_findings(session, snapshot_id, (*judged.findings, *judged.notes))
            reach("record.findings")
            changes: list[Change] = []
            announced = Announced(quiet={})
            if not late:
                stored = queries.snapshot(session, snapshot_id)
                good = stored if stored is not None and is_good(stored) else prior
                before = queries.open_alerts(session, run)
                changes = self._advance(session, judged, window, before)
                announced = self._announcer.apply(session, changes, before, _occasion(window), good)
                reach("record.alerts")
        return RecordOutcome(
            stored=True,
            snapshot_id=snapshot_id,
            late=late,
            findings=judged.findings,
            changes=tuple(changes),
            n_enqueued=announced.n_enqueued,
            failures=judged.failures,
            silent=judged.silent,
            quiet=announced.quiet,
        )

    def tick(self, database: Database, run: str, now: float) -> RecordOutcome:
        """Ask the rules about time, and repeat what still fires; write only when that changes something.

        An alert that fired while nobody was to be told, and still fires when that is over, is told then.
        """
        with database.read() as session:
            seen = self._look(session, run, now)
        n_enqueued, quiet = 0, Announced(quiet={}).quiet
        if seen.is_news:
            good = self._last_good(database, run)
            with database.write() as session:
                # Judged again: between the two sessions a new snapshot may have changed everything.
                seen = self._look(session, run, now)
                announced = self._announcer.apply(session, seen.changes, seen.before, seen.occasion, good)
                n_enqueued, quiet = announced.n_enqueued, announced.quiet
                n_enqueued += sum(self._announcer.repeat(session, repeat, good, now) for repeat in seen.repeats)
                n_enqueued += self._announcer.tell_infos(session, seen.untold, good, now)
        return RecordOutcome(
            stored=False,
            findings=seen.judged.findings,
            changes=seen.changes,
            n_enqueued=n_enqueued,
            failures=seen.judged.failures,
            silent=seen.judged.silent,
            quiet=quiet,
        )

    def _look(self, session: Session, run: str, now: float) -> _Look:
        settings = [s for s in self._settings_for(run) if s.rule.on_tick or not s.enabled]
        summary = queries.run(session, run)
        snapshots = (
            []
            if summary is None
            else queries.history(session, run, attempt=summary.attempt, limit=self._settings.window_snapshots_max)
        )
        window = Window(
            run=run,
            snapshots=tuple(snapshots),
            tensors=(),
            drifts=(),
            now=now,
            reason="tick",
            active=summary is not None and summary.active,
        )
        if summary is None:
            return _Look(judged=self._judge(window, ()), occasion=_occasion(window))
        judged = self._judge(window, settings)
        before = queries.open_alerts(session, run)
        changes = tuple(
            change
            for change in self._advance(session, judged, window, before)
            if change.transition is not Transition.SEEN or change.alert.state is AlertState.PENDING
        )
        ending = {c.alert.fingerprint for c in changes if c.alert.state is AlertState.RESOLVED}
        occasion = _occasion(window)
        repeats = self._announcer.due_repeats(session, run, now, ending) if summary.active else []
        untold = self._announcer.untold_infos(session, run, now, ending)
        return _Look(
            judged=judged,
            occasion=occasion,
            before=tuple(before),
            changes=changes,
            repeats=tuple(repeats),
            untold=tuple(untold),
            is_news=bool(repeats or untold) or self._announcer.has_news(session, changes, before, occasion),
        )

    def _settings_for(self, run: str) -> tuple[RuleSetting, ...]:
        by_name = {setting.name: setting for setting in self._settings.rules}
        for override in self._settings.overrides:
            if fnmatchcase(run, override.runs):
                by_name.update((setting.name, setting) for setting in override.rules)
        return tuple(by_name.values())

    def _judge(self, window: Window, settings: Iterable[RuleSetting]) -> _Judged:
        findings: list[Finding] = []
        notes: list[Finding] = []
        evaluations: list[Evaluation] = []
        failures: list[RuleFailure] = []
        silent: dict[str, str] = {}
        for setting in settings:
            if not setting.enabled:
                evaluations.append(Evaluation(rule=setting.name, findings=(), silent=False))
                continue
            outcome = _ask(setting, window)
            if isinstance(outcome, RuleFailure):
                failures.append(outcome)
                continue
            if outcome.silent is not None:
                silent[setting.name] = outcome.silent
            hits = tuple(_as_set(finding, setting, window.run) for finding in outcome.findings)
            findings += hits
            notes += (replace(_as_set(note, setting, window.run), severity=Severity.INFO) for note in outcome.notes)
            evaluations.append(
                Evaluation(
                    rule=setting.name,
                    findings=hits,
                    silent=outcome.silent is not None,
                    for_snapshots=1 if setting.for_snapshots is None else setting.for_snapshots,
                    resolve_after_snapshots=(
                        1 if setting.resolve_after_snapshots is None else setting.resolve_after_snapshots
                    ),
                )
            )
        return _Judged(
            findings=tuple(findings),
            notes=tuple(notes),
            evaluations=tuple(evaluations),
            failures=tuple(failures),
            silent=silent,
        )

    def _advance(self, session: Session, judged: _Judged, window: Window, before: Sequence[Alert]) -> list[Change]:
        def last_episode(fingerprint: str) -> int:
            alert = queries.latest_episode(session, fingerprint)
            return 0 if alert is None else alert.episode

        def n_clean(alert: Alert) -> int:
            # Time has no snapshots to count: what a rule about time takes back is over.
            return sys.maxsize if window.reason == "tick" else _n_clean_snapshots(window, alert)

        return advance(
            before,
            judged.evaluations,
            now=window.now,
            n_clean=n_clean,
            last_episode=last_episode,
        )

    def _last_good(self, database: Database, run: str, overwritten: str | None = None) -> StoredSnapshot | None:
        if not self._settings.routes:
            return None
        with database.read() as session:
            snapshots = queries.history(session, run, limit=HISTORY_SNAPSHOTS_MAX)
        exists = self._exists or (lambda _: True)
        return last_good(snapshots, exists=lambda s: s.path != overwritten and exists(s), kept=self._kept)


def _ask(setting: RuleSetting, window: Window) -> Outcome | RuleFailure:
    try:
        return setting.rule.check(window, setting.options)
    except Exception as error:
        logger.exception("rule %s failed on run %s", setting.name, window.run)
        return RuleFailure(rule=setting.name, message=f"{type(error).__name__}: {error}"[:500])


def _as_set(finding: Finding, setting: RuleSetting, run: str) -> Finding:
    """Give a finding the rule's name, the run and the severity that were set, and keep NaN out of the records."""
    return replace(
        finding,
        rule=setting.name,
        run=run,
        severity=finding.severity if setting.severity is None else setting.severity,
        value=_finite(finding.value),
        threshold=_finite(finding.threshold),
        details=finding.details[:DETAILS_MAX],
    )


def _occasion(window: Window) -> Occasion:
    return Occasion(
        run=window.run,
        now=window.now,
        order={t.name: t.position for t in window.tensors},
        measured_at=tuple(s.measured_at for s in window.snapshots[:-1] if s.status is SnapshotStatus.COMPLETE),
        is_tick=window.reason == "tick",
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _window_of(window: Window, snapshot: Snapshot, stored: StoredSnapshot | None) -> Window:
    """Return the window as it would have been had nothing newer than this late snapshot been stored."""
    if stored is None:
        return replace(window, snapshots=(), tensors=(), drifts=(), scalars={}, past=(), previous_attempt=None)
    ids = [s.id for s in window.snapshots]
    older = window.snapshots[: ids.index(stored.id)] if stored.id in ids else ()
    older_ids = {s.id for s in older}
    return replace(
        window,
        snapshots=(*older, stored),
        tensors=snapshot.tensors,
        drifts=snapshot.drifts,
        scalars=snapshot.scalars,
        past=tuple(p for p in window.past if p.snapshot.id in older_ids),
    )


def _n_clean_snapshots(window: Window, alert: Alert) -> int:
    """Count the measured snapshots since the alert was last seen; the newest one counts in any case."""
    return 1 + sum(
        s.status is SnapshotStatus.COMPLETE and s.measured_at > alert.last_seen_at for s in window.snapshots[:-1]
    )
