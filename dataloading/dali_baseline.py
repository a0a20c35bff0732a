"""What DALI does by itself with files in folders: the pipeline of its own examples, to be compared with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from dataloading import dali_pipelines as graph
from dataloading.config import DataConfig
from dataloading.storage import Storage
from dataloading.stream import Plan, Stream


def file_reader_batches(config: DataConfig, folder: str, batch_size: int, num_threads: int) -> Iterator[int]:
    """Sizes of the training batches that DALI's file reader makes of `folder`, for ever; CPU, uint8, HWC."""
    pipeline = _file_reader(
        folder, config, batch_size=batch_size, num_threads=num_threads, device_id=None, prefetch_queue_depth=2
    )
    pipeline.build()
    while True:
        images, _ = pipeline.run()
        yield len(images)


def decoded_regions(stream: Stream, num_threads: int) -> Iterator[int]:
    """Sizes of batches of regions that are decoded and dropped: what the decoder alone allows.

    Every image must be readable."""
    index = stream.index
    storage = Storage(index, num_threads)
    pipeline = graph.region_pipeline(stream.loaded_batch, num_threads, 2)
    scheduled: list[tuple[Plan, list[np.ndarray]]] = []
    iteration = 0
    while True:
        while len(scheduled) < 2:
            plan = stream.plan(iteration)
            iteration += 1
            data = [storage.read_one(int(row)) for row in plan.ids]
            inside = plan.geometry.inside(index.heights[plan.ids], index.widths[plan.ids])
            pipeline.feed_input(graph.ENCODED, data)
            pipeline.feed_input(graph.START, inside[:, :2].copy())
            pipeline.feed_input(graph.SHAPE, inside[:, 2:].copy())
            pipeline.schedule_run()
            scheduled.append((plan, data))
        pipeline.share_outputs()
        pipeline.release_outputs()
        yield len(scheduled.pop(0)[0])


@pipeline_def  # type: ignore[untyped-decorator]
def _file_reader(folder: str, config: DataConfig) -> Any:
    encoded, labels = fn.readers.file(file_root=folder, random_shuffle=True, initial_fill=256)
    images = fn.decoders.image_random_crop(
        encoded, device="cpu", output_type=types.RGB, random_area=(0.08, 1.0), random_aspect_ratio=(3 / 4, 4 / 3)
    )
    size = config.image_size
    images = fn.resize(images, device="cpu", resize_x=size, resize_y=size)
    return fn.flip(images, device="cpu", horizontal=fn.random.coin_flip()), labels
