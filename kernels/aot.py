"""Every fused kernel compiled ahead of time, without a GPU: registers, spills and shared memory of each form.

    python -m kernels.aot                  the table, as markdown
    python -m kernels.aot --json           one JSON row per form
    python -m kernels.aot --write FILE     the table into a file

The operations are called on small CPU tensors and each launch is compiled instead of run, by the same binding of
arguments that a launch goes through: the table shows what a GPU would be given, not a transcript of it.
Must not run under TRITON_INTERPRET=1, which replaces the kernels when they are imported.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from kernels.backend import interpreting

ARCHITECTURES = (80, 90)  # A100, H100
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Exits, classes, label smoothing: the recipes' nets on every data set, smoothing, and the widest head.
HEADS = [(5, 10, 0.0), *((exits, 100, 0.0) for exits in (5, 6, 7, 8)), (5, 1000, 0.0), (8, 1000, 0.0)]
HEADS += [(5, 1000, 0.1), (8, 21_841, 0.1)]
# Activations: channels-last of many channels, of CIFAR's narrowest layer and of 144 channels, whose rows no wide block
# divides; contiguous ones.
NORMS = [((8, 128, 8, 8), True), ((8, 6, 32, 32), True), ((8, 144, 8, 8), True), ((8, 16, 7, 7), False)]


@dataclass(frozen=True)
class Form:
    """One kernel compiled for one architecture; sizes in bytes, registers per thread."""

    kernel: str
    dtype: str
    constants: str
    arch: str
    num_warps: int
    registers: int
    spill_stores: int
    spill_loads: int
    shared: int


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """(dtype, a call that launches kernels): the shapes that training uses and the widest that are supported."""
    from kernels.exit_losses import fused as exit_losses
    from kernels.exit_routing import fused as exit_routing
    from kernels.lookahead import fused as lookahead
    from kernels.norm_relu import fused as norm_relu
    from kernels.norm_relu.reference import Running
    from kernels.normalize import fused as normalize

    def forward_and_backward(logits: list[Tensor], labels: Tensor, smoothing: float) -> None:
        exit_losses.exit_losses(logits, labels, smoothing).losses.sum().backward()

    def norm_relu_each_way(x: Tensor, wide: Tensor) -> None:
        c = torch.zeros(x.shape[1])
        for running in (None, Running(c, c, torch.tensor(0), 0.1)):
            y = norm_relu.norm_relu(x.requires_grad_(), c.requires_grad_(), c, 1e-5, running).y
        for dy in (torch.empty_like(y), wide.narrow(1, 0, len(c))):  # the second as a concatenation's backward gives it
            torch.autograd.grad(y, x, dy, retain_graph=True)
        norm_relu.norm_relu_jvp(x, x, c, c, c, c, c, c)

    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for num_exits, num_classes, smoothing in HEADS:
            logits = [torch.zeros(2, num_classes, dtype=dtype, requires_grad=True) for _ in range(num_exits)]
            labels = torch.zeros(2, dtype=torch.int64)
            yield name, partial(forward_and_backward, logits, labels, smoothing)
            yield name, partial(exit_losses.exit_losses_jvp, logits, logits, labels, smoothing)
        for shape, channels_last in NORMS:
            order = torch.channels_last if channels_last else torch.contiguous_format
            x, wide = (torch.zeros(shape[0], C, *shape[2:], dtype=dtype) for C in (shape[1], 2 * shape[1]))
            yield name, partial(norm_relu_each_way, x.to(memory_format=order), wide.to(memory_format=order))
        images = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
        out = torch.empty(1, 3, 224, 224, dtype=dtype, memory_format=torch.channels_last)
        for flip in (None, torch.ones(1, dtype=torch.bool)):
            yield name, partial(normalize.normalize, images, (0.5,) * 3, (0.5,) * 3, out, flip)
    for num_samples, num_exits in ((512, 5), (2048, 5), (8192, 8)):
        quotas = [1, *(num_samples // num_exits,) * (num_exits - 2)]  # Triton compiles a quota of 1 in
        quotas.append(num_samples - sum(quotas))
        yield "float32", partial(exit_routing.route, torch.zeros(num_samples, num_exits), quotas)
    p = [torch.zeros(8)]
    for lr in (0.1, torch.tensor(0.1)):
        for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True)):
            yield "float32", partial(lookahead.lookahead, p, p, p, lr, momentum, 1e-4, nesterov)


def compile_all() -> list[Form]:
    """Every form on every architecture; seconds, and nothing once Triton's cache holds them."""
    if interpreting():
        raise ValueError("TRITON_INTERPRET=1 replaces the kernels; unset it to compile them")
    forms: dict[Form, None] = {}
    for dtype, call in calls():
        with _launches() as launches:
            call()
        for kernel, arguments, keywords in launches:
            for arch in ARCHITECTURES:
                forms[_compile(kernel, arguments, keywords, dtype, arch)] = None
    return list(forms)


@contextmanager
def _launches() -> Iterator[list[tuple[Any, tuple[Any, ...], dict[str, Any]]]]:
    from triton.runtime.jit import JITFunction

    launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def record(kernel: Any, *arguments: Any, grid: object, warmup: bool, **keywords: Any) -> None:
        launches.append((kernel, arguments, keywords))

    with mock.patch.object(JITFunction, "run", record):
        yield launches


def _compile(kernel: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], dtype: str, arch: int) -> Form:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    target = GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*arguments, **keywords)
    options, signature, constexprs, attrs = kernel._pack_args(backend, keywords, bound, specialization, options)
    compiled = triton.compile(ASTSource(kernel, signature, constexprs, attrs), target, options.__dict__)
    named = {k: v for k, v in keywords.items() if k != "num_warps"}
    return Form(
        kernel=kernel.__name__,
        dtype=dtype,
        constants=" ".join(f"{k}={v}" for k, v in named.items()),
        arch=f"sm_{arch}",
        num_warps=keywords["num_warps"],
        shared=compiled.metadata.shared,
        **_resources(compiled.asm["ptx"], arch),
    )


def _resources(ptx: str, arch: int) -> dict[str, int]:
    """Registers and spills as ptxas reports them: attributes of a compiled kernel would need a GPU to load it."""
    from triton.backends import nvidia

    ptxas = Path(nvidia.__file__).parent / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        gpu = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
        command = [str(ptxas), "-v", f"-arch={gpu}", str(source), "-o", str(Path(folder, "kernel.cubin"))]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "registers": _number(r"Used (\d+) registers", report),
        "spill_stores": _number(r"(\d+) bytes spill stores", report),
        "spill_loads": _number(r"(\d+) bytes spill loads", report),
    }


def _number(pattern: str, report: str) -> int:
    found = re.search(pattern, report)
    if found is None:
        raise RuntimeError(f"ptxas -v printed no {pattern!r}:\n{report}")
    return int(found[1])


def table(forms: list[Form]) -> str:
    heads = list(asdict(forms[0]))
    rows = [heads, ["---"] * len(heads), *([str(v) for v in asdict(form).values()] for form in forms)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON row per form instead of the table")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table into FILE")
    options = parser.parse_args()
    import triton

    forms = compile_all()
    intro = (
        "# Fused kernels, compiled ahead of time\n\n"
        f"Written by `python -m kernels.aot --write kernels/AOT.md` with Triton {triton.__version__} and its ptxas. "
        "Compiling is not running: these\nfigures say that every form compiles, and what it asks of the GPU, not how "
        "fast it is.\n\n"
    )
    if options.write:
        options.write.write_text(intro + table(forms) + "\n")
    print("\n".join(json.dumps(asdict(form)) for form in forms) if options.json else table(forms))


if __name__ == "__main__":
    main()
