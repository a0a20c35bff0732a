"""The stream: none lost, none twice, the same global batches for every world size, from every starting point."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloading.config import DataConfig
from dataloading.index import Index
from dataloading.stream import Plan, Stream, evaluation_plans

CONFIG = DataConfig(image_size=32, resize_size=36)


def _index(num_images: int) -> Index:
    rng = np.random.default_rng(num_images)
    names = [f"{i}.jpg" for i in range(num_images)]
    sides = rng.integers(1, 600, (2, num_images))
    return Index.build(("a", "b"), np.arange(num_images) % 2, names, heights=sides[0], widths=sides[1])


@st.composite
def _runs(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """(images, update batch, world size, accumulation) that fit each other."""
    world_size, accumulation = draw(st.integers(1, 16)), draw(st.integers(1, 3))
    update_batch = world_size * accumulation * draw(st.integers(1, 4))
    return 2 * update_batch + draw(st.integers(0, 300)), update_batch, world_size, accumulation


def _global(index: Index, update_batch: int, world_size: int, accumulation: int, iteration: int, seed: int) -> Plan:
    """The ranks' plans put together again: all first halves, then all second halves."""
    plans = [
        Stream(index, CONFIG, seed, update_batch, rank, world_size, accumulation).plan(iteration)
        for rank in range(world_size)
    ]
    half = len(plans[0]) // 2
    order = [(plan, part) for part in (slice(0, half), slice(half, None)) for plan in plans]
    geometry = {
        name: np.concatenate([getattr(plan.geometry, name)[part] for plan, part in order])
        for name in ("crop", "resize", "window", "flip")
    }
    ids = np.concatenate([plan.ids[part] for plan, part in order])
    return Plan(iteration, plans[0].epoch, ids, type(plans[0].geometry)(**geometry))


def _equal(a: Plan, b: Plan) -> bool:
    same = np.array_equal(a.ids, b.ids) and np.array_equal(a.geometry.crop, b.geometry.crop)
    return same and np.array_equal(a.geometry.flip, b.geometry.flip)


@settings(deadline=None, max_examples=60)
@given(_runs(), st.integers(1, 4))
def test_every_epoch_comes_whole(run: tuple[int, int, int, int], epochs: int) -> None:
    num_images, update_batch, _, _ = run
    stream = Stream(_index(num_images), CONFIG, 3, update_batch)
    seen = np.concatenate([plan.ids for plan in stream.plans(0, stream.num_iterations(epochs))])
    assert epochs * num_images <= len(seen) < epochs * num_images + 2 * update_batch
    for epoch in range(epochs):
        part = seen[epoch * num_images : (epoch + 1) * num_images]
        assert np.array_equal(np.sort(part), np.arange(num_images))


@settings(deadline=None, max_examples=60)
@given(_runs(), st.integers(0, 200))
def test_the_global_batch_is_the_same_for_every_world_size(run: tuple[int, int, int, int], iteration: int) -> None:
    num_images, update_batch, world_size, accumulation = run
    index = _index(num_images)
    alone = Stream(index, CONFIG, 11, update_batch).plan(iteration)
    assert _equal(alone, _global(index, update_batch, world_size, accumulation, iteration, 11))


@settings(deadline=None, max_examples=60)
@given(_runs(), st.integers(0, 100), st.integers(0, 5))
def test_resume_at_any_iteration_gives_the_same_plans(
    run: tuple[int, int, int, int], iteration: int, later: int
) -> None:
    num_images, update_batch, world_size, _ = run
    index, rank = _index(num_images), iteration % world_size
    *_, unbroken = Stream(index, CONFIG, 5, update_batch, rank, world_size).plans(iteration, iteration + later + 1)
    resumed = Stream(index, CONFIG, 5, update_batch, rank, world_size).plan(iteration + later)
    assert _equal(unbroken, resumed)


@settings(deadline=None, max_examples=60)
@given(_runs(), st.integers(1, 5))
def test_epochs_end_where_their_last_image_comes(run: tuple[int, int, int, int], epochs: int) -> None:
    num_images, update_batch, _, _ = run
    stream = Stream(_index(num_images), CONFIG, 0, update_batch)
    total = stream.num_iterations(epochs)
    ended = [stream.ended_epoch(done) for done in range(total + 1)]
    assert [epoch for epoch in ended if epoch is not None] == list(range(epochs))
    for epoch in range(epochs):
        done = ended.index(epoch)
        assert (done - 1) * 2 * update_batch < (epoch + 1) * num_images <= done * 2 * update_batch
        assert stream.epoch_of(stream.first_iteration(epoch)) == epoch


def test_epochs_draw_different_crops() -> None:
    stream = Stream(_index(64), CONFIG, 0, 32)
    first, second = stream.plan(0), stream.plan(1)
    crops = [plan.geometry.crop[np.argsort(plan.ids)] for plan in (first, second)]
    assert (crops[0] != crops[1]).any(1).mean() > 0.8  # the rest are narrow: no draw fits


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 200), st.integers(1, 16), st.integers(1, 20))
def test_evaluation_sees_each_image_once_in_equal_steps(num_images: int, world_size: int, batch_size: int) -> None:
    index = _index(num_images)
    ranks = [list(evaluation_plans(index, CONFIG, batch_size, rank, world_size)) for rank in range(world_size)]
    assert len({tuple(len(plan) for plan in plans) for plans in ranks}) == 1
    seen = np.concatenate([plan.ids[plan.mask] for plans in ranks for plan in plans])
    assert np.array_equal(np.sort(seen), np.arange(num_images))


@pytest.mark.parametrize(
    ("num_images", "update_batch", "world_size", "accumulation", "message"),
    [
        (100, 30, 8, 1, "--set optim.update_batch=24"),
        (100, 30, 4, 4, "--set optim.update_batch=16"),
        (100, 0, 1, 1, "positive multiple"),
        (100, 64, 4, 1, r"100 images.*128.*--set optim.update_batch=48"),
        (7, 8, 8, 1, "fewer ranks"),
    ],
)
def test_batches_that_do_not_fit_are_refused(
    num_images: int, update_batch: int, world_size: int, accumulation: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Stream(_index(num_images), CONFIG, 0, update_batch, 0, world_size, accumulation)


def test_padding_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.padding"):
        Stream(_index(10), DataConfig(augmentation="cifar", image_size=32, padding=32), 0, 2)


def test_the_trace_says_what_the_plan_says() -> None:
    index = _index(50)
    stream = Stream(index, CONFIG, 9, 10, rank=1, world_size=2)
    plan, trace = stream.plan(4), stream.trace(4)
    assert [sample["row"] for sample in trace] == plan.ids.tolist()
    assert [sample["half"] for sample in trace] == ["a"] * 5 + ["b"] * 5
    assert [sample["epoch"] for sample in trace] == [1] * 5 + [1] * 5  # positions 85..89 and 95..99 of 50 an epoch
    assert trace[0]["name"] == index.name(trace[0]["row"])
