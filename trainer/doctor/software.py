"""Versions, and whether they agree: Python, the packages earlybird asks for, torch, DALI, NCCL, the driver."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

import pynvml
import torch
from packaging.requirements import Requirement

from trainer.config import Config
from trainer.doctor.finding import Finding
from trainer.learning.precision import resolve_precision

_DALI = "nvidia-dali-cuda120"
_DALI_CUDA = (12, 0)  # what the package's name says that it is built for
_INSTALL = "install earlybird's requirements into this environment: pip install -c constraints.txt earlybird"


def software(config: Config, device: torch.device) -> Iterator[Finding]:
    """Of this process; the driver too."""
    yield packages()
    yield Finding("torch", "pass", f"torch {torch.__version__}, built for CUDA {torch.version.cuda or 'none'}")
    yield Finding("DALI", "pass", f"{_DALI} {version(_DALI)}, built for CUDA {_DALI_CUDA[0]}")
    yield nccl()
    yield driver(device)
    precision = resolve_precision(config.precision, device)
    layout = "channels-last" if precision.channels_last else "contiguous"
    compiled = ", compiled" if precision.compile else ""
    yield Finding(
        "precision", "pass", f"{str(precision.dtype).removeprefix('torch.')}, {layout}{compiled} on {device.type}"
    )


def packages() -> Finding:
    """Every requirement of the installed earlybird beside what is there."""
    python = f"Python {platform.python_version()}"
    try:
        asked = [Requirement(text) for text in requires("earlybird") or []]
    except PackageNotFoundError:
        return Finding("packages", "warn", f"{python}; earlybird is run from its folder, not installed", _INSTALL)
    asked = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [said for one in asked if (said := _unmet(one))]
    if wrong:
        return Finding("packages", "fail", f"{python}; {'; '.join(wrong)}", _INSTALL)
    return Finding("packages", "pass", f"{python}, earlybird {version('earlybird')}, its {len(asked)} packages fit")


def _unmet(asked: Requirement) -> str:
    try:
        found = version(asked.name)
    except PackageNotFoundError:
        return f"{asked.name} is missing"
    return "" if asked.specifier.contains(found, prereleases=True) else f"{asked.name} {found} is not {asked.specifier}"


def nccl() -> Finding:
    """The NCCL that torch was built with beside the one that it loads."""
    if not torch.distributed.is_nccl_available():
        remedy = "install a torch with CUDA to train on several GPUs; gloo serves processes on CPUs"
        return Finding("NCCL", "warn", "this torch has no NCCL", remedy)
    loaded = ".".join(map(str, torch.cuda.nccl.version()))
    name = f"nvidia-nccl-cu{(torch.version.cuda or '0').partition('.')[0]}"
    try:
        packaged = version(name)
    except PackageNotFoundError:
        return Finding("NCCL", "pass", f"NCCL {loaded}")
    if packaged != loaded:
        remedy = f"unset LD_LIBRARY_PATH or LD_PRELOAD, or install {name}=={loaded}"
        return Finding("NCCL", "warn", f"torch loads NCCL {loaded}, but {name} is {packaged}", remedy)
    return Finding("NCCL", "pass", f"NCCL {loaded}")


def driver(device: torch.device) -> Finding:
    """The driver's CUDA must not be older than what torch and DALI were built for."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        said = f"no NVIDIA driver ({error})"
        if device.type == "cpu":
            return Finding("driver", "pass", f"{said}; not needed on the CPU")
        return Finding("driver", "fail", said, "install the driver, or start the container with --gpus all")
    try:
        name, number = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion_v2()
    finally:
        pynvml.nvmlShutdown()
    return agreement(str(name), (number // 1000, number % 1000 // 10), torch.version.cuda)


def agreement(name: str, its_cuda: tuple[int, int], torch_cuda: str | None) -> Finding:
    """Whether driver `name`, which knows CUDA up to `its_cuda`, serves torch and DALI."""
    said = f"driver {name}, up to CUDA {its_cuda[0]}.{its_cuda[1]}"
    if torch_cuda is None:
        return Finding("driver", "warn", f"{said}, but this torch has no CUDA", "install a torch built for CUDA")
    for what, wanted in (("torch", tuple(map(int, torch_cuda.split(".")[:2]))), ("DALI", _DALI_CUDA)):
        if its_cuda[0] < wanted[0]:
            remedy = f"update the driver to one that knows CUDA {wanted[0]}, or install {what} for CUDA {its_cuda[0]}"
            return Finding("driver", "fail", f"{said}; {what} was built for CUDA {wanted[0]}", remedy)
    return Finding("driver", "pass", f"{said}; torch {torch_cuda} and DALI {_DALI_CUDA[0]} fit")
