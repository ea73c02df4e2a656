"""The pages that look closer: alerts, two checkpoints side by side, a run from above; over records in memory."""

from __future__ import annotations

import html
import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.show.closer_views import (
    DriftMap,
    Happenings,
    IncidentView,
    MessageView,
    PairRelation,
    SnapshotComparison,
    TensorPair,
)
from monitor.show.web.addresses import map_url, pair_of, run_of
from monitor.show.web.compare_page import compare_page
from monitor.show.web.map_page import HEIGHT, WIDTH, map_page
from monitor.show.web.pages import Pages, load_assets
from storage.records import AlertState, Incident, Severity, Silence
from tests.support.show_records import NOW, alert, snapshot, tensor

PAGES = Pages(load_assets(), refresh_seconds=5)


def incident(text: str = "NaN in wte.weight", **changes: object) -> Incident:
    record = Incident(
        id=1,
        run=text,
        state=AlertState.FIRING,
        severity=Severity.CRITICAL,
        told_severity=Severity.CRITICAL,
        rule="nonfinite",
        step=1200,
        tensor=text,
        summary=text,
        opened_by="k:1",
        opened_at=NOW - 300,
        changed_at=NOW - 200,
        resolved_at=None,
        n_alerts=1,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def happenings(text: str = "gpt") -> Happenings:
    messages = (
        MessageView(notifier="slack", reason="firing", state="sent", at=NOW - 290, n_attempts=1, error=""),
        MessageView(notifier=text, reason="firing", state="dead", at=NOW - 280, n_attempts=9, error=text),
    )
    silence = Silence(id=1, runs=text, rules="*", created_at=NOW, ends_at=NOW + 7200, comment=text)
    view = IncidentView(incident=incident(text), alerts=(alert(run=text, summary=text),), messages=messages)
    return Happenings(incidents=(view,), silences=(silence,))


def comparison(text: str = "gpt") -> SnapshotComparison:
    pairs = (
        TensorPair(name="a", relation=PairRelation.SAME, old=tensor("a"), new=tensor("a"), relative_l2=0.0),
        TensorPair(name="b", relation=PairRelation.CHANGED, old=tensor("b"), new=tensor("b"), relative_l2=0.5),
        TensorPair(name=text, relation=PairRelation.ADDED, old=None, new=tensor(text)),
        TensorPair(name="d", relation=PairRelation.CHANGED, old=tensor("d"), new=tensor("d", n_nan=3)),
        TensorPair(name="e", relation=PairRelation.RESHAPED, old=tensor("e", shape=(64,)), new=tensor("e")),
        TensorPair(name="f", relation=PairRelation.CHANGED, old=tensor("f"), new=tensor("f"), relative_l2=2.0),
    )
    return SnapshotComparison(
        old=snapshot(1, text, path=text),
        new=snapshot(2, text, path=text),
        pairs=pairs,
        n_optimizer=4,
        is_estimated=True,
        reason="",
    )


def line(values: list[float], text: str = "gpt") -> DriftMap:
    """Return the map of snapshots that lie at places on a line."""
    return DriftMap(
        snapshots=tuple(snapshot(number, text) for number in range(1, len(values) + 1)),
        relative=tuple(tuple(abs(a - b) for b in values) for a in values),
        points=tuple((value, 0.0) for value in values),
        share=1.0,
        n_left_out=0,
    )


def test_an_incident_shows_its_cause_its_evidence_and_who_was_told() -> None:
    page = PAGES.alerts(happenings(), NOW)
    assert "told slack; given up on gpt" in page
    assert "first bad step 1\u202f200" in page
    assert "given up after 9 tries" in page
    assert "in 2 h" in page
    assert 'href="/tensor?run=gpt&amp;name=gpt"' in page


def test_an_incident_that_is_over_says_how_long_it_lasted() -> None:
    over = replace(incident(), state=AlertState.RESOLVED, resolved_at=NOW - 240)
    found = Happenings(incidents=(IncidentView(incident=over, alerts=(), messages=()),), silences=())
    page = PAGES.alerts(found, NOW)
    assert "lasted 1 min" in page
    assert "nobody was told" in page
    assert '<strong class="fine">0</strong> incidents open' in page


def test_what_is_not_finite_comes_first_then_what_came_or_went_then_what_moved_most() -> None:
    page = compare_page(comparison())
    assert [row.name for row in page.rows] == ["d", "gpt", "e", "f", "b", "a"]
    assert [row.share for row in page.rows] == [0, 0, 0, 100, 25, 0]
    assert page.verdict == "Of 6 tensors 1 added, 1 reshaped, 3 changed, 1 same. 1 hold NaN or infinity."
    assert "4 tensors of the optimizer are not listed" in page.note
    assert page.rows[2].shape == "64 → 8×8"


def test_equal_checkpoints_are_called_equal() -> None:
    found = comparison()
    page = compare_page(replace(found, pairs=found.pairs[:1]))
    assert page.verdict == "All 1 tensors are the same."


def test_a_return_to_earlier_weights_is_said() -> None:
    page = map_page("gpt", line([0.0, 1.0, 2.0, 3.0, 1.0, 2.0]))
    assert page.findings[0].startswith("The largest step is to step 500")
    assert "step 500 lies nearer to step 200" in page.findings[1]
    assert len(map_page("gpt", line([0.0, 1.0, 2.0, 3.0])).findings) == 1


def test_a_map_covers_every_cell_once() -> None:
    values = [0.0, 1.0, 5.0, 5.0, 9.0]
    covered: dict[tuple[int, int], str] = {}
    for shade, path in map_page("gpt", line(values)).paths:
        for x, y, n in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path):
            for cell in range(int(x), int(x) + int(n)):
                assert covered.setdefault((cell, int(y)), shade) == shade
    assert len(covered) == 25
    assert {shade for (x, y), shade in covered.items() if x == y} == {"far0"}
    assert covered[0, 4] == covered[4, 0] == "far5"


@pytest.mark.parametrize("n", [0, 1])
def test_a_run_without_two_checkpoints_says_that_there_is_nothing_to_draw(n: int) -> None:
    page = PAGES.map("gpt", line([1.0] * n), NOW)
    assert "nothing to draw" in page
    assert '<svg class="way"' not in page


@given(st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(-1e9, 1e9)), max_size=8))
def test_all_places_lie_within_the_picture(points: list[tuple[float, float]]) -> None:
    found = replace(line([0.0] * len(points)), points=tuple(points))
    for dot in map_page("gpt", found).dots:
        assert math.isfinite(dot.x)
        assert math.isfinite(dot.y)
        assert 0 <= dot.x <= WIDTH
        assert 0 <= dot.y <= HEIGHT


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a\u202eb", "{{7*7}}"])
def test_no_name_adds_an_element_or_hidden_text(text: str) -> None:
    def elements(name: str) -> list[str]:
        pages = [
            PAGES.alerts(happenings(name), NOW),
            PAGES.compare(comparison(name), NOW),
            PAGES.map(name, line([0.0, 1.0], name), NOW),
        ]
        assert not any("\u202e" in html.unescape(page) for page in pages)
        return re.findall(r"<[a-z/!][a-z]*", "".join(pages))

    assert elements(text) == elements("plain")


@given(st.text(st.characters(), min_size=1))
def test_a_run_comes_back_from_the_address_of_its_map(run: str) -> None:
    assert run_of(map_url(run).partition("?")[2].encode()) == run


@pytest.mark.parametrize(
    "query", [b"", b"old=1", b"old=1&new=-2", b"old=1&new=1e3", b"old=1&old=2&new=3", b"old=" + b"9" * 30]
)
def test_two_checkpoints_are_named_by_two_numbers(query: bytes) -> None:
    assert pair_of(query) is None
    assert pair_of(b"old=1&new=22") == (1, 22)
