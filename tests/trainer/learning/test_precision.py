"""Which number formats a device gets, and which it is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from trainer.learning import precision
from trainer.learning.precision import PrecisionConfig, resolve_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match=r"precision\.dtype is fp16 on a CPU.*use bf16 or float32"):
        resolve_precision(PrecisionConfig(dtype="fp16"), CPU)


def test_bf16_is_refused_where_it_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    with pytest.raises(ValueError, match=r"precision\.dtype is bf16.*use float32"):
        resolve_precision(PrecisionConfig(dtype="bf16"), CPU)
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    assert resolve_precision(PrecisionConfig(dtype="bf16"), CPU).dtype == torch.bfloat16
    monkeypatch.setattr(precision, "gpu_has_bf16", lambda: False)
    with pytest.raises(ValueError, match=r"precision\.dtype is bf16, which this GPU.*use fp16 or float32"):
        resolve_precision(PrecisionConfig(dtype="bf16"), GPU)


@pytest.mark.parametrize(("major", "has_bf16"), [(7, False), (8, True), (9, True)])
def test_a_gpu_that_emulates_bf16_has_none(monkeypatch: pytest.MonkeyPatch, major: int, has_bf16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert torch.cuda.is_bf16_supported()
    assert precision.gpu_has_bf16() is has_bf16


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"avx512_f": True, "avx512_bw": True, "avx512_vl": True, "avx512_dq": True}, False),
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_tile": True, "amx_bf16": True}, True),
        ({"architecture": "arm64", "neon": True, "bf16": True}, True),
    ],
)
def test_a_cpu_has_bf16_by_its_instructions(
    monkeypatch: pytest.MonkeyPatch, has: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert precision.cpu_has_bf16() is expected


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_follows_the_device(monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr(precision, "gpu_has_bf16", lambda: has_bf16)
    on_gpu, on_cpu = (resolve_precision(PrecisionConfig(), device) for device in (GPU, CPU))
    assert on_gpu.dtype == expected
    assert on_gpu.memory_format == torch.channels_last
    assert on_cpu.dtype == torch.float32
    assert on_cpu.memory_format == torch.contiguous_format


@pytest.mark.parametrize(
    ("dtype", "parameters", "images", "scaled"),
    [
        ("float32", torch.float32, torch.float32, False),
        ("float64", torch.float64, torch.float64, False),
        ("bf16", torch.float32, torch.bfloat16, False),
        ("fp16", torch.float32, torch.float16, True),
    ],
)
def test_what_is_kept_in_which_format(
    monkeypatch: pytest.MonkeyPatch, dtype: str, parameters: torch.dtype, images: torch.dtype, scaled: bool
) -> None:
    monkeypatch.setattr(precision, "gpu_has_bf16", lambda: True)
    chosen = resolve_precision(PrecisionConfig(dtype=dtype), GPU)  # type: ignore[arg-type]
    assert (chosen.parameter_dtype, chosen.image_dtype, chosen.scaled) == (parameters, images, scaled)


@pytest.mark.parametrize(("setting", "expected"), [("on", torch.channels_last), ("off", torch.contiguous_format)])
def test_channels_last_can_be_set(setting: str, expected: torch.memory_format) -> None:
    for device in (CPU, GPU):
        chosen = resolve_precision(PrecisionConfig(channels_last=setting), device)  # type: ignore[arg-type]
        assert chosen.memory_format == expected


def test_cuda_graphs_need_a_gpu_and_no_loss_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "gpu_has_bf16", lambda: True)
    with pytest.raises(ValueError, match=r"precision\.cuda_graphs is on and the device is cpu.*leave it off"):
        resolve_precision(PrecisionConfig(cuda_graphs=True), CPU)
    with pytest.raises(ValueError, match=r"precision\.cuda_graphs is on with fp16.*use bf16 or float32"):
        resolve_precision(PrecisionConfig(dtype="fp16", cuda_graphs=True), GPU)
    assert resolve_precision(PrecisionConfig(dtype="bf16", cuda_graphs=True), GPU).cuda_graphs


@pytest.mark.parametrize(
    ("device", "capturing", "expected"), [(GPU, False, True), (GPU, True, False), (CPU, False, False)]
)
def test_cudnn_times_its_algorithms_where_shapes_recur_and_nothing_is_recorded(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, capturing: bool, expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    for outside in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", outside)
        with precision.fixed_shapes(device):
            assert torch.backends.cudnn.benchmark is expected
        assert torch.backends.cudnn.benchmark is outside
