"""Healthy or not, and the last good checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from alerts.verdict import health, last_good
from storage.records import AlertState, Severity, SnapshotStatus, StoredSnapshot
from tests.support.alert_series import stored_series
from tests.support.stored import make_alert

NAN = [{"n_nan": 1}]


def series(*entries: Mapping[str, object]) -> list[StoredSnapshot]:
    return [stored for _, stored in stored_series(list(entries))]


def test_the_newest_finite_checkpoint_is_the_last_good_one() -> None:
    found = last_good(series({"step": 1}, {"step": 2}, {"step": 3, "tensors": NAN}, {"step": 4, "failed": "corrupt"}))
    assert found is not None
    assert found.step == 2


def test_a_checkpoint_with_a_critical_finding_is_not_good() -> None:
    snapshots = series({"step": 1}, {"step": 2}, {"step": 3})
    snapshots[2] = replace(snapshots[2], worst_severity=Severity.CRITICAL)
    snapshots[1] = replace(snapshots[1], worst_severity=Severity.WARNING)
    found = last_good(snapshots)
    assert found is not None
    assert found.step == 2


def test_masks_that_a_rule_has_accepted_leave_a_checkpoint_good() -> None:
    snapshots = series({"step": 1}, {"step": 2, "tensors": [{"n_neginf": 6, "n_zero": 6}]})
    assert last_good([replace(snapshots[1], worst_severity=Severity.INFO)]) is not None
    assert last_good([snapshots[1]]) is None


def test_a_checkpoint_that_was_deleted_is_passed_over() -> None:
    found = last_good(series({"step": 1}, {"step": 2}, {"step": 3}), exists=lambda s: s.step == 1)
    assert found is not None
    assert found.step == 1


def test_a_checkpoint_that_was_overwritten_is_passed_over() -> None:
    snapshots = series(
        {"step": 1, "path": "/data/a.pt"},
        {"step": 2, "path": "/data/last.pt"},
        {"step": 3, "path": "/data/last.pt", "tensors": NAN},
    )
    found = last_good(snapshots)
    assert found is not None
    assert found.path == "/data/a.pt"


def test_without_a_good_checkpoint_there_is_none() -> None:
    assert last_good([]) is None
    assert last_good(series({"tensors": NAN}, {"failed": "corrupt"})) is None


@given(st.lists(st.sampled_from(["good", "nan", "failed", "critical"]), max_size=20), st.integers(0, 2**20))
def test_the_last_good_checkpoint_is_good_there_and_the_newest_such(kinds: list[str], there: int) -> None:
    meanings: dict[str, dict[str, object]] = {"nan": {"tensors": NAN}, "failed": {"failed": "corrupt"}}
    entries = [meanings.get(kind, {}) for kind in kinds]
    snapshots = [
        replace(s, worst_severity=Severity.CRITICAL) if kind == "critical" else s
        for s, kind in zip(series(*entries), kinds, strict=True)
    ]
    wanted = [s for s, kind in zip(snapshots, kinds, strict=True) if kind == "good" and there >> s.id & 1]
    assert last_good(snapshots, exists=lambda s: bool(there >> s.id & 1)) == (wanted[-1] if wanted else None)


def test_a_run_without_trouble_is_healthy() -> None:
    assert health(series({}, {}), []).healthy
    assert health([], []).reason == "no checkpoint yet"


def test_a_firing_critical_alert_makes_a_run_ill_and_gives_the_reason() -> None:
    verdict = health(series({}), [make_alert(summary="NaN in a.weight")])
    assert (verdict.healthy, verdict.reason) == (False, "NaN in a.weight")


def test_pending_and_resolved_alerts_do_not_make_a_run_ill() -> None:
    for state in (AlertState.PENDING, AlertState.RESOLVED):
        assert health(series({}), [make_alert(state=state)]).healthy


def test_warnings_leave_a_run_healthy_and_are_mentioned() -> None:
    alerts = [make_alert(str(n), severity=Severity.WARNING, summary="slow") for n in range(2)]
    verdict = health(series({}), alerts)
    assert (verdict.healthy, verdict.reason) == (True, "warning: slow (and 1 more)")


def test_nan_in_the_newest_measured_checkpoint_makes_a_run_ill_even_without_rules() -> None:
    verdict = health(series({}, {"tensors": [{"name": "head", "n_nan": 1}]}, {"failed": "corrupt"}), [])
    assert (verdict.healthy, verdict.reason) == (False, "NaN or infinity in head")


def test_a_run_of_which_nothing_could_be_read_is_not_healthy() -> None:
    snapshots = series({"failed": "corrupt"})
    assert snapshots[0].status is SnapshotStatus.FAILED
    assert not health(snapshots, []).healthy
