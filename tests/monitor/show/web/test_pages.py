from __future__ import annotations

import hashlib
import importlib.resources
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.show.web.addresses import run_url
from monitor.show.web.pages import Pages, card, load_assets
from storage.records import AlertState, Severity
from tests.support.show_records import NOW, alert, failed, snapshot, summary, view

ASSETS = load_assets()
PAGES = Pages(ASSETS, refresh_seconds=5)
VOID = {"meta", "link", "br"}


class Document(HTMLParser):
    """The elements, texts and addresses of a page, read as a browser would."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.classes: Counter[str] = Counter()
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name in {"href", "src"}:
                self.addresses.append(value or "")
            if name == "class":
                self.classes.update((value or "").split())

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(re.sub(r"[ \n]+", " ", data).strip(" "))

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def overview(*views: object) -> Document:
    return Document(PAGES.overview(views, NOW))  # type: ignore[arg-type]


def test_a_healthy_run_shows_where_it_is_and_where_to_resume() -> None:
    document = overview(view("gpt"))
    assert not document.open
    assert "healthy" in document.texts
    assert "1\u202f200" in document.texts
    assert "40 s ago" in document.texts
    assert "524.5" in document.texts
    assert "Adam, over 100 steps" in document.texts
    assert "/ckpts/gpt/step-1200.safetensors" in document.texts
    assert document.elements["polyline"] == 3


def test_a_run_in_trouble_comes_first_with_what_happened() -> None:
    trouble = view("bad", healthy=False, health_reason="NaN in h.3", firing=(alert(run="bad"),), last_good=snapshot(9))
    text = overview(view("fine"), view("ended", run=summary("ended", active=False)), trouble).text
    assert text.index("bad") < text.index("fine") < text.index("ended")
    assert "17 elements are NaN, first in transformer.h.3.attn.weight" in text
    assert "step 900" in text


@pytest.mark.parametrize(
    ("changes", "tone", "state"),
    [
        ({}, "good", "healthy"),
        ({"run": summary(active=False)}, "quiet", "ended"),
        ({"firing": (alert(),)}, "critical", "critical"),
        ({"healthy": False, "firing": (alert(),)}, "critical", "critical"),
        ({"firing": (alert(severity=Severity.WARNING),)}, "warning", "warning"),
        ({"firing": (alert(severity=Severity.INFO),)}, "good", "healthy"),
        ({"healthy": False}, "critical", "not healthy"),
        ({"healthy": False, "newest": None, "recent": (), "last_good": None}, "quiet", "no checkpoint yet"),
    ],
)
def test_the_colour_of_a_card_is_that_of_its_worst_trouble(changes: dict[str, Any], tone: str, state: str) -> None:
    shown = card(view(**changes), NOW)
    assert (shown.tone, shown.state) == (tone, state)


def test_an_unreadable_checkpoint_says_why_and_keeps_the_numbers_before() -> None:
    shown = card(view(newest=failed(12), recent=(snapshot(11), failed(12)), last_good=snapshot(11)), NOW)
    assert shown.problem == "header promises 400 bytes more than the file has"
    assert {figure.label: figure.value for figure in shown.figures}["weight norm"] == "523.5"


def test_a_reason_that_an_alert_gives_is_not_said_twice() -> None:
    assert card(view(health_reason=alert().summary, healthy=False, firing=(alert(),)), NOW).reason == ""
    assert card(view(health_reason="something else", healthy=False, firing=(alert(),)), NOW).reason == "something else"


@pytest.mark.parametrize(("n_nonfinite", "note"), [(17, "not finite"), (0, "not known")])
def test_a_missing_number_says_why_it_is_missing(n_nonfinite: int, note: str) -> None:
    newest = snapshot(n_nonfinite=n_nonfinite, weight_norm=None, gradient=None, update_ratio=None)
    notes = {figure.label: figure.note for figure in card(view(newest=newest, recent=(newest,)), NOW).figures}
    assert [notes[label] for label in ("weight norm", "gradient norm", "update ratio")] == [note] * 3


def test_charts_show_the_current_attempt_only() -> None:
    recent = tuple(snapshot(i, attempt=1 if i < 10 else 2) for i in range(1, 13))
    shown = card(view(run=summary(attempt=2), recent=recent), NOW)
    charts = {figure.label: figure.chart for figure in shown.figures}
    weight_norm = charts["weight norm"]
    assert weight_norm is not None
    assert weight_norm.description == "3 checkpoints, from 522.5 to 524.5"
    assert shown.attempt == "attempt 2"


def test_an_empty_database_is_explained() -> None:
    assert "Nothing recorded yet" in overview().texts


def test_many_runs_are_cut_and_counted() -> None:
    document = overview(*(view(f"run{i}") for i in range(250)))
    assert document.elements["article"] == 200
    assert "50 more runs are not shown;" in document.texts


def test_a_run_page_lists_its_snapshots_newest_first_and_earlier_alerts() -> None:
    run = view(last_good=snapshot(11), firing=(alert(),))
    resolved = alert("stalled_run", state=AlertState.RESOLVED, resolved_at=NOW - 60, summary="no checkpoint for 14 min")
    snapshots = [snapshot(10), snapshot(11), snapshot(12, n_nonfinite=17, first_bad_tensor="h.3"), failed(13)]
    document = Document(PAGES.run(run, snapshots, [alert(), resolved], NOW))
    assert not document.open
    text = document.text
    assert text.index("1\u202f300") < text.index("gpt/step-1200.safetensors") < text.index("gpt/step-1000.safetensors")
    assert "truncated: header promises 400 bytes more than the file has" in document.texts
    assert "first bad tensor: h.3" in document.texts
    assert document.classes["tag"] == 1
    assert text.count("17 elements are NaN") == 1
    assert "no checkpoint for 14 min" in document.texts


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; DROP TABLE runs; --",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "</title></svg><style>*{display:none}</style>",
    "gnp.\u202etxt\u2066",
    "null\x00byte\x1b[31m",
    "\udcff\ud800",
    "../../etc/passwd",
    "a" * 5000,
]


def hostile_page(text: str) -> Document:
    strange = replace(snapshot(12, text), path=text, root=text, first_bad_tensor=text, n_nonfinite=1)
    firing = alert(text, run=text, summary=text, subject=text + "-other")
    run = view(
        text,
        run=summary(text, root=text),
        newest=strange,
        recent=(snapshot(11, text), strange),
        last_good=strange,
        health_reason=text,
        firing=(firing,),
    )
    resolved = replace(firing, state=AlertState.RESOLVED)
    return Document(PAGES.overview([run], NOW) + PAGES.run(run, [strange], [resolved], NOW))


PLAIN = hostile_page("plain")


def check_is_harmless(document: Document) -> None:
    assert document.elements == PLAIN.elements
    assert document.attributes == PLAIN.attributes
    assert not document.open
    assert all(
        re.match(r"/(runs/|static/|api/|metrics|alerts|map\?|tensor\?|$)", address) for address in document.addresses
    )
    hidden = {"\u202e", "\u2066", "\x00", "\x1b", "\u200b"}
    assert not any(character in text for text in document.texts for character in hidden)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:24])
def test_no_name_adds_an_element_an_attribute_or_hidden_text(text: str) -> None:
    document = hostile_page(text)
    check_is_harmless(document)


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(), min_size=1, max_size=60))
def test_any_name_is_harmless(text: str) -> None:
    document = hostile_page(text)
    assert document.attributes == PLAIN.attributes
    assert document.elements == PLAIN.elements


def test_hidden_characters_are_spelled_out() -> None:
    assert any("gnp.\\u202etxt" in text for text in overview(view("gnp.\u202etxt")).texts)


def test_a_page_has_no_inline_style_no_inline_script_and_loads_nothing_foreign() -> None:
    document = PLAIN
    scripts = re.findall(r"<script[^>]*>[^<]*</script>", PAGES.overview([], NOW))
    own = {asset.url for name, asset in ASSETS.items() if name.endswith(".js")}
    assert scripts == [
        f'<script src="{url}" defer></script>' for url in (ASSETS["htmx.min.js"].url, ASSETS["page.js"].url)
    ]
    assert {match for script in scripts for match in re.findall(r'src="([^"]+)"', script)} == own
    assert not document.elements["style"]
    assert not any(name == "style" or name.startswith("on") for name in document.attributes)
    style = ASSETS["style.css"].content.decode()
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_asks_again_only_when_told_to() -> None:
    asking = PAGES.overview([], NOW)
    assert 'hx-trigger="every 5s"' in asking
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in asking
    still = Pages(ASSETS, refresh_seconds=0).overview([], NOW)
    assert not re.search("http-equiv|hx-|<script", still)


def test_what_others_wrote_is_named_with_licence_and_checksum() -> None:
    table = importlib.resources.files("monitor.show.web").joinpath("static", "VENDORED.md").read_text()
    digest = hashlib.sha256(ASSETS["htmx.min.js"].content).hexdigest()
    assert f"| 0BSD | {digest} |" in table
    assert "Zero-Clause BSD" in table


def test_the_address_of_a_run_holds_any_name() -> None:
    assert run_url("exp 1/lr?x#y%") == "/runs/exp%201%2Flr%3Fx%23y%25"
    assert run_url("\udcff") == "/runs/%ED%B3%BF"


def test_every_class_used_is_styled_and_the_narrow_page_has_rules_of_its_own() -> None:
    style = ASSETS["style.css"].content.decode()
    assert "@media (max-width: 640px)" in style
    assert "@media (prefers-color-scheme: dark)" in style
    used = set(PLAIN.classes) - {"step", "when", "text", "quiet", "fine", "card"}
    assert {name for name in used if not re.search(rf"\.{re.escape(name)}\b", style)} == set()
