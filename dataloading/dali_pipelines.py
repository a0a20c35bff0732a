"""The DALI graph: encoded bytes to pixels, one definition for every device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nvidia.dali import fn, pipeline_def, types

ENCODED, START, SHAPE, PAD, CROP, RESIZE, WINDOW = "encoded", "start", "shape", "pad", "crop", "resize", "window"


@dataclass(frozen=True)
class Decoder:
    """Who decodes.

    on_gpu         nvJPEG, whose Huffman stage runs on the CPU or in the GPU's JPEG unit; else libjpeg-turbo on the CPU
    hardware_load  share of the images that go to the JPEG unit, where the GPU has one (A100 and later)
    height, width  pixels that the JPEG unit's buffers are made for at once: a larger image makes them grow; 0: none
    """

    on_gpu: bool = False
    hardware_load: float = 0.0
    height: int = 0
    width: int = 0


def region_pipeline(max_batch: int, num_threads: int, queue: int) -> Any:
    """Encoded bytes, start and shape of a region -> its pixels, uint8 [h, w, 3], on the CPU.

    It ends at the decoder: DALI's CPU resize costs three times torch's (see resize.py).
    """
    return _built(_regions(**_options(max_batch, num_threads, queue, None)))


def image_pipeline(
    max_batch: int, num_threads: int, queue: int, size: int, device_id: int | None, decoder: Decoder
) -> Any:
    """The same, then padded, resized and cut to uint8 [size, size, 3] on the GPU `device_id`, wherever the decoder is;
    None runs the same graph on the CPU, which is how it is tested without a GPU."""
    options = _options(max_batch, num_threads, queue, device_id)
    return _built(_images(decoder, device_id is not None, size, **options))


def _options(max_batch: int, num_threads: int, queue: int, device_id: int | None) -> dict[str, Any]:
    return {
        "batch_size": max_batch,
        "num_threads": num_threads,
        "prefetch_queue_depth": queue,
        "exec_pipelined": False,  # one run a schedule_run: with it, the first would start a whole queue of them
        "exec_dynamic": True,  # outputs in a stream of one's own, which stay whole for as long as they are held
        "device_id": device_id,
    }


def _built(pipeline: Any) -> Any:
    pipeline.build()
    return pipeline


@pipeline_def  # type: ignore[untyped-decorator]
def _regions() -> Any:
    return _decoded(Decoder())


@pipeline_def  # type: ignore[untyped-decorator]
def _images(decoder: Decoder, on_gpu: bool, size: int) -> Any:
    regions = _decoded(decoder)
    if on_gpu and not decoder.on_gpu:
        regions = regions.gpu()
    # Black where the crop reaches outside the image.
    crops = fn.slice(
        regions, start=_numbers(PAD), shape=_numbers(CROP), axes=(0, 1), out_of_bounds_policy="pad", fill_values=0
    )
    resized = fn.resize(crops, size=fn.cast(_numbers(RESIZE), dtype=types.FLOAT), dtype=types.UINT8)
    return fn.slice(resized, start=_numbers(WINDOW), shape=(size, size), axes=(0, 1))


def _decoded(decoder: Decoder) -> Any:
    """Only the region is decoded. Exact DCT and smooth chroma: on the CPU bit for bit what Pillow decodes."""
    # no_copy: the bytes stay where they lie, in a memory map; the loader holds them until the output has come.
    encoded = fn.external_source(name=ENCODED, dtype=types.UINT8, ndim=1, no_copy=True)
    for_gpu: dict[str, Any] = {}
    if decoder.on_gpu:
        for_gpu = {
            "hw_decoder_load": decoder.hardware_load,
            "preallocate_height_hint": decoder.height,
            "preallocate_width_hint": decoder.width,
        }
    return fn.decoders.image_slice(
        encoded,
        device="mixed" if decoder.on_gpu else "cpu",
        start=_numbers(START),
        shape=_numbers(SHAPE),
        axes=(0, 1),
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
        **for_gpu,
    )


def _numbers(name: str) -> Any:
    """Two int32 a sample: rows and columns."""
    return fn.external_source(name=name, dtype=types.INT32, ndim=1)
