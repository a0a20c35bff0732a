"""One backbone update on one half of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.learning.forward import HalfForward
from trainer.learning.sample_weights import weigh
from trainer.learning.state import TrainState


def train_step(state: TrainState, forward: HalfForward) -> dict[str, Tensor]:
    """Move the backbone once along grad sum_k mean_i w_ik loss_ik, the weights w taken as constants.

    Returns device tensors: sums over this rank's samples, loss [K] and top1 [K]; losses [n, K]; and weights [n, K]
    (absent in the unweighted baseline).
    """
    num_samples = len(forward.half)
    weights: Tensor | None = None
    if state.weight_net is not None:
        with torch.no_grad():
            values = forward.values
            weights = weigh(state.weight_net, values.losses, values.confidences, state.config.sample_weights).values
        cotangent = weights / num_samples
    else:
        shape = (num_samples, state.network.module.num_exits)
        dtype, device = state.network.precision.parameter_dtype, state.network.precision.device
        cotangent = torch.full(shape, 1.0 / num_samples, dtype=dtype, device=device)
    forward.backward(cotangent, state.scaler.scale)
    state.step_backbone()
    seen = forward.values
    metrics = {"loss": seen.losses.sum(dim=0), "top1": seen.top1.sum(dim=0), "losses": seen.losses}
    return metrics if weights is None else metrics | {"weights": weights}
