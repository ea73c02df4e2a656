from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from monitor.watch.runs import signature
from monitor.watch.scanner import ScanResult
from monitor.watch.settle import (
    Broken,
    Gone,
    NotYet,
    ProbeVerdict,
    Settled,
    SettlePolicy,
    Tracker,
    as_checkpoint,
    decide,
)
from storage.records import Candidate, FileStat, Problem, ProblemKind

POLICY = SettlePolicy(settle_seconds=2.0, incomplete_timeout_seconds=100.0, permission_timeout_seconds=20.0)
ROOT = "/r"
DAY = 86_400.0


def file(name: str = "step-5.pt", *, inode: int = 1, size: int = 10, mtime: float = 1000.0) -> FileStat:
    return FileStat(path=f"{ROOT}/{name}", device=1, inode=inode, size_bytes=size, mtime_ns=int(mtime * 1e9))


def candidate(*, mtime: float = 1000.0, changed: float = 1000.0) -> Candidate:
    one = file(mtime=mtime)
    return Candidate(run="r", root=ROOT, path=one.path, files=(one,), first_seen_at=changed, last_changed_at=changed)


def verdict(kind: ProblemKind, *, n_tries: int = 1, first: float = 1002.0, last: float = 1002.0) -> ProbeVerdict:
    return ProbeVerdict(problem=Problem(kind=kind, message="why"), n_tries=n_tries, first_at=first, last_at=last)


def scanned(*files: FileStat, complete: bool = True) -> ScanResult:
    return ScanResult(
        root=ROOT, entries=files, problems=(), held_back=(), truncated=False, complete=complete, n_names=0, n_listed=0
    )


class Disk:
    """Files as the tracker's last look sees them."""

    def __init__(self, *files: FileStat) -> None:
        self.files = {f.path: f for f in files}
        self.error: OSError | None = None

    def put(self, one: FileStat) -> None:
        self.files[one.path] = one

    def stat(self, path: str) -> FileStat | None:
        if self.error is not None:
            raise self.error
        return self.files.get(path)

    def scan(self) -> ScanResult:
        return scanned(*sorted(self.files.values(), key=lambda f: f.path))


def tracker(disk: Disk, *, known: tuple[str, ...] = ()) -> Tracker:
    return Tracker(run_of=lambda root, path: "r", policy=POLICY, known=known, stat=disk.stat)


def settled(made: Tracker, now: float, limit: int = 100) -> list[str]:
    return [d.checkpoint.path for d in made.ready(now, limit=limit) if isinstance(d, Settled)]


def test_a_candidate_settles_after_being_quiet_by_our_own_observation() -> None:
    young = candidate(mtime=0.0, changed=1000.0)
    assert decide(young, now=1001.9, policy=POLICY) == NotYet(reason="changed a moment ago", due_at=1002.0)
    decision = decide(young, now=1002.0, policy=POLICY)
    assert isinstance(decision, Settled)
    assert decision.checkpoint.step == 5


def test_a_time_stamp_younger_than_the_settle_time_delays_and_one_in_the_future_says_nothing() -> None:
    assert decide(candidate(mtime=1001.5, changed=1000.0), now=1002.0, policy=POLICY) == NotYet(
        reason="changed a moment ago", due_at=1003.5
    )
    assert isinstance(decide(candidate(mtime=9000.0, changed=1000.0), now=1002.0, policy=POLICY), Settled)


def test_the_time_of_writing_is_the_stamp_unless_that_lies_after_what_we_saw() -> None:
    assert as_checkpoint(candidate(mtime=900.0)).written_at == 900.0
    assert as_checkpoint(candidate(mtime=9000.0)).written_at == 1000.0


@pytest.mark.parametrize(("n_tries", "pause"), [(1, 1.0), (2, 2.0), (5, 16.0), (7, 60.0), (5000, 60.0)])
def test_an_incomplete_file_is_tried_again_with_growing_pauses(n_tries: int, pause: float) -> None:
    known = verdict(ProblemKind.INCOMPLETE, n_tries=n_tries)
    decision = decide(candidate(), now=1002.5, policy=POLICY, verdict=known)
    assert decision == NotYet(reason="incomplete: why", due_at=1002.0 + pause)
    if pause < 60:
        assert isinstance(decide(candidate(), now=1002.0 + pause, policy=POLICY, verdict=known), Settled)


def test_a_file_incomplete_for_too_long_after_its_last_change_is_truncated() -> None:
    known = verdict(ProblemKind.INCOMPLETE, n_tries=9, last=1099.9)
    assert isinstance(decide(candidate(), now=1099.9, policy=POLICY, verdict=known), NotYet)
    decision = decide(candidate(), now=1100.0, policy=POLICY, verdict=known)
    assert isinstance(decision, Broken)
    assert decision.problem.kind is ProblemKind.TRUNCATED
    assert "why" in decision.problem.message


def test_a_file_that_was_cut_off_long_before_we_came_is_not_waited_for() -> None:
    known = verdict(ProblemKind.INCOMPLETE)
    decision = decide(candidate(mtime=10.0, changed=1000.0), now=1002.0, policy=POLICY, verdict=known)
    assert isinstance(decision, Broken)
    assert decision.problem.kind is ProblemKind.TRUNCATED
    grew = replace(candidate(mtime=10.0, changed=1000.0), first_seen_at=990.0)
    assert isinstance(decide(grew, now=1002.0, policy=POLICY, verdict=known), NotYet)


@pytest.mark.parametrize(
    "kind",
    [
        ProblemKind.CORRUPT, ProblemKind.AMBIGUOUS, ProblemKind.UNSUPPORTED, ProblemKind.LIMIT,
        ProblemKind.UNSAFE_REFERENCE, ProblemKind.NOT_REGULAR,
    ],
)  # fmt: skip
def test_what_waiting_cannot_mend_is_broken_at_once(kind: ProblemKind) -> None:
    decision = decide(candidate(), now=1002.0, policy=POLICY, verdict=verdict(kind))
    assert isinstance(decision, Broken)
    assert decision.problem.kind is kind


@pytest.mark.parametrize("kind", [ProblemKind.WORKER_CRASHED, ProblemKind.TIMEOUT])
def test_a_crash_is_tried_once_more_and_then_broken(kind: ProblemKind) -> None:
    assert isinstance(decide(candidate(), now=1002.0, policy=POLICY, verdict=verdict(kind)), NotYet)
    decision = decide(candidate(), now=1004.0, policy=POLICY, verdict=verdict(kind, n_tries=2))
    assert isinstance(decision, Broken)
    assert decision.problem.kind is kind


@pytest.mark.parametrize(
    ("kind", "seconds"), [(ProblemKind.PERMISSION, 20.0), (ProblemKind.IO_ERROR, 100.0), (ProblemKind.CHANGED, 100.0)]
)
def test_a_fault_around_the_file_is_tried_again_for_a_while_even_when_the_file_is_old(
    kind: ProblemKind, seconds: float
) -> None:
    old = candidate(mtime=10.0, changed=20.0)
    for n_tries in (1, 30):
        known = verdict(kind, n_tries=n_tries, last=1002.0 + seconds - 1)
        assert isinstance(decide(old, now=1002.0 + seconds - 0.5, policy=POLICY, verdict=known), NotYet)
        decision = decide(old, now=1002.0 + seconds, policy=POLICY, verdict=known)
        assert isinstance(decision, Broken)
        assert decision.problem.kind is kind


def test_the_tracker_hands_a_file_out_as_soon_as_it_is_due_without_another_scan() -> None:
    disk = Disk(file())
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    assert made.next_due_at() == 1002.0
    assert settled(made, 1001.0) == []
    assert settled(made, 1002.0) == ["/r/step-5.pt"]
    assert settled(made, 1003.0) == []  # it is out
    assert made.next_due_at() is None


def test_a_change_since_the_latest_scan_is_noticed_before_handing_out() -> None:
    disk = Disk(file())
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    disk.put(file(size=11, mtime=1001.9))
    assert settled(made, 1002.0) == []
    assert made.next_due_at() == 1004.0
    assert settled(made, 1004.0) == ["/r/step-5.pt"]


def test_a_file_gone_since_the_latest_scan_is_forgotten() -> None:
    disk = Disk(file())
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    disk.files.clear()
    assert settled(made, 1002.0) == []
    assert made.n_units == 0
    assert made.next_due_at() is None


def test_an_unreadable_state_is_asked_for_again() -> None:
    disk = Disk(file())
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    disk.error = OSError(5, "Input/output error")
    assert settled(made, 1002.0) == []
    disk.error = None
    assert made.next_due_at() == 1003.0
    assert settled(made, 1003.0) == ["/r/step-5.pt"]


def test_the_oldest_comes_first_and_the_limit_holds() -> None:
    disk = Disk(*(file(f"step-{i}.pt", inode=i, mtime=1000.0 - i) for i in range(1, 5)))
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    assert settled(made, 1010.0, limit=3) == ["/r/step-4.pt", "/r/step-3.pt", "/r/step-2.pt"]
    assert made.next_due_at() == 0.0
    assert settled(made, 1010.0, limit=3) == ["/r/step-1.pt"]


def test_what_storage_knows_is_not_handed_out_again() -> None:
    one = file()
    disk = Disk(one)
    made = tracker(disk, known=(signature((one,), one.path),))
    made.observe(disk.scan(), 1000.0)
    assert settled(made, 1010.0) == []
    assert made.pending() == []
    assert made.oldest_pending_at() is None


def test_a_stored_file_comes_back_only_when_it_is_written_again() -> None:
    disk = Disk(file())
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    (first,) = made.ready(1002.0)
    made.succeed(first.checkpoint)
    made.observe(disk.scan(), 1003.0)
    assert settled(made, 1010.0) == []
    disk.put(file(mtime=1011.0))
    made.observe(disk.scan(), 1011.0)
    (second,) = made.ready(1013.0)
    assert second.checkpoint.signature != first.checkpoint.signature


def test_a_renamed_or_hard_linked_file_is_not_read_again() -> None:
    disk = Disk(file("last.pt"))
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    (first,) = made.ready(1002.0)
    made.succeed(first.checkpoint)
    made.observe(scanned(file("step-7.pt")), 1003.0)
    disk.files = {file("step-7.pt").path: file("step-7.pt")}
    assert settled(made, 1010.0) == []


def test_a_file_renamed_while_it_is_read_is_not_read_again() -> None:
    disk = Disk(file("last.pt"))
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    (first,) = made.ready(1002.0)
    disk.files = {file("step-7.pt").path: file("step-7.pt")}
    made.observe(disk.scan(), 1003.0)
    made.succeed(first.checkpoint)
    assert settled(made, 1010.0) == []
    assert made.pending() == []


def test_a_file_that_changes_while_it_is_read_comes_back_in_its_new_state() -> None:
    disk = Disk(file())
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    (first,) = made.ready(1002.0)
    disk.put(file(size=20, mtime=1002.5))
    made.observe(disk.scan(), 1002.5)
    assert settled(made, 1010.0) == []  # still out
    assert isinstance(made.fail(first.checkpoint, Problem(kind=ProblemKind.CHANGED, message="m"), 1010.0), NotYet)
    (second,) = made.ready(1010.0)
    assert second.checkpoint.files[0].size_bytes == 20


@pytest.mark.parametrize(
    "kind", [ProblemKind.CHANGED, ProblemKind.CORRUPT, ProblemKind.LIMIT, ProblemKind.WORKER_CRASHED]
)
def test_an_overwrite_that_no_scan_saw_is_waited_for_after_a_failed_read(kind: ProblemKind) -> None:
    disk = Disk(file())
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    (first,) = made.ready(1002.0)
    disk.put(file(size=20, mtime=1003.0))
    decision = made.fail(first.checkpoint, Problem(kind=kind, message="m"), 1003.0)
    assert isinstance(decision, NotYet)
    assert decision.due_at == 1005.0
    assert settled(made, 1004.9) == []
    assert settled(made, 1005.0) == ["/r/step-5.pt"]


def test_a_result_for_an_older_state_does_not_settle_the_newer_one() -> None:
    disk = Disk(file())
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    (first,) = made.ready(1002.0)
    disk.put(file(size=20, mtime=1002.5))
    made.observe(disk.scan(), 1002.5)
    made.succeed(first.checkpoint)
    assert settled(made, 1004.5) == ["/r/step-5.pt"]


def test_a_vanished_file_is_forgotten_and_a_replaced_one_is_read_anew() -> None:
    disk = Disk(file())
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    (first,) = made.ready(1002.0)
    disk.put(file(inode=2, mtime=1002.0))
    gone = Problem(kind=ProblemKind.VANISHED, message="m")
    assert isinstance(made.fail(first.checkpoint, gone, 1002.5), NotYet)
    (second,) = made.ready(1004.5)
    disk.files.clear()
    assert isinstance(made.fail(second.checkpoint, gone, 1005.0), Gone)
    assert made.n_units == 0
    assert isinstance(made.fail(second.checkpoint, gone, 1005.0), Gone)


def test_an_incomplete_file_is_handed_out_again_until_it_is_given_up() -> None:
    disk = Disk(file())
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    problem = Problem(kind=ProblemKind.INCOMPLETE, message="no end yet")
    now, handed = 1002.0, []
    for _ in range(50):
        decisions = made.ready(now)
        if not decisions:
            now = made.next_due_at() or now
            continue
        handed.append(now)
        if isinstance(decisions[0], Broken) or isinstance(made.fail(decisions[0].checkpoint, problem, now), Broken):
            break
    assert handed[:6] == [1002.0, 1003.0, 1005.0, 1009.0, 1017.0, 1033.0]
    assert 1100.0 <= handed[-1] <= 1170.0
    made.succeed(decisions[0].checkpoint)
    assert made.pending() == []
    disk.put(file(size=99, mtime=now))  # the writer goes on after all
    made.observe(disk.scan(), now + 1)
    assert settled(made, now + 10) == ["/r/step-5.pt"]


def test_a_unit_given_back_is_handed_out_again() -> None:
    disk = Disk(file())
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    (first,) = made.ready(1002.0)
    made.release(first.checkpoint, 1003.0)
    assert settled(made, 1003.0) == ["/r/step-5.pt"]


def test_what_an_incomplete_scan_did_not_see_is_not_forgotten() -> None:
    disk = Disk(file())
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    (first,) = made.ready(1002.0)
    made.succeed(first.checkpoint)
    made.observe(scanned(complete=False), 1010.0)
    made.observe(disk.scan(), 1020.0)
    assert settled(made, 1030.0) == []
    made.observe(scanned(), 1040.0)
    assert made.n_units == 0


def test_a_clock_that_was_set_back_does_not_make_anything_wait() -> None:
    disk = Disk(file())
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0 + DAY)
    assert settled(made, 1001.0 + DAY) == []
    assert settled(made, 1001.5) == []  # a day earlier, half a second later
    due_at = made.next_due_at()
    assert due_at is not None
    assert due_at <= 1004.0
    assert settled(made, 1004.0) == ["/r/step-5.pt"]


def test_a_clock_that_jumps_ahead_settles_nothing_that_has_just_changed() -> None:
    disk = Disk(file())
    made = tracker(disk)
    made.observe(disk.scan(), 1000.0)
    disk.put(file(size=11, mtime=1000.5))
    assert settled(made, 1000.0 + DAY) == []
    assert settled(made, 1002.0 + DAY) == ["/r/step-5.pt"]


def test_roots_may_have_policies_of_their_own() -> None:
    disk = Disk(file())
    made = Tracker(
        run_of=lambda root, path: "r",
        policy=POLICY,
        root_policies={ROOT: replace(POLICY, settle_seconds=60.0)},
        stat=disk.stat,
    )
    made.observe(disk.scan(), 1000.0)
    assert made.next_due_at() == 1060.0


class TrackerMachine(RuleBasedStateMachine):
    """Writers, a clock, a daemon that reads, and what must hold whatever their order."""

    PATHS = tuple(f"{ROOT}/{name}.pt" for name in "abc")

    def __init__(self) -> None:
        super().__init__()
        self.now = 10_000.0
        self.n_inodes = 0
        self.disk = Disk()
        self.changed_at: dict[str, float] = {}
        self.stored: list[str] = []
        self.out: dict[str, Settled] = {}
        self.tracker = tracker(self.disk)

    @rule(path=st.sampled_from(PATHS), grow=st.integers(0, 5), new=st.booleans())
    def write(self, path: str, grow: int, new: bool) -> None:
        old = self.disk.files.get(path)
        self.now += 0.001
        if old is None or new:
            self.n_inodes += 1
        inode = self.n_inodes if old is None or new else old.inode
        size = (old.size_bytes if old else 0) + grow
        self.disk.put(FileStat(path=path, device=1, inode=inode, size_bytes=size, mtime_ns=int(self.now * 1e9)))
        self.changed_at[path] = self.now

    @rule(path=st.sampled_from(PATHS))
    def delete(self, path: str) -> None:
        self.disk.files.pop(path, None)

    @rule(source=st.sampled_from(PATHS), to=st.sampled_from(PATHS))
    def rename(self, source: str, to: str) -> None:
        if source in self.disk.files and source != to:
            self.disk.put(replace(self.disk.files.pop(source), path=to))
            self.changed_at[to] = max(self.changed_at.get(to, 0.0), self.changed_at[source])

    @rule(seconds=st.sampled_from([0.01, 0.5, 1.0, 2.0, 5.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def scan(self) -> None:
        self.tracker.observe(self.disk.scan(), self.now)

    @rule(limit=st.integers(0, 3))
    def hand_out(self, limit: int) -> None:
        handed = self.tracker.ready(self.now, limit=limit)
        assert len(handed) <= limit
        for decision in handed:
            checkpoint = decision.checkpoint
            assert checkpoint.files[0] == self.disk.files[checkpoint.path]
            assert self.now - self.changed_at[checkpoint.path] >= POLICY.settle_seconds - 1e-6
            assert checkpoint.signature not in self.stored
            assert checkpoint.path not in self.out
            if isinstance(decision, Settled):
                self.out[checkpoint.path] = decision
            else:
                self.store(checkpoint.signature)
                self.tracker.succeed(checkpoint)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.out)))
        checkpoint = self.out.pop(path).checkpoint
        present = self.disk.stat(path)
        if present == checkpoint.files[0]:
            self.store(checkpoint.signature)
            self.tracker.succeed(checkpoint)
        else:
            kind = ProblemKind.VANISHED if present is None else ProblemKind.CHANGED
            self.tracker.fail(checkpoint, Problem(kind=kind, message="m"), self.now)

    @precondition(lambda self: self.out)
    @rule(kind=st.sampled_from([ProblemKind.INCOMPLETE, ProblemKind.CORRUPT, ProblemKind.WORKER_CRASHED]))
    def fail(self, kind: ProblemKind) -> None:
        checkpoint = self.out.pop(min(self.out)).checkpoint
        decision = self.tracker.fail(checkpoint, Problem(kind=kind, message="m"), self.now)
        if isinstance(decision, Broken):
            self.store(checkpoint.signature)
            self.tracker.succeed(checkpoint)

    @rule()
    def a_quiet_minute(self) -> None:
        self.scan()
        self.now += 70.0
        self.hand_out(3)
        for path in sorted(self.out):
            checkpoint = self.out.pop(path).checkpoint
            self.store(checkpoint.signature)
            self.tracker.succeed(checkpoint)

    def store(self, stored: str) -> None:
        self.stored.append(stored)

    @invariant()
    def nothing_is_stored_twice_while_it_lies_there(self) -> None:
        assert len(self.stored) == len(set(self.stored))

    def teardown(self) -> None:
        for decision in self.out.values():
            self.tracker.release(decision.checkpoint, self.now)
        self.tracker.observe(self.disk.scan(), self.now)
        for _ in range(20):
            self.now += 70.0
            self.tracker.observe(self.disk.scan(), self.now)
            for handed in self.tracker.ready(self.now, limit=10):
                self.store(handed.checkpoint.signature)
                self.tracker.succeed(handed.checkpoint)
        assert self.tracker.pending() == []
        for path, one in self.disk.files.items():
            assert signature((one,), path) in self.stored
        assert self.tracker.n_units == len(self.disk.files)


TestTracker = TrackerMachine.TestCase
TestTracker.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
