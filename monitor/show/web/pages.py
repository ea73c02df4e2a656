"""The HTML pages: records to plain display values, display values to escaped HTML.

Templates decide nothing and compute nothing. Every text that reaches one is escaped, after its control and bidi
characters were made visible.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import monitor
from monitor.show.closer_views import DriftMap, Happenings, SnapshotComparison
from monitor.show.views import Course, RunView, TensorMoment
from monitor.show.visible_text import shortened, visible
from monitor.show.web import formatting
from monitor.show.web.addresses import map_url, run_url
from monitor.show.web.alerts_page import alerts_page
from monitor.show.web.compare_page import choices, compare_page, newest_of_others
from monitor.show.web.map_page import map_page
from monitor.show.web.run_course import run_course
from monitor.show.web.sparkline import Sparkline, sparkline
from monitor.show.web.tensor_page import tensor_page
from storage.records import Alert, AlertState, Severity, SnapshotStatus, StoredSnapshot

RUNS_SHOWN_MAX = 200
SNAPSHOTS_SHOWN_MAX = 200
ALERTS_SHOWN_MAX = 50
CHART_SNAPSHOTS_MAX = 80  # two pixels each on a narrow card
TEXT_CHARACTERS_MAX = 400
MEDIA_TYPES = {
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A file of the page, held in memory: no route reads a path that a client names."""

    url: str
    content: bytes
    media_type: str


def load_assets() -> dict[str, Asset]:
    """Return the static files by their plain name; the hash in each address lets browsers keep them for ever."""
    assets: dict[str, Asset] = {}
    for name, media_type in MEDIA_TYPES.items():
        content = files("monitor.show.web").joinpath("static", name).read_bytes()
        stem, _, suffix = name.rpartition(".")
        url = f"/static/{stem}.{hashlib.sha256(content).hexdigest()[:12]}.{suffix}"
        assets[name] = Asset(url=url, content=content, media_type=media_type)
    return assets


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number on a card, with where it came from and how it got there."""

    label: str
    value: str
    note: str
    chart: Sparkline | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertLine:
    """One alert as shown; `tone` is its severity's name."""

    tone: str
    state: str
    rule: str
    run: str
    summary: str
    subject: str
    step: str
    opened: str
    resolved: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One run as shown; `tone` is good, warning, critical or quiet (ended, or nothing measured yet)."""

    name: str
    url: str
    root: str
    tone: str
    state: str
    reason: str
    attempt: str
    figures: tuple[Figure, ...]
    last_good_step: str
    last_good_path: str
    is_last_good_newest: bool
    problem: str
    alerts: tuple[AlertLine, ...]
    n_alerts_more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRow:
    """One snapshot as shown."""

    tone: str
    step: str
    attempt: str
    written: str
    size: str
    weight_norm: str
    gradient_norm: str
    update_ratio: str
    n_nonfinite: str
    remark: str
    path: str
    short_path: str
    is_last_good: bool


class Pages:
    """Render the pages; holds the compiled templates and nothing else."""

    def __init__(self, assets: dict[str, Asset], refresh_seconds: int) -> None:
        self._environment = Environment(
            loader=PackageLoader("monitor.show.web"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_finalize,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(
            version=monitor.__version__,
            assets={name.replace(".", "_"): asset.url for name, asset in assets.items()},
            refresh_seconds=refresh_seconds,
        )

    def overview(self, views: Sequence[RunView], now: float) -> str:
        """Return the page of all runs, the ones in trouble first, then active ones, then the latest."""
        ordered = sorted(views, key=_urgency)
        cards = [card(view, now) for view in ordered[:RUNS_SHOWN_MAX]]
        return self._environment.get_template("overview.html").render(
            cards=cards,
            n_runs=len(views),
            n_more=max(0, len(views) - RUNS_SHOWN_MAX),
            n_active=sum(view.run.active for view in views),
            n_trouble=sum(_tone_and_state(view)[0] in {"critical", "warning"} for view in views),
            n_firing=sum(len(view.firing) for view in views),
            updated=formatting.timestamp(now),
        )

    def run(
        self,
        view: RunView,
        snapshots: Sequence[StoredSnapshot],
        alerts: Sequence[Alert],
        now: float,
        course: Course | None = None,
        *,
        views: Sequence[RunView] = (),
        style: Markup | None = None,
    ) -> str:
        """Return the page of one run: its card, its course, its alerts that do not fire now, its latest snapshots.

        `course` is that of the snapshots that `wanted_snapshots` names; without it there are no maps of layers.
        `views` are all runs, so that this one can be compared with another.
        With `style`, the text of the style sheet, the page stands alone: it asks no server and links nowhere.
        """
        good = None if view.last_good is None else view.last_good.id
        latest = snapshots[-SNAPSHOTS_SHOWN_MAX:]
        return self._environment.get_template("run.html").render(
            card=card(view, now),
            course=run_course(view, latest, alerts, course or Course(), linked=style is None),
            standalone=style,
            map_url=map_url(view.run.run) if style is None and len(latest) > 1 else "",
            choices=() if style is not None else choices(latest, _compared_with(view, latest)),
            others=newest_of_others(views, view.run.run),
            rows=[_history_row(snapshot, good) for snapshot in reversed(latest)],
            alerts=[_alert_line(alert, now) for alert in alerts if alert.state is not AlertState.FIRING],
            updated=formatting.timestamp(now),
        )

    def tensor(
        self,
        run: str,
        moments: Sequence[TensorMoment],
        names: Sequence[str],
        alerts: Sequence[Alert],
        now: float,
    ) -> str:
        """Return the page of one tensor; `moments` hold at least one, `names` are the run's parameters."""
        page = tensor_page(run, moments, names, alerts)
        return self._environment.get_template("tensor.html").render(page=page, updated=formatting.timestamp(now))

    def alerts(self, found: Happenings, now: float) -> str:
        """Return the page of incidents, what was sent about them, and silences."""
        page = alerts_page(found, now)
        return self._environment.get_template("alerts.html").render(page=page, updated=formatting.timestamp(now))

    def compare(self, found: SnapshotComparison, now: float) -> str:
        """Return the page of two snapshots side by side."""
        page = compare_page(found)
        return self._environment.get_template("compare.html").render(page=page, updated=formatting.timestamp(now))

    def map(self, run: str, found: DriftMap, now: float) -> str:
        """Return the page that shows a run from above."""
        page = map_page(run, found)
        return self._environment.get_template("map.html").render(page=page, updated=formatting.timestamp(now))

    def message(self, title: str, text: str) -> str:
        """Return a page that says one thing, for errors."""
        return self._environment.get_template("message.html").render(title=title, text=text)


def report(
    view: RunView, snapshots: Sequence[StoredSnapshot], alerts: Sequence[Alert], course: Course, now: float
) -> str:
    """Return the page of one run as a file of its own, to be read anywhere and without a network."""
    assets = load_assets()
    style = Markup(assets["style.css"].content.decode())  # noqa: S704 - our own file, not a text from outside
    return Pages(assets, refresh_seconds=0).run(view, snapshots, alerts, now, course, style=style)


def _compared_with(view: RunView, snapshots: Sequence[StoredSnapshot]) -> int | None:
    """Return what the newest snapshot is best compared with: the last good one, unless it is that itself."""
    measured = [snapshot.id for snapshot in snapshots if snapshot.n_tensors]
    good = None if view.last_good is None else view.last_good.id
    if good in measured[:-1]:
        return good
    return measured[-2] if len(measured) > 1 else None


def card(view: RunView, now: float) -> Card:
    """Return what is shown of one run at the Unix time `now`."""
    newest = view.newest
    good = view.last_good
    problem = newest.problem if newest is not None else None
    tone, state = _tone_and_state(view)
    shown = sorted(view.firing, key=lambda alert: (-alert.severity, alert.opened_at))[:ALERTS_SHOWN_MAX]
    return Card(
        name=view.run.run,
        url=run_url(view.run.run),
        root=view.run.root,
        tone=tone,
        state=state,
        reason=_reason(view),
        attempt=f"attempt {view.run.attempt}" if view.run.attempt > 1 else "",
        figures=_figures(view, now),
        last_good_step=formatting.integer(good.step) if good is not None and good.step is not None else "",
        last_good_path="" if good is None else good.path,
        is_last_good_newest=good is not None and newest is not None and good.id == newest.id,
        problem="" if problem is None or shown else shortened(problem.message, TEXT_CHARACTERS_MAX),
        alerts=tuple(_alert_line(alert, now) for alert in shown),
        n_alerts_more=len(view.firing) - len(shown),
    )


def _reason(view: RunView) -> str:
    """Return why the run is as it is, unless an alert on the card says it already."""
    said = any(view.health_reason in alert.summary for alert in view.firing)
    return "" if said else shortened(view.health_reason, TEXT_CHARACTERS_MAX)


def _tone_and_state(view: RunView) -> tuple[str, str]:
    worst = max((alert.severity for alert in view.firing), default=Severity.INFO)
    if worst >= Severity.CRITICAL:
        return "critical", "critical"
    if not view.healthy and view.newest is not None:
        return ("critical" if worst < Severity.WARNING else "warning"), "not healthy"
    if worst >= Severity.WARNING:
        return "warning", "warning"
    if view.newest is None:
        return "quiet", "no checkpoint yet"
    return ("good", "healthy") if view.run.active else ("quiet", "ended")


def _urgency(view: RunView) -> tuple[int, bool, float, str]:
    tone, _ = _tone_and_state(view)
    rank = {"critical": 0, "warning": 1}.get(tone, 2)
    return rank, not view.run.active, -(view.run.last_written_at or 0.0), view.run.run


def _figures(view: RunView, now: float) -> tuple[Figure, ...]:
    newest, measured = view.newest, view.measured
    snapshots = [s for s in view.recent if s.attempt == view.run.attempt][-CHART_SNAPSHOTS_MAX:]
    gradient = None if measured is None else measured.gradient

    def chart(value_of: Callable[[StoredSnapshot], float | None]) -> Sparkline | None:
        return sparkline([value_of(snapshot) for snapshot in snapshots])

    def note(value: float | None, text: str) -> str:
        if value is not None or measured is None:
            return text
        return "not finite" if measured.n_nonfinite else "not known"

    weight_norm = None if measured is None else measured.weight_norm
    gradient_norm = None if gradient is None else gradient.norm
    update_ratio = None if measured is None else measured.update_ratio
    written_at = view.run.last_written_at if newest is None else newest.written_at
    return (
        Figure(
            label="last step",
            value=formatting.integer(view.run.last_step),
            note=f"{formatting.count(view.run.n_snapshots)} checkpoint{'' if view.run.n_snapshots == 1 else 's'}",
        ),
        Figure(
            label="last checkpoint",
            value=formatting.ago(written_at, now),
            note="" if newest is None else formatting.size(newest.size_bytes),
        ),
        Figure(
            label="weight norm",
            value=formatting.number(weight_norm),
            note=note(weight_norm, "" if measured is None else f"{formatting.count(measured.n_parameters)} parameters"),
            chart=chart(lambda snapshot: snapshot.weight_norm),
        ),
        Figure(
            label="gradient norm",
            value=formatting.number(gradient_norm),
            note=note(
                gradient_norm, "" if gradient is None else _gradient_note(gradient.source, gradient.window_steps)
            ),
            chart=chart(lambda snapshot: None if snapshot.gradient is None else snapshot.gradient.norm),
        ),
        Figure(
            label="update ratio",
            value=formatting.number(update_ratio),
            note=note(update_ratio, "relative, per step"),
            chart=chart(lambda snapshot: snapshot.update_ratio),
        ),
    )


def _gradient_note(source: str, window_steps: int | None) -> str:
    if source == "adam_window" and window_steps is not None:
        return f"Adam, over {formatting.integer(window_steps)} steps"
    return {"adam_window": "Adam, window", "adam_ema": "Adam, moving average"}.get(source, source.replace("_", " "))


def _alert_line(alert: Alert, now: float) -> AlertLine:
    return AlertLine(
        tone=alert.severity.label,
        state=alert.state.value,
        rule=alert.rule,
        run=alert.run,
        summary=shortened(alert.summary, TEXT_CHARACTERS_MAX),
        subject=""
        if posixpath.basename(alert.subject) in alert.summary
        else shortened(alert.subject, TEXT_CHARACTERS_MAX),
        step=formatting.integer(alert.step) if alert.step is not None else "",
        opened=formatting.ago(alert.opened_at, now),
        resolved="" if alert.resolved_at is None else formatting.ago(alert.resolved_at, now),
    )


def _history_row(snapshot: StoredSnapshot, good_id: int | None) -> HistoryRow:
    failed = snapshot.status is SnapshotStatus.FAILED
    severity = snapshot.worst_severity
    bad = snapshot.first_bad_tensor
    if failed:
        remark = "unreadable" if snapshot.problem is None else f"{snapshot.problem.kind}: {snapshot.problem.message}"
    else:
        remark = f"first bad tensor: {bad}" if bad is not None else ""
    tone = "critical" if snapshot.n_nonfinite else "warning" if failed else "good"
    if severity is not None and severity >= Severity.CRITICAL:
        tone = "critical"
    elif severity is not None and severity >= Severity.WARNING and tone == "good":
        tone = "warning"
    return HistoryRow(
        tone=tone,
        step=formatting.integer(snapshot.step),
        attempt=str(snapshot.attempt),
        written=formatting.timestamp(snapshot.written_at),
        size=formatting.size(snapshot.size_bytes),
        weight_norm=formatting.number(snapshot.weight_norm),
        gradient_norm=formatting.number(None if snapshot.gradient is None else snapshot.gradient.norm),
        update_ratio=formatting.number(snapshot.update_ratio),
        n_nonfinite=formatting.NOTHING if failed else formatting.integer(snapshot.n_nonfinite),
        remark=shortened(remark, TEXT_CHARACTERS_MAX),
        path=snapshot.path,
        short_path=snapshot.path.removeprefix(snapshot.root.rstrip("/") + "/"),
        is_last_good=snapshot.id == good_id,
    )


def _finalize(value: object) -> object:
    """Make hidden characters visible in every text that a template prints; markup made by us stays."""
    if isinstance(value, Markup):
        return value
    return visible(value) if isinstance(value, str) else value
