"""What each operation costs: separate torch operations, the reference and, on a GPU, the fused kernel, in turn.

    python -m kernels.bench [--device cpu|cuda] [--rounds 20] [--json]

The sides of an operation alternate within one process, first in order and then in reverse, after an untimed round that
also checks that they agree. Times are per call; "bytes" is the least that must move, each input read and each output
written once, so bytes over the median is a bandwidth to hold against the device's own.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import Choice
from kernels.exit_losses import exit_losses, exit_losses_jvp
from kernels.exit_routing import quotas, route
from kernels.lookahead import lookahead
from kernels.norm_relu import norm_relu, norm_relu_jvp
from kernels.normalize import normalize

Output = Tensor | list[Tensor]
Side = Callable[[], Output]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Row:
    """One side of one operation; seconds per call over `rounds` calls: median, 20th and 80th percentile."""

    operation: str
    case: str
    side: str  # separate | reference | triton
    median_seconds: float
    p20: float
    p80: float
    rounds: int
    bytes: int
    device: str
    torch: str

    @property
    def gigabytes_per_second(self) -> float:
        return self.bytes / self.median_seconds / 1e9


@dataclass(frozen=True)
class Case:
    operation: str
    name: str
    bytes: int
    tolerance: float
    sides: dict[str, Side]


def benchmark_kernels(device: torch.device, rounds: int = 20) -> list[Row]:
    """A row for every operation, shape and side; batches are the training's on a GPU and small on a CPU."""
    if rounds < 1:
        raise ValueError(f"{rounds} rounds; there must be at least 1")
    rows = []
    for case in _cases(device):
        _check_agreement(case)
        seconds: dict[str, list[float]] = {side: [] for side in case.sides}
        for i in range(rounds):
            order = list(case.sides) if i % 2 == 0 else list(case.sides)[::-1]
            for side in order:
                seconds[side].append(_timed(case.sides[side], device))
        rows += [
            Row(
                case.operation, case.name, side, *_percentiles(taken), rounds, case.bytes, _name(device),
                torch.__version__,
            )
            for side, taken in seconds.items()
        ]  # fmt: skip
    return rows


def _cases(device: torch.device) -> Iterator[Case]:
    """Two shapes an operation, CIFAR's and ImageNet's."""
    random = torch.Generator(device).manual_seed(0)
    gpu = device.type == "cuda"
    for n, C in ((1024, 100), (1024, 1000)) if gpu else ((128, 100), (64, 1000)):
        yield from _loss_cases(random, n, 5, C, torch.bfloat16 if gpu else torch.float32)
    for n, K in ((1024, 5), (4096, 5)) if gpu else ((128, 7), (512, 5)):
        confidences = torch.rand(n, K, device=device, generator=random)
        counts = quotas(n, 0.75, K)
        routes = _sides(device, partial(_separate_route, confidences, counts), partial(route, confidences, counts))
        yield Case("exit_routing", f"{n} x {K}", n * (4 * (K - 1) + 8), 0.0, routes)
    for widths in ((16, 32, 64), (32, 64, 128, 256)):
        yield _lookahead_case(random, widths, 40 if gpu else 4)
    for n, side in ((1024, 32), (256, 224)) if gpu else ((128, 32), (4, 224)):
        yield _normalize_case(random, n, side)
    # The finest layers of both nets: channels-last, in half precision on a GPU.
    for shape in ((1024, 24, 32, 32), (256, 128, 56, 56)) if gpu else ((64, 24, 32, 32), (2, 128, 56, 56)):
        yield from _norm_relu_cases(random, shape, torch.bfloat16 if gpu else torch.float32)


def _loss_cases(
    random: torch.Generator, n: int, num_exits: int, num_classes: int, dtype: torch.dtype
) -> Iterator[Case]:
    K, C = num_exits, num_classes
    logits, tangents = ([_normal(random, n, C).to(dtype) for _ in range(K)] for _ in range(2))
    labels = torch.randint(C, (n,), device=random.device, generator=random)
    weights = torch.rand(n, K, device=random.device, generator=random)
    leaves = [z.requires_grad_() for z in logits]
    size, tolerance = n * K * C * dtype.itemsize, 1e-2 if dtype.itemsize < 4 else 1e-4
    shape = f"{n} x {K} x {C} {str(dtype).removeprefix('torch.')}"
    losses = _sides(
        random.device, partial(_separate_losses, leaves, labels, weights), partial(_losses, leaves, labels, weights)
    )
    yield Case("exit_losses", f"forward and backward, {shape}", 3 * size, tolerance, losses)
    z = [t.detach() for t in logits]
    slopes = _sides(
        random.device, partial(_separate_slopes, z, tangents, labels), partial(exit_losses_jvp, z, tangents, labels)
    )
    yield Case("exit_losses", f"tangent rule, {shape}", 2 * size, tolerance, slopes)


def _lookahead_case(random: torch.Generator, widths: Sequence[int], layers: int) -> Case:
    """The parameter tensors of a multi-exit net: many narrow ones, normalisation vectors between them."""
    shapes = [s for width in widths for s in ((width, width, 3, 3), (width,), (width,))] * layers
    p, g, m = ([_normal(random, *shape) for shape in shapes] for _ in range(3))
    steps = _sides(
        random.device,
        partial(_separate_lookahead, p, g, m),
        partial(lookahead, p, g, m, 0.1, 0.9, 1e-4, nesterov=False),
    )
    numbers = sum(t.numel() for t in p)
    return Case("lookahead", f"{len(p)} tensors, {numbers:,} values float32", 16 * numbers, 1e-5, steps)


def _normalize_case(random: torch.Generator, n: int, side: int) -> Case:
    images = torch.randint(256, (n, side, side, 3), dtype=torch.uint8, device=random.device, generator=random)
    flip = torch.rand(n, device=random.device, generator=random) < 0.5
    pixels = _sides(
        random.device,
        partial(_separate_normalize, images, flip),
        partial(normalize, images, MEAN, STD, torch.bfloat16, flip=flip),
    )
    return Case("normalize", f"{n} x {side} x {side}, flips, bfloat16", images.numel() * 3, 2e-2, pixels)


def _norm_relu_cases(random: torch.Generator, shape: Sequence[int], dtype: torch.dtype) -> Iterator[Case]:
    x, dy = (_normal(random, *shape).to(dtype, memory_format=torch.channels_last) for _ in range(2))
    w, b, dw, db = (_normal(random, shape[1]) for _ in range(4))
    name = f"{' x '.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
    size, tolerance = x.numel() * dtype.itemsize, 5e-2 if dtype.itemsize < 4 else 1e-3
    leaves = [t.requires_grad_() for t in (x, w, b)]
    passes = _sides(random.device, partial(_separate_norm_relu, leaves, dy), partial(_norm_relu, leaves, dy))
    yield Case("norm_relu", f"forward and backward, {name}", 5 * size, tolerance, passes)
    kept = [t.detach() for t in leaves]
    _, mean, invstd = norm_relu(kept[0], kept[1], kept[2], 1e-5, backend="reference")
    given = (kept[0], dy, mean, invstd, kept[1], kept[2], dw, db)
    slopes = _sides(
        random.device,
        partial(_separate_norm_relu_slopes, *given),
        partial(_norm_relu_slopes, given),
    )
    yield Case("norm_relu", f"tangent rule, {name}", 3 * size, tolerance, slopes)


def _normal(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, device=random.device, generator=random)


def _sides(device: torch.device, separate: Callable[[], Output], ours: Callable[..., Output]) -> dict[str, Side]:
    """The side that an operation replaces, and ours by every backend that runs on `device`."""
    backends = ("reference", "triton") if device.type == "cuda" else ("reference",)
    return {"separate": separate, **{b: partial(ours, backend=b) for b in backends}}


def _losses(logits: list[Tensor], labels: Tensor, weights: Tensor, backend: Choice) -> list[Tensor]:
    out = exit_losses(logits, labels, backend=backend)
    grads = torch.autograd.grad(out.losses, logits, weights)
    return [out.losses.detach(), out.confidences, out.top1.float(), out.top5.float(), *grads]


def _separate_losses(logits: list[Tensor], labels: Tensor, weights: Tensor) -> list[Tensor]:
    full = [z.float() for z in logits]
    losses = torch.stack([F.cross_entropy(z, labels, reduction="none") for z in full], 1)
    confidences = torch.stack([torch.softmax(z.detach(), 1).max(1).values for z in full], 1)
    top1 = torch.stack([z.argmax(1) == labels for z in full], 1)
    top5 = torch.stack([(z.topk(5, 1).indices == labels[:, None]).any(1) for z in full], 1)
    grads = torch.autograd.grad(losses, logits, weights)
    return [losses.detach(), confidences, top1.float(), top5.float(), *grads]


def _separate_slopes(logits: list[Tensor], tangents: list[Tensor], labels: Tensor) -> Tensor:
    columns = []
    for z, dz in zip(logits, tangents, strict=True):
        target = F.one_hot(labels, z.shape[1]).float()
        columns.append(((torch.softmax(z.float(), 1) - target) * dz.float()).sum(1))
    return torch.stack(columns, 1)


def _separate_route(confidences: Tensor, counts: list[int]) -> Tensor:
    """The rule as one reads it, sample by sample on the host."""
    table, left = confidences.tolist(), list(range(len(confidences)))
    exits = [len(counts) - 1] * len(left)
    for k, count in enumerate(counts[:-1]):
        left.sort(key=lambda i: (-table[i][k], i))
        for i in left[:count]:
            exits[i] = k
        left = left[count:]
    return torch.tensor(exits, device=confidences.device)


def _separate_lookahead(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor]) -> list[Tensor]:
    steps = [0.9 * m + (g + 1e-4 * p) for p, g, m in zip(params, grads, buffers, strict=True)]
    return [p - 0.1 * s for p, s in zip(params, steps, strict=True)]


def _separate_normalize(images: Tensor, flip: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (MEAN, STD))
    x = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    return x.to(torch.bfloat16, memory_format=torch.channels_last)


def _norm_relu(leaves: list[Tensor], dy: Tensor, backend: Choice) -> list[Tensor]:
    x, w, b = leaves
    y = norm_relu(x, w, b, 1e-5, backend=backend).y
    return [y.detach(), torch.autograd.grad(y, x, dy)[0]]


def _norm_relu_slopes(given: tuple[Tensor, ...], backend: Choice) -> Tensor:
    x, t, mean, invstd, w, b, dw, db = given
    return norm_relu_jvp(x, t, mean, invstd, w, b, dw, db, backend)


def _separate_norm_relu(leaves: list[Tensor], dy: Tensor) -> list[Tensor]:
    x, w, b = leaves
    y = F.relu(F.batch_norm(x, None, None, w, b, True))
    return [y.detach(), torch.autograd.grad(y, x, dy)[0]]


def _separate_norm_relu_slopes(
    x: Tensor, t: Tensor, mean: Tensor, invstd: Tensor, w: Tensor, b: Tensor, dw: Tensor, db: Tensor
) -> Tensor:
    """By batch-norm's own backward kernel, which has the two sums over t, then pass by pass."""
    _, xhat, one = torch.ops.aten.native_batch_norm_backward(
        t, x, w, None, None, mean, invstd, True, 1e-5, [False, True, True]
    )
    slope, count = w * invstd, x.numel() // x.shape[1]
    slope_x = (dw - slope * xhat / count) * invstd
    spread = [v.to(x.dtype)[:, None, None] for v in (slope, slope_x, db - slope * one / count - slope_x * mean)]
    y = (x - mean.to(x.dtype)[:, None, None]) * (w * invstd).to(x.dtype)[:, None, None] + b.to(x.dtype)[:, None, None]
    return torch.where(y > 0, t * spread[0] + x * spread[1] + spread[2], 0.0)


def _check_agreement(case: Case) -> None:
    results = {side: _listed(call()) for side, call in case.sides.items()}
    first = next(iter(results))
    for side, tensors in results.items():
        for ours, theirs in zip(tensors, results[first], strict=True):
            # Not entry by entry: of a hundred million some round to the other side of a ReLU's kink.
            apart = ((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30)).item()
            if not apart <= case.tolerance:
                raise RuntimeError(f"{case.operation}: {side} and {first} differ by {apart:.3g} of it, not timed")


def _listed(output: Output) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else output


def _timed(call: Side, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # not events: they leave out the host's share, most of many small launches
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _percentiles(seconds: list[float]) -> tuple[float, float, float]:
    """The median, the 20th and the 80th."""
    at = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    median, p20, p80 = torch.quantile(torch.tensor(seconds, dtype=torch.float64), at).tolist()
    return median, p20, p80


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="one JSON row per line")
    options = parser.parse_args()
    rows = benchmark_kernels(torch.device(options.device), options.rounds)
    if options.json:
        print("\n".join(json.dumps(asdict(row)) for row in rows))
        return
    print(f"{rows[0].device}, torch {rows[0].torch}; milliseconds per call, median [p20-p80] of {rows[0].rounds}")
    for row in rows:
        low, middle, high = (1e3 * s for s in (row.p20, row.median_seconds, row.p80))
        times = f"{middle:8.3f} [{low:.3f}-{high:.3f}]"
        print(f"{row.operation:13} {row.side:10} {times:28} {row.gigabytes_per_second:8.2f} GB/s  {row.case}")


if __name__ == "__main__":
    main()
