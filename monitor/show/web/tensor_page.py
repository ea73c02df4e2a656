"""What the page of one tensor shows: every statistic, its course, its distribution; plain display values, pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from monitor.show.grouping import layer_group
from monitor.show.views import TensorMoment
from monitor.show.web import formatting
from monitor.show.web.addresses import run_url, tensor_url
from monitor.show.web.distribution import Bands, quantile_bands, ridgeline
from monitor.show.web.run_course import Chart, chart_of
from monitor.show.web.timeline import Mark, marks, timeline
from storage.records import Alert, TensorSummary

MOMENTS_SHOWN_MAX = 120
SIBLINGS_SHOWN_MAX = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One statistic now and at the first checkpoint shown."""

    label: str
    now: str
    first: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeLine:
    """One ridge as shown."""

    step: str
    area: str
    tone: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPage:
    """Everything on the page; `tone` is critical where the newest value is not finite, else good."""

    name: str
    run: str
    run_url: str
    tone: str
    state: str
    about: str
    first_step: str
    last_step: str
    facts: tuple[Fact, ...]
    charts: tuple[Chart, ...]
    marks: tuple[Mark, ...]
    bands: Bands | None
    band_ends: tuple[str, str]
    band_steps: tuple[str, str]
    is_ridge_stretched: bool
    ridges: tuple[RidgeLine, ...]
    ridge_ends: tuple[str, str]
    siblings: tuple[tuple[str, str], ...]


def tensor_page(
    run: str, moments: Sequence[TensorMoment], names: Sequence[str], alerts: Sequence[Alert] = ()
) -> TensorPage:
    """Return the page of the tensor that `moments` (at least one, oldest first) are of.

    `names` are the run's parameters; those of the same layer become links. `alerts` are the run's.
    """
    newest, oldest = moments[-1].tensor, moments[0].tensor
    name = newest.name
    bands, ridges = quantile_bands(moments), ridgeline(moments)
    snapshots = [moment.snapshot for moment in moments]
    own = [alert for alert in alerts if alert.subject == name]
    drawn = marks(snapshots, own) if len(snapshots) > 1 else ()
    shape = " \N{MULTIPLICATION SIGN} ".join(map(str, newest.shape)) or "scalar"
    siblings = [other for other in names if layer_group(other) == layer_group(name) and other != name]
    return TensorPage(
        name=name,
        run=run,
        run_url=run_url(run),
        tone="critical" if newest.n_nonfinite else "good",
        state=f"{formatting.integer(newest.n_nonfinite)} not finite" if newest.n_nonfinite else "finite",
        about=f"{newest.kind.value}, {newest.dtype}, {shape}, {formatting.count(newest.n_elements)} elements",
        first_step=formatting.integer(snapshots[0].step),
        last_step=formatting.integer(snapshots[-1].step),
        facts=_facts(newest, oldest, moments),
        charts=_charts(moments, drawn),
        marks=drawn,
        bands=bands,
        band_ends=("", "") if bands is None else (formatting.number(bands.low), formatting.number(bands.high)),
        band_steps=("", "")
        if bands is None
        else (formatting.integer(bands.first_step), formatting.integer(bands.last_step)),
        is_ridge_stretched=ridges is not None and ridges.is_stretched,
        ridges=()
        if ridges is None
        else tuple(
            RidgeLine(
                step=formatting.integer(ridge.step),
                area=ridge.area,
                tone="critical" if ridge.is_bad else "",
                description=ridge.description,
            )
            for ridge in ridges.ridges
        ),
        ridge_ends=("", "") if ridges is None else (formatting.number(ridges.low), formatting.number(ridges.high)),
        siblings=tuple((other, tensor_url(run, other)) for other in siblings[:SIBLINGS_SHOWN_MAX]),
    )


def _charts(moments: Sequence[TensorMoment], drawn: tuple[Mark, ...]) -> tuple[Chart, ...]:
    by_id = {moment.snapshot.id: moment for moment in moments}
    snapshots = [moment.snapshot for moment in moments]

    def drift(moment: TensorMoment) -> float | None:
        return None if moment.drift is None else moment.drift.relative_l2

    values: tuple[tuple[str, Callable[[TensorMoment], float | None]], ...] = (
        ("norm (L2)", lambda moment: moment.tensor.norm_l2),
        ("relative change since the checkpoint before", drift),
        ("largest magnitude", lambda moment: moment.tensor.abs_max),
        ("standard deviation", lambda moment: moment.tensor.std),
    )
    lines = [
        timeline(label, snapshots, lambda snapshot, of=of: of(by_id[snapshot.id]), drawn)  # type: ignore[misc]
        for label, of in values
    ]
    return tuple(chart_of(line) for line in lines if line is not None)


def _facts(newest: TensorSummary, oldest: TensorSummary, moments: Sequence[TensorMoment]) -> tuple[Fact, ...]:
    numbers: tuple[tuple[str, Callable[[TensorSummary], float | None]], ...] = (
        ("mean", lambda t: t.mean),
        ("standard deviation", lambda t: t.std),
        ("minimum", lambda t: t.min),
        ("maximum", lambda t: t.max),
        ("largest magnitude", lambda t: t.abs_max),
        ("norm (L1)", lambda t: t.norm_l1),
        ("norm (L2)", lambda t: t.norm_l2),
    )
    counts: tuple[tuple[str, Callable[[TensorSummary], int]], ...] = (
        ("zeros", lambda t: t.n_zero),
        ("NaN", lambda t: t.n_nan),
        ("+infinity", lambda t: t.n_posinf),
        ("-infinity", lambda t: t.n_neginf),
    )
    facts = [
        Fact(label=label, now=formatting.number(of(newest)), first=formatting.number(of(oldest)))
        for label, of in numbers
    ]
    facts += [
        Fact(label=label, now=formatting.integer(of(newest)), first=formatting.integer(of(oldest)))
        for label, of in counts
    ]
    facts += [
        Fact(
            label=f"quantile {key}",
            now=formatting.number(value),
            first=formatting.number(oldest.quantiles.get(key)),
        )
        for key, value in newest.quantiles.items()
    ]
    now, first = moments[-1].drift, moments[0].drift
    for label, key in (("relative change", "relative_l2"), ("cosine distance", "cosine_distance")):
        facts.append(
            Fact(
                label=f"{label} since the checkpoint before",
                now=formatting.number(None if now is None else getattr(now, key)),
                first=formatting.number(None if first is None else getattr(first, key)),
            )
        )
    return tuple(facts)
