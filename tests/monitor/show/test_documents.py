from __future__ import annotations

import json
import math
from dataclasses import replace

from monitor.show.documents import alerts_document, history_document, runs_document
from monitor.show.views import Journey, ReferenceDrift, WayPoint
from storage.records import AlertState, GradientEstimate
from tests.support.show_records import NOW, alert, failed, snapshot, summary, view


def test_a_run_says_how_far_it_came_and_where_to_resume() -> None:
    (document,) = runs_document([view("gpt", last_good=snapshot(11), healthy=False, health_reason="NaN")])
    assert document == {
        "run": "gpt",
        "root": "/ckpts",
        "attempt": 1,
        "n_snapshots": 12,
        "last_step": 1200,
        "healthy": False,
        "health_reason": "NaN",
        "last_good_step": 1100,
        "last_good_path": "/ckpts/gpt/step-1100.safetensors",
        "active": True,
    }


def test_a_run_without_anything_good_has_nulls() -> None:
    (document,) = runs_document([view(run=summary(last_step=None), newest=None, last_good=None, recent=())])
    assert document["last_step"] is None
    assert document["last_good_step"] is None
    assert document["last_good_path"] is None


def test_history_keeps_its_order_and_shows_failures_with_their_reason() -> None:
    document = history_document("gpt", Journey(snapshots=(snapshot(11), failed(12))))
    complete, broken = document["snapshots"]
    assert document["run"] == "gpt"
    assert (complete["step"], complete["status"], complete["problem"]) == (1100, "complete", None)
    assert (complete["gradient_norm"], complete["gradient_source"]) == (0.8, "adam_window")
    assert (broken["status"], broken["weight_norm"], broken["gradient_norm"]) == ("failed", None, None)
    assert broken["problem"] == {
        "kind": "truncated",
        "message": "header promises 400 bytes more than the file has",
    }


def test_history_tells_where_each_snapshot_lies_on_the_path_and_how_far_from_the_reference() -> None:
    first, second, third = snapshot(10), snapshot(11), snapshot(12)
    points = {second.id: WayPoint(update_cosine=None, path_length=2.0, displacement=math.inf)}
    drift = ReferenceDrift(
        reference_step=1000, reference_path="/x", method="sketch", relative_l2=0.25, cosine=0.9, n_tensors=3
    )
    unknown = replace(drift, relative_l2=None, cosine=None, n_tensors=None, reason="no longer kept")
    journey = Journey(snapshots=(first, second, third), points=points, drifts={second.id: drift, third.id: unknown})
    assert "drift" not in history_document("gpt", journey)["snapshots"][1]
    documents = history_document("gpt", journey, with_drift=True)["snapshots"]
    path = ("update_cosine", "path_length", "displacement")
    assert [[d[key] for key in path] for d in documents] == [[None] * 3, [None, 2.0, None], [None] * 3]
    assert documents[0]["drift"] is None
    assert documents[1]["drift"] == {
        "reference_step": 1000,
        "reference_path": "/x",
        "method": "sketch",
        "relative_l2": 0.25,
        "cosine": 0.9,
        "n_tensors": 3,
        "reason": None,
    }
    assert (documents[2]["drift"]["relative_l2"], documents[2]["drift"]["reason"]) == (None, "no longer kept")


def test_an_alert_names_its_rule_state_and_subject() -> None:
    (document,) = alerts_document([alert(state=AlertState.RESOLVED, resolved_at=NOW)])
    assert document["severity"] == "critical"
    assert document["state"] == "resolved"
    assert document["subject"] == "transformer.h.3.attn.weight"
    assert document["opened_at"] == NOW - 300
    assert document["resolved_at"] == NOW
    assert document["incident"] is None


def test_a_number_that_is_not_finite_becomes_null() -> None:
    strange = replace(
        snapshot(),
        weight_norm=math.inf,
        update_ratio=math.nan,
        gradient=GradientEstimate(norm=math.inf, source="adam_ema", window_steps=None),
    )
    journey = Journey(snapshots=(strange,))
    text = json.dumps(
        [history_document("gpt", journey), alerts_document([alert(value=math.nan)])],
        allow_nan=False,
    )
    assert json.loads(text)[0]["snapshots"][0]["weight_norm"] is None
