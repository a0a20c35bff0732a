"""A run's whole configuration: the groups, composed."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataloading.config import DataConfig
from trainer.idle_settings import refuse_idle
from trainer.learning.distillation import DistillationConfig
from trainer.learning.meta_gradient import MetaConfig
from trainer.learning.optim import OptimConfig
from trainer.learning.precision import PrecisionConfig
from trainer.learning.sample_weights import SampleWeightsConfig
from trainer.models.config import ModelConfig
from trainer.models.weight_net import WeightNetConfig
from trainer.run.checkpoint import CheckpointConfig
from trainer.run.health import HealthConfig
from trainer.run.manifest import flush_folder, write_file
from trainer.run.origin import OriginConfig
from trainer.run.schedule import RunConfig
from trainer.settings import apply_settings, from_dict
from trainer.telemetry.prometheus import TelemetryConfig


@dataclass(frozen=True)
class Config:
    """What a recipe returns, `--set` changes and the run folder keeps: enough to repeat the run."""

    recipe: str
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sample_weights: SampleWeightsConfig = field(default_factory=SampleWeightsConfig)
    weight_net: WeightNetConfig = field(default_factory=WeightNetConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    run: RunConfig = field(default_factory=RunConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    origin: OriginConfig = field(default_factory=OriginConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must lie in [0, 2^63)")
        if self.meta.form == "double_backward" and self.optim.accumulation > 1 and self.sample_weights.enabled:
            raise ValueError(
                f"meta.form is double_backward, whose graph must hold the whole half at once, with optim.accumulation "
                f"{self.optim.accumulation}; use optim.accumulation=1 or meta.form=exact"
            )
        self._check_imta()

    def check_ranks(self, world_size: int) -> None:
        """ValueError where the settings, which fit by themselves, do not fit so many ranks."""
        micro_batch, parts = self.optim.micro_batch, self.optim.micro_batches(world_size)
        if self.meta.form == "double_backward" and self.sample_weights.enabled and micro_batch and parts > 1:
            share = self.optim.update_batch // world_size
            raise ValueError(
                f"meta.form is double_backward, whose graph must hold the whole half at once, with optim.micro_batch "
                f"{micro_batch}, which cuts a rank's {share} images into {parts} parts; use optim.micro_batch=0 or "
                f"meta.form=exact"
            )

    def _check_imta(self) -> None:
        imta = self.model.imta
        if imta == "pretrain" and self.meta.form == "finite_difference" and self.sample_weights.enabled:
            raise ValueError(
                "meta.form is finite_difference, which takes gradients from losses, with model.imta pretrain, which "
                "rescales gradients; use meta.form=exact"
            )
        if imta == "finetune" and self.optim.recompute:
            raise ValueError("optim.recompute is on, but model.imta finetune keeps no activations: turn it off")
        if imta != "finetune" and self.distillation != DistillationConfig():
            raise ValueError(
                f"distillation is for model.imta finetune, and model.imta is {imta}; leave it at its defaults, or "
                f"train a recipe ...-imta-finetune"
            )
        if imta != "finetune" and self.origin != OriginConfig():
            raise ValueError(
                f"--from {self.origin.run} is for recipes ...-imta-finetune (model.imta is {imta}); leave it out"
            )


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values of a config, as JSON holds them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def write_config(config: Config, path: Path) -> None:
    """Write `config` to `path`, whole or not at all, even if the machine dies; OSError where the disk refuses."""
    temporary = path.with_suffix(".tmp")
    write_file(temporary, [json.dumps(to_dict(config), indent=1).encode() + b"\n"])
    temporary.replace(path)
    flush_folder(path.parent)


def read_config(path: Path) -> Config:
    """The config of a run folder's config.json; ValueError naming the file where it cannot be read."""
    try:
        return from_dict(Config, json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a readable run configuration ({error}); restore it from a checkpoint's "
            f"manifest.json, or give --run another folder"
        ) from error


def resolve(recipe_name: str, settings: list[str]) -> Config:
    """A recipe with `--set` overrides applied; ValueError for an unknown name, a value it cannot take, or one that has
    no effect."""
    from trainer.recipes.catalogue import recipe  # the recipes are built of Config

    usual = recipe(recipe_name)
    config = apply_settings(usual, settings)
    refuse_idle(usual, config)
    return config
