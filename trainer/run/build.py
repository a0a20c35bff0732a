"""From a configuration to everything that a run owns."""

from __future__ import annotations

import inspect
import logging
import math
import os
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dataloading.cache import cache_folder
from dataloading.datasets.open import ImageSet
from dataloading.index import Index
from dataloading.loader import EvaluationLoader, TrainLoader, evaluation_loader, train_loader
from trainer.config import Config
from trainer.learning.forward import Network
from trainer.learning.graphs import beside
from trainer.learning.optim import build_adam, build_sgd
from trainer.learning.precision import Precision, resolve_precision
from trainer.learning.state import Progress, TrainState
from trainer.models import compiled_layers
from trainer.models.build import build_model
from trainer.models.imta import ImtaHead, ImtaNet
from trainer.models.multi_exit import MultiExitNet
from trainer.models.weight_net import WeightNet
from trainer.run.distributed import Ranks

logger = logging.getLogger(__name__)
_DDP_ARGUMENTS = inspect.signature(DistributedDataParallel.__init__).parameters  # renamed in torch 2.14


def build_net(config: Config, num_classes: int, precision: Precision) -> MultiExitNet:
    """The backbone on its device, in its dtype and memory layout, initialised from the seed alike on every rank."""
    torch.manual_seed(config.seed)
    model = build_model(config.model, num_classes).to(precision.device, precision.parameter_dtype)
    return model.to(memory_format=precision.memory_format)


def build_state(config: Config, num_classes: int, progress: Progress, ranks: Ranks) -> TrainState:
    """A fresh training state. ValueError where the device cannot run what the configuration asks for."""
    config.check_ranks(ranks.world_size)
    precision = resolve_precision(config.precision, ranks.device)
    module = build_net(config, num_classes, precision)
    module.recompute = config.optim.recompute
    if module.recompute and precision.compile:
        raise ValueError("optim.recompute is on, but precision.compile decides by itself what it keeps; turn one off")
    weight_net = weight_net_optimizer = None
    if config.sample_weights.enabled:
        weight_net = WeightNet(config.weight_net, module.num_exits).to(precision.device, precision.parameter_dtype)
        weight_net_optimizer = build_adam(
            weight_net.parameters(), config.meta.lr, config.meta.weight_decay, precision.cuda_graphs
        )
    trained = module.head() if isinstance(module, ImtaNet) else module
    compiled = _compiled(trained) if precision.compile else None
    with beside(ranks.device) if precision.cuda_graphs else nullcontext():
        tracked = _tracked(trained, compiled, ranks, config)
    network = Network(
        module,
        trained,
        tracked,
        precision,
        config.optim.label_smoothing,
        config.optim.micro_batches(ranks.world_size),
        compiled,
        config.distillation,
    )
    return TrainState(
        config=config,
        network=network,
        optimizer=build_sgd(trained.parameters(), config.optim, precision.cuda_graphs),
        weight_net=weight_net,
        weight_net_optimizer=weight_net_optimizer,
        scaler=torch.amp.GradScaler(precision.device.type, enabled=precision.scaled),
        progress=progress,
    )


def training_loader(config: Config, images: ImageSet, ranks: Ranks) -> TrainLoader:
    """This rank's share of every training batch. ValueError for a batch that does not fit the set or the ranks."""
    return train_loader(
        config.data,
        images.train,
        seed=config.seed,
        update_batch=config.optim.update_batch,
        accumulation=config.optim.micro_batches(ranks.world_size),
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
    )


def scoring_loader(config: Config, index: Index, ranks: Ranks) -> EvaluationLoader:
    """This rank's share of a split, each image once over all ranks."""
    return evaluation_loader(
        config.data,
        index,
        batch_size=config.run.evaluation_batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
    )


def _compiled(module: nn.Module) -> nn.Module:
    from torch._functorch import config as functorch_config  # all take seconds to import
    from torch._inductor import config as inductor_config
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # The lookahead and the real update are two backward passes of one compiled graph: it may not eat its inputs.
    functorch_config.donated_buffer = False
    # Without it a net with a differentiation rule of its own is traced anew at every start.
    inductor_config.unsafe_marked_cacheable_functions |= compiled_layers.CACHE_KEYS
    # Kept over restarts of the machine; the default that torch may have chosen already is a temporary folder.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == default_cache_dir():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder() / "inductor")
    logger.info("precision.compile: the first steps compile the net, which takes minutes the first time")
    return torch.compile(compiled_layers.KeepingNet(module))  # type: ignore[return-value]


def _tracked(module: MultiExitNet | ImtaHead, compiled: nn.Module | None, ranks: Ranks, config: Config) -> nn.Module:
    """The net as the training forward calls it: wrapped in DDP where there are several ranks."""
    tracked = module if compiled is None else compiled
    if ranks.world_size == 1:
        return tracked
    # DDP would wait for ever for the gradient of a parameter that no exit reads, unless it walks every forward's graph.
    unread = [] if isinstance(module, ImtaHead) else module.unread_parameters(config.data.image_size)
    if unread and config.precision.cuda_graphs:
        raise ValueError(
            f"precision.cuda_graphs is on, but {unread[0]} moves no exit: DDP would look for such parameters in every "
            "pass, on the host; leave it off, or choose a net whose parameters all count"
        )
    if unread:
        logger.info("%d parameters move no exit: DDP looks for them in every forward pass", len(unread))
    # Running statistics are averaged over ranks once an iteration; no forward broadcasts them.
    name = "forward_sync_buffers" if "forward_sync_buffers" in _DDP_ARGUMENTS else "broadcast_buffers"
    quiet: dict[str, Any] = {name: False}
    return DistributedDataParallel(
        tracked,
        device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None,
        **quiet,
        gradient_as_bucket_view=True,
        find_unused_parameters=bool(unread),
    )


def warmup_iterations(config: Config, iterations: int) -> int:
    return math.ceil(config.optim.warmup_epochs / config.run.epochs * iterations)
