"""What every exit costs, beside what the papers print."""

from __future__ import annotations

from typing import Any

from trainer.config import Config
from trainer.models.cost import exit_costs, fvcore_costs
from trainer.recipes.catalogue import classes_of
from trainer.reporting.published import published_costs

NOTE = (
    "Mul-Adds by the papers' convention: convolutions, linear layers with bias, ReLU and pooling, one each, batch-norm "
    "free; cumulative over every block and every classifier up to the exit. fvcore counts convolutions and linear "
    "layers without bias alone: the difference is ReLU, pooling and the linear biases."
)


def cost_table(config: Config) -> dict[str, Any]:
    """{"recipe", "exits": [...]} of a recipe with the number of classes of its published form."""
    num_classes = classes_of(config)
    size = config.data.image_size
    costs = exit_costs(config.model, num_classes, size)
    checked = fvcore_costs(config.model, num_classes, size)
    published = published_costs(config.recipe)
    rows = []
    for cost, fvcore in zip(costs, checked, strict=True):
        params_m = mul_adds_g = None
        if published is not None:
            params_m = published.params_m[cost.exit - 1] if published.params_m else None
            mul_adds_g = published.mul_adds_g[cost.exit - 1] if published.mul_adds_g else None
        rows.append(
            {
                "exit": cost.exit,
                "params": cost.params,
                "mul_adds": cost.mul_adds,
                "published_params_m": params_m,
                "published_mul_adds_g": mul_adds_g,
                "fvcore_mul_adds": fvcore,
            }
        )
    return {"recipe": config.recipe, "num_classes": num_classes, "image_size": size, "exits": rows, "note": NOTE}
