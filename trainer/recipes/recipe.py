"""What stands behind a recipe's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.config import Config


@dataclass(frozen=True)
class Recipe:
    """build        gives the configuration; its docstring says what it trains
    num_classes  of the set that the recipe is published for
    """

    build: Callable[[], Config]
    num_classes: int

    @property
    def first_line(self) -> str:
        """Of the docstring."""
        return (self.build.__doc__ or "").strip().splitlines()[0]
