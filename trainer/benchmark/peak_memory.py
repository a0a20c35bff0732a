"""Peak memory of a training iteration, taken in a process of its own: `peak_memory_mb` runs this file as a module.

On a GPU what torch's allocator handed out at most; with CUDA graphs what it had from the GPU, since nothing is handed
out for a replay, whose memory stays reserved. On a CPU the highest resident size during a second iteration, less what
was resident before it, plus the state's own bytes: so the interpreter, the libraries and a compiler do not count.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from dataloading.heap import trim_heap
from trainer.benchmark.iteration import fresh_state, iterate, random_batch, ready
from trainer.config import Config, to_dict
from trainer.learning.state import TrainState
from trainer.settings import from_dict


def peak_memory_mb(config: Config, num_images: int, num_classes: int, device: torch.device) -> float | None:
    """Megabytes (1e6 bytes) at the peak of an iteration of `num_images` with the meta step that `config` asks for.

    None on systems other than Linux, where a CPU process cannot ask for its peak anew.
    """
    if device.type == "cpu" and not sys.platform.startswith("linux"):
        return None
    task = {"config": to_dict(config), "num_images": num_images, "num_classes": num_classes, "device": str(device)}
    done = subprocess.run(
        [sys.executable, "-m", "trainer.benchmark.peak_memory"],
        input=json.dumps(task),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def peak_bytes(device: torch.device, cuda_graphs: bool) -> int:
    """Of a GPU's memory at most since `torch.cuda.reset_peak_memory_stats`."""
    return torch.cuda.max_memory_reserved(device) if cuda_graphs else torch.cuda.max_memory_allocated(device)


def _measure(config: Config, num_images: int, num_classes: int, device: torch.device) -> float:
    state = fresh_state(config, num_classes, device)
    batch = random_batch(config, state, num_images, num_classes)
    iteration = ready(state, batch)  # makes momentum buffers, loads kernels, compiles, records
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        iterate(state, batch, iteration)
        return peak_bytes(device, config.precision.cuda_graphs) / 1e6
    trim_heap()
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here (Linux, proc(5))
    iterate(state, batch, iteration)
    return (_resident_bytes("VmHWM") - before + _state_bytes(state)) / 1e6


def _resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _state_bytes(state: TrainState) -> int:
    optimizers = [state.optimizer, state.weight_net_optimizer]
    held = [v for o in optimizers if o is not None for slot in o.state.values() for v in slot.values()]
    held += state.network.module.state_dict().values()
    held += [] if state.weight_net is None else state.weight_net.state_dict().values()
    return sum(t.numel() * t.element_size() for t in held if isinstance(t, Tensor))


if __name__ == "__main__":
    task = json.load(sys.stdin)
    where = torch.device(task["device"])
    print(_measure(from_dict(Config, task["config"]), task["num_images"], task["num_classes"], where))
