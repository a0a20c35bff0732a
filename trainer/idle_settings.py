"""Settings that were changed and change nothing, since another setting leaves them aside."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.settings import setting_names

if TYPE_CHECKING:
    from trainer.config import Config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Needs:
    """A setting, where it has an effect, and what gives it one."""

    name: str
    counts: Callable[[Config], bool]
    remedy: str


_NEEDS = (
    _Needs("meta.difference", lambda c: c.meta.form == "finite_difference", "meta.form=finite_difference"),
    _Needs("health.max_rollbacks", lambda c: c.health.non_finite == "rollback", "health.non_finite=rollback"),
    _Needs(
        "health.max_skips",
        lambda c: c.health.non_finite == "skip" or c.precision.dtype == "fp16",
        "health.non_finite=skip",
    ),
    _Needs("telemetry.push_every", lambda c: bool(c.telemetry.pushgateway), "telemetry.pushgateway=URL"),
    _Needs("data.resize_size", lambda c: c.data.augmentation == "imagenet", "data.augmentation=imagenet"),
    _Needs("data.padding", lambda c: c.data.augmentation == "cifar", "data.augmentation=cifar"),
)
_OF_WEIGHTS = ("meta.", "weight_net.", "sample_weights.")


def refuse_idle(recipe: Config, config: Config) -> None:
    """ValueError for a setting in which `config` differs from its recipe without any effect.

    Those of the sample weights may differ in an unweighted run, whose command is best that of the weighted one: they
    are logged.
    """
    usual, chosen = setting_names(recipe), setting_names(config)
    changed = [name for name in chosen if chosen[name] != usual[name]]
    for needs in _NEEDS:
        if needs.name in changed and not needs.counts(config):
            raise ValueError(
                f"{needs.name} is {chosen[needs.name]}, which has no effect without {needs.remedy}; add that, or leave "
                f"{needs.name} at {usual[needs.name]}"
            )
    warmup, epochs = config.optim.warmup_epochs, config.run.epochs
    if warmup and warmup >= epochs:
        raise ValueError(
            f"optim.warmup_epochs is {warmup:g} and run.epochs {epochs}: the learning rate would never come to its "
            f"peak; make the warm-up shorter, or the run longer"
        )
    idle = [name for name in changed if name.startswith(_OF_WEIGHTS) and name != "sample_weights.enabled"]
    if idle and not config.sample_weights.enabled:
        logger.info("no effect in a run without sample weights: %s", ", ".join(idle))
