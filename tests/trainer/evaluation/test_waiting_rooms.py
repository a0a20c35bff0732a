"""Images that wait for others are answered as if every exit had been computed for all of them, each of them once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer.evaluation.early_exit import answer, in_order
from trainer.evaluation.waiting_rooms import WaitingRooms, _Group, _Room, answer_stream
from trainer.models.build import build_model
from trainer.models.config import ModelConfig, msdnet_cifar, ranet_cifar
from trainer.models.multi_exit import MultiExitNet

_MSDNET = dataclasses.replace(msdnet_cifar(3), first_channels=4, growth=2, classifier_channels=4)
_CONFIGS = {
    "msdnet": _MSDNET,
    "ranet": dataclasses.replace(ranet_cifar("c1"), first_channels=4, growth=4, classifier_channels=4),
    "imta": dataclasses.replace(_MSDNET, imta="finetune"),
}
NUM_IMAGES = 9


def net_of(config: ModelConfig) -> MultiExitNet:
    """A net in float64 whose confidences spread: its linear layers are scaled up."""
    torch.manual_seed(1)
    net = build_model(config, 5)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=3.0)
    return net.double().eval()


_IMAGES = torch.randn(NUM_IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()
_NETS = {name: net_of(config) for name, config in _CONFIGS.items()}
with torch.no_grad():
    _LOGITS = {name: torch.stack(net(_IMAGES), dim=1) for name, net in _NETS.items()}


def halfway(name: str, ranks: list[int]) -> list[float]:
    """[K] thresholds that the ranks[k] surest of the 9 images reach at exit k."""
    ranked = _LOGITS[name].softmax(2).amax(2).sort(dim=0, descending=True).values
    bounds = torch.cat([torch.full_like(ranked[:1], 2.0), ranked, torch.full_like(ranked[:1], -2.0)])
    return [float(bounds[rank, k] + bounds[rank + 1, k]) / 2 for k, rank in enumerate(ranks)]


def thresholds_of(name: str) -> st.SearchStrategy[list[float]]:
    """Any that part the images, or none of them, at each exit."""
    num_exits = _NETS[name].num_exits
    ranks = st.lists(st.integers(0, NUM_IMAGES), min_size=num_exits, max_size=num_exits)
    return ranks.map(lambda each: halfway(name, each))


@contextmanager
def sizes_seen(net: MultiExitNet, rooms: WaitingRooms | None = None) -> Iterator[list[tuple[int, int, list[int]]]]:
    """Fills with (block, images that it sees, images that wait meanwhile)."""
    seen: list[tuple[int, int, list[int]]] = []

    def watched(k: int) -> None:
        def note(_: nn.Module, given: tuple[list[Tensor]]) -> None:
            (size,) = {len(feature) for feature in given[0]}
            seen.append((k, size, rooms.waiting if rooms else []))

        hooks.append(net.blocks[k].register_forward_pre_hook(note))

    hooks: list = []
    for k in range(net.num_exits):
        watched(k)
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", _CONFIGS)
@given(data=st.data(), layout=st.sampled_from([torch.contiguous_format, torch.channels_last]))
@settings(max_examples=100, deadline=None)
def test_answers_equal_thresholding_all_logits(name: str, data: st.DataObject, layout: torch.memory_format) -> None:
    net = _NETS[name]
    chosen = data.draw(st.lists(st.integers(0, NUM_IMAGES - 1), max_size=14), "images")  # some twice
    cuts = sorted(data.draw(st.lists(st.integers(0, len(chosen)), max_size=4), "where batches end"))
    batch = data.draw(st.integers(1, 5), "batch")
    thresholds = data.draw(thresholds_of(name), "thresholds")
    bounds = [0, *cuts, len(chosen)]
    batches = [_IMAGES[chosen[a:b]].contiguous(memory_format=layout) for a, b in pairwise(bounds)]
    parts = list(answer_stream(net, batches, thresholds, batch))
    positions = [int(position) for part, _ in parts for position in part]
    assert sorted(positions) == list(range(len(chosen)))  # none lost, none twice
    if not chosen:
        return
    all_logits = _LOGITS[name][chosen]
    reached = all_logits.softmax(2).amax(2) >= torch.tensor(thresholds, dtype=torch.float64)
    reached[:, -1] = True
    exits = reached.int().argmax(1)
    logits = all_logits[torch.arange(len(chosen)), exits]
    said = in_order(parts)
    assert said.exits.tolist() == exits.tolist()
    assert said.classes.tolist() == logits.argmax(1).tolist()
    torch.testing.assert_close(said.logits, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(said.confidences, logits.softmax(1).amax(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", _CONFIGS)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_blocks_see_full_batches_and_few_images_wait(name: str, data: st.DataObject) -> None:
    net, batch = _NETS[name], data.draw(st.integers(1, 4), "batch")
    chosen = data.draw(st.lists(st.integers(0, NUM_IMAGES - 1), min_size=1, max_size=24), "images")
    thresholds = data.draw(thresholds_of(name), "thresholds")
    rooms = WaitingRooms(net, thresholds, batch)
    with sizes_seen(net, rooms) as seen:
        rooms.enter(_IMAGES[chosen])
        assert [size for _, size, _ in seen] == [batch] * len(seen)
        assert max(rooms.waiting) < batch
        before, left = len(seen), sum(rooms.waiting)
        rooms.empty()
    assert all(max(waiting) <= 2 * batch - 1 for *_, waiting in seen)
    assert sum(rooms.waiting) == 0
    # What is left merges on its way: in the flush no block runs on less than a batch more than once.
    short = [k for k, size, _ in seen[before:] if size < batch]
    assert len(set(short)) == len(short)
    assert not left or seen[before][0] == min(k for k, *_ in seen[before:])


def test_what_is_full_goes_before_what_is_left() -> None:
    """In threes. Two images wait in each room; those of the first two rooms make four, and three of these run on before
    the fourth: with it six would wait in the last room."""
    net, confidences = _NETS["msdnet"], _LOGITS["msdnet"].softmax(2).amax(2)
    first, *others = confidences[:, 0].argsort(descending=True).tolist()
    second, *last = sorted(others, key=lambda image: -float(confidences[image, 1]))
    thresholds = [
        float(confidences[[first, others[0]], 0].mean()),
        float(confidences[[second, last[0]], 1].mean()),
        -1e8,
    ]
    rooms = WaitingRooms(net, thresholds, 3)
    with sizes_seen(net, rooms) as seen:
        rooms.enter(_IMAGES[[last[0], last[1], second]])
        rooms.enter(_IMAGES[[last[2], last[3], first]])
        rooms.enter(_IMAGES[[last[4], last[5]]])
        assert rooms.waiting == [2, 2, 2]
        before = len(seen)
        rooms.empty()
    assert [(k, size) for k, size, _ in seen[before:]] == [(0, 2), (1, 3), (2, 3), (1, 1), (2, 3)]
    assert max(max(waiting) for *_, waiting in seen) <= 5


def test_survivors_of_two_batches_run_together() -> None:
    """4 of 8 images stay at exit 1: the next block runs once on a full batch, where `answer` runs it on each half."""
    net = _NETS["msdnet"]
    confidences = _LOGITS["msdnet"][:, 0].softmax(1).amax(1)
    order = confidences.argsort(descending=True)
    sure, unsure = order[:4].tolist(), order[-4:].tolist()
    batches = [_IMAGES[[sure[0], unsure[0], sure[1], unsure[1]]], _IMAGES[[sure[2], unsure[2], unsure[3], sure[3]]]]
    thresholds = [float(confidences[order[3]] + confidences[order[4]]) / 2, -1e8, -1e8]
    with sizes_seen(net) as together:
        positions = [part.tolist() for part, _ in answer_stream(net, batches, thresholds, 4)]
    with sizes_seen(net) as alone:
        for images in batches:
            answer(net, images, thresholds)
    assert [(k, size) for k, size, _ in together] == [(0, 4), (0, 4), (1, 4)]
    assert [(k, size) for k, size, _ in alone] == [(0, 4), (1, 2), (0, 4), (1, 2)]
    assert positions == [[0, 2], [4, 7], [1, 3, 5, 6]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_room_holds_what_was_put_there_side_by_side(channels: int, layout: torch.memory_format) -> None:
    """In its own layout; a feature that stands twice in the list is copied once."""
    parts = [torch.randn(n, channels, 5, 5).contiguous(memory_format=layout) for n in (2, 4)]
    whole, before = torch.cat([parts[0][[1]], parts[1][[3, 0, 2]]]), torch.randn(4, 3)
    groups = [_Group(torch.arange(len(x)), [x, x], before[: len(x)]) for x in parts]
    room = _Room(3)
    for _ in range(3):  # in the same memory
        room.put(groups[0], torch.tensor([1]))
        room.put(groups[1], torch.tensor([3, 0, 2]))
        assert room.waiting == 4
        first, rest = room.take(), room.take()
        assert room.waiting == 0
        assert torch.equal(torch.cat([first.features[0], rest.features[0]]), whole)
        assert first.features[0] is first.features[1]
        assert first.features[0].is_contiguous(memory_format=layout)
        assert first.positions.tolist() == [1, 3, 0]
        assert rest.positions.tolist() == [2]
        assert first.before is not None
        assert torch.equal(first.before, before[[1, 3, 0]])


def test_what_waits_stays_channels_last() -> None:
    net = net_of(_MSDNET).to(memory_format=torch.channels_last)
    layouts: list[bool] = []
    for block in net.blocks[1:]:
        block.register_forward_pre_hook(
            lambda _, given: layouts.extend(x.is_contiguous(memory_format=torch.channels_last) for x in given[0])
        )
    images = _IMAGES.contiguous(memory_format=torch.channels_last)
    list(answer_stream(net, [images], halfway("msdnet", [3, 4, 9]), 2))
    assert layouts
    assert all(layouts)


def test_the_caller_keeps_its_gradients() -> None:
    """Nothing of inference mode outlasts the step from one answer to the next."""
    for _ in answer_stream(_NETS["msdnet"], [_IMAGES], halfway("msdnet", [3, 4, 9]), 2):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_what_does_not_fit_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="give 3 numbers, one an exit"):
        answer_stream(_NETS["msdnet"], [], [0.5], 2)
    with pytest.raises(ValueError, match="--batch is 0; give the number of images that run together"):
        answer_stream(_NETS["msdnet"], [], [0.5, 0.5, 0.0], 0)
