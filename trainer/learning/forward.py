"""One half of a batch run through the net: its losses, and derivatives of them in either direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from dataloading.batch import Batch
from kernels.exit_losses import ExitLosses, exit_losses
from trainer.learning.precision import Precision


@dataclass(frozen=True)
class Network:
    """The backbone as the steps see it.

    module   the bare net: parameters, buffers, and every pass at other parameters than its own
    tracked  what a training forward calls: the net itself, compiled or wrapped in DDP
    """

    module: nn.Module
    tracked: Callable[[Tensor], Sequence[Tensor]]
    precision: Precision
    label_smoothing: float
    accumulation: int

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters())

    @property
    def num_exits(self) -> int:
        return int(self.module.num_exits)  # type: ignore[arg-type]

    @property
    def parameter_dtype(self) -> torch.dtype:
        return self.precision.parameter_dtype

    def losses_at(self, parameters: dict[str, Tensor] | None, part: Batch) -> ExitLosses:
        """Train-mode losses of `part`; at other parameters than the net's own, its buffers are left alone."""
        with self.precision.autocast():
            if parameters is None:
                logits = self.tracked(part.images)
            else:
                with untracked_batch_norm(self.module):
                    logits = functional_call(self.module, parameters, (part.images,))
        return exit_losses(logits, part.labels, self.label_smoothing)

    def sync(self, last: bool) -> AbstractContextManager:
        """Context of a backward pass: DDP averages gradients in the last micro-batch only."""
        if isinstance(self.tracked, DistributedDataParallel) and not last:
            return self.tracked.no_sync()
        return nullcontext()


@contextmanager
def untracked_batch_norm(module: nn.Module) -> Iterator[None]:
    """Training batch-norms normalise by the batch as always, but leave their running statistics alone."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) and m.training]
    norms = [norm for norm in norms if norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class HalfForward:
    """A half's train-mode forward pass, shared by all that differentiates it.

    With one micro-batch the graph is kept: the lookahead and the real update are two vector-Jacobian products of it.
    With several, no graph is kept: what is needed of the whole half (losses) comes from a first pass without graph,
    and each derivative runs micro-batch by micro-batch.
    All gradients are sums over this rank's samples; reducing them over ranks is the caller's.
    """

    def __init__(self, network: Network, half: Batch, parameters: dict[str, Tensor] | None = None) -> None:
        self.network, self.half = network, half
        self.parts = half.micro_batches(network.accumulation)
        self.at = parameters  # None: the net's own parameters
        self._graph: ExitLosses | None = None
        self._values: ExitLosses | None = None
        if len(self.parts) == 1:
            self._graph = network.losses_at(parameters, half)
            self._values = _detached([self._graph])

    @property
    def values(self) -> ExitLosses:
        """Losses, confidences and hits of the whole half, detached."""
        if self._values is None:
            own = {name: p.detach() for name, p in self.network.parameters.items()} if self.at is None else self.at
            with torch.no_grad():
                self._values = _detached([self.network.losses_at(own, part) for part in self.parts])
        return self._values

    def gradient(self, cotangent: Tensor) -> list[Tensor]:
        """sum_ik cotangent[i, k] * d losses[i, k] / d parameter, one tensor per parameter; .grad is not touched."""
        leaves = list(self.network.parameters.values() if self.at is None else self.at.values())
        total: list[Tensor] | None = None
        for part, rows in self._rows(cotangent):
            graph = self._graph if self._graph is not None else self._untracked(part)
            grads = torch.autograd.grad(graph.losses, leaves, rows, retain_graph=graph is self._graph, allow_unused=True)
            # An exit whose cotangent is zero everywhere may leave its classifier out of the graph.
            found = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, grads, strict=True)]
            total = found if total is None else list(torch._foreach_add(total, found))
        assert total is not None
        return total

    def backward(self, cotangent: Tensor, scale: Callable[[Tensor], Tensor] = lambda loss: loss) -> None:
        """Add scale(sum_ik cotangent[i, k] * losses[i, k])'s gradient to .grad (averaged over ranks under DDP).

        Running batch-norm statistics move in this pass or, with one micro-batch, moved in the shared one. Call it
        last: it frees the graph.
        """
        seen = []
        for index, (part, rows) in enumerate(self._rows(cotangent)):
            last = index == len(self.parts) - 1
            with self.network.sync(last):
                graph = self._graph if self._graph is not None else self.network.losses_at(None, part)
                scale((graph.losses * rows).sum()).backward()
            seen.append(graph)
        if self._values is None:
            self._values = _detached(seen)
        self._graph = None

    def directional_derivative(self, direction: Sequence[Tensor]) -> Tensor:
        """[n, K]: the derivative of every loss along `direction` (one tensor per parameter), by forward-mode AD."""
        parameters = self.network.parameters
        tangents = []
        with torch.no_grad(), forward_ad.dual_level():
            dual = {
                name: forward_ad.make_dual(p.detach(), v)
                for (name, p), v in zip(parameters.items(), direction, strict=True)
            }
            for part in self.parts:
                losses = self.network.losses_at(dual, part).losses
                tangents.append(forward_ad.unpack_dual(losses).tangent)
        return torch.cat(tangents)

    def _untracked(self, part: Batch) -> ExitLosses:
        own = dict(self.network.parameters) if self.at is None else self.at
        return self.network.losses_at(own, part)

    def _rows(self, cotangent: Tensor) -> Iterator[tuple[Batch, Tensor]]:
        return zip(self.parts, cotangent.split(len(self.parts[0])), strict=True)


def _detached(parts: Sequence[ExitLosses]) -> ExitLosses:
    return ExitLosses(*(torch.cat([getattr(part, f).detach() for part in parts]) for f in ExitLosses._fields))
