"""Commands that print what nets cost, beside the figures of others."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from trainer.cli_options import AsJson, RecipeName, Settings

NOT_PRINTED = ", of what the paper does not print"


def cost(recipe: RecipeName, settings: Settings = None, as_json: AsJson = False) -> None:
    """Cumulative parameters and Mul-Adds of every exit, beside what the paper prints or its authors' program counts."""
    from trainer.config import resolve
    from trainer.reporting.cost_table import cost_table
    from trainer.reporting.published import UNITS

    table = cost_table(resolve(recipe, settings or []))
    if as_json:
        print(json.dumps(table))
        return
    columns = [("exit", [str(row["exit"]) for row in table["exits"]])]
    for figure, name in (("params", "params"), ("mul_adds", "Mul-Adds")):
        theirs = table["theirs"][figure]
        unit = theirs["unit"] if theirs else "G" if table["exits"][-1][figure] > 2e8 else "M"
        columns.append((f"{name} {unit}", [f"{row[figure] / UNITS[unit]:.4f}" for row in table["exits"]]))
        if theirs:
            columns.append((theirs["source"], [f"{value:.{theirs['digits']}f}" for value in theirs["values"]]))
    columns.append((f"fvcore's {unit}", [f"{row['fvcore_mul_adds'] / UNITS[unit]:.4f}" for row in table["exits"]]))
    shown = Table(*(name for name, _ in columns))
    for cells in zip(*(values for _, values in columns), strict=True):
        shown.add_row(*cells)
    console = Console()
    console.print(shown)
    console.print(table["note"], highlight=False)


def reproduce_costs(as_json: bool) -> None:
    """Every cost that is known of a net, and ours. Exit code 1 where one differs at the digits given."""
    from trainer.reporting.cost_table import cost_rows

    rows = cost_rows()
    differing = [row for row in rows if row["difference"] != 0]
    if as_json:
        print(json.dumps({"table": "cost", "rows": rows, "differing": len(differing)}))
    else:
        for source in dict.fromkeys(row["source"] for row in rows):
            _show_costs(source, [row for row in rows if row["source"] == source])
        for row in differing:
            print(f"{_net(row)}, exit {row['exit']}: {row['figure']} {row['ours']} for {row['theirs']}")
        print(f"{len(rows)} figures, {len(differing)} differ at the digits given")
    if differing:
        raise typer.Exit(1)


def _show_costs(source: str, rows: list[dict[str, Any]]) -> None:
    """A line an exit: nets of any number of exits fit a narrow terminal."""
    from trainer.reporting.published import PROGRAM

    table = Table(
        title=f"Costs, {source}{NOT_PRINTED if source == PROGRAM else ''}", title_justify="left", show_lines=True
    )
    table.add_column("net", overflow="fold")
    for name in ("exit", f"params M\n{source.split()[-1]}", "ours", f"Mul-Adds\n{source.split()[-1]}", "ours"):
        table.add_column(name, justify="right", no_wrap=True)
    for net in dict.fromkeys(_net(row) for row in rows):
        of_net = [row for row in rows if _net(row) == net]
        params = [row for row in of_net if row["figure"] == "params M"]
        mul_adds = [row for row in of_net if row not in params]
        cells = [[str(row["exit"]) for row in params or mul_adds]]
        cells += [[f"{row[whose]:.{row['digits']}f}" for row in params] for whose in ("theirs", "ours")]
        cells += [
            [f"{row[whose]:.{row['digits']}f} {row['figure'][-1]}" for row in mul_adds] for whose in ("theirs", "ours")
        ]
        table.add_row(net, *("\n".join(lines) for lines in cells))
    Console(soft_wrap=True).print(table, highlight=False)


def _net(row: dict[str, Any]) -> str:
    return " ".join([row["recipe"], *row["settings"]])
