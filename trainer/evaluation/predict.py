"""What a trained net says of single image files, stopping early where it is sure."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataloading.augment import evaluation_geometry
from dataloading.config import DataConfig
from dataloading.header import BadImageError
from dataloading.resize import resize_into
from dataloading.scan import decode_rgb
from kernels.normalize import normalize
from trainer.evaluation.budgeted import EVERYBODY, NOBODY
from trainer.evaluation.early_exit import Answers, answer, check_thresholds
from trainer.evaluation.thresholds import read_budgets
from trainer.evaluation.trained_net import TrainedNet
from trainer.models.fold import for_inference


@dataclass(frozen=True)
class Prediction:
    """exit: counted from 1; milliseconds: from the pixels to the answer of the batch that the image was in;
    error: why there is no answer, and then nothing else holds."""

    image: str
    class_name: str = ""
    label: int = -1
    confidence: float = 0.0
    exit: int = 0
    milliseconds: float = 0.0
    error: str = ""


def predict(
    trained: TrainedNet,
    files: Sequence[Path],
    thresholds: Sequence[float],
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> Iterator[Prediction]:
    """One a file, in order; JPEG, PNG, or whatever else training takes. A file that cannot be read costs itself alone.

    Images are resized and cropped as evaluation does it. The first, untimed run takes black ones through every block.
    Raises ValueError for a batch below 1, or where the thresholds do not fit the net.
    """
    if batch < 1:
        raise ValueError(f"--batch is {batch}; give the number of images that run together, 1 or more")
    if trained.config.precision.dtype == "float64" and dtype == torch.float32:
        dtype = torch.float64
    data = trained.config.data
    net = for_inference(trained.net, dtype, compiled=compiled)
    device = next(net.parameters()).device
    check_thresholds(thresholds, trained.net.num_exits)
    black = torch.zeros(batch, data.image_size, data.image_size, 3, dtype=torch.uint8)
    last = [NOBODY] * (trained.net.num_exits - 1) + [EVERYBODY]
    answer(net, _ready(black, data, net), last).confidences.tolist()  # waits, so that no image is charged with it
    for start in range(0, len(files), batch):
        part = files[start : start + batch]
        pixels = [_pixels(file, data) for file in part]
        read = [image for image in pixels if isinstance(image, Tensor)]
        began = time.perf_counter()
        rows: Iterator[tuple[float, int, int]] = iter(())
        if read:
            said: Answers = answer(net, _ready(torch.stack(read).to(device), data, net), thresholds)
            rows = zip(said.confidences.tolist(), said.classes.tolist(), said.exits.tolist(), strict=True)  # waits
        milliseconds = 1e3 * (time.perf_counter() - began)
        for file, image in zip(part, pixels, strict=True):
            if isinstance(image, str):
                yield Prediction(str(file), error=image)
                continue
            confidence, label, at = next(rows)
            yield Prediction(str(file), trained.classes[label], label, confidence, at + 1, milliseconds)


def _pixels(file: Path, data: DataConfig) -> Tensor | str:
    """uint8 [S, S, 3] as evaluation cuts it, or why there is none."""
    try:
        decoded = decode_rgb(file.read_bytes())
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
    except BadImageError as error:
        return " ".join(str(error).split())
    height, width = decoded.shape[:2]
    geometry = evaluation_geometry(data, np.array([height]), np.array([width]))
    crop = geometry.crop[0].tolist()
    out = torch.empty(data.image_size, data.image_size, 3, dtype=torch.uint8)
    resize_into(out, decoded, crop, crop, geometry.resize[0].tolist(), geometry.window[0].tolist())
    return out


def _ready(pixels: Tensor, data: DataConfig, net: torch.nn.Module) -> Tensor:
    """[n, S, S, 3] uint8 -> [n, 3, S, S] normalised, in the net's dtype, channels-last."""
    like = next(net.parameters())
    single = torch.float32 if like.dtype == torch.float64 else like.dtype
    images = normalize(pixels.to(like.device), data.mean, data.std, single)
    return images.to(like.dtype, memory_format=torch.channels_last)


def thresholds_of(
    run: Path, trained: TrainedNet, budget: str = "", threshold: float | None = None
) -> tuple[list[float], str]:
    """[K] thresholds and what they stand for, in words.

    budget     Mul-Adds an image on average, as 9M or 1.2G: of the points that `evaluate` (or `tune`) measured within
               it, the most accurate one on the held-out images
    threshold  one confidence, 0 to 1, for every exit but the last; neither of the two: every image goes to the last one
    Raises ValueError for both at once, a budget that no point meets, or a run whose net was not evaluated.
    """
    before_last = trained.net.num_exits - 1
    if budget and threshold is not None:
        raise ValueError("--budget and --threshold were both given; the budget chooses thresholds, so give one of them")
    if threshold is not None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"--threshold is {threshold}; a confidence lies in 0 to 1")
        return [threshold] * before_last + [EVERYBODY], f"threshold {threshold:g} at every exit"
    if not budget:
        return [NOBODY] * before_last + [EVERYBODY], "no early exit; give --budget or --threshold"
    limit = mul_adds(budget)
    rows = read_budgets(run, trained.iteration)
    if not rows:
        remedy = (
            f"run earlybird evaluate {run} first, or give --threshold"
            if trained.config.data.heldout
            else ("it holds no images out of training (data.heldout is 0), so give --threshold")
        )
        raise ValueError(f"--budget needs thresholds set on held-out images, and {run} has none; {remedy}")
    within = [row for row in rows if row["mul_adds"] <= limit]
    if not within:
        least = min(row["mul_adds"] for row in rows)
        raise ValueError(
            f"--budget is {budget}; the least that was measured is {least / 1e6:.2f}M, so give that or more"
        )
    best = max(within, key=lambda row: (row["heldout_top1"], -row["mul_adds"]))
    return best["thresholds"], f"{best['mul_adds'] / 1e6:.2f} M Mul-Adds an image on average (ratio {best['ratio']:g})"


def mul_adds(text: str) -> float:
    """9M, 1.2G or a plain number. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG]?)", text.strip().upper())
    if found is None:
        raise ValueError(f"--budget is {text!r}; give Mul-Adds an image, as 9M or 1.2G")
    return float(found[1]) * {"": 1.0, "M": 1e6, "G": 1e9}[found[2]]
