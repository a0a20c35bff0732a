"""On what a figure was measured."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

# Flags of /proc/cpuinfo, the fastest first.
_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 bf16", "avx512f": "AVX-512", "avx2": "AVX2"}


def hardware(device: torch.device) -> dict[str, Any]:
    """Processor and its widest units, cores, torch's threads, device, and how busy the machine was (load average of the
    last minute)."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "load_average": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "nvidia-dali-cuda120", "numpy")}
    return {"python": platform.python_version(), **packages}


def _cpu() -> str:
    """The processor's name and what it multiplies with: names alone do not tell (a hypervisor may hide a unit)."""
    named = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in named.items()}
    flags = facts.get("flags", "").split()
    units = [shown for flag, shown in _UNITS.items() if flag in flags][:2]
    name = facts.get("model name") or platform.processor()
    return f"{name}, {' and '.join(units)}" if units else name
