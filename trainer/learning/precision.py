"""In which number formats and memory layout the net runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrecisionConfig:
    """Group `precision`.

    dtype          auto: bf16 on a GPU that has it and float32 elsewhere; float32 | bf16 | fp16 (with a loss scaler);
                   float64 for exactness checks
    channels_last  NHWC memory for images and convolution weights; auto: on a GPU, and on a CPU in bf16
    compile        torch.compile of the net's forward and backward
    cuda_graphs    record whole iterations, meta steps included, as CUDA graphs and replay them: for nets of many small
                   layers, whose kernels run faster than a host launches them; takes memory of its own
    """

    dtype: Literal["auto", "float32", "bf16", "fp16", "float64"] = "auto"
    channels_last: Literal["auto", "on", "off"] = "auto"
    compile: bool = False
    cuda_graphs: bool = False


@dataclass(frozen=True)
class Precision:
    """PrecisionConfig resolved for one device."""

    device: torch.device
    dtype: torch.dtype
    channels_last: bool
    compile: bool
    cuda_graphs: bool = False

    @property
    def parameter_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def image_dtype(self) -> torch.dtype:
        """What the net is fed with: half precision under autocast, else the parameters' own."""
        return self.dtype if self.dtype in (torch.bfloat16, torch.float16) else self.parameter_dtype

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def scaled(self) -> bool:
        """fp16's narrow range needs its loss scaled."""
        return self.dtype == torch.float16

    def autocast(self) -> AbstractContextManager:
        if self.dtype in (torch.bfloat16, torch.float16):
            # The cache is off: a cast kept from a no-grad pass would cut the graph of the next one.
            return torch.autocast(self.device.type, dtype=self.dtype, cache_enabled=False)
        return nullcontext()


def resolve_precision(config: PrecisionConfig, device: torch.device) -> Precision:
    """The precision to run with; ValueError where the device lacks what was asked for."""
    names = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "float64": torch.float64}
    if config.dtype == "auto":
        dtype = torch.bfloat16 if device.type == "cuda" and gpu_has_bf16() else torch.float32
    else:
        dtype = names[config.dtype]
    if dtype == torch.float16 and device.type == "cpu":
        raise ValueError("precision.dtype is fp16 on a CPU, which has no fast fp16; use bf16 or float32")
    if dtype == torch.bfloat16 and device.type == "cpu" and not cpu_has_bf16():
        raise ValueError("precision.dtype is bf16, which this CPU does not have in hardware; use float32")
    if dtype == torch.bfloat16 and device.type == "cuda" and not gpu_has_bf16():
        raise ValueError(
            "precision.dtype is bf16, which this GPU does not have in hardware (compute capability 8.0 and later do); "
            "use fp16 or float32"
        )
    if dtype == torch.bfloat16 and device.type == "cpu" and not torch.cpu._is_amx_tile_supported():
        logger.warning("precision.dtype is bf16 on a CPU without AMX: convolutions are slower there than in float32")
    channels_last = (
        device.type == "cuda" or dtype == torch.bfloat16
        if config.channels_last == "auto"
        else config.channels_last == "on"
    )
    if config.cuda_graphs and device.type != "cuda":
        raise ValueError(f"precision.cuda_graphs is on and the device is {device.type}, which has none; leave it off")
    if config.cuda_graphs and dtype == torch.float16:
        raise ValueError("precision.cuda_graphs is on with fp16, whose loss scaler asks the host; use bf16 or float32")
    return Precision(device, dtype, channels_last, config.compile, config.cuda_graphs)


@contextmanager
def fixed_shapes(device: torch.device) -> Iterator[None]:
    """Work whose shapes recur, as an iteration's do: cuDNN times its algorithms for a convolution that it meets first,
    and keeps the fastest. Early exit's batches have any size, and most convolutions would be met first there.

    Nothing is timed while a graph is recorded, since timing waits for the GPU; what was found before serves there.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
    try:
        yield
    finally:
        cudnn.benchmark = before


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself; oneDNN computes in it on any with AVX-512."""
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last one is Arm's


def gpu_has_bf16() -> bool:
    """Whether this process's GPU multiplies bf16 itself; torch emulates it on older ones."""
    return torch.cuda.is_bf16_supported(including_emulation=False)
