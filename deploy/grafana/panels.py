"""How the panels of the dashboards look: one function a kind of panel, with the defaults that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common as common_builder
from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "ckptwatch"
GREEN, ORANGE, RED, BLUE = "green", "orange", "red", "blue"
Limits = Sequence[tuple[float | None, str]]
BAD_ABOVE_ZERO: Limits = ((None, GREEN), (1, RED))
GOOD_AT_ONE: Limits = ((None, RED), (1, GREEN))


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression and how its series are called."""

    expr: str
    legend: str = ""
    is_table: bool = False


def _target(query: Query, index: int, *, instant: bool) -> prometheus.Dataquery:
    target = prometheus.Dataquery().datasource(SOURCE).expr(query.expr).ref_id(chr(ord("A") + index))
    target = target.legend_format(query.legend or "__auto")
    if query.is_table:
        target = target.format(PromQueryFormat.TABLE)
    return target.instant() if instant else target.range()


def _filled(panel: Any, title: str, description: str, unit: str, queries: Sequence[Query], *, instant: bool) -> Any:
    panel = panel.title(title).description(description).unit(unit).datasource(SOURCE)
    for index, query in enumerate(queries):
        panel = panel.with_target(_target(query, index, instant=instant))
    return panel


def _thresholds(limits: Limits) -> board.ThresholdsConfig:
    steps = [model.Threshold(value=value, color=colour) for value, colour in limits]
    return board.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def number(
    title: str, description: str, expr: str, *, unit: str = "short", limits: Limits = ((None, BLUE),), span: int = 4
) -> stat.Panel:
    """Return a single number."""
    panel: stat.Panel = _filled(stat.Panel(), title, description, unit, [Query(expr=expr)], instant=True)
    panel = panel.thresholds(_thresholds(limits)).color_scheme(_colour("thresholds")).span(span).height(4)
    panel = panel.no_value("none")
    reduce = common_builder.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
    return panel.reduce_options(reduce).color_mode(common.BigValueColorMode.VALUE).graph_mode(_no_graph())


def lines(
    title: str,
    description: str,
    queries: Query | Sequence[Query],
    *,
    unit: str = "short",
    logarithmic: bool = False,
    span: int = 12,
) -> timeseries.Panel:
    """Return lines over time, in steps: between two checkpoints nothing is known to change."""
    given = [queries] if isinstance(queries, Query) else list(queries)
    panel: timeseries.Panel = _filled(timeseries.Panel(), title, description, unit, given, instant=False)
    if logarithmic:
        scale = common_builder.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    legend = (
        common_builder.VizLegendOptions().display_mode(common.LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"])
    )
    tooltip = common_builder.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
    panel = panel.legend(legend.placement(common.LegendPlacement.BOTTOM).show_legend(True)).tooltip(tooltip)
    return panel.line_interpolation(common.LineInterpolation.STEP_AFTER).line_width(1).span(span).height(9)


def states(title: str, description: str, query: Query, *, words: dict[str, tuple[str, str]]) -> statetimeline.Panel:
    """Return one band a series; `words` maps a value to what it is called and its colour."""
    panel: statetimeline.Panel = _filled(statetimeline.Panel(), title, description, "none", [query], instant=False)
    options = {
        value: model.ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, (text, colour)) in enumerate(words.items())
    }
    mapping = model.ValueMap(options=options)
    return panel.mappings([mapping]).merge_values(True).row_height(0.8).fill_opacity(80).span(24).height(9)


def rows(title: str, description: str, queries: Sequence[Query], *, names: dict[str, str]) -> table.Panel:
    """Return a table with one row a run; `names` maps the columns that are shown to their headings."""
    panel: table.Panel = _filled(table.Panel(), title, description, "none", queries, instant=True)
    panel = panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
    order = {name: index for index, name in enumerate(names)}
    keep = {"include": {"names": list(names)}}
    panel = panel.with_transformation(model.DataTransformerConfig(id_val="filterFieldsByName", options=keep))
    organised = {"indexByName": order, "renameByName": names}
    panel = panel.with_transformation(model.DataTransformerConfig(id_val="organize", options=organised))
    return panel.span(24).height(9)


def grid(title: str, description: str, query: Query, *, unit: str = "short") -> heatmap.Panel:
    """Return time by series, the value as a colour on an exponential scale."""
    panel: heatmap.Panel = _filled(heatmap.Panel(), title, description, unit, [query], instant=False)
    return panel.calculate(False).cell_gap(1).span(24).height(10)


def _colour(mode: str) -> board.FieldColor:
    return board.FieldColor().mode(model.FieldColorModeId(mode))


def _no_graph() -> common.BigValueGraphMode:
    return common.BigValueGraphMode.NONE


def variable(name: str, label: str, query: str, *, multi: bool) -> board.QueryVariable:
    """Return a variable whose values are those of a label; with `multi` several or all can be chosen."""
    made = board.QueryVariable(name).label(label).datasource(SOURCE).query(query)
    made = made.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_ASC)
    return made.multi(multi).include_all(multi).all_value(".*") if multi else made


def dashboard(uid: str, title: str, description: str) -> board.Dashboard:
    """Return an empty dashboard with what all have: data source, job, and a menu to the others."""
    made = board.Dashboard(title).uid(uid).description(description).tags([TAG]).readonly().timezone("browser")
    made = made.refresh("1m").time("now-24h", "now").tooltip(model.DashboardCursorSync.CROSSHAIR)
    links = board.DashboardLink("ckptwatch").type(model.DashboardLinkType.DASHBOARDS).tags([TAG])
    made = made.link(links.as_dropdown(True).include_vars(True).keep_time(True))
    source = board.DatasourceVariable("datasource").label("Data source").type("prometheus")
    job = variable("job", "Job", "label_values(ckptwatch_build_info, job)", multi=True)
    return made.with_variable(source).with_variable(job)
