"""What the loader relies on in DALI's executor."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataloading import dali_pipelines as graph

SIDE = 16


def _pipeline(whole: bool) -> Any:
    return graph.image_pipeline(4, 1, 2, SIDE, None, graph.Decoder()) if whole else graph.region_pipeline(4, 1, 2)


def _bmp(value: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), value, np.uint8)).save(file, "BMP")
    return np.frombuffer(file.getvalue(), np.uint8)


def _run(pipeline: Any, data: np.ndarray, whole: bool) -> list[np.ndarray]:
    origin, side = np.zeros((1, 2), np.int32), np.full((1, 2), SIDE, np.int32)
    values: dict[str, Any] = {graph.ENCODED: [data], graph.START: origin, graph.SHAPE: side}
    if whole:
        values |= {graph.PAD: origin, graph.CROP: side, graph.RESIZE: side, graph.WINDOW: origin}
    for name, value in values.items():
        pipeline.feed_input(name, value)
    pipeline.schedule_run()
    (outputs,) = pipeline.share_outputs()
    pipeline.release_outputs()
    return [np.asarray(outputs[i]) for i in range(len(outputs))]


@pytest.mark.parametrize("whole", [False, True], ids=["regions", "images"])
def test_outputs_stay_whole_while_they_are_held(whole: bool) -> None:
    pipeline = _pipeline(whole)
    assert pipeline.exec_dynamic, "share_outputs takes a stream of the dynamic executor alone"
    (held,) = _run(pipeline, _bmp(10), whole)
    for value in (20, 30, 40, 50):
        _run(pipeline, _bmp(value), whole)
    assert (held == 10).all()


@pytest.mark.parametrize("whole", [False, True], ids=["regions", "images"])
def test_a_bad_image_is_an_error_where_outputs_are_asked_for(whole: bool) -> None:
    """The reader repairs there, and builds another pipeline."""
    with pytest.raises(RuntimeError):
        _run(_pipeline(whole), np.frombuffer(b"no image" * 8, np.uint8), whole)
