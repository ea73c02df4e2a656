"""Alerts move on as the findings say, whatever the order of things."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.lifecycle import Change, Evaluation, Transition, advance, fingerprint
from storage.records import Alert, AlertState, Severity
from tests.support.stored import make_finding


def step(
    alerts: list[Alert],
    *identities: str,
    now: float = 100.0,
    silent: bool = False,
    n_clean: int = 1,
    for_snapshots: int = 1,
    resolve_after: int = 1,
    severity: Severity = Severity.CRITICAL,
    episodes: dict[str, int] | None = None,
) -> list[Change]:
    findings = tuple(make_finding(identity=identity, severity=severity) for identity in identities)
    evaluation = Evaluation(
        rule="nonfinite",
        findings=findings,
        silent=silent,
        for_snapshots=for_snapshots,
        resolve_after_snapshots=resolve_after,
    )
    return advance(
        [a for a in alerts if a.state is not AlertState.RESOLVED],
        [evaluation],
        now=now,
        n_clean=lambda _: n_clean,
        last_episode=lambda key: (episodes or {}).get(key, 0),
    )


def only(changes: list[Change]) -> Change:
    assert len(changes) == 1
    return changes[0]


def test_a_first_finding_fires_at_once() -> None:
    change = only(step([], "weights"))
    assert change.transition is Transition.FIRED
    assert change.before is None
    assert change.alert.state is AlertState.FIRING
    assert (change.alert.opened_at, change.alert.fired_at, change.alert.episode) == (100.0, 100.0, 1)


@pytest.mark.parametrize("for_snapshots", [0, 1])
def test_nought_and_one_mean_at_the_first_sight(for_snapshots: int) -> None:
    assert only(step([], "weights", for_snapshots=for_snapshots)).transition is Transition.FIRED


def test_an_alert_that_needs_three_sights_waits_for_the_third() -> None:
    first = only(step([], "weights", for_snapshots=3))
    second = only(step([first.alert], "weights", for_snapshots=3, now=200.0))
    third = only(step([second.alert], "weights", for_snapshots=3, now=300.0))
    assert [first.transition, second.transition, third.transition] == [
        Transition.OPENED,
        Transition.SEEN,
        Transition.FIRED,
    ]
    assert second.alert.state is AlertState.PENDING
    assert (third.alert.opened_at, third.alert.fired_at, third.alert.n_seen) == (100.0, 300.0, 3)


def test_a_pending_alert_that_is_not_seen_again_is_cleared_without_having_fired() -> None:
    pending = only(step([], "weights", for_snapshots=2)).alert
    change = only(step([pending], for_snapshots=2, now=200.0))
    assert change.transition is Transition.CLEARED
    assert change.alert.fired_at is None
    assert change.alert.resolved_at == 200.0


def test_a_firing_alert_is_resolved_by_a_clean_snapshot() -> None:
    firing = only(step([], "weights")).alert
    change = only(step([firing], now=200.0))
    assert change.transition is Transition.RESOLVED
    assert (change.alert.state, change.alert.resolved_at) == (AlertState.RESOLVED, 200.0)
    assert change.before == firing


def test_an_alert_that_needs_two_clean_snapshots_waits_for_the_second() -> None:
    firing = only(step([], "weights")).alert
    missed = only(step([firing], resolve_after=2, n_clean=1))
    assert missed.transition is Transition.MISSED
    assert missed.alert.state is AlertState.FIRING
    assert missed.alert.n_seen == 0
    assert only(step([missed.alert], resolve_after=2, n_clean=2)).transition is Transition.RESOLVED


def test_a_silent_rule_changes_nothing() -> None:
    firing = only(step([], "weights")).alert
    assert step([firing], silent=True) == []


def test_a_rule_that_was_not_asked_changes_nothing() -> None:
    firing = only(step([], "weights")).alert
    assert advance([firing], [], now=1.0, n_clean=lambda _: 9, last_episode=lambda _: 1) == []


def test_the_alert_keeps_where_it_began_and_takes_the_latest_numbers() -> None:
    firing = only(step([], "weights")).alert
    later = make_finding(step=9, subject="other", value=77.0, summary="77 elements are NaN")
    evaluation = Evaluation(rule="nonfinite", findings=(later,), silent=False)
    change = only(advance([firing], [evaluation], now=300.0, n_clean=lambda _: 0, last_episode=lambda _: 1))
    assert (change.alert.step, change.alert.subject) == (firing.step, firing.subject)
    assert (change.alert.value, change.alert.summary, change.alert.last_seen_at) == (77.0, "77 elements are NaN", 300.0)


def test_a_rising_severity_is_a_transition_of_its_own_and_never_falls_back() -> None:
    warning = only(step([], "weights", severity=Severity.WARNING)).alert
    risen = only(step([warning], "weights", severity=Severity.CRITICAL))
    assert risen.transition is Transition.ESCALATED
    fallen = only(step([risen.alert], "weights", severity=Severity.WARNING))
    assert fallen.transition is Transition.SEEN
    assert fallen.alert.severity is Severity.CRITICAL


def test_the_next_time_is_the_next_episode() -> None:
    key = fingerprint("nonfinite", "gpt", "weights")
    assert only(step([], "weights", episodes={key: 4})).alert.episode == 5


def test_two_findings_with_one_identity_are_one_alert() -> None:
    assert len(step([], "weights", "weights")) == 1


def test_other_identities_are_other_alerts() -> None:
    fingerprints = {change.alert.fingerprint for change in step([], "a", "b", "c")}
    assert len(fingerprints) == 3


def test_the_fingerprint_is_sixteen_hexadecimal_digits_and_stays_the_same_for_ever() -> None:
    assert fingerprint("nonfinite", "gpt", "weights") == "bd584b2e1ce165d1"


@given(st.tuples(st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text()))
def test_only_equal_parts_give_equal_fingerprints(a: tuple[str, str, str], b: tuple[str, str, str]) -> None:
    assert (fingerprint(*a) == fingerprint(*b)) == (a == b)


def test_names_that_are_no_valid_text_have_a_fingerprint() -> None:
    assert len(fingerprint("nonfinite", "run-\udcff", "")) == 16


Seen = st.lists(st.sampled_from(["hit", "clean", "silent"]), max_size=40)


@given(Seen, st.integers(0, 4), st.integers(1, 4))
def test_any_history_keeps_the_order_of_a_life(history: list[str], for_snapshots: int, resolve_after: int) -> None:
    """Firing is told once an episode, resolving once and only after firing; time and counts never go back."""
    alerts: list[Alert] = []
    episodes: dict[str, int] = {}
    told: list[tuple[Transition, int]] = []
    n_hits = n_clean = 0
    for index, event in enumerate(history):
        now = float(index)
        n_clean = n_clean + 1 if event == "clean" else 0 if event == "hit" else n_clean
        n_hits = n_hits + 1 if event == "hit" else 0 if event == "clean" else n_hits
        changes = step(
            alerts,
            *(["weights"] if event == "hit" else []),
            now=now,
            silent=event == "silent",
            n_clean=n_clean,
            for_snapshots=for_snapshots,
            resolve_after=resolve_after,
            episodes=episodes,
        )
        assert len(changes) <= 1
        for change in changes:
            alert = change.alert
            told.append((change.transition, alert.episode))
            episodes[alert.fingerprint] = alert.episode
            alerts = [alert]
            if change.before is not None:
                assert alert.episode == change.before.episode
                assert alert.opened_at == change.before.opened_at
                assert change.before.state is not AlertState.RESOLVED
            if alert.state is AlertState.FIRING:
                assert alert.fired_at is not None
            assert (alert.state is AlertState.RESOLVED) == (alert.resolved_at is not None)
        if event == "hit" and n_hits >= for_snapshots:
            assert alerts[0].state is AlertState.FIRING
        if event == "clean" and n_clean >= resolve_after and alerts:
            assert alerts[0].state is AlertState.RESOLVED
    for episode in range(1, max(episodes.values(), default=0) + 1):
        of_episode = [t for t, e in told if e == episode]
        assert of_episode.count(Transition.FIRED) <= 1
        if Transition.RESOLVED in of_episode:
            assert of_episode.index(Transition.FIRED) < of_episode.index(Transition.RESOLVED)
            assert of_episode[-1] is Transition.RESOLVED


@given(Seen)
def test_a_restart_between_any_two_steps_makes_no_difference(history: list[str]) -> None:
    """The state is in the alert alone: an equal copy of it, as a database gives back, goes the same way."""
    kept: list[Alert] = []
    copied: list[Alert] = []
    for index, event in enumerate(history):
        hits = ["weights"] if event == "hit" else []
        changed = step(kept, *hits, now=float(index), silent=event == "silent", for_snapshots=2)
        again = step(copied, *hits, now=float(index), silent=event == "silent", for_snapshots=2)
        assert changed == again
        if changed:
            kept = [changed[0].alert]
            copied = [replace(again[0].alert)]
