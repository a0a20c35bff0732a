"""The DALI graph: encoded bytes to pixels, one definition for every device."""

from __future__ import annotations

from typing import Any

from nvidia.dali import fn, pipeline_def, types

ENCODED, START, SHAPE, PAD, CROP, RESIZE, WINDOW = "encoded", "start", "shape", "pad", "crop", "resize", "window"


def region_pipeline(max_batch: int, num_threads: int, queue: int) -> Any:
    """Encoded bytes, start and shape of a region -> its pixels, uint8 [h, w, 3], on the CPU.

    It ends at the decoder: DALI's CPU resize costs three times torch's (see resize.py).
    """
    return _built(_regions(**_options(max_batch, num_threads, queue, None)))


def image_pipeline(max_batch: int, num_threads: int, queue: int, size: int, device_id: int | None) -> Any:
    """The same, then padded, resized and cut to uint8 [size, size, 3], on the GPU `device_id` from the decoder's second
    half on; None runs the same graph on the CPU, which is how it is tested without a GPU."""
    device = "cpu" if device_id is None else "gpu"
    return _built(_images(device, size, **_options(max_batch, num_threads, queue, device_id)))


def _options(max_batch: int, num_threads: int, queue: int, device_id: int | None) -> dict[str, Any]:
    return {
        "batch_size": max_batch,
        "num_threads": num_threads,
        "prefetch_queue_depth": queue,
        "exec_pipelined": False,
        "device_id": device_id,
    }


def _built(pipeline: Any) -> Any:
    pipeline.build()
    return pipeline


@pipeline_def  # type: ignore[untyped-decorator]
def _regions() -> Any:
    return _decoded("cpu")


@pipeline_def  # type: ignore[untyped-decorator]
def _images(device: str, size: int) -> Any:
    regions = _decoded("mixed" if device == "gpu" else "cpu")
    # Black where the crop reaches outside the image.
    crops = fn.slice(
        regions, start=_numbers(PAD), shape=_numbers(CROP), axes=(0, 1), out_of_bounds_policy="pad", fill_values=0
    )
    resized = fn.resize(crops, size=fn.cast(_numbers(RESIZE), dtype=types.FLOAT), dtype=types.UINT8)
    return fn.slice(resized, start=_numbers(WINDOW), shape=(size, size), axes=(0, 1))


def _decoded(device: str) -> Any:
    """Only the region is decoded. Exact DCT and smooth chroma: on the CPU bit for bit what Pillow decodes."""
    # no_copy: the bytes stay where they lie, in a memory map; the loader holds them until the output has come.
    encoded = fn.external_source(name=ENCODED, dtype=types.UINT8, ndim=1, no_copy=True)
    return fn.decoders.image_slice(
        encoded,
        device=device,
        start=_numbers(START),
        shape=_numbers(SHAPE),
        axes=(0, 1),
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
    )


def _numbers(name: str) -> Any:
    """Two int32 a sample: rows and columns."""
    return fn.external_source(name=name, dtype=types.INT32, ndim=1)
