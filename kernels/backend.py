"""Which implementation of an operation runs: its plain torch reference, or its fused Triton kernel."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from typing import Literal, get_args

import torch

Choice = Literal["auto", "reference", "triton"]
Backend = Literal["reference", "triton"]

log = logging.getLogger(__name__)

OPERATIONS = ("exit_losses", "exit_losses_jvp", "exit_routing", "lookahead", "norm_relu", "normalize")
OLDEST_CAPABILITY = (8, 0)  # the oldest architecture that kernels/AOT.md compiles for


def backend_for(
    operation: str, device: torch.device, choice: Choice = "auto", unfit: str = "", slower: str = ""
) -> Backend:
    """The implementation of `operation` for tensors on `device`; logged with the reason, each different answer once.

    choice  auto: triton on an NVIDIA GPU where it can be imported, else the reference; or one of the two by name
    unfit   why the fused kernel does not take this very call (its dtype, its size); "" if it does
    slower  why the reference is the faster one for this very call, which auto heeds; "" if it is not
    The environment's EARLYBIRD_KERNELS puts other choices in the place of auto: "norm_relu=triton,lookahead=reference".
    Raises ValueError for an unknown choice, and where triton is asked for and cannot run.
    """
    if choice == "auto":
        choice = asked(operation)
    if choice not in get_args(Choice):
        raise ValueError(f"kernel backend is {choice!r}; choose one of {', '.join(get_args(Choice))}")
    if choice == "reference":
        return _announce(operation, "reference", device.type, "it was asked for")
    obstacle = unfit or _obstacle(device, forced=choice == "triton") or (slower if choice == "auto" else "")
    if not obstacle:
        reason = "it was asked for" if choice == "triton" else "the device is a GPU"
        return _announce(operation, "triton", device.type, reason)
    if choice == "triton":
        raise ValueError(
            f"the triton kernel of {operation} cannot run here: {obstacle}; set the kernel backend to auto or reference"
        )
    return _announce(operation, "reference", device.type, obstacle)


@functools.cache
def asked(operation: str) -> Choice:
    """What EARLYBIRD_KERNELS, read once, has for `operation`; ValueError where it has no operation or no choice."""
    found: Choice = "auto"
    for part in filter(None, os.environ.get("EARLYBIRD_KERNELS", "").split(",")):
        name, _, choice = part.strip().partition("=")
        if name not in OPERATIONS or choice not in get_args(Choice):
            raise ValueError(
                f"EARLYBIRD_KERNELS has {part!r}; give operation=choice, operations {', '.join(OPERATIONS)}, "
                f"choices {', '.join(get_args(Choice))}"
            )
        if name == operation:
            found = choice  # type: ignore[assignment]
    return found


def interpreting() -> bool:
    """Whether Triton's interpreter was switched on (TRITON_INTERPRET=1 before the kernels are imported)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _obstacle(device: torch.device, forced: bool) -> str:
    if not _has_triton():
        return "triton is not installed"
    if device.type != "cuda":
        # The interpreter is a means of testing, a thousand times slower than torch: never chosen, only forced.
        if forced and interpreting() and device.type == "cpu":
            return ""
        return f"the tensors are on {device.type}, which is no NVIDIA GPU (to test on the CPU: TRITON_INTERPRET=1)"
    return _gpu_obstacle(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None  # 80 us a look, and every step asks


@functools.cache
def _gpu_obstacle(index: int) -> str:
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_CAPABILITY:
        return f"GPU {index} has compute capability {capability}, the kernels need at least {OLDEST_CAPABILITY}"
    return ""


@functools.cache
def _announce(operation: str, backend: Backend, device_type: str, reason: str) -> Backend:
    log.info("%s on %s: %s, because %s", operation, device_type, backend, reason)
    return backend
