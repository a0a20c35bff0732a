"""What every exit costs, beside what the paper prints or its authors' program counts."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from trainer.config import Config, resolve
from trainer.models.cost import exit_costs, fvcore_costs
from trainer.recipes.catalogue import classes_of
from trainer.reporting.published import COSTS, UNITS, NetCost

NOTE = (
    "Mul-Adds by the papers' convention: convolutions, linear layers with bias, ReLU and pooling, one each, batch-norm "
    "free; cumulative over every block and every classifier up to the exit. fvcore counts convolutions and linear "
    "layers without bias alone: the difference is ReLU, pooling and the linear biases."
)


def cost_table(config: Config) -> dict[str, Any]:
    """{"recipe", "exits": [...], "theirs": {"params", "mul_adds"}} of a recipe with the number of classes of its
    published form; theirs[figure] is a NetCost of this very net, None where nobody gave one."""
    num_classes = classes_of(config)
    size = config.data.image_size
    costs = exit_costs(config.model, num_classes, size)
    rows = [
        {"exit": cost.exit, "params": cost.params, "mul_adds": cost.mul_adds, "fvcore_mul_adds": fvcore}
        for cost, fvcore in zip(costs, fvcore_costs(config.model, num_classes, size), strict=True)
    ]
    known = {cost.figure: asdict(cost) for cost in known_costs(config)}
    theirs = {figure: known.get(figure) for figure in ("params", "mul_adds")}
    return {"recipe": config.recipe, "num_classes": num_classes, "image_size": size, "exits": rows} | {
        "theirs": theirs,
        "note": NOTE,
    }


def known_costs(config: Config) -> list[NetCost]:
    """What others say of the net of `config`: the same model, classes and image size, whatever the recipe."""
    return [cost for cost in COSTS if _net(resolve(cost.recipe, list(cost.settings))) == _net(config)]


def cost_rows() -> list[dict[str, Any]]:
    """Every known cost and ours at as many digits, a row an exit: {"recipe", "settings", "source", "figure", "exit",
    "theirs", "ours", "difference", "digits"}; figure is params M, Mul-Adds M or Mul-Adds G."""
    rows, counted = [], {}
    for cost in COSTS:
        net = (cost.recipe, *cost.settings)
        if net not in counted:
            config = resolve(cost.recipe, list(cost.settings))
            counted[net] = exit_costs(config.model, classes_of(config), config.data.image_size)
        for ours, theirs in zip(counted[net], cost.values, strict=True):
            rounded = round(getattr(ours, cost.figure) / UNITS[cost.unit], cost.digits)
            rows.append(
                {
                    "recipe": cost.recipe,
                    "settings": list(cost.settings),
                    "source": cost.source,
                    "figure": f"{'params' if cost.figure == 'params' else 'Mul-Adds'} {cost.unit}",
                    "exit": ours.exit,
                    "theirs": theirs,
                    "ours": rounded,
                    "difference": round(rounded - theirs, cost.digits),
                    "digits": cost.digits,
                }
            )
    return rows


def _net(config: Config) -> tuple[Any, ...]:
    """What a net's cost follows from."""
    return replace(config.model, num_classes=0), classes_of(config), config.data.image_size
