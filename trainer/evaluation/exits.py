"""Every exit scored on every image of a split, once, over all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dataloading.batch import Batch
from kernels.exit_losses import exit_losses
from trainer.learning.collectives import gather_rows, sum_over_ranks
from trainer.learning.precision import Precision


@dataclass(frozen=True)
class Samples:
    """What budgeted evaluation needs of every image, over all ranks, on the host, in the order of the index.

    ids          [M] int64 rows of the split's index
    confidences  [M, K] float32 (float64 where the net runs in float64), the largest softmax
    correct      [M, K] bool, top-1 hits
    """

    ids: Tensor
    confidences: Tensor
    correct: Tensor


@dataclass(frozen=True)
class ExitScores:
    """Sums over all ranks' images; every list has one entry an exit.

    samples  None unless it was asked for
    """

    num_images: int
    top1: list[int]
    top5: list[int]
    loss: list[float]
    samples: Samples | None = None


@torch.no_grad()
def score_exits(
    net: nn.Module, batches: Iterable[Batch], precision: Precision, *, per_sample: bool = False
) -> ExitScores:
    """Run `net` (images -> K logits [n, C]) in evaluation mode over this rank's batches; its mode is put back after.

    Rows that a batch masks are padding and count nowhere. Losses are without label smoothing. Sums stay on the device
    until the end: one all-reduce, one host sync. With `per_sample`, every rank must see equally many rows, padding
    included. ValueError where no rank has an image.
    """
    sums: Tensor | None = None
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    was_training = net.training
    net.eval()
    try:
        for batch in batches:
            images = batch.normalized(precision.image_dtype, precision.memory_format).images
            with precision.autocast():
                logits = net(images)
            scores = exit_losses(logits, batch.labels)
            seen = batch.mask if batch.mask is not None else torch.ones_like(batch.labels, dtype=torch.bool)
            rows = torch.stack([scores.top1.double(), scores.top5.double(), scores.losses.double()])
            rows = torch.where(seen[:, None], rows, 0.0).sum(dim=1)  # not a product: padding may hold NaN
            counts = torch.cat([rows.reshape(-1), seen.sum(dtype=torch.float64)[None]])
            sums = counts if sums is None else sums + counts
            if per_sample:
                ids = torch.as_tensor(batch.ids, dtype=torch.int64).to(batch.labels.device, non_blocking=True)
                kept.append((torch.where(seen, ids, -1), scores.confidences, scores.top1))
    finally:
        net.train(was_training)
    if sums is None:
        raise ValueError("this rank has no evaluation batch; the split must hold at least one image a rank")
    (total,) = sum_over_ranks([sums])
    *values, num_images = total.tolist()
    if not num_images:
        raise ValueError("nothing to evaluate: every image of the split is padding or unreadable")
    K = len(values) // 3
    return ExitScores(
        num_images=int(num_images),
        top1=[int(value) for value in values[:K]],
        top5=[int(value) for value in values[K : 2 * K]],
        loss=values[2 * K :],
        samples=_gathered(kept) if per_sample else None,
    )


def _gathered(kept: list[tuple[Tensor, Tensor, Tensor]]) -> Samples:
    ids, confidences, correct = (gather_rows(torch.cat(column))[0].cpu() for column in zip(*kept, strict=True))
    order = ids.argsort(stable=True)[int((ids < 0).sum()) :]  # padding carries -1
    return Samples(ids[order], confidences[order], correct[order])
