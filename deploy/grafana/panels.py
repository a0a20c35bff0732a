"""The few kinds of panel that the dashboards are made of, and what all dashboards share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statushistory,
    table,
    timeseries,
    xychart,
)
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS = 24  # of Grafana's grid

Query = tuple[str, str]  # PromQL, legend


def limits(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Colours from each value on; None for what is below all."""
    marks = [Threshold(value=value, color=color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(marks)


def bad_above(value: float) -> dashboard.ThresholdsConfig:
    return limits((None, "green"), (value, "red"))


def bad_below(value: float) -> dashboard.ThresholdsConfig:
    return limits((None, "red"), (value, "green"))


NEUTRAL = limits((None, "text"))


def lines(
    title: str,
    about: str,
    queries: Sequence[Query],
    unit: str = "short",
    *,
    width: int = 8,
    limit: float | None = None,
    stacked: bool = False,
    whole: bool = False,
    log: bool = False,
    band: Mapping[str, str] | None = None,
    each: str = "",
) -> timeseries.Panel:
    """Values over time.

    limit  a value to draw as a dashed red line; whole  begin at 0; band  {upper legend: lower legend} to fill between
    each   a variable: one panel for each of its values
    """
    panel = _begun(timeseries.Panel(), title, about, queries, unit, width).line_width(1).legend(_legend())
    panel = panel.tooltip(
        common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING)
    )
    if limit is not None:
        dashed = common.GraphThresholdsStyleConfig().mode(shapes.GraphTresholdsStyleMode.DASHED)
        panel = panel.thresholds(limits((None, "transparent"), (limit, "red"))).thresholds_style(dashed)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL)).fill_opacity(40)
    if whole:
        panel = panel.min(0)
    if log:
        panel = panel.scale_distribution(common.ScaleDistributionConfig().type(shapes.ScaleDistribution.LOG).log(10))
    for upper, lower in (band or {}).items():
        filled = [("custom.fillBelowTo", lower), ("custom.fillOpacity", 20)]
        panel = panel.override_by_name(upper, [DynamicConfigValue(id_val=key, value=value) for key, value in filled])
    return panel.repeat(each) if each else panel


def number(
    title: str,
    about: str,
    query: Query,
    unit: str = "short",
    *,
    colors: dashboard.ThresholdsConfig = NEUTRAL,
    decimals: int | None = None,
) -> stat.Panel:
    """One value, now, with its recent course."""
    panel = _begun(stat.Panel(), title, about, [query], unit, 3, height=4).thresholds(colors)
    panel = panel.color_mode(shapes.BigValueColorMode.VALUE).graph_mode(shapes.BigValueGraphMode.AREA)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel if decimals is None else panel.decimals(decimals)


def bars(
    title: str,
    about: str,
    query: Query,
    unit: str = "short",
    *,
    width: int = 8,
    colors: dashboard.ThresholdsConfig = NEUTRAL,
) -> bargauge.Panel:
    """Values now, a bar each."""
    panel = _begun(bargauge.Panel(), title, about, [query], unit, width, instant=True).thresholds(colors).min(0)
    panel = panel.orientation(shapes.VizOrientation.HORIZONTAL).display_mode(shapes.BarGaugeDisplayMode.BASIC)
    return panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def heat(title: str, about: str, query: Query, unit: str, low: float, high: float) -> statushistory.Panel:
    """A heat map: a row for each series, time along it, colour for the value from `low` (green) to `high` (red)."""
    panel = _begun(statushistory.Panel(), title, about, [query], unit, COLUMNS, height=9).min(low).max(high)
    panel = panel.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.CONTINUOUS_GR_YL_RD))
    return panel.show_value(shapes.VisibilityMode.NEVER).legend(_legend())


def rows(
    title: str, about: str, queries: Sequence[Query], units: Mapping[str, str], hidden: Sequence[str] = ()
) -> table.Panel:
    """A table: a row for each set of labels that the queries share, a column for each query, named by its legend.

    units  by column; hidden  columns that say nothing here
    """
    panel = _begun(table.Panel(), title, about, queries, "short", COLUMNS, instant=True)
    names = {f"Value #{_letter(place)}": legend for place, (_, legend) in enumerate(queries)}
    dropped = dict.fromkeys(("Time", *hidden), True)
    panel = panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    organized = {"renameByName": names, "excludeByName": dropped}
    panel = panel.with_transformation(DataTransformerConfig(id_val="organize", options=organized))
    for column, unit in units.items():
        panel = panel.override_by_name(column, [DynamicConfigValue(id_val="unit", value=unit)])
    return panel


def curve(title: str, about: str, x: Query, y: Query, join: str, units: tuple[str, str]) -> xychart.Panel:
    """y over x, a point for each value of the label `join` that both have."""
    panel = _begun(xychart.Panel(), title, about, [x, y], "short", 12, instant=True)
    joined = {"byField": join, "mode": "inner"}
    panel = panel.with_transformation(DataTransformerConfig(id_val="joinByField", options=joined))
    # Only the two numbers stay: Grafana then takes the first for x.
    keep = {"names": ["Value #A", "Value #B"]}
    panel = panel.with_transformation(DataTransformerConfig(id_val="filterFieldsByName", options={"include": keep}))
    names = {"renameByName": {"Value #A": x[1], "Value #B": y[1]}}
    panel = panel.with_transformation(DataTransformerConfig(id_val="organize", options=names))
    for (_, legend), unit in zip((x, y), units, strict=True):
        panel = panel.override_by_name(legend, [DynamicConfigValue(id_val="unit", value=unit)])
    return panel


# Annotations: metrics whose value is the Unix time at which something happened; Grafana wants milliseconds.
EVENTS = (
    ("Checkpoints", "earlybird_checkpoint_timestamp_seconds", "blue", "checkpoint of {{run}}"),
    ("Starts", "earlybird_start_timestamp_seconds", "orange", "start of {{run}}"),
    ("Epochs", "earlybird_epoch_timestamp_seconds", "purple", "epoch of {{run}}"),
)
_VALUES_OF = {
    "run": "label_values(earlybird_build_info, run)",
    "rank": 'label_values(earlybird_build_info{run=~"$run"}, rank)',
    "exit": 'label_values(earlybird_exit_accuracy_ratio{run=~"$run"}, exit)',
}


def board(
    uid: str,
    title: str,
    about: str,
    sections: Mapping[str, Sequence[Any]],
    *,
    variables: Sequence[str],
    many_runs: bool = False,
) -> dashboard.Dashboard:
    """A dashboard of named rows of panels.

    variables  of run, rank, exit; many_runs  whether several runs are chosen at once
    """
    built = dashboard.Dashboard(title).uid(uid).description(about).tags(["earlybird"]).refresh("15s")
    built = built.time("now-3h", "now").tooltip(DashboardCursorSync.CROSSHAIR).editable()
    built = built.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for name in variables:
        built = built.with_variable(_variable(name, many=many_runs if name == "run" else True))
    built = built.link(dashboard.DashboardLink("earlybird").tags(["earlybird"]).keep_time(True).include_vars(True))
    for name, metric, color, _ in EVENTS:
        note = dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(color)
        built = built.annotation(note.expr(f'1000 * max by (run) ({metric}{{run=~"$run"}})'))
    for section, panels in sections.items():
        built = built.with_row(dashboard.Row(section))
        for panel in panels:
            built = built.with_panel(panel)
    return built


def _variable(name: str, many: bool) -> dashboard.QueryVariable:
    variable = dashboard.QueryVariable(name).label(name.capitalize()).query(_VALUES_OF[name]).datasource(SOURCE)
    variable = variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.NUMERICAL_ASC)
    return variable.multi(True).include_all(True).all_value(".*") if many else variable


def _begun(
    panel: Any,
    title: str,
    about: str,
    queries: Sequence[Query],
    unit: str,
    width: int,
    *,
    height: int = 8,
    instant: bool = False,
) -> Any:
    panel = panel.title(title).description(about).datasource(SOURCE).unit(unit).span(width).height(height)
    for place, (expr, legend) in enumerate(queries):
        query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(_letter(place)).datasource(SOURCE)
        if instant:
            query = query.instant()
        if instant and len(queries) > 1:
            query = query.format(PromQueryFormat.TABLE)
        panel = panel.with_target(query)
    return panel


def _legend() -> common.VizLegendOptions:
    options = common.VizLegendOptions().display_mode(shapes.LegendDisplayMode.LIST)
    return options.placement(shapes.LegendPlacement.BOTTOM).show_legend(True)


def _letter(place: int) -> str:
    return "ABCDEFGHIJ"[place]
