"""A folded net gives the same logits, and holds no batch-norm."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from trainer.evaluation.early_exit import answer
from trainer.models.build import build_model
from trainer.models.config import ModelConfig, msdnet_cifar, ranet_cifar
from trainer.models.fold import folded, for_inference
from trainer.models.multi_exit import MultiExitNet

_MSDNET = dataclasses.replace(msdnet_cifar(3), first_channels=6, growth=4, classifier_channels=8)
_CONFIGS = {
    "msdnet": _MSDNET,
    "ranet": dataclasses.replace(ranet_cifar("c1"), first_channels=4, classifier_channels=8),
    "imagenet stem": dataclasses.replace(_MSDNET, stem="imagenet", num_exits=2),
    "imta pretrained": dataclasses.replace(_MSDNET, imta="pretrain"),
    "imta finetuned": dataclasses.replace(_MSDNET, imta="finetune"),
}


def trained_net(config: ModelConfig) -> MultiExitNet:
    """In float64, with weights and statistics as training leaves them: nothing is 0 or 1."""
    torch.manual_seed(0)
    net = build_model(config, 5).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
    return net


@pytest.mark.parametrize("name", _CONFIGS)
def test_a_folded_net_gives_the_same_logits(name: str) -> None:
    net, size = trained_net(_CONFIGS[name]), 128 if name == "imagenet stem" else 32
    before = {key: value.clone() for key, value in net.state_dict().items()}
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    small = folded(net)
    with torch.no_grad():
        expected, found = net.eval()(images), small(images)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in small.modules())
    assert not any(parameter.requires_grad for parameter in small.parameters())
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


def test_what_cannot_be_folded_is_refused() -> None:
    net = trained_net(_MSDNET)
    net.stem = nn.Sequential(nn.BatchNorm2d(3), net.stem)
    with pytest.raises(ValueError, match=r"stem\.0 follows no convolution"):
        folded(net)


# For 8 px: one scale, one layer a block. (A first batch of 8 would be compiled anew for the next size.)
_SMALL = dataclasses.replace(_MSDNET, num_exits=2, step_mode="even", growth_factors=(1,), bottleneck_factors=(1,))


@pytest.fixture(scope="module")
def compiled() -> MultiExitNet:
    """Small, for inference; compiled once for all tests."""
    torch._dynamo.reset()
    return for_inference(trained_net(_SMALL).float(), compiled=True)


@torch._dynamo.config.patch(recompile_limit=3, fail_on_recompile_limit_hit=True)
@torch.inference_mode()
def test_a_compiled_net_gives_the_eager_logits_at_any_batch_size(compiled: MultiExitNet) -> None:
    """A graph a part for any number of images, and one more for an image alone. 3 of them shared would not do for 5."""
    eager = for_inference(trained_net(_SMALL).float())
    counts = torch._dynamo.utils.counters["stats"]
    before = counts["unique_graphs"]
    for n in (6, 3):
        images = torch.randn(n, 3, 8, 8).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(compiled(images), eager(images), rtol=1e-4, atol=1e-4)
    assert counts["unique_graphs"] == before + 5
    torch.testing.assert_close(compiled.stem(images[:1])[0], eager.stem(images[:1])[0], rtol=1e-4, atol=1e-4)
    assert counts["unique_graphs"] == before + 6


@torch._dynamo.config.patch(recompile_limit=3, fail_on_recompile_limit_hit=True)
@pytest.mark.parametrize("n", [6, 5])
def test_a_compiled_net_stops_early_with_the_right_answers(compiled: MultiExitNet, n: int) -> None:
    images = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        first, last = for_inference(trained_net(_SMALL).float())(images)
    confidences = first.softmax(1).amax(1)
    ranked = confidences.sort().values
    at = int(ranked.diff().argmax())
    assert ranked[at + 1] - ranked[at] > 1e-3
    halfway = float(ranked[at] + ranked[at + 1]) / 2
    said = answer(compiled, images, [halfway, 0.0])
    leaves = confidences >= halfway
    assert said.exits.tolist() == (~leaves).long().tolist()
    torch.testing.assert_close(said.logits, torch.where(leaves[:, None], first, last), rtol=1e-4, atol=1e-4)


def test_a_torch_without_isolated_graphs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, *, dynamic: model)
    with pytest.raises(ValueError, match="leave --compile out or upgrade"):
        for_inference(trained_net(_SMALL), compiled=True)


@pytest.mark.parametrize("name", ["msdnet", "ranet", "imta finetuned"])
@torch.inference_mode()
def test_bf16_is_no_further_from_float64_than_its_own_rounding(name: str) -> None:
    """At most twice as far as the net that is neither folded nor channels-last, in bf16; and that is not far."""
    net = trained_net(_CONFIGS[name]).eval()
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    exact = torch.stack(net(images))
    small = for_inference(net, torch.bfloat16)
    found = torch.stack(small(images.bfloat16().contiguous(memory_format=torch.channels_last)))
    plain = torch.stack(net.bfloat16()(images.bfloat16()))
    assert found.dtype == torch.bfloat16
    wrong, allowed = ((logits - exact).abs().mean(dim=(1, 2)) for logits in (found, plain))  # of each exit
    assert (wrong <= 2 * allowed).all()
    assert (wrong <= 0.05 * exact.abs().mean(dim=(1, 2))).all()


@pytest.mark.parametrize("name", ["msdnet", "ranet", "imta finetuned"])
def test_early_exit_in_bf16_is_thresholding_its_own_logits(name: str) -> None:
    """Kernels may round otherwise for fewer images, so thresholds stand in the widest gap between confidences."""
    net = for_inference(trained_net(_CONFIGS[name]), torch.bfloat16)
    images = torch.randn(8, 3, 32, 32).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        logits = torch.stack(net(images), dim=1)
    confidences = logits.float().softmax(2).amax(2)
    ranked = confidences.sort(dim=0).values
    at = ranked.diff(dim=0).argmax(dim=0)
    thresholds = (ranked.gather(0, at[None]) + ranked.gather(0, at[None] + 1))[0] / 2
    thresholds[-1] = -1e8
    exits = (confidences >= thresholds).int().argmax(1)
    assert len(set(exits.tolist())) >= 2
    said = answer(net, images, thresholds.tolist())
    assert said.logits.dtype == torch.bfloat16
    assert said.exits.tolist() == exits.tolist()
    expected = logits[torch.arange(8), exits]
    torch.testing.assert_close(said.logits, expected, rtol=2**-6, atol=2**-6 * float(expected.abs().max()))
