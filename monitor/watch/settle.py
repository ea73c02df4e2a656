"""When is a checkpoint whole? Candidates from scans become checkpoints once they are quiet; what cannot be read waits.

`decide` is pure. `Tracker` keeps what was observed in memory and nothing else: after a restart everything is found
again by the scan, and what was stored before is recognised by its signature. Nothing here opens a file.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from monitor.read.directories import unit_files
from monitor.read.reader import LimitError
from monitor.watch.runs import epoch_from_path, signature, step_from_path
from monitor.watch.scanner import ScanResult, stat_file
from storage.records import Candidate, Checkpoint, FileStat, Problem, ProblemKind

PASSED_OVER_MAX = 10_000  # how many units of busy runs are passed over in search of one that may be handed out
_RETRIED = frozenset({ProblemKind.INCOMPLETE, ProblemKind.CHANGED, ProblemKind.IO_ERROR, ProblemKind.PERMISSION})
_RETRIED_ONCE = frozenset({ProblemKind.TIMEOUT, ProblemKind.WORKER_CRASHED})


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlePolicy:
    """How long to wait for what; all in seconds."""

    settle_seconds: float = 2.0
    incomplete_timeout_seconds: float = 900.0  # after the last change; then what is incomplete counts as truncated
    permission_timeout_seconds: float = 60.0  # some writers create a file closed to others and open it up later
    retry_seconds_min: float = 1.0
    retry_seconds_max: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeVerdict:
    """What reading the candidate in its present state came to: the latest problem, how often it was tried and when."""

    problem: Problem
    n_tries: int
    first_at: float
    last_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Quiet for long enough: to be read now."""

    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class NotYet:
    """To be looked at again at `due_at`; `reason` is one printable line."""

    reason: str
    due_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """Given up: to be stored as a failure with this problem."""

    checkpoint: Checkpoint
    problem: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """Deleted meanwhile: normal life, nothing is stored."""

    checkpoint: Checkpoint


Decision = Settled | NotYet | Broken


def decide(candidate: Candidate, *, now: float, policy: SettlePolicy, verdict: ProbeVerdict | None = None) -> Decision:
    """Say whether a candidate is to be read now, later or never again in its present state.

    Quiet means: unchanged over our own observations for `settle_seconds`, and last written as long ago by its own
    time stamps, unless those lie in the future and so say nothing. `verdict` is None while this state of the files
    was never read.
    """
    quiet_at = candidate.last_changed_at + policy.settle_seconds
    written_at = _newest_ns(candidate) / 1e9
    if written_at <= now:
        quiet_at = max(quiet_at, written_at + policy.settle_seconds)
    if now < quiet_at:
        return NotYet(reason="changed a moment ago", due_at=quiet_at)
    if verdict is None:
        return Settled(checkpoint=as_checkpoint(candidate))
    final = _final_problem(candidate, now=now, policy=policy, verdict=verdict)
    if final is not None:
        return Broken(checkpoint=as_checkpoint(candidate), problem=final)
    pause = min(policy.retry_seconds_min * 2.0 ** min(verdict.n_tries - 1, 30), policy.retry_seconds_max)
    due_at = verdict.last_at + pause
    if now < due_at:
        return NotYet(reason=f"{verdict.problem.kind}: {verdict.problem.message}", due_at=due_at)
    return Settled(checkpoint=as_checkpoint(candidate))


def as_checkpoint(candidate: Candidate) -> Checkpoint:
    """Return the checkpoint that a candidate in its present state is, with what its path says about step and epoch.

    `written_at` is the newest time stamp of its files, or when we last saw a change where that lies before it (the
    clock of a file server may be ahead of ours).
    """
    stamp = _newest_ns(candidate) / 1e9
    return Checkpoint(
        run=candidate.run,
        root=candidate.root,
        path=candidate.path,
        files=candidate.files,
        signature=signature(candidate.files, candidate.path),
        written_at=min(stamp, candidate.last_changed_at),
        step=step_from_path(candidate.path),
        epoch=epoch_from_path(candidate.path),
    )


def _final_problem(candidate: Candidate, *, now: float, policy: SettlePolicy, verdict: ProbeVerdict) -> Problem | None:
    problem = verdict.problem
    waited = now - max(candidate.last_changed_at, min(verdict.first_at, now))
    if problem.kind in _RETRIED_ONCE:
        return problem if verdict.n_tries > 1 else None
    if problem.kind not in _RETRIED:
        return problem
    if problem.kind is ProblemKind.PERMISSION:
        return problem if waited >= policy.permission_timeout_seconds else None
    if problem.kind is ProblemKind.INCOMPLETE:
        quiet_seconds = now - _last_change(candidate, now)
        if quiet_seconds < policy.incomplete_timeout_seconds:
            return None
        waited_text = f"{quiet_seconds:.0f} s" if quiet_seconds < 120 else f"{quiet_seconds / 60:.0f} min"
        message = f"still incomplete {waited_text} after its last change: {problem.message}"
        return Problem(kind=ProblemKind.TRUNCATED, message=message[:500])
    return problem if waited >= policy.incomplete_timeout_seconds else None


def _newest_ns(candidate: Candidate) -> int:
    return max((f.mtime_ns for f in candidate.files), default=0)


def _last_change(candidate: Candidate, now: float) -> float:
    """Return when a candidate last changed: by its own stamp where we never saw it change, else by what we saw.

    So a file that was cut off long before we came is not waited for as if it had been written a moment ago.
    """
    stamp = _newest_ns(candidate) / 1e9
    if candidate.first_seen_at == candidate.last_changed_at and stamp <= now:
        return min(stamp, candidate.last_changed_at)
    return candidate.last_changed_at


@dataclass(slots=True)
class _Unit:
    """One path as we have seen it."""

    candidate: Candidate
    signature: str
    verdict: ProbeVerdict | None = None
    in_flight: str | None = None  # the signature that is being read right now
    is_group: bool = False  # of several files
    is_done: bool = False  # this state was stored, as a success or as a failure
    due_at: float = 0.0


class Tracker:
    """Follows every unit in all roots from first sight to stored; used by one thread, the daemon's loop.

    Fed with scans by `observe`; `ready` hands out what is to be read, oldest first; `succeed`, `fail` and `release`
    take back what was handed out. `next_due_at` says when `ready` is worth asking again.
    """

    def __init__(
        self,
        *,
        run_of: Callable[[str, str], str],
        policy: SettlePolicy | None = None,
        root_policies: Mapping[str, SettlePolicy] | None = None,
        known: Iterable[str] = (),
        stat: Callable[[str], FileStat | None] = stat_file,
        unit_files: Callable[[str], tuple[FileStat, ...] | None] = unit_files,
    ) -> None:
        """Start without any unit.

        `run_of(root, path)` names runs (a path that is a directory ends in a slash); `root_policies` replace `policy`
        for single roots; `known` are the signatures that storage already holds. `stat` and `unit_files` tell the
        present state of a single file and of a checkpoint of several files, None when it is gone.
        """
        self._run_of = run_of
        self._policy = policy or SettlePolicy()
        self._root_policies = dict(root_policies or {})
        self._known = set(known)
        self._retired: set[str] = set()  # known signatures whose unit changed or went; another name may hold them
        self._stat = stat
        self._unit_files = unit_files
        self._units: dict[str, dict[str, _Unit]] = {}
        self._waiting: list[tuple[float, str, str]] = []  # heap of (due_at, root, path), entries may be outdated
        self._due: list[tuple[float, str, str]] = []  # heap of (mtime, root, path), entries may be outdated
        self._last_now: float | None = None

    def observe(self, scan: ScanResult, now: float) -> None:
        """Take in what a scan saw; a unit that a complete scan did not see is forgotten."""
        self._follow_clock(now)
        units = self._units.setdefault(scan.root, {})
        for file in scan.entries:
            unit = units.get(file.path)
            if unit is None:
                self._add(scan.root, file.path, (file,), now)
            elif unit.candidate.files[0] is not file or unit.is_group:
                unit.is_group = False
                self._update(unit, (file,), now)
        for entry in scan.units:
            unit = units.get(entry.path)
            if unit is None:
                self._add(scan.root, entry.path, entry.files, now, is_group=True)
            elif unit.candidate.files is not entry.files:
                unit.is_group = True
                self._update(unit, entry.files, now)
        if scan.complete and len(units) != len(scan.entries) + len(scan.units):
            present = {file.path for file in scan.entries} | {entry.path for entry in scan.units}
            for path in [p for p in units if p not in present]:
                self._forget(units, path)
        if scan.complete and self._retired:
            held = {unit.signature for others in self._units.values() for unit in others.values()}
            self._known -= self._retired - held
            self._retired.clear()

    def ready(self, now: float, *, limit: int = 1, busy: Collection[str] = frozenset()) -> list[Settled | Broken]:
        """Hand out at most `limit` units, those written longest ago first, after one more look at their state.

        Those of the runs in `busy` are passed over (at most PASSED_OVER_MAX of them) and stay due.
        A Settled one is out until `succeed`, `fail` or `release` is called with its checkpoint. A Broken one has
        waited too long; store it as a failure and call `succeed`.
        """
        self._follow_clock(now)
        while self._waiting and self._waiting[0][0] <= now:
            _, root, path = heapq.heappop(self._waiting)
            unit = self._units.get(root, {}).get(path)
            if unit is not None and not unit.is_done and unit.in_flight is None:
                heapq.heappush(self._due, (_newest_ns(unit.candidate), root, path))
        handed: list[Settled | Broken] = []
        passed_over: list[tuple[float, str, str]] = []
        while self._due and len(handed) < limit and len(passed_over) < PASSED_OVER_MAX:
            due = heapq.heappop(self._due)
            _, root, path = due
            unit = self._units.get(root, {}).get(path)
            if unit is not None and unit.candidate.run in busy:
                passed_over.append(due)
                continue
            decision = self._look_again(root, path, now)
            if isinstance(decision, Settled | Broken):
                handed.append(decision)
        for due in passed_over:
            heapq.heappush(self._due, due)
        return handed

    def newer_than(self, checkpoint: Checkpoint, now: float) -> Checkpoint | None:
        """Return a checkpoint of the same run that is due as well and supersedes this one, None when there is none.

        It was written later and has a larger step; where neither path names a step, later is enough. A path with a
        step and one without are not compared, since "last" is mostly a copy of what was saved under its step.
        """
        for _, root, path in self._due:
            unit = self._units.get(root, {}).get(path)
            if unit is None or unit.is_done or unit.in_flight is not None or unit.candidate.run != checkpoint.run:
                continue
            decision = decide(unit.candidate, now=now, policy=self._policy_of(unit), verdict=unit.verdict)
            if isinstance(decision, Settled) and _supersedes(decision.checkpoint, checkpoint):
                return decision.checkpoint
        return None

    def succeed(self, checkpoint: Checkpoint) -> None:
        """Note that this state of the unit is stored (measured or failed) and need not be read again."""
        self._known.add(checkpoint.signature)
        unit = self._take_back(checkpoint)
        if unit is not None and unit.signature == checkpoint.signature:
            unit.is_done = True
            unit.verdict = None
            return
        self._retired.add(checkpoint.signature)  # known until a scan shows that no other name holds it
        if unit is not None:
            self._wait(unit, unit.due_at)

    def fail(self, checkpoint: Checkpoint, problem: Problem, now: float) -> NotYet | Broken | Gone:
        """Note that reading failed, and say what follows.

        NotYet: it comes back from `ready` by itself. Broken: store it as a failure, then call `succeed`. Gone: forget
        it, nothing is stored.
        """
        self._follow_clock(now)
        unit = self._take_back(checkpoint)
        if unit is not None:
            # Whatever a reader says of a file that is being overwritten, it says of two files at once.
            with contextlib.suppress(OSError, LimitError):
                unit = self._refreshed(unit, now)
        if unit is None:
            return Gone(checkpoint=checkpoint)
        if unit.signature != checkpoint.signature:
            decision: Decision = NotYet(reason="changed while it was read", due_at=max(unit.due_at, now))
        else:
            first_at = unit.verdict.first_at if unit.verdict else now
            n_tries = unit.verdict.n_tries + 1 if unit.verdict else 1
            unit.verdict = ProbeVerdict(problem=problem, n_tries=n_tries, first_at=first_at, last_at=now)
            decision = decide(unit.candidate, now=now, policy=self._policy_of(unit), verdict=unit.verdict)
        if isinstance(decision, Settled):  # only with a retry pause of zero
            decision = NotYet(reason=str(problem.kind), due_at=now)
        if isinstance(decision, NotYet):
            self._wait(unit, decision.due_at)
        return decision

    def release(self, checkpoint: Checkpoint, now: float) -> None:
        """Give a unit back without a verdict, as if it had not been handed out."""
        unit = self._take_back(checkpoint)
        if unit is not None:
            self._wait(unit, now)

    def next_due_at(self) -> float | None:
        """Return when `ready` may have something, None when nothing waits; a time in the past means now."""
        return 0.0 if self._due else self.next_waiting_at()

    def next_waiting_at(self) -> float | None:
        """Return when something beside what `ready` has already may be ready, None when nothing waits."""
        while self._waiting:
            due_at, root, path = self._waiting[0]
            unit = self._units.get(root, {}).get(path)
            if unit is not None and not unit.is_done and unit.in_flight is None and unit.due_at == due_at:
                return due_at
            heapq.heappop(self._waiting)
        return None

    @property
    def n_units(self) -> int:
        """Return the number of units known in all roots."""
        return sum(len(units) for units in self._units.values())

    def pending(self) -> list[Candidate]:
        """Return the candidates that are not stored yet, in flight or waiting, oldest sight first."""
        waiting = [u.candidate for units in self._units.values() for u in units.values() if not u.is_done]
        return sorted(waiting, key=lambda c: c.first_seen_at)

    def oldest_pending_at(self) -> float | None:
        """Return when the oldest candidate that is not stored yet was first seen, None when there is none."""
        return min(
            (u.candidate.first_seen_at for units in self._units.values() for u in units.values() if not u.is_done),
            default=None,
        )

    def _add(self, root: str, path: str, files: tuple[FileStat, ...], now: float, *, is_group: bool = False) -> None:
        # The name of a checkpoint that is a directory may be the run's name as well; the slash says that it is one.
        place = f"{path}/" if is_group and files[0].path.startswith(f"{path}/") else path
        candidate = Candidate(
            run=self._run_of(root, place), root=root, path=path, files=files, first_seen_at=now, last_changed_at=now
        )
        unit = _Unit(candidate=candidate, signature=signature(files, path), is_group=is_group)
        self._units[root][path] = unit
        self._settle_in(unit, now)

    def _update(self, unit: _Unit, files: tuple[FileStat, ...], now: float) -> None:
        old = unit.candidate
        if old.files == files:
            return
        unit.candidate = Candidate(
            run=old.run,
            root=old.root,
            path=old.path,
            files=files,
            first_seen_at=now if unit.is_done else old.first_seen_at,
            last_changed_at=now,
        )
        if unit.is_done:
            self._retired.add(unit.signature)
        unit.signature = signature(unit.candidate.files, old.path)
        unit.verdict = None
        self._settle_in(unit, now)

    def _settle_in(self, unit: _Unit, now: float) -> None:
        unit.is_done = unit.signature in self._known
        if not unit.is_done:
            decision = decide(unit.candidate, now=now, policy=self._policy_of(unit))
            self._wait(unit, decision.due_at if isinstance(decision, NotYet) else now)

    def _look_again(self, root: str, path: str, now: float) -> Settled | Broken | None:
        """Ask for the state of a due unit once more: the latest scan may be older than its last change."""
        unit = self._units.get(root, {}).get(path)
        if unit is None or unit.is_done or unit.in_flight is not None:
            return None
        try:
            refreshed = self._refreshed(unit, now)
        except (OSError, LimitError):
            self._wait(unit, now + self._policy_of(unit).retry_seconds_min)
            return None
        if refreshed is None:
            return None
        if unit.signature in self._known:  # stored meanwhile under another name of the same file
            unit.is_done = True
            return None
        decision = decide(unit.candidate, now=now, policy=self._policy_of(unit), verdict=unit.verdict)
        if isinstance(decision, NotYet):
            self._wait(unit, decision.due_at)
            return None
        unit.in_flight = unit.signature
        return decision

    def _refreshed(self, unit: _Unit, now: float) -> _Unit | None:
        """Ask the filesystem for the unit's present state; forget it and return None when it is gone."""
        path = unit.candidate.path
        files: tuple[FileStat, ...] | None
        if unit.is_group:
            files = self._unit_files(path)
        else:
            file = self._stat(path)
            files = None if file is None else (file,)
        if files is None:
            self._forget(self._units[unit.candidate.root], path)
            return None
        self._update(unit, files, now)
        return unit

    def _take_back(self, checkpoint: Checkpoint) -> _Unit | None:
        unit = self._units.get(checkpoint.root, {}).get(checkpoint.path)
        if unit is not None and unit.in_flight == checkpoint.signature:
            unit.in_flight = None
        return unit

    def _wait(self, unit: _Unit, due_at: float) -> None:
        unit.due_at = due_at
        if unit.in_flight is None:
            heapq.heappush(self._waiting, (due_at, unit.candidate.root, unit.candidate.path))

    def _forget(self, units: dict[str, _Unit], path: str) -> None:
        unit = units.pop(path)
        if unit.is_done:
            self._retired.add(unit.signature)

    def _policy_of(self, unit: _Unit) -> SettlePolicy:
        return self._root_policies.get(unit.candidate.root, self._policy)

    def _follow_clock(self, now: float) -> None:
        """Move every remembered time along when the wall clock was set back, so that nothing waits for it."""
        if self._last_now is not None and now < self._last_now:
            back = self._last_now - now
            for units in self._units.values():
                for unit in units.values():
                    _shift(unit, back)
            self._waiting = [(due_at - back, root, path) for due_at, root, path in self._waiting]
        self._last_now = now


def _supersedes(new: Checkpoint, old: Checkpoint) -> bool:
    if new.path == old.path or new.written_at <= old.written_at:
        return False
    if new.step is None or old.step is None:
        return new.step is None and old.step is None
    return new.step > old.step


def _shift(unit: _Unit, back: float) -> None:
    old = unit.candidate
    unit.candidate = Candidate(
        run=old.run,
        root=old.root,
        path=old.path,
        files=old.files,
        first_seen_at=old.first_seen_at - back,
        last_changed_at=old.last_changed_at - back,
    )
    unit.due_at -= back
    if unit.verdict is not None:
        unit.verdict = ProbeVerdict(
            problem=unit.verdict.problem,
            n_tries=unit.verdict.n_tries,
            first_at=unit.verdict.first_at - back,
            last_at=unit.verdict.last_at - back,
        )
