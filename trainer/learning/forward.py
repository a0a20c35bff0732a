"""One half of a batch run through the net: its losses, and derivatives of them in either direction."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from dataloading.batch import Batch
from kernels.backend import Choice
from kernels.exit_losses import ExitLosses, exit_losses, exit_losses_jvp
from trainer.learning.collectives import collective_spans, world_size
from trainer.learning.compiled_tangents import CompiledTangents
from trainer.learning.distillation import DistillationConfig, distilled, distilled_jvp
from trainer.learning.precision import Precision
from trainer.learning.reduction import OverlappedSum
from trainer.learning.tangent_replay import Tape, pushforward, replayable
from trainer.models.compiled_layers import NormInput
from trainer.models.equilibrium import true_gradients
from trainer.models.imta import ImtaHead, ImtaNet
from trainer.models.multi_exit import MultiExitNet
from trainer.telemetry.spans import Mark, mark

logger = logging.getLogger(__name__)

Logits = Sequence[Tensor]
Tangents = Literal["replayed", "recorded", "compiled", "dual"]


@dataclass(frozen=True)
class Network:
    """The backbone as the steps see it.

    module   the bare net, images to logits
    trained  what of it trains: all, or the head of a frozen net. Its parameters, buffers and passes at other parameters
             than its own are those of training; its input is what `seen` gives
    tracked  what a training forward calls: `trained` itself, compiled or wrapped in DDP
    compiled `trained` as KeepingNet, compiled, where it is; it serves the passes at other parameters too
    """

    module: MultiExitNet
    trained: MultiExitNet | ImtaHead
    tracked: Callable[[Tensor], Any]
    precision: Precision
    label_smoothing: float = 0.0
    accumulation: int = 1
    compiled: nn.Module | None = None
    distillation: DistillationConfig = field(default_factory=DistillationConfig)

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """By name. ValueError where layers share one: passes at other parameters replace each name on its own."""
        named, first = dict(self.trained.named_parameters(remove_duplicate=False)), dict[int, str]()
        for name, parameter in named.items():
            if (other := first.setdefault(id(parameter), name)) != name:
                raise ValueError(f"{other} and {name} are one parameter; give every layer its own")
        return named

    @cached_property
    def buffers(self) -> list[Tensor]:
        return list(self.trained.buffers())

    @property
    def judges_as_it_trains(self) -> bool:
        """Whether a training pass has the gradients of the cross-entropies themselves, neither rescaled nor distilled:
        what the meta loss is made of."""
        return self.module.equilibrium is None and not isinstance(self.trained, ImtaHead)

    def seen(self, batch: Batch) -> Batch:
        """The batch as what trains sees it: with the frozen net's features in the place of images, where one is."""
        if not isinstance(self.module, ImtaNet):
            return batch
        with self.precision.autocast():
            features = self.module.seen(self.cast(batch.images))
        return replace(batch, images=features.to(self.precision.parameter_dtype))

    @cached_property
    def tangents(self) -> Tangents:
        """How losses are differentiated along a direction (see `Linearised.along`); logged with the reason."""
        how: Tangents = "replayed"
        if unruled := replayable(self.trained):
            how, why = "dual", f"{unruled} has no tangent rule"
        elif self.module.recompute:
            how, why = "dual", "optim.recompute is to keep no activations"
        elif self.compiled is not None:
            how, why = "compiled", "precision.compile, whose pass has no leaves to record"
        elif self.accumulation > 1:
            how, why = "recorded", "a half in micro-batches is too large to record"
        else:
            why = "the half's own pass is recorded"
        logger.info("meta gradient: tangents are %s: %s", how, why)
        return how

    @cached_property
    def compiled_tangents(self) -> CompiledTangents:
        return CompiledTangents(self.trained)

    def logits(
        self, images: Tensor, parameters: dict[str, Tensor] | None = None, eager: bool = False, judging: bool = False
    ) -> Logits:
        """K train-mode logits [n, C]; see `forward`."""
        return self.forward(images, parameters, eager, judging)[0]

    def forward(
        self, images: Tensor, parameters: dict[str, Tensor] | None = None, eager: bool = False, judging: bool = False
    ) -> tuple[Logits, Sequence[NormInput]]:
        """K train-mode logits [n, C]; at other parameters (leaves: nn.Parameter) the net's buffers are left alone. And,
        of a compiled net, what its batch-norms read.

        eager: for what a compiled net cannot do, a second derivative or dual tensors; judging: see `losses`.
        """
        with self.precision.autocast(), true_gradients(self.trained) if judging else nullcontext():
            images = self.cast(images)
            if parameters is None:
                found = self.tracked(images)
                return (found, ()) if self.compiled is None else found
            if eager or self.compiled is None:
                with untracked_batch_norm(self.trained):
                    return functional_call(self.trained, parameters, (images,), tie_weights=False), ()
            # Copies of the buffers, and nn.Parameter each: what differs from a pass at the net's own is compiled anew.
            named = {name: buffer.clone() for name, buffer in self.trained.named_buffers()} | parameters
            named = {f"_orig_mod.net.{name}": value for name, value in named.items()}
            return functional_call(self.compiled, named, (images,), tie_weights=False)

    def cast(self, images: Tensor) -> Tensor:
        return images.to(self.precision.parameter_dtype) if images.dtype == torch.float32 else images

    def losses(self, logits: Logits, part: Batch, judging: bool = False, backend: Choice = "auto") -> ExitLosses:
        """judging: for the meta loss, which is of cross-entropies; what is trained on may be distilled."""
        found = exit_losses(logits, part.labels, self.label_smoothing, backend)
        if judging or not isinstance(self.trained, ImtaHead):
            return found
        taught = self.trained.taught(part.images)
        return found._replace(losses=distilled(found.losses, logits, taught, self.distillation))

    def losses_jvp(self, logits: Logits, tangents: Logits, part: Batch) -> Tensor:
        """[n, K] derivative of the losses that are trained on along the logits' tangents."""
        slopes = exit_losses_jvp(logits, tangents, part.labels, self.label_smoothing)
        if not isinstance(self.trained, ImtaHead):
            return slopes
        return distilled_jvp(slopes, logits, tangents, self.trained.taught(part.images), self.distillation)

    def sync(self, last: bool) -> AbstractContextManager:
        """Context of a backward pass: DDP averages gradients in the last micro-batch only."""
        if not isinstance(self.tracked, DistributedDataParallel):
            return nullcontext()
        return self._reduction() if last else self.tracked.no_sync()

    @contextmanager
    def _reduction(self) -> Iterator[None]:
        """Times DDP's reduction as far as it holds up: from this rank's own last gradient, which is that of the net's
        first parameter, until all ranks' are averaged."""
        if not collective_spans.counting:
            yield
            return
        device, ready = self.precision.device, list[Mark]()
        first = next(iter(self.parameters.values()))
        hook = first.register_post_accumulate_grad_hook(lambda _: ready.append(mark(device)))
        try:
            yield
        finally:
            hook.remove()
        if ready:
            collective_spans.add(ready[-1], mark(device))


@contextmanager
def untracked_batch_norm(module: nn.Module) -> Iterator[None]:
    """Training batch-norms normalise by the batch as always, but leave their running statistics alone."""
    kinds = nn.BatchNorm1d | nn.BatchNorm2d
    norms = [m for m in module.modules() if isinstance(m, kinds) and m.training and m.track_running_stats]
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
    All gradients are sums over this rank's samples, unless asked for over all.
    """

    def __init__(
        self,
        network: Network,
        half: Batch,
        parameters: dict[str, Tensor] | None = None,
        record: bool = False,
        judging: bool = False,
    ) -> None:
        """parameters: None for the net's own. record: keep what a directional derivative needs, where that can be.
        judging: a pass for the meta loss."""
        self.network, self.half, self.at, self.judging = network, half, parameters, judging
        self.parts = half.micro_batches(network.accumulation)
        self._graph: ExitLosses | None = None
        self._values: ExitLosses | None = None
        self._logits: Logits = ()
        self._norm_inputs: Sequence[NormInput] = ()
        self._tape = Tape(network.trained) if record and network.tangents == "replayed" else None
        if len(self.parts) == 1:
            with self._tape.recording() if self._tape is not None else nullcontext():
                self._logits, read = network.forward(half.images, parameters, judging=judging)
            if record and network.tangents == "compiled":
                self._norm_inputs = read
            self._graph = network.losses(self._logits, half, judging)
            self._values = _detached([self._graph])

    @property
    def values(self) -> ExitLosses:
        """Losses, confidences and hits of the whole half, detached."""
        if self._values is None:
            with torch.no_grad():
                self._values = _detached([self._at_leaves(part) for part in self.parts])
        return self._values

    def gradient(self, cotangent: Tensor, over_ranks: bool = False) -> list[Tensor]:
        """sum_ik cotangent[i, k] * d losses[i, k] / d parameter, one tensor per parameter; .grad is not touched.

        over_ranks: summed over all ranks' samples, while the (last micro-batch's) pass still runs.
        """
        leaves: list[Tensor] = list((self.network.parameters if self.at is None else self.at).values())
        total: list[Tensor] | None = None
        for index, (part, rows) in enumerate(self._rows(cotangent)):
            last = index == len(self.parts) - 1
            summed = OverlappedSum(leaves, total) if last and over_ranks and world_size() > 1 else None
            losses = (self._graph or self._at_leaves(part)).losses
            # An exit without a sample leaves its classifier out; a pass at other parameters is needed only once.
            kept = self._graph is not None and self.at is None
            with summed.watching() if summed is not None else nullcontext():
                grads = torch.autograd.grad(
                    losses, leaves, rows, retain_graph=kept, allow_unused=True, materialize_grads=True
                )
            if summed is not None:
                return summed.wait()
            total = list(grads) if total is None else list(torch._foreach_add(total, grads))
        assert total is not None
        return total

    def backward(self, cotangent: Tensor, scale: Callable[[Tensor], Tensor]) -> None:
        """Add the gradient of scale(sum_ik cotangent[i, k] * losses[i, k]) to .grad, averaged over ranks under DDP.

        Running batch-norm statistics move in this pass or, with one micro-batch, moved in the shared one. The graph
        is freed: nothing can be differentiated after it.
        """
        seen = []
        self._tape, self._logits, self._norm_inputs = None, (), ()  # the pass frees what it has read
        for index, (part, rows) in enumerate(self._rows(cotangent)):
            with self.network.sync(last=index == len(self.parts) - 1):
                graph = self._graph or self.network.losses(self.network.logits(part.images), part)
                # Zero, and NaN where a loss is not finite: then no gradient is, on any rank, and nothing moves.
                rows = rows + 0.0 * graph.losses.detach()
                scale((graph.losses * rows).sum()).backward()
            seen.append(graph)
        if self._values is None:
            self._values = _detached(seen)
        self._graph = None

    def linearised(self, keep: bool = False) -> Linearised:
        """The losses as a linear map of the parameters, at those of this pass.

        keep: with a copy of the parameters, so that the map stays true when the optimizer has moved them.
        """
        at: dict[str, Tensor] = {**self.network.parameters} if self.at is None else self.at
        at = {name: p.detach().clone() if keep else p.detach() for name, p in at.items()}
        logits = [z.detach() for z in self._logits]
        return Linearised(self.network, self.half, self.parts, at, self._tape, logits, self._norm_inputs)

    def _at_leaves(self, part: Batch) -> ExitLosses:
        """A pass of its own that moves no running statistics."""
        at: dict[str, Tensor] = {**self.network.parameters} if self.at is None else self.at
        return self.network.losses(self.network.logits(part.images, at, judging=self.judging), part, self.judging)

    def _rows(self, cotangent: Tensor) -> Iterator[tuple[Batch, Tensor]]:
        return zip(self.parts, cotangent.split(len(self.parts[0])), strict=True)


@dataclass(frozen=True)
class Linearised:
    """What the derivative of a half's losses along a direction needs; it outlives the graph of the pass.

    at            the parameters of the pass, by name
    tape, logits  of the pass, where it was recorded
    norm_inputs   of a compiled pass, where they were kept
    """

    network: Network
    half: Batch
    parts: list[Batch]
    at: dict[str, Tensor]
    tape: Tape | None
    logits: Logits
    norm_inputs: Sequence[NormInput]

    def along(self, direction: Sequence[Tensor]) -> Tensor:
        """[n, K]: the derivative of every loss along `direction` (one tensor per parameter).

        replayed  tangents follow the recorded pass
        recorded  the pass runs again, micro-batch by micro-batch, and is followed at once
        compiled  as recorded, in one graph; where the pass was kept, only what is cheap of it runs again
        dual      dual tensors: the pass runs again, and no activation outlives its layer
        """
        moves = dict(zip(self.at, direction, strict=True))
        network = self.network
        if self.tape is not None:
            with torch.no_grad():
                with network.precision.autocast():
                    tangents = self.tape.replay(self.half.images, self.at, moves)
                return network.losses_jvp(self.logits, tangents, self.half)
        if network.tangents in ("recorded", "compiled"):
            return torch.cat([self._followed(part, moves) for part in self.parts])
        rows = []
        with torch.no_grad(), forward_ad.dual_level(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.script`", FutureWarning)  # torch's own forward-mode rules
            dual = {name: forward_ad.make_dual(p, moves[name]) for name, p in self.at.items()}
            for part in self.parts:
                losses = network.losses(network.logits(part.images, dual, eager=True), part).losses
                rows.append(forward_ad.unpack_dual(losses).tangent)
        return torch.cat(rows)

    def _followed(self, part: Batch, moves: dict[str, Tensor]) -> Tensor:
        network = self.network
        with torch.no_grad(), untracked_batch_norm(network.trained):
            with network.precision.autocast():
                images = network.cast(part.images)
                if network.tangents == "compiled":
                    logits, tangents = network.compiled_tangents(images, self.at, moves, self.norm_inputs)
                else:
                    logits, tangents = pushforward(network.trained, images, self.at, moves)
            return network.losses_jvp(logits, tangents, part)


def _detached(parts: Sequence[ExitLosses]) -> ExitLosses:
    if len(parts) == 1:
        return ExitLosses(*(column.detach() for column in parts[0]))
    return ExitLosses(*(torch.cat([column.detach() for column in columns]) for columns in zip(*parts, strict=True)))
