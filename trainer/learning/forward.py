"""One half of a batch run through the net: its losses, and derivatives of them in either direction."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from dataloading.batch import Batch
from kernels.exit_losses import ExitLosses, exit_losses, exit_losses_jvp
from trainer.learning.precision import Precision
from trainer.learning.tangent_replay import Tape, replayable
from trainer.models.multi_exit import MultiExitNet

Logits = Sequence[Tensor]


@dataclass(frozen=True)
class Network:
    """The backbone as the steps see it.

    module   the bare net: parameters, buffers, and every pass at other parameters than its own
    tracked  what a training forward calls: the net itself, compiled or wrapped in DDP
    """

    module: MultiExitNet
    tracked: Callable[[Tensor], Logits]
    precision: Precision
    label_smoothing: float = 0.0
    accumulation: int = 1

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters())

    @cached_property
    def buffers(self) -> list[Tensor]:
        return list(self.module.buffers())

    @cached_property
    def replayable(self) -> bool:
        """Whether a forward pass can be recorded and followed leaf by leaf (a compiled one has no leaves)."""
        return not self.precision.compile and not replayable(self.module)

    def logits(self, images: Tensor, parameters: dict[str, Tensor] | None = None) -> Logits:
        """K train-mode logits [n, C]; at other parameters than the net's own, its buffers are left alone."""
        with self.precision.autocast():
            images = images.to(self.precision.parameter_dtype) if images.dtype == torch.float32 else images
            if parameters is None:
                return self.tracked(images)
            with untracked_batch_norm(self.module):
                return functional_call(self.module, parameters, (images,))

    def losses(self, logits: Logits, part: Batch) -> ExitLosses:
        return exit_losses(logits, part.labels, self.label_smoothing)

    def sync(self, last: bool) -> AbstractContextManager:
        """Context of a backward pass: DDP averages gradients in the last micro-batch only."""
        if isinstance(self.tracked, DistributedDataParallel) and not last:
            return self.tracked.no_sync()
        return nullcontext()


@contextmanager
def untracked_batch_norm(module: nn.Module) -> Iterator[None]:
    """Training batch-norms normalise by the batch as always, but leave their running statistics alone."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.training and m.track_running_stats]
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
    With several, no graph is kept: what is needed of the whole half (its losses) comes from a first pass without
    graph, and each derivative runs micro-batch by micro-batch.
    All gradients are sums over this rank's samples; reducing them over ranks is the caller's.
    """

    def __init__(
        self, network: Network, half: Batch, parameters: dict[str, Tensor] | None = None, record: bool = False
    ) -> None:
        """parameters: None for the net's own. record: keep what a directional derivative needs, where that can be."""
        self.network, self.half, self.at = network, half, parameters
        self.parts = half.micro_batches(network.accumulation)
        self._graph: ExitLosses | None = None
        self._values: ExitLosses | None = None
        self._logits: Logits = ()
        self._tape = Tape(network.module) if record and network.replayable and len(self.parts) == 1 else None
        if len(self.parts) == 1:
            with self._tape.recording() if self._tape is not None else nullcontext():
                self._logits = network.logits(half.images, parameters)
            self._graph = network.losses(self._logits, half)
            self._values = _detached([self._graph])

    @property
    def values(self) -> ExitLosses:
        """Losses, confidences and hits of the whole half, detached."""
        if self._values is None:
            with torch.no_grad():
                self._values = _detached([self._at_leaves(part) for part in self.parts])
        return self._values

    def gradient(self, cotangent: Tensor) -> list[Tensor]:
        """sum_ik cotangent[i, k] * d losses[i, k] / d parameter, one tensor per parameter; .grad is not touched."""
        leaves: list[Tensor] = list((self.network.parameters if self.at is None else self.at).values())
        total: list[Tensor] | None = None
        for part, rows in self._rows(cotangent):
            losses = (self._graph or self._at_leaves(part)).losses
            # An exit without a sample leaves its classifier out; a pass at other parameters is needed only once.
            kept = self._graph is not None and self.at is None
            grads = torch.autograd.grad(
                losses, leaves, rows, retain_graph=kept, allow_unused=True, materialize_grads=True
            )
            total = list(grads) if total is None else list(torch._foreach_add(total, grads))
        assert total is not None
        return total

    def backward(self, cotangent: Tensor, scale: Callable[[Tensor], Tensor]) -> None:
        """Add the gradient of scale(sum_ik cotangent[i, k] * losses[i, k]) to .grad, averaged over ranks under DDP.

        Running batch-norm statistics move in this pass or, with one micro-batch, moved in the shared one. The graph
        is freed: nothing can be differentiated after it.
        """
        seen = []
        for index, (part, rows) in enumerate(self._rows(cotangent)):
            with self.network.sync(last=index == len(self.parts) - 1):
                graph = self._graph or self.network.losses(self.network.logits(part.images), part)
                scale((graph.losses * rows).sum()).backward()
            seen.append(graph)
        if self._values is None:
            self._values = _detached(seen)
        self._graph, self._tape, self._logits = None, None, ()

    def directional_derivative(self, direction: Sequence[Tensor]) -> Tensor:
        """[n, K]: the derivative of every loss along `direction` (one tensor per parameter).

        By tangent replay of the recorded pass; where none was recorded by dual tensors, which run the pass again.
        """
        moves = dict(zip(self.network.parameters, direction, strict=True))
        smoothing = self.network.label_smoothing
        if self._tape is not None:
            with torch.no_grad():
                with self.network.precision.autocast():
                    tangents = self._tape.replay(self.half.images, moves)
                return exit_losses_jvp(self._logits, tangents, self.half.labels, smoothing)
        rows = []
        with torch.no_grad(), forward_ad.dual_level(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.script`", FutureWarning)  # torch's own forward-mode rules
            dual = {name: forward_ad.make_dual(p.detach(), moves[name]) for name, p in self.network.parameters.items()}
            for part in self.parts:
                losses = self.network.losses(self.network.logits(part.images, dual), part).losses
                rows.append(forward_ad.unpack_dual(losses).tangent)
        return torch.cat(rows)

    def _at_leaves(self, part: Batch) -> ExitLosses:
        """A pass of its own that moves no running statistics."""
        at: dict[str, Tensor] = {**self.network.parameters} if self.at is None else self.at
        return self.network.losses(self.network.logits(part.images, at), part)

    def _rows(self, cotangent: Tensor) -> Iterator[tuple[Batch, Tensor]]:
        return zip(self.parts, cotangent.split(len(self.parts[0])), strict=True)


def _detached(parts: Sequence[ExitLosses]) -> ExitLosses:
    if len(parts) == 1:
        return ExitLosses(*(column.detach() for column in parts[0]))
    return ExitLosses(*(torch.cat([column.detach() for column in columns]) for columns in zip(*parts, strict=True)))
