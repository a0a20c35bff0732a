"""Images that leave early are answered as if every exit had been computed for all of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dataloading.config import DataConfig
from dataloading.datasets.open import open_dataset
from dataloading.loader import evaluation_loader
from kernels.exit_routing import shares
from trainer.evaluation.budgeted import find_thresholds
from trainer.evaluation.early_exit import answer, rows
from trainer.models.build import build_model
from trainer.models.config import ModelConfig, msdnet_cifar, ranet_cifar
from trainer.models.fold import folded
from trainer.models.multi_exit import MultiExitNet

_MSDNET = dataclasses.replace(msdnet_cifar(3), first_channels=4, growth=2, classifier_channels=4)
_CONFIGS = {
    "msdnet": _MSDNET,
    "ranet": dataclasses.replace(ranet_cifar("c1"), first_channels=4, growth=4, classifier_channels=4),
    "imta": dataclasses.replace(_MSDNET, imta="finetune"),
}


def net_of(config: ModelConfig, dtype: torch.dtype = torch.float64) -> MultiExitNet:
    """A net whose confidences spread: the first classifier layers are scaled up."""
    torch.manual_seed(1)
    net = build_model(config, 5)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=3.0)
    return net.to(dtype).eval()


def thresholded(all_logits: list[Tensor], thresholds: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, classes and exits of the rule itself, from every exit's logits."""
    stacked = torch.stack(all_logits, dim=1)
    reached = stacked.softmax(dim=2).amax(dim=2) >= torch.tensor(thresholds, dtype=stacked.dtype)
    reached[:, -1] = True
    exits = reached.int().argmax(dim=1)
    logits = stacked[torch.arange(len(exits)), exits]
    return logits, logits.argmax(dim=1), exits


def halfway(logits: Tensor, rank: int) -> float:
    """A threshold that the `rank` surest images reach, by an exit's logits [n, C]: none to all of them."""
    ranked = logits.softmax(1).amax(1).sort(descending=True).values.tolist()
    bounds = [2.0, *ranked, -2.0]
    return (bounds[rank] + bounds[rank + 1]) / 2


_NETS = {name: (net := net_of(config), torch.randn(9, 3, 32, 32).double()) for name, config in _CONFIGS.items()}
with torch.no_grad():
    _LOGITS = {name: net(images) for name, (net, images) in _NETS.items()}


@pytest.mark.parametrize("name", _CONFIGS)
@given(data=st.data(), layout=st.sampled_from([torch.contiguous_format, torch.channels_last]))
@settings(max_examples=100, deadline=None)
def test_answers_equal_thresholding_all_logits(name: str, data: st.DataObject, layout: torch.memory_format) -> None:
    net, images = _NETS[name]
    chosen = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=9), "images")  # some twice
    ranks = data.draw(st.lists(st.integers(0, 9), min_size=net.num_exits, max_size=net.num_exits), "reached by")
    thresholds = [halfway(z, rank) for z, rank in zip(_LOGITS[name], ranks, strict=True)]
    logits, classes, exits = thresholded([z[chosen] for z in _LOGITS[name]], thresholds)
    said = answer(net, images[chosen].contiguous(memory_format=layout), thresholds)
    assert said.exits.tolist() == exits.tolist()
    assert said.classes.tolist() == classes.tolist()
    torch.testing.assert_close(said.logits, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(said.confidences, logits.softmax(1).amax(1), rtol=1e-9, atol=1e-9)


def test_later_blocks_see_only_what_is_left() -> None:
    net, images = _NETS["msdnet"]
    sizes: list[int] = []
    hooks = [block.register_forward_hook(lambda _, given, out: sizes.append(len(given[0][0]))) for block in net.blocks]
    confidences = torch.stack([z.softmax(1).amax(1) for z in _LOGITS["msdnet"]], dim=1)
    thresholds = find_thresholds(confidences, torch.tensor([0.5, 0.25, 0.25])).tolist()
    answer(net, images, thresholds)
    answer(net, images, [-1e8, 0.0, 0.0])
    for hook in hooks:
        hook.remove()
    assert sizes == [9, 5, 3, 9]  # 4 leave, then 2; then all at once


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_chosen_rows_keep_their_memory_format(layout: torch.memory_format) -> None:
    feature = torch.randn(4, 3, 5, 5).contiguous(memory_format=layout)
    chosen = rows(feature, torch.tensor([3, 1]))
    assert chosen.is_contiguous(memory_format=layout)
    assert torch.equal(chosen, feature[[3, 1]])


def test_what_stands_twice_in_a_history_is_copied_once() -> None:
    """A RANet's first block ends in what its history also holds: after images left, both are still one tensor."""
    net, images = _NETS["ranet"]
    counts: list[tuple[int, int, int]] = []
    hook = net.blocks[1].register_forward_pre_hook(
        lambda _, given: counts.append((len(given[0][0]), len(given[0]), len({id(one) for one in given[0]})))
    )
    sure = _LOGITS["ranet"][0].softmax(1).amax(1).median().item()
    answer(net, images, [sure, -1e8, 0.0, 0.0, 0.0, 0.0])
    hook.remove()
    ((size, features, tensors),) = counts
    assert 0 < size < len(images)
    assert tensors == features - 1


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, float("nan"), 0.0]])
def test_thresholds_that_do_not_fit_are_refused(thresholds: list[float]) -> None:
    net, images = _NETS["msdnet"]
    with pytest.raises(ValueError, match="give 3 numbers, one an exit"):
        answer(net, images, thresholds)


def test_real_images_leave_where_the_full_logits_say(data_folder: Path) -> None:
    """Float32 and channels-last, as it runs: kernels may round otherwise at another batch size, so thresholds stand in
    the middle between two images' confidences."""
    net = folded(net_of(msdnet_cifar(5), torch.float32)).to(memory_format=torch.channels_last)
    config = DataConfig(path=str(data_folder / "cifar10-jpeg.tar"), augmentation="cifar", image_size=32, num_threads=1)
    index = open_dataset(config, seed=0).val.subset(torch.arange(0, 10_000, 80).numpy())
    loader = evaluation_loader(config, index, batch_size=125, rank=0, world_size=1, device=torch.device("cpu"))
    (batch,) = loader
    loader.close()
    images = batch.normalized(torch.float32, torch.channels_last).images
    with torch.inference_mode():
        all_logits = net(images)
    confidences = torch.stack([z.softmax(1).amax(1) for z in all_logits], dim=1)
    for ratio in (0.5, 1.0):
        thresholds = find_thresholds(confidences, shares(ratio, 5))
        ranked = confidences.sort(dim=0).values
        below = torch.where(ranked < thresholds, ranked, -1.0).amax(dim=0)
        between = [*((thresholds + below) / 2).tolist()[:-1], -1e8]
        said = answer(net, images, between)
        logits, classes, exits = thresholded(all_logits, between)
        assert len(set(exits.tolist())) >= 4
        assert said.exits.tolist() == exits.tolist()
        assert said.classes.tolist() == classes.tolist()
        torch.testing.assert_close(said.logits, logits, rtol=1e-4, atol=1e-4)
