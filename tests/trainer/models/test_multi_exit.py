"""What holds for every net: shapes, layouts, exits on the way, derivatives in both directions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call

from trainer.models.build import build_model
from trainer.models.config import ModelConfig, msdnet_cifar, ranet_cifar
from trainer.models.multi_exit import MultiExitNet

NETS = {
    "msdnet": ModelConfig(num_exits=3, first_channels=4, growth=2, classifier_channels=8),
    "msdnet-imagenet-stem": ModelConfig(
        stem="imagenet", num_exits=2, first_channels=4, growth=4, growth_factors=(1, 2), bottleneck_factors=(1, 2)
    ),
    "ranet": dataclasses.replace(
        ranet_cifar("c1"), num_exits=3, blocks=(1, 2, 3), first_channels=4, growth=4, base=1, step=1
    ),
    "ranet-equal-scales": dataclasses.replace(
        ranet_cifar("c2"),
        num_exits=4,
        blocks=(1, 2, 3, 4),
        first_channels=4,
        growth=4,
        base=1,
        step_mode="even",
        step=1,
    ),
}


@pytest.fixture(params=NETS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return NETS[request.param]


def built(config: ModelConfig) -> tuple[MultiExitNet, torch.Tensor]:
    torch.manual_seed(0)
    size = 64 if config.stem == "imagenet" else 32
    return build_model(config, 5).double(), torch.randn(6, 3, size, size, dtype=torch.float64)


def test_logits_of_every_exit_use_every_parameter(config: ModelConfig) -> None:
    net, images = built(config)
    logits = net(images)
    assert [tuple(exit_.shape) for exit_ in logits] == [(6, 5)] * config.num_exits
    assert net.num_exits == config.num_exits
    sum(exit_.square().sum() for exit_ in logits).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_samples_that_leave_early_change_nothing_for_the_rest(config: ModelConfig) -> None:
    net, images = built(config)
    net.eval()
    with torch.no_grad():
        expected = net(images)
        rows, features = torch.arange(6), net.stem(images)
        for k in range(net.num_exits):
            features, logits = net.step(k, features)
            torch.testing.assert_close(logits, expected[k][rows], rtol=1e-10, atol=1e-12)
            keep = torch.arange(len(rows))[1:] if len(rows) > 2 else torch.arange(len(rows))
            rows, features = rows[keep], [feature[keep] for feature in features]


def test_channels_last_stays_channels_last(config: ModelConfig) -> None:
    net, images = built(config)
    expected = net(images)
    broken = []

    def look(name: str, *tensors: torch.Tensor) -> None:
        if not all(x.dim() < 4 or x.is_contiguous(memory_format=torch.channels_last) for x in tensors):
            broken.append(name)

    net.to(memory_format=torch.channels_last)
    for name, module in net.named_modules():
        if not any(module.children()):
            module.register_forward_hook(lambda _, inputs, out, name=name: look(name, inputs[0], out))
    torch.testing.assert_close(net(images.to(memory_format=torch.channels_last)), expected, rtol=1e-9, atol=1e-11)
    assert broken == []


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own, on first use
def test_forward_and_reverse_mode_derivatives_agree(config: ModelConfig) -> None:
    net, images = built(config)
    parameters = dict(net.named_parameters())
    for buffer in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        buffer.track_running_stats = False
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}
    loss = torch.stack(net(images)).square().mean()
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    expected = sum((g * direction[name]).sum() for name, g in zip(parameters, gradients, strict=True))
    with torch.no_grad(), forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(p.detach(), direction[name]) for name, p in parameters.items()}
        loss = torch.stack(functional_call(net, dual, (images,))).square().mean()
        torch.testing.assert_close(forward_ad.unpack_dual(loss).tangent, expected, rtol=1e-9, atol=0.0)


def test_every_operation_with_a_tangent_rule_is_a_module(config: ModelConfig) -> None:
    leaves = {type(module) for module in build_model(config, 5).modules() if not any(module.children())}
    assert leaves <= {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Linear, nn.ModuleList}


def test_one_graph_without_breaks(config: ModelConfig) -> None:
    net, images = built(config)
    net.eval()
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images), net(images), rtol=0.0, atol=0.0)
    torch._dynamo.reset()


def test_running_batch_norm_never_reads_the_batch() -> None:
    net, images = built(dataclasses.replace(NETS["msdnet"], batch_norm="running"))
    net.train()
    before = {name: value.clone() for name, value in net.named_buffers()}
    with torch.no_grad():
        torch.testing.assert_close(net(images)[2][:1], net(images[:1])[2], rtol=1e-9, atol=1e-12)
    for name, value in net.named_buffers():
        assert torch.equal(value, before[name]), name
    assert net.training
    assert net.classifiers[0].convs[0].relu.training


def test_initialisation() -> None:
    torch.manual_seed(0)
    net = build_model(msdnet_cifar(5), 100)
    conv = net.classifiers[0].convs[1].conv.weight
    assert conv.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert all(not c.linear.bias.any() for c in net.classifiers)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight == 1).all() and not m.bias.any() for m in norms)


def test_image_size_that_a_classifier_cannot_read_is_refused() -> None:
    net = build_model(msdnet_cifar(5), 10).eval()
    with pytest.raises(ValueError, match="16x16 px; a classifier reads 5 to 12 px"):
        net(torch.zeros(1, 3, 64, 64))


def test_number_of_classes_must_be_the_datas() -> None:
    with pytest.raises(ValueError, match=r"model.num_classes is 10, but the data has 100"):
        build_model(dataclasses.replace(msdnet_cifar(5), num_classes=10), 100)
