"""Run by test_ranks.py, alone or under torchrun: a few weighted iterations on this rank's share of fixed batches."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataloading.batch import Batch
from dataloading.config import DataConfig
from tests.trainer.learning.without_code import without_code
from trainer.config import Config
from trainer.learning.collectives import average_batch_norm_statistics
from trainer.learning.forward import HalfForward
from trainer.learning.meta_gradient import MetaConfig, meta_step
from trainer.learning.optim import OptimConfig
from trainer.learning.precision import PrecisionConfig
from trainer.learning.sample_weights import SampleWeightsConfig
from trainer.learning.state import Progress
from trainer.learning.train_step import train_step
from trainer.models.config import msdnet_cifar
from trainer.models.weight_net import WeightNetConfig
from trainer.run.build import build_state
from trainer.run.distributed import process_group
from trainer.run.snapshot import take

NET = dataclasses.replace(msdnet_cifar(3), first_channels=8, growth=4, classifier_channels=16)
UNREAD = dataclasses.replace(NET, step_mode="even", base=2, step=1)

CASES: dict[str, dict[str, Any]] = {
    "exact-mat": {},
    "exact-row-nesterov": {"centre": "row", "nesterov": True},
    "exact-col-accumulated": {"centre": "col", "accumulation": 2},
    "exact-mat-accumulated": {"accumulation": 4},
    "channels-last": {"channels_last": True},
    "compiled": {"compile": True, "channels_last": True, "accumulation": 2},
    "online": {"schedule": "online", "nesterov": True},
    "double-backward": {"form": "double_backward"},
    "batch-statistics": {"batch_norm": "batch"},
    "double-backward-batch-statistics": {"form": "double_backward", "batch_norm": "batch"},
    "bf16": {"dtype": "bf16"},
    "unread": {"net": UNREAD},
    "unread-accumulated": {"net": UNREAD, "accumulation": 2},
    "imta-pretrain": {"net": dataclasses.replace(NET, imta="pretrain"), "schedule": "online"},
    "imta-finetune": {"net": dataclasses.replace(NET, imta="finetune")},
    "imta-finetune-statistics": {"net": dataclasses.replace(NET, imta="finetune"), "batch_norm": "batch"},
}
UPDATE_BATCH, ITERATIONS = 16, 3


def share(rank: int, world_size: int, iteration: int) -> Batch:
    """This rank's slices of both halves of the iteration's global batch."""
    generator = torch.Generator().manual_seed(iteration)
    images = torch.randn(2 * UPDATE_BATCH, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (2 * UPDATE_BATCH,), generator=generator)
    size = UPDATE_BATCH // world_size
    rows = torch.cat([torch.arange(size) + half * UPDATE_BATCH + rank * size for half in (0, 1)])
    return Batch(images[rows], labels[rows], rows.numpy())


def main(folder: Path) -> None:
    with process_group("cpu") as ranks, without_code():
        for name, case in CASES.items():
            model = dataclasses.replace(case.get("net", NET), batch_norm=case.get("batch_norm", "running"))
            config = Config(
                recipe="test",
                model=model,
                data=DataConfig(image_size=32),
                optim=OptimConfig(
                    UPDATE_BATCH,
                    base_batch=UPDATE_BATCH,
                    nesterov=case.get("nesterov", False),
                    accumulation=case.get("accumulation", 1),
                ),
                sample_weights=SampleWeightsConfig(epsilon=0.8, centre=case.get("centre", "mat")),
                weight_net=WeightNetConfig(width=10),
                meta=MetaConfig(form=case.get("form", "exact"), schedule=case.get("schedule", "paper"), lr=1e-2),
                precision=PrecisionConfig(
                    dtype=case.get("dtype", "float64"),
                    channels_last="on" if case.get("channels_last") else "off",
                    compile=case.get("compile", False),
                ),
            )
            state = build_state(config, 10, Progress(0, 10), ranks)
            for iteration in range(ITERATIONS):
                batch = state.network.seen(share(ranks.rank, ranks.world_size, iteration))
                images = batch.images.contiguous(memory_format=state.network.precision.memory_format)
                batch = dataclasses.replace(batch, images=images) if images.dim() == 4 else batch
                for a, b in batch.crossed_halves():
                    forward = HalfForward(state.network, a, record=True)
                    meta_step(state, forward, b)
                    train_step(state, forward)
                average_batch_norm_statistics(state.network.buffers)
                state.advance()
            tensors, _ = take(state)
            arrays = {key: value.double().numpy() for key, value in tensors.items()}
            np.savez(folder / f"{name}-{ranks.rank}-of-{ranks.world_size}.npz", **arrays)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
