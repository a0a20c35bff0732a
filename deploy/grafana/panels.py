"""The few kinds of panels that the dashboards are made of, and what all dashboards share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
    xychart,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.common import (
    BarGaugeDisplayMode,
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    StackingMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.dashboard import Panel as PanelModel
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.xychart import ScatterShow, SeriesMapping

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
Panel = Builder[PanelModel]
Query = tuple[str, str]  # PromQL, legend
AnyPanel = TypeVar("AnyPanel", stat.Panel, timeseries.Panel, bargauge.Panel, heatmap.Panel, table.Panel, xychart.Panel)


def number(title: str, unit: str, expr: str, text: str, *, below: float | None = None, width: int = 3) -> Panel:
    """The newest value, large; red below `below`."""
    panel = _titled(stat.Panel(), title, text, unit, width, 4).graph_mode(BigValueGraphMode.AREA)
    steps = [Threshold(value=None, color="green")]
    if below is not None:
        steps = [Threshold(value=None, color="red"), Threshold(value=below, color="green")]
    panel.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    return _asking(panel, [(expr, "")])


def lines(
    title: str,
    unit: str,
    queries: Sequence[Query],
    text: str,
    *,
    stacked: bool = False,
    log: bool = False,
    width: int = 12,
) -> Panel:
    """Values over time; gaps of a few scrapes are bridged, as most values move at log steps alone."""
    panel = _titled(timeseries.Panel(), title, text, unit, width, 8).span_nulls(120_000.0).line_width(1.5)
    panel.show_points(VisibilityMode.NEVER).legend(
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.TABLE if width >= 12 else LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull"])
    )
    if log:
        panel.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10.0))
    if stacked:
        panel.fill_opacity(40.0).stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    return _asking(panel, queries)


def bars(title: str, unit: str, queries: Sequence[Query], text: str, *, width: int = 8) -> Panel:
    """The newest value of each series as a bar."""
    panel = _titled(bargauge.Panel(), title, text, unit, width, 8)
    panel.orientation(VizOrientation.HORIZONTAL).display_mode(BarGaugeDisplayMode.GRADIENT)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return _asking(panel, queries)


def heat(title: str, unit: str, query: Query, text: str, *, width: int = 24) -> Panel:
    """A row for each series, a colour for its value."""
    panel = _titled(heatmap.Panel(), title, text, unit, width, 9).calculate(False)
    panel.color(heatmap.HeatmapColorOptions().scheme("Oranges").steps(64))
    panel.cell_values(heatmap.CellValues().unit(unit))
    return _asking(panel, [query])


def rows(
    title: str,
    columns: Sequence[tuple[str, str, str]],
    text: str,
    *,
    by: str,
    labels: Sequence[str] = (),
    width: int = 24,
) -> Panel:
    """A table: one row for each value of the label `by`, one column for each (PromQL, heading, unit).

    labels  that are shown beside it
    """
    panel = _titled(table.Panel(), title, text, "short", width, 8)
    headings = {f"Value #{letter}": heading for letter, (_, heading, _) in zip("ABCDEFGH", columns, strict=False)}
    panel.transformations(
        [
            DataTransformerConfig("joinByField", options={"byField": by, "mode": "outer"}),
            DataTransformerConfig("filterFieldsByName", options={"include": {"names": [by, *labels, *headings]}}),
            DataTransformerConfig("organize", options={"renameByName": headings}),
        ]
    )
    for _, heading, unit in columns:
        panel.override_by_name(heading, [DynamicConfigValue(id_val="unit", value=unit)])
    return _asking(panel, [(expr, heading) for expr, heading, _ in columns], as_table=True)


def curve(title: str, x: Query, y: Query, text: str, *, by: str, units: tuple[str, str], width: int = 12) -> Panel:
    """Points of one query against those of another with the same value of the label `by`, joined by a line."""
    panel = _titled(xychart.Panel(), title, text, units[1], width, 8)
    panel.transformations(
        [
            DataTransformerConfig("joinByField", options={"byField": by, "mode": "outer"}),
            DataTransformerConfig(
                "organize",
                options={
                    "excludeByName": {"Time": True, "Time 1": True, "Time 2": True},
                    "renameByName": {"Value #A": x[1], "Value #B": y[1]},
                },
            ),
            DataTransformerConfig("sortBy", options={"sort": [{"field": x[1]}]}),
        ]
    )
    panel.series_mapping(SeriesMapping.MANUAL).show(ScatterShow.POINTS_AND_LINES)
    panel.series([xychart.ScatterSeriesConfig().x(x[1]).y(y[1]).name(y[1])])
    panel.override_by_name(x[1], [DynamicConfigValue(id_val="unit", value=units[0])])
    return _asking(panel, [x, y], as_table=True)


def start(title: str, uid: str, text: str, *, of_one_run: bool) -> dashboard.Dashboard:
    """A dashboard without panels: its variables, its marks of checkpoints, restarts and epochs, links to the others."""
    board = dashboard.Dashboard(title).uid(uid).tags(["earlybird"]).description(text)
    board.refresh("10s").time("now-1h", "now").tooltip(DashboardCursorSync.CROSSHAIR).readonly()
    board.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    board.with_variable(_variable("run", "label_values(earlybird_build_info, run)", many=not of_one_run))
    board.with_variable(_variable("rank", 'label_values(earlybird_build_info{run=~"$run"}, rank)', many=True))
    board.with_variable(_variable("exit", 'label_values(earlybird_exit_accuracy_ratio{run=~"$run"}, exit)', many=True))
    board.link(
        dashboard.DashboardLink("earlybird")
        .type(DashboardLinkType.DASHBOARDS)
        .tags(["earlybird"])
        .as_dropdown(False)
        .include_vars(True)
        .keep_time(True)
    )
    return board


# Marks lie where the value of the gauge says, in milliseconds: no mark is lost between two scrapes, none drawn twice.
MARKS = (
    ("Checkpoints", "green", "earlybird_checkpoint_timestamp_seconds"),
    ("Starts", "red", "earlybird_start_timestamp_seconds"),
    ("Epochs", "blue", "earlybird_epoch_timestamp_seconds"),
)


def marks() -> list[dict[str, Any]]:
    """Annotations, for which the SDK has no Prometheus form."""
    return [
        {
            "name": name,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "enable": True,
            "hide": False,
            "iconColor": colour,
            "expr": f'max by (run) ({metric}{{run=~"$run"}}) * 1000',
            "step": "15s",
            "titleFormat": name,
            "textFormat": "{{run}}",
            "useValueForTime": True,
        }
        for name, colour, metric in MARKS
    ]


def _variable(name: str, query: str, *, many: bool) -> dashboard.QueryVariable:
    variable = dashboard.QueryVariable(name).label(name.capitalize()).query(query).datasource(SOURCE)
    variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.NUMERICAL_ASC)
    return variable.multi(True).include_all(True) if many else variable


def _titled(panel: AnyPanel, title: str, text: str, unit: str, width: int, height: int) -> AnyPanel:
    return panel.title(title).description(text).unit(unit).datasource(SOURCE).span(width).height(height)


def _asking(panel: AnyPanel, queries: Sequence[Query], *, as_table: bool = False) -> AnyPanel:
    for letter, (expr, legend) in zip("ABCDEFGH", queries, strict=False):
        query = prometheus.Dataquery().expr(expr).ref_id(letter).legend_format(legend)
        if as_table:
            query.instant().format(PromQueryFormat.TABLE)
        panel.with_target(query)
    return panel
