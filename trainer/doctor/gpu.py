"""The GPUs of this machine: what they are, whether they compute, who else uses them, what decodes JPEG."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files

import pynvml
import torch

from trainer.doctor.finding import Finding

_HARDWARE = 3  # NVJPEG_BACKEND_HARDWARE of nvjpeg.h
_NVJPEG = "nvidia-nvjpeg-cu12"  # what DALI brings
_SLOWED = 0x08 | 0x40 | 0x80  # NVML's reasons for a lower clock: hardware, heat, power brake
_BUSY = 0.05  # of a GPU's memory, held before we came


def gpus(asked: str) -> Iterator[Finding]:
    """asked  auto | cpu | cuda, as --device says"""
    if asked == "cpu":
        yield Finding("GPU", "pass", "not looked at: --device is cpu")
        return
    if not torch.cuda.is_available():
        remedy = "nvidia-smi and CUDA_VISIBLE_DEVICES say why; without a GPU, train with --device cpu"
        if asked == "cuda":
            yield Finding("GPU", "fail", "no GPU, and --device is cuda", remedy, {"number": 0})
        else:
            yield Finding("GPU", "warn", "no GPU: training runs on the CPU", remedy, {"number": 0})
        yield Finding("JPEG unit", "pass", "no GPU, so no unit: JPEG is decoded on the CPU (data.decode=auto)")
        return
    for number in range(torch.cuda.device_count()):
        yield _gpu(number)
        yield from _health(number)
    yield _peers()
    yield jpeg_unit()


def _gpu(number: int) -> Finding:
    """Its memory, and a product of small whole numbers, which is exact in every precision."""
    properties, device = torch.cuda.get_device_properties(number), torch.device("cuda", number)
    free, total = torch.cuda.mem_get_info(device)
    capability = f"sm_{properties.major}{properties.minor}"
    said = f"{number}: {properties.name}, {total / 2**30:.0f} GiB ({free / 2**30:.0f} free), {capability}"
    values = {"number": number, "name": properties.name, "total_bytes": total, "free_bytes": free}
    known = torch.cuda.get_arch_list()
    if not any(_serves(arch, properties.major, properties.minor) for arch in known):
        remedy = f"install a torch built for it; this one knows {' '.join(known)}"
        return Finding("GPU", "fail", f"{said}: this torch has no code for it", remedy, values)
    left = torch.arange(64 * 64).remainder(7).reshape(64, 64).float()
    if not torch.equal((left.to(device) @ left.to(device)).cpu(), left @ left):
        remedy = "take the node out of service; dcgmi diag -r 3 finds the fault"
        return Finding("GPU", "fail", f"{said}: a product comes out wrong", remedy, values)
    if total - free > _BUSY * total + 2**30:  # a gibibyte is torch's own context
        remedy = "nvidia-smi lists who holds it; end those, or take another GPU with CUDA_VISIBLE_DEVICES"
        return Finding("GPU", "warn", f"{said}: its memory is in use already", remedy, values)
    return Finding("GPU", "pass", said, values=values)


def _serves(arch: str, major: int, minor: int) -> bool:
    """Code for sm_XY runs on every GPU of generation X from Y on; compute_XY is compiled for any newer one."""
    kind, _, digits = arch.partition("_")
    if not digits.isdecimal():
        return False  # sm_90a and its like run on that GPU alone, beside the plain one
    theirs = (int(digits[:-1]), int(digits[-1]))
    return theirs <= (major, minor) if kind == "compute" else theirs[0] == major and theirs[1] <= minor


def _health(number: int) -> Iterator[Finding]:
    """Memory errors that were not corrected since the driver came up, and clocks that were lowered."""
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(number).uuid}")
        errors = pynvml.nvmlDeviceGetTotalEccErrors(
            handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        )
        if errors:
            remedy = "drain the node and reset or replace the GPU"
            yield Finding("GPU", "fail", f"{number}: {errors} memory errors that were not corrected", remedy)
        if pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & _SLOWED:
            remedy = "see to its cooling and power (nvidia-smi -q -d PERFORMANCE)"
            yield Finding("GPU", "warn", f"{number}: its clock is lowered by heat or power", remedy)
    except pynvml.NVMLError as error:  # slices of a GPU and some clouds answer no such question
        yield Finding("GPU", "warn", f"{number}: its health is not told ({error})", "ask on the machine that owns it")
    finally:
        pynvml.nvmlShutdown()


def _peers() -> Finding:
    number = torch.cuda.device_count()
    pairs = [(a, b) for a in range(number) for b in range(number) if a != b]
    apart = [pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)]
    if apart:
        remedy = "nvidia-smi topo -p2p r shows which; without it, NCCL goes through the host's memory"
        return Finding("GPU links", "warn", f"{len(apart)} of {len(pairs)} pairs go through the host", remedy)
    return Finding("GPU links", "pass", "every pair reaches each other directly" if pairs else "one GPU, no pair")


def jpeg_unit() -> Finding:
    """Of the first GPU, by nvJPEG itself: A100, H100 and later ones of their kind have one."""
    torch.cuda.init()
    try:
        paths = [path for path in files(_NVJPEG) or [] if path.name.startswith("libnvjpeg.so")]
        library = ctypes.CDLL(str(paths[0].locate()))
    except (PackageNotFoundError, IndexError, OSError) as error:
        remedy = f"install {_NVJPEG}, which DALI asks for"
        return Finding("JPEG unit", "warn", f"nvJPEG cannot be loaded ({error})", remedy)
    handle, engines, cores = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_uint()
    torch.zeros(1, device="cuda:0")  # a context for nvJPEG to live in
    status = library.nvjpegCreateEx(_HARDWARE, None, None, 0, ctypes.byref(handle))
    if status == 0:
        try:
            status = library.nvjpegGetHardwareDecoderInfo(handle, ctypes.byref(engines), ctypes.byref(cores))
        finally:
            library.nvjpegDestroy(handle)
    if status != 0 or engines.value == 0:
        return Finding("JPEG unit", "pass", "this GPU has none: its cores decode (data.decode=auto tries the CPU too)")
    said = f"{engines.value} engines of {cores.value} cores; data.hardware_decoder_load (0 by default) sets their share"
    return Finding("JPEG unit", "pass", said, values={"engines": engines.value, "cores": cores.value})
